"""Our opaque form of what a model thought, for clients that send it back unread.

Anthropic's clients return the `signature` of a thinking block, OpenAI's the `encrypted_content`
of a reasoning item. A sealed text is packed, not encrypted: whoever may read the answer may read
it, and every gateway can open what another one has sealed.
"""

import base64
import binascii
import zlib

_MARK = b"cortex1:"
"""What is ours, and in which form."""

MAX_SEALED_CHARS = 8 << 20
MAX_TEXT_BYTES = 8 << 20
"""Bound on what is unpacked: a few bytes can stand for gigabytes."""


def seal(text: str) -> str:
    """Return `text` in its opaque form: printable ASCII, never empty."""
    packed = zlib.compress(text.encode("utf-8", "surrogatepass"), level=6)
    return base64.urlsafe_b64encode(_MARK + packed).decode("ascii")


def unseal(sealed: str) -> str | None:
    """Return the text that `seal` was given; `None` for what is not ours, or was changed."""
    if len(sealed) > MAX_SEALED_CHARS:
        return None
    try:
        raw = base64.b64decode(sealed.encode("ascii"), altchars=b"-_", validate=True)
        if not raw.startswith(_MARK):
            return None
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(raw.removeprefix(_MARK), MAX_TEXT_BYTES)
        if not unpacker.eof:
            return None
        return data.decode("utf-8", "surrogatepass")
    except (UnicodeError, binascii.Error, zlib.error):
        return None
