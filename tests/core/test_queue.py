"""The fair queue: nobody is starved, nothing is lost, and every count comes down."""

from collections import Counter

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError, OverloadedError
from cortex_core.routing.queue import (
    ANSWER_TOKENS,
    FIRST_RELEASE,
    MAX_COST,
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    QUANTUM,
    FairQueue,
    Priority,
    Ticket,
    ceiling,
    cost_of,
    read_priority,
    retry_after_s,
)


def queue(*, max_depth: int = 10_000, max_per_caller: int = 10_000) -> FairQueue:
    return FairQueue(max_depth=max_depth, max_per_caller=max_per_caller)


def fill(
    line: FairQueue,
    caller: str,
    count: int,
    *,
    priority: Priority = Priority.NORMAL,
    cost: float = ANSWER_TOKENS,
) -> None:
    for number in range(count):
        line.enter(Ticket(id=f"{caller}-{number}", caller=caller, priority=priority, cost=cost))


def drained(line: FairQueue) -> list[Ticket]:
    taken = []
    while (ticket := line.next()) is not None:
        taken.append(ticket)
    return taken


def test_a_caller_with_one_request_does_not_wait_for_a_thousand() -> None:
    line = queue()
    fill(line, "runaway", 1000)
    line.enter(Ticket(id="mine", caller="patient"))

    order = [ticket.id for ticket in drained(line)]

    per_turn = QUANTUM / ANSWER_TOKENS
    assert order.index("mine") <= per_turn


def test_equal_callers_get_equal_work() -> None:
    """Ours: by tokens, so that who sends long prompts gets fewer requests through."""
    line = queue()
    fill(line, "long", 400, cost=4 * ANSWER_TOKENS)
    fill(line, "short", 400, cost=ANSWER_TOKENS)

    first = [line.next() for _ in range(200)]

    work = Counter[str]()
    for ticket in first:
        assert ticket is not None
        work[ticket.caller] += int(ticket.cost)
    assert abs(work["long"] - work["short"]) <= 2 * QUANTUM


def test_priorities_share_by_weight_and_starve_nobody() -> None:
    line = queue()
    for priority in Priority:
        fill(line, priority.value, 2000, priority=priority, cost=QUANTUM / 4)

    first = Counter(ticket.caller for ticket in (line.next() for _ in range(1050)) if ticket)

    assert first["low"] == pytest.approx(50, abs=4)
    assert first["normal"] == pytest.approx(200, abs=8)
    assert first["high"] == pytest.approx(800, abs=16)


def test_within_a_caller_first_come_first_served() -> None:
    line = queue()
    fill(line, "one", 20)

    assert [ticket.id for ticket in drained(line)] == [f"one-{n}" for n in range(20)]


def test_the_queue_is_bounded_in_all_and_per_caller() -> None:
    line = queue(max_depth=3, max_per_caller=2)
    fill(line, "greedy", 2)

    with pytest.raises(OverloadedError, match="2 of your requests"):
        line.enter(Ticket(id="x", caller="greedy"))
    line.enter(Ticket(id="y", caller="other"))
    with pytest.raises(OverloadedError, match="3 requests wait"):
        line.enter(Ticket(id="z", caller="third"))
    assert line.leave("greedy-0")
    line.enter(Ticket(id="z", caller="third"))


def test_other_bounds_hold_for_who_comes_after() -> None:
    line = queue(max_depth=2, max_per_caller=2)
    fill(line, "one", 2)

    line.bound(max_depth=3, max_per_caller=3)
    line.enter(Ticket(id="x", caller="one"))
    line.bound(max_depth=1, max_per_caller=1)
    with pytest.raises(OverloadedError):
        line.enter(Ticket(id="y", caller="other"))
    assert len(drained(line)) == 3


def test_who_leaves_is_forgotten() -> None:
    line = queue()
    fill(line, "one", 2)

    assert line.leave("one-0")
    assert not line.leave("one-0")
    assert [ticket.id for ticket in drained(line)] == ["one-1"]
    assert not line.leave("one-1")
    assert line.of_caller("one") == 0


tickets = st.tuples(
    st.sampled_from("abcd"),
    st.sampled_from(list(Priority)),
    st.floats(min_value=0, max_value=10 * MAX_COST),
)
Move = tuple[str, Priority, float] | int | None
"""Who enters; the number of who leaves; or `None` for the next one."""

moves = st.lists(st.one_of(tickets, st.none(), st.integers(0, 60)), max_size=120)


@given(moves)
def test_nothing_is_lost_or_served_twice(moves: list[Move]) -> None:
    line = queue()
    entered: dict[str, Ticket] = {}
    gone: list[str] = []
    for number, move in enumerate(moves):
        match move:
            case (caller, priority, cost):
                ticket = Ticket(id=str(number), caller=caller, priority=priority, cost=cost)
                entered[ticket.id] = ticket
                line.enter(ticket)
            case None:
                taken = line.next()
                assert (taken is None) == (len(entered) == len(gone))
                gone += [] if taken is None else [taken.id]
            case position:
                name = str(position)
                assert line.leave(name) == (name in entered and name not in gone)
                gone += [name] if name in entered and name not in gone else []
        assert len(line) == len(entered) - len(gone)
        for caller in "abcd":
            mine = [t for t in entered.values() if t.caller == caller and t.id not in gone]
            assert line.of_caller(caller) == len(mine)

    gone += [ticket.id for ticket in drained(line)]

    assert sorted(gone) == sorted(entered)


@given(
    st.lists(tickets, min_size=1, max_size=60),
    st.floats(min_value=0, max_value=MAX_COST),
    st.sampled_from(list(Priority)),
)
def test_everybodys_wait_is_bounded_by_the_number_of_callers(
    others: list[tuple[str, Priority, float]], cost: float, priority: Priority
) -> None:
    """Ours: whatever the others have queued, a first request waits for a bounded work of theirs."""
    line = queue()
    for number, (caller, theirs, size) in enumerate(others):
        line.enter(Ticket(id=str(number), caller=caller, priority=theirs, cost=size))
    line.enter(Ticket(id="mine", caller="me", priority=priority, cost=cost))

    ahead: dict[tuple[str, Priority], float] = {}
    while (ticket := line.next()) is not None and ticket.id != "mine":
        key = (ticket.caller, ticket.priority)
        ahead[key] = ahead.get(key, 0.0) + min(ticket.cost, MAX_COST)

    turns = 1 + cost // (QUANTUM * priority.weight)
    for (_, theirs), work in ahead.items():
        assert work <= (turns + 1) * QUANTUM * theirs.weight + MAX_COST


@given(st.integers(1, 10_000), st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_fresh_replica_fills_at_a_ramp(cap: int, age_s: float, more_s: float) -> None:
    assert ceiling(cap, 0.0) == min(cap, FIRST_RELEASE)
    assert 1 <= ceiling(cap, age_s) <= ceiling(cap, age_s + more_s) <= cap
    assert ceiling(cap, 60.0) == cap


def test_advice_follows_the_rate_at_which_the_queue_empties() -> None:
    assert retry_after_s(100, 10.0) == 10.0
    assert retry_after_s(1, 10.0) == MIN_RETRY_AFTER_S
    assert retry_after_s(10_000, 1.0) == MAX_RETRY_AFTER_S
    assert retry_after_s(5, 0.0) == MAX_RETRY_AFTER_S


def test_cost_grows_with_the_prompt_to_a_bound() -> None:
    assert cost_of(0) == ANSWER_TOKENS
    assert cost_of(4000) == 1000 + ANSWER_TOKENS
    assert cost_of(10**9) == MAX_COST


def test_a_priority_is_one_of_three_words() -> None:
    assert read_priority(None) is Priority.NORMAL
    assert read_priority(" High ") is Priority.HIGH
    with pytest.raises(InvalidRequestError, match="low, normal or high"):
        read_priority("urgent")
