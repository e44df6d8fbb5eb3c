"""What `cortex up` writes, and how it tells that a fleet is ready."""

import pathlib

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_cli.commands.up import plan
from cortex_cli.commands.up.plan import Address, Wishes
from cortex_cli.commands.up.standing import Coming, Failed, Ready, standing
from cortex_core.catalogue import load_catalogue
from cortex_core.errors import SettingsError
from cortex_core.fleet.overview import FleetOverview, NodeView, ReplicaView
from cortex_core.ids import ModelId, NodeName
from cortex_core.replica import LoadProgress
from cortex_core.wire.neuron import Activation, ActivationFailure
from cortex_gateway.settings import load_settings as load_gateway
from neuron.settings import load_settings as load_neuron

ANY = Address(host="127.0.0.1", port=0)


def wishes(*models: str, harness: str = "vllm", nodes: int = 1) -> Wishes:
    return Wishes(
        listen=ANY, metrics_listen=ANY, neuron_port=0, models=models, harness=harness, nodes=nodes
    )


def test_built_in_models_are_served_when_nothing_is_asked_for() -> None:
    """Contract: `cortex/tiny`, which a first request asks, comes first."""
    assert plan.models_of(wishes()) == ("cortex/tiny", "cortex/tiny-embed")
    assert plan.models_of(wishes(harness="simulated")) == ("cortex/tiny",)


def test_models_asked_for_are_served_alone_and_once() -> None:
    """Contract: `--model ID` may be repeated."""
    assert plan.models_of(wishes("org/b", "org/a", "org/b")) == ("org/b", "org/a")


def test_impossible_model_id_is_a_settings_error() -> None:
    """Ours: found before anything is started."""
    with pytest.raises(SettingsError, match=r"--model: .*'a b' is no model id"):
        plan.models_of(wishes("a b"))


@given(st.integers(1, 60_000), st.integers(1, 256))
def test_node_k_listens_on_the_neuron_port_plus_k(port: int, nodes: int) -> None:
    """Contract: and on any free one when the port is 0."""
    asked = msgspec.structs.replace(wishes(nodes=nodes), neuron_port=port)

    assert [address.port for address in plan.neuron_addresses(asked)] == [
        *range(port, port + nodes)
    ]
    assert {address.port for address in plan.neuron_addresses(wishes(nodes=nodes))} == {0}


@given(st.lists(st.text(), unique=True), st.integers(1, 9))
def test_every_model_is_dealt_to_one_node_and_nodes_differ_by_one_at_most(
    models: list[str], nodes: int
) -> None:
    """Ours: round-robin, the first model on node 0."""
    shares = plan.dealt(models, nodes)

    assert sorted(model for share in shares for model in share) == sorted(models)
    assert len(shares) == nodes
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert not models or shares[0][0] == models[0]


@pytest.mark.parametrize("harness", ["vllm", "simulated"])
def test_written_files_are_what_the_daemons_read(tmp_path: pathlib.Path, harness: str) -> None:
    """Ours: checked by the daemons' own loaders."""
    models = ("org/a", "org/it's \\odd")
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(plan.models_toml(models[:1], harness))
    cortex = tmp_path / "cortex.toml"
    cortex.write_text(plan.cortex_toml(Address(host="::1", port=5), ANY, (7, 8), catalogue))
    neuron = tmp_path / "neuron.toml"
    neuron.write_text(plan.neuron_toml(models, harness, 7))

    gateway = load_gateway(cortex, {})
    node = load_neuron(neuron, {})
    assert gateway.gateway.listen == "[::1]:5"
    assert gateway.catalogue_path == catalogue
    assert gateway.endpoints == {"node-0": "http://127.0.0.1:7", "node-1": "http://127.0.0.1:8"}
    assert [profile.harness for profile in load_catalogue(catalogue).profiles.values()] == [harness]
    assert (node.host, node.port) == ("127.0.0.1", 7)
    assert tuple(model.model_id for model in node.default_models) == models
    assert len(node.devices) == (harness == "simulated")


def replica(
    model: str, status: str, progress: LoadProgress | None = None, error: str | None = None
) -> ReplicaView:
    return ReplicaView(
        id=ModelId(model),
        status=status,
        servable=status == "loaded",
        progress=progress,
        error=error,
    )


def fleet(*models: ReplicaView, activation: Activation | None = None) -> FleetOverview:
    node = NodeView(
        name=NodeName("node-0"), endpoint="e", health="up", models=models, activation=activation
    )
    return FleetOverview(status="ok", nodes=(node,))


LOADING = replica(
    "b", "loading", progress=LoadProgress(stage="weights", done_bytes=25, total_bytes=100)
)
FAILED = Activation(state="ready", failed=(ActivationFailure(model_id="b", error="no weights"),))


WELL = fleet(replica("a", "loaded"), replica("b", "loaded"))
UNSEEN = NodeView(name=NodeName("node-1"), endpoint="e", health="unseen")


@pytest.mark.parametrize(
    ("overview", "expected"),
    [
        (WELL, Ready()),
        (FleetOverview(status="degraded"), Coming(text="a waits, b waits")),
        (fleet(replica("a", "loaded")), Coming(text="b waits")),
        (
            msgspec.structs.replace(WELL, nodes=(*WELL.nodes, UNSEEN)),
            Coming(text="node-1 unseen"),
        ),
        (fleet(replica("a", "loaded"), LOADING), Coming(text="b loading (weights 25%)")),
        (
            fleet(replica("a", "loaded"), replica("b", "failed", error="it broke")),
            Failed(reason="b did not load on node-0: it broke"),
        ),
        (
            fleet(replica("a", "loaded"), activation=FAILED),
            Failed(reason="b did not load on node-0: no weights"),
        ),
        (fleet(replica("a", "loaded"), replica("b", "loaded"), activation=FAILED), Ready()),
    ],
)
def test_fleet_is_ready_when_every_node_is_up_and_every_model_would_answer(
    overview: FleetOverview, expected: Ready | Coming | Failed
) -> None:
    """Contract: ready when a request would be answered."""
    assert standing(overview, ("a", "b")) == expected
