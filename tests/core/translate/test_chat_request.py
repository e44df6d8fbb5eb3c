"""Chat completion requests as requests for messages."""

from typing import Any

import msgspec
import pytest

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Limit
from cortex_core.translate.chat_request import (
    DEFAULT_MAX_TOKENS,
    JSON_INSTRUCTION,
    ToMessages,
    chat_to_messages,
)
from cortex_core.translate.target import Target
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER

USER = {"role": "user", "content": "hi"}
FUNCTION = {"type": "function", "function": {"name": "f"}}


def translated(limit: Limit | None = None, **fields: Any) -> ToMessages:
    body = encode_json({"model": "ours", "messages": [USER], **fields})
    target = Target(model="theirs", limit=limit or Limit())
    return chat_to_messages(CHAT_REQUEST_DECODER.decode(body), target)


def messages(**fields: Any) -> Any:
    """Return the request as JSON has it."""
    return msgspec.json.decode(encode_json(translated(**fields).request))


def ignored(**fields: Any) -> tuple[str, ...]:
    return translated(**fields).ignored


def refused(**fields: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as caught:
        translated(**fields)
    return caught.value.param


def called(*ids: str, arguments: str = "{}", text: str | None = None) -> dict[str, Any]:
    calls = [
        {"id": call, "type": "function", "function": {"name": "f", "arguments": arguments}}
        for call in ids
    ]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def result(call_id: str, content: Any = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_the_least_request_is_the_target_a_message_and_a_limit() -> None:
    """Anthropic's: `max_tokens` is required there and optional here."""
    assert messages() == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": DEFAULT_MAX_TOKENS,
    }


def test_the_limit_is_the_callers_within_what_the_model_can_give() -> None:
    """Ours: the newer field wins, and the model's own limit bounds both."""
    limit = Limit(output=100)

    assert messages(max_tokens=5)["max_tokens"] == 5
    assert messages(max_tokens=5, max_completion_tokens=6)["max_tokens"] == 6
    assert messages(limit=limit)["max_tokens"] == 100
    assert messages(limit=limit, max_tokens=1000)["max_tokens"] == 100


def test_tools_have_a_schema_whether_or_not_the_caller_wrote_one() -> None:
    """Anthropic's: `input_schema` is required, and of type object."""
    tools = [
        {"type": "function", "function": {"name": "a", "description": "", "strict": False}},
        {"type": "function", "function": {"name": "b", "parameters": {"properties": {"x": {}}}}},
        {"type": "function", "function": {"name": "c", "description": "d", "strict": True,
                                          "parameters": {"type": "object"}}},
    ]  # fmt: skip

    assert messages(tools=tools)["tools"] == [
        {"name": "a", "input_schema": {"type": "object", "properties": {}}},
        {"name": "b", "input_schema": {"type": "object", "properties": {"x": {}}}},
        {"name": "c", "description": "d", "strict": True, "input_schema": {"type": "object"}},
    ]


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", None, {"type": "auto"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
        (FUNCTION, None, {"type": "tool", "name": "f"}),
    ],
)
def test_tool_choices_have_counterparts(choice: Any, parallel: bool | None, expected: Any) -> None:
    """Anthropic's API reference, "tool_choice"."""
    after = messages(tools=[FUNCTION], tool_choice=choice, parallel_tool_calls=parallel)

    assert after.get("tool_choice") == expected


def test_a_choice_among_no_tools_is_refused_unless_it_demands_none() -> None:
    """Ours: it cannot be met."""
    assert "tool_choice" not in messages(tool_choice="auto")
    assert refused(tool_choice="required") == "tool_choice"
    assert refused(tool_choice=FUNCTION) == "tool_choice"
    assert refused(tools=[FUNCTION], tool_choice="perhaps") == "tool_choice"


def test_forms_of_answers_are_a_schema_or_an_instruction() -> None:
    """Protocol: there is no counterpart of `json_object`."""
    schema = {"type": "object"}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    system = {"role": "system", "content": "be brief"}

    assert messages(response_format=form)["output_config"] == {
        "format": {"type": "json_schema", "schema": schema}
    }
    assert messages(response_format={"type": "json_object"})["system"] == JSON_INSTRUCTION
    both = messages(messages=[system, USER], response_format={"type": "json_object"})
    assert both["system"] == f"be brief\n\n{JSON_INSTRUCTION}"
    assert messages(response_format={"type": "text"}) == messages()
    assert refused(response_format={"type": "xml"}) == "response_format.type"
    assert refused(response_format={"type": "json_schema"}) == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("effort", "thinking", "level"),
    [
        ("none", {"type": "disabled"}, None),
        ("minimal", {"type": "adaptive"}, "low"),
        ("medium", {"type": "adaptive"}, "medium"),
        ("max", {"type": "adaptive"}, "max"),
    ],
)
def test_effort_is_adaptive_thinking(effort: str, thinking: Any, level: str | None) -> None:
    """Anthropic's API reference, "Adaptive thinking" and "Effort"."""
    after = messages(reasoning_effort=effort)

    assert after["thinking"] == thinking
    assert after.get("output_config") == ({"effort": level} if level else None)
    assert refused(reasoning_effort="a lot") == "reasoning_effort"


def test_a_budget_is_kept_where_it_may_be() -> None:
    """Anthropic's: at least 1024 and below the limit; not after calls without their thoughts."""
    history = [USER, called("a"), result("a")]

    def thinking(**fields: Any) -> Any:
        return messages(max_tokens=4000, **fields).get("thinking")

    assert thinking(thinking_token_budget=2000) == {"type": "enabled", "budget_tokens": 2000}
    assert thinking(thinking_token_budget=1) == {"type": "enabled", "budget_tokens": 1024}
    assert thinking(thinking_token_budget=9999) == {"type": "enabled", "budget_tokens": 3999}
    assert thinking(thinking_token_budget=0) == {"type": "disabled"}
    assert thinking(thinking_token_budget=2000, messages=history) == {"type": "adaptive"}
    assert ignored(thinking_token_budget=2000, messages=history) == ("thinking_token_budget",)
    assert thinking(reasoning_effort="low", include_reasoning=False) == {
        "type": "adaptive",
        "display": "omitted",
    }


def test_a_forced_call_leaves_no_room_for_thoughts() -> None:
    """Anthropic's: `any` and `tool` are not taken together with thinking."""
    fields = {"tools": [FUNCTION], "tool_choice": "required", "reasoning_effort": "high"}

    after = messages(**fields, temperature=0.5)

    assert "thinking" not in after
    assert after["output_config"] == {"effort": "high"}
    assert after["temperature"] == 0.5


def test_sampling_is_kept_unless_the_model_thinks() -> None:
    """Anthropic's: temperature ends at 1, and is not taken together with thinking."""
    sampling = {"temperature": 1.5, "top_p": 0.5, "top_k": 4}

    after = messages(**sampling)
    thinking = messages(**sampling, reasoning_effort="low")

    assert (after["temperature"], after["top_p"], after["top_k"]) == (1.0, 0.5, 4)
    assert thinking.keys().isdisjoint(sampling)
    assert ignored(**sampling, reasoning_effort="low") == ("temperature", "top_p", "top_k")
    assert ignored(**sampling, reasoning_effort="none") == ()
    assert "top_k" not in messages(top_k=-1)


def test_stop_strings_are_stop_sequences() -> None:
    """Anthropic's: blank ones are an error."""
    assert messages(stop="a")["stop_sequences"] == ["a"]
    assert messages(stop=["a", "\n", "b"])["stop_sequences"] == ["a", "b"]
    assert ignored(stop=["\n"]) == ("stop",)
    assert "stop_sequences" not in messages(stop=["\n"])


def test_the_user_is_metadata() -> None:
    """Anthropic's API reference, "metadata"; OpenAI's newer name is `safety_identifier`."""
    assert messages(user="u")["metadata"] == {"user_id": "u"}
    assert messages(safety_identifier="s")["metadata"] == {"user_id": "s"}
    assert messages(user="u", safety_identifier="s")["metadata"] == {"user_id": "u"}


def test_harmless_fields_are_left_out_and_named() -> None:
    """Ours: nothing is dropped silently."""
    fields = {
        "seed": 1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "min_p": 0.1,
        "chat_template_kwargs": {"a": 1},
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "store": True,
        "verbosity": "low",
    }

    assert messages(**fields) == messages()
    assert sorted(ignored(**fields)) == sorted(fields)
    assert ignored(store=False, presence_penalty=0) == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"logit_bias": {"1": 5}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "v"}},
        {"structured_outputs": {"regex": "a"}},
        {"web_search_options": {}},
    ],
)
def test_what_would_change_the_answer_is_refused(fields: dict[str, Any]) -> None:
    """Ours: an answer that was not asked for is worse than none."""
    assert refused(**fields) == next(iter(fields))


def test_values_that_ask_for_nothing_special_are_fine() -> None:
    """Ours: many clients write out the defaults."""
    fields = {"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "stream": False}
    nulls = {"structured_outputs": None, "web_search_options": None, "audio": None, "stop": None}

    assert messages(**fields, **nulls, modalities=["text"]) == messages()
    assert ignored(**fields, **nulls) == ()
    assert messages(stream=True, stream_options={"include_usage": True})["stream"] is True
