"""What the items of a responses request come to as chat messages, rule by rule."""

import base64
from typing import Any

import pytest

from cortex_core.codec import encode_json
from cortex_core.translate.sealed import seal
from cortex_core.wire.responses.items import MessageItem, decode_items
from tests.core.translate.responses_asked import (
    called,
    chat,
    gave,
    translate,
    user,
)


def messages(*items: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = chat({"input": list(items), **body})["messages"]
    return said


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


def test_items_may_come_without_a_type() -> None:
    """Protocol 8.1: bare `{role, content}`."""
    (item,) = decode_items([encode_json(user("hi"))])

    assert item == MessageItem(role="user", content="hi")
