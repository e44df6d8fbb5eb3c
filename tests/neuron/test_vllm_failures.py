"""vLLM's failures in cortex's words."""

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import (
    ContextLengthError,
    EngineError,
    InsufficientVramError,
    InvalidJsonError,
    InvalidRequestError,
    ModelLoadFailedError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
)
from cortex_core.harness import Route
from neuron.engines.vllm_failures import (
    load_error,
    request_error,
    root_cause,
    validation_error,
)

LOG = """\
Initializing a V1 LLM engine
EngineCore failed to start.
Traceback (most recent call last):
  File "/opt/site-packages/vllm/v1/engine/core.py", line 1, in run_engine_core
    engine_core = EngineCoreProc(*args, **kwargs)
ValueError: The first reason.

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
safetensors._rust.SafetensorError: Error while deserializing /data/models/x.safetensors: cut off
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

REFERRAL = "Engine core initialization failed. See root cause above."


def test_cause_is_the_last_error_that_is_no_referral() -> None:
    """Ours: and it names no folder of the machine."""
    cause = root_cause(LOG, REFERRAL)

    assert cause == "Error while deserializing x.safetensors: cut off"


def test_cause_without_a_log_is_what_became_of_the_process() -> None:
    """Ours: the kernel's killer leaves no log."""
    raised = f"{REFERRAL} Failed core proc(s): {{'EngineCore': -9}}"

    assert "was killed (signal 9)" in root_cause("", raised)
    assert "ran out of memory" in root_cause("", raised, was_short=True)
    assert "did not start" in root_cause("", REFERRAL)


def test_cause_raised_in_the_daemon_is_cut_before_the_advice() -> None:
    """Ours: what was wrong, not how to override it."""
    raised = (
        "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (99) is "
        "greater than the derived max_model_len (max_position_embeddings=9.0 or x=None in model's "
        "config.json). To allow overriding this maximum, set the env var X=1. " + "More. " * 99
    )

    cause = root_cause("", raised)

    assert cause.startswith("User-specified max_model_len (99) is greater")
    assert len(cause) < 300


@given(st.text(), st.text(min_size=1))
def test_cause_is_one_short_line(log: str, raised: str) -> None:
    """Ours: whatever was logged."""
    cause = root_cause(log, raised)

    assert len(cause) <= 400
    assert "\n" not in cause


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of "
    "which 512.00 MiB is free."
)
NO_ROOM = (
    "Free memory on device cuda:0 (3.50/23.65 GiB) on startup is less than desired GPU memory "
    "utilization (0.92, 21.76 GiB)."
)


@pytest.mark.parametrize(
    ("cause", "needed_bytes", "free_bytes"),
    [(OUT_OF_MEMORY, 2 << 30, 512 << 20), (NO_ROOM, int(21.76 * (1 << 30)), int(3.5 * (1 << 30)))],
)
def test_full_device_is_told_with_both_sizes(
    cause: str, needed_bytes: int, free_bytes: int
) -> None:
    """Contract: 507 with needed and free bytes."""
    error = load_error(cause, "org/name")

    assert isinstance(error, InsufficientVramError)
    assert (error.needed_bytes, error.free_bytes) == (needed_bytes, free_bytes)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("org/x is not a local folder and is not a valid model identifier", NotFoundError),
        ("0.5 GiB KV cache is needed, which is larger than the available", InvalidRequestError),
        ("Model architectures ['Foo'] are not supported for now.", InvalidRequestError),
        ("something unheard of", ModelLoadFailedError),
        (
            "the engine process was killed; perhaps the machine ran out of memory",
            ModelLoadFailedError,
        ),
    ],
)
def test_failed_load_is_classified(cause: str, kind: type[Exception]) -> None:
    """Ours: the caller's mistake is a 400 or 404, all else a failed load."""
    assert type(load_error(cause, "org/x")) is kind


@pytest.mark.parametrize(
    ("message", "prompt", "limit"),
    [
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains at "
            "least 1025 input tokens, which exceeds this limit. (parameter=input_tokens, value=9)",
            1025,
            1024,
        ),
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 "
            "tokens (8000 in the messages, 1000 in the completion).",
            9000,
            8192,
        ),
        ("Input length (70) exceeds model's maximum context length (64).", 70, 64),
        (
            "The decoder prompt (length 5000) is longer than the maximum model length of 4096. "
            "Make sure that `max_model_len` is no smaller than the number of text tokens.",
            5000,
            4096,
        ),
        (
            "This model's maximum context length is 64 tokens. However, your prompt contains 9000 "
            "characters (more than 640 characters).",
            None,
            64,
        ),
    ],
)
def test_overlong_prompt_gives_both_numbers(message: str, prompt: int | None, limit: int) -> None:
    """vLLM 0.32: the sentences of its renderer; characters are no tokens."""
    error = request_error(400, message, "input_tokens")

    assert isinstance(error, ContextLengthError)
    assert (error.prompt_tokens, error.limit_tokens) == (prompt, limit)
    assert "parameter=" not in error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (422, InvalidRequestError),
        (404, NotFoundError),
        (501, InvalidRequestError),
        (503, OverloadedError),
        (500, EngineError),
    ],
)
def test_status_of_the_engine_decides(status: int, kind: type[Exception]) -> None:
    """Ours: internals of a 500 are not passed on."""
    error = request_error(status, "KeyError: 'secret'", None, "/v1/x")

    assert type(error) is kind
    assert status != 500 or "secret" not in error.message


def test_unknown_model_is_told_as_such() -> None:
    """OpenAI: `model_not_found`."""
    error = request_error(404, "The model `a/b` does not exist. Valid aliases: c.", "model")

    assert isinstance(error, ModelNotFoundError)
    assert "'a/b'" in error.message


@pytest.mark.parametrize(
    ("location", "param"),
    [
        (("messages",), "messages"),
        (("tools", 0, "function"), "tools.0.function"),
        (("prompt", "list[int]"), "prompt"),
        (("stop", "str"), "stop"),
        (("ChatCompletionRequest", "function-wrap[__log_extra_fields__()]", "n"), "n"),
        ((), None),
    ],
)
def test_field_is_the_path_without_the_branches(
    location: tuple[object, ...], param: str | None
) -> None:
    """pydantic: `loc` holds the branches of unions that were tried as well."""
    error = validation_error([{"type": "missing", "loc": location, "msg": "Field required"}])

    assert error.param == param


def test_broken_json_is_told_apart() -> None:
    """Contract: code `invalid_json`."""
    error = validation_error([{"type": "json_invalid", "loc": (), "msg": "Invalid JSON: EOF"}])

    assert isinstance(error, InvalidJsonError)


@pytest.mark.parametrize(
    ("message", "route", "param"),
    [
        (
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be '
            "set",
            Route.CHAT_COMPLETIONS,
            "tools",
        ),
        (
            'tool_choice="required" requires --tool-call-parser to be set',
            Route.CHAT_COMPLETIONS,
            "tool_choice",
        ),
        (
            "Chat template is passed with request, but --trust-request-chat-template is not set.",
            Route.CHAT_COMPLETIONS,
            "chat_template",
        ),
        ("You must pass at least one prompt", Route.EMBEDDINGS, "input"),
        ("You must pass at least one prompt", Route.COMPLETIONS, "prompt"),
        ("Token id 9 is out of vocabulary", Route.COMPLETIONS, "prompt"),
        ("n must be 1 when using greedy sampling, got 2.", Route.COMPLETIONS, "n"),
        ("something unheard of", Route.COMPLETIONS, None),
    ],
)
def test_field_is_named_where_the_engine_does_not(
    message: str, route: Route, param: str | None
) -> None:
    """vLLM 0.32: sentences without a field; its command line is no cure for a caller."""
    error = request_error(400, message, None, route)

    assert isinstance(error, InvalidRequestError)
    assert error.param == param
    assert "--" not in error.message
