"""Whose request is next: a fair queue for one model, and how fast a fresh replica fills.

The queue is deficit round robin (Shreedhar and Varghese, 1995): callers take turns, each turn adds
a quantum of work to what a caller may take, and a request is let through when its cost is covered.
A caller with a thousand requests therefore holds up another one by one turn, not by a thousand.
"""

import enum
from collections import deque
from collections.abc import Callable

import msgspec

from cortex_core.errors import InvalidRequestError, OverloadedError

QUANTUM = 2048.0
"""Work that a caller may take with each of its turns, in tokens."""

MAX_COST = 16 * QUANTUM
"""What one request counts for at most, so that a turn comes round after a bounded time."""

ANSWER_TOKENS = 512.0
"""What an answer is taken to cost, since nobody knows how long it becomes."""

BYTES_PER_TOKEN = 4.0
"""English text and JSON have about so many bytes to a token."""

FIRST_RELEASE = 8
"""Requests that a replica is given at once when it has just been loaded or woken."""

DOUBLING_S = 0.5
"""Seconds in which that number doubles."""

MIN_RETRY_AFTER_S = 1.0

MAX_RETRY_AFTER_S = 60.0
"""openai-py does not retry at all when it is told to wait for more than 120 s."""


class Priority(enum.StrEnum):
    """What a caller says in `x-cortex-priority`."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    @property
    def weight(self) -> float:
        """Share of the turns, relative to `NORMAL`; nobody's is nothing, so nobody starves."""
        return _WEIGHTS[self]


_WEIGHTS = {Priority.LOW: 0.25, Priority.NORMAL: 1.0, Priority.HIGH: 4.0}


def read_priority(text: str | None) -> Priority:
    """Return the priority that a header says; none is `NORMAL`.

    Raises:
        InvalidRequestError: it says something else than one of the three.
    """
    if text is None:
        return Priority.NORMAL
    name = text.strip().lower()
    if name not in Priority._value2member_map_:
        raise InvalidRequestError(
            f"{name[:20]!r} is no priority; use low, normal or high", param="x-cortex-priority"
        )
    return Priority(name)


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """One request that waits."""

    id: str
    """Nobody else's in this queue."""
    caller: str
    """Whose turn it counts against."""
    priority: Priority = Priority.NORMAL
    cost: float = ANSWER_TOKENS
    """Work that it means, in tokens; see `cost_of`."""
    entered_at: float = 0.0
    """Monotonic seconds."""


def cost_of(body_bytes: int) -> float:
    """Return the work that a request means, in tokens, as far as its size tells."""
    return min(body_bytes / BYTES_PER_TOKEN + ANSWER_TOKENS, MAX_COST)


class _Flow:
    """The requests of one caller at one priority, in the order in which they came."""

    def __init__(self, priority: Priority) -> None:
        self.tickets: deque[Ticket] = deque()
        self.gain = QUANTUM * priority.weight
        self.deficit = 0.0
        self.is_in_turn = False


_Key = tuple[str, Priority]


class FairQueue:
    """Who waits for one model. Used from one thread; does no IO and knows no time.

    Args:
        max_depth: requests that may wait.
        max_per_caller: requests of one caller that may wait.
    """

    def __init__(self, *, max_depth: int, max_per_caller: int) -> None:
        self._max_depth = max_depth
        self._max_per_caller = max_per_caller
        self._flows: dict[_Key, _Flow] = {}
        self._turns: deque[_Key] = deque()
        """Callers that wait, whoever is in turn first; each at most once."""
        self._waiting: dict[str, Ticket] = {}
        self._per_caller: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def bound(self, *, max_depth: int, max_per_caller: int) -> None:
        """Put other bounds in force; who waits already stays."""
        self._max_depth = max_depth
        self._max_per_caller = max_per_caller

    def of_caller(self, caller: str) -> int:
        """Return how many requests of `caller` wait."""
        return self._per_caller.get(caller, 0)

    def enter(self, ticket: Ticket) -> None:
        """Add a request at the end of its caller's line.

        Raises:
            OverloadedError: the queue is full, or this caller's part of it; without advice on
                when to come back, which the rate at which it empties tells (`retry_after_s`).
        """
        if len(self._waiting) >= self._max_depth:
            raise OverloadedError(f"{len(self._waiting)} requests wait for this model already")
        mine = self.of_caller(ticket.caller)
        if mine >= self._max_per_caller:
            raise OverloadedError(f"{mine} of your requests wait for this model already")
        key = (ticket.caller, ticket.priority)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(ticket.priority)
            self._turns.append(key)
        flow.tickets.append(ticket)
        self._waiting[ticket.id] = ticket
        self._per_caller[ticket.caller] = mine + 1

    def leave(self, ticket_id: str) -> bool:
        """Forget a request that waits; whether it did."""
        ticket = self._waiting.get(ticket_id)
        if ticket is None:
            return False
        key = (ticket.caller, ticket.priority)
        self._flows[key].tickets.remove(ticket)
        self._forget(ticket)
        if not self._flows[key].tickets:
            self._turns.remove(key)
            del self._flows[key]
        return True

    def next(self, has_enough: Callable[[str], bool] = lambda caller: False) -> Ticket | None:
        """Take out the request that is next; `None` when nobody waits.

        Args:
            has_enough: whether a caller is passed over for as long as somebody else waits of whom
                that does not hold.
        """
        late = {key for key in self._turns if has_enough(key[0])}
        if len(late) == len(self._turns):
            late.clear()
        while self._turns:
            key = self._turns[0]
            flow = self._flows[key]
            if key in late:
                self._turns.rotate(-1)
                continue
            if not flow.is_in_turn:
                flow.is_in_turn = True
                flow.deficit += flow.gain
            if min(flow.tickets[0].cost, MAX_COST) > flow.deficit:
                flow.is_in_turn = False
                self._turns.rotate(-1)
                continue
            ticket = flow.tickets.popleft()
            flow.deficit -= min(ticket.cost, MAX_COST)
            self._forget(ticket)
            if not flow.tickets:
                # What a caller did not use is gone with its last request, as in the original:
                # nobody saves up for a burst.
                self._turns.popleft()
                del self._flows[key]
            return ticket
        return None

    def _forget(self, ticket: Ticket) -> None:
        del self._waiting[ticket.id]
        left = self._per_caller[ticket.caller] - 1
        if left:
            self._per_caller[ticket.caller] = left
        else:
            del self._per_caller[ticket.caller]


def ceiling(cap: int, age_s: float) -> int:
    """Return how many requests a replica is given at once.

    Args:
        cap: how many it is given in the long run.
        age_s: seconds since it was loaded or woken. What waited for it is let in at a ramp: the
            first prompts fill caches that the later ones find full, and a replica that breaks
            under its first load breaks few requests.
    """
    # The exponent is bounded so that an old replica cannot overflow a float.
    grown = FIRST_RELEASE * 2.0 ** min(max(age_s, 0.0) / DOUBLING_S, 20.0)
    return min(cap, int(grown))


def retry_after_s(waiting: int, per_second: float) -> float:
    """Return when a caller that was turned away should come back.

    Args:
        waiting: requests in the queue.
        per_second: at which rate it empties; 0 when nothing has left it so far.
    """
    if per_second <= 0:
        return MAX_RETRY_AFTER_S if waiting else MIN_RETRY_AFTER_S
    return min(max(waiting / per_second, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
