"""A simulated neuron: what a machine does when it is told to load, unload, sleep, wake or serve.

Like a real one it has the last word. It takes no load for which it has no room, joins loads of a
model that loads already, lets requests end before it unloads, and says that an unload is done
when the memory is free.
"""

import enum
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.device import Device, DeviceReading
from cortex_core.errors import ConflictError, EngineError, NotFoundError, RequestError
from cortex_core.ids import BootId, DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import Measured, NodeFacts, NodeReport
from cortex_core.replica import ReplicaStatus
from cortex_core.simulation.engine import Engine, Work
from cortex_core.simulation.machines import LoadFault, SimulatedNode
from cortex_core.simulation.memory import Memory
from cortex_core.simulation.timeline import Action, Timeline
from cortex_core.units import MIB, bytes_from_mib
from cortex_core.wire.neuron import LoadRequest, SleepRequest, UnloadRequest, WakeRequest

Answer = Callable[[RequestError | None], None]
"""Takes what a command came to; `None` is well."""


class News(enum.Enum):
    """What a node has to report."""

    LOAD = enum.auto()
    """How busy it is."""
    BEGUN = enum.auto()
    """It does what it was told."""
    CHANGE = enum.auto()
    """Something is there or gone."""


ADAPTER_S = 1.0
"""What it takes to add an adapter: some megabytes are read, and one answer is given."""

Changed = Callable[[NodeName, News], None]


class Counts(msgspec.Struct, kw_only=True):
    """What neurons did."""

    loads: int = 0
    failed_loads: int = 0
    unloads: int = 0
    sleeps: int = 0
    wakes: int = 0
    refused_for_room: int = 0
    """Loads and wakes for which there was no room, so that they were refused."""
    joined: int = 0
    """Loads and wakes that found the model on its way or there."""
    cut: int = 0
    """Requests that went on for longer than the drain."""
    load_device_s: float = 0.0
    """Device-seconds that loads and wakes took."""
    drain_device_s: float = 0.0
    """Device-seconds from an order to give way until the memory was free."""


class Neuron:
    """One machine.

    Args:
        node: what it is.
        catalogue: what models are.
        faults: what goes wrong with its loads, by model.
        timeline: virtual time.
        changed: told of everything that there is to report.
        counts: where it counts, with all others.
    """

    def __init__(
        self,
        node: SimulatedNode,
        catalogue: Catalogue,
        *,
        faults: Mapping[ModelId, LoadFault],
        timeline: Timeline,
        changed: Changed,
        counts: Counts,
    ) -> None:
        self.name = node.name
        self.is_up = True
        self._node = node
        self._catalogue = catalogue
        self._faults = faults
        self._timeline = timeline
        self._changed = changed
        self._counts = counts
        self._engines: dict[ModelId, Engine] = {}
        self.memory = Memory(node, self._engines)
        self._free_at = [0.0] * len(node.devices)
        """When each device has done the loads that it was given; they come one after the other."""
        self._tried: dict[ModelId, int] = {}
        self._measured: dict[ModelId, Measured] = {}
        self._cycles = 0
        self._lives = 0

    def facts(self) -> NodeFacts:
        """Return what discovery finds."""
        harnesses = dict.fromkeys(one.harness for one in self._catalogue.profiles.values())
        return NodeFacts(
            hostname=self.name,
            devices=tuple(
                Device(index=DeviceIndex(index), name="SIM", vram_total_bytes=size)
                for index, size in enumerate(self.memory.sizes)
            ),
            harnesses=tuple(harnesses),
            boot_id=BootId(f"{self.name}/{self._lives}"),
        )

    def report(self) -> NodeReport:
        """Return its state, as its event stream would tell it."""
        can_sleep = self._node.sleep_mb > 0
        held = self.memory.held()
        return NodeReport(
            replicas=tuple(engine.replica() for engine in self._engines.values()),
            devices=tuple(
                DeviceReading(
                    index=DeviceIndex(i), vram_used_bytes=held[i], vram_free_bytes=size - held[i]
                )
                for i, size in enumerate(self.memory.sizes)
            ),
            boot_id=BootId(f"{self.name}/{self._lives}"),
            sleep_budget_bytes=bytes_from_mib(self._node.sleep_mb) if can_sleep else None,
            sleep_used_bytes=self.memory.asleep_bytes() if can_sleep else None,
            cycles=self._cycles,
            measured={**self._measured},
        )

    def serve(self, model: ModelId, work: Work) -> bool:
        """Take a request; false when it is not admitted, because the model is not loaded."""
        engine = self._engines.get(model)
        if engine is None or engine.status is not ReplicaStatus.LOADED:
            return False
        engine.serve(work)
        return True

    def load(self, request: LoadRequest, answer: Answer) -> None:
        """Load a model, and answer when it serves."""
        model = ModelId(request.model_id)
        known = self._engines.get(model)
        if known is not None:
            self._join(known, answer)
            return
        base = None if request.base is None else self._engines.get(ModelId(request.base))
        if request.base is not None and not _is_loaded(base):
            answer(ConflictError("its base is not loaded"))
            return
        devices = tuple(DeviceIndex(index) for index in request.devices or ())
        engine = Engine(
            ReplicaId(node=self.name, model=model),
            self._catalogue.profiles[model],
            devices if base is None else base.devices,
            base=base,
            speeds=self._node,
            timeline=self._timeline,
            changed=partial(self._changed, self.name, News.LOAD),
        )
        if base is None and not self._has_room(engine, answer):
            return
        self._engines[model] = engine
        self._counts.loads += 1
        tried = self._tried[model] = self._tried.get(model, 0) + 1
        fault = self._faults.get(model)
        load_s = self._node.load_s + self.memory.read_s(engine) if base is None else ADAPTER_S
        if fault is not None:
            load_s *= fault.slow
        engine.will_fail = fault is not None and tried <= fault.failures
        self._bring_up(engine, ReplicaStatus.LOADING, load_s, answer)

    def wake(self, request: WakeRequest, answer: Answer) -> None:
        """Wake a model, and answer when it serves."""
        engine = self._engines.get(ModelId(request.model_id))
        if engine is None:
            answer(NotFoundError("it is not there"))
        elif engine.status is not ReplicaStatus.SLEEPING:
            self._join(engine, answer)
        elif self._has_room(engine, answer):
            self._counts.wakes += 1
            copied_s = engine.size_bytes / MIB / self._node.wake_mb_per_s
            read_s = copied_s if engine.sleep_level == 1 else self.memory.read_s(engine)
            wake_s = self._node.wake_s + read_s
            self._bring_up(engine, ReplicaStatus.RELOADING, wake_s, answer)

    def unload(self, request: UnloadRequest, answer: Answer) -> None:
        """Let a model's requests end, unload it, and answer when its memory is free."""
        engine = self._engines.get(ModelId(request.model_id))
        if engine is None:
            answer(NotFoundError("it is not there"))
        elif engine.status is ReplicaStatus.SLEEPING:
            self._remove(engine, answer)
        elif engine.status is ReplicaStatus.LOADED:
            self._take_off(engine, request.drain_timeout_s, answer)
        else:
            answer(ConflictError(f"it is {engine.status}"))

    def sleep(self, request: SleepRequest, answer: Answer) -> None:
        """Let a model's requests end, put it to sleep, and answer when its memory is free."""
        engine = self._engines.get(ModelId(request.model_id))
        if engine is None:
            answer(NotFoundError("it is not there"))
        elif engine.status is not ReplicaStatus.LOADED:
            answer(ConflictError(f"it is {engine.status}"))
        elif self._adapters_of(engine):
            answer(ConflictError("it has adapters"))
        elif request.level == 1 and not self.memory.has_bed(engine):
            answer(ConflictError("the host has no memory for it to sleep in"))
        else:
            self._counts.sleeps += 1
            engine.sleep_level = request.level
            lay_down = partial(self._lay_down, engine, answer)
            self._drain(engine, request.drain_timeout_s, self._node.sleep_s, lay_down)

    def crash(self) -> None:
        """Lose everything; nothing is answered until `restart`."""
        self.is_up = False
        now = self._timeline.now
        engines = [*self._engines.values()]
        self._engines.clear()
        self.memory.lose()
        self._free_at = [now] * len(self._free_at)
        for engine in engines:
            self.memory.drop(engine, now)
            engine.cut()

    def restart(self) -> None:
        """Come back with nothing loaded."""
        self.is_up = True
        self._lives += 1

    def close(self) -> None:
        """Note for how long it has been as it is."""
        for engine in self._engines.values():
            self.memory.shift(engine, engine.status, self._timeline.now)

    def _has_room(self, engine: Engine, answer: Answer) -> bool:
        lacking = self.memory.lacking(engine)
        if lacking is not None:
            self._counts.refused_for_room += 1
            answer(lacking)
        return lacking is None

    def _join(self, engine: Engine, answer: Answer) -> None:
        if engine.status is ReplicaStatus.LOADED:
            self._counts.joined += 1
            answer(None)
        elif engine.status in (ReplicaStatus.LOADING, ReplicaStatus.RELOADING):
            self._counts.joined += 1
            engine.when_ready.append(answer)
        else:
            answer(ConflictError(f"it is {engine.status}"))

    def _bring_up(
        self, engine: Engine, status: ReplicaStatus, needs_s: float, answer: Answer
    ) -> None:
        now = self._timeline.now
        begin = max([now, *(self._free_at[index] for index in engine.devices)])
        engine.ready_at = begin + needs_s
        for index in engine.devices:
            self._free_at[index] = engine.ready_at
        engine.when_ready.append(answer)
        self.memory.shift(engine, status, now)
        self._counts.load_device_s += (engine.ready_at - now) * len(engine.devices)
        self._timeline.at(engine.ready_at, partial(self._up, engine, now))
        self._changed(self.name, News.BEGUN)

    def _up(self, engine: Engine, since: float) -> None:
        if not self._is_here(engine):
            return
        now, model = self._timeline.now, engine.id.model
        error: RequestError | None = None
        if engine.will_fail:
            engine.will_fail = False
            self._counts.failed_loads += 1
            error = EngineError("the engine did not come up")
            del self._engines[model]
            self.memory.drop(engine, now)
        else:
            if engine.status is ReplicaStatus.LOADING:
                engine.load_s = now - since
            else:
                engine.wake_s = now - since
            engine.sleep_level = 0
            self.memory.shift(engine, ReplicaStatus.LOADED, now)
            self._measured[model] = Measured(
                vram_bytes=engine.size_bytes, load_s=engine.load_s, wake_s=engine.wake_s
            )
        waiting, engine.when_ready = engine.when_ready, []
        self._changed(self.name, News.CHANGE)
        for answer in waiting:
            answer(error)

    def _take_off(self, engine: Engine, drain_s: float | None, answer: Answer) -> None:
        """Unload a model that is loaded, after its adapters, whose requests end in the same drain."""
        self._counts.unloads += 1
        adapters = self._adapters_of(engine)
        left = len(adapters) + 1

        def emptied(_: RequestError | None = None) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._remove(engine, answer)

        for adapter in adapters:
            if adapter.status is ReplicaStatus.LOADED:
                self._counts.unloads += 1
                self._drain(adapter, drain_s, 0.0, partial(self._remove, adapter, emptied))
            elif adapter.status is ReplicaStatus.LOADING:
                self._remove(adapter, emptied)
            else:
                adapter.when_gone.append(emptied)
        unload_s = 0.0 if engine.profile.base is not None else self._node.unload_s
        self._drain(engine, drain_s, unload_s, emptied)

    def _adapters_of(self, engine: Engine) -> list[Engine]:
        return [one for one in self._engines.values() if one.profile.base == engine.id.model]

    def _drain(self, engine: Engine, drain_s: float | None, needs_s: float, then: Action) -> None:
        now = self._timeline.now
        self.memory.shift(engine, ReplicaStatus.UNLOADING, now)

        def emptied() -> None:
            engine.when_empty = None
            done_at = self._timeline.now + needs_s
            self._counts.drain_device_s += (done_at - now) * len(engine.devices)
            self._timeline.at(done_at, then)

        engine.when_empty = emptied
        if engine.is_empty:
            emptied()
        elif drain_s is not None:
            self._timeline.at(now + drain_s, partial(self._cut, engine, emptied))
        self._changed(self.name, News.BEGUN)

    def _cut(self, engine: Engine, emptied: Action) -> None:
        """End what still runs at the end of a drain."""
        if engine.when_empty is emptied and self._is_here(engine):
            self._counts.cut += len(engine.running) + len(engine.waiting)
            engine.cut()
            emptied()

    def _remove(self, engine: Engine, answer: Answer) -> None:
        if self._is_here(engine):
            self._cycles += 1
            del self._engines[engine.id.model]
            self.memory.drop(engine, self._timeline.now)
            self._changed(self.name, News.CHANGE)
            for told in (answer, *engine.when_gone):
                told(None)
            for told in engine.when_ready:
                told(ConflictError("it was unloaded"))

    def _lay_down(self, engine: Engine, answer: Answer) -> None:
        if self._is_here(engine):
            self.memory.shift(engine, ReplicaStatus.SLEEPING, self._timeline.now)
            self._changed(self.name, News.CHANGE)
            answer(None)

    def _is_here(self, engine: Engine) -> bool:
        """Whether it was not lost meanwhile."""
        return self._engines.get(engine.id.model) is engine


def _is_loaded(engine: Engine | None) -> bool:
    return engine is not None and engine.status is ReplicaStatus.LOADED
