"""The pure rooms: the memory budget and the choice of devices."""

import itertools
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from cortex_core.device import Device
from cortex_core.errors import InsufficientVramError, InvalidRequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.wire.neuron import Link
from neuron.lifecycle.budget import Budget, SleepBudget
from neuron.lifecycle.selection import select_devices

MODEL = ModelId("org/model")
SPEC = ModelSpec(model=MODEL, harness="simulated")


def _alike(count: int, total: int) -> tuple[Device, ...]:
    return tuple(
        Device(
            index=DeviceIndex(number), name="d", vram_total_bytes=total, compute_capability="9.0"
        )
        for number in range(count)
    )


def _is_alike(team: Sequence[Device]) -> bool:
    totals = [device.vram_total_bytes for device in team]
    return len(team) == 1 or (
        max(totals) <= 1.1 * min(totals)
        and len({(device.mig, device.compute_capability) for device in team}) == 1
    )


def _clique(one: Device, other: Device, size: int) -> bool:
    return one.index // size == other.index // size


sizes = st.integers(0, 64)
kinds = st.tuples(
    st.sampled_from([0, 20, 22, 23, 48, 64]), st.booleans(), st.sampled_from(["8.9", "9.0"])
)
nodes = st.lists(kinds, max_size=6).map(
    lambda found: tuple(
        Device(
            index=DeviceIndex(number),
            name="d",
            vram_total_bytes=total,
            mig=mig,
            compute_capability=capability,
        )
        for number, (total, mig, capability) in enumerate(found)
    )
)


@given(nodes, st.lists(st.tuples(sizes, st.integers(1, 3), st.booleans()), max_size=12))
def test_budget_never_gives_more_than_a_device_has(
    devices: tuple[Device, ...], wishes: list[tuple[int, int, bool]]
) -> None:
    """Ours: the sum of what is held fits on every device of known size."""
    budget = Budget.from_devices(devices)
    for number, (size, parallel, is_released) in enumerate(wishes):
        model = ModelId(f"m{number}")
        spec = ModelSpec(model=model, harness="h", tensor_parallel=parallel, vram_bytes=size)
        try:
            chosen = select_devices(spec, devices, budget)
        except (InsufficientVramError, InvalidRequestError):
            continue
        budget = budget.with_reserved(model, chosen, size)
        if is_released:
            budget = budget.with_released(model)
    for device in devices:
        if device.vram_total_bytes:
            assert budget.held_bytes(device.index) <= device.vram_total_bytes


@given(nodes, sizes, st.integers(1, 4))
def test_model_that_fits_somewhere_is_placed(
    devices: tuple[Device, ...], size: int, parallel: int
) -> None:
    """Ours: as many alike devices with room as wanted, and a refusal only when there is no way."""
    spec = ModelSpec(model=MODEL, harness="h", tensor_parallel=parallel, vram_bytes=size)
    budget = Budget.from_devices(devices)
    share = -(-size // parallel)
    teams = [team for team in itertools.combinations(devices, parallel) if _is_alike(team)]
    fitting = [
        team
        for team in teams
        if all(not d.vram_total_bytes or d.vram_total_bytes >= share for d in team)
    ]
    try:
        chosen = select_devices(spec, devices, budget)
    except InvalidRequestError:
        assert devices
        assert not teams
    except InsufficientVramError:
        assert teams
        assert not fitting
    else:
        assert not devices or chosen in [tuple(d.index for d in team) for team in fitting]


@given(
    st.lists(st.sampled_from([40, 50, 60]), min_size=4, max_size=8),
    st.integers(2, 4),
    st.integers(2, 4),
    sizes,
)
@example(frees=[50, 50, 50, 50, 40], clique=2, parallel=4, size=0)
def test_devices_with_most_links_between_each_other_go_first(
    frees: list[int], clique: int, parallel: int, size: int
) -> None:
    """Ours: bridges join pairs, switches all; as many links as any other choice would have."""
    devices = _alike(len(frees), 64)
    budget = Budget.from_devices(devices)
    for device, free in zip(devices, frees, strict=True):
        budget = budget.with_used(device.index, 64 - free)
    links = {
        one.index: tuple(
            Link(peer=other.index, kind="nvlink" if _clique(one, other, clique) else "pcie")
            for other in devices
            if other is not one
        )
        for one in devices
    }
    spec = ModelSpec(model=MODEL, harness="h", tensor_parallel=parallel, vram_bytes=size)
    share = -(-size // parallel)

    chosen = select_devices(spec, devices, budget, links)

    def joined(group: Iterable[Device]) -> int:
        return sum(_clique(a, b, clique) for a, b in itertools.combinations(group, 2))

    roomy = [d for d, free in zip(devices, frees, strict=True) if free >= share]
    best = max(joined(group) for group in itertools.combinations(roomy, parallel))
    assert joined(devices[index] for index in chosen) == best


def test_links_do_not_make_room() -> None:
    """Ours: a pair with NVLink that is full is passed over."""
    devices = _alike(4, 100)
    links = {
        DeviceIndex(0): (Link(peer=1, kind="nvlink"),),
        DeviceIndex(1): (Link(peer=0, kind="nvlink"),),
    }
    budget = Budget.from_devices(devices).with_used(DeviceIndex(0), 90)
    spec = msgspec.structs.replace(SPEC, tensor_parallel=2, vram_bytes=60)

    assert select_devices(spec, devices, Budget.from_devices(devices), links) == (0, 1)
    assert select_devices(spec, devices, budget, links) == (1, 2)


@pytest.mark.parametrize(
    "others",
    [
        {"mig": True},
        {"compute_capability": "8.6"},
        {"vram_total_bytes": 112},
    ],
)
def test_devices_that_differ_do_not_share_a_model_by_themselves(others: dict[str, object]) -> None:
    """Ours: 400 with the cure; whoever names them gets them."""
    (first,) = _alike(1, 100)
    second = msgspec.structs.replace(first, index=DeviceIndex(1), **others)
    budget = Budget.from_devices((first, second))
    spec = msgspec.structs.replace(SPEC, tensor_parallel=2, vram_bytes=60)

    with pytest.raises(InvalidRequestError, match="alike"):
        select_devices(spec, (first, second), budget)

    named = msgspec.structs.replace(spec, devices=(DeviceIndex(1), DeviceIndex(0)))
    assert select_devices(named, (first, second), budget) == (1, 0)
    assert select_devices(
        msgspec.structs.replace(spec, tensor_parallel=1), (first, second), budget
    ) in [(0,), (1,)]


@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_model_gets_a_device_for_each_of_its_ranks(
    parallel: int, stages: int, is_named: bool, is_stated: bool
) -> None:
    """Ours: tensor-parallel size times stages, whether sizes or devices say so."""
    devices = _alike(16, 100)
    wanted = parallel * stages
    spec = ModelSpec(
        model=MODEL,
        harness="h",
        devices=tuple(device.index for device in devices[:wanted]) if is_named else (),
        tensor_parallel=parallel if is_stated or not is_named else None,
        pipeline_parallel=stages,
        vram_bytes=90 * wanted,
    )

    chosen = select_devices(spec, devices, Budget.from_devices(devices))

    assert len(chosen) == wanted
    assert spec.tensor_parallel_on(len(chosen)) == parallel


@pytest.mark.parametrize(
    ("sizes", "param"),
    [
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, "tensor_parallel"),
        ({"tensor_parallel": 3}, "tensor_parallel"),
        ({"pipeline_parallel": 2}, "pipeline_parallel"),
    ],
)
def test_named_devices_must_be_as_many_as_the_ranks(sizes: dict[str, int], param: str) -> None:
    """Ours: 400 that names what to change; stages that three devices cannot share, too."""
    named = tuple(DeviceIndex(index) for index in range(3 if param == "pipeline_parallel" else 2))
    spec = msgspec.structs.replace(SPEC, devices=named, **sizes)

    with pytest.raises(InvalidRequestError) as refused:
        select_devices(spec, _alike(4, 100), Budget.from_devices(_alike(4, 100)))

    assert refused.value.param == param


def test_node_without_devices_takes_every_model() -> None:
    """Ours: CPU hosts have no memory check."""
    spec = msgspec.structs.replace(SPEC, vram_bytes=1 << 60, tensor_parallel=2)

    assert select_devices(spec, (), Budget()) == ()


def test_fullest_device_that_has_room_is_chosen() -> None:
    """Ours: the emptiest stays free for larger models."""
    devices = tuple(
        Device(index=DeviceIndex(number), name="d", vram_total_bytes=total)
        for number, total in enumerate((100, 30, 50))
    )
    spec = msgspec.structs.replace(SPEC, vram_bytes=40)

    assert select_devices(spec, devices, Budget.from_devices(devices)) == (2,)


@given(
    st.integers(1, 64),
    st.lists(st.tuples(sizes, st.booleans()), max_size=6),
    sizes,
    sizes,
    sizes,
)
def test_budget_that_is_reconciled_gives_nothing_that_is_in_use(
    total: int, held: list[tuple[int, bool]], leak: int, used: int, later: int
) -> None:
    """Ours: free is what neither the ledger nor the driver counts; a leak is part of what is used."""
    device = DeviceIndex(0)
    budget = Budget(totals={device: total})
    for number, (size, is_measured) in enumerate(held):
        model = ModelId(f"m{number}")
        budget = budget.with_reserved(model, (device,), size)
        budget = budget.with_measured(model, size if is_measured else None)
    is_certain = all(is_measured for _, is_measured in held)

    leaked = budget.with_leak(device, leak)
    after = leaked.with_used(device, used)
    again = after.with_used(device, later)

    assert leaked.free_bytes(device) == max(0, total - budget.held_bytes(device) - leak)
    if is_certain:
        assert after.free_bytes(device) == max(0, total - max(used, budget.held_bytes(device)))
        assert after.leaked[device] <= min(leak, after.unheld[device])
        assert again.leaked[device] <= after.leaked[device]
    else:
        assert after == leaked
    assert again.without_leak(device).free_bytes(device) == again.free_bytes(device)


@given(sizes, sizes)
def test_model_that_sleeps_holds_what_is_left_and_then_what_it_held(size: int, left: int) -> None:
    """Ours: no memory is made or lost by a nap."""
    device = DeviceIndex(0)
    awake = Budget(totals={device: 200}).with_reserved(MODEL, (device,), size)

    asleep = awake.with_asleep(MODEL, left)

    assert asleep.held_bytes(device) == left
    assert asleep.with_awake(MODEL) == awake
    assert asleep.with_released(MODEL).held_bytes(device) == 0


@given(st.integers(0, 20), st.lists(st.tuples(st.integers(0, 3), sizes, st.booleans())))
def test_models_that_sleep_never_hold_more_than_their_budget(
    total: int, wishes: list[tuple[int, int, bool]]
) -> None:
    """Ours: of host memory."""
    budget = SleepBudget(total_bytes=total)
    for number, size, is_released in wishes:
        model = ModelId(f"m{number}")
        budget = budget.with_released(model)
        if not is_released and budget.has_room(size):
            budget = budget.with_held(model, size)

        assert budget.used_bytes <= total


def test_measured_memory_takes_the_place_of_the_estimate() -> None:
    """Ours: reserved, then measured, then released."""
    device = DeviceIndex(0)
    budget = Budget(totals={device: 100}).with_reserved(MODEL, (device,), 60)
    assert budget.free_bytes(device) == 40

    budget = budget.with_measured(MODEL, 70)

    assert budget.free_bytes(device) == 30
    assert budget.with_measured(MODEL, None).free_bytes(device) == 30
    assert budget.with_released(MODEL).free_bytes(device) == 100
