"""The pure rooms: the memory budget and the choice of devices."""

import msgspec
from hypothesis import given, strategies as st

from cortex_core.device import Device
from cortex_core.errors import InsufficientVramError, InvalidRequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from neuron.lifecycle.budget import Budget, SleepBudget
from neuron.lifecycle.selection import select_devices

MODEL = ModelId("org/model")
SPEC = ModelSpec(model=MODEL, harness="simulated")

sizes = st.integers(0, 64)
nodes = st.lists(st.integers(0, 64), max_size=6).map(
    lambda totals: tuple(
        Device(index=DeviceIndex(number), name="d", vram_total_bytes=total)
        for number, total in enumerate(totals)
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


@given(nodes, sizes, st.integers(1, 3))
def test_model_that_fits_somewhere_is_placed(
    devices: tuple[Device, ...], size: int, parallel: int
) -> None:
    """Ours: as many different devices as wanted, and a refusal only when there is no way."""
    spec = ModelSpec(model=MODEL, harness="h", tensor_parallel=parallel, vram_bytes=size)
    budget = Budget.from_devices(devices)
    share = -(-size // parallel)
    roomy = [d for d in devices if not d.vram_total_bytes or d.vram_total_bytes >= share]
    try:
        chosen = select_devices(spec, devices, budget)
    except InvalidRequestError:
        assert 0 < len(devices) < parallel
    except InsufficientVramError:
        assert len(roomy) < parallel
    else:
        assert len(set(chosen)) == (parallel if devices else 0)
        assert not devices or len(roomy) >= parallel


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
