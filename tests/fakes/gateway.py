"""The data path as it is in production, over a fleet that the test makes up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.errors import SettingsError
from cortex_core.fleet.reducers import from_endpoints, with_facts, with_report
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.server.clock import SystemClock
from cortex_core.server.drain import Drain
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_core.simulation.trace import Arrival
from cortex_core.wire.admin import ConfigView, ReloadAnswer
from cortex_gateway.clients.accesses import load_accesses
from cortex_gateway.clients.upstream import open_upstream
from cortex_gateway.control.commands import Commands
from cortex_gateway.control.control import Control, open_control
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.roster import Roster
from cortex_gateway.control.store import FleetStore
from cortex_gateway.control.upstreams import with_upstreams
from cortex_gateway.control.watcher import WatchPace
from cortex_gateway.lifespan import open_api
from cortex_gateway.metrics import GatewayMetrics
from cortex_gateway.ports import NodeClient
from cortex_gateway.proxy.proxy import Proxy
from cortex_gateway.reload.live import LiveSettings
from cortex_gateway.settings import (
    ApiSettings,
    GatewaySettings,
    QueueSettings,
    ResponsesSettings,
    Timeouts,
    UpstreamEntry,
)

MODEL = ModelId("org/model")
NOW = SystemClock().now
TO_A = {"x-cortex-session": "talk-2"}
"""Headers of a conversation whose favourite of the nodes `a` and `b` is `a`."""


class Recorder:
    """What the data path counted."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.attempts: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    def began(self, model: str) -> None:
        self.open.append(model)

    def attempted(self, outcome: str) -> None:
        self.attempts.append(outcome)

    def ended(self, **figures: Any) -> None:
        if figures["has_begun"]:
            self.open.remove(figures["model"])
        self.requests.append(figures)
        self._news.set()

    async def request(self, number: int = 0) -> dict[str, Any]:
        """Wait for the end of a request, counted from 0, and return its figures."""
        async with asyncio.timeout(5):
            while len(self.requests) <= number:
                self._news.clear()
                await self._news.wait()
        return self.requests[number]


class Gateway:
    """A running data path."""

    def __init__(
        self, url: str, store: FleetStore, proxy: Proxy, recorder: Recorder, drain: Drain
    ) -> None:
        self.url = url
        self.store = store
        self.proxy = proxy
        self.recorder = recorder
        self.drain = drain

    def report(self, node: str, *replicas: Replica) -> None:
        """Take a report of a node, as its watcher would."""
        report = NodeReport(replicas=replicas)
        self.store.update(lambda state: with_report(state, NodeName(node), report, NOW()))

    async def refresh_asked(self, node: str) -> None:
        """Wait until the data path asks for a report of a node."""
        async with asyncio.timeout(5):
            await self.store.refresh_asked(NodeName(node))


def replica(
    node: str,
    status: ReplicaStatus = ReplicaStatus.LOADED,
    *,
    model: ModelId = MODEL,
    progress: LoadProgress | None = None,
) -> Replica:
    """Return one replica in a state."""
    return Replica(id=ReplicaId(node=NodeName(node), model=model), status=status, progress=progress)


def fleet(nodes: Mapping[str, str], replicas: Iterable[Replica]) -> FleetState:
    """Return a fleet that reported just now.

    Args:
        nodes: base URLs by name.
        replicas: what they have.
    """
    state = from_endpoints({NodeName(name): url for name, url in nodes.items()})
    facts = NodeFacts(hostname="host", devices=(), harnesses=("simulated",))
    for name in state.nodes:
        state = with_facts(state, name, facts)
        report = NodeReport(replicas=tuple(r for r in replicas if r.id.node == name))
        state = with_report(state, name, report, NOW())
    return state


@asynccontextmanager
async def gateway(
    nodes: Mapping[str, str],
    replicas: Iterable[Replica] | None = None,
    *,
    timeouts: Timeouts | None = None,
    queue: QueueSettings | None = None,
    aliases: Mapping[str, ModelId] | None = None,
    upstreams: Sequence[UpstreamEntry] = (),
    environ: Mapping[str, str] | None = None,
    keeps: ResponsesSettings | None = None,
    trace: Callable[[Arrival], None] | None = None,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> AsyncIterator[Gateway]:
    """Serve the data path on a free port.

    Args:
        nodes: base URLs by name.
        replicas: what the nodes have; `None` puts `MODEL`, loaded, on each.
        timeouts: as in `cortex.toml`.
        queue: likewise.
        aliases: further names of models.
        upstreams: services that are no neurons.
        environ: where their keys are.
        keeps: what is kept of responses; `None` takes the defaults.
        trace: takes every request at its end.
        wrap: put around the application, to look at what it is asked.
    """
    have = [replica(name) for name in nodes] if replicas is None else list(replicas)
    catalogue = Catalogue(
        profiles={MODEL: Profile(id=MODEL, harness="simulated")}, aliases=aliases or {}
    )
    timeouts = timeouts or Timeouts()
    store = FleetStore(with_upstreams(fleet(nodes, have), upstreams, NOW()), catalogue)
    settings = GatewaySettings(
        gateway=ApiSettings(timeouts=timeouts, queue=queue or QueueSettings()),
        upstreams=tuple(upstreams),
    )
    recorder, drain, opened = Recorder(), Drain(), open_upstream(timeouts, timeouts)
    async with opened as upstream, control_without_nodes(store) as control:
        proxy = Proxy(
            store=store,
            upstream=upstream,
            settings=LiveSettings(settings),
            metrics=recorder,
            clock=SystemClock(),
            journal=Journal(SystemClock(), lambda kind: None),
            random=lambda: 0.0,
            accesses=load_accesses(settings, catalogue, environ or {}),
            trace=trace,
        )
        kept, clock = keeps or ResponsesSettings(), SystemClock()
        opening = open_api(control, proxy, kept, NoFiles(), clock=clock, drain=drain, version="0")
        async with opening as app, _serving(wrap(app), drain) as url:
            yield Gateway(url, store, proxy, recorder, drain)


class NoFiles:
    """The configuration of a gateway that was made up."""

    def view(self) -> ConfigView:
        return ConfigView(loaded_at=0.0, settings={}, models=0, aliases=0)

    async def reload(self) -> ReloadAnswer:
        raise SettingsError("there are no files")


@asynccontextmanager
async def control_without_nodes(store: FleetStore) -> AsyncIterator[Control]:
    """Yield what operators need, over a fleet whose nodes take no commands."""

    def no_client(name: NodeName, url: str) -> NodeClient:
        raise AssertionError(f"{name} at {url} is only made up")

    clock, metrics = SystemClock(), GatewayMetrics(CollectorRegistry())
    async with asyncio.TaskGroup() as tasks:
        roster = Roster(
            store=store, make_client=no_client, clock=clock, pace=WatchPace(), tasks=tasks
        )
        commands = Commands(store=store, clients=roster.clients, metrics=metrics, clock=clock)
        journal = Journal(clock, lambda kind: None)
        async with open_control(
            store, roster, commands, journal=journal, clock=clock, load_limit_s=lambda: 1.0
        ) as control:
            yield control


@asynccontextmanager
async def _serving(app: ASGIApp, drain: Drain) -> AsyncIterator[str]:
    socket = open_listener("127.0.0.1:0")
    listener = Listener(
        app=protect(app, drain=drain), socket=socket, keep_alive_s=PUBLIC_KEEP_ALIVE_S
    )
    url, shutdown = socket.url, Shutdown()
    async with asyncio.TaskGroup() as tasks:
        serving = serve(
            [listener],
            drain=drain,
            shutdown=shutdown,
            environ={},
            drain_timeout_s=0.1,
            graceful_s=0.1,
            flush_timeout_s=0.1,
        )
        tasks.create_task(serving)
        try:
            yield url
        finally:
            shutdown.ask()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def ask(
    url: str,
    body: object = None,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    limit_s: float = 10,
) -> Answer:
    """Send a request and return the whole answer.

    Args:
        url: of the gateway.
        body: bytes as they are, or fields beside `model`.
        path: where to.
        method: of HTTP.
        headers: further ones.
        limit_s: for the whole call; more where many share a busy machine.

    Raises:
        aiohttp.ClientPayloadError: the answer was cut.
    """
    data = body if isinstance(body, bytes) else msgspec.json.encode(request(body))
    async with (
        asyncio.timeout(limit_s),
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.request(method, url + path, data=data, headers=headers) as response,
    ):
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=await response.read(),
        )


def request(fields: object = None) -> dict[str, object]:
    """Return the fields of a small chat request."""
    more = fields if isinstance(fields, dict) else {}
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more}


class Caller:
    """A caller on a raw socket, who may leave or stop reading."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def read_until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(mark)

    def leave(self) -> None:
        """Close at once, with a reset."""
        self._writer.transport.abort()


@asynccontextmanager
async def calling(
    url: str, body: Mapping[str, object], *, path: str = "/v1/chat/completions", **headers: str
) -> AsyncIterator[Caller]:
    """Send a chat request over a socket of its own."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    data = msgspec.json.encode(request(dict(body)))
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join((*lines, "", "")).encode() + data)
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()
