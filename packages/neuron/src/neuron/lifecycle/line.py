"""Who is with a model's engine, who waits for a place there, and who is refused.

The order in which waiters get their places is the gateway's own (`cortex_core.routing.queue`): it
is fair between callers, whichever gateway sends them.
"""

import math

import msgspec

from cortex_core.errors import OverloadedError
from cortex_core.fleet.rates import Rate, counted, per_second
from cortex_core.harness import Bounds, EngineLoad
from cortex_core.routing.queue import FairQueue, Ticket, retry_after_s
from neuron.settings import AdmissionSettings

DRAIN_MEMORY_S = 30.0
"""How far back the rate reaches at which requests end."""

KV_FULL = 0.95
"""Share of the KV cache from which on an engine that has requests waiting finds no room for them.
vLLM keeps about so much for the requests that run already, which it would have to preempt."""


MIN_BYTES_PER_TOKEN = 2.0
"""Hardly any text has fewer; English and code have four, Chinese three. A prompt that has is
refused all the same, by the engine, when it has waited for its turn."""

_MEDIA = (b'"image', b'"video', b'"input_audio', b'"audio')


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds as they hold for one model."""

    max_in_flight: int | None = None
    """`None` bounds nothing: the engine does not say how many it runs together."""
    max_queue: int
    max_wait_s: float
    max_share: float

    @property
    def places_each(self) -> float:
        """How many places one caller has before others go first; at least one."""
        if self.max_in_flight is None:
            return math.inf
        return max(1, math.floor(self.max_in_flight * self.max_share))

    @property
    def queue_each(self) -> int:
        """How many requests of one caller wait; at least one, if any do."""
        return min(self.max_queue, max(1, math.ceil(self.max_queue * self.max_share)))


def limits_of(settings: AdmissionSettings, own: Bounds, engine: int | None) -> Limits:
    """Return what holds for a model.

    Args:
        settings: the node's.
        own: what was said when it was loaded.
        engine: requests that its engine runs together; `None` when it does not say.
    """

    def first(mine: int | None, theirs: int | None) -> int | None:
        return theirs if mine is None else mine

    return Limits(
        max_in_flight=first(first(own.max_in_flight, settings.max_in_flight), engine),
        max_queue=settings.max_queue if own.max_queue is None else own.max_queue,
        max_wait_s=settings.max_wait_s if own.max_wait_s is None else own.max_wait_s,
        max_share=settings.max_share if own.max_share is None else own.max_share,
    )


def is_to_be_read(body: bytes, context: int | None) -> bool:
    """Return whether a request that must wait is read first: its prompt may never fit.

    One with media is not: what they come to takes as long to find out as to answer.

    Args:
        body: of the request.
        context: of the model, in tokens; `None` is not known.
    """
    if context is None or len(body) < context * MIN_BYTES_PER_TOKEN:
        return False
    return not any(name in body for name in _MEDIA)


def is_pressed(load: EngineLoad) -> bool:
    """Return whether one more request would only wait inside the engine, for want of KV cache."""
    return load.waiting > 0 and (load.kv_cache_usage or 0.0) >= KV_FULL


class Line:
    """The requests of one model. Used from one thread; does no IO and knows no time.

    Every request that `enter` took is in exactly one of two places, with the engine or in the
    queue, until `leave`.
    """

    def __init__(self) -> None:
        self._queue = FairQueue(max_depth=0, max_per_caller=0)
        self._placed: dict[str, str] = {}
        """Whose requests are with the engine, by ticket."""
        self._held: dict[str, int] = {}
        """How many places each caller has."""
        self._ended: Rate | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def placed(self) -> int:
        """Requests with the engine."""
        return len(self._placed)

    def places_of(self, caller: str) -> int:
        """Return how many requests of `caller` are with the engine."""
        return self._held.get(caller, 0)

    def would_wait(self, limits: Limits, load: EngineLoad) -> bool:
        """Return whether a request that comes now would not go straight to the engine."""
        return bool(self._queue) or not self._has_place(limits, load)

    def enter(self, ticket: Ticket, limits: Limits, load: EngineLoad, now: float) -> bool:
        """Take a request in.

        Returns:
            Whether it goes straight to the engine; else it waits for `next`.

        Raises:
            OverloadedError: the queue is full, or this caller's part of it; with the time after
                which there may be a place.
        """
        if not self.would_wait(limits, load):
            self._place(ticket)
            return True
        self._queue.bound(max_depth=limits.max_queue, max_per_caller=limits.queue_each)
        try:
            self._queue.enter(ticket)
        except OverloadedError as error:
            message = error.message if limits.max_queue else "every place with it is taken"
            raise OverloadedError(message, retry_after_s=self.retry_after_s(now)) from None
        return False

    def next(self, limits: Limits, load: EngineLoad) -> Ticket | None:
        """Give the next place to who is next; `None` when there is no place, or nobody waits."""
        if not self._has_place(limits, load):
            return None
        ticket = self._queue.next(lambda caller: self.places_of(caller) >= limits.places_each)
        if ticket is not None:
            self._place(ticket)
        return ticket

    def drop(self, ticket_id: str) -> None:
        """Forget a request that waits."""
        self._queue.leave(ticket_id)

    def leave(self, ticket_id: str, now: float) -> None:
        """Forget a request, wherever it is; it need not be here."""
        self.drop(ticket_id)
        caller = self._placed.pop(ticket_id, None)
        if caller is None:
            return
        self._ended = counted(self._ended, now, memory_s=DRAIN_MEMORY_S)
        left = self._held[caller] - 1
        if left:
            self._held[caller] = left
        else:
            del self._held[caller]

    def retry_after_s(self, now: float) -> float:
        """Return when who is refused now should come back, from the rate at which requests end."""
        rate = self._ended
        drain = 0.0 if rate is None else per_second(rate, now, memory_s=DRAIN_MEMORY_S)
        return retry_after_s(self.waiting + 1, drain)

    def _has_place(self, limits: Limits, load: EngineLoad) -> bool:
        # With nobody there is nobody whose end could be waited for.
        if not self._placed:
            return True
        is_full = limits.max_in_flight is not None and self.placed >= limits.max_in_flight
        return not is_full and not is_pressed(load)

    def _place(self, ticket: Ticket) -> None:
        self._placed[ticket.id] = ticket.caller
        self._held[ticket.caller] = self.places_of(ticket.caller) + 1
