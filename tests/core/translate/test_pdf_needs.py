"""Whether a request has a PDF is told without a look at every byte of it."""

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import decode_request
from cortex_core.errors import InvalidRequestError
from cortex_core.translate import documents, responses_turns
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER
from cortex_core.wire.responses.items import decode_items
from tests.core.translate import messages_asked, responses_asked
from tests.core.translate.messages_asked import HI, assistant, called, gave, text, user

DATA = base64.b64encode(b"words").decode()
PDF = "application/pdf"

texts = st.sampled_from(["words", PDF, 'a.pdf"', "", ".PDF"])
types = st.sampled_from([PDF, "text/plain", None])
sources = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "text", "url", "content"])},
    optional={"media_type": types, "data": st.just(DATA), "content": texts, "url": texts},
)
blocks = st.one_of(
    texts.map(text),
    st.builds(lambda source: {"type": "document", "source": source}, sources),
)
contents = texts | st.lists(blocks, min_size=1, max_size=3)
files = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_file", "input_text"])},
    optional={
        "filename": st.sampled_from(["a.pdf", "a.PDF", "a.txt", "pdf"]),
        "file_data": st.sampled_from(
            [DATA, f",{DATA}", f"data:{PDF};base64,{DATA}", f"data:text/plain;base64,{DATA}"]
        ),
        "text": texts,
    },
)
parts = texts | st.lists(files, min_size=1, max_size=3)


def may_have_pdf(body: bytes) -> bool:
    """Look at every byte."""
    return PDF.encode() in body or b'.pdf"' in body.lower()


class Reads:
    """Reads PDFs, and keeps how many."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, data: bytes) -> str:
        self.count += 1
        return "words"


@given(contents, contents)
def test_messages_have_a_pdf_if_one_is_read(said: Any, result: Any) -> None:
    """Ours: no more than the bytes say, and all that translation reads."""
    asked = [user("hi"), assistant(called("a")), user(gave("a", result)), assistant("so")]
    body = {"model": "m", "max_tokens": 1, "messages": [*asked, {**HI, "content": said}]}
    wire, reads, is_translated = json.dumps(body).encode(), Reads(), False

    found = documents.has_pdf(decode_request(wire, MESSAGES_REQUEST_DECODER))
    with contextlib.suppress(InvalidRequestError):
        messages_asked.translate_bytes(wire, read_pdf=reads)
        is_translated = True

    assert found <= may_have_pdf(wire)
    assert found >= bool(reads.count)
    assert not is_translated or found == bool(reads.count)


@given(parts, parts)
def test_items_have_a_pdf_if_one_is_read(said: Any, result: Any) -> None:
    """Ours: as above."""
    asked = [
        responses_asked.user("hi"),
        responses_asked.called("a"),
        {**responses_asked.gave("a", result)},
        responses_asked.user(said),
    ]
    wires, reads, is_translated = [json.dumps(item).encode() for item in asked], Reads(), False

    found = responses_turns.has_pdf(decode_items(wires))
    with contextlib.suppress(InvalidRequestError):
        responses_asked.translate({"input": asked}, read_pdf=reads)
        is_translated = True

    assert found <= any(map(may_have_pdf, wires))
    assert found >= bool(reads.count)
    assert not is_translated or found == bool(reads.count)


@pytest.mark.parametrize("written", ["application\\/pdf", "application/p\\u0064f"])
def test_a_pdf_is_found_however_its_type_is_escaped(written: str) -> None:
    """Ours: PHP writes slashes like that, and a PDF is read beside the loop or not at all."""
    source = {"type": "base64", "media_type": "TYPE", "data": DATA}
    fields = {"model": "m", "messages": [user({"type": "document", "source": source})]}
    wire = json.dumps(fields).replace("TYPE", written).encode()

    found = documents.has_pdf(decode_request(wire, MESSAGES_REQUEST_DECODER))

    assert found
    assert not may_have_pdf(wire)
