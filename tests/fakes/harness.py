"""A harness that does as a test says, with every fault that a real one may have."""

import asyncio

import msgspec

from cortex_core.errors import EngineError, NotFoundError
from cortex_core.harness import (
    Capabilities,
    Engine,
    EngineAnswer,
    EngineLoad,
    Knowledge,
    Limit,
    ModelInfo,
    ModelSpec,
    ProgressCallback,
    Route,
)
from cortex_core.ids import RequestId
from neuron.engines.adapted import AdapterEngine
from tests.fakes.gauge import FakeGauge


class FakeEngine:
    """Answers nothing until it is told to, dies when it is told to."""

    def __init__(
        self, spec: ModelSpec, vram_bytes: int | None, max_in_flight: int | None = None
    ) -> None:
        self.spec = spec
        self.busy = EngineLoad()
        """What it says of itself."""
        self._asked: list[asyncio.Future[None]] = []
        self.info = ModelInfo(
            capabilities=Capabilities(chat=True, sleep=True),
            limit=Limit(),
            vram_bytes=vram_bytes,
            sleep_bytes=spec.vram_bytes,
            max_in_flight=max_in_flight,
        )
        self.failure: str | None = None
        self.process_ids: frozenset[int] = frozenset()
        self.may_close = _set_event()
        self.close_error: Exception | None = None
        self.may_read = _set_event()
        self.may_sleep = _set_event()
        self.may_wake = _set_event()
        self.check_error: Exception | None = None
        self.sleep_error: Exception | None = None
        self.wake_error: Exception | None = None
        self.checks = 0
        self.urgencies: list[int] = []
        """Of the requests, in the order in which they came."""
        self.compiles = False
        self.may_check = _set_event()
        self.awake_bytes = 0
        self.asleep_bytes = 0
        """What the gauge shows of it while it sleeps."""
        self.sleep_level: int | None = None
        self.is_closed = False
        self.gauge: FakeGauge | None = None
        self.held_bytes = 0
        """What the gauge shows of it; `leak_bytes` are not given back."""
        self.leak_bytes = 0
        self._died = asyncio.Event()

    def die(self, reason: str) -> None:
        """End by itself, without a word to its requests."""
        self.failure = reason
        self._died.set()

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Hang until `answer`."""
        self.urgencies.append(urgency)
        if self.failure is not None:
            raise EngineError(self.failure)
        asked = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        try:
            await asked
        finally:
            self._asked.remove(asked)
        return EngineAnswer(body=b"{}")

    def answer(self) -> None:
        """Answer the request that has waited for longest, if there is one."""
        for asked in self._asked:
            if not asked.done():
                asked.set_result(None)
                return

    async def check_request(self, route: Route, body: bytes) -> None:
        """Find nothing wrong, when it may."""
        await self.may_read.wait()

    def load(self) -> EngineLoad:
        """Return what the test says."""
        return self.busy

    async def failed(self) -> str:
        """Wait for `die`."""
        await self._died.wait()
        return self.failure or ""

    async def is_compiling(self) -> bool:
        """Say what it was told to."""
        return self.compiles

    async def kill(self, reason: str) -> None:
        """Die."""
        self.die(reason)

    async def check_answer(self) -> None:
        """Answer rightly, unless it was told otherwise."""
        self.checks += 1
        await self.may_check.wait()
        if self.check_error is not None:
            raise self.check_error

    async def sleep(self, level: int) -> None:
        """Fall asleep, when it may."""
        await self.may_sleep.wait()
        if self.sleep_error is not None:
            raise self.sleep_error
        self.sleep_level = level
        self.awake_bytes = self.held_bytes
        self._hold(self.asleep_bytes)

    async def wake(self) -> None:
        """Wake, when it may."""
        await self.may_wake.wait()
        if self.wake_error is not None:
            raise self.wake_error
        self.sleep_level = None
        self._hold(self.awake_bytes)

    def _hold(self, size_bytes: int) -> None:
        if self.gauge is not None:
            self.gauge.move(self.spec.devices, size_bytes - self.held_bytes)
            self.held_bytes = size_bytes

    async def close(self, timeout_s: float) -> None:
        """Close, when it may."""
        if self.close_error is not None:
            raise self.close_error
        await self.may_close.wait()
        if not self.is_closed and self.gauge is not None:
            self.gauge.move(self.spec.devices, self.leak_bytes - self.held_bytes)
        self.is_closed = True


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


class FakeHarness:
    """Loads when it may."""

    name = "fake"
    engine = None
    can_sleep = True

    def __init__(self) -> None:
        self.may_fetch = _set_event()
        self.may_load = _set_event()
        self.knowledge = Knowledge()
        self.load_error: Exception | None = None
        self.may_check = _set_event()
        self.check_error: Exception | None = None
        """With which every engine's first answer ends."""
        self.obeys_cancel = True
        """Whether a cancelled load ends without an engine."""
        self.measured_bytes: int | None = None
        self.max_in_flight: int | None = None
        """What its engines say they run together."""
        self.context: int | None = None
        self.recycles = 0
        self.gauge: FakeGauge | None = None
        """Shows what its engines hold, `size_bytes` each, of which `leak_bytes` stay."""
        self.size_bytes = 0
        self.leak_bytes = 0
        self.specs: list[ModelSpec] = []
        """As they were loaded, in order."""
        self.engines: list[FakeEngine] = []
        self.adapted: list[ModelSpec] = []
        """Adapters that are on engines now."""

    async def fetch(self, spec: ModelSpec, on_progress: ProgressCallback) -> None:
        """Fetch, when it may."""
        if not self.may_fetch.is_set():
            on_progress("downloading", 1, 2)
            await self.may_fetch.wait()

    async def check(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec`."""
        return spec

    async def study(self, spec: ModelSpec) -> Knowledge:
        """Return what the test says."""
        return self.knowledge

    async def load(self, spec: ModelSpec, on_progress: ProgressCallback) -> FakeEngine:
        """Load, when it may."""
        self.specs.append(spec)
        on_progress("weights", None, None)
        try:
            await self.may_load.wait()
        except asyncio.CancelledError:
            if self.obeys_cancel:
                raise
        if self.load_error is not None:
            raise self.load_error
        engine = FakeEngine(spec, self.measured_bytes, self.max_in_flight)
        engine.check_error = self.check_error
        engine.may_check = self.may_check
        engine.info = msgspec.structs.replace(engine.info, limit=Limit(context=self.context))
        if self.gauge is not None:
            engine.gauge, engine.held_bytes = self.gauge, self.size_bytes
            engine.leak_bytes = self.leak_bytes
            self.gauge.move(spec.devices, self.size_bytes)
        self.engines.append(engine)
        return engine

    async def adapt(self, base: Engine, spec: ModelSpec) -> Engine:
        """Add an adapter, when it may."""
        await self.may_load.wait()
        if self.load_error is not None:
            raise self.load_error
        self.adapted.append(spec)

        async def remove() -> None:
            self.adapted.remove(spec)

        return AdapterEngine(spec.model, base, check=base.check_answer, remove=remove)

    async def answer_from_files(
        self, spec: ModelSpec, route: Route, body: bytes, request_id: RequestId
    ) -> bytes:
        """Know no files."""
        raise NotFoundError("there are no files")

    async def recycle(self) -> None:
        """Count it."""
        assert all(engine.is_closed for engine in self.engines)
        self.recycles += 1

    def metrics(self) -> bytes:
        """Return nothing."""
        return b""

    async def close(self) -> None:
        """Do nothing."""
