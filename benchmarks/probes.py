"""Clocks around the seams of a gateway: where a request spends its time, by stage.

The gateway itself knows nothing of it: functions are wrapped before it starts. A stage has the
time within its functions but not that within functions of other stages that they call. Coroutines
have a stage while they run, not while they wait.
"""

import functools
import importlib
import inspect
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import msgspec

clock = time.perf_counter_ns
"""The thread's own CPU clock would be right, and costs more than most stages do."""

OUTSIDE = 0
"""Index of what runs outside all seams: the event loop, the sockets, the rest of the process."""

INTERRUPTED_NS = 300_000
"""No stage takes so long at one go: somebody else had the core, or the collector ran."""


class Seam(msgspec.Struct, frozen=True, kw_only=True):
    """A function at which a stage begins."""

    stage: str
    place: str
    """Its module, a colon, and its name in there."""
    later: str = ""
    """The stage of a coroutine once it has waited; the same where there is none."""


def _seam(stage: str, place: str, later: str = "") -> Seam:
    return Seam(stage=stage, place=place, later=later)


SEAMS = (
    _seam("accept", "cortex_core.server.hypercorn:_serve_connection", "close"),
    _seam("close", "cortex_core.server.connection:Connection.eof_received"),
    _seam("close", "cortex_core.server.connection:Connection.connection_lost"),
    _seam("parse", "cortex_core.server.connection:Connection.data_received"),
    _seam("parse", "cortex_core.server.connection:Connection.serve"),
    _seam("guard", "cortex_core.server.guard:Guard.__call__"),
    _seam("guard", "cortex_core.server.guard:Guard._run"),
    _seam("read", "cortex_gateway.proxy.proxy:read_call"),
    _seam("read", "cortex_gateway.proxy.proxy:read_body"),
    _seam("read", "cortex_gateway.api.openai:ChatAsked.__init__"),
    _seam("read", "cortex_gateway.api.openai:ChatAsked.outbound"),
    _seam("walk", "cortex_gateway.proxy.proxy:Proxy.serve"),
    _seam("route", "cortex_gateway.proxy.proxy:resolve"),
    _seam("route", "cortex_gateway.proxy.proxy:affinity_of"),
    _seam("route", "cortex_gateway.proxy.lines:Lines.turn"),
    _seam("send", "cortex_gateway.clients.upstream:HttpUpstream.post"),
    _seam("send", "cortex_gateway.clients.connection:Connection.ask", "node"),
    _seam("node", "cortex_gateway.clients.connection:Connection.data_received"),
    _seam("relay", "cortex_gateway.proxy.relay:Relay.run"),
    _seam("watch", "cortex_gateway.proxy.relay:whole_findings"),
    _seam("watch", "cortex_gateway.proxy.watch:StreamWatch.feed"),
    _seam("watch", "cortex_gateway.proxy.watch:StreamWatch.findings"),
    _seam("answer", "cortex_gateway.proxy.reply:Reply.whole"),
    _seam("answer", "cortex_gateway.proxy.reply:Reply.begin"),
    _seam("answer", "cortex_gateway.proxy.reply:Reply.end"),
    _seam("answer", "cortex_gateway.proxy.reply:Reply.write"),
    _seam("log", "cortex_gateway.proxy.account:Account.close"),
    _seam("series", "cortex_gateway.metrics:GatewayMetrics.ended"),
)

STAGES = ("outside", *dict.fromkeys(seam.stage for seam in SEAMS))


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """What has been counted so far."""

    spent_ns: tuple[int, ...]
    """By stage; of `OUTSIDE` it means nothing, for it has the waiting."""
    entered: tuple[int, ...]
    """How often each stage was entered."""
    left: tuple[int, ...]
    """How often another one was entered from it."""
    thread_ns: int
    """CPU time of the loop's thread."""


class Stopwatch:
    """Knows which stage the thread is in, and adds up.

    What is called at every seam is written out twice: a call more would cost as much as the rest.
    """

    def __init__(self) -> None:
        self.spent_ns = [0] * len(STAGES)
        self.entered = [0] * len(STAGES)
        self.left = [0] * len(STAGES)
        self.stage = OUTSIDE
        self.since = clock()

    def passed(self) -> Passed:
        """Return what has been counted so far; called by the loop's thread."""
        return Passed(
            spent_ns=tuple(self.spent_ns),
            entered=tuple(self.entered),
            left=tuple(self.left),
            thread_ns=time.thread_time_ns(),
        )

    def wrapped(self, function: Callable[..., Any], stage: int, later: int) -> Callable[..., Any]:
        """Return `function` with its stage around it."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def stepped(*args: Any, **kwargs: Any) -> Any:
                return await _Steps(self, function(*args, **kwargs), stage, later)

            return stepped

        spent_ns, entered, left, now = self.spent_ns, self.entered, self.left, clock

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before, at = self.stage, now()
            took = at - self.since
            if took < INTERRUPTED_NS:
                spent_ns[before] += took
            entered[stage] += 1
            left[before] += 1
            self.stage, self.since = stage, at
            try:
                return function(*args, **kwargs)
            finally:
                at = now()
                took = at - self.since
                if took < INTERRUPTED_NS:
                    spent_ns[stage] += took
                self.stage, self.since = before, at

        return timed


class _Steps(Generator[Any, Any, Any]):
    """A coroutine with a stage around each of its steps."""

    __slots__ = ("_later", "_send", "_stage", "_throw", "_watch")

    def __init__(
        self, watch: Stopwatch, inner: Coroutine[Any, Any, Any], stage: int, later: int
    ) -> None:
        self._watch = watch
        self._send = inner.send
        self._throw = inner.throw
        self._stage = stage
        self._later = later

    def __await__(self) -> "_Steps":
        return self

    def send(self, value: Any) -> Any:
        watch, stage = self._watch, self._stage
        before, at = watch.stage, clock()
        took = at - watch.since
        if took < INTERRUPTED_NS:
            watch.spent_ns[before] += took
        watch.entered[stage] += 1
        watch.left[before] += 1
        watch.stage, watch.since = stage, at
        self._stage = self._later
        try:
            return self._send(value)
        finally:
            at = clock()
            took = at - watch.since
            if took < INTERRUPTED_NS:
                watch.spent_ns[stage] += took
            watch.stage, watch.since = before, at

    # Seldom: it need not be quick.
    def throw(self, *error: Any) -> Any:
        return self._watch.wrapped(self._throw, self._stage, self._stage)(*error)


def install() -> Stopwatch:
    """Wrap all seams of this process.

    Raises:
        LookupError: there is a seam no more.
    """
    watch = Stopwatch()
    for seam in SEAMS:
        owner, name = found(seam)
        stage = STAGES.index(seam.stage)
        later = STAGES.index(seam.later or seam.stage)
        setattr(owner, name, watch.wrapped(getattr(owner, name), stage, later))
    return watch


def found(seam: Seam) -> tuple[Any, str]:
    """Return who has the function of a seam, and by which name.

    Raises:
        LookupError: it is not there any more.
    """
    module, _, path = seam.place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for step in owners:
        owner = getattr(owner, step, None)
    if not callable(getattr(owner, name, None)):
        raise LookupError(f"{seam.place} is gone: say in benchmarks/probes.py what has its place")
    return owner, name


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one passage through a probe takes, in nanoseconds."""

    inside: float
    """Counted as the time of the stage that it opens."""
    around: float
    """Counted as the time of the stage around."""


def own_cost(count: int = 20_000, times: int = 15) -> Cost:
    """Measure a passage, with a function and a coroutine in equal shares, as seams have them."""

    def nothing() -> None:
        return None

    async def nothing_async() -> None:
        return None

    async def loop(one: Callable[[], None], other: Callable[[], Coroutine[Any, Any, None]]) -> None:
        for _ in range(count):
            one()
            await other()

    bare, inside, around = [], [], []
    for _ in range(times):
        begin = clock()
        _drive(loop(nothing, nothing_async))
        bare.append(clock() - begin)
        watch = Stopwatch()
        one, other = watch.wrapped(nothing, 2, 2), watch.wrapped(nothing_async, 2, 2)
        _drive(watch.wrapped(loop, 1, 1)(one, other))
        inside.append(watch.spent_ns[2])
        around.append(watch.spent_ns[1])
    # The least of each, for other work on the machine only ever adds.
    passages, least = 2 * count, min(bare)
    return Cost(
        inside=min(inside) / passages,
        around=(min(around) - least) / passages,
    )


def _drive(work: Coroutine[Any, Any, None]) -> None:
    try:
        work.send(None)
    except StopIteration:
        return
