"""What a request for a response comes to as a chat completion request, rule by rule."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError, RequestError
from cortex_core.harness import Capabilities, Limit
from cortex_core.translate.target import Target
from cortex_core.wire.openai.chat import ChatMessage
from tests.core.translate.responses_asked import (
    AGENTS,
    LOOK,
    PATCH,
    SEARCH,
    called,
    chat,
    gave,
    translate,
    user,
)


def test_tools_keep_their_order_and_hosted_ones_are_listed() -> None:
    """Protocol 8.1: hosted tools are dropped, because to refuse them breaks Codex."""
    done = translate({"tools": [SEARCH, PATCH, AGENTS, LOOK]})

    names = [tool.function.name for tool in done.chat.tools or ()]
    assert names == ["patch", "agents__open", "agents__close", "look"]
    assert done.ignored == ("tools.0",)
    assert done.chat.tool_choice is None


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    """Ours; its grammar is told to the model, since nothing enforces it."""
    tool = {**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}}

    function = chat({"tools": [tool]})["tools"][0]["function"]

    assert function["parameters"]["properties"] == {"input": {"type": "string"}}
    assert function["description"] == "Patches.\n\nThe input has this form:\nstart: /x/"


_NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("choice", "expected", "offered"),
    [
        ("auto", "auto", 4),
        ("none", "none", 4),
        ("required", "required", 4),
        ({"type": "function", "name": "look"}, _NAMED, 4),
        (
            {"type": "custom", "name": "patch"},
            {"type": "function", "function": {"name": "patch"}},
            4,
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "look"}],
            },
            "required",
            1,
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}, None, 0),
    ],
)
def test_every_choice_of_tools_is_understood(choice: Any, expected: Any, offered: int) -> None:
    """OpenAI API reference, `tool_choice`."""
    body = chat({"tools": [LOOK, PATCH, AGENTS], "tool_choice": choice})

    assert body.get("tool_choice") == expected
    assert len(body.get("tools", ())) == offered


_SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
        ({"temperature": 0.0, "top_p": 0.5}, {"temperature": 0.0, "top_p": 0.5}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {"text": {"format": _SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"text": {"format": {"type": "text"}}}, {}),
        ({"tools": [LOOK], "parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"user": "u"}, {"user": "u"}),
        ({"safety_identifier": "s"}, {"user": "s"}),
        (
            {"stream": True},
            {
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
        ),
        ({"metadata": {"a": "b"}, "prompt_cache_key": "k", "service_tier": "flex"}, {}),
    ],
)
def test_each_setting_has_its_field(body: dict[str, Any], expected: dict[str, Any]) -> None:
    """Protocol 10.3; nothing is set that was not asked for."""
    fields = chat(body)

    fields.pop("tools", None)
    assert fields == {"model": "engine/m", "messages": [user("hi")], **expected}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"input": [user("a"), {"type": "web_search_call", "id": "ws"}]}, "input.1"),
    ],
)
def test_what_is_left_out_is_listed(body: dict[str, Any], path: str) -> None:
    """Issue, truth: nothing is dropped silently."""
    assert translate(body).ignored == (path,)


def test_effort_is_left_out_where_there_are_no_thoughts() -> None:
    """Ours: and listed."""
    target = Target(model="m", capabilities=Capabilities(chat=True), limit=Limit(output=3))

    done = translate({"reasoning": {"effort": "low"}, "max_output_tokens": 9}, target)

    assert done.chat.reasoning_effort is None
    assert done.chat.max_completion_tokens == 3
    assert done.ignored == ("reasoning.effort",)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [user("a"), gave("c9")]}, "input.1"),
        ({"input": [user("a"), called("c1")]}, "input"),
        ({"input": [user("a"), called("c1"), called("c1")]}, "input.2"),
        ({"input": [user("a"), called("c1"), gave("c1"), gave("c1")]}, "input.3"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": "hologram"}]}, "input.0.type"),
        ({"input": [user("a"), {"type": "compaction", "encrypted_content": "x"}]}, "input.1"),
        ({"input": [user([{"type": "input_file", "file_id": "f"}])]}, "input.0.content.0"),
        ({"input": [user([{"type": "input_image", "file_id": "f"}])]}, "input.0.content.0"),
        ({"input": [{"role": "king", "content": "a"}]}, "input.0.role"),
        ({"input": []}, "input"),
        ({"tools": [LOOK, LOOK]}, "tools.1.name"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [SEARCH], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "no"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": "sometimes"}, "tool_choice"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "some"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    """Issue, truth: 400 with `param`."""
    with pytest.raises(InvalidRequestError) as refused:
        translate(body)

    assert refused.value.param == param


def test_a_pdf_that_nobody_can_read_is_refused() -> None:
    """Ours: with the name of what is missing."""
    part = {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"}

    with pytest.raises(InvalidRequestError, match=r"\[pdf\]"):
        translate({"input": [user([part])]})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "call_id", "output", "id", "name", "tools", "summary"]
            ),
            inner
            | st.sampled_from(
                [
                    "message",
                    "user",
                    "assistant",
                    "function_call",
                    "reasoning",
                    "custom",
                    "input_text",
                ]
            ),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["input", "tools", "tool_choice", "text", "include"]), _JSON)
)
def test_strange_bodies_are_understood_or_refused(body: dict[str, Any]) -> None:
    """Issue: fuzzed bodies never give a 500."""
    refused: RequestError | None = None
    messages: tuple[ChatMessage, ...] = ()
    try:
        messages = translate(body).chat.messages
    except RequestError as error:
        refused = error

    assert messages if refused is None else refused.status == 400
