"""What an upstream refuses is told in any dialect."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, render_error
from cortex_core.errors import ContextLengthError, EngineError, RequestError
from cortex_core.translate.refusal import MAX_MESSAGE_CHARS, read_error_object, read_refusal


def told(error: RequestError, dialect: Dialect) -> tuple[int, str, object]:
    """Return status, type and, in OpenAI's dialect, code."""
    rendered = render_error(error, dialect, "req_1")
    face = msgspec.json.decode(rendered.body)["error"]
    return rendered.status, face["type"], face.get("code")


@pytest.mark.parametrize(
    ("status", "kind", "openai", "anthropic"),
    [
        (400, "invalid_request_error", (400, "invalid_request_error", None), 400),
        (402, "billing_error", (429, "insufficient_quota", "insufficient_quota"), 402),
        (404, "not_found_error", (404, "invalid_request_error", "not_found"), 404),
        (413, "request_too_large", (413, "invalid_request_error", None), 413),
        (429, "rate_limit_error", (429, "rate_limit_error", "rate_limit_exceeded"), 429),
        (500, "api_error", (500, "server_error", "engine_error"), 500),
        (504, "timeout_error", (504, "server_error", "timeout"), 504),
        (529, "overloaded_error", (503, "server_error", "server_is_overloaded"), 529),
    ],
)
def test_anthropics_refusals_keep_their_meaning(
    status: int, kind: str, openai: tuple[int, str, object], anthropic: int
) -> None:
    """Protocol: the table of errors, read from right to left."""
    face = {"type": kind, "message": "words"}
    error = read_refusal(status, encode_json({"type": "error", "error": face}))

    assert error.message == "words"
    assert told(error, Dialect.OPENAI) == openai
    assert told(error, Dialect.ANTHROPIC)[:2] == (anthropic, kind)
    in_stream = read_error_object(encode_json(face), Dialect.ANTHROPIC)
    assert told(in_stream, Dialect.OPENAI) == openai


@pytest.mark.parametrize(
    ("status", "face", "anthropic"),
    [
        (400, {"type": "BadRequestError", "code": 400}, (400, "invalid_request_error")),
        (404, {"type": "NotFoundError", "code": 404}, (404, "not_found_error")),
        (429, {"type": "requests", "code": "rate_limit_exceeded"}, (429, "rate_limit_error")),
        (429, {"type": "x", "code": "insufficient_quota"}, (402, "billing_error")),
        (500, {"type": "InternalServerError", "code": 500}, (500, "api_error")),
        (503, {"type": "server_error", "code": "server_is_overloaded"}, (529, "overloaded_error")),
    ],
)
def test_openais_and_vllms_refusals_keep_their_meaning(
    status: int, face: dict[str, object], anthropic: tuple[int, str]
) -> None:
    """Protocol: as above; vLLM's code is the status as a number."""
    face = {"message": "words", **face}
    error = read_refusal(status, encode_json({"error": face}))

    assert error.message == "words"
    assert told(error, Dialect.ANTHROPIC)[:2] == anthropic
    in_stream = read_error_object(encode_json(face), Dialect.OPENAI)
    assert told(in_stream, Dialect.ANTHROPIC)[:2] == anthropic


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "words", "param": None, "code": 400}},
        {"object": "error", "message": "words", "type": "BadRequestError", "code": 400},
        {"detail": "words"},
        {"error": "words"},
        {"error": {"message": "words", "param": ["a"], "code": {"b": 1}}},
    ],
)
def test_words_are_found_in_every_shape(body: object) -> None:
    """vLLM's shapes of several versions, FastAPI's, Ollama's."""
    assert read_refusal(400, encode_json(body)).message == "words"


@pytest.mark.parametrize(
    ("sentence", "prompt", "limit"),
    [
        (
            "This model's maximum context length is 4096 tokens. However, your prompt contains "
            "at least 5000 input tokens, which exceeds this limit even without any output tokens.",
            5000,
            4096,
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 "
            "tokens (4000 in the messages, 1000 in the completion).",
            5000,
            4096,
        ),
        (
            "This model's maximum context length is 128,000 tokens. However, your messages "
            "resulted in 130,001 tokens.",
            130001,
            128000,
        ),
        ("prompt is too long: 200001 tokens > 200000 maximum", 200001, 200000),
        ("the request (12 tokens) exceeds the available context size (8 tokens)", 12, 8),
    ],
)
def test_sentences_about_the_context_give_both_numbers(
    sentence: str, prompt: int, limit: int
) -> None:
    """Claude Code's: it compacts its history on Anthropic's wording alone."""
    error = read_refusal(400, encode_json({"error": {"message": sentence}}))

    assert isinstance(error, ContextLengthError)
    assert (error.prompt_tokens, error.limit_tokens) == (prompt, limit)


def test_a_refused_key_is_no_fault_of_the_callers() -> None:
    """Ours: the key is the gateway's, and its words may hold a part of it."""
    error = read_refusal(401, b'{"error": {"message": "Incorrect API key provided: sk-1"}}')

    assert isinstance(error, EngineError)
    assert "sk-1" not in error.message


def test_advice_to_wait_goes_on() -> None:
    """Ours: `retry-after` is kept in every dialect."""
    for status in (429, 503, 529):
        error = read_refusal(status, b"{}", retry_after_s=7.0)
        for dialect in Dialect:
            assert ("retry-after", "7") in render_error(error, dialect, "r").headers


@given(st.integers(400, 599), st.binary(max_size=40) | st.text(max_size=3000).map(str.encode))
def test_any_body_is_some_refusal(status: int, body: bytes) -> None:
    """Ours: whatever an upstream sends, the caller gets an error of its dialect."""
    error = read_refusal(status, body)

    assert 0 < len(error.message) <= MAX_MESSAGE_CHARS
    for dialect in (Dialect.OPENAI, Dialect.ANTHROPIC):
        rendered = render_error(error, dialect, "r")
        assert rendered.status // 100 == (status if status not in (401, 403) else 500) // 100
        assert msgspec.json.decode(rendered.body)["error"]["message"]
        assert read_error_object(body, dialect).message
