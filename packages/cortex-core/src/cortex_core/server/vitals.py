"""How a daemon fares: its process, its requests, and how late its event loop is.

A thread looks on while the loop beats. When one callback holds the loop for too long, the thread
reads from the loop's stack who it is, and says so in the log once the loop is free again. That
costs ten turns a second, where asyncio's debug mode would time every callback.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from cortex_core.server.connection import Connection
from cortex_core.server.drain import Drain
from cortex_core.server.serve import Listener
from cortex_core.server.watchdog import Silence

BEAT_S = 0.1
"""Between two turns of the loop that are timed, and between two looks of the thread."""

STALL_S = 0.25
"""How long one callback may hold the loop before it is named."""

QUIET_S = 10.0
"""Between two log lines about callbacks; what is left out is counted in the next."""

_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STACK_FRAMES = 12
_LOOP_MODULES = frozenset(
    ("asyncio.base_events", "asyncio.events", "asyncio.runners", "asyncio.unix_events", "selectors")
)

logger = logging.getLogger(__name__)


class Vitals:
    """The series of one process, and the watch over its loop.

    Args:
        registry: gets the series: `process_*` as in every Prometheus client, the loop's lag, and
            what is open.
        prefix: of the other series' names: `cortex` or `neuron`.
        drain: counts the requests. Connections are counted of the listeners given to `of`.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str, drain: Drain) -> None:
        ProcessCollector(registry=registry)
        self._lag = Histogram(
            f"{prefix}_event_loop_lag_seconds",
            "By how much the event loop was late, looked at ten times a second.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self._stalls = Counter(
            f"{prefix}_event_loop_stalls_total",
            "Callbacks that held the event loop for too long, logged or not.",
            registry=registry,
        )
        requests = Gauge(
            f"{prefix}_open_requests",
            "HTTP requests that have begun and not ended.",
            registry=registry,
        )
        requests.set_function(lambda: float(drain.in_flight))
        self._listeners: Sequence[Listener] = ()
        connections = Gauge(
            f"{prefix}_open_connections", "Connections of callers.", registry=registry
        )
        connections.set_function(lambda: float(len(self._connections())))
        unsent = Gauge(
            f"{prefix}_unsent_bytes",
            "Bytes of answers that callers have yet to take.",
            registry=registry,
        )
        unsent.set_function(lambda: float(sum(one.unsent_bytes for one in self._connections())))
        bodies = Gauge(
            f"{prefix}_request_body_bytes",
            "Bytes that have come of the bodies of requests that have not ended.",
            registry=registry,
        )
        bodies.set_function(lambda: float(sum(one.body_bytes for one in self._connections())))

    def of(self, listeners: Sequence[Listener]) -> Sequence[Listener]:
        """Show the connections of `listeners`, and return them."""
        self._listeners = listeners
        return listeners

    def _connections(self) -> list[Connection]:
        # Copied in one step, for this runs beside the loop.
        return [one for listener in self._listeners for one in tuple(listener.connections)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch the running event loop, which this thread runs, while the context is open."""
        beats = Beats(self._lag)
        over = threading.Event()
        thread = threading.Thread(
            target=_watch,
            args=(beats, self._stalls, threading.get_ident(), over),
            daemon=True,
            name="loop-vitals",
        )
        beats.start()
        thread.start()
        try:
            yield
        finally:
            over.set()
            beats.stop()


class Beats:
    """Turns of the running loop, one in `BEAT_S`.

    Args:
        lag: gets, for each, by how many seconds it was late. One that comes late by several
            periods counts for each of them: a long stall must not look like one bad moment.
    """

    def __init__(self, lag: Histogram) -> None:
        self.count = 0
        self._lag = lag
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; `stop` ends it."""
        self._due = self._loop.time() + BEAT_S
        self._next = self._loop.call_at(self._due, self._beat)

    def stop(self) -> None:
        """End it."""
        if self._next is not None:
            self._next.cancel()

    def _beat(self) -> None:
        self.count += 1
        for lag_s in lags_of(self._loop.time() - self._due):
            self._lag.observe(lag_s)
        self.start()


def lags_of(late_s: float) -> Iterator[float]:
    """Give what a look in every `BEAT_S` would have seen of a loop that is `late_s` late."""
    yield max(0.0, late_s)
    while (late_s := late_s - BEAT_S) > 0:
        yield late_s


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the loop's thread is."""

    function: str
    """Innermost function."""
    at: str
    """File and line there."""
    callback: str
    """Outermost function: what the loop called."""
    stack: str
    """Functions with their lines from the innermost on, as far as fits into a log line."""


def place_of(frame: FrameType | None) -> Place | None:
    """Return the place of a thread whose innermost frame is `frame`; `None` if the loop waits."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_globals.get("__name__") not in _LOOP_MODULES:
        frames.append(frame)
        frame = frame.f_back
    if not frames:
        return None
    here = frames[0]
    shown = [f"{one.f_code.co_qualname}:{one.f_lineno}" for one in frames[:_STACK_FRAMES]]
    return Place(
        function=here.f_code.co_qualname,
        at=f"{here.f_code.co_filename}:{here.f_lineno}",
        callback=frames[-1].f_code.co_qualname,
        stack=" < ".join(shown),
    )


class Stalls:
    """Tells from looks at the loop which callbacks held it, and which of them to log."""

    def __init__(self, now_s: float) -> None:
        self.count = 0
        """Stalls that are over, logged or not."""
        self._silence = Silence(BEAT_S, now_s)
        self._place: Place | None = None
        self._still_s = 0.0
        self._said_s = now_s - QUIET_S
        self._unsaid = 0

    def look(self, now_s: float, beats: int, frame: FrameType | None) -> "Stall | None":
        """Return a stall that is over and to be logged.

        Args:
            now_s: monotonic seconds.
            beats: of the loop, since the start.
            frame: innermost one of the loop's thread.
        """
        still_s = self._silence.look(now_s, beats)
        if still_s >= STALL_S + BEAT_S and self._place is None:
            self._place = place_of(frame)
        if still_s > 0:
            self._still_s = still_s
            return None
        place, self._place = self._place, None
        if place is None:
            return None
        self.count += 1
        if now_s - self._said_s < QUIET_S:
            self._unsaid += 1
            return None
        stall = Stall(place=place, held_s=self._still_s, unsaid=self._unsaid)
        self._said_s, self._unsaid = now_s, 0
        return stall


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """One callback that held the loop."""

    place: Place
    held_s: float
    """For how long about, in seconds."""
    unsaid: int
    """Others before it that were not told."""


def _watch(beats: Beats, counter: Counter, thread: int, over: threading.Event) -> None:
    stalls = Stalls(time.monotonic())
    while not over.wait(BEAT_S):
        before = stalls.count
        frame = sys._current_frames().get(thread)
        stall = stalls.look(time.monotonic(), beats.count, frame)
        # The frame would keep alive what the callback works on.
        del frame
        counter.inc(stalls.count - before)
        if stall is not None:
            place = stall.place
            logger.warning(
                "the event loop was held for %.1f s by %s",
                stall.held_s,
                place.function,
                extra={
                    "at": place.at,
                    "callback": place.callback,
                    "stack": place.stack,
                    "others": stall.unsaid,
                },
            )
