"""The event stream: a numbered ring of what changed, and everybody who listens."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

import msgspec

from cortex_core.codec import encode_json
from cortex_core.ids import BootId
from cortex_core.server.clock import Clock
from cortex_core.sse import encode_comment, encode_event
from cortex_core.wire.neuron import SNAPSHOT_EVENT, Snapshot
from neuron.supervisor.waiting import within

RING_EVENTS = 256
"""Events that a listener may miss and still go on from where it was."""

QUEUE_EVENTS = 128
"""Events that wait for a slow listener; one more, and it gets a snapshot instead."""


class _Listener:
    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.needs_snapshot = False
        self.changed = asyncio.Event()


class EventFeed:
    """Number events, keep the last ones, and hand them to every listener.

    Args:
        boot_id: first half of every event id.
        clock: times the heartbeats.
        heartbeat_s: silence after which a comment is sent.
        snapshot: returns all that is known now.
    """

    def __init__(
        self, boot_id: BootId, clock: Clock, heartbeat_s: float, snapshot: Callable[[], Snapshot]
    ) -> None:
        self._boot_id = boot_id
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._snapshot = snapshot
        self._ring: deque[tuple[int, bytes]] = deque(maxlen=RING_EVENTS)
        self._listeners: set[_Listener] = set()
        self._is_closed = False
        self.revision = 0

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    def publish(self, name: str, payload: msgspec.Struct) -> None:
        """Send one event to everybody."""
        self.revision += 1
        event = encode_event(encode_json(payload), event=name, event_id=self._id())
        self._ring.append((self.revision, event))
        for listener in self._listeners:
            if len(listener.events) >= QUEUE_EVENTS:
                listener.events.clear()
                listener.needs_snapshot = True
            if not listener.needs_snapshot:
                listener.events.append(event)
            listener.changed.set()

    async def listen(self, last_id: str | None) -> AsyncGenerator[bytes, None]:
        """Yield events for ever, ready for the wire; ends when the feed is closed.

        Args:
            last_id: `Last-Event-ID` of the listener; events after it come first when they are
                still known, otherwise a snapshot does.
        """
        listener = _Listener()
        missed = self._since(last_id)
        if missed is None:
            listener.needs_snapshot = True
        else:
            listener.events.extend(missed)
        self._listeners.add(listener)
        try:
            while True:
                if listener.needs_snapshot:
                    listener.needs_snapshot = False
                    snapshot = encode_json(self._snapshot())
                    yield encode_event(snapshot, event=SNAPSHOT_EVENT, event_id=self._id())
                elif listener.events:
                    yield listener.events.popleft()
                elif self._is_closed:
                    return
                else:
                    listener.changed.clear()
                    if not await within(self._clock, self._heartbeat_s, listener.changed.wait()):
                        yield encode_comment("alive")
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """End every stream after what it still has to say."""
        self._is_closed = True
        for listener in self._listeners:
            listener.changed.set()

    def _id(self) -> str:
        return f"{self._boot_id}-{self.revision}"

    def _since(self, last_id: str | None) -> list[bytes] | None:
        """Return the events after `last_id`, or `None` when they are not all known."""
        boot_id, _, number = (last_id or "").rpartition("-")
        if boot_id != self._boot_id or not number.isdecimal():
            return None
        revision = int(number)
        oldest = self._ring[0][0] if self._ring else self.revision + 1
        if revision > self.revision or revision < oldest - 1:
            return None
        return [event for at, event in self._ring if at > revision]
