"""Bring the neuron's rooms up, connected with each other, and down again."""

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import platform
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

from prometheus_client import CollectorRegistry

from cortex_core.harness import Harness
from cortex_core.ids import BootId
from cortex_core.server.clock import Clock
from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import NEURON_KEEP_ALIVE_S
from cortex_core.server.listen import ListeningSocket
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.vitals import Vitals
from cortex_core.units import bytes_from_mib
from neuron.app import make_app
from neuron.clients.peers import HttpPeers, open_peers
from neuron.devices.host import available_bytes
from neuron.devices.readings import DeviceMonitor
from neuron.devices.workers import DeviceWorkers
from neuron.engines.factory import make_harnesses, prepare_harnesses
from neuron.metrics import NeuronMetrics
from neuron.ports import DeviceFacts, DeviceSource, NodeIdentity
from neuron.settings import NeuronSettings
from neuron.supervisor.groups import Groups
from neuron.supervisor.memory import Memory
from neuron.supervisor.node import Node
from neuron.supervisor.notebook import Notebook, notes_path
from neuron.supervisor.parts import Parts
from neuron.weights.downloads import Downloads

_SILENT_BEATS = 3
"""Heartbeats of a peer that may be missed before its part of a model is given up."""

logger = logging.getLogger(__name__)


class WatchedDrain(Drain):
    """A drain that ends event streams when it is through: they would go on for ever.

    Args:
        node: whose streams; they tell of the drain until then.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests, wait for the running ones, end the event streams."""
        try:
            return await super().drain(timeout_s)
        finally:
            self._node.feed.close()
            self._node.followers.close()


async def run(
    settings: NeuronSettings,
    *,
    listener: ListeningSocket,
    source: DeviceSource,
    shutdown: Shutdown,
    clock: Clock,
    environ: Mapping[str, str],
    on_ready: Callable[[], None],
) -> bool:
    """Serve until `shutdown` is asked for, then close all engines.

    Args:
        settings: of this neuron.
        listener: where it is reached; closed at the end.
        source: where its devices come from.
        shutdown: who may ask for the end.
        clock: times everything.
        environ: read for systemd's variables.
        on_ready: called when requests are answered.

    Returns:
        Whether it ended by itself in order to be started anew.

    Raises:
        StartError: it cannot start.
    """
    node_context = node_of(
        settings, source=source, clock=clock, environ=environ, stop=shutdown.is_wanted
    )
    async with node_context as (node, parts):
        drain = WatchedDrain(node)
        app = make_app(node, parts, drain)
        vitals = Vitals(parts.metrics.registry, "neuron", drain)
        works = (_start_draining(node, shutdown), _end_for(node, shutdown), node.activator.run())
        with vitals.running():
            async with _in_background(*works):
                await serve(
                    vitals.of(
                        [Listener(app=app, socket=listener, keep_alive_s=NEURON_KEEP_ALIVE_S)]
                    ),
                    drain=drain,
                    shutdown=shutdown,
                    environ=environ,
                    drain_timeout_s=settings.drain_timeout_s,
                    on_ready=on_ready,
                )
    return node.fresh_start.is_set()


@contextlib.asynccontextmanager
async def node_of(
    settings: NeuronSettings,
    *,
    source: DeviceSource,
    clock: Clock,
    environ: Mapping[str, str] | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[tuple[Node, Parts]]:
    """Open a node without its HTTP surface; all engines are closed at the end.

    Args:
        settings: of this neuron.
        source: where its devices come from.
        clock: times everything.
        environ: where systemd says which folder keeps the state; `None` says nothing.
        stop: hastens the start, which may take a while, because the end is wanted already.
    """
    monitor = DeviceMonitor(source, clock, settings.reading_interval_s)
    facts = await _discovered(monitor)
    memory = await _memory(facts, monitor, settings, clock)
    async with asyncio.TaskGroup() as tasks, _peers(settings, tasks) as peers:
        workers = DeviceWorkers((device.index for device in facts.devices), tasks)
        metrics = NeuronMetrics(CollectorRegistry())
        notebook = await _notebook(settings, environ or {}, metrics)
        downloads = Downloads.from_settings(settings.harness.vllm, os.environ, clock, tasks)
        harnesses = make_harnesses(settings, clock, tasks, downloads)
        unusable = await prepare_harnesses(harnesses, stop or asyncio.Event())
        parts = Parts(
            settings=settings,
            harnesses={name: harnesses[name] for name in harnesses if name not in unusable},
            unusable=unusable,
            facts=facts,
            memory=memory,
            downloads=downloads,
            notebook=notebook,
            lanes=workers,
            clock=clock,
            metrics=metrics,
            tasks=tasks,
            groups=Groups(peers, settings.memory_wait_s),
        )
        # Reads files.
        node = Node(parts, await asyncio.to_thread(_identity), monitor)
        with contextlib.closing(monitor), contextlib.closing(workers):
            async with _in_background(node.run(), notebook.run(), _read(monitor, memory, node)):
                try:
                    yield node, parts
                finally:
                    await _close(node, parts, harnesses)


def _peers(
    settings: NeuronSettings, tasks: asyncio.TaskGroup
) -> contextlib.AbstractAsyncContextManager[HttpPeers]:
    silence_s = _SILENT_BEATS * settings.heartbeat_s
    host, token = settings.advertise_host, settings.fleet_token
    return open_peers(tasks, silence_s=silence_s, host=host, token=token)


async def _read(monitor: DeviceMonitor, memory: Memory, node: Node) -> None:
    def on_reading() -> None:
        memory.reconcile(monitor.latest(), monitor.begun_at)
        node.devices_read()

    node.devices_read()
    await monitor.run(on_reading, node.device_fault)


async def _discovered(monitor: DeviceMonitor) -> DeviceFacts:
    facts = await monitor.discover()
    if facts.unavailable_reason is not None:
        logger.warning("devices unavailable", extra={"reason": facts.unavailable_reason})
    return facts


async def _notebook(
    settings: NeuronSettings, environ: Mapping[str, str], metrics: NeuronMetrics
) -> Notebook:
    notebook = Notebook(notes_path(settings.state_path, environ), metrics)
    await notebook.read()
    return notebook


async def _memory(
    facts: DeviceFacts, monitor: DeviceMonitor, settings: NeuronSettings, clock: Clock
) -> Memory:
    # Nobody can measure what is only declared.
    gauge = None if facts.is_declared else monitor
    sleep_bytes = await asyncio.to_thread(_sleep_bytes, settings)
    memory = Memory(facts, gauge, clock, settings.memory_wait_s, sleep_bytes)
    memory.reconcile(monitor.latest(), monitor.begun_at)
    return memory


def _sleep_bytes(settings: NeuronSettings) -> int:
    if settings.sleep_budget_mb is not None:
        return bytes_from_mib(settings.sleep_budget_mb)
    # The rest is for the page cache, from which weights are read again, and for everybody else.
    return available_bytes() // 2


async def _close(node: Node, parts: Parts, harnesses: Mapping[str, Harness]) -> None:
    await parts.downloads.close()
    await node.supervisor.close()
    for harness in harnesses.values():
        await harness.close()
    # While its task still runs: no write under way may come after this one.
    await parts.notebook.flush()


async def _end_for(node: Node, shutdown: Shutdown) -> None:
    await node.fresh_start.wait()
    if not shutdown.is_wanted.is_set():
        shutdown.ask()


async def _start_draining(node: Node, shutdown: Shutdown) -> None:
    await shutdown.is_wanted.wait()
    logger.info("shutting down", extra={"in_flight": node.in_flight})
    node.start_draining()


@contextlib.asynccontextmanager
async def _in_background(*works: Coroutine[object, object, None]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


def _identity() -> NodeIdentity:
    return NodeIdentity(
        hostname=socket.gethostname(),
        os=_os_name(),
        kernel=platform.release(),
        version=_version(),
        boot_id=BootId(uuid.uuid4().hex),
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _version() -> str:
    # Siblings are pinned to one version, and core's name is nobody else's on the index.
    try:
        return importlib.metadata.version("cortex-core")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
