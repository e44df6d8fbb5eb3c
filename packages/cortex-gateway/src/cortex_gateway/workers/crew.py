"""The workers of a control process: started, shown what is, started again, and ended."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from cortex_core.fleet.state import FleetState
from cortex_core.server.listen import ListeningSocket
from cortex_core.server.share import Tally
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.workers import wire
from cortex_gateway.workers.channel import Channel, connect
from cortex_gateway.workers.desk import Desk, Rooms
from cortex_gateway.workers.leases import Leases
from cortex_gateway.workers.sums import Summed, lasting, total

logger = logging.getLogger(__name__)

TELL_S = 1.0
"""Between two questions for a worker's figures, which are its signs of life too."""

SILENT = 15
"""Questions without an answer after which a worker is killed. Time would not do: this process may
stand still itself, and asks nothing then."""

START_S = 120.0
"""How long a worker may take to begin."""

SCRAPE_S = 1.0
"""How long a scrape waits for figures."""

PUSH_S = 0.02
"""Between two snapshots; what changes meanwhile goes together."""

MAX_BACK_OFF_S = 30.0

STEADY_S = 60.0
"""How long a worker must have lived for its end to be the first one again."""

_NOT_THEIRS = ("LISTEN_", "NOTIFY_", "WATCHDOG_")
"""What systemd says to the control process alone."""


class WorkerMetrics:
    """How the workers fare; not there with one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.up = Gauge(
            "cortex_worker_up", "Whether a worker serves.", ("worker",), registry=registry
        )
        self.restarts = Counter(
            "cortex_worker_restarts_total", "Workers that were started again.", registry=registry
        )


class Crew:
    """All workers.

    Args:
        rooms: of this process.
        configuration: in force at first.
        api: where callers come in.
        memory: descriptor of the tally's; closed by the caller.
        inner: the way to where this process serves everything.
        registry: of this process's series; gets those about workers.
        environ: of this process.
        tasks: where workers are looked after.
    """

    def __init__(
        self,
        rooms: Rooms,
        configuration: Configuration,
        *,
        api: ListeningSocket,
        memory: int,
        inner: wire.Inner,
        registry: CollectorRegistry,
        environ: Mapping[str, str],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.registry = Summed(registry)
        """What a scrape sees."""
        self.rooms = rooms
        self.api = api
        self.memory = memory
        self._tally = Tally(memory)
        self.tasks = tasks
        self._ending = asyncio.Event()
        self.environ = {
            name: value for name, value in environ.items() if not name.startswith(_NOT_THEIRS)
        }
        self._inner = inner
        self._configuration = configuration
        self._number = 0
        self._hands: dict[str, Hand] = {}
        self._tending: list[asyncio.Task[None]] = []
        self._metrics = WorkerMetrics(registry)
        rooms.journal.gather = self.count
        self.leases = Leases(
            store=rooms.store,
            lines=rooms.lines,
            in_flight=rooms.in_flight,
            settings=rooms.settings,
            clock=rooms.clock,
            workers=configuration.settings.gateway.workers,
        )

    @contextlib.asynccontextmanager
    async def working(self, count: int) -> AsyncIterator[None]:
        """Have so many workers while the context is open."""
        self._tending = [self.tasks.create_task(self._tend(str(number))) for number in range(count)]
        beside = [
            self.tasks.create_task(work) for work in (self._push(), self._look(), self._ask())
        ]
        try:
            yield
        finally:
            for task in (*beside, *self._tending):
                task.cancel()

    def is_ending(self) -> bool:
        """Whether no worker is to be started any more."""
        return self._ending.is_set()

    def configure(self, configuration: Configuration) -> None:
        """Put a configuration in force with all workers."""
        self._configuration = configuration
        self.leases.recall()
        for hand in self._hands.values():
            hand.say(self.setup())

    def setup(self) -> wire.Setup:
        """Return what is in force."""
        return wire.Setup(
            settings=self._configuration.settings,
            catalogue=self._configuration.catalogue,
            accesses=self._configuration.accesses,
            inner=self._inner,
        )

    def drain(self) -> None:
        """Have all workers end; a second call asks for haste."""
        self._ending.set()
        for hand in self._hands.values():
            hand.say(wire.Drain())

    async def end(self, limit_s: float) -> None:
        """Wait until all have ended, which they were asked to; kill who has not by then."""
        _, late = await asyncio.wait(self._tending, timeout=limit_s)
        if late:
            for hand in self._hands.values():
                hand.kill()
            await asyncio.wait(late)

    async def count(self) -> None:
        """Return when the figures of all workers are fresh, or late."""
        number = self._next()
        hands = [hand for hand in self._hands.values() if hand.is_up]
        for hand in hands:
            hand.ask(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCRAPE_S):
                for hand in hands:
                    await hand.told(number)

    def figures(self, name: str, message: wire.Figures) -> None:
        """Take what a worker has counted so far."""
        self.registry.others = {**self.registry.others, name: message.families}

    async def _tend(self, name: str) -> None:
        """Start a worker, and again whenever it has ended."""
        loop, back_off_s = asyncio.get_running_loop(), 1.0
        while True:
            began = loop.time()
            await self._live(name)
            if self.is_ending():
                return
            if loop.time() - began >= STEADY_S:
                back_off_s = 1.0
            logger.warning("worker %s has ended; it is started again in %g s", name, back_off_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(back_off_s):
                    await self._ending.wait()
            if self.is_ending():
                return
            back_off_s = min(2 * back_off_s, MAX_BACK_OFF_S)
            self._metrics.restarts.inc()

    async def _live(self, name: str) -> None:
        """Start a worker and return when it has ended and nothing is left of it."""
        hand = self._hands[name] = Hand(self, f"{name}.{self._next()}", name)
        up = self._metrics.up.labels(name)
        hand.on_up = lambda: up.set(1)
        try:
            await hand.live()
        except OSError as error:
            logger.error("worker %s cannot be started: %s", name, error)
        finally:
            up.set(0)
            self._tally.leave(int(name))
            del self._hands[name]
            others = dict(self.registry.others)
            left = others.pop(name, ())
            others[""] = total([others.get("", ()), lasting(left)])
            self.registry.others = others

    async def _push(self) -> None:
        """Show all workers every change of the fleet."""
        store, revision = self.rooms.store, -1
        while True:
            state = await store.changed(revision)
            revision = state.revision
            for hand in self._hands.values():
                hand.show(state)
            await asyncio.sleep(PUSH_S)

    async def _look(self) -> None:
        """Call back leases with each change of the fleet that they do not outlast.

        It does not wait for the next snapshot to be shown: who has no lease asks.
        """
        store, revision = self.rooms.store, -1
        while True:
            revision = (await store.changed(revision)).revision
            self.leases.look()

    async def _ask(self) -> None:
        """Ask all workers now and then for signs of life."""
        while True:
            await asyncio.sleep(TELL_S)
            number = self._next()
            for hand in self._hands.values():
                hand.watch(number)

    def _next(self) -> int:
        self._number += 1
        return self._number


class Hand:
    """One life of one worker.

    Args:
        crew: whose it is.
        life: tells its turns from those of earlier lives.
        name: of the worker.
    """

    def __init__(self, crew: Crew, life: str, name: str) -> None:
        self.is_up = False
        self.on_up: Callable[[], None] = lambda: None
        self._crew = crew
        self._name = name
        self._desk = Desk(crew.rooms, crew.leases, life, self.say, crew.tasks)
        self._process: asyncio.subprocess.Process | None = None
        self._began = asyncio.get_running_loop().time()
        self._unanswered = 0
        self._number = 0
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._channel: Channel[wire.FromWorker] = Channel(
            msgspec.msgpack.Decoder(list[wire.FromWorker]), self._take, self._lost
        )

    def say(self, message: wire.FromControl) -> None:
        """Say something to the worker."""
        self._channel.say(message)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def show(self, state: FleetState) -> None:
        """Show the worker a snapshot."""
        if self.is_up:
            self.say(wire.Fleet(state=state, heard=self._desk.changes))

    def ask(self, number: int) -> None:
        """Ask for the figures."""
        self._unanswered += 1
        self.say(wire.Tell(number=number))

    def watch(self, number: int) -> None:
        """Ask for the figures, and kill the worker if it is silent or never began."""
        is_late = asyncio.get_running_loop().time() - self._began > START_S
        if self._unanswered >= SILENT if self.is_up else is_late:
            logger.error("worker %s is silent; it is killed", self._name)
            self.kill()
        elif self.is_up:
            self.ask(number)

    async def told(self, number: int) -> None:
        """Return when the worker has told its figures of `number` or later, or is gone."""
        while self._number < number and not self._gone.is_set():
            await self._news.wait()

    async def live(self) -> None:
        """Start the process; returns when it has ended and all is taken back."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await self._start(theirs)
            await connect(self._channel, ours)
            await self._process.wait()
            await self._gone.wait()
        finally:
            self.kill()
            self._channel.close()
            self._desk.close()

    async def _start(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        settings = self._crew.setup().settings.gateway
        api, memory = self._crew.api.socket.fileno(), self._crew.memory
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cortex_gateway.workers",
            f"--api={api}",
            f"--pair={theirs.fileno()}",
            f"--tally={memory}",
            f"--seat={self._name}",
            f"--log-format={settings.log_format}",
            f"--log-level={settings.log_level}",
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(api, theirs.fileno(), memory),
            env=self._crew.environ,
            # A terminal's signals are the control process's to pass on.
            start_new_session=True,
        )

    def _take(self, message: wire.FromWorker) -> None:
        match message:
            case wire.Hello():
                self.is_up = True
                self.on_up()
                self.say(self._crew.setup())
                self.show(self._crew.rooms.store.state)
                if self._crew.is_ending():
                    self.say(wire.Drain())
            case wire.Figures():
                self._unanswered = 0
                self._number = max(self._number, message.number)
                self._crew.figures(self._name, message)
                news, self._news = self._news, asyncio.Event()
                news.set()
            case wire.Doubt() | wire.Failed() | wire.Succeeded():
                self._desk.take(message)
                # It waits for a snapshot that has its change in it.
                self.show(self._crew.rooms.store.state)
            case _:
                self._desk.take(message)

    def _lost(self) -> None:
        self._gone.set()
        self._news.set()
