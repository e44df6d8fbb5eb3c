"""A neuron that has no place for a request: nothing is wrong with it, and it may have one soon."""

from cortex_core.errors import OverloadedError
from cortex_core.server.clock import Clock
from cortex_core.translate.refusal import read_refusal
from cortex_gateway.ports import UpstreamAnswer

OVERLOADED = "overloaded"
"""Outcome of an attempt that a full neuron refused."""

MAX_BODY_BYTES = 64 << 10
"""Of an error object; what is longer is none."""

FIRST_PAUSE_S = 0.05

MAX_PAUSE_S = 1.0
"""A full replica is passed over until it reports room, so pauses only matter where its reports and
its refusals differ, as when a caller has its share and others have not."""


async def overload_of(answer: UpstreamAnswer) -> OverloadedError | None:
    """Return what a refusal says if its reason is a full queue, else `None`.

    Raises:
        UpstreamFailure: the answer was cut.
    """
    if answer.status != 503:
        return None
    body = await _body(answer)
    # Other reasons for a 503 mean the same to `read_refusal`.
    if body is None or f'"{OverloadedError.code}"'.encode() not in body:
        return None
    advice = dict(answer.headers).get("retry-after", "")
    retry_after_s = float(advice) if advice.isascii() and advice.isdigit() else None
    error = read_refusal(answer.status, body, retry_after_s=retry_after_s)
    return error if isinstance(error, OverloadedError) else None


class BackOff:
    """The pauses of one request between two refusals by full replicas.

    Args:
        clock: sleeps.
        deadline: by the clock, when the caller is told.
    """

    def __init__(self, clock: Clock, deadline: float) -> None:
        self._clock = clock
        self._deadline = deadline
        self._pause_s = 0.0

    async def wait(self, error: OverloadedError) -> None:
        """Pause, the first time not at all: another replica may have a place.

        Raises:
            OverloadedError: `error`, when there is no time left.
        """
        pause_s, self._pause_s = self._pause_s, min(MAX_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
        if pause_s == 0.0:
            return
        if self._clock.now() + pause_s >= self._deadline:
            raise error
        await self._clock.sleep(pause_s)


async def _body(answer: UpstreamAnswer) -> bytes | None:
    body = b""
    while chunk := await answer.read():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return body
