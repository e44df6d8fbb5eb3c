"""What a worker has to tell of its requests: gathered, and said a few times a second.

Nobody waits for any of it, so that a request costs the control process next to nothing: requests
come as a number, and lines of the journal in bytes that are read when somebody asks for them.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import msgspec

from cortex_core.ids import ModelId
from cortex_core.routing.record import Record, record_of_request
from cortex_core.routing.route import Serve
from cortex_gateway.control.journal import KEPT_REQUESTS
from cortex_gateway.workers import wire

NOTES_S = 0.05
"""How long what is gathered waits for more."""


class Lines(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Lines of the journal: what a record is made of, where that is soon forgotten."""

    served: list[tuple[float, ModelId, str, Serve]]
    """Epoch seconds, model, id of the request, and where it went."""
    others: list[Record]


class Notes:
    """What is gathered.

    Args:
        say: says something to the control process.
    """

    def __init__(self, say: Callable[[wire.Noted], None]) -> None:
        self._say = say
        self._encoder = msgspec.msgpack.Encoder()
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def count(self, model: ModelId, now: float) -> None:
        """Note one request for a model."""
        self._counts[model] += 1
        self._counted_at = now
        self._wake()

    def took(self, model: ModelId, request_s: float) -> None:
        """Note how long a request for a model was with a replica."""
        self._took[model].append(request_s)
        self._wake()

    def served(self, at: float, model: ModelId, request_id: str, decision: Serve) -> None:
        """Note where a request goes."""
        self._served.append((at, model, request_id, decision))
        self._wake()

    def record(self, record: Record) -> None:
        """Note what else was decided about a request."""
        self._others.append(record)
        self._wake()

    def flush(self) -> None:
        """Say what there is."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        # No more than is kept: a request that waits may have many.
        served, others = self._served[-KEPT_REQUESTS:], self._others[-KEPT_REQUESTS:]
        lines = len(served) + len(others)
        self._say(
            wire.Noted(
                counts=self._counts,
                counted_at=self._counted_at,
                took=self._took,
                lines=lines,
                journal=self._encoder.encode(Lines(served=served, others=others)) if lines else b"",
            )
        )
        self._begin()

    def _begin(self) -> None:
        self._counts: defaultdict[ModelId, int] = defaultdict(int)
        self._counted_at = 0.0
        self._took: defaultdict[ModelId, list[float]] = defaultdict(list)
        self._served: list[tuple[float, ModelId, str, Serve]] = []
        self._others: list[Record] = []

    def _wake(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTES_S, self.flush)


def records_of(journal: bytes) -> list[Record]:
    """Return the records of what was said, the newest first."""
    lines = msgspec.msgpack.decode(journal, type=Lines)
    records = [
        *lines.others,
        *(
            record_of_request(decision, model, request_id, at)
            for at, model, request_id, decision in lines.served
        ),
    ]
    # Of the same moment, the later one comes first, and nobody waits who was sent somewhere.
    records.reverse()
    records.sort(key=lambda one: one.at, reverse=True)
    return records
