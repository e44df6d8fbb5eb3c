"""The head of a GGUF file: what it holds, and how large that is.

Source: github.com/ggml-org/ggml, docs/gguf.md, version 3, and the block sizes of `ggml.c` (read
November 2026). A file may come from anybody, so that every count is bounded and every read may
end early; all of that is `ValueError`.
"""

import io
import pathlib
import struct
from collections.abc import Mapping
from typing import BinaryIO

import msgspec

_MAX_HEAD_BYTES = 64 << 20
"""Vocabularies of large models take about ten of it."""

_MAX_ENTRIES = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_DIMENSIONS = 8
_MAX_KEPT_BYTES = 4096
"""Longer text is passed over: templates are looked for, not read."""

_STRING, _ARRAY = 8, 9

_SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip

_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4),
    27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66),
    39: (32, 17),
}  # fmt: skip
"""Elements and bytes of one block, by tensor type."""


class GgufHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the head of a file says."""

    metadata: Mapping[str, str | int | float]
    """Plain entries; arrays and long texts are left out."""
    keys: frozenset[str]
    """Names of all entries."""
    tensors_bytes: int
    """Everything behind the head."""


def read_gguf(path: pathlib.Path) -> GgufHead:
    """Read the head of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no GGUF file, or shorter than its head says.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return _read(_Bounded(file, size), size)


class _Bounded:
    """Reads a file's head, never past the end nor past the bound."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._end = min(size, _MAX_HEAD_BYTES)
        self.position = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        self._advance(count)
        raw = self._file.read(count)
        if len(raw) != count:
            raise ValueError("the file ends within its head")
        return raw

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        self._advance(count)
        self._file.seek(count, io.SEEK_CUR)

    def number(self, form: str) -> int:
        """Return a whole number."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str | None:
        """Return a text, or `None` when it is long."""
        length = self.number("<Q")
        if length > _MAX_KEPT_BYTES:
            self.skip(length)
            return None
        return self.take(length).decode("utf-8", errors="replace")

    def _advance(self, count: int) -> None:
        if count > self._end - self.position:
            raise ValueError("the head is longer than the file, or than any head")
        self.position += count


def _read(source: _Bounded, size: int) -> GgufHead:
    if source.take(4) != b"GGUF":
        raise ValueError("it does not begin as a GGUF file")
    if source.number("<I") not in (2, 3):
        raise ValueError("it is of a version of GGUF that is not known")
    tensors, entries = source.number("<Q"), source.number("<Q")
    if tensors > _MAX_TENSORS or entries > _MAX_ENTRIES:
        raise ValueError("it has more entries than any model")
    metadata: dict[str, str | int | float] = {}
    keys = set()
    for _ in range(entries):
        key = source.text() or ""
        keys.add(key)
        value = _value(source, source.number("<I"))
        if value is not None:
            metadata[key] = value
    end = max((_tensor_end(source) for _ in range(tensors)), default=0)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ValueError("its alignment is not possible")
    start = -(-source.position // alignment) * alignment
    if start + end > size:
        raise ValueError(f"it has {size} bytes and should have {start + end}")
    return GgufHead(metadata=metadata, keys=frozenset(keys), tensors_bytes=max(0, size - start))


def _value(source: _Bounded, kind: int) -> str | int | float | None:
    """Return a plain value; an array is passed over."""
    if kind == _STRING:
        return source.text()
    if kind != _ARRAY:
        return _scalar(source, kind)
    kind, count = source.number("<I"), source.number("<Q")
    if kind == _STRING:
        for _ in range(min(count, _MAX_HEAD_BYTES)):
            source.skip(source.number("<Q"))
    elif kind in _SCALARS:
        source.skip(count * struct.calcsize(_SCALARS[kind]))
    else:
        raise ValueError("an array holds what is not known")
    return None


def _scalar(source: _Bounded, kind: int) -> int | float:
    form = _SCALARS.get(kind)
    if form is None:
        raise ValueError("an entry is of a kind that is not known")
    value: int | float = struct.unpack(form, source.take(struct.calcsize(form)))[0]
    return value


def _tensor_end(source: _Bounded) -> int:
    """Return where a tensor ends behind the head, as far as its type is known."""
    source.text()
    dimensions = source.number("<I")
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError("a tensor has more dimensions than any")
    elements = 1
    for _ in range(dimensions):
        elements *= source.number("<Q")
    kind, offset = source.number("<I"), source.number("<Q")
    per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
    return offset + -(-elements // per_block) * block_bytes
