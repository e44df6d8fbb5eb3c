"""One answer read by our client and by aiohttp, and what each makes of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import aiohttp

from cortex_core.routing.retry import Failure
from cortex_gateway.clients.connection import Connection
from cortex_gateway.clients.session import open_session
from cortex_gateway.clients.upstream import open_upstream
from cortex_gateway.ports import UpstreamAnswer, UpstreamFailure
from cortex_gateway.settings import Timeouts

TIMEOUTS = Timeouts(connect_s=10.0, first_byte_s=10.0, idle_s=10.0)


class Outcome(NamedTuple):
    """What a caller of the client gets; of a body that is cut it depends on packets how much."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    failure: Failure | None = None
    """What it ended with."""


Reader = Callable[[str], Awaitable[Outcome]]


async def outcome_of(answering: Awaitable[UpstreamAnswer]) -> Outcome:
    """Return what comes of a request."""
    try:
        answer = await answering
    except UpstreamFailure as error:
        return Outcome(failure=error.failure)
    outcome = Outcome(answer.status, tuple(answer.headers))
    with closing(answer):
        try:
            while piece := await answer.read():
                outcome = outcome._replace(body=outcome.body + piece)
        except UpstreamFailure as error:
            outcome = outcome._replace(failure=error.failure)
    return outcome._replace(body=b"") if outcome.failure else outcome


async def through_ours(url: str) -> Outcome:
    """Ask with our client, over a connection of its own."""
    async with open_upstream(TIMEOUTS, TIMEOUTS) as upstream:
        return await outcome_of(upstream.post(url, [], b"{}"))


async def through_aiohttp(url: str) -> Outcome:
    """Ask with aiohttp, as the gateway did before it had a client of its own."""
    async with open_session(TIMEOUTS) as session:
        try:
            response = await session.post(url, data=b"{}", allow_redirects=False)
        except aiohttp.ClientConnectionError:
            return Outcome(failure=Failure.CUT_BEFORE_ANSWER)
        except aiohttp.ClientError:
            return Outcome(failure=Failure.BAD_ANSWER)
        headers = tuple(
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in response.raw_headers
        )
        body, failure = b"", None
        with closing(response):
            try:
                while piece := await response.content.readany():
                    body += piece
            except aiohttp.ClientError:
                failure = Failure.CUT_MID_ANSWER
        return Outcome(response.status, headers, b"" if failure else body, failure)


async def in_pieces(pieces: Sequence[bytes]) -> Outcome:
    """Return what our client makes of bytes that come in `pieces` before the connection ends."""
    connection = Connection(_Nobody(), keep_alive_s=10.0)
    connection.connection_made(_Wire())
    asking = outcome_of(connection.ask(b"", (), first_byte_s=10.0, idle_s=10.0))
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(asking)
        # The request is written when the task runs.
        await asyncio.sleep(0)
        for piece in pieces:
            if piece:
                connection.data_received(piece)
        connection.eof_received()
        connection.connection_lost(None)
    return answering.result()


class _Nobody:
    """Takes no note of a connection."""

    def keep(self, connection: Connection) -> None:
        pass

    def leave(self, connection: Connection) -> None:
        pass

    def lose(self, connection: Connection) -> None:
        pass


class _Wire(asyncio.Transport):
    """A transport without a socket."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self

    def setsockopt(self, *option: object) -> None:
        pass

    def write(self, data: object) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass
