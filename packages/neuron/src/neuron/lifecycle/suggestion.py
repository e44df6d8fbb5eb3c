"""The nearest load that would pass, for one that would not; pure."""

from collections.abc import Iterator

import msgspec

from cortex_core.units import MIB, mib_from_bytes
from cortex_core.wire.fit import CheckName, FitSuggestion
from neuron.lifecycle.footprint import estimate, reckoned_tokens
from neuron.lifecycle.preflight import Case, check, failures, largest

CONTEXT_STEP = 256
"""A suggested context is a multiple of this, unless it is the model's own limit: engines divide
their cache into blocks of 16 to 128 tokens."""

_USEFUL_TOKENS = 2048
"""More devices are suggested before a context that is shorter than this."""

_CURABLE = {
    CheckName.TENSOR_PARALLEL.value,
    CheckName.CONTEXT.value,
    CheckName.MEMORY.value,
    CheckName.ROOM.value,
}


def suggest(case: Case) -> FitSuggestion | None:
    """Return what to change so that no check of `case` fails.

    A shorter context comes first, while it stays useful; then other numbers of devices; then
    both. What is suggested never asks for more than was asked for, nor than the model can.

    Returns:
        `None` when nothing fails, or nothing near would pass.
    """
    failed = {found.name for found in failures(check(case))}
    if not failed or failed - _CURABLE:
        return None
    found = next(_passing(case), None)
    return None if found is None else _told(case, found)


def _passing(case: Case) -> Iterator[Case]:
    """Yield cases that pass, the nearest first."""
    others = [_with_devices(case, count) for count in _counts(case)]
    yield from _shorter(case, _USEFUL_TOKENS)
    yield from (other for other in others if _passes(other))
    for other in others:
        yield from _shorter(other, _USEFUL_TOKENS)
    for other in (case, *others):
        yield from _shorter(other, CONTEXT_STEP)


def _counts(case: Case) -> list[int]:
    """Return other numbers of devices for each layer, the nearest first, the larger of two."""
    if case.spec.devices or (case.spec.pipeline_parallel or 1) > 1:
        return []
    own = case.tensor_parallel
    counts = [count for count in range(1, len(case.devices) + 1) if count != own]
    return sorted(counts, key=lambda count: (abs(count - own), -count))


def _with_devices(case: Case, count: int) -> Case:
    spec = msgspec.structs.replace(case.spec, tensor_parallel=count)
    changed = msgspec.structs.replace(case, spec=spec)
    return _sized(changed, case) if _is_estimate(case) else changed


def _shorter(case: Case, least: int) -> Iterator[Case]:
    """Yield `case` with the longest context that passes, if one of `least` tokens or more does."""
    facts = case.facts
    top = reckoned_tokens(facts)
    if facts.longest is not None:
        top = min(top, facts.longest)
    whole = _with_context(case, top)
    if top != facts.context and _passes(whole):
        yield whole
        return
    steps = largest(
        top // CONTEXT_STEP,
        lambda count: count == 0 or _passes(_with_context(case, count * CONTEXT_STEP)),
    )
    if steps * CONTEXT_STEP >= min(least, top) and steps:
        yield _with_context(case, steps * CONTEXT_STEP)


def _with_context(case: Case, tokens: int) -> Case:
    facts = msgspec.structs.replace(case.facts, context=tokens)
    return _sized(msgspec.structs.replace(case, facts=facts), case)


def _sized(changed: Case, case: Case) -> Case:
    """Return `changed` with the memory that it takes, never more than was said of `case`."""
    parts = estimate(changed.facts, changed.spec)
    known = case.spec.vram_bytes
    if parts is None:
        return changed
    # Whole MiB, as the suggestion says it.
    total = -(-parts.total_bytes // MIB) * MIB
    spec = msgspec.structs.replace(
        changed.spec, vram_bytes=total if known is None or _is_estimate(case) else min(known, total)
    )
    return msgspec.structs.replace(changed, spec=spec, is_measured=False)


def _is_estimate(case: Case) -> bool:
    parts = estimate(case.facts, case.spec)
    return parts is None or case.spec.vram_bytes in (None, parts.total_bytes)


def _passes(case: Case) -> bool:
    return not failures(check(case))


def _told(case: Case, found: Case) -> FitSuggestion:
    context = found.facts.context if found.facts.context != case.facts.context else None
    parallel = found.tensor_parallel if found.tensor_parallel != case.tensor_parallel else None
    size = found.spec.vram_bytes
    is_given = case.spec.vram_bytes is not None and not _is_estimate(case) and not case.is_measured
    vram_mb = None
    if is_given and size is not None and size != case.spec.vram_bytes:
        vram_mb = mib_from_bytes(size)
    words = [
        f"{name} {value}"
        for name, value in (
            ("max_model_len", context),
            ("tensor_parallel", parallel),
            ("vram_mb", vram_mb),
        )
        if value is not None
    ]
    return FitSuggestion(
        max_model_len=context,
        tensor_parallel=parallel,
        vram_mb=vram_mb,
        message=f"{' with '.join(words)} would fit",
    )
