"""The conversation of a messages request as chat messages: who said what, in which order."""

import base64
from typing import Any

import pytest

from cortex_core.errors import InvalidRequestError
from tests.core.translate.messages_asked import (
    HI,
    LOOK,
    assistant,
    called,
    gave,
    messages,
    system,
    text,
    translate,
    user,
)

PIXEL: dict[str, Any] = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "AA=="},
}
PIXEL_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
BILL = "x-anthropic-billing-header: cc_version=1; cch=7;"


def test_the_system_message_is_one_and_first() -> None:
    """Issue: one system message, first, in order."""
    said = messages(HI, system=[text("A"), text(""), text("B")])

    assert said == [{"role": "system", "content": "A\n\nB"}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (BILL, None),
        (f"{BILL}\nBe brief.", "Be brief."),
        ([text(BILL), text("Be brief.")], "Be brief."),
        ([text(BILL)], None),
        (f"Be brief. {BILL}", f"Be brief. {BILL}"),
    ],
)
def test_the_line_of_the_bill_is_left_out_of_the_system_prompt(given: Any, told: str) -> None:
    """Claude Code's: it differs with every request and would void every prefix cache."""
    roles = {message["role"]: message["content"] for message in messages(HI, system=given)}

    assert roles.get("system") == told


def test_instructions_in_mid_conversation_are_marked_within_the_users_turn() -> None:
    """Protocol 10.1: most templates take one system message, first."""
    said = messages(HI, system(BILL), system("Be kind."), assistant("yes"), user("go on"))

    assert said[0]["content"] == "hi\n\n<system-reminder>\nBe kind.\n</system-reminder>"
    assert [message["role"] for message in said] == ["user", "assistant", "user"]


def test_messages_of_one_role_are_one_turn() -> None:
    """Anthropic's: consecutive messages of one role are combined."""
    said = messages(HI, user("there"), assistant("a"), assistant("b"), user("c"))

    assert [message["content"] for message in said] == ["hi\n\nthere", "a\n\nb", "c"]


def test_results_stand_before_what_else_is_said_in_the_order_of_the_calls() -> None:
    """Issue: tool results before user text of the same turn, paired by id."""
    said = messages(
        HI,
        assistant(text("I look."), called("a", at=1), called("b", at=2)),
        user(text("T"), gave("b", "B"), gave("a", [text("A"), PIXEL])),
        tools=[LOOK],
    )

    calls = said[1]["tool_calls"]
    assert [call["id"] for call in calls] == ["a", "b"]
    assert [call["function"]["arguments"] for call in calls] == ['{"at":1}', '{"at":2}']
    assert said[2:] == [
        {"role": "tool", "content": "A\n\n[image]", "tool_call_id": "a"},
        {"role": "tool", "content": "B", "tool_call_id": "b"},
        {"role": "user", "content": [PIXEL_PART, text("T")]},
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no such file", "Error: no such file"),
        ("Error: no such file", "Error: no such file"),
        ("ERROR: x", "ERROR: x"),
        ("errors: none, but", "Error: errors: none, but"),
        ("", "Error: "),
        (None, "Error: "),
    ],
)
def test_a_result_that_is_an_error_says_so(content: str | None, told: str) -> None:
    """Protocol 2.5: `is_error` has no place in a chat message."""
    said = messages(
        HI, assistant(called("a")), user(gave("a", content, is_error=True)), tools=[LOOK]
    )

    assert said[-1]["content"] == told


def test_thoughts_go_back_as_reasoning_whoever_signed_them() -> None:
    """Issue: any signature is accepted on the way back."""
    thoughts = [{"type": "thinking", "thinking": "hm", "signature": "theirs"}]
    thoughts += [{"type": "thinking", "thinking": "", "signature": ""}]
    said = messages(HI, assistant(*thoughts, text("yes")), user("go on"))

    assert said[1] == {"role": "assistant", "content": "yes", "reasoning": "hm"}


def test_changes_of_tools_are_nothing_that_anybody_says() -> None:
    """Anthropic's beta `mid-conversation-tool-changes`."""
    change = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "look"}}
    said = messages(HI, system(change, text("Be kind.")), tools=[LOOK])
    alone = messages(HI, assistant("yes"), user("on"), system(change), tools=[LOOK])

    assert said[-1]["content"] == "hi\n\n<system-reminder>\nBe kind.\n</system-reminder>"
    assert [message["role"] for message in alone] == ["user", "assistant", "user"]


def test_what_the_hosted_service_did_is_a_note_or_named_as_left_out() -> None:
    """Protocol 9: a text note; and nothing is dropped silently."""
    blocks = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
        text("found"),
    ]
    done = translate(messages=[HI, assistant(*blocks), user("thanks")])

    assert done.ignored == ("messages.1.content.1", "messages.1.content.2")
    assert done.chat.messages[1].content == "[web_search was called with {}]\n\nfound"


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ([], "messages"),
        ([assistant("x")], "messages.0.role"),
        ([{"role": "x", "content": ""}], "messages.0.role"),
        ([HI, assistant(called("a"))], "messages"),
        ([HI, assistant(called("a")), user("no")], "messages"),
        ([HI, assistant(called("a"), called("a"))], "messages.1.content.1.id"),
        ([HI, assistant(called(""))], "messages.1.content.0.id"),
        ([user(gave("a"))], "messages.0.content.0.tool_use_id"),
        (
            [HI, assistant(called("a")), user(gave("a"), gave("a"))],
            "messages.2.content.1.tool_use_id",
        ),
        ([HI, assistant(PIXEL)], "messages.1.content.0"),
        ([user(called("a"))], "messages.0.content.0"),
        (
            [user({**PIXEL, "source": {"type": "file", "file_id": "f"}})],
            "messages.0.content.0.source",
        ),
        (
            [user({**PIXEL, "source": {**PIXEL["source"], "media_type": "image/bmp"}})],
            "messages.0.content.0.source.media_type",
        ),
    ],
)
def test_a_conversation_that_breaks_a_rule_is_refused_where_it_does(
    said: list[Any], param: str
) -> None:
    """Anthropic's rules, which clients rely on."""
    with pytest.raises(InvalidRequestError) as refusal:
        translate(messages=said, tools=[LOOK])

    assert refusal.value.param == param


def document(**source: Any) -> dict[str, Any]:
    return {"type": "document", "title": "T", "context": "C", "source": source}


PDF = {"type": "base64", "media_type": "application/pdf"}


def read_pdf(data: bytes) -> str:
    if data.startswith(b"bad"):
        raise ValueError("no PDF")
    return data.decode()


def in_base64(words: str) -> str:
    return base64.b64encode(words.encode()).decode()


@pytest.mark.parametrize(
    "source",
    [
        {"type": "text", "media_type": "text/plain", "data": "words"},
        {"type": "content", "content": "words"},
        {"type": "content", "content": [text("words")]},
        {"type": "base64", "media_type": "text/plain", "data": in_base64("words")},
        {**PDF, "data": in_base64("words")},
    ],
)
def test_a_document_is_its_text_under_title_and_context(source: dict[str, Any]) -> None:
    """Issue: document (text, and PDF to text)."""
    whole = messages(user(document(**source)), read_pdf=read_pdf)
    within = messages(
        HI,
        assistant(called("a")),
        user(gave("a", [document(**source)])),
        tools=[LOOK],
        read_pdf=read_pdf,
    )

    assert whole[0]["content"] == "T\n\nC\n\nwords"
    assert within[-1]["content"] == "T\n\nC\n\nwords"


@pytest.mark.parametrize(
    ("source", "reader", "said"),
    [
        ({**PDF, "data": in_base64("words")}, None, "cortex-gateway[pdf]"),
        ({**PDF, "data": in_base64("bad")}, read_pdf, "no PDF"),
        ({**PDF, "data": in_base64(" ")}, read_pdf, "no text layer"),
        ({**PDF, "data": "!!"}, read_pdf, "cannot be read"),
        ({"type": "base64", "media_type": "text/plain", "data": "/w=="}, None, "UTF-8"),
        ({"type": "url", "url": "https://example.com/a.pdf"}, None, "'url'"),
        ({"type": "content", "content": [PIXEL]}, None, "images within documents"),
    ],
)
def test_a_document_that_has_no_text_here_is_refused(
    source: dict[str, Any], reader: Any, said: str
) -> None:
    """Issue: else a clear 400."""
    with pytest.raises(InvalidRequestError) as refusal:
        translate(messages=[user(document(**source))], read_pdf=reader)

    assert said in refusal.value.message
    assert (refusal.value.param or "").startswith("messages.0.content.0.source")
