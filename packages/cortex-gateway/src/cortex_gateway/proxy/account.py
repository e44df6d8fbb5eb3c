"""What one request came to: one log line and the series, whatever became of it."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import msgspec

from cortex_core.errors import RequestError
from cortex_core.ids import ModelId, ReplicaId
from cortex_core.server.clock import Clock
from cortex_core.server.logging import tell
from cortex_core.simulation.trace import Arrival
from cortex_gateway.metrics import CLIENT_GONE, OK, UNKNOWN
from cortex_gateway.ports import RequestMetrics
from cortex_gateway.proxy.watch import Findings, Usage

logger = logging.getLogger(__name__)

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

CLIENT_GONE_STATUS = 499
"""Logged for a caller that hung up; nginx's number, which log readers know."""

MAX_IGNORED_CHARS = 500
"""Bound on a header whose content a caller decides."""

REFUSED_BY_NODE = "refused_by_node"
"""Outcome of an answer with a 4xx status that a node gave and the caller got as it was."""

FAILED_AT_NODE = "failed_at_node"
"""The same with a 5xx status, or an error event of the node's within a stream."""

_NOTHING = Findings()
_UNKNOWN_USAGE = Usage()


class Account:
    """Collects the figures of one request, and closes with a line and a count.

    The outcome counts as that of a caller that hung up until something else is known: then a
    cancellation, at whatever point, is told right without any code for it.
    """

    def __init__(
        self, metrics: RequestMetrics, clock: Clock, *, request_id: str, path: str
    ) -> None:
        self.outcome = CLIENT_GONE
        self.is_stream = False
        self.shows_timing = False
        """Whether the caller wants to see the stages of its request."""
        self.attempts = 0
        self.load_s = 0.0
        """Time held for want of a loaded replica."""
        self.is_cold_start = False
        self.findings = _NOTHING
        self.ignored: tuple[str, ...] = ()
        """Paths in the request that were left out of what the upstream was sent."""
        self.arrival: Arrival | None = None
        """The request as a trace has it, its sizes guessed; only where one is recorded."""
        self._metrics = metrics
        self.now = clock.now
        """Returns monotonic seconds."""
        self._request_id = request_id
        self._path = path
        self._model: ModelId | None = None
        self._node: str | None = None
        self._started_at = self.now()
        self._dispatched_at: float | None = None
        self._answered_at: float | None = None
        self._first_token_at: float | None = None
        self._ended_at: float | None = None
        self._error_status = 0

    def begin(self, model: ModelId) -> None:
        """Note the model, which the fleet knows."""
        self._model = model
        self._metrics.began(model)

    def dispatch(self, replica: ReplicaId) -> float:
        """Note that an attempt at `replica` begins; return when, in monotonic seconds."""
        self.attempts += 1
        self._node = replica.node
        self._dispatched_at = now = self.now()
        self._answered_at = None
        return now

    def answered(self) -> None:
        """Note that the node has begun to answer."""
        self._answered_at = self.now()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the time in the context as a wait for a load."""
        since = self.now()
        try:
            yield
        finally:
            self.load_s += self.now() - since

    def first_token(self) -> None:
        """Note that the first content is here."""
        self._first_token_at = self.now()

    def succeed(self) -> None:
        """Note that the answer is complete, but for its last byte on the way to the caller."""
        self.outcome = OK
        self._ended_at = self.now()

    def fail(self, error: RequestError) -> None:
        """Note that the request ends in `error`."""
        self.outcome = error.code or error.openai_type
        self._error_status = error.status

    def answer_headers(self) -> list[tuple[str, str]]:
        """Return the headers that say who answered, and after what waits."""
        headers = []
        if self.ignored:
            shown = ", ".join(self.ignored)[:MAX_IGNORED_CHARS]
            headers.append(("x-cortex-ignored", quote(shown, safe=_PRINTABLE + " ")))
        if self._node is not None:
            headers.append(("x-cortex-node", self._node))
        if self._model is not None:
            # What a node calls a model may have characters that a header must not.
            headers.append(("x-cortex-model", _quoted(self._model)))
        if self.is_cold_start:
            headers.append(("x-cortex-cold-start", "true"))
        if self._dispatched_at is not None:
            headers.append(("x-cortex-queue-ms", str(round(self._queue_s() * 1000))))
            headers.append(("x-cortex-load-ms", str(round(self.load_s * 1000))))
            if self.shows_timing:
                headers.append(("server-timing", self._timing()))
        return headers

    def traced(self) -> Arrival | None:
        """Return the request as a trace has it, with its sizes as far as they are known."""
        usage, arrival = self.findings.usage, self.arrival
        if arrival is None or usage is None:
            return arrival
        prompt_tokens = usage.prompt_tokens
        return msgspec.structs.replace(
            arrival,
            prompt_tokens=arrival.prompt_tokens if prompt_tokens is None else prompt_tokens,
            # An embedding has a prompt alone.
            completion_tokens=usage.completion_tokens or 0,
        )

    def close(self, status: int) -> None:
        """Write the line and count; called once, at the very end.

        Args:
            status: what the caller got; 0 when somebody else answers, or nobody can.
        """
        ended_at = self.now() if self._ended_at is None else self._ended_at
        duration_s = ended_at - self._started_at
        queue_s, ttft_s = self._queue_s(), self._ttft_s()
        usage = self.findings.usage or _UNKNOWN_USAGE
        details = usage.prompt_tokens_details
        cached_tokens = details.cached_tokens if details else None
        self._metrics.ended(
            model=self._model or UNKNOWN,
            node=self._node or UNKNOWN,
            outcome=self.outcome,
            has_begun=self._model is not None,
            is_cold_start=self.is_cold_start,
            duration_s=duration_s,
            queue_s=queue_s,
            load_s=self.load_s,
            ttft_s=ttft_s,
            inter_token_s=_gap_s(duration_s, ttft_s, usage.completion_tokens),
            prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=cached_tokens,
            completion_tokens=usage.completion_tokens,
        )
        self._tell(duration_s, queue_s, ttft_s, cached_tokens, status)

    def _tell(
        self,
        duration_s: float,
        queue_s: float,
        ttft_s: float | None,
        cached_tokens: int | None,
        status: int,
    ) -> None:
        usage = self.findings.usage or _UNKNOWN_USAGE
        fields = {
            "request_id": self._request_id,
            "path": self._path,
            "model": self._model,
            "node": self._node,
            "outcome": self.outcome,
            "status": self._shown_status(status),
            "stream": self.is_stream,
            "attempts": self.attempts,
            "queue_ms": round(queue_s * 1000),
            "load_ms": round(self.load_s * 1000),
            "first_byte_ms": _ms(self._first_byte_s()),
            "ttft_ms": _ms(ttft_s),
            "total_ms": round(duration_s * 1000),
            "prompt_tokens": usage.prompt_tokens,
            "cached_prompt_tokens": cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish": self.findings.finish,
            "ignored": ", ".join(self.ignored)[:MAX_IGNORED_CHARS] or None,
        }
        tell(logger, "request ended", fields)

    def _shown_status(self, status: int) -> int:
        if self.outcome == CLIENT_GONE:
            return CLIENT_GONE_STATUS
        return status or self._error_status

    def _queue_s(self) -> float:
        """Time from the arrival to the last dispatch that was no wait for a load."""
        until = self.now() if self._dispatched_at is None else self._dispatched_at
        return max(0.0, until - self._started_at - self.load_s)

    def _first_byte_s(self) -> float | None:
        """Time from the last dispatch to the head of the node's answer."""
        if self._answered_at is None or self._dispatched_at is None:
            return None
        return self._answered_at - self._dispatched_at

    def _timing(self) -> str:
        """Return the stages that are over, as `server-timing` has them (W3C Server Timing)."""
        stages = [("queue", self._queue_s()), ("load", self.load_s)]
        first_byte_s = self._first_byte_s()
        if first_byte_s is not None:
            stages.append(("first_byte", first_byte_s))
        if self.outcome != CLIENT_GONE:
            # It is known what became of it, so this is the head of an answer that is whole.
            ended_at = self.now() if self._ended_at is None else self._ended_at
            stages.append(("total", ended_at - self._started_at))
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages)

    def _ttft_s(self) -> float | None:
        return None if self._first_token_at is None else self._first_token_at - self._started_at


def _gap_s(duration_s: float, ttft_s: float | None, completion_tokens: int | None) -> float | None:
    """Return the mean gap between the tokens after the first."""
    if ttft_s is None or completion_tokens is None or completion_tokens < 2:
        return None
    return (duration_s - ttft_s) / (completion_tokens - 1)


@functools.lru_cache(maxsize=1024)
def _quoted(model: str) -> str:
    return quote(model, safe=_PRINTABLE)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
