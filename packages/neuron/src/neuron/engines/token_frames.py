"""What the daemon and its token process say to each other, over a pair of pipes.

Each message is four bytes, big endian, its length; then MessagePack.
"""

import struct

import msgspec

from cortex_core.errors import (
    ContextLengthError,
    EngineError,
    InvalidJsonError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import ModelSpec, Route

HEAD_BYTES = 4

_HEAD = struct.Struct(">I")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A request about the tokens of a model."""

    number: int
    """Returned with the answer: who asked may have left meanwhile."""
    spec: ModelSpec
    folder: str
    """Where its files are."""
    route: Route
    body: bytes
    request_id: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A `RequestError`, as far as callers see of it."""

    kind: str
    message: str
    param: str | None = None
    prompt_tokens: int | None = None
    limit_tokens: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered to a question."""

    number: int
    body: bytes = b""
    failure: Failure | None = None


def pack(message: Question | Answer) -> bytes:
    """Return a message as it goes through the pipe."""
    body = msgspec.msgpack.encode(message)
    return _HEAD.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return how many bytes follow a head of `HEAD_BYTES`."""
    length: int = _HEAD.unpack(head)[0]
    return length


def failure_of(error: RequestError) -> Failure:
    """Return an error as it goes through the pipe."""
    return Failure(
        kind=type(error).__name__,
        message=error.message,
        param=error.param,
        prompt_tokens=getattr(error, "prompt_tokens", None),
        limit_tokens=getattr(error, "limit_tokens", None),
    )


def error_of(failure: Failure) -> RequestError:
    """Return the error that went through the pipe."""
    match failure.kind:
        case "ContextLengthError":
            return ContextLengthError(
                failure.message,
                prompt_tokens=failure.prompt_tokens,
                limit_tokens=failure.limit_tokens,
            )
        case "InvalidJsonError":
            return InvalidJsonError(failure.message, param=failure.param)
        case "InvalidRequestError":
            return InvalidRequestError(failure.message, param=failure.param)
        case "NotFoundError" | "ModelNotFoundError":
            return NotFoundError(failure.message, param=failure.param)
        case "ModelLoadFailedError":
            return ModelLoadFailedError(failure.message)
        case _:
            return EngineError(failure.message)
