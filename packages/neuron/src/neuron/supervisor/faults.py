"""What faults of devices mean for the engines on them."""

import asyncio
import logging
from collections.abc import Iterable, Mapping

from cortex_core.device import DeviceCondition, DeviceReading
from cortex_core.harness import Engine
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.condition import broken_devices, poisoned_devices
from neuron.lifecycle.trust import distrusted
from neuron.lifecycle.xids import XidAction, action_of
from neuron.supervisor.actor import Supervisor
from neuron.supervisor.parts import Parts

logger = logging.getLogger(__name__)


class DeviceFaults:
    """Ends engines whose device cannot be used, and keeps new ones off it.

    Args:
        parts: what it needs.
        supervisor: has the engines; it brings them back, or says that they failed.
    """

    def __init__(self, parts: Parts, supervisor: Supervisor) -> None:
        self._parts = parts
        self._supervisor = supervisor
        self._conditions: dict[DeviceIndex, DeviceCondition] = {}
        self.lost: Mapping[DeviceIndex, str] = {}
        """Devices that are not trusted, as of the latest review, with the reasons."""
        self._endings: dict[ModelId, asyncio.Task[None]] = {}

    def review(self, readings: Iterable[DeviceReading]) -> None:
        """Take note of how the devices are now."""
        self.lost = self._parts.trusting.lost()
        known = distrusted(readings, self.lost)
        for reading in known:
            self._tell(reading)
        broken = broken_devices(known)
        self._parts.memory.broken = broken
        self._parts.memory.poisoned = poisoned_devices(known)
        self._parts.trusting.broken = frozenset(broken)
        for index, reason in broken.items():
            for model, engine in self._engines_on(index):
                self._end(model, engine, reason)
        self._give_up()

    def _give_up(self) -> None:
        """Wait no longer for models that would come back on devices that cannot be used."""
        for state in self._supervisor.states():
            if state.status is ReplicaStatus.RECOVERING:
                reason = self._parts.memory.hopeless(state.asked)
                if reason is not None:
                    self._supervisor.give_up(state.asked.model, reason)

    def reported(self, device: DeviceIndex, xid: int, reading: DeviceReading | None) -> None:
        """Take note of an Xid; call `review` after it.

        One that asks for programs to be started anew does not say which. Where one engine has
        the device for itself, it was that one; any other will be seen to die, as its next
        call to the device fails.

        Args:
            device: which one reported it.
            xid: its number.
            reading: the latest of the device.
        """
        action = action_of(xid)
        self._parts.metrics.devices.xids.labels(str(device), action.value).inc()
        logger.error("device fault", extra={"device": device, "xid": xid, "action": action.value})
        if action is not XidAction.RESTART_APP or reading is None or not reading.processes:
            return
        engines = self._engines_on(device)
        if len(engines) != 1:
            return
        ((model, engine),) = engines
        if {process.pid for process in reading.processes} <= engine.process_ids:
            self._end(model, engine, f"the device reported an error of its program (Xid {xid})")

    def _tell(self, reading: DeviceReading) -> None:
        before = self._conditions.get(reading.index)
        if before is reading.condition:
            return
        self._conditions[reading.index] = reading.condition
        if before is None and reading.condition in (DeviceCondition.OK, DeviceCondition.UNKNOWN):
            return
        logger.warning(
            "device condition changed",
            extra={
                "device": reading.index,
                "condition": reading.condition.value,
                "reason": reading.condition_reason,
            },
        )

    def _engines_on(self, device: DeviceIndex) -> list[tuple[ModelId, Engine]]:
        here = (
            (state.asked.model, self._supervisor.engine(state.asked.model))
            for state in self._supervisor.states()
            # An adapter has the engine of its base.
            if device in state.devices and state.asked.base is None
        )
        return [(model, engine) for model, engine in here if engine is not None]

    def _end(self, model: ModelId, engine: Engine, reason: str) -> None:
        ending = self._endings.get(model)
        if engine.failure is None and (ending is None or ending.done()):
            self._endings[model] = self._parts.spawn(engine.kill(reason), f"end {model}")
