"""The line of one model: exact counts, bounds, shares, and the advice to whoever is refused."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import OverloadedError
from cortex_core.harness import Bounds, EngineLoad
from cortex_core.routing.queue import MAX_RETRY_AFTER_S, Ticket
from neuron.lifecycle.line import KV_FULL, Limits, Line, is_pressed, is_to_be_read, limits_of
from neuron.settings import AdmissionSettings

IDLE = EngineLoad()
PRESSED = EngineLoad(running=3, waiting=1, kv_cache_usage=1.0)
WIDE = Limits(max_queue=1000, max_wait_s=1.0, max_share=1.0)


def enter(
    line: Line, limits: Limits, ticket: str, caller: str = "x", load: EngineLoad = IDLE
) -> bool:
    return line.enter(Ticket(id=ticket, caller=caller), limits, load, 0.0)


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happens to a line."""

    kind: str
    caller: str
    which: int
    is_pressed: bool


moves = st.builds(
    Move,
    kind=st.sampled_from(["enter", "enter", "leave", "next", "drop"]),
    caller=st.sampled_from("abc"),
    which=st.integers(0, 50),
    is_pressed=st.booleans(),
)

limits = st.builds(
    Limits,
    max_in_flight=st.sampled_from([None, 1, 2, 5]),
    max_queue=st.sampled_from([0, 1, 4, 50]),
    max_wait_s=st.just(1.0),
    max_share=st.sampled_from([0.1, 0.5, 1.0]),
)


@given(st.lists(moves, max_size=80), limits)
def test_counts_are_exact_whatever_happens(history: list[Move], limit: Limits) -> None:
    """Ours: what came and has not left is with the engine or waits, within the bounds."""
    line = Line()
    placed: dict[str, str] = {}
    waiting: dict[str, str] = {}
    for number, move in enumerate(history):
        load = PRESSED if move.is_pressed else IDLE
        ids = [*placed, *waiting]
        chosen = ids[move.which % len(ids)] if ids else ""
        match move.kind:
            case "enter":
                try:
                    is_placed = enter(line, limit, str(number), move.caller, load)
                except OverloadedError:
                    mine = sum(caller == move.caller for caller in waiting.values())
                    assert len(waiting) >= limit.max_queue or mine >= limit.queue_each
                else:
                    (placed if is_placed else waiting)[str(number)] = move.caller
            case "next":
                ticket = line.next(limit, load)
                if ticket is not None:
                    placed[ticket.id] = waiting.pop(ticket.id)
            case "drop":
                line.drop(chosen)
                waiting.pop(chosen, None)
            case _:
                line.leave(chosen, float(number))
                placed.pop(chosen, None)
                waiting.pop(chosen, None)
        assert (line.placed, line.waiting) == (len(placed), len(waiting))
        assert {name: line.places_of(name) for name in "abc"} == {
            name: Counter(placed.values())[name] for name in "abc"
        }
        assert line.waiting <= limit.max_queue
        assert limit.max_in_flight is None or line.placed <= limit.max_in_flight


@given(st.integers(1, 8), st.lists(st.sampled_from("ab"), min_size=1, max_size=30))
def test_nobody_waits_while_there_is_a_place(places: int, callers: list[str]) -> None:
    """Ours: a share holds one back for others only, never for nobody."""
    line, limit = Line(), Limits(max_in_flight=places, max_queue=99, max_wait_s=1, max_share=0.3)
    placed = []
    for number, caller in enumerate(callers):
        if enter(line, limit, str(number), caller):
            placed.append(str(number))

    while placed:
        assert len(placed) == places or not line.waiting
        line.leave(placed.pop(0), 0.0)
        ticket = line.next(limit, IDLE)
        if ticket is not None:
            placed.append(ticket.id)

    assert line.waiting == 0


def test_a_caller_with_its_share_is_passed_over_for_another() -> None:
    """Issue: per-caller share. Long answers of one caller do not keep all places for it."""
    line, limit = Line(), Limits(max_in_flight=4, max_queue=20, max_wait_s=1, max_share=0.5)
    for number in range(8):
        enter(line, limit, f"a{number}", "a")
    enter(line, limit, "b0", "b")
    enter(line, limit, "b1", "b")

    for number in range(3):
        line.leave(f"a{number}", 0.0)
    given_to = [ticket.caller for _ in range(3) if (ticket := line.next(limit, IDLE)) is not None]

    assert sorted(given_to) == ["a", "b", "b"]


def test_a_full_queue_refuses_with_advice_from_the_rate_at_which_requests_end() -> None:
    line, limit = Line(), Limits(max_in_flight=1, max_queue=2, max_wait_s=1, max_share=1)
    for number in range(100):
        enter(line, limit, f"early{number}")
        line.leave(f"early{number}", number / 10)
    for number in range(3):
        line.enter(Ticket(id=str(number), caller="x"), limit, IDLE, 10.0)

    with pytest.raises(OverloadedError) as refused:
        line.enter(Ticket(id="late", caller="x"), limit, IDLE, 10.0)

    assert refused.value.retry_after_s is not None
    assert 1.0 <= refused.value.retry_after_s < 3.0


def test_a_queue_from_which_nobody_has_gone_advises_the_longest_wait() -> None:
    line, limit = Line(), Limits(max_in_flight=1, max_queue=0, max_wait_s=1, max_share=1)
    enter(line, limit, "first")

    with pytest.raises(OverloadedError, match="every place with it is taken") as refused:
        enter(line, limit, "second")

    assert refused.value.retry_after_s == MAX_RETRY_AFTER_S


def test_an_engine_without_room_in_its_cache_is_given_nothing_until_it_is_idle() -> None:
    """Ours: one more would only wait inside it, where nobody can send it elsewhere."""
    line = Line()

    assert enter(line, WIDE, "first", load=PRESSED)
    assert not enter(line, WIDE, "second", load=PRESSED)
    assert line.next(WIDE, PRESSED) is None
    line.leave("first", 0.0)
    ticket = line.next(WIDE, PRESSED)

    assert ticket is not None


@pytest.mark.parametrize(
    ("load", "pressed"),
    [
        (EngineLoad(), False),
        (EngineLoad(waiting=5), False),
        (EngineLoad(waiting=0, kv_cache_usage=1.0), False),
        (EngineLoad(waiting=1, kv_cache_usage=KV_FULL), True),
        (EngineLoad(waiting=1, kv_cache_usage=0.5), False),
    ],
)
def test_an_engine_is_pressed_when_it_queues_for_want_of_cache(
    load: EngineLoad, pressed: bool
) -> None:
    assert is_pressed(load) == pressed


@pytest.mark.parametrize(
    ("own", "settings", "engine", "expected"),
    [(7, 5, 3, 7), (None, 5, 3, 5), (None, None, 3, 3), (None, None, None, None)],
)
def test_the_load_goes_before_the_settings_and_they_before_the_engine(
    own: int | None, settings: int | None, engine: int | None, expected: int | None
) -> None:
    found = limits_of(
        AdmissionSettings(max_in_flight=settings), Bounds(max_in_flight=own, max_queue=0), engine
    )

    assert (found.max_in_flight, found.max_queue) == (expected, 0)
    assert found.max_wait_s == AdmissionSettings().max_wait_s


@pytest.mark.parametrize(
    ("body", "context", "read"),
    [
        (b"x" * 100, None, False),
        (b"x" * 100, 51, False),
        (b"x" * 100, 50, True),
        (b'{"type":"image_url"}' * 20, 50, False),
    ],
)
def test_only_what_may_not_fit_is_read_while_it_waits(
    body: bytes, context: int | None, read: bool
) -> None:
    """Ours: a tokenizer's time is not to be spent on what surely fits."""
    assert is_to_be_read(body, context) == read
