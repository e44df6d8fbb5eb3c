"""`cortex models`: what it says of adapters."""

from cortex_cli.context import Style
from cortex_cli.render.models import model_rows, render_models
from cortex_core.fleet.overview import FleetOverview, NodeView, ReplicaView, UnloadedView
from cortex_core.ids import ModelId, NodeName

PLAIN = Style()
BASE = ModelId("org/base")


def test_an_adapter_is_shown_with_its_base_wherever_it_is() -> None:
    """Ours: loaded, and nowhere yet."""
    there = ReplicaView(id=ModelId("org/a"), status="loaded", base=BASE)
    node = NodeView(name=NodeName("beast"), endpoint="http://b", health="up", models=(there,))
    away = UnloadedView(
        id=ModelId("org/b"), harness="vllm", feasible_on=(NodeName("beast"),), base=BASE
    )

    rows = model_rows(FleetOverview(status="ok", nodes=(node,), unloaded=(away,)))

    lines = render_models(rows, PLAIN).splitlines()
    assert lines[1].endswith("beast  on org/base")
    assert lines[2].endswith("on org/base; loads on demand on beast")
