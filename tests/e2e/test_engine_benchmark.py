"""The benchmark of the neuron beside `vllm serve`, at its smallest."""

import pytest

from benchmarks.engine import SERVERS, TINY, compare, loads

pytestmark = pytest.mark.timeout(600)


def test_the_same_is_generated_behind_both() -> None:
    """Ours: figures of both stand on the same work, and the engine's time is told apart."""
    found = compare(rounds=1, repeats=1, scale=1, models=(TINY,))

    assert set(found) == set(loads(1)[TINY])
    for name in ("chat, streamed", "chat, plain", "completions"):
        load = loads(1)[TINY][name]
        generated = load.connections * load.calls * int(str(load.fields["max_tokens"]))
        for server in SERVERS:
            shown = found[name][server]
            assert shown["tokens_per_s"] * shown["wall_s"] == pytest.approx(generated)
            assert shown["core_cpu_s_per_1000"] > 0
