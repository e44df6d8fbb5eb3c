"""Requests to the inference paths of neurons."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import aiohttp

from cortex_core.routing.retry import Failure
from cortex_gateway.clients.session import open_session
from cortex_gateway.ports import UpstreamAnswer, UpstreamFailure
from cortex_gateway.settings import Timeouts

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

    def __init__(self, session: aiohttp.ClientSession, patience: Patience) -> None:
        self._session = session
        self._patience = patience

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> UpstreamAnswer:
        """Send a request; see `Upstream.post`."""
        data = body if len(body) <= _PIECEWISE_BYTES else io.BytesIO(body)
        with _as_failures():
            async with asyncio.timeout(self._patience.first_byte_s):
                response = await self._session.post(
                    url, headers=headers, data=data, allow_redirects=False
                )
        return _Answer(response, self._patience.idle_s)


@asynccontextmanager
async def open_upstream(timeouts: Timeouts, patience: Patience) -> AsyncIterator[HttpUpstream]:
    """Open the connections to nodes; they are closed when the context ends.

    Args:
        timeouts: for connecting and for idle connections.
        patience: with silent nodes; asked anew for each request.
    """
    async with open_session(timeouts) as session:
        yield HttpUpstream(session, patience)


class _Answer:
    def __init__(self, response: aiohttp.ClientResponse, idle_s: float) -> None:
        self._response = response
        self._idle_s = idle_s
        self._is_wanted = asyncio.Event()

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        return [
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in self._response.raw_headers
        ]

    async def read(self) -> bytes:
        content = self._response.content
        with _as_cuts():
            # What is there already needs no timer.
            chunk = content.read_nowait()
            if not chunk:
                async with asyncio.timeout(self._idle_s):
                    chunk = await content.readany()
        return chunk

    async def pass_to(self, take: Callable[[bytes], bool]) -> None:
        while chunk := await self.read():
            self._is_wanted.clear()
            if not take(chunk):
                await self._is_wanted.wait()

    def resume(self) -> None:
        self._is_wanted.set()

    def close(self) -> None:
        # Closing, not releasing: a neuron must see at once that nobody reads any more. The
        # connection of an answer that was read to its end is back in the pool already.
        self._response.close()


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
