"""Whether a request may go to a model's engine now."""

from typing import assert_never

from cortex_core.errors import (
    DrainingError,
    ModelLoadFailedError,
    ModelLoadingError,
    ModelNotFoundError,
    NoReplicaError,
    RecoveringError,
    RequestError,
)
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.replica import ReplicaState


def refusal(
    model: ModelId, state: ReplicaState | None, *, is_draining: bool, is_back_soon: bool = False
) -> RequestError | None:
    """Return why a request for `model` is not admitted, or `None` when it is.

    Args:
        model: as the caller named it.
        state: of that model; `None` when the node does not have it.
        is_draining: whether the whole neuron is going down.
        is_back_soon: whether the model is away for as long as its engine is being replaced.
    """
    if is_draining:
        return DrainingError("this neuron is shutting down; ask another one")
    if is_back_soon and (state is None or state.status is not ReplicaStatus.LOADED):
        return RecoveringError(f"the engine of {model!r} is being replaced")
    if state is None:
        return ModelNotFoundError(model)
    return _status_refusal(model, state)


def following_error(spec: ModelSpec) -> NoReplicaError | None:
    """Return why a part of another node's copy answers nobody; `None` when it is no such part."""
    if spec.seat is None or not spec.is_follower:
        return None
    return NoReplicaError(
        f"only a part of {spec.model!r} is here; {spec.seat.head} answers for the whole"
    )


def _status_refusal(model: ModelId, state: ReplicaState) -> RequestError | None:
    match state.status:
        case ReplicaStatus.LOADED:
            return following_error(state.asked)
        case ReplicaStatus.LOADING | ReplicaStatus.RELOADING:
            eta_s = state.progress.eta_s if state.progress is not None else None
            return ModelLoadingError(f"{model!r} is being loaded", retry_after_s=eta_s)
        case ReplicaStatus.RECOVERING:
            return RecoveringError(f"the engine of {model!r} failed and is being brought back")
        case ReplicaStatus.FAILED | ReplicaStatus.POISONED:
            return ModelLoadFailedError(f"{model!r} failed: {state.error or 'no reason known'}")
        case ReplicaStatus.UNLOADING:
            leaving = "put to sleep" if state.is_falling_asleep else "unloaded"
            return NoReplicaError(f"{model!r} is being {leaving}")
        case ReplicaStatus.SLEEPING:
            return NoReplicaError(f"{model!r} sleeps; wake it")
        case ReplicaStatus.UNLOADED | ReplicaStatus.UNKNOWN | ReplicaStatus.FOLLOWING:
            return NoReplicaError(f"{model!r} is not loaded")
        case _:
            assert_never(state.status)
