"""What a model cannot do is said before it is asked."""

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Capabilities
from cortex_core.translate.capability import (
    CHAT_FIELDS,
    MESSAGES_FIELDS,
    RESPONSES_FIELDS,
    Asks,
    FieldNames,
    asks_of,
    refuse_other_kind,
    refuse_unable,
)
from cortex_core.wire.openai.chat import (
    AudioPart,
    ChatMessage,
    ChatRequest,
    FunctionDefinition,
    ImagePart,
    ImageUrl,
    InputAudio,
    TextPart,
    Tool,
)

ABLE = Capabilities(chat=True, tools=True, reasoning=True, vision=True, audio=True)
PLAIN = Capabilities(chat=True)


def chat(**fields: object) -> ChatRequest:
    parts = (
        TextPart(text="what is it"),
        ImagePart(image_url=ImageUrl(url="https://example.org/a.png")),
        AudioPart(input_audio=InputAudio(data="", format="wav")),
    )
    message = ChatMessage(role="user", content=parts)
    tools = (Tool(function=FunctionDefinition(name="f")),)
    return ChatRequest(model="m", messages=(message,), tools=tools, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asks", "fields", "param"),
    [
        (Asks(vision=True), CHAT_FIELDS, "messages"),
        (Asks(audio=True), CHAT_FIELDS, "messages"),
        (Asks(tools=True), CHAT_FIELDS, "tools"),
        (Asks(reasoning=True), CHAT_FIELDS, "thinking_token_budget"),
        (Asks(vision=True), MESSAGES_FIELDS, "messages"),
        (Asks(reasoning=True), MESSAGES_FIELDS, "thinking"),
        (Asks(vision=True), RESPONSES_FIELDS, "input"),
        (Asks(reasoning=True), RESPONSES_FIELDS, "reasoning"),
    ],
)
def test_a_refusal_names_the_field_as_the_caller_knows_it(
    asks: Asks, fields: FieldNames, param: str
) -> None:
    """Ours: `param` is in the vocabulary of the caller's dialect."""
    refuse_unable(asks, ABLE, fields=fields)

    with pytest.raises(InvalidRequestError) as caught:
        refuse_unable(asks, PLAIN, fields=fields)
    assert caught.value.param == param


def test_only_a_refusal_about_thinking_speaks_of_it() -> None:
    """Claude Code's: it asks again with thinking off when it reads the word."""
    for asks in (Asks(vision=True), Asks(audio=True), Asks(tools=True)):
        with pytest.raises(InvalidRequestError) as caught:
            refuse_unable(asks, PLAIN)
        assert "thinking" not in caught.value.message


def test_what_a_chat_needs_is_found_in_its_fields() -> None:
    """Ours: tools that may not be called are no need."""
    assert asks_of(chat(thinking_token_budget=9)) == Asks(
        vision=True, audio=True, tools=True, reasoning=True
    )
    assert not asks_of(chat(tool_choice="none")).tools
    assert not asks_of(chat(reasoning_effort="high")).reasoning
    text = ChatRequest(model="m", messages=(ChatMessage(role="user", content="hi"),))
    assert asks_of(text) == Asks()


@given(st.builds(Asks, vision=st.booleans(), audio=st.booleans(), tools=st.booleans()))
def test_nobody_is_refused_by_a_model_that_says_nothing_of_itself(asks: Asks) -> None:
    """Ours: `None` means not known."""
    refuse_unable(asks, None)
    refuse_unable(asks, ABLE)


@given(st.builds(Asks, **{name: st.booleans() for name in Asks.__struct_fields__}))
def test_a_plain_model_refuses_whatever_is_asked(asks: Asks) -> None:
    """Ours: nothing slips through beside something else."""
    if asks == Asks():
        refuse_unable(asks, PLAIN)
    else:
        with pytest.raises(InvalidRequestError):
            refuse_unable(asks, PLAIN)


@pytest.mark.parametrize("asked", [Asks(), Asks(vision=True)])
def test_model_that_does_not_chat_is_the_wrong_one(asked: Asks) -> None:
    """Issue: a wrong modality is a 400, about the model rather than about what is in the chat."""
    with pytest.raises(InvalidRequestError) as caught:
        refuse_unable(asked, Capabilities(embeddings=True, vision=True))

    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("path", "able"),
    [
        ("/v1/completions", Capabilities(completions=True)),
        ("/v1/embeddings", Capabilities(embeddings=True)),
        ("/v1/score", Capabilities(scoring=True)),
        ("/v1/rerank", Capabilities(scoring=True)),
    ],
)
def test_paths_are_for_models_of_their_kind(path: str, able: Capabilities) -> None:
    """Ours: whoever says nothing of itself is not refused, and tokens have all of them."""
    refuse_other_kind(path, able)
    refuse_other_kind(path, None)
    refuse_other_kind("/tokenize", Capabilities())
    with pytest.raises(InvalidRequestError) as caught:
        refuse_other_kind(path, PLAIN)

    assert caught.value.param == "model"
