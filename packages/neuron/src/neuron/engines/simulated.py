"""The simulated harness: engines that take time and memory by arithmetic, and never a device.

The same settings and the same requests give the same answers at the same times of the clock, so
that a fleet can be shown, tested and planned without weights or devices.
"""

import asyncio

import msgspec

from cortex_core.errors import ConflictError, InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import Engine, Knowledge, ModelSpec, ProgressCallback, Route
from cortex_core.ids import ModelId, RequestId
from cortex_core.knowledge import ModelFacts
from cortex_core.server.clock import Clock
from cortex_core.units import MIB, bytes_from_mib
from neuron.engines.adapted import AdapterEngine
from neuron.engines.simulation.engine import SimulatedEngine, info_of
from neuron.engines.simulation.tokens import Tokens, options_of
from neuron.settings import Fault, SimulatedSettings

DEFAULT_VRAM_MB = 1000
"""What a model takes when neither the settings nor the load request say."""

# Progress reports of one load; enough for a bar that moves.
_LOAD_STEPS = 10

_NO_FAULT = Fault()


class SimulatedHarness:
    """Brings up simulated engines.

    Args:
        settings: `[harness.simulated]`.
        clock: passes the time that loads and tokens take.
        tasks: owns the loop of every engine.
    """

    name = "simulated"
    engine = None

    def __init__(self, settings: SimulatedSettings, clock: Clock, tasks: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._engines: dict[ModelId, SimulatedEngine] = {}
        self._loads: dict[ModelId, int] = {}
        self._in_host_memory: set[ModelId] = set()

    @property
    def can_sleep(self) -> bool:
        """Whether the settings say so."""
        return self._settings.can_sleep

    async def fetch(self, spec: ModelSpec, on_progress: ProgressCallback) -> None:
        """Return: there is nothing to read."""

    async def check(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` with the memory that the model will take."""
        options = options_of(spec)
        for name in ("max_model_len", "max_num_seqs"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise InvalidRequestError(
                    f"engine.{name} is {value}; use 1 or more", param="engine"
                )
        if options.runner not in (None, "generate", "pooling"):
            raise InvalidRequestError(
                f"engine.runner is {options.runner!r}; use 'generate' or 'pooling'", param="engine"
            )
        return msgspec.structs.replace(spec, vram_bytes=self._size_bytes(spec))

    async def study(self, spec: ModelSpec) -> Knowledge:
        """Return what an engine for `spec` would say of itself."""
        info = info_of(spec, self._settings)
        facts = ModelFacts(
            is_here=True, context=options_of(spec).max_model_len, longest=info.limit.context
        )
        return Knowledge(facts=facts, capabilities=info.capabilities, limit=info.limit)

    async def load(self, spec: ModelSpec, on_progress: ProgressCallback) -> SimulatedEngine:
        """Bring up an engine after the time that a load takes."""
        fault = self._settings.faults.get(spec.model, _NO_FAULT)
        attempt = self._loads[spec.model] = self._loads.get(spec.model, 0) + 1
        size = self._size_bytes(spec)
        if fault.hang_load:
            on_progress("weights", 0, size)
            await asyncio.Event().wait()
        duration_s = self._load_s(spec.model, size) * fault.slow
        for done in range(_LOAD_STEPS):
            on_progress("weights", size * done // _LOAD_STEPS, size)
            await self._clock.sleep(duration_s / _LOAD_STEPS)
        if fault.fail_to_load is True or attempt <= fault.fail_to_load:
            reason = fault.reason or "it does not load, as its fault says"
            raise ModelLoadFailedError(f"{spec.model!r} cannot be loaded: {reason}")
        engine = SimulatedEngine(
            msgspec.structs.replace(spec, vram_bytes=size), self._settings, fault, self._clock
        )
        engine.start(self._tasks)
        self._in_host_memory.add(spec.model)
        self._engines[spec.model] = engine
        return engine

    async def adapt(self, base: Engine, spec: ModelSpec) -> Engine:
        """Return a view of `base`, which answers to every name."""
        if not (isinstance(base, SimulatedEngine) and base.takes_adapters):
            raise ConflictError(f"{spec.base!r} was loaded without enable_lora = true")
        return AdapterEngine(spec.model, base, check=base.check_answer, remove=_nothing)

    async def answer_from_files(
        self, spec: ModelSpec, route: Route, body: bytes, request_id: RequestId
    ) -> bytes:
        """Answer a request about tokens; see `cortex_core.harness.Harness`."""
        return Tokens(spec, self._settings).answer(route, body)

    async def recycle(self) -> None:
        """Forget the weights in host memory."""
        self._in_host_memory.clear()

    def metrics(self) -> bytes:
        """Return the series of all engines that live."""
        alive = [
            (model, engine)
            for model, engine in sorted(dict(self._engines).items())
            if not engine.is_closed
        ]
        if not alive:
            return b""
        running = [(model, engine.load().running) for model, engine in alive]
        waiting = [(model, engine.load().waiting) for model, engine in alive]
        made = [(model, engine.generated_tokens) for model, engine in alive]
        return (
            _family("simulated_requests_running", "gauge", running)
            + _family("simulated_requests_waiting", "gauge", waiting)
            + _family("simulated_generation_tokens_total", "counter", made)
        )

    async def close(self) -> None:
        """Forget the weights."""
        self._in_host_memory.clear()
        self._engines.clear()

    def _size_bytes(self, spec: ModelSpec) -> int:
        """Return what the table says, else what the load asked for, else the default."""
        known_mb = self._settings.vram_mb.get(spec.model)
        if known_mb is not None:
            return bytes_from_mib(known_mb)
        return bytes_from_mib(DEFAULT_VRAM_MB) if spec.vram_bytes is None else spec.vram_bytes

    def _load_s(self, model: ModelId, size_bytes: int) -> float:
        settings = self._settings
        if model in self._in_host_memory and settings.wake_s is not None:
            return settings.wake_s
        if settings.load_mb_per_s is None:
            return settings.load_s
        return settings.load_s + size_bytes / MIB / settings.load_mb_per_s


async def _nothing() -> None:
    pass


def _family(name: str, kind: str, rows: list[tuple[ModelId, int]]) -> bytes:
    lines = [f"# HELP {name} Of the simulated engine.", f"# TYPE {name} {kind}"]
    lines += [f'{name}{{model_name="{_escaped(model)}"}} {value}' for model, value in rows]
    return ("\n".join(lines) + "\n").encode()


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
