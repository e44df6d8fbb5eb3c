"""The snapshot's keeper: who is woken by what."""

import asyncio
from collections.abc import Coroutine
from functools import partial

import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue
from cortex_core.errors import ModelLoadingError
from cortex_core.fleet.rates import MEMORY_S
from cortex_core.fleet.reducers import from_endpoints, with_miss, with_report
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.node import NodeReport
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.retry import Failure
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import UpstreamFailure
from tests.gateway.fleet import MODEL, NODE

REPLICA = ReplicaId(node=NODE, model=MODEL)
OTHER, THIRD = ModelId("org/other"), ModelId("org/third")


def store() -> FleetStore:
    return FleetStore(from_endpoints({NODE: "http://h"}), Catalogue())


def missed(state: FleetState) -> FleetState:
    return with_miss(state, NODE, "silent")


async def test_everybody_who_waits_sees_the_change() -> None:
    """Ours: also who comes with an older revision, at once."""
    keeper = store()
    revision = keeper.state.revision

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(keeper.changed(revision)) for _ in range(3)]
        await asyncio.sleep(0)
        keeper.update(missed)
        late = await keeper.changed(revision)

    assert {task.result().revision for task in waiting} == {late.revision} == {revision + 1}


async def test_reducer_that_changes_nothing_wakes_nobody() -> None:
    """Ours: a request that went well, on a replica that never failed, is no news."""
    keeper = store()

    keeper.update(lambda state: state)
    woken = await asyncio.wait_for(_is_woken(keeper), 5)

    assert not woken


async def _is_woken(keeper: FleetStore) -> bool:
    """Whether the reconciler would go on without anything else happening."""
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(keeper.wanted())
        for _ in range(3):
            await asyncio.sleep(0)
        is_done = waiting.done()
        waiting.cancel()
    return is_done


async def test_changes_and_demand_are_not_lost_while_the_reconciler_is_busy() -> None:
    """Ours: it is told once, however much has happened."""
    keeper = store()
    keeper.update(missed)
    with keeper.demand(MODEL):
        async with asyncio.timeout(5):
            await keeper.wanted()

        assert keeper.take_demanded() == (MODEL,)
    assert keeper.take_demanded() == ()


async def test_who_is_told_to_come_back_later_is_planned_for_once() -> None:
    """Contract: `prefer: wait=0` gets a refusal, and the load goes on."""
    keeper = store()

    with pytest.raises(ModelLoadingError), keeper.demand(MODEL):
        raise ModelLoadingError("not yet")

    assert keeper.take_demanded() == (MODEL,)
    assert keeper.take_demanded() == ()


async def test_who_leaves_wants_nothing_any_more() -> None:
    """Issue: queued loads without waiters are dropped."""
    keeper = store()

    with pytest.raises(asyncio.CancelledError), keeper.demand(MODEL):
        raise asyncio.CancelledError

    assert keeper.take_demanded() == ()


async def test_who_is_served_comes_after_all_who_are_not() -> None:
    """Ours: a line that never empties does not make its model the first when it gives way."""
    keeper = store()
    loaded = Replica(id=ReplicaId(node=NODE, model=MODEL), status=ReplicaStatus.LOADED)

    with keeper.demand(MODEL), keeper.demand(OTHER), keeper.demand(THIRD):
        longest = keeper.take_demanded()
        keeper.update(lambda s: with_report(s, NODE, NodeReport(replicas=(loaded,)), 0.0))
        served = keeper.take_demanded()
        keeper.update(lambda s: with_report(s, NODE, NodeReport(replicas=()), 1.0))
        evicted = keeper.take_demanded()

    assert longest == (MODEL, OTHER, THIRD)
    assert served == evicted == (OTHER, THIRD, MODEL)


async def test_room_that_was_made_is_planned_for_first() -> None:
    """Ours: else whoever gave way might take it back."""
    keeper = store()

    with keeper.demand(MODEL), keeper.demand(OTHER):
        keeper.want_first(OTHER)
        keeper.want_first(THIRD)

        assert keeper.take_demanded() == (OTHER, THIRD, MODEL)
        assert keeper.take_demanded() == (MODEL, OTHER)


async def test_a_block_that_needs_a_node_ends_when_the_node_goes_down() -> None:
    """Ours: one miss is no evidence, three are."""
    keeper = store()
    started = asyncio.Event()

    async def wait() -> None:
        with keeper.while_up(NODE):
            started.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_outcome(wait()))
        await started.wait()
        keeper.update(missed)
        keeper.update(missed)
        await asyncio.sleep(0)
        was_done = waiting.done()
        keeper.update(missed)

    assert not was_done
    assert waiting.result() is Failure.CUT_BEFORE_ANSWER


async def test_a_timeout_of_the_blocks_own_stays_what_it_is() -> None:
    """Ours: only the node's end is told as such."""
    keeper = store()

    with pytest.raises(TimeoutError), keeper.while_up(NODE):
        raise TimeoutError


async def test_a_task_that_somebody_else_cancels_meanwhile_is_cancelled() -> None:
    """Ours: whoever has left must not be served elsewhere because a node went down as well."""
    keeper = store()
    started = asyncio.Event()

    async def wait() -> None:
        with keeper.while_up(NODE):
            started.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wait())
        await started.wait()
        for _ in range(3):
            keeper.update(missed)
        waiting.cancel()

    assert waiting.cancelled()


async def _outcome(block: Coroutine[object, object, None]) -> Failure | None:
    try:
        await block
    except UpstreamFailure as failure:
        return failure.failure
    return None


@given(st.lists(st.booleans(), max_size=30))
def test_demand_lasts_as_long_as_its_last_waiter(steps: list[bool]) -> None:
    """Ours: counts are exact, in whatever order waiters come and go."""
    keeper = store()
    waiters = []
    for comes in steps:
        if comes:
            waiter = keeper.demand(MODEL)
            waiter.__enter__()
            waiters.append(waiter)
        elif waiters:
            waiters.pop(0).__exit__(None, None, None)

        assert (MODEL in keeper.demanded()) == bool(waiters)


async def test_waiter_that_is_cancelled_is_forgotten() -> None:
    """Ours: a caller that left demands nothing."""
    keeper = store()

    async def wait() -> None:
        with keeper.demand(MODEL):
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(wait())
        await asyncio.sleep(0)
        assert keeper.demanded() == {MODEL}
        task.cancel()

    assert keeper.demanded() == frozenset()


def test_snapshot_is_replaced_not_changed() -> None:
    """Ours: whoever holds one keeps what it saw."""
    keeper = store()
    before = keeper.state
    copy = before.revision, dict(before.nodes)

    keeper.update(missed)

    assert keeper.state is not before
    assert (before.revision, dict(before.nodes)) == copy


def in_use(used: float) -> FleetStore:
    """Return a keeper of one model that was used at a time."""
    keeper = store()
    replica = Replica(id=REPLICA, status=ReplicaStatus.LOADED)
    keeper.update(partial(with_report, name=NODE, report=NodeReport(replicas=(replica,)), now=used))
    return keeper


async def test_use_is_noted_once_a_second_and_wakes_nobody() -> None:
    """Ours: the data path says so with every request, and nobody decides anew for it."""
    keeper = in_use(100.0)
    revision = keeper.state.revision
    await keeper.wanted()

    for at in (100.5, 101.0, 101.5, 103.0):
        keeper.touch(REPLICA, at)
    keeper.touch(ReplicaId(node=NODE, model=ModelId("org/other")), 200.0)
    woken = await asyncio.wait_for(_is_woken(keeper), 5)

    resident = keeper.state.resident(REPLICA)
    assert resident is not None
    assert (resident.since, resident.used) == (100.0, 103.0)
    assert keeper.state.revision == revision + 2
    assert not woken


async def test_a_wish_stays_until_it_is_settled() -> None:
    """Ours: as when room must be made first."""
    keeper = store()
    keeper.want_on(REPLICA)
    await asyncio.wait_for(keeper.wanted(), 5)
    keeper.keep_wishes([REPLICA], [REPLICA])
    kept = keeper.wishes()
    keeper.keep_wishes([REPLICA], [])

    assert kept == (REPLICA,)
    assert keeper.wishes() == ()


def test_requests_are_measured_with_the_latest_counting_most() -> None:
    """Ours: what a copy is weighed with."""
    keeper = store()
    for _ in range(100):
        keeper.served(MODEL, 8.0)
    keeper.served(MODEL, 18.0)

    assert keeper.request_times() == {MODEL: pytest.approx(9.0)}


def test_waiters_are_counted_by_model() -> None:
    """Ours: how long the queue is."""
    keeper = store()
    with keeper.demand(MODEL), keeper.demand(MODEL):
        counted = keeper.waiting()

    assert counted == {MODEL: 2}
    assert keeper.waiting() == {}


def test_rates_are_those_of_the_moment() -> None:
    """Ours: reckoned only where somebody asks."""
    keeper = store()
    keeper.count(MODEL, 0.0)
    early, late = keeper.rates(0.0), keeper.rates(MEMORY_S)

    assert early[MODEL] == pytest.approx(late[MODEL] * 2.718, rel=0.01)
    assert early.get(ModelId("org/other"), 0.0) == 0.0
    assert list(early) == [MODEL]
    assert len(early) == 1
