"""Conversations of chat as conversations of messages."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.translate.chat_request import ToMessages, chat_to_messages
from cortex_core.translate.chat_turns import OPENING, CallIds
from cortex_core.translate.target import Target
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER

USER = {"role": "user", "content": "hi"}
PNG = "data:image/png;base64,iVBORw0KGgo="


def translated(**fields: Any) -> ToMessages:
    body = encode_json({"model": "ours", "messages": [USER], **fields})
    return chat_to_messages(CHAT_REQUEST_DECODER.decode(body), Target(model="theirs"))


def messages(**fields: Any) -> Any:
    """Return the request as JSON has it."""
    return msgspec.json.decode(encode_json(translated(**fields).request))


def turns(*said: dict[str, Any]) -> Any:
    return messages(messages=list(said))["messages"]


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


def test_leading_system_messages_are_the_system_prompt_and_later_ones_are_marked() -> None:
    """Ours, as in the other direction: older models take no system message in between."""
    said = messages(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            {"role": "system", "content": ""},
            USER,
            {"role": "system", "content": "c"},
            {"role": "assistant", "content": "d"},
            USER,
        ]
    )

    assert said["system"] == "a\n\nb"
    reminder = {"type": "text", "text": "<system-reminder>\nc\n</system-reminder>"}
    assert said["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, reminder]},
        {"role": "assistant", "content": "d"},
        USER,
    ]


def test_results_are_one_turn_and_come_before_what_the_user_says() -> None:
    """Anthropic's: `tool_result` blocks come first in the message after the calls."""
    said = turns(
        USER,
        called("a", "b", text="look", arguments='{"x": [1.5, null]}'),
        result("b", "2"),
        {"role": "user", "content": "and?"},
        result("a", [{"type": "text", "text": ""}]),
    )

    call = {"type": "tool_use", "name": "f", "input": {"x": [1.5, None]}}
    assert said == [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "look"},
                {**call, "id": "a"},
                {**call, "id": "b"},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": "2"},
                {"type": "tool_result", "tool_use_id": "a"},
                {"type": "text", "text": "and?"},
            ],
        },
    ]


def test_messages_of_one_role_are_one_turn_and_empty_texts_are_none() -> None:
    """Anthropic's: texts are not empty."""
    said = turns(
        USER,
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "b"}]},
    )

    blocks = [{"type": "text", "text": "hi"}, {"type": "text", "text": "b"}]
    assert said == [{"role": "user", "content": blocks}]


def test_the_user_speaks_first_even_if_nobody_did() -> None:
    """Anthropic's: the first message is the user's."""
    assert turns({"role": "assistant", "content": "hello"})[0] == {
        "role": "user",
        "content": OPENING,
    }
    assert turns({"role": "system", "content": "s"}) == [{"role": "user", "content": OPENING}]
    assert messages(messages=[])["messages"] == [{"role": "user", "content": OPENING}]


def test_the_beginning_of_an_answer_has_no_space_at_its_end() -> None:
    """Anthropic's: the last assistant message must not end in white space."""
    begun = {"role": "assistant", "content": "Once \n"}

    assert turns(USER, begun)[-1] == {"role": "assistant", "content": "Once"}
    assert turns(USER, begun, USER)[1] == {"role": "assistant", "content": "Once \n"}
    assert turns(USER, {"role": "assistant", "content": " "}) == [USER]


def test_ids_are_in_the_alphabet_of_the_dialect_and_used_once() -> None:
    """Anthropic's: ids match `^[a-zA-Z0-9_-]+$`; engines that count from 0 repeat themselves."""
    said = turns(
        USER, called("call:0"), result("call:0"), called("call:0", "x"), result("x"),
        result("call:0"), called("x"), result("x"),
    )  # fmt: skip

    uses = [b["id"] for m in said if m["role"] == "assistant" for b in m["content"]]
    answers = [b["tool_use_id"] for m in said[1:] if m["role"] == "user" for b in m["content"]]
    assert len(set(uses)) == 4
    assert all(use.replace("_", "").isalnum() for use in uses)
    assert answers == [uses[0], uses[2], uses[1], uses[3]]
    assert uses[2] == "x"


@given(st.lists(st.text(max_size=3) | st.sampled_from(["a", "a_1", "a_1_1", "a_1_"]), max_size=9))
def test_whatever_the_ids_are_no_two_calls_share_one(ids: list[str]) -> None:
    """Ours: a result is for one call."""
    own = CallIds()

    opened = [own.open(call_id) for call_id in ids]

    assert len(set(opened)) == len(ids)
    assert all(opened)
    again = CallIds()
    assert [again.open(call_id) for call_id in ids] == opened


def test_calls_and_results_that_do_not_pair_are_refused() -> None:
    """Anthropic's: every call is answered in the next turn, and nothing else is."""
    assert refused(messages=[USER, called("a")]) == "messages.1.tool_calls.0"
    assert refused(messages=[USER, called("a"), USER, called("b")]) == "messages.1.tool_calls.0"
    assert refused(messages=[USER, result("a")]) == "messages.1.tool_call_id"
    twice = [USER, called("a"), result("a"), result("a")]
    assert refused(messages=twice) == "messages.3.tool_call_id"
    late = [USER, called("a"), result("a"), {"role": "assistant", "content": "x"}, result("a")]
    assert refused(messages=late) == "messages.4.tool_call_id"


@pytest.mark.parametrize("arguments", ["{", "[]", '"a"', "nope", "[" * 10_000])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    """Anthropic's: `input` is an object."""
    said = [USER, called("a", arguments=arguments), result("a")]

    assert refused(messages=said) == "messages.1.tool_calls.0.function.arguments"


def test_images_and_files_go_by_value_or_by_address() -> None:
    """Anthropic's API reference, "Vision" and "PDF support"."""
    pdf = base64.b64encode(b"%PDF-1.7").decode()
    text = base64.b64encode("läuft".encode()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.gif"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{pdf}"}},
        {"type": "file", "file": {"file_data": pdf, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": f"data:text/csv;charset=utf-8;base64,{text}"}},
    ]
    pdf_source = {"type": "base64", "media_type": "application/pdf", "data": pdf}
    blocks = [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
        },
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.gif"}},
        {"type": "document", "source": pdf_source},
        {"type": "document", "source": pdf_source, "title": "a.pdf"},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "läuft"},
        },
    ]

    said = turns({"role": "user", "content": parts}, called("a"), result("a", parts[:1]))

    assert said[0]["content"] == blocks
    assert said[2]["content"][0]["content"] == blocks[:1]


@pytest.mark.parametrize(
    ("role", "part", "where"),
    [
        ("user", {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, ""),
        ("user", {"type": "image_url", "image_url": {"url": "data:image/bmp;base64,"}}, ".image_url.url"),
        ("user", {"type": "image_url", "image_url": {"url": "file:///a.png"}}, ".image_url.url"),
        ("user", {"type": "file", "file": {"file_id": "file-1"}}, ".file"),
        ("user", {"type": "file", "file": {"file_data": "data:a/b;base64,AA=="}}, ".file.file_data"),
        ("user", {"type": "file", "file": {"file_data": "data:text/plain;base64,!"}}, ".file.file_data"),
        ("system", {"type": "image_url", "image_url": {"url": PNG}}, ""),
        ("assistant", {"type": "image_url", "image_url": {"url": PNG}}, ""),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_said_is_refused_by_its_path(
    role: str, part: dict[str, Any], where: str
) -> None:
    """Ours: nothing of a prompt is dropped."""
    assert refused(messages=[{"role": role, "content": [part]}]) == f"messages.0.content.0{where}"


def test_refusals_are_texts_and_thoughts_are_left_out() -> None:
    """Anthropic's: thoughts are taken with the signature of who had them, which chat has not."""
    said = [
        USER,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "r"},
        {**USER, "name": "eve"},
        {"role": "assistant", "content": None, "refusal": "never", "reasoning_content": "r"},
        USER,
    ]

    after = messages(messages=said)["messages"]

    assert [message["content"] for message in after] == ["hi", "no", "hi", "never", "hi"]
    assert ignored(messages=said) == (
        "messages.1.reasoning",
        "messages.2.name",
        "messages.3.reasoning_content",
    )


def test_roles_and_calls_that_normalising_should_have_removed_are_refused() -> None:
    """Ours: `chat_normal` comes first."""
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "f"}}

    assert refused(messages=[{"role": "function", "content": "x"}]) == "messages.0.role"
    assert refused(messages=[USER, legacy]) == "messages.1.function_call"
    assert refused(functions=[{"name": "f"}]) == "functions"
