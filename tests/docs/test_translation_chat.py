"""The page on chat completions lists every field and every part, with what becomes of it."""

from typing import get_args

import msgspec
import pytest

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.translate.chat_normal import normalise
from cortex_core.translate.chat_request import JSON_INSTRUCTION, ToMessages, chat_to_messages
from cortex_core.translate.chat_turns import OPENING
from cortex_core.translate.target import Target
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER, ChatMessage, ChatRequest, Part
from tests.docs.tables import rows_of
from tests.repository.checkout import ROOT

FATES = {"exact", "approximated", "ignored", "refused"}

PAGE = "translation-chat"

VALUES: dict[str, object] = {
    "seed": 1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "min_p": 0.5,
    "chat_template_kwargs": {"a": 1},
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "logit_bias": {"1": 1},
    "logprobs": True,
    "top_logprobs": 1,
    "audio": {"voice": "v"},
    "structured_outputs": {"regex": "a"},
    "web_search_options": {},
}
"""A value for every field that the page calls ignored or refused."""


def fates(section: str) -> dict[str, str]:
    return {row[0]: row[1] for row in rows_of(PAGE, section)}


def with_fate(fate: str) -> list[str]:
    return [name for name, theirs in fates("Fields").items() if theirs == fate]


def asked(name: str) -> bytes:
    said = [{"role": "user", "content": "hi"}]
    return encode_json({"model": "m", "messages": said, name: VALUES[name]})


def translated(name: str) -> ToMessages:
    request = CHAT_REQUEST_DECODER.decode(asked(name))
    return chat_to_messages(request, Target(model="m"))


@pytest.mark.parametrize(
    ("section", "struct"), [("Fields", ChatRequest), ("Messages", ChatMessage)]
)
def test_page_has_every_field(section: str, struct: type[msgspec.Struct]) -> None:
    """Issue: a table says field by field what is exact, approximated, refused."""
    rows = fates(section)

    assert set(rows) == {field.encode_name for field in msgspec.structs.fields(struct)}
    assert set(rows.values()) <= FATES


def test_page_has_every_part() -> None:
    """Ours: as above."""
    assert set(fates("Parts")) == {part.__struct_config__.tag for part in get_args(Part)}


@pytest.mark.parametrize("name", with_fate("ignored"))
def test_a_field_that_the_page_calls_ignored_is_left_out_and_named(name: str) -> None:
    """Ours: nothing is dropped silently."""
    assert translated(name).ignored == (name,)


@pytest.mark.parametrize("name", with_fate("refused"))
def test_a_field_that_the_page_calls_refused_is_refused(name: str) -> None:
    """Ours: the error names it."""
    with pytest.raises(InvalidRequestError) as caught:
        translated(name)
    assert caught.value.param == name


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"audio"}))
def test_an_engine_gets_it_as_it_was_written(name: str) -> None:
    """Ours: what another dialect cannot say is no concern of an engine's."""
    body = asked(name)

    assert normalise(body).body is body


def test_page_quotes_the_sentences_that_are_put_into_prompts() -> None:
    """Ours: whoever wonders where they come from can find them."""
    page = (ROOT / "docs" / "reference" / f"{PAGE}.md").read_text()

    assert f'"{JSON_INSTRUCTION}"' in page
    assert f"`{OPENING}`" in page
