"""One request to a model, and when its parts came."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import aiohttp
import msgspec

from cortex_cli.bench.lag import Buckets, read_buckets
from cortex_cli.bench.open_loop import Call
from cortex_cli.bench.samples import Sample
from cortex_core.errors import UpstreamCutError
from cortex_core.sse import SseDecoder, SseEvent

DONE = "[DONE]"

CONNECT_S = 10.0

METRICS_S = 3.0
"""For a page that comes from memory, and that nobody has to show."""

_MOST_BYTES = 16 << 20


class _Delta(msgspec.Struct, frozen=True, kw_only=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    delta: _Delta = _Delta()


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    choices: tuple[_Choice, ...] = ()
    error: object = None


_CHUNK_DECODER = msgspec.json.Decoder(_Chunk)


class Stream:
    """What came of a stream so far.

    Args:
        due_at: of its request, on the clock of the times that follow.
    """

    def __init__(self, due_at: float) -> None:
        self._due_at = due_at
        self._decoder = SseDecoder()
        self._last_at: float | None = None
        self.first_token_s: float | None = None
        self.gaps_s: list[float] = []
        self.events = 0
        self.outcome = "cut"

    def read(self, data: bytes, now: float) -> None:
        """Take bytes as they came."""
        events = self._decoder.feed(data)
        if not events:
            return
        if self._last_at is not None:
            self.gaps_s.append(now - self._last_at)
        self._last_at = now
        for event in events:
            self._take(event, now)

    def _take(self, event: SseEvent, now: float) -> None:
        if event.data == DONE:
            self.outcome = "ok" if self.outcome == "cut" else self.outcome
            return
        self.events += 1
        # Reading what is said is dear, and of interest until something is.
        if self.first_token_s is None or '"error"' in event.data:
            try:
                chunk = _CHUNK_DECODER.decode(event.data)
            except msgspec.DecodeError:
                return
            if chunk.error is not None:
                self.outcome = "error"
            elif any(_text(choice.delta) for choice in chunk.choices):
                self.first_token_s = now - self._due_at


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What every request asks."""

    model: str
    prompt_bytes: int
    """Size of the prompt, about; each begins with a number of its own, lest an engine's cache
    answers for it."""
    max_tokens: int
    is_stream: bool

    def body(self, number: int) -> bytes:
        """Return the body of one request."""
        words = "word " * (self.prompt_bytes // 5)
        message = {"role": "user", "content": f"{number} {words}".strip()}
        fields = {"model": self.model, "messages": [message], "max_tokens": self.max_tokens}
        return msgspec.json.encode({**fields, "stream": self.is_stream})


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[aiohttp.ClientSession]:
    """Yield what makes as many connections as requests are open."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def lag_buckets(session: aiohttp.ClientSession, url: str | None) -> Buckets | None:
    """Return how late a gateway's loop has been so far; `None` where that is not shown."""
    timeout = aiohttp.ClientTimeout(total=METRICS_S)
    told = bytearray()
    if url is None:
        return None
    try:
        async with session.get(url, timeout=timeout, allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            async for piece in answer.content.iter_any():
                told += piece
                if len(told) > _MOST_BYTES:
                    return None
    except (TimeoutError, OSError, ValueError, aiohttp.ClientError):
        return None
    return read_buckets(told.decode(errors="replace"))


def chat_caller(
    session: aiohttp.ClientSession, endpoint: str, question: Question, patience_s: float
) -> Call:
    """Return what asks for a chat completion.

    Args:
        session: whose connections are used.
        endpoint: base URL without a path.
        question: of every request.
        patience_s: after so long an answer is given up.
    """
    url = f"{endpoint.rstrip('/')}/v1/chat/completions"
    headers = {"content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=patience_s, sock_connect=CONNECT_S)
    numbers = itertools.count()

    async def call(due_at: float) -> Sample:
        loop, data = asyncio.get_running_loop(), question.body(next(numbers))
        stream, first_byte_s, outcome = Stream(due_at), None, "unreachable"
        sent_s = loop.time() - due_at
        try:
            async with session.post(url, data=data, headers=headers, timeout=timeout) as answer:
                outcome = "cut"
                async for piece in answer.content.iter_any():
                    if first_byte_s is None:
                        first_byte_s = loop.time() - due_at
                    if question.is_stream:
                        stream.read(piece, loop.time())
                outcome = stream.outcome if question.is_stream else "ok"
                if answer.status != 200:
                    outcome = str(answer.status)
        except TimeoutError:
            outcome = "timeout"
        except (aiohttp.ClientError, UpstreamCutError):
            # Which of the two it was is told by how far it came.
            pass
        return Sample(
            outcome=outcome,
            sent_s=sent_s,
            first_byte_s=first_byte_s,
            first_token_s=stream.first_token_s,
            end_s=loop.time() - due_at,
            gaps_s=tuple(stream.gaps_s),
            events=stream.events,
        )

    return call


def _text(delta: _Delta) -> str | None:
    return delta.content or delta.reasoning or delta.reasoning_content
