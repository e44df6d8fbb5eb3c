"""Other neurons, as a client: asking them for followers, and listening for as long as they live."""

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator
from typing import NoReturn
from urllib.parse import urlsplit

import aiohttp
import msgspec

from cortex_core.codec import encode_json
from cortex_core.errors import (
    ConflictError,
    CordonedError,
    DrainingError,
    EngineError,
    InsufficientVramError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
    RequestError,
    UpstreamCutError,
    UpstreamError,
    UpstreamTimeoutError,
)
from cortex_core.group import Seat
from cortex_core.sse import SseDecoder
from cortex_core.wire.neuron import JOINED_EVENT, FollowerRequest

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
"""For the name and the connection; peers are near each other."""

_END_S = 20.0
"""For a peer to end a follower and have its memory back; the connection is dropped anyway."""

_DISCARD_PORT = 9
"""Of the discard service (RFC 863): a datagram socket that is connected there sends nothing."""

_CLASSES: dict[str | None, type[RequestError]] = {
    kind.code: kind
    for kind in (
        ConflictError,
        CordonedError,
        DrainingError,
        EngineError,
        ModelLoadFailedError,
        NotFoundError,
    )
}
"""What a peer's refusal is here; whatever else it says is an engine's failure."""


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""
    type: str = ""
    code: str | None = None
    needed_bytes: int = 0
    free_bytes: int = 0


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    error: _Detail = _Detail()


@contextlib.asynccontextmanager
async def open_peers(
    tasks: asyncio.TaskGroup, *, silence_s: float, host: str | None, token: str | None
) -> AsyncIterator["HttpPeers"]:
    """Open the way to other neurons; it is closed when the context ends.

    Args:
        tasks: own what listens to them.
        silence_s: after which a peer that should send something is lost.
        host: address under which this node is reached; `None` takes the one towards each peer.
        token: of the fleet, which peers ask for; `None` where it has none.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, resolver=aiohttp.ThreadedResolver()),
        # Silence is timed by whoever reads; a follower's stream has no end of its own.
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S, sock_connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=None if token is None else {"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    async with session:
        yield HttpPeers(session, tasks, silence_s, host)


class HttpPeers:
    """`Peers` over aiohttp; see `open_peers`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        tasks: asyncio.TaskGroup,
        silence_s: float,
        host: str | None,
    ) -> None:
        self._session = session
        self._tasks = tasks
        self._silence_s = silence_s
        self._host = host

    async def seat(self, endpoint: str) -> Seat:
        """Return the place of the head of a new group; see `Peers`.

        Raises:
            UpstreamError: the peer's name does not resolve.
        """
        host = await self.host_towards(urlsplit(endpoint).hostname or "")
        return Seat(
            group=uuid.uuid4().hex,
            rank=0,
            nodes=1,
            address=host,
            port=await asyncio.to_thread(_free_port),
            host=host,
            head=socket.gethostname(),
        )

    async def host_towards(self, address: str) -> str:
        """Return the address under which this node is reached from `address`; see `Peers`."""
        if self._host is not None:
            return self._host
        return await asyncio.to_thread(_local_address, address)

    def follow(self, endpoint: str, request: FollowerRequest) -> "HttpFollower":
        """Have the neuron at `endpoint` start a follower; see `Peers`."""
        follower = HttpFollower(self._session, endpoint, request, self._silence_s)
        follower.listen(self._tasks)
        return follower


class HttpFollower:
    """`Follower` that lives for as long as its answer is read.

    Args:
        session: of the process.
        endpoint: base URL of its neuron.
        request: what to ask for.
        silence_s: after which it is lost.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: str,
        request: FollowerRequest,
        silence_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.lost: asyncio.Future[RequestError] = loop.create_future()
        self._session = session
        self._request = request
        self._silence_s = silence_s
        self._joined = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def listen(self, tasks: asyncio.TaskGroup) -> None:
        """Ask, and listen from here on."""
        self._task = tasks.create_task(self._listen(), name=f"follower at {self.endpoint}")

    async def joined(self) -> None:
        """Wait until it has its memory and its devices; see `Follower`."""
        # Whoever waits is told of a loss by other means.
        await self._joined.wait()

    async def settle(self) -> None:
        """Say that the head is up; see `Follower`."""
        url = f"{self.endpoint}/followers/{self._request.group}/settle"
        try:
            async with self._session.post(url) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None
        if answer.status != 200:
            raise self._refusal(body)

    async def close(self) -> None:
        """End it; see `Follower`. Whatever comes of that, the connection is dropped."""
        url = f"{self.endpoint}/followers/{self._request.group}"
        try:
            if not self.lost.done():
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with asyncio.timeout(_END_S), self._session.delete(url) as answer:
                        await answer.read()
        finally:
            if self._task is not None:
                self._task.cancel()

    async def _listen(self) -> None:
        error: RequestError = EngineError(f"{self.endpoint}: it was ended")
        try:
            await self._read()
        except RequestError as why:
            error = why
        except TimeoutError:
            error = UpstreamTimeoutError(f"{self.endpoint} is silent")
        except (aiohttp.ClientError, OSError) as why:
            error = self._unreachable(why)
        except Exception:
            # A peer that says what nobody thought of must not end the daemon.
            logger.exception("follower not understood", extra={"endpoint": self.endpoint})
        finally:
            if not self.lost.done():
                self.lost.set_result(error)

    async def _read(self) -> NoReturn:
        async with asyncio.timeout(self._silence_s):
            answer = await self._session.post(
                f"{self.endpoint}/followers",
                data=encode_json(self._request),
                headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
                allow_redirects=False,
            )
        try:
            if answer.status != 200:
                async with asyncio.timeout(self._silence_s):
                    raise self._refusal(await answer.read())
            decoder = SseDecoder()
            while True:
                async with asyncio.timeout(self._silence_s):
                    chunk = await answer.content.readany()
                if not chunk:
                    raise UpstreamCutError(f"{self.endpoint} ended without a word")
                for event in decoder.feed(chunk):
                    if event.event == JOINED_EVENT:
                        self._joined.set()
                    elif event.event == "error":
                        raise self._refusal(event.data)
        finally:
            answer.close()

    def _refusal(self, body: bytes | str) -> RequestError:
        try:
            detail = msgspec.json.decode(body, type=_Refusal).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            return UpstreamError(f"{self.endpoint} gave an answer that cannot be read")
        message = f"{self.endpoint}: {detail.message[:500] or 'no reason given'}"
        if detail.code == InsufficientVramError.code:
            return InsufficientVramError(
                message, needed_bytes=detail.needed_bytes, free_bytes=detail.free_bytes
            )
        if detail.type == InvalidRequestError.openai_type and detail.code is None:
            return InvalidRequestError(message, param="peers")
        return _CLASSES.get(detail.code, EngineError)(message)

    def _unreachable(self, error: Exception) -> RequestError:
        if isinstance(error, aiohttp.ClientConnectorError):
            code = error.errno or 0
            why = os.strerror(code) if code > 0 else "its name does not resolve"
            return UpstreamError(f"{self.endpoint} cannot be reached: {why}")
        return UpstreamCutError(f"{self.endpoint} cut the connection")


def _free_port() -> int:
    # Somebody else may take it before the engine does; the load fails then, and is tried again.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


def _local_address(towards: str) -> str:
    """Return the address from which packets go to `towards`; blocks for its name.

    Raises:
        UpstreamError: its name does not resolve, or there is no way to it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            towards, _DISCARD_PORT, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            host: str = probe.getsockname()[0]
    except OSError as error:
        raise UpstreamError(f"there is no way to {towards!r}: {error.strerror}") from None
    return host
