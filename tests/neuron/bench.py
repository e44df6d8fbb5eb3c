"""A supervisor over a harness with every fault, on a clock that stands still."""

import asyncio
from collections.abc import Awaitable

from prometheus_client import CollectorRegistry

from cortex_core.device import Device, DeviceReading
from cortex_core.errors import RequestError
from cortex_core.harness import ModelSpec, Route
from cortex_core.ids import DeviceIndex, ModelId, RequestId
from cortex_core.replica import ReplicaStatus
from neuron.devices.workers import DeviceWorkers
from neuron.metrics import NeuronMetrics
from neuron.ports import DeviceFacts
from neuron.settings import AdmissionSettings, NeuronSettings, VllmSettings
from neuron.supervisor.actor import Supervisor
from neuron.supervisor.lease import NotAdmittedError, Wish
from neuron.supervisor.memory import Memory
from neuron.supervisor.notebook import Notebook
from neuron.supervisor.parts import Parts
from neuron.weights.downloads import Downloads
from tests.fakes.clock import FakeClock
from tests.fakes.gauge import FakeGauge
from tests.fakes.harness import FakeHarness

HOST_BYTES = 100
"""Host memory for models that sleep."""


class Bench:
    """A supervisor and all that it stands on."""

    activation: asyncio.Task[None]
    """What loads default models, where a test has begun it."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        gauge: FakeGauge | None = None,
        total_bytes: int = 100,
        admission: AdmissionSettings | None = None,
        capabilities: tuple[str, str] = ("", ""),
    ) -> None:
        self.tasks = tasks
        self.clock = FakeClock()
        self.harness = FakeHarness()
        self.harness.gauge = self.gauge = gauge
        facts = _facts(total_bytes, capabilities, is_declared=gauge is None)
        self.memory = Memory(facts, gauge, self.clock, 60.0, HOST_BYTES)
        metrics = NeuronMetrics(CollectorRegistry())
        self.notebook = Notebook(None, metrics)
        self.workers = DeviceWorkers((device.index for device in facts.devices), tasks)
        self.changes: list[tuple[ModelId, str | None]] = []
        self.parts = Parts(
            settings=_settings(admission),
            harnesses={"fake": self.harness},
            facts=facts,
            memory=self.memory,
            downloads=Downloads.from_settings(VllmSettings(), {}, self.clock, tasks),
            notebook=self.notebook,
            lanes=self.workers,
            clock=self.clock,
            metrics=metrics,
            tasks=tasks,
        )
        self.supervisor = Supervisor(
            self.parts,
            lambda model, state, reason: self.changes.append(
                (model, state.status.value if state is not None else None)
            ),
        )

    def gauge_of(self, device: DeviceIndex, used_bytes: int) -> None:
        """Have the driver show so much in use on `device`."""
        assert self.gauge is not None
        self.gauge.used[device] = used_bytes

    def read(self) -> None:
        """Take the gauge's reading, as if it came now."""
        used = self.gauge.used if self.gauge is not None else {}
        readings = [
            DeviceReading(index=index, vram_used_bytes=size) for index, size in used.items()
        ]
        self.memory.reconcile(readings, self.clock.now())

    async def close(self) -> None:
        """End everything."""
        closing = self.tasks.create_task(self.supervisor.close())
        await self.clock.advance(60)
        await closing
        self.workers.close()

    async def load(self, model: ModelId, size: int = 10, parallel: int | None = None) -> None:
        """Load a model and wait for it."""
        spec = ModelSpec(model=model, harness="fake", vram_bytes=size, tensor_parallel=parallel)
        life = await self.supervisor.load(spec)
        await asyncio.shield(life.loaded)

    async def wake(self, model: ModelId) -> None:
        """Wake a model and wait for it."""
        life = await self.supervisor.wake(model)
        await asyncio.shield(life.loaded)

    async def ask(self, model: ModelId, caller: str = "", body: bytes = b"") -> RequestError | None:
        """Send a request and return the error with which it ends."""
        try:
            async with self.supervisor.lease(model, Wish(caller=caller, body=body)) as lease:
                await lease.engine.serve(Route.CHAT_COMPLETIONS, b"", RequestId("r"))
        except NotAdmittedError as error:
            return error.refused
        except RequestError as error:
            return error
        return None

    def status(self, model: ModelId) -> ReplicaStatus:
        """Return the status of a model."""
        return self.supervisor.state(model).status

    def held(self) -> list[int]:
        """Return what is held on each device."""
        return [self.memory.budget.held_bytes(DeviceIndex(number)) for number in range(2)]


def _settings(admission: AdmissionSettings | None) -> NeuronSettings:
    return NeuronSettings(
        close_timeout_s=0.01,
        sleep_timeout_s=0.01,
        leak_recycle_mb=2,
        admission=admission or AdmissionSettings(),
    )


def _facts(total_bytes: int, capabilities: tuple[str, str], *, is_declared: bool) -> DeviceFacts:
    return DeviceFacts(
        devices=tuple(
            Device(
                index=DeviceIndex(number),
                name="d",
                vram_total_bytes=total_bytes,
                compute_capability=capability,
            )
            for number, capability in enumerate(capabilities)
        ),
        is_declared=is_declared,
    )


async def outcome_of(work: Awaitable[None]) -> RequestError | None:
    """Return the error with which `work` ends, or `None`."""
    try:
        await work
    except RequestError as error:
        return error
    return None
