"""What the supervisor knows, as it goes over the wire."""

from collections.abc import Mapping

import msgspec

from cortex_core.harness import EngineLoad, Harness
from cortex_core.replica import LoadProgress, ReplicaStatus
from cortex_core.units import mib_from_bytes
from cortex_core.wire.neuron import (
    DiscoveredDevice,
    Discovery,
    Measured,
    ModelLoad,
    ModelReport,
    Progress,
    Recovery,
    Servable,
)
from neuron.lifecycle.admission import refusal
from neuron.lifecycle.budget import Budget
from neuron.lifecycle.events import Retry
from neuron.lifecycle.line import limits_of
from neuron.lifecycle.notes import Notes
from neuron.lifecycle.replica import ReplicaState
from neuron.ports import DeviceFacts, NodeIdentity
from neuron.settings import AdmissionSettings
from neuron.supervisor.life import Refusal


def discovery(
    identity: NodeIdentity, facts: DeviceFacts, harnesses: Mapping[str, Harness]
) -> Discovery:
    """Return what never changes."""
    return Discovery(
        hostname=identity.hostname,
        os=identity.os,
        kernel=identity.kernel,
        boot_id=identity.boot_id,
        version=identity.version,
        cuda_version=facts.cuda_version,
        driver_version=facts.driver_version,
        cuda_unavailable_reason=facts.unavailable_reason,
        harnesses=tuple(harnesses),
        engines=tuple(one.engine for one in harnesses.values() if one.engine is not None),
        devices=tuple(
            DiscoveredDevice(
                index=device.index,
                name=device.name,
                vram_total_mb=mib_from_bytes(device.vram_total_bytes) or None,
                compute_capability=device.compute_capability or None,
                uuid=device.uuid,
                mig=device.mig,
                numa_node=device.numa_node,
                pcie_max_generation=device.pcie_max_generation,
                pcie_max_width=device.pcie_max_width,
                links=facts.links.get(device.index, ()),
            )
            for device in facts.devices
        ),
    )


def model_report(
    state: ReplicaState, budget: Budget, *, is_pinned: bool, admission: AdmissionSettings
) -> ModelReport:
    """Return one model's report."""
    size_bytes = _size_bytes(state, budget)
    is_asleep = state.status is ReplicaStatus.SLEEPING
    refused = refusal(state.asked.model, state, is_draining=False)
    info = state.info
    host_bytes = state.host_used_bytes
    return ModelReport(
        id=state.asked.model,
        harness=state.asked.harness,
        status=_status(state).value,
        devices=state.devices,
        vram_used_mb=None if size_bytes is None else mib_from_bytes(size_bytes),
        capabilities=None if info is None else info.capabilities,
        limit=None if info is None else info.limit,
        last_used=state.last_used,
        load_s=state.load_s,
        wake_s=state.wake_s,
        sleep_level=state.sleep_level if is_asleep else None,
        host_used_mb=None if host_bytes is None else mib_from_bytes(host_bytes),
        pinned=is_pinned,
        max_in_flight=(
            None
            if info is None
            else limits_of(admission, state.asked.bounds, info.max_in_flight).max_in_flight
        ),
        servable=Servable(ok=refused is None, reason=refused.message if refused else None),
        progress=progress(state.progress),
        error=state.error,
        error_kind=None if state.error_kind is None else state.error_kind.value,
        recovery=_recovery(state.retry),
        peers=tuple(peer.endpoint for peer in state.asked.peers),
        head=state.asked.seat.head if state.asked.seat is not None else None,
        base=state.asked.base,
    )


def has_only_counted(before: ReplicaState, after: ReplicaState) -> bool:
    """Return whether nothing but requests that came and went is between two states."""
    return after == msgspec.structs.replace(
        before, in_flight=after.in_flight, last_used=after.last_used
    )


def _size_bytes(state: ReplicaState, budget: Budget) -> int | None:
    """Return the device memory that a model holds; `None` is not known."""
    if state.asked.base is not None:
        # What an adapter takes was its base's before it came.
        return 0
    holding = budget.holdings.get(state.asked.model)
    # An estimate of nothing is no estimate, but what sleeps may well hold nothing.
    is_known = holding is not None and (
        holding.is_measured or holding.size_bytes > 0 or holding.awake_bytes is not None
    )
    return holding.size_bytes if holding is not None and is_known else None


def measured(notes: Notes) -> tuple[Measured, ...]:
    """Return what loads came to, one entry per model."""
    return tuple(
        Measured(
            id=model,
            vram_mb=None if known.vram_bytes is None else mib_from_bytes(known.vram_bytes),
            load_s=_rounded(known.load_s),
            wake_s=_rounded(known.wake_s),
        )
        for model, known in notes.latest().items()
    )


def gone_report(last: ModelReport, refusal: Refusal | None) -> ModelReport:
    """Return the report that takes a model off the list."""
    return ModelReport(
        id=last.id,
        harness=last.harness,
        status=ReplicaStatus.UNLOADED.value,
        error=last.error if refusal is None else refusal.reason,
        error_kind=last.error_kind if refusal is None else refusal.kind.value,
    )


def model_load(
    state: ReplicaState,
    load: EngineLoad | None,
    *,
    waiting: int,
    last_step_age_s: float | None = None,
) -> ModelLoad:
    """Return how busy a model is.

    Args:
        state: of the model.
        load: its engine's, when there is one.
        waiting: requests that wait for a place with the engine.
        last_step_age_s: for how long the engine has made no step although it has work.
    """
    load = load or EngineLoad()
    return ModelLoad(
        id=state.asked.model,
        status=_status(state).value,
        in_flight=state.in_flight + waiting,
        queued=load.waiting + waiting,
        kv_cache_usage=load.kv_cache_usage,
        tok_s_prefill=load.prefill_tok_per_s,
        tok_s_decode=load.decode_tok_per_s,
        last_step_age_s=_rounded(last_step_age_s),
    )


def progress(state: LoadProgress | None) -> Progress | None:
    """Return a load's progress."""
    if state is None:
        return None
    return Progress(
        stage=state.stage,
        done_bytes=state.done_bytes,
        total_bytes=state.total_bytes,
        bytes_per_s=None if state.bytes_per_s is None else round(state.bytes_per_s),
        eta_s=None if state.eta_s is None else round(state.eta_s, 1),
    )


def _recovery(retry: Retry | None) -> Recovery | None:
    if retry is None:
        return None
    return Recovery(attempts=retry.attempt.number, next_attempt=round(retry.at_epoch, 3))


def _status(state: ReplicaState) -> ReplicaStatus:
    """Return the status as others see it: a part of another node's copy is no replica."""
    is_there = state.status in (ReplicaStatus.LOADING, ReplicaStatus.LOADED)
    return ReplicaStatus.FOLLOWING if state.asked.is_follower and is_there else state.status


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
