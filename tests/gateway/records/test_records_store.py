"""The store of responses: what is kept, for how long, and what becomes of bad files."""

import contextlib
import glob
import os
import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from cortex_core.errors import SettingsError
from cortex_gateway.records.schema import CONVERSATION, RESPONSE, KeptItem, Record
from cortex_gateway.records.store import MAX_CHAIN, RecordStore, open_store
from tests.fakes.clock import FakeClock

DAY_S = 86400.0


def store_at(
    path: Path | None,
    clock: FakeClock,
    *,
    retention_s: float = 30 * DAY_S,
    max_bytes: int = 1 << 20,
) -> AbstractAsyncContextManager[RecordStore]:
    return open_store(
        None if path is None else str(path),
        now=clock.wall,
        retention_s=retention_s,
        max_bytes=max_bytes,
    )


def response(name: str, previous: str | None = None, status: str = "completed") -> Record:
    body = b'{"id":"%b","status":"%b"}' % (name.encode(), status.encode())
    return Record(id=name, kind=RESPONSE, body=body, previous=previous)


def item(name: str, *, is_input: bool = True, padding: int = 0) -> KeptItem:
    body = b'{"id":"%b","pad":"%b"}' % (name.encode(), b"x" * padding)
    return KeptItem(id=name, body=body, is_input=is_input)


async def test_history_has_the_items_of_all_before_in_order() -> None:
    """Ours: the chain of `previous_response_id`, oldest first, inputs before outputs."""
    async with store_at(None, FakeClock()) as store:
        await store.put(response("a"), [item("a1"), item("a2", is_input=False)])
        await store.put(response("b", "a"), [item("b1")])
        await store.put(response("c", "b"), [item("c1")])

        history = await store.history("c")

    assert history is not None
    assert [kept.id for kept in history] == ["a1", "a2", "b1", "c1"]
    assert [kept.is_input for kept in history] == [True, False, True, True]


async def test_history_with_a_hole_is_none() -> None:
    """Ours: half a history would look like a whole one."""
    async with store_at(None, FakeClock()) as store:
        await store.put(response("a"), [item("a1")])
        await store.put(response("b", "a"), [item("b1")])
        await store.delete("a", RESPONSE)

        assert await store.history("b") is None


@pytest.mark.parametrize(("length", "is_found"), [(MAX_CHAIN, True), (MAX_CHAIN + 1, False)])
async def test_history_is_bounded(length: int, is_found: bool) -> None:
    """Ours: no request may make the gateway walk for ever, nor lose its beginning silently."""
    async with store_at(None, FakeClock()) as store:
        for place in range(length):
            await store.put(response(f"r{place}", f"r{place - 1}" if place else None), [])

        history = await store.history(f"r{length - 1}")

    assert (history is not None) is is_found


async def test_history_that_is_a_circle_ends() -> None:
    """Ours: callers cannot make one, but a file can."""
    async with store_at(None, FakeClock()) as store:
        await store.put(response("a", "b"), [])
        await store.put(response("b", "a"), [])

        assert await store.history("a") is None


async def test_record_is_gone_after_its_time_unless_it_is_used() -> None:
    """Ours: `retention_s` counts from the last use."""
    clock = FakeClock()
    async with store_at(None, clock, retention_s=DAY_S) as store:
        await store.put(response("used"), [item("u1")])
        await store.put(response("idle"), [item("i1")])
        await clock.advance(0.9 * DAY_S)
        assert await store.get("used", RESPONSE) is not None
        await clock.advance(0.9 * DAY_S)

        assert await store.get("used", RESPONSE) is not None
        assert await store.get("idle", RESPONSE) is None
        assert await store.find_item("u1") is not None
        assert await store.find_item("i1") is None


async def test_size_is_bounded_and_the_least_recently_used_goes_first() -> None:
    """Ours: `max_mb`."""
    clock = FakeClock()
    async with store_at(None, clock, max_bytes=4000) as store:
        for name in ("a", "b", "c"):
            await clock.advance(1)
            await store.put(response(name), [item(f"{name}1", padding=700)])
        await clock.advance(1)
        await store.get("a", RESPONSE)
        await clock.advance(1)
        await store.put(response("d"), [item("d1", padding=700)])

        found = [name for name in "abcd" if await store.get(name, RESPONSE) is not None]
        lost = await store.find_item("b1")

    assert found == ["a", "c", "d"]
    assert lost is None


async def test_items_that_are_added_count_and_those_that_are_deleted_do_not() -> None:
    """Ours: a conversation that grows and shrinks again takes no room from others."""
    clock = FakeClock()
    conversation = Record(id="conv", kind=CONVERSATION, body=b"{}")
    async with store_at(None, clock, max_bytes=4000) as store:
        await store.put(response("old"), [])
        await clock.advance(1)
        await store.put(conversation)
        for _ in range(10):
            await store.add_items("conv", [item("i", padding=1500)])
            assert await store.delete_item("conv", "i")
        kept = await store.get("old", RESPONSE)
        await clock.advance(1)
        await store.add_items("conv", [item("j", padding=3500)])

        assert kept is not None
        assert await store.get("old", RESPONSE) is None
        assert [one.id for one in await store.items("conv")] == ["j"]


async def test_rewriting_a_record_leaves_its_items() -> None:
    """Ours: metadata of a conversation may change while items are added."""
    async with store_at(None, FakeClock()) as store:
        await store.put(Record(id="conv", kind=CONVERSATION, body=b"{}"), [item("a")])
        await store.rewrite("conv", b'{"new":1}')
        record = await store.get("conv", CONVERSATION)

        assert record is not None
        assert record.body == b'{"new":1}'
        assert [one.id for one in await store.items("conv")] == ["a"]


async def test_file_outlives_the_process_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Ours: `path`; what people ask is nobody else's business."""
    path = tmp_path / "responses.db"
    async with store_at(path, FakeClock()) as store:
        await store.put(response("a"), [item("a1")])
        modes = [os.stat(name).st_mode & 0o777 for name in glob.glob(f"{tmp_path}/*")]
    async with store_at(path, FakeClock()) as store:
        record = await store.get("a", RESPONSE)
        items = await store.items("a")

    assert set(modes) == {0o600}
    assert record == response("a")
    assert [one.id for one in items] == ["a1"]


async def test_what_is_too_old_is_forgotten_at_the_start(tmp_path: Path) -> None:
    """Ours: a gateway that nobody asks for a response keeps none for ever."""
    path = tmp_path / "responses.db"
    clock = FakeClock()
    async with store_at(path, clock, retention_s=DAY_S) as store:
        await store.put(response("old"), [item("o1")])
    await clock.advance(2 * DAY_S)
    async with store_at(path, clock, retention_s=DAY_S):
        with contextlib.closing(sqlite3.connect(path)) as db:
            left = db.execute("SELECT id FROM records UNION SELECT id FROM items").fetchall()

    assert left == []


@pytest.mark.parametrize("status", ["queued", "in_progress"])
async def test_what_was_being_made_when_the_process_ended_has_failed(
    tmp_path: Path, status: str
) -> None:
    """Ours: nobody polls for ever for a response that nobody makes."""
    path = tmp_path / "responses.db"
    async with store_at(path, FakeClock()) as store:
        await store.put(response("a", status=status))
        await store.put(response("b"))
    async with store_at(path, FakeClock()) as store:
        left_over = await store.get("a", RESPONSE)
        complete = await store.get("b", RESPONSE)

    assert left_over is not None
    assert b'"status":"failed"' in left_over.body
    assert b'"error":{' in left_over.body
    assert complete == response("b")


async def test_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    """Ours: the message names the setting and the file."""
    path = tmp_path / "responses.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)

    with pytest.raises(SettingsError, match=r"gateway\.responses\.path.*responses\.db"):
        async with store_at(path, FakeClock()):
            pass


async def test_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """Ours."""
    with pytest.raises(SettingsError, match=r"gateway\.responses\.path"):
        async with store_at(tmp_path / "none" / "responses.db", FakeClock()):
            pass


async def test_file_of_another_version_stops_the_start(tmp_path: Path) -> None:
    """Ours: an older gateway must not write into what it does not understand."""
    path = tmp_path / "responses.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(SettingsError, match="version 99"):
        async with store_at(path, FakeClock()):
            pass
