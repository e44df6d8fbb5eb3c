"""The daemons that `cortex up` starts: their start, their log, their end."""

import asyncio
import collections
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

LAUNCHER = "cortex_cli.commands.up.launch"

TAIL_LINES = 8
"""Enough for the end of a traceback or a vLLM error, which is where the reason is."""

MAX_LINE_BYTES = 16 << 10
"""A longer line is shown in pieces, so that a child without newlines cannot fill the memory."""

STOP_TIMEOUT_S = 30.0
"""What a neuron may need to drain and to close two engines with the settings that `plan` writes."""

LAST_WORDS_S = 2.0
"""How long the log of an ended child is waited for; a stray grandchild could hold it open."""

Show = Callable[[str], None]
"""Shows one line of progress."""


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon to start."""

    name: str
    """Prefix of its log lines, and its name in errors."""
    module: str
    arguments: tuple[str, ...]
    sockets: tuple[socket.socket, ...]
    """Listening sockets that it takes over, in the order in which it wants them."""


class Child:
    """One started daemon."""

    def __init__(
        self, spec: ChildSpec, process: asyncio.subprocess.Process, log: asyncio.StreamReader
    ) -> None:
        self.name = spec.name
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        """Its last log lines."""
        self._process = process
        self._log = log

    async def relay(self, show: Show) -> None:
        """Show each line of its log with its name, until all who hold the log are gone."""
        async for line in lines_of(self._log):
            self.tail.append(line)
            show(f"{self.name} | {line}")

    async def ended(self) -> int:
        """Wait for its end and return the status, negative for a signal."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it and whatever it left in its process group, without asking."""
        # It leads a session of its own, so the group carries its id.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End it: ask, wait for a bounded time, kill what is left."""
        try:
            if self._process.returncode is None:
                self._process.terminate()
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await self._process.wait()


async def start(spec: ChildSpec, environ: Mapping[str, str]) -> Child:
    """Start a daemon in a session of its own, so that Ctrl-C reaches it through us alone."""
    fds = [listener.fileno() for listener in spec.sockets]
    # A pipe of our own: `Process.wait` should return when the process ends, but waits for the
    # pipes that asyncio made as well, and an engine that outlives its neuron keeps them open
    # (https://github.com/python/cpython/issues/119710).
    reading, writing = os.pipe()
    try:
        log = await _reader(reading)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            LAUNCHER,
            str(os.getpid()),
            ",".join(str(fd) for fd in fds),
            spec.module,
            *spec.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
            pass_fds=fds,
            env={**environ, "PYTHONUNBUFFERED": "1"},
        )
    finally:
        os.close(writing)
    return Child(spec, process, log)


def ending(status: int) -> str:
    """Return an exit status in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield lines without their ends; a carriage return, as progress bars use it, ends one too.

    Bytes that are not UTF-8 are replaced, empty lines are left out.
    """
    rest = b""
    while chunk := await stream.read(MAX_LINE_BYTES):
        *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            whole.append(rest)
            rest = b""
        for line in whole:
            if line.strip():
                yield line.decode(errors="replace")
    if rest.strip():
        yield rest.decode(errors="replace")


async def _reader(fd: int) -> asyncio.StreamReader:
    """Return a stream over a pipe; the loop closes the pipe at its end or with itself."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    pipe = os.fdopen(fd, "rb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    return stream
