"""Whether a load would work, before a byte of device memory is taken; pure.

What is not known is no reason to refuse: only what the engine would refuse as well is `failed`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from cortex_core.device import Device
from cortex_core.errors import InsufficientVramError, InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.knowledge import ModelFacts
from cortex_core.units import mib_from_bytes
from cortex_core.wire.fit import CheckName, FitCheck, FitNeed, Verdict
from neuron.lifecycle.budget import Budget, share_bytes
from neuron.lifecycle.condition import usable_devices
from neuron.lifecycle.footprint import estimate, reckoned_tokens
from neuron.lifecycle.selection import check_devices, select_devices

_VOCABULARY_STEP = 64
"""vLLM pads vocabularies to a multiple of this before it divides them
(`vocab_parallel_embedding.py`, DEFAULT_VOCAB_PADDING_SIZE)."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One load, as it would be tried here and now."""

    spec: ModelSpec
    """Checked; its `vram_bytes` is what the ledger reckons with."""
    facts: ModelFacts = ModelFacts()
    devices: tuple[Device, ...] = ()
    """Of this node."""
    broken: Mapping[DeviceIndex, str] = {}
    """Devices on which nothing can be loaded now, with the reasons."""
    budget: Budget = Budget()
    is_measured: bool = False
    """Whether `spec.vram_bytes` is what such a load held before."""

    @property
    def tensor_parallel(self) -> int:
        """Devices that share each layer."""
        return self.spec.tensor_parallel_on(len(self.spec.devices))

    @property
    def considered(self) -> tuple[Device, ...]:
        """The devices that were named, else all."""
        named = self.spec.devices
        return tuple(device for device in self.devices if not named or device.index in named)

    @property
    def weak(self) -> tuple[Device, ...]:
        """Those of `considered` that cannot compute in the model's quantisation."""
        needed = self.facts.min_capability
        return tuple(device for device in self.considered if _is_weak(device, needed))

    @property
    def able(self) -> tuple[Device, ...]:
        """The devices of this node without those that are weak, unless they were named."""
        weak = () if self.spec.devices else self.weak
        return tuple(device for device in self.devices if device not in weak)


def check(case: Case) -> tuple[FitCheck, ...]:
    """Return every check that can be told of `case`, in the order of `CheckName`."""
    return tuple(found for look in _LOOKS for found in look(case))


def failures(checks: Sequence[FitCheck]) -> tuple[FitCheck, ...]:
    """Return those that failed."""
    return tuple(found for found in checks if found.verdict == Verdict.FAILED)


def need(case: Case) -> FitNeed:
    """Return the memory that the load takes, and where that number comes from."""
    parts = estimate(case.facts, case.spec)
    total = case.spec.vram_bytes
    source = "measured" if case.is_measured else "given"
    if total is None or (parts is not None and total == parts.total_bytes):
        total = None if parts is None else parts.total_bytes
        source = "measured" if case.is_measured else "estimated"
    return FitNeed(
        total_bytes=total,
        source=None if total is None else source,
        weights_bytes=case.facts.weights_bytes,
        kv_bytes=None if parts is None else parts.kv_bytes,
        overhead_bytes=None if parts is None else parts.overhead_bytes,
    )


def device_name(device: Device) -> str:
    """Return how a device is called, as in logs."""
    return f"cuda-dev-{device.index}"


def _check(
    name: CheckName,
    verdict: Verdict,
    message: str,
    needed: int | None = None,
    limit: int | None = None,
) -> FitCheck:
    return FitCheck(
        name=name.value, verdict=verdict.value, message=message, needed=needed, limit=limit
    )


def _weights(case: Case) -> Iterator[FitCheck]:
    facts, name = case.facts, CheckName.WEIGHTS
    size = "" if facts.weights_bytes is None else f", {mib(facts.weights_bytes)}"
    if facts.is_here is None:
        yield _check(name, Verdict.UNKNOWN, "nothing is known of its weights")
    elif facts.is_here:
        yield _check(name, Verdict.OK, f"they are here{size}")
    else:
        yield _check(name, Verdict.WARNING, f"they are not here and would be downloaded{size}")


def _format(case: Case) -> Iterator[FitCheck]:
    facts, name = case.facts, CheckName.FORMAT
    if facts.damage is not None:
        yield _check(name, Verdict.FAILED, facts.damage)
    elif facts.format is None:
        yield _check(name, Verdict.UNKNOWN, "it is not known")
    elif facts.format in facts.formats:
        yield _check(name, Verdict.OK, facts.format)
    else:
        reads = ", ".join(facts.formats)
        message = f"the engine here does not read {facts.format}; it reads {reads}"
        yield _check(name, Verdict.FAILED, message)


def _architecture(case: Case) -> Iterator[FitCheck]:
    facts, name = case.facts, CheckName.ARCHITECTURE
    called = ", ".join(facts.architectures) or "not named"
    if facts.is_known_architecture is None:
        yield _check(name, Verdict.UNKNOWN, called)
    elif facts.is_known_architecture:
        yield _check(name, Verdict.OK, called)
    else:
        message = f"the engine here does not know the architecture {called}"
        yield _check(name, Verdict.FAILED, message)


def _quantization(case: Case) -> Iterator[FitCheck]:
    facts, name = case.facts, CheckName.QUANTIZATION
    method = facts.quantization
    if method is None:
        if facts.architectures:
            yield _check(name, Verdict.OK, "none")
        return
    if facts.is_known_quantization is False:
        message = f"the engine does not know the quantisation {method!r} on this platform"
        yield _check(name, Verdict.FAILED, message)
        return
    weak = case.weak
    if weak and (case.spec.devices or len(case.able) < case.spec.ranks):
        has = ", ".join(f"{device_name(device)} has {device.compute_capability}" for device in weak)
        message = f"{method} needs compute capability {facts.min_capability}; {has}"
        yield _check(name, Verdict.FAILED, message)
    elif facts.is_known_quantization is None:
        yield _check(name, Verdict.UNKNOWN, method)
    else:
        yield _check(name, Verdict.OK, method)


def _is_weak(device: Device, needed: str | None) -> bool:
    has = _version(device.compute_capability)
    wants = _version(needed or "")
    return has is not None and wants is not None and has < wants


def _version(text: str) -> tuple[int, ...] | None:
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None


def _tensor_parallel(case: Case) -> Iterator[FitCheck]:
    name, parts = CheckName.TENSOR_PARALLEL, case.tensor_parallel
    try:
        check_devices(case.spec, case.devices)
    except InvalidRequestError as error:
        yield _check(name, Verdict.FAILED, error.message, case.spec.ranks, len(case.considered))
        return
    if parts == 1:
        yield _check(name, Verdict.OK, "one device holds each layer", 1)
        return
    what = next(_indivisible(case.facts, parts), None)
    if what is None:
        known = case.facts.attention_heads is not None
        verdict = Verdict.OK if known else Verdict.UNKNOWN
        yield _check(name, verdict, f"{parts} devices share each layer", parts)
    else:
        thing, number = what
        message = f"{number} {thing} cannot be divided among {parts} devices"
        yield _check(name, Verdict.FAILED, message, parts, number)


def _indivisible(facts: ModelFacts, parts: int) -> Iterator[tuple[str, int]]:
    """Yield what the engine cannot divide, with its number."""
    heads, kv_heads, vocabulary = facts.attention_heads, facts.kv_heads, facts.vocab_size
    if heads is not None and heads % parts:
        yield "attention heads", heads
    if kv_heads is not None and kv_heads % parts and parts % kv_heads:
        yield "key and value heads", kv_heads
    if vocabulary is not None:
        padded = -(-vocabulary // _VOCABULARY_STEP) * _VOCABULARY_STEP
        if padded % parts:
            yield "tokens of the padded vocabulary", padded


def _groups(case: Case) -> Iterator[FitCheck]:
    """Tell of rows that do not hold whole groups of the quantisation; some kernels pad them."""
    facts, parts = case.facts, case.tensor_parallel
    if facts.group_size is None or facts.group_size <= 0 or facts.intermediate_size is None:
        return
    if facts.intermediate_size % (parts * facts.group_size):
        yield _check(
            CheckName.QUANTIZATION,
            Verdict.WARNING,
            f"{facts.intermediate_size} rows among {parts} devices are no whole groups of "
            f"{facts.group_size}",
            facts.intermediate_size // parts,
            facts.group_size,
        )


def _context(case: Case) -> Iterator[FitCheck]:
    facts, name = case.facts, CheckName.CONTEXT
    asked, longest = facts.context, facts.longest
    if asked is not None and longest is not None and asked > longest:
        message = f"max_model_len {asked} is above the model's own {longest}"
        yield _check(name, Verdict.FAILED, message, asked, longest)
        return
    held = _tokens_held(case)
    if asked is None:
        most = "not known" if longest is None else str(longest)
        if held is not None and (longest is None or held < longest):
            most = f"{held}, as long as the KV cache allows"
        verdict = Verdict.UNKNOWN if longest is None and held is None else Verdict.OK
        yield _check(name, verdict, f"up to {most}", None, longest)
    elif held is not None and held < asked:
        exact = facts.kv is not None and facts.kv.is_exact
        message = f"max_model_len {asked} is more than the KV cache holds, {held}"
        yield _check(name, Verdict.FAILED if exact else Verdict.WARNING, message, asked, held)
    else:
        verdict = Verdict.UNKNOWN if longest is None else Verdict.OK
        yield _check(
            name, verdict, f"{asked} of the model's {longest or 'unknown'}", asked, longest
        )


def _tokens_held(case: Case) -> int | None:
    """Return how long one request may be in a KV cache of fixed size; `None` where it is not."""
    facts = case.facts
    if facts.kv is None or facts.cache_bytes is None or (case.spec.pipeline_parallel or 1) > 1:
        return None
    cache, kv, parts = facts.cache_bytes, facts.kv, case.tensor_parallel
    wanted = reckoned_tokens(facts) if facts.context is not None else facts.longest
    if wanted is None:
        return None
    return largest(wanted, lambda tokens: kv.device_bytes(tokens, parts) <= cache)


def _memory(case: Case) -> Iterator[FitCheck]:
    empty = Budget.from_devices(case.devices)
    yield from _against(case, empty, CheckName.MEMORY)


def _room(case: Case) -> Iterator[FitCheck]:
    if case.broken:
        try:
            usable = usable_devices(case.spec, case.devices, case.broken)
        except ModelLoadFailedError as error:
            yield _check(CheckName.ROOM, Verdict.FAILED, error.message)
            return
        case = msgspec.structs.replace(case, devices=usable)
    yield from _against(case, case.budget, CheckName.ROOM)


def _against(case: Case, budget: Budget, name: CheckName) -> Iterator[FitCheck]:
    total = need(case).total_bytes
    if total is None:
        yield _check(name, Verdict.UNKNOWN, "nobody knows how much it needs")
        return
    share = share_bytes(total, case.spec.ranks)
    if not case.able:
        message = f"it needs {mib(share)}, and the node has no devices to compare that with"
        yield _check(name, Verdict.UNKNOWN, message, share)
        return
    spec = msgspec.structs.replace(case.spec, vram_bytes=total)
    able = [device for device in case.considered if device in case.able]
    frees = [budget.free_bytes(device.index) for device in able]
    most = max((free for free in frees if free is not None), default=None)
    try:
        chosen = select_devices(spec, case.able, budget)
    except InvalidRequestError:
        # `tensor_parallel` says so.
        yield _check(name, Verdict.UNKNOWN, "the devices make no sense", share, most)
    except InsufficientVramError:
        each = "" if case.spec.ranks == 1 else f" on each of {case.spec.ranks} devices"
        has = "; ".join(_has(device, budget, name) for device in able)
        yield _check(name, Verdict.FAILED, f"it needs {mib(share)}{each}; {has}", share, most)
    else:
        on = ", ".join(device_name(device) for device in case.devices if device.index in chosen)
        known = all(budget.totals.get(index) for index in chosen)
        verdict = Verdict.OK if known else Verdict.UNKNOWN
        yield _check(name, verdict, f"{mib(share)} on {on}", share, most)


def _has(device: Device, budget: Budget, name: CheckName) -> str:
    free = budget.free_bytes(device.index)
    if free is None:
        return f"{device_name(device)} does not say what it has"
    if name is CheckName.MEMORY:
        return f"{device_name(device)} has {mib(device.vram_total_bytes)}"
    return f"{device_name(device)} has {mib(free)} free of {mib(device.vram_total_bytes)}"


def _speech(case: Case) -> Iterator[FitCheck]:
    """Tell what chats with the model would lack."""
    facts = case.facts
    if facts.is_generative is None:
        return
    if not facts.is_generative:
        return
    if facts.has_chat_template is None:
        yield _check(CheckName.CHAT_TEMPLATE, Verdict.UNKNOWN, "nothing is known of one")
    elif facts.has_chat_template:
        yield _check(CheckName.CHAT_TEMPLATE, Verdict.OK, "there is one")
    else:
        message = "there is none, so that it completes text and does not chat"
        yield _check(CheckName.CHAT_TEMPLATE, Verdict.WARNING, message)
    for name, parser, what in (
        (CheckName.TOOL_PARSER, facts.tool_parser, "tool calls stay in the text"),
        (CheckName.REASONING_PARSER, facts.reasoning_parser, "reasoning stays in the text"),
    ):
        if parser is None:
            message = f"none is known for its family: {what}"
            # Most models do not reason.
            is_usual = name is CheckName.REASONING_PARSER
            yield _check(name, Verdict.OK if is_usual else Verdict.WARNING, message)
        else:
            yield _check(name, Verdict.OK, parser)


def largest(top: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number from 0 to `top` for which `holds`, which holds for all below it.

    0 when it holds for none.
    """
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def mib(size_bytes: int) -> str:
    """Return a size in words."""
    return f"{mib_from_bytes(size_bytes):,} MiB"


_LOOKS: tuple[Callable[[Case], Iterator[FitCheck]], ...] = (
    _weights,
    _format,
    _architecture,
    _quantization,
    _groups,
    _tensor_parallel,
    _context,
    _memory,
    _room,
    _speech,
)
