"""Recording who asked for what and when, for `cortex simulate`: sizes and times, no content.

A request costs a line in a bounded list; a thread writes them. What cannot be written, or not as
fast as it comes, is lost and counted: no caller waits for a trace.
"""

import asyncio
import hashlib
import logging
import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from cortex_core.errors import SettingsError
from cortex_core.simulation.trace import Arrival, line_of

logger = logging.getLogger(__name__)

MAX_LINES = 10_000
"""Lines that wait to be written: some seconds of a busy gateway, about a megabyte."""

PAUSE_S = 1.0
"""Between two writes, so that one takes many lines."""

OLD_SUFFIX = ".1"
"""Put behind the name of the file that came before."""


class TraceRecorder:
    """Writes arrivals to a file that begins anew when it is full; one older file is kept.

    Args:
        path: the file; it is continued if it is there.
        max_bytes: how large it may become.
        key: secret with which callers and sessions are hashed.
        lost: told how many lines were lost.
    """

    def __init__(
        self, path: pathlib.Path, *, max_bytes: int, key: bytes, lost: Callable[[int], None]
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._key = key
        self._lost = lost
        self._lines: list[bytes] = []
        self._is_failing = False

    def note(self, arrival: Arrival) -> None:
        """Have a line written soon; its caller and session are told apart and not told."""
        if len(self._lines) >= MAX_LINES:
            self._lost(1)
            return
        session = None if arrival.session is None else self._hash(arrival.session)
        hidden = msgspec.structs.replace(
            arrival, at=round(arrival.at, 3), caller=self._hash(arrival.caller), session=session
        )
        self._lines.append(line_of(hidden))

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(PAUSE_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            await asyncio.to_thread(self._write, b"".join(lines))
            self._is_failing = False
        except OSError as error:
            self._lost(len(lines))
            if not self._is_failing:
                logger.warning("the trace cannot be written: %s", error)
            self._is_failing = True

    def _write(self, lines: bytes) -> None:
        with self._path.open("ab") as file:
            if file.tell() and file.tell() + len(lines) > self._max_bytes:
                self._path.replace(self._path.with_name(self._path.name + OLD_SUFFIX))
                with self._path.open("ab") as fresh:
                    fresh.write(lines)
            else:
                file.write(lines)

    def _hash(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), digest_size=6, key=self._key).hexdigest()


@asynccontextmanager
async def open_trace(
    path: pathlib.Path | None, *, max_bytes: int, key: bytes, lost: Callable[[int], None]
) -> AsyncIterator[TraceRecorder | None]:
    """Yield what records to `path` while the context is open; `None` records nothing.

    Raises:
        SettingsError: the file cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        await asyncio.to_thread(_touch, path)
    except OSError as error:
        raise SettingsError(f"trace.record: {path} cannot be written: {error.strerror}") from None
    recorder = TraceRecorder(path, max_bytes=max_bytes, key=key, lost=lost)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(recorder.run(), name="trace")
        try:
            yield recorder
        finally:
            task.cancel()
    await recorder.flush()


def _touch(path: pathlib.Path) -> None:
    path.open("ab").close()
