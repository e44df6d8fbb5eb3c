"""The latest decisions of this gateway, kept so that somebody can ask why."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from heapq import merge
from typing import TypeVar

import msgspec

from cortex_core.errors import RequestError
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.placement.steps import Hold, Step
from cortex_core.routing.record import (
    DecisionKind,
    Record,
    kind_of,
    record_of_command,
    record_of_request,
    record_of_step,
)
from cortex_core.routing.route import Decision, Serve
from cortex_core.server.clock import Clock

T = TypeVar("T")

KEPT_REQUESTS = 4096
KEPT_STEPS = 1024
"""Kept apart, so that many requests do not push out what was loaded an hour ago."""


class Journal:
    """Two bounded rings of records: of requests, and of what was done with models.

    Args:
        clock: epoch seconds of records, and how long things took.
        count: told the kind of every decision.
    """

    def __init__(self, clock: Clock, count: Callable[[DecisionKind], None]) -> None:
        self._clock = clock
        self._count = count
        self._requests: deque[Record | partial[Record]] = deque(maxlen=KEPT_REQUESTS)
        self._steps: deque[Record] = deque(maxlen=KEPT_STEPS)
        self._holds: dict[ModelId, str] = {}
        self._elsewhere: deque[tuple[int, Callable[[], Iterable[Record]]]] = deque()
        self._elsewhere_lines = 0
        self.gather: Callable[[], Awaitable[None]] = _nothing
        """Has other processes of this gateway tell what they have decided."""

    def request(self, decision: Decision, model: ModelId, request_id: str) -> None:
        """Note what was decided about a request."""
        record = partial(record_of_request, decision, model, request_id, self._clock.wall())
        # Nearly all are of this kind, and hardly one is ever looked at. Others may carry an error,
        # and with it whatever raised it.
        self._requests.append(record if isinstance(decision, Serve) else record())
        self._count(kind_of(decision))

    def take(self, lines: int, read: Callable[[], Iterable[Record]]) -> None:
        """Take so many records of requests from another process, which has counted them.

        Args:
            lines: how many there are.
            read: returns them, the newest first, when somebody asks.
        """
        self._elsewhere.append((lines, read))
        self._elsewhere_lines += lines
        while self._elsewhere_lines - self._elsewhere[0][0] >= KEPT_REQUESTS:
            self._elsewhere_lines -= self._elsewhere.popleft()[0]

    def step(self, step: Step, *, by_operator: bool = False) -> None:
        """Note a step of a plan; a `Hold` that says what the last one said is none."""
        record = record_of_step(step, self._clock.wall(), by_operator=by_operator)
        if isinstance(step, Hold):
            if self._holds.get(step.model) == step.why:
                return
            self._holds[step.model] = step.why
        else:
            self._holds.pop(record.model, None)
        self._note(self._steps, record)

    async def follow(
        self, step: Step, work: Awaitable[RequestError | None], *, by_operator: bool = False
    ) -> RequestError | None:
        """Do the work of a step that is noted, and note what it cost and came to."""

        def record() -> Record:
            return record_of_step(step, self._clock.wall(), by_operator=by_operator)

        return await self._see_through(record, work)

    async def obey(self, kind: DecisionKind, target: ReplicaId, work: Awaitable[None]) -> None:
        """Do what an operator asked for; note that, and what it cost and came to.

        Raises:
            RequestError: as `work` does.
        """

        def record() -> Record:
            return record_of_command(kind, target, self._clock.wall())

        self._note(self._steps, record())
        await self._see_through(record, work)

    def find(
        self, *, request_id: str | None = None, model: ModelId | None = None, limit: int = 100
    ) -> tuple[Record, ...]:
        """Return the latest records, the newest first.

        Args:
            request_id: of one request; that of another is left out, and all steps.
            model: of one model.
            limit: at most so many.
        """
        found: list[Record] = []
        for record in self._newest():
            if request_id is not None and record.request_id != request_id:
                continue
            if model is not None and record.model != model and model not in record.victims:
                continue
            found.append(record)
            if len(found) == limit:
                break
        return tuple(found)

    async def _see_through(self, record: Callable[[], Record], work: Awaitable[T]) -> T:
        """Return what `work` returns; a failure is noted whether it is returned or raised."""
        began = self._clock.now()
        try:
            result = await work
        except RequestError as error:
            self._ended(record(), began, error)
            raise
        self._ended(record(), began, result if isinstance(result, RequestError) else None)
        return result

    def _ended(self, record: Record, began: float, error: RequestError | None) -> None:
        took_s, why = self._clock.now() - began, None if error is None else error.message
        # Counted when it was decided.
        self._steps.append(msgspec.structs.replace(record, took_s=took_s, error=why))

    def _note(self, ring: deque[Record], record: Record) -> None:
        ring.append(record)
        self._count(record.kind)

    def _newest(self) -> Iterator[Record]:
        requests = (one() if isinstance(one, partial) else one for one in reversed(self._requests))
        # What came from several processes in turn overlaps.
        elsewhere = sorted(
            (one for _, read in reversed(self._elsewhere) for one in read()), key=_age
        )
        return merge(requests, elsewhere, reversed(self._steps), key=_age)


def _age(record: Record) -> float:
    return -record.at


async def _nothing() -> None:
    pass
