"""The database of responses and conversations, off the event loop.

SQLite is spoken to from one thread, so that statements never meet, and a caller that leaves
does not end a transaction half-way.
"""

import asyncio
import contextlib
import logging
import pathlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import InternalError, SettingsError
from cortex_gateway.records.schema import RESPONSE, TABLES, VERSION, KeptItem, Record

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])

MEMORY = ":memory:"

MAX_CHAIN = 1000
"""Responses that one history may go back over."""

SWEEP_EVERY = 100
"""Writes between two looks at what is too old."""

_ROW_BYTES = 200
"""What a row costs beside its body, roughly."""


class RecordStore:
    """Keeps responses, conversations and their items.

    Every method raises `InternalError` when the database fails, as on a disk that is full.

    Args:
        connection: to the database; closed by whoever opened it.
        thread: the one that speaks to it.
        now: returns epoch seconds.
        retention_s: how long a record is kept after its last use.
        max_bytes: bound on all records together; what was not used for longest goes first.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        *,
        now: Callable[[], float],
        retention_s: float,
        max_bytes: int,
    ) -> None:
        self._connection = connection
        self._thread = thread
        self._now = now
        self._retention_s = retention_s
        self._max_bytes = max_bytes
        self._writes = 0

    async def put(self, record: Record, items: Iterable[KeptItem] = ()) -> None:
        """Keep a record and its items; one of the same id is replaced, with its items."""
        await self._run(lambda: self._put(record, tuple(items)))

    async def get(self, record_id: str, kind: str) -> Record | None:
        """Return a record and note that it was used; `None` when there is none."""
        return await self._run(lambda: self._get(record_id, kind))

    async def rewrite(self, record_id: str, body: bytes) -> None:
        """Replace the object of a record and leave its items; nothing when it is gone."""
        await self._run(lambda: self._rewrite(record_id, body))

    async def delete(self, record_id: str, kind: str) -> bool:
        """Forget a record with its items; False when there was none."""
        return await self._run(lambda: self._delete(record_id, kind))

    async def items(self, owner: str) -> list[KeptItem]:
        """Return all items of a record, in order."""
        return await self._run(lambda: self._items(owner))

    async def add_items(self, owner: str, items: Iterable[KeptItem]) -> None:
        """Add items to a record that is there."""
        await self._run(lambda: self._add_items(owner, tuple(items)))

    async def delete_item(self, owner: str, item_id: str) -> bool:
        """Forget one item; False when there was none."""
        return await self._run(lambda: self._delete_item(owner, item_id))

    async def find_item(self, item_id: str) -> KeptItem | None:
        """Return the newest item of that id, whoever owns it."""
        return await self._run(lambda: self._find_item(item_id))

    async def history(self, response_id: str) -> list[KeptItem] | None:
        """Return the items of a response and of all before it, oldest first.

        Returns:
            `None` when the response is not there, when one before it is not any more, or when
            there are more than `MAX_CHAIN`: half a history would look like a whole one.
        """
        return await self._run(lambda: self._history(response_id))

    async def sweep(self) -> None:
        """Forget what is too old, and what is too much."""
        await self._run(self._sweep_apart)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            logger.error("the store of responses failed: %s", error)
            raise InternalError from None

    def _put(self, record: Record, items: tuple[KeptItem, ...]) -> None:
        size = len(record.body) + sum(len(item.body) + _ROW_BYTES for item in items) + _ROW_BYTES
        with self._connection as db:
            db.execute("DELETE FROM records WHERE id = ?", (record.id,))
            db.execute(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.kind,
                    record.body,
                    record.previous,
                    size,
                    record.created,
                    self._now(),
                ),
            )
            self._insert(record.id, items)
            self._sweep()

    def _insert(self, owner: str, items: tuple[KeptItem, ...]) -> None:
        self._connection.executemany(
            "INSERT INTO items (owner, id, is_input, body) VALUES (?, ?, ?, ?)",
            [(owner, item.id, item.is_input, item.body) for item in items],
        )

    def _sweep_apart(self) -> None:
        with self._connection:
            self._sweep()

    def _sweep(self) -> None:
        """Forget what is too old, and what is too much."""
        db = self._connection
        if self._writes % SWEEP_EVERY == 0:
            db.execute("DELETE FROM records WHERE used < ?", (self._now() - self._retention_s,))
        self._writes += 1
        (total,) = db.execute("SELECT COALESCE(SUM(size), 0) FROM records").fetchone()
        if total <= self._max_bytes:
            return
        for record_id, size in db.execute("SELECT id, size FROM records ORDER BY used").fetchall():
            db.execute("DELETE FROM records WHERE id = ?", (record_id,))
            total -= size
            if total <= self._max_bytes:
                return

    def _get(self, record_id: str, kind: str) -> Record | None:
        with self._connection as db:
            row = db.execute(
                "SELECT body, previous, created FROM records"
                " WHERE id = ? AND kind = ? AND used >= ?",
                (record_id, kind, self._now() - self._retention_s),
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE records SET used = ? WHERE id = ?", (self._now(), record_id))
        body, previous, created = row
        return Record(id=record_id, kind=kind, body=body, previous=previous, created=created)

    def _rewrite(self, record_id: str, body: bytes) -> None:
        with self._connection as db:
            db.execute(
                "UPDATE records SET body = ?, size = size + ? - length(body), used = ?"
                " WHERE id = ?",
                (body, len(body), self._now(), record_id),
            )
            self._sweep()

    def _delete(self, record_id: str, kind: str) -> bool:
        with self._connection as db:
            done = db.execute("DELETE FROM records WHERE id = ? AND kind = ?", (record_id, kind))
            return done.rowcount > 0

    def _items(self, owner: str) -> list[KeptItem]:
        rows = self._connection.execute(
            "SELECT id, body, is_input FROM items WHERE owner = ? ORDER BY seq", (owner,)
        )
        return [_item(row) for row in rows]

    def _add_items(self, owner: str, items: tuple[KeptItem, ...]) -> None:
        size = sum(len(item.body) + _ROW_BYTES for item in items)
        with self._connection as db:
            done = db.execute(
                "UPDATE records SET used = ?, size = size + ? WHERE id = ?",
                (self._now(), size, owner),
            )
            if done.rowcount:
                self._insert(owner, items)
            self._sweep()

    def _delete_item(self, owner: str, item_id: str) -> bool:
        with self._connection as db:
            rows = db.execute(
                "DELETE FROM items WHERE owner = ? AND id = ? RETURNING length(body)",
                (owner, item_id),
            ).fetchall()
            freed = sum(size + _ROW_BYTES for (size,) in rows)
            db.execute("UPDATE records SET size = size - ? WHERE id = ?", (freed, owner))
            return bool(rows)

    def _find_item(self, item_id: str) -> KeptItem | None:
        row = self._connection.execute(
            "SELECT items.id, items.body, is_input FROM items JOIN records ON records.id = owner"
            " WHERE items.id = ? AND used >= ? ORDER BY seq DESC LIMIT 1",
            (item_id, self._now() - self._retention_s),
        ).fetchone()
        return None if row is None else _item(row)

    def _history(self, response_id: str) -> list[KeptItem] | None:
        chain: list[str] = []
        wanted: str | None = response_id
        while wanted is not None:
            record = self._get(wanted, RESPONSE)
            if record is None or len(chain) == MAX_CHAIN:
                return None
            chain.append(wanted)
            wanted = record.previous
        return [item for owner in reversed(chain) for item in self._items(owner)]


@contextlib.asynccontextmanager
async def open_store(
    path: str | None, *, now: Callable[[], float], retention_s: float, max_bytes: int
) -> AsyncIterator[RecordStore]:
    """Open the database for as long as the context is open.

    Args:
        path: of the file, which is made if it is not there; `None` keeps everything in memory.
        now: returns epoch seconds.
        retention_s: see `RecordStore`.
        max_bytes: see `RecordStore`.

    Raises:
        SettingsError: the file cannot be used.
    """
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="records")
    try:
        connection = await loop.run_in_executor(thread, _connect, path)
        try:
            store = RecordStore(
                connection, thread, now=now, retention_s=retention_s, max_bytes=max_bytes
            )
            # It is logged, and what is too old is not given out in any case.
            with contextlib.suppress(InternalError):
                await store.sweep()
            yield store
        finally:
            await loop.run_in_executor(thread, connection.close)
    finally:
        # Nothing is left to do for it, and joining it would hold up the loop.
        thread.shutdown(wait=False)


def _connect(path: str | None) -> sqlite3.Connection:
    try:
        if path is not None:
            # What people have asked is nobody else's business.
            pathlib.Path(path).touch(mode=0o600)
        connection = sqlite3.connect(path or MEMORY, check_same_thread=False)
        with contextlib.ExitStack() as unless_ready:
            unless_ready.callback(connection.close)
            _prepare(connection, path)
            unless_ready.pop_all()
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(f"gateway.responses.path: cannot use {path!r}: {error}") from None
    return connection


def _prepare(connection: sqlite3.Connection, path: str | None) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN;{TABLES}PRAGMA user_version = {VERSION};COMMIT;")
    elif version != VERSION:
        raise SettingsError(
            f"gateway.responses.path: {path!r} is of version {version} and this is "
            f"version {VERSION}; name another file"
        )
    _end_left_over(connection)


def _end_left_over(connection: sqlite3.Connection) -> None:
    """Mark as failed what was being made in the background when the process ended."""
    error = {"code": "server_error", "message": "the gateway went down meanwhile"}
    ending = {"status": msgspec.Raw(b'"failed"'), "error": msgspec.Raw(encode_json(error))}
    with connection as db:
        rows = db.execute("SELECT id, body FROM records WHERE kind = ?", (RESPONSE,)).fetchall()
        for record_id, body in rows:
            members = _MEMBERS.decode(body)
            if bytes(members["status"]) in (b'"queued"', b'"in_progress"'):
                ended = encode_json({**members, **ending})
                db.execute("UPDATE records SET body = ? WHERE id = ?", (ended, record_id))


def _item(row: tuple[str, bytes, int]) -> KeptItem:
    item_id, body, is_input = row
    return KeptItem(id=item_id, body=body, is_input=bool(is_input))
