"""The latest decisions of this gateway, kept so that somebody can ask why."""

from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from cortex_core.ids import ModelId
from cortex_core.placement.steps import Hold, Step
from cortex_core.routing.record import DecisionKind, Record, record_of_request, record_of_step
from cortex_core.routing.route import Decision

KEPT_REQUESTS = 4096
KEPT_STEPS = 1024
"""Kept apart, so that many requests do not push out what was loaded an hour ago."""


class Journal:
    """Two bounded rings of records: of requests, and of what was done with models.

    Args:
        wall: epoch seconds.
        count: told the kind of every decision.
    """

    def __init__(self, wall: Callable[[], float], count: Callable[[DecisionKind], None]) -> None:
        self._wall = wall
        self._count = count
        self._requests: deque[Record] = deque(maxlen=KEPT_REQUESTS)
        self._steps: deque[Record] = deque(maxlen=KEPT_STEPS)
        self._holds: dict[ModelId, str] = {}

    def request(self, decision: Decision, model: ModelId, request_id: str) -> None:
        """Note what was decided about a request."""
        self._note(self._requests, record_of_request(decision, model, request_id, self._wall()))

    def step(self, step: Step) -> None:
        """Note a step of a plan; a `Hold` that says what the last one said is none."""
        record = record_of_step(step, self._wall())
        if isinstance(step, Hold):
            if self._holds.get(step.model) == step.why:
                return
            self._holds[step.model] = step.why
        else:
            self._holds.pop(record.model, None)
        self._note(self._steps, record)

    def ended(self, step: Step, took_s: float, error: str | None) -> None:
        """Note how a step ended, and what it cost."""
        record = record_of_step(step, self._wall())
        # Counted when it was decided.
        self._steps.append(msgspec.structs.replace(record, took_s=took_s, error=error))

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

    def _note(self, ring: deque[Record], record: Record) -> None:
        ring.append(record)
        self._count(record.kind)

    def _newest(self) -> Iterator[Record]:
        rings = [reversed(self._requests), reversed(self._steps)]
        heads = [next(ring, None) for ring in rings]
        while any(head is not None for head in heads):
            at = [-1.0 if head is None else head.at for head in heads]
            newest = at.index(max(at))
            head = heads[newest]
            assert head is not None
            yield head
            heads[newest] = next(rings[newest], None)
