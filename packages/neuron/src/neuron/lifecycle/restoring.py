"""What a neuron loads again after a restart, because it was loaded before."""

from collections.abc import Collection, Iterable

from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.recovery import FailureKind
from neuron.lifecycle.replica import ReplicaState

_FIRST_RETRY_S = 5.0
"""A network that comes up late is there within seconds."""

_LONGEST_RETRY_S = 300.0
"""A question every five minutes costs nobody anything."""

_SERVES = frozenset({ReplicaStatus.LOADED, ReplicaStatus.RECOVERING})


def residents(
    states: Iterable[ReplicaState], still_wanted: Iterable[ModelSpec]
) -> tuple[ModelSpec, ...]:
    """Return what a restart is to bring back, what was used last first, and adapters at the end.

    What sleeps gave its place to others, what failed would fail again unless it was its device
    that did, and a part of another node's copy comes back when that node asks for it.

    Args:
        states: all models of the neuron.
        still_wanted: what an earlier life had and this one has not brought back yet; at the end,
            in this order.
    """
    here = [state for state in states if _is_wanted(state) and not state.asked.is_follower]
    # An adapter needs its base there before it.
    here.sort(key=lambda state: (state.asked.base is None, state.last_used or 0.0), reverse=True)
    names = {state.asked.model for state in here}
    rest = [spec for spec in still_wanted if spec.model not in names]
    return (*(state.asked for state in here), *rest)


def _is_wanted(state: ReplicaState) -> bool:
    is_robbed = state.status is ReplicaStatus.FAILED and state.error_kind is FailureKind.CUDA
    # One that was never up here would fail as it did.
    return state.status in _SERVES or (is_robbed and state.load_s is not None)


def to_restore(
    remembered: Iterable[ModelSpec], named: Collection[ModelId]
) -> tuple[ModelSpec, ...]:
    """Return what is to be loaded after the models that the settings name.

    Args:
        remembered: see `residents`.
        named: models that are loaded at every start anyway, as the settings want them.
    """
    return tuple(spec for spec in remembered if spec.model not in named)


def retry_s(tried: int) -> float:
    """Return how long to wait before a model is tried again that the hub could not be asked for.

    Args:
        tried: how often it was, at least once.
    """
    # More doublings than a float has would be an error.
    return min(_FIRST_RETRY_S * 2.0 ** min(tried - 1, 10), _LONGEST_RETRY_S)
