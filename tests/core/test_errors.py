"""The error table: one error, two faces."""

import inspect

import msgspec
import pytest

from cortex_core import errors
from cortex_core.dialect import Dialect, dialect_of, error_event, render_error
from cortex_core.errors import (
    ContextLengthError,
    MethodNotAllowedError,
    ModelDoesNotFitError,
    ModelLoadingError,
    ModelNotFoundError,
    RequestError,
    UnsupportedThreadError,
)


def face(error: RequestError, dialect: Dialect) -> tuple[int, dict[str, str], dict[str, object]]:
    rendered = render_error(error, dialect, "req_1")
    return rendered.status, dict(rendered.headers), msgspec.json.decode(rendered.body)


def test_openai_body_has_all_four_keys_and_a_string_code() -> None:
    """OpenAI's API reference, "Error codes"."""
    status, _, body = face(ModelNotFoundError("nope"), Dialect.OPENAI)

    assert status == 404
    assert body == {
        "error": {
            "message": ModelNotFoundError("nope").message,
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_anthropic_body_carries_type_and_request_id() -> None:
    """Anthropic's API reference, "Errors"; overload is 529 there."""
    status, headers, body = face(ModelLoadingError("soon"), Dialect.ANTHROPIC)

    assert status == 529
    assert headers["retry-after"] == "5"
    assert body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "soon"},
        "request_id": "req_1",
    }


def test_context_overflow_uses_the_wording_that_claude_code_matches() -> None:
    """Claude Code's: it compacts its history on this very sentence."""
    error = ContextLengthError("too long", prompt_tokens=9000, limit_tokens=4096)

    _, _, body = face(error, Dialect.ANTHROPIC)

    assert body["error"]["message"] == "prompt is too long: 9000 tokens > 4096 maximum"  # type: ignore[index]


def test_a_permanent_5xx_tells_sdks_not_to_retry() -> None:
    """Both SDKs obey `x-should-retry`."""
    _, headers, _ = face(ModelDoesNotFitError("no node"), Dialect.OPENAI)

    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


def test_a_wrong_method_says_which_are_allowed() -> None:
    """RFC 9110 section 15.5.6."""
    _, headers, _ = face(MethodNotAllowedError("PUT", ("GET", "HEAD")), Dialect.OPENAI)

    assert headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/messages", {}, Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", {}, Dialect.ANTHROPIC),
        ("/v1/chat/completions", {"x-api-key": "k"}, Dialect.OPENAI),
        ("/v1/rerank", {"x-api-key": "k"}, Dialect.OPENAI),
        ("/v1/conversations/conv_1/items", {"x-api-key": "k"}, Dialect.OPENAI),
        ("/api/chat", {"x-api-key": "k"}, Dialect.OLLAMA),
        ("/api/embeddings", {}, Dialect.OLLAMA),
        ("/api/hello", {}, Dialect.OPENAI),
        ("/v1/models", {}, Dialect.OPENAI),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, Dialect.ANTHROPIC),
        ("/v1/models/a/b", {"x-api-key": "k"}, Dialect.ANTHROPIC),
        ("/nowhere", {}, Dialect.OPENAI),
    ],
)
def test_the_dialect_follows_the_path_then_the_headers(
    path: str, headers: dict[str, str], dialect: Dialect
) -> None:
    """Ours (docs/reference/errors.md)."""
    assert dialect_of(path, headers) is dialect


def test_a_mid_stream_error_is_one_event_in_either_dialect() -> None:
    """Anthropic's events need an `event:` line; OpenAI's chunks have none."""
    error = ModelLoadingError("soon")

    assert error_event(error, Dialect.OPENAI, "r").startswith(b'data: {"error"')
    assert error_event(error, Dialect.ANTHROPIC, "r").startswith(b"event: error\ndata: {")


def test_ollamas_errors_are_a_message_with_openais_status() -> None:
    """Ollama's API documentation, "Errors": an object with `error`, one a line in streams."""
    status, headers, body = face(ModelLoadingError("soon"), Dialect.OLLAMA)

    assert status == 503
    assert headers["retry-after"] == "5"
    assert body == {"error": "soon"}
    assert error_event(ModelLoadingError("soon"), Dialect.OLLAMA, "r") == b'{"error":"soon"}\n'


def test_a_stable_code_of_anthropics_is_in_the_details() -> None:
    """Anthropic's SDK: it goes on without threads when it reads the code."""
    _, _, anthropic = face(UnsupportedThreadError("whole ones"), Dialect.ANTHROPIC)
    _, _, openai = face(UnsupportedThreadError("whole ones"), Dialect.OPENAI)

    assert anthropic["error"] == {
        "type": "invalid_request_error",
        "message": "whole ones",
        "details": {"error_code": "thread_unsupported_request"},
    }
    assert openai["error"]["code"] is None  # type: ignore[index]


def test_every_request_error_has_statuses_that_sdks_understand() -> None:
    """Ours: 4xx for the caller's faults, 5xx for ours, and the faces agree on whose it is."""
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, RequestError)
    ]

    assert len(kinds) > 20
    for kind in kinds:
        assert 400 <= kind.status < 600
        assert kind.status // 100 == kind.anthropic_status // 100, kind
        assert kind.code is None or isinstance(kind.code, str)
