"""The benchmark of the neuron beside `vllm serve`, at its smallest."""

import pytest

from benchmarks.engine import SAYS, compare, markdown
from benchmarks.engine_loads import TINY, loads
from benchmarks.engine_servers import SERVERS

pytestmark = pytest.mark.timeout(600)


def test_the_same_is_generated_behind_both() -> None:
    """Ours: figures of both stand on the same work, and the engine's time is told apart."""
    found = compare(rounds=1, repeats=1, scale=1, models=(TINY,))

    assert set(found.loads) == set(found.ratios) == set(loads(1)[TINY])
    for name in ("chat, streamed", "chat", "completions"):
        load = loads(1)[TINY][name]
        generated = load.connections * load.calls * int(str(load.fields["max_tokens"]))
        for server in SERVERS:
            shown = found.loads[name][server]
            assert shown["tokens"] == generated
            assert shown["core_ms"] > 0
            assert shown["front_ms"] > 0
    page = markdown(found)
    assert all(column in page for column in SAYS.values())
