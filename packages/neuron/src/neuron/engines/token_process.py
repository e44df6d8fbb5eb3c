"""The daemon's side of the token process: started when it is needed, ended when it is not."""

import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence

import msgspec

from cortex_core.errors import EngineError, OverloadedError, UpstreamTimeoutError
from cortex_core.harness import ModelSpec, Route
from cortex_core.ids import RequestId
from neuron.engines.token_frames import HEAD_BYTES, Answer, Question, error_of, length_of, pack
from neuron.settings import SECRETS, MediaSettings

_IDLE_S = 300.0
"""Time without a question after which the process is ended; it holds half a gigabyte."""

_ANSWER_S = 120.0
"""Bound on one answer: the first one waits for the import of vLLM, and each model's first for its
tokenizer."""

_WAITING = 64
"""Questions that wait at most; they are answered one at a time."""

_RETRY_AFTER_S = 5.0

_ANSWER = msgspec.msgpack.Decoder(Answer)


def token_command(media: MediaSettings) -> Sequence[str]:
    """Return what starts a token process that obeys `[media]`."""
    settings = msgspec.json.encode(media).decode()
    return (sys.executable, "-m", "neuron.engines.vllm_tokens", settings)


class TokenProcess:
    """Asks the token process, one question at a time.

    Args:
        command: starts it.
        idle_s: time without a question after which it is ended.
        answer_s: bound on one answer.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        idle_s: float = _IDLE_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        self._command = command
        self._idle_s = idle_s
        self._answer_s = answer_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._number = 0
        self._length: int | None = None
        """Of the answer whose head was read."""
        self._idle: asyncio.TimerHandle | None = None

    async def ask(
        self,
        spec: ModelSpec,
        folder: pathlib.Path,
        route: Route,
        body: bytes,
        request_id: RequestId,
    ) -> bytes:
        """Ask about the tokens of a model.

        Args:
            spec: of it.
            folder: its files.
            route: one of `FILES_ROUTES`.
            body: the caller's JSON.
            request_id: for logs.

        Raises:
            OverloadedError: too many wait.
            UpstreamTimeoutError: it takes too long; the process is ended for it.
            RequestError: as the caller shall see it.
        """
        if self._waiting >= _WAITING:
            raise OverloadedError(
                "too many wait to have tokens counted", retry_after_s=_RETRY_AFTER_S
            )
        self._waiting += 1
        try:
            async with self._turn:
                # A model of which nothing but the name differs has the same answers.
                known = ModelSpec(
                    model=spec.model, harness=spec.harness, quant=spec.quant, engine=spec.engine
                )
                self._number += 1
                question = Question(
                    number=self._number,
                    spec=known,
                    folder=str(folder),
                    route=route,
                    body=body,
                    request_id=request_id,
                )
                answer = await self._answer(question)
        finally:
            self._waiting -= 1
        if answer.failure is not None:
            raise error_of(answer.failure)
        return answer.body

    @property
    def pid(self) -> int | None:
        """Id of the process, or `None` while there is none."""
        return None if self._process is None else self._process.pid

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        process = self._process
        self._end()
        if process is not None:
            await process.wait()

    async def _answer(self, question: Question) -> Answer:
        self._keep()
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._exchange(question)
        except TimeoutError:
            self._end()
            raise UpstreamTimeoutError("the tokens could not be told in time") from None
        except (OSError, EOFError):
            self._end()
            raise EngineError("the process that tells tokens ended by itself") from None
        finally:
            self._rest()

    async def _exchange(self, question: Question) -> Answer:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pack(question))
        await process.stdin.drain()
        while True:
            answer = await self._read(process.stdout)
            # Earlier ones are for callers who have left.
            if answer.number == question.number:
                return answer

    async def _read(self, answers: asyncio.StreamReader) -> Answer:
        # A caller may leave between head and body; the next one goes on from there.
        if self._length is None:
            self._length = length_of(await answers.readexactly(HEAD_BYTES))
        body = await answers.readexactly(self._length)
        self._length = None
        return _ANSWER.decode(body)

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # The files are here; what is not is none of its business.
                env=_environment(),
            )
        return self._process

    def _keep(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _rest(self) -> None:
        self._keep()
        if self._process is not None:
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._end)

    def _end(self) -> None:
        self._keep()
        process, self._process = self._process, None
        self._length = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return {**known, "HF_HUB_OFFLINE": "1"}
