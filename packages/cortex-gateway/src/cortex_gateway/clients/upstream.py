"""Requests to the inference paths of neurons."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import aiohttp

from cortex_core.routing.retry import Failure
from cortex_gateway.ports import UpstreamAnswer, UpstreamFailure

# aiohttp warns when it is given more than this as plain bytes, and sends files in pieces.
_PIECEWISE_BYTES = 1 << 20


class Patience(Protocol):
    """How long a node may be silent, as it is at the moment of the question."""

    @property
    def first_byte_s(self) -> float:
        """For the head of its answer."""
        ...

    @property
    def idle_s(self) -> float:
        """Between two chunks of its answer."""
        ...


class HttpUpstream:
    """`Upstream` over aiohttp."""

    def __init__(self, session: aiohttp.ClientSession, timeouts: Patience) -> None:
        self._session = session
        self._timeouts = timeouts

    @asynccontextmanager
    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send a request; see `Upstream.post`."""
        data = body if len(body) <= _PIECEWISE_BYTES else io.BytesIO(body)
        with _as_failures():
            async with asyncio.timeout(self._timeouts.first_byte_s):
                response = await self._session.post(
                    url, headers=headers, data=data, allow_redirects=False
                )
        try:
            yield _Answer(response, self._timeouts.idle_s)
        finally:
            # Closing, not releasing: a neuron must see at once that nobody reads any more. The
            # connection of an answer that was read to its end is back in the pool already.
            response.close()


class _Answer:
    def __init__(self, response: aiohttp.ClientResponse, idle_s: float) -> None:
        self._response = response
        self._idle_s = idle_s

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        return [
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in self._response.raw_headers
        ]

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        while True:
            with _as_cuts():
                # What is there already needs no timer.
                chunk = content.read_nowait()
                if not chunk:
                    async with asyncio.timeout(self._idle_s):
                        chunk = await content.readany()
            if not chunk:
                return
            yield chunk


@contextmanager
def _as_failures() -> Iterator[None]:
    """Turn what goes wrong before an answer has begun into an `UpstreamFailure`."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise UpstreamFailure(Failure.CONNECT, _reason(error)) from None
    except TimeoutError:
        raise UpstreamFailure(Failure.TIMEOUT, "no answer began in time") from None
    except aiohttp.ClientConnectionError as error:
        raise UpstreamFailure(Failure.CUT_BEFORE_ANSWER, _reason(error)) from None
    except aiohttp.ClientError as error:
        raise UpstreamFailure(Failure.BAD_ANSWER, _reason(error)) from None


@contextmanager
def _as_cuts() -> Iterator[None]:
    """Turn what goes wrong within an answer into an `UpstreamFailure`."""
    try:
        yield
    except TimeoutError:
        raise UpstreamFailure(Failure.TIMEOUT, "silent within its answer") from None
    except aiohttp.ClientError as error:
        raise UpstreamFailure(Failure.CUT_MID_ANSWER, _reason(error)) from None


def _reason(error: Exception) -> str:
    # Some of aiohttp's errors have an empty text.
    return str(error) or type(error).__name__
