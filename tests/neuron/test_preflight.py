"""What is said of a load before it is tried, and what is suggested instead."""

import msgspec
import pytest
from hypothesis import assume, given, strategies as st

from cortex_core.device import Device
from cortex_core.group import Peer
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.knowledge import KvShape, ModelFacts
from cortex_core.units import MIB
from cortex_core.wire.fit import CheckName, FitCheck, Verdict
from neuron.lifecycle.budget import Budget
from neuron.lifecycle.footprint import estimate
from neuron.lifecycle.preflight import Case, check, failures, need
from neuron.lifecycle.suggestion import suggest

KV = KvShape(heads=8, head_bytes=512, full_layers=32)
"""128 KiB for each token, as a model of eight billion parameters has it."""

FACTS = ModelFacts(
    is_here=True,
    weights_bytes=16_000 * MIB,
    format="safetensors",
    formats=("safetensors",),
    architectures=("LlamaForCausalLM",),
    is_known_architecture=True,
    attention_heads=32,
    kv_heads=8,
    vocab_size=128_256,
    intermediate_size=14_336,
    kv=KV,
    longest=131_072,
    has_chat_template=True,
    tool_parser="llama3_json",
    is_generative=True,
)


def devices(*totals_mb: int, capability: str = "8.9") -> tuple[Device, ...]:
    return tuple(
        Device(
            index=DeviceIndex(number),
            name="GPU",
            vram_total_bytes=total * MIB,
            compute_capability=capability,
        )
        for number, total in enumerate(totals_mb)
    )


def case_of(
    facts: ModelFacts = FACTS,
    cards: tuple[Device, ...] = devices(24_000),
    used_mb: int = 0,
    vram_bytes: int | None = None,
    parallel: int | None = None,
) -> Case:
    spec = ModelSpec(
        model=ModelId("org/model"),
        harness="vllm",
        tensor_parallel=parallel,
        vram_bytes=vram_bytes,
    )
    if vram_bytes is None:
        parts = estimate(facts, spec)
        size = None if parts is None else parts.total_bytes
        spec = msgspec.structs.replace(spec, vram_bytes=size)
    budget = Budget.from_devices(cards)
    for card in cards:
        budget = budget.with_used(card.index, used_mb * MIB)
    return Case(spec=spec, facts=facts, devices=cards, budget=budget)


def found(case: Case, name: CheckName) -> FitCheck:
    return next(one for one in check(case) if one.name == name)


def changed(**fields: object) -> ModelFacts:
    return msgspec.structs.replace(FACTS, **fields)


def test_a_load_that_fits_has_nothing_against_it() -> None:
    """Ours: and everything that is checked is told, in the order of the list."""
    case = case_of()

    names = [one.name for one in check(case)]

    assert failures(check(case)) == ()
    assert suggest(case) is None
    assert names == [name.value for name in CheckName if name is not CheckName.OPTIONS]
    assert need(case).source == "estimated"
    assert need(case).weights_bytes == 16_000 * MIB
    assert need(case).kv_bytes == 8192 * 128 << 10


def test_too_long_a_context_is_refused_with_the_longest_that_fits() -> None:
    """Issue 5: `max_model_len` 16384 would fit."""
    case = case_of(changed(context=65_536))

    failed = failures(check(case))
    better = suggest(case)

    assert [one.name for one in failed] == ["memory", "room"]
    assert "needs 25,728 MiB; cuda-dev-0 has 24,000 MiB" in failed[0].message
    assert better is not None
    assert better.max_model_len == 51_712
    assert better.message == "max_model_len 51712 would fit"


def test_room_that_others_hold_is_told_with_what_is_free() -> None:
    """Issue 5: needs so much, cuda-dev-0 has so much free of so much."""
    failed = failures(check(case_of(used_mb=6_000)))

    assert [(one.name, one.needed, one.limit) for one in failed] == [
        ("room", 18_560 * MIB, 18_000 * MIB)
    ]
    assert failed[0].message == (
        "it needs 18,560 MiB; cuda-dev-0 has 18,000 MiB free of 24,000 MiB"
    )


def test_device_that_cannot_be_used_has_no_room() -> None:
    """Ours: a load would be refused for it; where there is another device, that one is taken."""
    broken = {DeviceIndex(0): "CUDA device 0 is poisoned: it has to be reset (Xid 48)"}
    alone = msgspec.structs.replace(case_of(), broken=broken)
    two = msgspec.structs.replace(case_of(cards=devices(24_000, 24_000)), broken=broken)
    both = msgspec.structs.replace(
        case_of(cards=devices(24_000, 24_000), parallel=2), broken=broken
    )

    assert found(alone, CheckName.ROOM).verdict == Verdict.FAILED
    assert "Xid 48" in found(alone, CheckName.ROOM).message
    assert suggest(alone) is None
    assert found(two, CheckName.ROOM).message == "18,560 MiB on cuda-dev-1"
    better = suggest(both)
    assert better is not None
    assert better.tensor_parallel == 1


@pytest.mark.parametrize(
    ("facts", "parallel", "name", "words"),
    [
        ({"damage": "a.safetensors: it has 3 bytes"}, None, "format", "it has 3 bytes"),
        ({"format": "pickle"}, None, "format", "does not read pickle"),
        ({"format": "gguf"}, None, "format", "does not read gguf; it reads safetensors"),
        ({"is_known_architecture": False}, None, "architecture", "LlamaForCausalLM"),
        (
            {"quantization": "x", "is_known_quantization": False},
            None,
            "quantization",
            "does not know the quantisation 'x'",
        ),
        (
            {"quantization": "fp4", "min_capability": "10.0"},
            None,
            "quantization",
            "fp4 needs compute capability 10.0; cuda-dev-0 has 8.9",
        ),
        ({"context": 200_000}, None, "context", "above the model's own 131072"),
        ({"cache_bytes": 128 << 20, "context": 4096}, None, "context", "holds, 1024"),
        ({}, 3, "tensor_parallel", "needs 3 devices and this node has 2"),
        ({"attention_heads": 5}, 2, "tensor_parallel", "5 attention heads"),
        ({"kv_heads": 3}, 2, "tensor_parallel", "3 key and value heads"),
        ({"vocab_size": 64}, 2, None, ""),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    facts: dict[str, object], parallel: int | None, name: str | None, words: str
) -> None:
    """Ours: one check, in words."""
    case = case_of(changed(**facts), devices(24_000, 24_000), parallel=parallel)

    failed = failures(check(case))

    assert [one.name for one in failed][:1] == ([name] if name else [])
    assert words in (failed[0].message if failed else "")


def test_old_card_among_newer_ones_is_left_out() -> None:
    """Ours: on a machine with unlike cards the model goes where it can run."""
    cards = (*devices(24_000, capability="7.0"), *devices(0, 24_000, capability="8.9")[1:])
    facts = changed(quantization="fp4", is_known_quantization=True, min_capability="8.0")

    alone = case_of(facts, cards[:1])
    both = case_of(facts, cards)

    assert [one.name for one in failures(check(alone))] == ["quantization"]
    assert failures(check(both)) == ()
    assert found(both, CheckName.ROOM).message.endswith("on cuda-dev-1")


def test_vocabulary_is_divided_in_its_padded_size() -> None:
    """vLLM: a multiple of 64, so that three devices divide few of them."""
    cards = devices(24_000, 24_000, 24_000)
    facts = changed(attention_heads=24, kv_heads=3)

    even = case_of(msgspec.structs.replace(facts, vocab_size=3 * 64), cards, parallel=3)
    odd = case_of(msgspec.structs.replace(facts, vocab_size=4 * 64), cards, parallel=3)

    assert not failures(check(even))
    assert found(odd, CheckName.TENSOR_PARALLEL).limit == 256


def test_nothing_is_refused_for_what_nobody_knows() -> None:
    """Ours: unknown is not no."""
    checks = check(case_of(ModelFacts(), ()))

    assert failures(checks) == ()
    assert {one.verdict for one in checks} <= {Verdict.UNKNOWN, Verdict.OK}


def test_a_cache_that_may_be_smaller_than_reckoned_is_only_warned_of() -> None:
    """Ours: hybrid models keep less than their layers say."""
    kv = msgspec.structs.replace(KV, is_exact=False)
    case = case_of(changed(kv=kv, cache_bytes=128 << 20, context=4096))

    assert found(case, CheckName.CONTEXT).verdict == Verdict.WARNING


def test_more_devices_are_suggested_where_a_short_context_does_not_help() -> None:
    """Ours: weights alone are too large for one."""
    case = case_of(changed(weights_bytes=30_000 * MIB), devices(24_000, 24_000, 24_000))

    better = suggest(case)

    assert better is not None
    assert (better.tensor_parallel, better.max_model_len) == (2, None)
    assert better.message == "tensor_parallel 2 would fit"


def test_suggestion_for_a_catalogue_size_says_the_size_too() -> None:
    """Ours: a shorter context alone would not change what the ledger is told."""
    case = case_of(changed(context=65_536), vram_bytes=26_000 * MIB)

    better = suggest(case)

    assert need(case).source == "given"
    assert better is not None
    assert better.vram_mb is not None
    assert better.max_model_len is not None


def test_layers_with_a_window_stop_growing() -> None:
    """Ours: what they keep is bounded."""
    shape = KvShape(heads=2, head_bytes=10, full_layers=1, window_layers=5, window=100)

    assert shape.device_bytes(100) == 2 * 10 * 600
    assert shape.device_bytes(1100) == 2 * 10 * (1100 + 500)
    assert shape.device_bytes(100, 2) == 10 * 600
    assert shape.device_bytes(100, 4) == 10 * 600


shapes = st.builds(
    KvShape,
    heads=st.sampled_from([1, 2, 4, 8]),
    head_bytes=st.sampled_from([64, 512]),
    full_layers=st.integers(0, 80),
    window_layers=st.integers(0, 40),
    window=st.sampled_from([128, 4096]),
    is_exact=st.booleans(),
)

facts_in_general = st.builds(
    ModelFacts,
    weights_bytes=st.none() | st.integers(0, 200_000 * MIB),
    attention_heads=st.none() | st.sampled_from([8, 12, 24, 32]),
    kv_heads=st.none() | st.sampled_from([1, 2, 3, 8]),
    vocab_size=st.none() | st.sampled_from([1000, 151_936]),
    kv=st.none() | shapes,
    cache_bytes=st.none() | st.integers(1, 8_000 * MIB),
    context=st.none() | st.integers(1, 300_000),
    longest=st.none() | st.integers(1, 200_000),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    cards = devices(*draw(st.lists(st.sampled_from([8_000, 24_000, 80_000]), max_size=4)))
    given_bytes = draw(st.none() | st.integers(0, 100_000 * MIB))
    parallel = draw(st.none() | st.integers(1, 4))
    return case_of(
        draw(facts_in_general), cards, draw(st.integers(0, 24_000)), given_bytes, parallel
    )


@given(cases())
def test_what_is_suggested_passes_and_asks_for_no_more(case: Case) -> None:
    """Ours: as the neuron would check it, were it asked for."""
    better = suggest(case)

    assume(better is not None)
    assert better is not None
    facts = case.facts
    if better.max_model_len is not None:
        assert better.max_model_len <= (facts.context or better.max_model_len)
        assert better.max_model_len <= (facts.longest or better.max_model_len)
        facts = msgspec.structs.replace(facts, context=better.max_model_len)
    parallel = better.tensor_parallel or case.spec.tensor_parallel
    spec = msgspec.structs.replace(case.spec, tensor_parallel=parallel)
    parts, own = estimate(facts, spec), estimate(case.facts, case.spec)
    size = case.spec.vram_bytes
    if better.vram_mb is not None:
        assert size is not None
        assert better.vram_mb * MIB <= size
        size = better.vram_mb * MIB
    elif own is not None and size == own.total_bytes:
        size = None if parts is None else parts.total_bytes
    again = msgspec.structs.replace(
        case, facts=facts, spec=msgspec.structs.replace(spec, vram_bytes=size)
    )
    assert failures(check(again)) == ()


@given(cases(), st.integers(0, 24_000))
def test_more_free_memory_never_fails_a_load_that_passed(case: Case, more_mb: int) -> None:
    """Ours: monotone in memory."""
    budget = case.budget
    for card in case.devices:
        used = max(0, budget.unheld.get(card.index, 0) - more_mb * MIB)
        budget = budget.with_used(card.index, used)
    roomier = msgspec.structs.replace(case, budget=budget)

    before = {one.name for one in failures(check(case))}
    after = {one.name for one in failures(check(roomier))}

    assert after <= before


@given(cases(), st.integers(1, 300_000))
def test_longer_context_never_mends_a_load(case: Case, more: int) -> None:
    """Ours: monotone in the context, also in what it is reckoned to take."""
    assume(case.facts.context is not None)
    facts = msgspec.structs.replace(case.facts, context=(case.facts.context or 0) + more)
    longer = case_of(
        facts, case.devices, parallel=case.spec.tensor_parallel, vram_bytes=_given(case)
    )
    longer = msgspec.structs.replace(longer, budget=case.budget)

    before = {one.name for one in failures(check(case))}
    after = {one.name for one in failures(check(longer))}

    assert before <= after


def _given(case: Case) -> int | None:
    return None if need(case).source == "estimated" else case.spec.vram_bytes


@given(st.sampled_from([1, 2, 4]), st.integers(1, 4), st.sampled_from([None, 64 * MIB]))
def test_nodes_share_what_a_model_takes(nodes: int, parallel: int, cache: int | None) -> None:
    """Ours: as much on each, and all together as much as one node with as many devices holds."""
    facts = msgspec.structs.replace(FACTS, cache_bytes=cache)
    whole = ModelSpec(model=ModelId("m"), harness="vllm", tensor_parallel=nodes * parallel)
    peers = tuple(Peer(endpoint=f"http://p{number}") for number in range(nodes - 1))

    alone, shared = (
        estimate(facts, whole),
        estimate(facts, msgspec.structs.replace(whole, peers=peers)),
    )

    assert alone is not None
    assert shared is not None
    assert 0 <= shared.total_bytes * nodes - alone.total_bytes < 2 * nodes
