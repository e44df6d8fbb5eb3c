"""Whether a device can be used: what decides, and what an Xid calls for."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.device import Device, DeviceCondition, DeviceReading
from cortex_core.errors import ModelLoadFailedError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from neuron.lifecycle.condition import NO_FAULTS, Faults, broken_devices, judged, usable_devices
from neuron.lifecycle.xids import XidAction, action_of

readings = st.builds(
    DeviceReading,
    index=st.just(DeviceIndex(0)),
    condition=st.sampled_from(DeviceCondition),
    vram_used_bytes=st.none() | st.integers(0, 100),
    throttled=st.none() | st.lists(st.sampled_from(["power_cap", "hardware_thermal"])).map(tuple),
    is_repair_pending=st.none() | st.booleans(),
    is_repair_failed=st.none() | st.booleans(),
    recovery_action=st.none() | st.sampled_from(["none", "reset", "reboot", "drain_p2p"]),
)
histories = st.lists(st.integers(1, 180), max_size=12)


def faults_of(xids: list[int]) -> Faults:
    """Return what is known after these reports."""
    faults = NO_FAULTS
    for xid in xids:
        faults = faults.with_xid(xid)
    return faults


@given(readings, histories)
def test_device_that_reported_a_fatal_fault_is_never_usable(
    reading: DeviceReading, xids: list[int]
) -> None:
    """Ours: whatever else is known, and however much came after it."""
    after = judged(reading, faults_of(xids))

    if any(action_of(xid) in (XidAction.RESET, XidAction.GONE) for xid in xids):
        assert not after.condition.is_usable


@given(readings, histories)
def test_condition_is_never_better_than_what_the_driver_says(
    reading: DeviceReading, xids: list[int]
) -> None:
    """Ours: and judging twice changes nothing."""
    after = judged(reading, faults_of(xids))

    assert after.condition.is_usable <= reading.condition.is_usable
    assert judged(after, faults_of(xids)).condition is after.condition


@given(readings)
def test_device_that_says_nothing_is_unknown_and_no_other_is(reading: DeviceReading) -> None:
    """Ours: a missing field is unknown, never good and never bad."""
    silent = DeviceReading(index=reading.index)

    assert judged(silent).condition is DeviceCondition.UNKNOWN
    if reading.vram_used_bytes is not None:
        assert judged(reading).condition is not DeviceCondition.UNKNOWN


HEALTHY = DeviceReading(index=DeviceIndex(0), vram_used_bytes=0, temp_c=40)


@pytest.mark.parametrize(
    ("changes", "condition", "words"),
    [
        ({}, DeviceCondition.OK, None),
        ({"throttled": ("power_cap",)}, DeviceCondition.OK, None),
        ({"throttled": ("hardware_thermal",)}, DeviceCondition.DEGRADED, "hardware_thermal"),
        ({"is_repair_pending": True}, DeviceCondition.DEGRADED, "at the next reset"),
        ({"is_repair_failed": True}, DeviceCondition.DEGRADED, "could not be replaced"),
        ({"recovery_action": "none"}, DeviceCondition.OK, None),
        ({"recovery_action": "drain_p2p"}, DeviceCondition.DEGRADED, "its peers"),
        ({"recovery_action": "reset"}, DeviceCondition.POISONED, "a reset"),
        ({"recovery_action": "reboot"}, DeviceCondition.POISONED, "a reboot"),
    ],
)
def test_signs_of_a_device_decide_its_condition(
    changes: dict[str, object], condition: DeviceCondition, words: str | None
) -> None:
    """Ours: and the reason says which."""
    after = judged(msgspec.structs.replace(HEALTHY, **changes))

    assert after.condition is condition
    assert (after.condition_reason is None) == (words is None)
    assert (words or "") in (after.condition_reason or "")


@pytest.mark.parametrize(
    ("xid", "action", "condition"),
    [
        (13, XidAction.RESTART_APP, DeviceCondition.OK),
        (31, XidAction.RESTART_APP, DeviceCondition.OK),
        (43, XidAction.NOTHING, DeviceCondition.OK),
        (45, XidAction.NOTHING, DeviceCondition.OK),
        (48, XidAction.RESET, DeviceCondition.POISONED),
        (63, XidAction.NOTHING, DeviceCondition.OK),
        (64, XidAction.RESET, DeviceCondition.POISONED),
        (74, XidAction.LOOK, DeviceCondition.DEGRADED),
        (79, XidAction.GONE, DeviceCondition.GONE),
        (94, XidAction.RESTART_APP, DeviceCondition.OK),
        (95, XidAction.RESET, DeviceCondition.POISONED),
        (119, XidAction.RESET, DeviceCondition.POISONED),
        (120, XidAction.RESET, DeviceCondition.POISONED),
        (999, XidAction.NOTHING, DeviceCondition.OK),
    ],
)
def test_xid_calls_for_what_nvidia_s_catalogue_says(
    xid: int, action: XidAction, condition: DeviceCondition
) -> None:
    """NVIDIA's Xid catalogue, "Resolution Bucket (Immediate Action)"."""
    assert action_of(xid) is action
    assert judged(HEALTHY, faults_of([xid])).condition is condition


@given(st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)), st.integers(1, 4))
def test_broken_devices_are_never_given_and_the_others_are(
    broken: set[int], named: set[int], ranks: int
) -> None:
    """Ours: refused exactly when one that is named is broken, or too few are left."""
    devices = [Device(index=DeviceIndex(i), name="d", vram_total_bytes=1) for i in range(4)]
    readings = [DeviceReading(index=DeviceIndex(i), condition=DeviceCondition.GONE) for i in broken]
    spec = ModelSpec(
        model=ModelId("a"),
        harness="h",
        devices=tuple(DeviceIndex(i) for i in sorted(named)),
        tensor_parallel=None if named else ranks,
    )

    try:
        usable = usable_devices(spec, devices, broken_devices(readings))
    except ModelLoadFailedError:
        assert named & broken or 4 - len(broken) < spec.ranks
    else:
        assert not named & broken
        assert {device.index for device in usable} == set(range(4)) - broken


@given(histories)
def test_as_many_reports_are_kept_as_are_worth_it(xids: list[int]) -> None:
    """Ours: the latest, in order; a card that storms fills nothing."""
    kept = faults_of(xids).xids

    assert kept == tuple(xids[-8:])
