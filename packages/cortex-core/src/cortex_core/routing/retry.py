"""Whether a failed attempt is tried again elsewhere."""

import enum

MAX_ATTEMPTS = 2
MIN_RETRY_BUDGET = 3
RETRY_BUDGET_RATIO = 0.2


class Failure(enum.StrEnum):
    """How an attempt at one replica failed."""

    CONNECT = "connect"
    """No connection."""
    CUT_BEFORE_ANSWER = "cut_before_answer"
    """The connection ended before a byte of the answer."""
    NOT_ADMITTED = "not_admitted"
    """The neuron refused before it began any work."""
    ENGINE_DIED = "engine_died"
    """The neuron took it, and its engine died before a byte of the answer."""
    TIMEOUT = "timeout"
    """Silence after the request was sent; it may be running still."""
    BAD_ANSWER = "bad_answer"
    """Something that is no HTTP answer."""
    CUT_MID_ANSWER = "cut_mid_answer"
    """The connection ended within the answer."""


_SAFE = frozenset(
    {
        Failure.CONNECT,
        Failure.CUT_BEFORE_ANSWER,
        Failure.NOT_ADMITTED,
        Failure.ENGINE_DIED,
    }
)


def may_retry(
    failure: Failure, *, attempts: int, bytes_sent: bool, retries: int, in_flight: int
) -> bool:
    """Whether the request may go to another replica.

    Only while the caller has seen nothing of an answer, only for failures after which no
    engine works on it, at most `MAX_ATTEMPTS` in all, and only while retries are a small part
    of the traffic, so that a dying fleet is not buried under them.

    Args:
        failure: how the last attempt failed.
        attempts: how many were made.
        bytes_sent: whether a byte of an answer went to the caller (heartbeats do not count).
        retries: retries running in this gateway now.
        in_flight: requests running in this gateway now.
    """
    budget = max(MIN_RETRY_BUDGET, RETRY_BUDGET_RATIO * in_flight)
    return failure in _SAFE and attempts < MAX_ATTEMPTS and not bytes_sent and retries < budget
