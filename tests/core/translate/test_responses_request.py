"""What a request for a response comes to as a chat completion request, rule by rule."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError, RequestError
from cortex_core.harness import Capabilities, Limit
from cortex_core.translate.responses_request import responses_to_chat
from cortex_core.translate.sealed import seal
from cortex_core.translate.target import PdfReader, Target, ToChat
from cortex_core.wire.openai.chat import ChatMessage
from cortex_core.wire.responses.items import MessageItem, decode_items
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER

TARGET = Target(model="engine/m")

LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object"},
}
PATCH = {"type": "custom", "name": "patch", "description": "Patches."}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "tools": [{"type": "function", "name": "open"}, {"type": "function", "name": "close"}],
}
SEARCH = {"type": "web_search", "external_web_access": True}


def translate(
    body: dict[str, Any], target: Target = TARGET, read_pdf: PdfReader | None = None
) -> ToChat:
    """Go the way that a gateway goes."""
    request = decode_request(encode_json({"model": "m", "input": "hi", **body}), _DECODER)
    given = request.input
    if isinstance(given, str):
        items = decode_items([encode_json({"role": "user", "content": given})])
    else:
        items = decode_items(given or ())
    return responses_to_chat(request, items, target, read_pdf=read_pdf)


_DECODER = RESPONSES_REQUEST_DECODER


def chat(body: dict[str, Any], target: Target = TARGET) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(encode_json(translate(body, target).chat))
    return fields


def messages(*items: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = chat({"input": list(items), **body})["messages"]
    return said


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(call_id: str, name: str = "look", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def gave(call_id: str, output: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def test_instructions_are_the_one_system_message_and_come_first() -> None:
    """Issue, truth: one system message, first, in order."""
    said = messages(
        {"role": "developer", "content": "Second."},
        {
            "type": "message",
            "role": "system",
            "content": [{"type": "input_text", "text": "Third."}],
        },
        user("hi"),
        instructions="First.",
    )

    assert said == [{"role": "system", "content": "First.\n\nSecond.\n\nThird."}, user("hi")]


def test_instructions_in_mid_conversation_stay_in_their_place() -> None:
    """Ours: marked within the user's turn, because templates take a system message only first."""
    said = messages(user("a"), {"role": "developer", "content": "now"}, user("b"))

    marked = "<system-reminder>\nnow\n</system-reminder>"
    assert said == [user(f"a\n\n{marked}\n\nb")]


def test_adjacent_items_of_the_model_are_one_message() -> None:
    """Protocol 10.3: reasoning, message and calls together."""
    said = messages(
        user("hi"),
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        called("c1", arguments='{"x":1}'),
        called("c2"),
        gave("c2", "two"),
        gave("c1", "one"),
        user("go on"),
    )

    function = {"name": "look", "arguments": '{"x":1}'}
    assert said[1:] == [
        {
            "role": "assistant",
            "content": "a",
            "reasoning": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "c1"},
        {"role": "tool", "content": "two", "tool_call_id": "c2"},
        user("go on"),
    ]


def test_results_come_before_what_the_user_said_between_them() -> None:
    """Issue, truth: tool results before user text of the same turn."""
    said = messages(user("hi"), called("c1"), called("c2"), gave("c1"), user("wait"), gave("c2"))

    assert [message["role"] for message in said] == ["user", "assistant", "tool", "tool", "user"]


def test_ids_may_come_again_in_a_later_turn() -> None:
    """Ours: engines that count from 0 in every answer are many."""
    said = messages(user("hi"), called("c0"), gave("c0", "1"), called("c0"), gave("c0", "2"))

    assert [m["content"] for m in said if m["role"] == "tool"] == ["1", "2"]


@pytest.mark.parametrize(
    "thought",
    [
        {"summary": [], "encrypted_content": seal("hm")},
        {"summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "of-others"},
        {"summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    ],
)
def test_thoughts_come_back_in_any_form(thought: dict[str, Any]) -> None:
    """Protocol 8.1: sealed by us, as a summary, or in full."""
    said = messages(user("a"), {"type": "reasoning", **thought}, called("c"), gave("c"))

    assert said[1]["reasoning"] == "hm"


def test_images_of_results_follow_the_last_result() -> None:
    """Protocol 9: one user message after the last."""
    url = "data:image/png;base64,AAAA"
    picture = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": url}]
    said = messages(user("a"), called("c1"), called("c2"), gave("c1", picture), gave("c2"))

    assert said[2]["content"] == "see\n\n[image]"
    assert said[3]["role"] == "tool"
    assert said[4] == user([{"type": "image_url", "image_url": {"url": url}}])


def test_custom_calls_come_back_as_calls_of_their_function() -> None:
    """Ours: as the model wrote them, one argument."""
    said = messages(
        user("a"),
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'x"'},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
    )

    assert said[1]["tool_calls"][0]["function"] == {
        "name": "patch",
        "arguments": '{"input":"x\\""}',
    }
    assert said[2] == {"role": "tool", "content": "ok", "tool_call_id": "c"}


def test_calls_of_a_namespace_come_back_under_their_flat_name() -> None:
    """Protocol 10.3."""
    said = messages(user("a"), {**called("c", "close"), "namespace": "agents"}, gave("c"))

    assert said[1]["tool_calls"][0]["function"]["name"] == "agents__close"


def test_files_are_read() -> None:
    """Ours: text as it is, PDFs by whoever can read them, under the file's name."""
    text = base64.b64encode("füße".encode()).decode()
    parts = [
        {"type": "input_file", "filename": "a.txt", "file_data": f"data:text/plain;base64,{text}"},
        {"type": "input_file", "filename": "b.PDF", "file_data": text},
    ]

    said = translate({"input": [user(parts)]}, read_pdf=lambda data: f"pdf of {len(data)}")

    assert said.chat.messages[0].content == "a.txt\n\nfüße\n\nb.PDF\n\npdf of 6"


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


def test_items_may_come_without_a_type() -> None:
    """Protocol 8.1: bare `{role, content}`."""
    (item,) = decode_items([encode_json(user("hi"))])

    assert item == MessageItem(role="user", content="hi")


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
