"""The process that downloads a model, as the daemon sees it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

import msgspec

from cortex_core.errors import (
    HubUnreachableError,
    InsufficientDiskError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
    RequestError,
)
from neuron.settings import SECRETS
from neuron.weights.lines import Failed, Job, Line, Problem
from neuron.weights.source import WeightSource

_LINES: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class Fetching:
    """Runs the process for as long as the context is open; it is gone when that ends.

    Args:
        source: whom to ask, and where to put it.
        model: a hub id.
        revision: branch, tag or commit.
        environ: has the hub's token, unless a file does.
    """

    def __init__(
        self, source: WeightSource, model: str, revision: str, environ: Mapping[str, str]
    ) -> None:
        self._environ = environ
        self._source = source
        self._model = model
        self._revision = revision
        self._process: asyncio.subprocess.Process | None = None

    @property
    def status(self) -> int | None:
        """With which it ended."""
        return None if self._process is None else self._process.returncode

    async def __aenter__(self) -> Self:
        source = self._source
        token = await asyncio.to_thread(source.read_token, self._environ)
        job = Job(
            model=self._model,
            revision=self._revision,
            cache=str(source.cache),
            token=token,
            is_pickle=self._model in source.allow_pickle,
            is_code=self._model in source.allow_code,
        )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "neuron.weights.fetch",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(source),
            # Ctrl-C at a terminal is for the daemon, which then ends its processes.
            start_new_session=True,
        )
        try:
            await self._send(msgspec.json.encode(job))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    async def lines(self) -> AsyncIterator[Line]:
        """Yield what it says until it ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        while raw := await self._process.stdout.readline():
            yield _LINES.decode(raw)
        await self._process.wait()

    async def go(self) -> None:
        """Let it begin with what it has planned."""
        await self._send(b"go")

    async def _send(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # One that has died is noticed where its answer is read.
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()

    async def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def error_of(line: Failed, model: str, missing_bytes: int) -> RequestError:
    """Return why a download does not work.

    Args:
        line: what the process said.
        model: which was wanted.
        missing_bytes: what is still to come.
    """
    match line.problem:
        case Problem.REFUSED:
            return InvalidRequestError(line.message, param="model_id")
        case Problem.NOT_FOUND:
            return NotFoundError(line.message)
        case Problem.UNREACHABLE:
            return HubUnreachableError(
                f"there are no weights for {model!r} in this node's hub cache, and the hub cannot "
                f"be asked: {line.message}"
            )
        case Problem.DISK_FULL:
            return InsufficientDiskError(
                f"{model!r} cannot be downloaded: {line.message}, and {missing_bytes} bytes are "
                "missing",
                needed_bytes=missing_bytes,
                free_bytes=0,
            )
        case Problem.CHECKSUM | Problem.OTHER:
            return ModelLoadFailedError(f"{model!r} cannot be downloaded: {line.message}")


def _environment(source: WeightSource) -> dict[str, str]:
    """Return the environment of the process: ours, without what would stop it or tell others."""
    hidden = (*SECRETS, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    environ |= {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    }
    if source.endpoint is not None:
        environ["HF_ENDPOINT"] = source.endpoint
    return environ
