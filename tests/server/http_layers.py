"""The same bytes through h11 and through our own layer, and what comes out of each."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, cast

import h11
import msgspec
from starlette.types import Receive, Scope, Send

from cortex_core.server.checks import read_head
from cortex_core.server.connection import Connection
from cortex_core.server.limits import Limits
from cortex_core.server.stack import protect
from tests.server.apps import START, chunk

LIMITS = Limits(discard_s=0)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Seen(msgspec.Struct, frozen=True):
    """One request as the app saw it."""

    method: str
    target: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    is_complete: bool


class Outcome(msgspec.Struct, frozen=True):
    """What became of a connection on which some bytes were sent, and its end was not."""

    seen: tuple[Seen, ...]
    end: str
    """`open`, `closed` after an answer, or `refused` with a status."""
    said_continue: int

    @classmethod
    def of(cls, records: "Sequence[_Record]", end: str, said_continue: int) -> "Outcome":
        """Describe it; what an app had of a body before it broke depends on when it looked."""
        seen = [record.seen() for record in records]
        if end.startswith("refused") and seen and not seen[-1].is_complete:
            seen[-1] = msgspec.structs.replace(seen[-1], body=b"")
        return cls(tuple(seen), end, said_continue)


class _Record:
    """A request that is still coming in."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.body = b""
        self.is_complete = False

    def seen(self) -> Seen:
        scope = self.scope
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        return Seen(
            scope["method"],
            scope["raw_path"] + query,
            scope["http_version"],
            tuple(scope["headers"]),
            self.body,
            self.is_complete,
        )


def through_h11(data: bytes) -> Outcome:
    """Read `data` as Hypercorn did: h11, and what the guard refuses of what h11 lets pass."""
    return _Reference(data).outcome()


class _Reference:
    def __init__(self, data: bytes) -> None:
        self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self.connection.receive_data(data)
        self.records: list[_Record] = []
        self.continues = 0
        self.end: str | None = None

    def outcome(self) -> Outcome:
        while self.end is None:
            if self.connection.they_are_waiting_for_100_continue:
                self.connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                self.continues += 1
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                self.end = f"refused {error.error_status_hint}"
                break
            self._take(event)
        return Outcome.of(self.records, self.end or "open", self.continues)

    def _take(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self.records[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            self.records[-1].is_complete = True
            self._answer()
        else:
            self.end = "open"

    def _begin(self, event: h11.Request) -> None:
        path, _, query = event.target.partition(b"?")
        scope: Scope = {
            # Hypercorn made them large.
            "method": event.method.decode().upper(),
            "raw_path": path,
            "query_string": query,
            "http_version": event.http_version.decode(),
            "headers": [(bytes(name), bytes(value)) for name, value in event.headers],
        }
        error = read_head(scope, LIMITS).error
        if error is None:
            self.records.append(_Record(scope))
        else:
            self.end = f"refused {error.status}"

    def _answer(self) -> None:
        head = h11.Response(status_code=200, headers=[("content-length", "0")])
        self.connection.send(head)
        self.connection.send(h11.EndOfMessage())
        try:
            self.connection.start_next_cycle()
        except h11.LocalProtocolError:
            self.end = "closed"


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False
        self.is_reading = True

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else None

    def setsockopt(self, *_: object) -> None:
        """Be a socket."""

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class _App:
    """Reads each request to its end and answers it."""

    def __init__(self) -> None:
        self.records: list[_Record] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = _Record(scope)
        self.records.append(record)
        is_more = True
        while is_more:
            message = await receive()
            record.body += message["body"]
            is_more = message["more_body"]
        record.is_complete = True
        await send({**START, "headers": [(b"content-length", b"0")]})
        await send(chunk(b"", more=False))


async def through_ours(pieces: Sequence[bytes]) -> Outcome:
    """Read `pieces`, one packet each, as the daemons do."""
    app, wire = _App(), Wire()
    async with asyncio.TaskGroup() as tasks:
        connection = Connection(
            protect(app, limits=LIMITS), {}, keep_alive_s=60, flush_timeout_s=60
        )
        tasks.create_task(connection.serve())
        connection.connection_made(cast(asyncio.Transport, wire))
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        await _settled(app, wire)
        outcome = _outcome(app, wire)
        connection.connection_lost(None)
    return outcome


async def _settled(app: _App, wire: Wire) -> None:
    """Return once nothing has changed for some turns of the loop."""
    before, still = None, 0
    while still < 6:
        now = (len(wire.written), wire.is_closed, len(app.records))
        still = still + 1 if now == before else 0
        before = now
        await asyncio.sleep(0)


def _outcome(app: _App, wire: Wire) -> Outcome:
    statuses = [int(status) for status in _STATUS.findall(wire.written)]
    last = statuses[-1] if statuses else 0
    end = "open"
    if wire.is_closed:
        end = "closed" if last == 200 else f"refused {last}"
    return Outcome.of(app.records, end, statuses.count(100))
