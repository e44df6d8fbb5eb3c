"""What goes wrong with a neuron's control API, as errors of ours."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import msgspec

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    EngineError,
    InsufficientDiskError,
    InsufficientVramError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UpstreamCutError,
    UpstreamError,
    UpstreamTimeoutError,
)
from cortex_core.ids import NodeName

MAX_REASON_CHARACTERS = 300

NOT_THERE = frozenset({404, 405, 501})
"""The statuses with which servers say that they do not have a path or method."""

_LATER_PATHS = frozenset(
    {"/models/fit", "/models/sleep", "/models/wake", "/models/pin", "/cordon", "/recycle"}
)
"""Paths that a neuron of the given kind does not have."""


class _ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""
    code: str | int | None = None
    needed_bytes: int = 0
    free_bytes: int = 0


class _ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: _ErrorDetail | str = ""


@contextmanager
def as_errors(name: NodeName) -> Iterator[None]:
    """Turn what goes wrong on the way to the node `name` into errors of ours."""
    try:
        yield
    except TimeoutError:
        raise UpstreamTimeoutError(f"{name} is silent") from None
    except aiohttp.ClientConnectorError as error:
        # The library's own text has the address in it, and these texts reach callers.
        code = error.errno or 0
        why = os.strerror(code) if code > 0 else "its name does not resolve"
        raise UpstreamError(f"{name} cannot be reached: {why}") from None
    except aiohttp.ClientPayloadError:
        raise UpstreamCutError(f"{name} cut its answer") from None
    except aiohttp.ClientConnectionError:
        raise UpstreamCutError(f"{name} cut the connection") from None
    except aiohttp.ClientError as error:
        raise UpstreamError(f"{name} gave no HTTP answer: {type(error).__name__}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError(f"{name} gave an answer that cannot be read: {error}") from None


def check_token(name: NodeName, status: int) -> None:
    """Raise if the node `name` does not know the gateway for one of its fleet.

    Raises:
        UpstreamError: `status` is 401.
    """
    if status == 401:
        raise UpstreamError(f"unauthorized: {name} does not take this gateway's fleet_token")


def command_error(name: NodeName, path: str, status: int, body: bytes) -> RequestError:
    """Return why the node `name` refused a command.

    Args:
        name: of the node.
        path: where the command went.
        status: of its answer, 300 or more.
        body: of its answer.
    """
    detail = _error_detail(body)
    if status in NOT_THERE and path in _LATER_PATHS and detail.code != ModelNotFoundError.code:
        return ConflictError(f"the neuron of {name} has no {path}; a newer one has")
    lines = detail.message.strip().splitlines() or [f"the neuron answered with status {status}"]
    message = lines[0][:MAX_REASON_CHARACTERS]
    match status:
        case 400 | 422:
            return InvalidRequestError(message)
        case 404:
            return NotFoundError(message)
        case 409:
            return ConflictError(message)
        case 507 if detail.code == InsufficientDiskError.code:
            # Nobody on a device can give way for it.
            return InsufficientDiskError(
                message, needed_bytes=detail.needed_bytes, free_bytes=detail.free_bytes
            )
        case 507:
            return InsufficientVramError(
                message, needed_bytes=detail.needed_bytes, free_bytes=detail.free_bytes
            )
        case 503 if detail.code == DrainingError.code:
            return DrainingError(message)
        case 503:
            return UnavailableError(message)
        case _:
            return EngineError(message)


def _error_detail(body: bytes) -> _ErrorDetail:
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _ErrorDetail()
    return _ErrorDetail(message=error) if isinstance(error, str) else error
