"""What a start would come to, without one: which harnesses work, which models would load."""

import asyncio
from collections.abc import Mapping

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.errors import RequestError
from cortex_core.harness import EngineVersion
from cortex_core.server.clock import Clock
from cortex_core.wire.fit import CheckName, FitCheck, FitReport, Verdict
from neuron.devices.workers import DeviceWorkers
from neuron.engines.factory import make_harnesses, prepare_harnesses
from neuron.metrics import NeuronMetrics
from neuron.ports import DeviceFacts, DeviceSource
from neuron.settings import DefaultModel, NeuronSettings
from neuron.supervisor.activation import spec_of
from neuron.supervisor.fitting import Fitting
from neuron.supervisor.memory import Memory
from neuron.supervisor.notebook import Notebook, notes_path
from neuron.supervisor.parts import Parts
from neuron.weights.downloads import Downloads


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    facts: DeviceFacts
    unusable: Mapping[str, str]
    """Why harnesses cannot be used, by name."""
    engines: tuple[EngineVersion, ...]
    reports: tuple[FitReport, ...]
    """Of the default models, in order; each with those before it in place."""


async def rehearse(
    settings: NeuronSettings, *, source: DeviceSource, clock: Clock, environ: Mapping[str, str]
) -> Rehearsal:
    """Look at everything that the settings ask for; no engine is started.

    Args:
        settings: of the neuron.
        source: of its devices; it is closed afterwards.
        clock: times what has bounds.
        environ: where systemd says which folder keeps the state, and the hub's variables.
    """
    try:
        facts = await asyncio.to_thread(source.discover)
        memory = await _memory(facts, source, clock)
    finally:
        await asyncio.to_thread(source.close)
    metrics = NeuronMetrics(CollectorRegistry())
    notebook = Notebook(notes_path(settings.state_path, environ), metrics)
    await notebook.read()
    async with asyncio.TaskGroup() as tasks:
        downloads = Downloads.from_settings(settings.harness.vllm, environ, clock, tasks)
        harnesses = make_harnesses(settings, clock, tasks, downloads)
        unusable = await prepare_harnesses(harnesses, asyncio.Event())
        parts = Parts(
            settings=settings,
            harnesses={name: harnesses[name] for name in harnesses if name not in unusable},
            unusable=unusable,
            facts=facts,
            memory=memory,
            downloads=downloads,
            notebook=notebook,
            lanes=DeviceWorkers((), tasks),
            clock=clock,
            metrics=metrics,
            tasks=tasks,
        )
        try:
            reports = [await _report(parts, model) for model in settings.default_models]
        finally:
            for harness in harnesses.values():
                await harness.close()
            await downloads.close()
    engines = tuple(one.engine for one in harnesses.values() if one.engine is not None)
    return Rehearsal(facts=facts, unusable=unusable, engines=engines, reports=tuple(reports))


async def _memory(facts: DeviceFacts, source: DeviceSource, clock: Clock) -> Memory:
    memory = Memory(facts, None, clock, 0.0)
    if not facts.is_declared:
        for reading in await asyncio.to_thread(source.read):
            if reading.vram_used_bytes is not None:
                memory.budget = memory.budget.with_used(reading.index, reading.vram_used_bytes)
    return memory


async def _report(parts: Parts, model: DefaultModel) -> FitReport:
    """Return what a model would come to, and hold its memory for those after it."""
    spec = spec_of(model)
    try:
        report = await Fitting(parts).report(spec)
        if report.ok:
            size = report.needed.total_bytes
            held = msgspec.structs.replace(spec, vram_bytes=size)
            await parts.memory.reserve(held, lambda: None)
    except RequestError as error:
        told = FitCheck(
            name=CheckName.OPTIONS.value, verdict=Verdict.FAILED.value, message=error.message
        )
        return FitReport(model=spec.model, ok=False, checks=(told,))
    return report
