"""Text and tokens of the simulated engine.

A token is up to four bytes of whole UTF-8 characters, and its id spells these bytes, so that
tokens turn back into text without a table. Every word of an answer is exactly one token.
"""

import zlib
from collections.abc import Sequence

from cortex_core.errors import InvalidRequestError

TOKEN_BYTES = 4

_WORDS = [
    "ant",
    "bay",
    "bee",
    "bud",
    "cat",
    "cow",
    "dew",
    "dog",
    "elm",
    "fig",
    "fir",
    "fog",
    "fox",
    "gem",
    "hay",
    "hen",
    "ice",
    "ink",
    "ivy",
    "jay",
    "key",
    "kit",
    "law",
    "map",
    "mud",
    "nut",
    "oak",
    "oat",
    "owl",
    "pea",
    "pen",
    "pie",
    "rag",
    "ram",
    "ray",
    "red",
    "rye",
    "sap",
    "sea",
    "sky",
    "sun",
    "tea",
    "tin",
    "toy",
    "urn",
    "van",
    "vow",
    "wax",
    "web",
    "yak",
    "yew",
    "zoo",
]

_LAST_WORD = "end."

# Natural lengths of answers: long enough to watch a stream, short enough for a test.
_SHORTEST, _LONGEST = 8, 40


def tokens_of(text: str) -> list[str]:
    """Return the tokens of `text` as text; joined they are `text` again."""
    if text.isascii():
        return [text[at : at + TOKEN_BYTES] for at in range(0, len(text), TOKEN_BYTES)]
    tokens, current, size = [], "", 0
    for character in text:
        width = len(character.encode())
        if size + width > TOKEN_BYTES:
            tokens.append(current)
            current, size = "", 0
        current, size = current + character, size + width
    return [*tokens, current] if current else tokens


def count_tokens(text: str) -> int:
    """Return how many tokens `text` has."""
    return -(-len(text) // TOKEN_BYTES) if text.isascii() else len(tokens_of(text))


def encode_token(token: str) -> int:
    """Return the id of a token."""
    # The leading one keeps the length: without it, a NUL byte at the start would be lost.
    return int.from_bytes(b"\x01" + token.encode())


def decode_tokens(ids: Sequence[int]) -> str:
    """Return the text of token ids.

    Raises:
        InvalidRequestError: an id is none of this engine's.
    """
    return "".join(_decode(number) for number in ids)


def answer_tokens(prompt: str, choice: int) -> list[str]:
    """Return the natural answer to `prompt`: the same words for the same prompt and choice."""
    state = zlib.crc32(prompt.encode()) ^ (choice * 0x9E3779B1)
    length = _SHORTEST + state % (_LONGEST - _SHORTEST)
    words = []
    for _ in range(length - 1):
        # A linear congruential generator (Numerical Recipes' constants); no randomness wanted.
        state = (state * 1664525 + 1013904223) % 2**32
        words.append(_WORDS[(state >> 16) % len(_WORDS)] + " ")
    return [*words, _LAST_WORD]


def cut_at_stop(tokens: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the tokens before the first stop string, and that string if there was one.

    The token in which the stop string ends is kept, cut, as it had to be generated.
    """
    text = ""
    for position, token in enumerate(tokens):
        text += token
        found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
        if found:
            length, stop = min(found)
            return _cut(tokens[: position + 1], length), stop
    return list(tokens), None


def _cut(tokens: Sequence[str], length: int) -> list[str]:
    kept = []
    for token in tokens:
        kept.append(token[:length])
        length -= len(kept[-1])
    return kept


def _decode(number: int) -> str:
    raw = number.to_bytes(max(1, (number.bit_length() + 7) // 8)) if number > 0 else b""
    if raw[:1] == b"\x01" and 1 < len(raw) <= TOKEN_BYTES + 1:
        try:
            return raw[1:].decode()
        except UnicodeDecodeError:
            pass
    raise InvalidRequestError(f"{number} is no token id of this model", param="tokens")
