"""A node's answer on its way to the caller: chunk in, chunk out, the caller sets the pace."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

from cortex_core.headers import response_headers
from cortex_core.routing.retry import Failure
from cortex_core.sse import encode_event
from cortex_gateway.ports import UpstreamAnswer, UpstreamFailure
from cortex_gateway.proxy.account import FAILED_AT_NODE, REFUSED_BY_NODE, Account
from cortex_gateway.proxy.hold import Pulse
from cortex_gateway.proxy.reply import Reply
from cortex_gateway.proxy.watch import StreamWatch, findings_of, is_only_comments

WHOLE_BYTES = 64 << 10
"""A plain answer up to this size is collected before its head is sent: until then it may still
come from another node. An engine writes such an answer in one piece, so nothing is delayed."""

MAX_ERROR_BYTES = 64 << 10
"""An error body over this is no error object."""

LINGER_S = 1.0
"""How long a node may take to end an answer whose terminator it has sent. An answer that ends
leaves its connection for the next request."""

_FAILED_STATUSES = frozenset({500, 502, 504})
"""The node's own fault; other 5xx say that it is full, or cannot do what was asked."""

_STREAM_OWN = frozenset({"content-type", "cache-control", "x-accel-buffering"})


class Relay:
    """Passes one answer on.

    Args:
        reply: the caller's side.
        account: gets the times and findings.
        pulse: the heartbeat, stopped when the first content is there.
    """

    def __init__(self, reply: Reply, account: Account, pulse: Pulse) -> None:
        self._reply = reply
        self._account = account
        self._pulse = pulse

    async def run(self, answer: UpstreamAnswer) -> None:
        """Pass the answer on to its end.

        Raises:
            UpstreamFailure: it ended before it was complete, or is nothing for a caller.
        """
        headers = dict(answer.headers)
        is_encoded = headers.get("content-encoding", "identity") != "identity"
        kind = headers.get("content-type", "")
        if not 200 <= answer.status < 300:
            await self._refusal(answer, kind, is_encoded)
        elif kind.startswith("text/event-stream") and not is_encoded:
            await self._stream(answer)
        elif self._reply.is_stream:
            raise UpstreamFailure(Failure.BAD_ANSWER, "no stream although one was asked for")
        else:
            await self._plain(answer, headers, 0 if is_encoded else WHOLE_BYTES)

    async def _stream(self, answer: UpstreamAnswer) -> None:
        reply, account, watch = self._reply, self._account, StreamWatch()
        chunks = answer.chunks()
        try:
            events = await _first_events(chunks, watch)
            await self._pulse.stop()
            await reply.begin_stream(self._headers(answer, without=_STREAM_OWN))
            # This is the hot loop: one pass for each token of every stream.
            while True:
                if account.awaits_token and watch.has_content:
                    account.first_token()
                await reply.write(events)
                if watch.is_done:
                    break
                events = watch.feed(await anext(chunks))
                while not events:
                    events = watch.feed(await anext(chunks))
        except StopAsyncIteration:
            await self._ended(watch)
        else:
            account.succeed()
            await reply.end()
            await _linger(chunks)
        finally:
            # Also for a caller that left: what the last events told is worth keeping.
            account.findings = watch.findings()

    async def _ended(self, watch: StreamWatch) -> None:
        """Finish a stream whose node has ended it without a terminator so far."""
        rest = watch.end()
        if watch.is_done:
            self._account.succeed()
            await self._reply.end(rest)
        elif watch.findings().has_error:
            # The node's own words are with the caller already.
            self._account.outcome = FAILED_AT_NODE
            await self._reply.end()
        else:
            raise UpstreamFailure(Failure.CUT_MID_ANSWER, "the stream ended without its terminator")

    async def _plain(
        self, answer: UpstreamAnswer, headers: dict[str, str], whole_bytes: int
    ) -> None:
        chunks = answer.chunks()
        parts, is_whole = await _collect(chunks, whole_bytes)
        body = b"".join(parts)
        await self._pulse.stop()
        if is_whole:
            if not _is_delimited(headers) and not _is_json(body):
                # Such a body ends where its connection does, and a cut looks the same.
                raise UpstreamFailure(Failure.CUT_MID_ANSWER, "the answer is no whole JSON")
            self._account.findings = findings_of(body)
            self._account.succeed()
            await self._reply.whole(answer.status, self._headers(answer), body)
            return
        length = headers.get("content-length")
        known = [] if length is None else [("content-length", length)]
        await self._reply.begin(answer.status, [*self._headers(answer), *known])
        await self._reply.write(body)
        async for chunk in chunks:
            await self._reply.write(chunk)
        self._account.succeed()
        await self._reply.end()

    async def _refusal(self, answer: UpstreamAnswer, kind: str, is_encoded: bool) -> None:
        """Pass on a status that is no success, if it is an error object of our dialect."""
        parts, is_whole = await _collect(answer.chunks(), MAX_ERROR_BYTES)
        body = b"".join(parts)
        await self._pulse.stop()
        is_ours = kind.startswith("application/json") and not is_encoded and _is_json(body)
        if answer.status < 400 or not is_whole or not is_ours:
            raise UpstreamFailure(Failure.BAD_ANSWER, f"status {answer.status} without an error")
        has_failed = answer.status in _FAILED_STATUSES
        self._account.outcome = FAILED_AT_NODE if has_failed else REFUSED_BY_NODE
        if self._reply.status:
            # One line, whatever layout the node gave it.
            await self._reply.end(encode_event(msgspec.json.format(body, indent=-1)))
        else:
            await self._reply.whole(answer.status, self._headers(answer), body)

    def _headers(
        self, answer: UpstreamAnswer, without: frozenset[str] = frozenset()
    ) -> list[tuple[str, str]]:
        theirs = [
            (name, value)
            for name, value in response_headers(answer.headers)
            if name not in without and not name.startswith("x-cortex-")
        ]
        return theirs + self._account.answer_headers()


async def _first_events(chunks: AsyncIterator[bytes], watch: StreamWatch) -> bytes:
    """Return the first whole events that are more than a node's own heartbeat.

    Raises:
        UpstreamFailure: the stream ended without any.
    """
    async for chunk in chunks:
        events = watch.feed(chunk)
        if events and not is_only_comments(events):
            return events
    if rest := watch.end():
        return rest
    raise UpstreamFailure(Failure.CUT_BEFORE_ANSWER, "the stream ended before it began")


async def _collect(chunks: AsyncIterator[bytes], limit_bytes: int) -> tuple[list[bytes], bool]:
    """Return what came until the end or until `limit_bytes` were passed, and whether it ended."""
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            return parts, False
    return parts, True


async def _linger(chunks: AsyncIterator[bytes]) -> None:
    """Take the end of an answer that is complete; more data than that is dropped with it."""
    with contextlib.suppress(UpstreamFailure, TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(LINGER_S):
            await anext(chunks)


def _is_delimited(headers: dict[str, str]) -> bool:
    return "content-length" in headers or "transfer-encoding" in headers


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
