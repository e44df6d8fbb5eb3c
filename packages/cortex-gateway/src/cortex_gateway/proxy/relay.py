"""A node's answer on its way to the caller: chunk in, chunk out, the caller sets the pace."""

from collections.abc import Callable

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.headers import response_headers
from cortex_core.routing.retry import Failure
from cortex_core.sse import encode_event
from cortex_core.translate.refusal import read_refusal
from cortex_gateway.ports import UpstreamAnswer, UpstreamFailure
from cortex_gateway.proxy.account import FAILED_AT_NODE, REFUSED_BY_NODE, Account
from cortex_gateway.proxy.asked import Asked, Outbound
from cortex_gateway.proxy.hold import Pulse
from cortex_gateway.proxy.reply import Reply
from cortex_gateway.proxy.watch import StreamWatch, is_json, is_only_comments, whole_findings

WHOLE_BYTES = 64 << 10
"""A plain answer up to this size is collected before its head is sent: until then it may still
come from another node. An engine writes such an answer in one piece, so nothing is delayed."""

REWRITTEN_BYTES = 64 << 20
"""Bound on an answer that has to be read whole before it can be passed on."""

MAX_ERROR_BYTES = 64 << 10
"""An error body over this is no error object."""

LINGER_S = 1.0
"""How long a node may take to end an answer whose terminator it has sent. An answer that ends
leaves its connection for the next request; no caller waits for it."""

SILENCE_S = 5.0
"""Clients show a stall from some 20 seconds of silence on."""

_FAILED_STATUSES = frozenset({500, 502, 504})
"""The node's own fault; other 5xx say that it is full, or cannot do what was asked."""

_STREAM_OWN = frozenset({"content-type", "cache-control", "x-accel-buffering"})


class Relay:
    """Passes one answer on.

    Args:
        reply: the caller's side.
        account: gets the times and findings.
        pulse: the heartbeat, stopped when the first content is there; `None` without one.
        asked: the request.
        outbound: what was sent, and how the answer is to be read.
        dialect: of the upstream.
    """

    def __init__(
        self,
        reply: Reply,
        account: Account,
        pulse: Pulse | None,
        asked: Asked,
        outbound: Outbound,
        dialect: Dialect,
    ) -> None:
        self._reply = reply
        self._account = account
        self._pulse = pulse
        self._asked = asked
        self._outbound = outbound
        self._answer = outbound.answer
        self._dialect = dialect

    async def run(self, answer: UpstreamAnswer) -> None:
        """Pass the answer on to its end.

        Raises:
            UpstreamFailure: it ended before it was complete, or is nothing for a caller.
            RequestError: what the caller is to be told instead.
        """
        self._account.answered()
        headers = dict(answer.headers)
        is_encoded = headers.get("content-encoding", "identity") != "identity"
        kind = headers.get("content-type", "")
        if not 200 <= answer.status < 300:
            await self._refusal(answer, kind, is_encoded)
        elif self._is_stream(kind) and not is_encoded:
            await self._stream(answer)
        elif self._asked.is_stream:
            raise UpstreamFailure(Failure.BAD_ANSWER, "no stream although one was asked for")
        elif self._answer is None or (is_encoded and not self._outbound.is_translated):
            await self._plain(answer, headers, 0 if is_encoded else WHOLE_BYTES)
        else:
            await self._rewritten(answer, is_encoded)

    def _is_stream(self, kind: str) -> bool:
        """Whether events come; a caller of another dialect gets none that it did not ask for."""
        if not kind.startswith("text/event-stream"):
            return False
        return self._asked.is_stream or not self._outbound.is_translated

    async def _stream(self, answer: UpstreamAnswer) -> None:
        watch = StreamWatch(self._dialect)
        try:
            events = await _first_events(answer, watch)
            await self._quiet()
            await self._reply.begin_stream(self._headers(answer, without=_STREAM_OWN))
            try:
                out = await self._pass_on(answer, watch, events)
            except _EndedError:
                await self._ended(watch)
                return
            await self._finish(out)
            answer.close(linger_s=LINGER_S)
        finally:
            # Also for a caller that left: what the last events told is worth keeping.
            self._account.findings = watch.findings()

    async def _pass_on(self, answer: UpstreamAnswer, watch: StreamWatch, events: bytes) -> bytes:
        """Pass events on to the last one of the stream, for which it returns what is to be sent.

        Raises:
            _EndedError: the node ended the stream without it.
        """
        reply, account, read = self._reply, self._account, self._answer
        silence, awaits_token = Silence(account.now), True

        def take(data: bytes) -> bool:
            # This is the hot path: one call for each token of every stream.
            events = watch.feed(data)
            return not events or give(events)

        def give(events: bytes) -> bool:
            nonlocal awaits_token
            if awaits_token and watch.has_content:
                awaits_token = False
                account.first_token()
            out = events if read is None else read.feed(events)
            if watch.is_done or (read is not None and read.failure is not None):
                raise _Last(out)
            if out:
                if silence.since is not None:
                    silence.end()
                return reply.write(out)
            return not silence.is_long() or reply.write(self._keep_alive())

        reply.on_writable(answer.resume)
        try:
            give(events)
            await answer.pass_to(take)
        except _Last as last:
            return last.out
        raise _EndedError

    async def _finish(self, out: bytes) -> None:
        """Send the last bytes of a stream that came to its end."""
        if self._answer is not None:
            out += self._answer.end()
        if self._has_failed():
            self._account.outcome = FAILED_AT_NODE
        else:
            await self._asked.settle()
            self._account.succeed()
        await self._reply.end(out)

    async def _ended(self, watch: StreamWatch) -> None:
        """Finish a stream whose node has ended it without a terminator so far."""
        rest = watch.end()
        if watch.is_done:
            await self._finish(rest if self._answer is None else self._answer.feed(rest))
        elif watch.findings().has_error:
            # The node's own words are with the caller already.
            self._account.outcome = FAILED_AT_NODE
            await self._reply.end()
        else:
            raise UpstreamFailure(Failure.CUT_MID_ANSWER, "the stream ended without its terminator")

    async def _quiet(self) -> None:
        """Return when no heartbeat will be sent any more."""
        if self._pulse is not None:
            await self._pulse.stop()

    def _has_failed(self) -> bool:
        return self._answer is not None and self._answer.failure is not None

    def _keep_alive(self) -> bytes:
        return b"" if self._answer is None else self._answer.keep_alive()

    async def _rewritten(self, answer: UpstreamAnswer, is_encoded: bool) -> None:
        """Read an answer whole and pass on what it comes to for the caller."""
        assert self._answer is not None
        body, is_whole = await _collected(answer, REWRITTEN_BYTES)
        await self._quiet()
        if is_encoded or not is_whole:
            raise UpstreamFailure(Failure.BAD_ANSWER, "the answer is compressed, or endless")
        findings = whole_findings(body, self._dialect)
        if findings is None:
            raise UpstreamFailure(Failure.CUT_MID_ANSWER, "the answer is no whole JSON")
        self._account.findings = findings
        out = self._answer.whole(body)
        await self._asked.settle()
        self._account.succeed()
        await self._reply.whole(answer.status, self._headers(answer), out)

    async def _plain(
        self, answer: UpstreamAnswer, headers: dict[str, str], whole_bytes: int
    ) -> None:
        body, is_whole = await _collected(answer, whole_bytes)
        await self._quiet()
        if is_whole:
            findings = whole_findings(body, self._dialect)
            if findings is None and not _is_delimited(headers):
                # Such a body ends where its connection does, and a cut looks the same.
                raise UpstreamFailure(Failure.CUT_MID_ANSWER, "the answer is no whole JSON")
            if findings is not None:
                self._account.findings = findings
            self._account.succeed()
            await self._reply.whole(answer.status, self._headers(answer), body)
            return
        length = headers.get("content-length")
        known = [] if length is None else [("content-length", length)]
        await self._reply.begin(answer.status, [*self._headers(answer), *known])
        self._reply.on_writable(answer.resume)
        self._reply.write(body)
        await answer.pass_to(self._reply.write)
        self._account.succeed()
        await self._reply.end()

    async def _refusal(self, answer: UpstreamAnswer, kind: str, is_encoded: bool) -> None:
        """Pass on a status that is no success, if it comes with an error object."""
        body, is_whole = await _collected(answer, MAX_ERROR_BYTES)
        await self._quiet()
        is_ours = kind.startswith("application/json") and not is_encoded and is_json(body)
        if answer.status < 400 or not is_whole or not is_ours:
            raise UpstreamFailure(Failure.BAD_ANSWER, f"status {answer.status} without an error")
        has_failed = answer.status in _FAILED_STATUSES
        self._account.outcome = FAILED_AT_NODE if has_failed else REFUSED_BY_NODE
        # A key that is not taken is the gateway's own: the caller must not be told to mend its.
        if self._outbound.is_translated or answer.status in (401, 403):
            advice = dict(answer.headers).get("retry-after", "")
            retry_after_s = float(advice) if advice.isascii() and advice.isdigit() else None
            error = read_refusal(answer.status, body, retry_after_s=retry_after_s)
            await self._reply.fail(error, self._account.answer_headers())
        elif self._reply.status:
            # One line, whatever layout the node gave it.
            event = "error" if self._dialect is Dialect.ANTHROPIC else None
            await self._reply.end(encode_event(msgspec.json.format(body, indent=-1), event=event))
        else:
            await self._reply.whole(answer.status, self._headers(answer), body)

    def _headers(
        self, answer: UpstreamAnswer, without: frozenset[str] = frozenset()
    ) -> list[tuple[str, str]]:
        theirs = response_headers(answer.headers)
        if without:
            theirs = [pair for pair in theirs if pair[0] not in without]
        return theirs + self._account.answer_headers()


class _EndedError(Exception):
    """A node ended its stream without the terminator."""


class _Last(Exception):  # noqa: N818 - nothing went wrong
    """Ends the passing of events: the terminator came, or the stream cannot be read on."""

    def __init__(self, out: bytes) -> None:
        super().__init__()
        self.out = out


class Silence:
    """How long nothing was sent to a caller although events came: hidden thinking, for one.

    Args:
        now: returns monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.since: float | None = None
        """Monotonic seconds; `None` while something is sent."""

    def end(self) -> None:
        """Note that something is being sent."""
        self.since = None

    def is_long(self) -> bool:
        """Whether the caller should be shown that its request lives; then counts anew."""
        now = self._now()
        if self.since is None:
            self.since = now
        if now - self.since < SILENCE_S:
            return False
        self.since = now
        return True


async def _first_events(answer: UpstreamAnswer, watch: StreamWatch) -> bytes:
    """Return the first whole events that are more than a node's own heartbeat.

    Raises:
        UpstreamFailure: the stream ended without any.
    """
    while events := await _more_events(answer, watch):
        if not is_only_comments(events):
            return events
    if rest := watch.end():
        return rest
    raise UpstreamFailure(Failure.CUT_BEFORE_ANSWER, "the stream ended before it began")


async def _more_events(answer: UpstreamAnswer, watch: StreamWatch) -> bytes:
    """Return the next whole events; none at the end of the answer."""
    while chunk := await answer.read():
        if events := watch.feed(chunk):
            return events
    return b""


async def _collected(answer: UpstreamAnswer, limit_bytes: int) -> tuple[bytes, bool]:
    """Return what came until the end or until `limit_bytes` were passed, and whether it ended."""
    # An engine writes a plain answer in one piece.
    rest = answer.rest()
    if rest is not None:
        return rest, len(rest) <= limit_bytes
    parts: list[bytes] = []
    size = 0
    while chunk := await answer.read():
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            return b"".join(parts), False
    return b"".join(parts), True


def _is_delimited(headers: dict[str, str]) -> bool:
    return "content-length" in headers or "transfer-encoding" in headers
