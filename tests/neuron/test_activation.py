"""Default models that the network keeps from being loaded."""

from hypothesis import given, strategies as st

from cortex_core.errors import HubUnreachableError, ModelLoadFailedError
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.restoring import retry_s
from neuron.settings import DefaultModel
from neuron.supervisor.activation import Activator
from tests.fakes.clock import settle
from tests.neuron.bench import Bench

A, B = ModelId("org/a"), ModelId("org/b")


def activator_of(bench: Bench, *models: ModelId) -> Activator:
    """Begin to load default models."""
    wanted = tuple(DefaultModel(model_id=model, harness="fake") for model in models)
    activator = Activator(wanted, bench.supervisor, lambda: None, bench.clock)
    bench.activation = bench.tasks.create_task(activator.run())
    return activator


async def test_model_is_tried_again_when_the_hub_was_out_of_reach(bench: Bench) -> None:
    """Ours: a machine may be up before its network is; others are not kept waiting."""
    bench.harness.load_error = HubUnreachableError("no network")
    activator = activator_of(bench, A, B)
    await settle()
    first = activator.state
    await bench.clock.advance(4)
    later = activator.state
    await bench.clock.advance(1)
    second = activator.state
    bench.harness.load_error = None
    await bench.clock.advance(10)
    await bench.activation

    assert first.state == "ready"
    assert [(entry.model_id, entry.retry_s) for entry in first.failed] == [(A, 5), (B, 5)]
    assert [entry.retry_s for entry in later.failed] == [1, 1]
    assert [entry.retry_s for entry in second.failed] == [10, 10]
    assert activator.state.failed == ()
    assert activator.state.completed == (A, B)
    assert bench.status(A) is ReplicaStatus.LOADED


async def test_other_failures_are_not_tried_again(bench: Bench) -> None:
    """Ours: what is wrong with a model is as wrong a minute later."""
    bench.harness.load_error = ModelLoadFailedError("broken")
    activator = activator_of(bench, A)
    await bench.activation

    (failure,) = activator.state.failed
    assert failure.retry_s is None
    assert activator.state.state == "ready"


async def test_model_that_was_unloaded_meanwhile_is_left_alone(bench: Bench) -> None:
    """Ours: an operator's word is newer than the settings'."""
    bench.harness.load_error = HubUnreachableError("no network")
    activator = activator_of(bench, A)
    await settle()
    await bench.supervisor.unload(A, 0)
    bench.harness.load_error = None

    await bench.clock.advance(5)
    await bench.activation

    assert not bench.supervisor.has(A)
    assert activator.state.failed == ()


@given(st.integers(1, 10_000))
def test_pauses_grow_and_are_bounded(tried: int) -> None:
    """Ours: five seconds first, five minutes at most."""
    assert 5 <= retry_s(tried) <= retry_s(tried + 1) <= 300
