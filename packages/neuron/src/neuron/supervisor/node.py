"""The whole node: the supervisor, its reports, and the events that tell of every change."""

import asyncio
import logging

import msgspec

from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.units import mib_from_bytes
from cortex_core.wire.neuron import (
    HEALTH_EVENT,
    MODEL_EVENT,
    DeviceHealth,
    Discovery,
    Health,
    ModelLoad,
    ModelReport,
    Snapshot,
)
from cortex_core.wire.weights import WEIGHTS_EVENT
from neuron.lifecycle.replica import ReplicaState
from neuron.lifecycle.restoring import residents, to_restore
from neuron.lifecycle.trust import distrusted, may_start_afresh
from neuron.ports import DeviceWatch, NodeIdentity
from neuron.supervisor import reports
from neuron.supervisor.activation import Activator
from neuron.supervisor.actor import Supervisor
from neuron.supervisor.device_reports import device_health, with_work
from neuron.supervisor.faults import DeviceFaults
from neuron.supervisor.feed import EventFeed
from neuron.supervisor.fitting import Fitting
from neuron.supervisor.followers import Followers
from neuron.supervisor.life import Refusal
from neuron.supervisor.parts import Parts
from neuron.supervisor.weights import Weights

logger = logging.getLogger(__name__)

# Five health events per second at the most, however many requests come and go.
_HEALTH_PAUSE_S = 0.2


class Node:
    """One node of the fleet.

    Args:
        parts: what loads and unloads need.
        identity: process and machine.
        watch: knows how the devices do.
    """

    def __init__(
        self,
        parts: Parts,
        identity: NodeIdentity,
        watch: DeviceWatch,
    ) -> None:
        self._parts = parts
        self._identity = identity
        self._watch = watch
        self._started = parts.clock.now()
        self._told: dict[ModelId, ModelReport] = {}
        self._seen: dict[ModelId, ReplicaState] = {}
        self._dirty = asyncio.Event()
        self.fresh_start = asyncio.Event()
        """Set when only a new process may heal what is wrong."""
        self.supervisor = Supervisor(parts, self._model_changed)
        self.fitting = Fitting(parts)
        self.followers = Followers(parts, self.supervisor)
        self._faults = DeviceFaults(parts, self.supervisor)
        named = parts.settings.default_models
        restored = to_restore(parts.notebook.notes.loaded, [model.model_id for model in named])
        self.activator = Activator(
            named,
            self.supervisor,
            self.health_changed,
            parts.clock,
            restored if parts.settings.restore else (),
        )
        self.weights = Weights(
            parts,
            self.supervisor.states,
            lambda news: self.feed.publish(WEIGHTS_EVENT, news),
        )
        self.feed = EventFeed(
            identity.boot_id, parts.clock, parts.settings.heartbeat_s, self.snapshot
        )

    @property
    def identity(self) -> NodeIdentity:
        """Process and machine."""
        return self._identity

    @property
    def in_flight(self) -> int:
        """Requests in all engines."""
        return sum(state.in_flight for state in self.supervisor.states())

    def discovery(self) -> Discovery:
        """Return what never changes."""
        return reports.discovery(self._identity, self._parts.facts, self._parts.harnesses)

    def health(self) -> Health:
        """Return how busy everything is; waits for nothing."""
        supervisor = self.supervisor
        sleep = self._parts.memory.sleep_budget
        notes = self._parts.notebook.notes
        can_sleep = any(harness.can_sleep for harness in self._parts.harnesses.values())
        return Health(
            uptime_secs=round(self._parts.clock.now() - self._started, 3),
            devices=self.devices(),
            activation=self.activator.state,
            boot_id=self._identity.boot_id,
            models=tuple(self._load_of(state) for state in supervisor.states()),
            draining=supervisor.is_draining,
            cycles=supervisor.recycling.cycles,
            cordoned=notes.is_cordoned,
            recycling=supervisor.recycling.is_running,
            measured=reports.measured(notes),
            sleep_budget_mb=mib_from_bytes(sleep.total_bytes) if can_sleep else None,
            sleep_used_mb=mib_from_bytes(sleep.used_bytes) if can_sleep else None,
        )

    def _load_of(self, state: ReplicaState) -> ModelLoad:
        model = state.asked.model
        engine = self.supervisor.engine(model)
        return reports.model_load(
            state,
            None if engine is None else engine.load(),
            waiting=self.supervisor.waiting(model),
            last_step_age_s=self.supervisor.watching.last_step_age_s(model),
        )

    def devices(self) -> tuple[DeviceHealth, ...]:
        """Return how the devices do; waits for nothing."""
        supervisor = self.supervisor
        engines = (
            (state.asked.model, supervisor.engine(state.asked.model))
            for state in supervisor.states()
        )
        owners = {
            pid: model
            for model, engine in engines
            if engine is not None
            for pid in engine.process_ids
        }
        facts, budget = self._parts.facts, self._parts.memory.budget
        return tuple(
            with_work(
                device_health(facts, reading, budget, owners),
                self._watch.xids(reading.index),
                self._parts.lanes.held(reading.index),
            )
            for reading in distrusted(self._watch.latest(), self._faults.lost)
        )

    def models(self) -> tuple[ModelReport, ...]:
        """Return all models in the order in which they came."""
        return tuple(self._report(state) for state in self.supervisor.states())

    def snapshot(self) -> Snapshot:
        """Return everything."""
        return Snapshot(discovery=self.discovery(), health=self.health(), models=self.models())

    def health_changed(self) -> None:
        """Have a health event sent soon."""
        self._dirty.set()

    def devices_read(self) -> None:
        """Take note of new readings of the devices."""
        self._faults.review(self._watch.latest())
        self._start_afresh()
        self.health_changed()

    def _start_afresh(self) -> None:
        """Want a new process, where engines fail on a device that is said to be well.

        Where nothing is kept nobody could count how often, so it is never wanted there.
        """
        notebook, settings = self._parts.notebook, self._parts.settings
        lost = self._faults.lost
        if not lost or not notebook.is_kept or self.fresh_start.is_set():
            return
        now = self._parts.clock.wall()
        if may_start_afresh(notebook.notes.fresh_starts, now, settings.fresh_starts_per_hour):
            logger.error("starting afresh", extra={"reason": "; ".join(lost.values())})
            notebook.change(notebook.notes.with_fresh_start(now))
            self.fresh_start.set()

    def device_fault(self, device: DeviceIndex, xid: int) -> None:
        """Take note of a fault that the driver reported."""
        latest = {reading.index: reading for reading in self._watch.latest()}
        self._faults.reported(device, xid, latest.get(device))
        self.devices_read()

    async def pin(self, model: ModelId, is_pinned: bool) -> None:
        """Mark a model as one that stays, or no longer; it need not be here."""
        notebook = self._parts.notebook
        notebook.change(notebook.notes.with_pin(model, is_pinned))
        if self.supervisor.has(model):
            self._tell_of(model, self.supervisor.state(model), None)
        await notebook.flush()

    async def cordon(self, is_cordoned: bool) -> None:
        """Mark the node as one that takes no new models, or no longer."""
        notebook = self._parts.notebook
        notebook.change(notebook.notes.with_cordon(is_cordoned))
        self.health_changed()
        await notebook.flush()

    def start_draining(self) -> None:
        """Take no new work, and end downloads: nobody can load what they bring."""
        self.supervisor.start_draining()
        self._parts.downloads.start_closing()
        self.health_changed()

    async def run(self) -> None:
        """Send health events until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            # Counts first: who hears of a use still takes for busy what it was told to be busy.
            self.feed.publish(HEALTH_EVENT, self.health())
            self._tell_last_used()
            await self._parts.clock.sleep(_HEALTH_PAUSE_S)

    def refresh_metrics(self) -> None:
        """Bring the gauges up to date; called before a scrape."""
        metrics, budget = self._parts.metrics, self._parts.memory.budget
        metrics.models.clear()
        metrics.in_flight.clear()
        metrics.queued.clear()
        metrics.step_age.clear()
        for state in self.supervisor.states():
            load = self._load_of(state)
            metrics.models.labels(state.status.value).inc()
            metrics.in_flight.labels(state.asked.model).set(state.in_flight)
            metrics.queued.labels(state.asked.model).set(load.queued)
            if load.last_step_age_s is not None:
                metrics.step_age.labels(state.asked.model).set(load.last_step_age_s)
        sleep = self._parts.memory.sleep_budget
        metrics.sleep_memory.labels("budget").set(sleep.total_bytes)
        metrics.sleep_memory.labels("held").set(sleep.used_bytes)
        for device in self._parts.facts.devices:
            name = str(device.index)
            memory = metrics.devices.memory
            memory.labels(name, "total").set(device.vram_total_bytes)
            memory.labels(name, "held").set(budget.held_bytes(device.index))
            metrics.devices.waiting.labels(name).set(self._parts.lanes.waiting(device.index))
            metrics.leaked.labels(name).set(budget.leaked.get(device.index, 0))
        metrics.devices.fill(self.devices())

    def _model_changed(
        self, model: ModelId, state: ReplicaState | None, refusal: Refusal | None
    ) -> None:
        """Tell of a model, unless only its requests came and went: health events say that."""
        seen = self._seen.get(model)
        if seen is not None and state is not None and reports.has_only_counted(seen, state):
            # Twice with each request, which would have two reports made for nothing.
            self._seen[model] = state
            self.health_changed()
            return
        self._tell_of(model, state, refusal)

    def _tell_of(self, model: ModelId, state: ReplicaState | None, refusal: Refusal | None) -> None:
        told = self._told.get(model)
        if state is None:
            self._seen.pop(model, None)
            self._told.pop(model, None)
            self.weights.used(model)
            if told is not None:
                self._tell(reports.gone_report(told, refusal))
        else:
            self._seen[model] = state
            report = self._report(state)
            last_used = told.last_used if told is not None else None
            if told is None:
                self.weights.used(model)
            if told != msgspec.structs.replace(report, last_used=last_used):
                self._told[model] = report
                self._tell(report)
        self._remember_loaded()
        self.health_changed()

    def _remember_loaded(self) -> None:
        """Note what is loaded, unless it is only gone for the end or for new engines."""
        if self.supervisor.is_draining or self.supervisor.recycling.is_running:
            return
        notebook = self._parts.notebook
        here = residents(self.supervisor.states(), self.activator.to_come())
        notes = notebook.notes.with_loaded(here)
        if notes is not notebook.notes:
            notebook.change(notes)

    def _report(self, state: ReplicaState) -> ModelReport:
        is_pinned = state.asked.model in self._parts.notebook.notes.pinned
        return reports.model_report(
            state,
            self._parts.memory.budget,
            is_pinned=is_pinned,
            admission=self._parts.settings.admission,
        )

    def _tell_last_used(self) -> None:
        # In the order of their use: who hears it takes the time of the news for that of the use.
        for report in sorted(self.models(), key=lambda report: report.last_used or 0.0):
            told = self._told.get(ModelId(report.id))
            if told is not None and told.last_used != report.last_used:
                self._told[ModelId(report.id)] = report
                self._tell(report)

    def _tell(self, report: ModelReport) -> None:
        self.feed.publish(MODEL_EVENT, report)
