"""What workers gather about requests counts as if the control process had noted it itself."""

import asyncio

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue
from cortex_core.errors import NoReplicaError
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.record import DecisionKind, Record
from cortex_core.routing.route import Candidate, Decision, Refuse, Serve, Wait
from cortex_gateway.control.journal import KEPT_REQUESTS, Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.workers import wire
from cortex_gateway.workers.mirror import MirrorJournal
from cortex_gateway.workers.notes import Notes, records_of
from tests.fakes.clock import FakeClock

MODEL = ModelId("some/model")
REPLICA = ReplicaId(node=NodeName("left"), model=MODEL)
SERVE = Serve(
    replica=REPLICA,
    endpoint="http://left:1",
    reason="the only one",
    candidates=(Candidate(replica=REPLICA, score=0.5),),
)
# No message has a number of more than 64 bits, and a node may report any: what a wait says is text.
DECISIONS: list[Decision] = [
    SERVE,
    Wait(model=MODEL, reason="it is about to be loaded"),
    Refuse(error=NoReplicaError("none"), candidates=(Candidate(replica=REPLICA, rejected="no"),)),
]


def said(notes: list[wire.Noted]) -> list[wire.Noted]:
    """Return what arrives."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(notes), type=list[wire.Noted])


async def test_the_journal_has_the_same_records_whoever_decided() -> None:
    clock, kinds, told = FakeClock(1e6), list[DecisionKind](), list[wire.Noted]()
    notes = Notes(told.append)
    there, here = MirrorJournal(clock, kinds.append, notes), Journal(clock, lambda kind: None)
    control = Journal(clock, lambda kind: None)

    for number in range(12):
        await clock.advance(1.0)
        for journal in (there, here):
            journal.request(DECISIONS[number % 3], MODEL, f"r{number}")
        if number % 5 == 4:
            notes.flush()
    notes.flush()
    notes.flush()
    for one in said(told):
        control.take(one.lines, lambda journal=one.journal: records_of(journal))  # type: ignore[misc]

    assert len(told) == 3
    assert control.find() == here.find()
    assert control.find(request_id="r7", limit=1) == here.find(request_id="r7", limit=1)
    assert kinds == [DecisionKind.ROUTE, DecisionKind.WAIT, DecisionKind.REFUSE] * 4


async def test_notes_are_said_by_themselves_and_once() -> None:
    told: asyncio.Queue[wire.Noted] = asyncio.Queue()
    notes = Notes(told.put_nowait)
    notes.count(MODEL, 5.0)
    notes.count(MODEL, 6.0)
    notes.took(MODEL, 0.25)

    async with asyncio.timeout(5):
        got = await told.get()

    assert (got.counts, got.counted_at, got.took) == ({MODEL: 2}, 6.0, {MODEL: [0.25]})
    assert (got.lines, got.journal) == (0, b"")
    notes.flush()
    assert told.empty()


async def test_one_turn_of_the_loop_says_no_more_than_is_kept() -> None:
    told = list[wire.Noted]()
    notes = Notes(told.append)
    for number in range(KEPT_REQUESTS + 10):
        notes.served(float(number), MODEL, f"r{number}", SERVE)
    notes.flush()

    records = records_of(told[0].journal)
    assert len(records) == told[0].lines == KEPT_REQUESTS
    assert records[0].request_id == f"r{KEPT_REQUESTS + 9}"


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 900)), max_size=20))
def test_the_latest_of_all_processes_are_kept(batches: list[tuple[int, int]]) -> None:
    """Ours: at least as many as of one process, no more than a batch above it, in order of time."""
    journal = Journal(FakeClock(1e6), lambda kind: None)
    at = 0
    for _, lines in batches:
        records = [
            Record(at=float(at + n), kind=DecisionKind.ROUTE, model=MODEL) for n in range(lines)
        ]
        journal.take(lines, lambda records=records: reversed(records))  # type: ignore[misc]
        at += lines

    found = journal.find(limit=10**6)
    assert [one.at for one in found] == [float(at - 1 - n) for n in range(len(found))]
    assert min(at, KEPT_REQUESTS) <= len(found) < KEPT_REQUESTS + 900


def test_many_requests_at_once_count_as_many() -> None:
    one, other = (FleetStore(FleetState(), Catalogue()) for _ in range(2))
    for _ in range(7):
        one.count(MODEL, 5.0)
    other.count(MODEL, 5.0, 7)
    assert one.rates(9.0)[MODEL] == pytest.approx(other.rates(9.0)[MODEL])
