"""What a model thought, on its way through a client that does not read it."""

import base64
import zlib

import pytest
from hypothesis import given, strategies as st

from cortex_core.translate.sealed import MAX_TEXT_BYTES, seal, unseal


@given(st.text(st.characters()))
def test_a_sealed_text_comes_back(text: str) -> None:
    """Ours: any text, and printable ASCII in between."""
    sealed = seal(text)

    assert sealed
    assert sealed.isascii()
    assert sealed.isprintable()
    assert unseal(sealed) == text


@given(st.text())
def test_what_is_not_ours_is_nobodys(text: str) -> None:
    """Protocol 2.6: any signature is accepted; those of others have no text for us."""
    assert unseal(text) is None


def test_a_sealed_text_that_was_cut_is_not_opened() -> None:
    """Ours: half a text would be taken for a whole one."""
    sealed = seal("thoughts " * 50)

    assert unseal(sealed[: len(sealed) // 2]) is None


@pytest.mark.parametrize("size", [MAX_TEXT_BYTES + 1, 50 * MAX_TEXT_BYTES])
def test_a_text_that_unpacks_to_too_much_is_not_opened(size: int) -> None:
    """Ours: a few bytes can stand for gigabytes."""
    bomb = base64.urlsafe_b64encode(b"cortex1:" + zlib.compress(b"x" * size)).decode()

    assert unseal(bomb) is None
