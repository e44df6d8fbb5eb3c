"""How large a model's weights are, and whether their files are whole, from their headers alone.

Header of a safetensors file: 8 bytes, little endian, its length; then JSON with the byte range of
every tensor (huggingface.co/docs/safetensors, "Format", read November 2026).
"""

import json
import pathlib
import struct

import msgspec

from neuron.weights.gguf import GgufHead, read_gguf

_MAX_HEADER_BYTES = 100 << 20
"""The safetensors library refuses longer headers too."""

_NOT_A_HEADER = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct.error,
)
"""What the reading of one that somebody made up may end in."""

_PICKLES = ("*.bin", "*.pt")


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The weights in a folder."""

    format: str | None = None
    """`safetensors`, `gguf` or `pickle`; the first of them that is there."""
    size_bytes: int | None = None
    """All tensors; `None` is not known."""
    damage: str | None = None
    """Why a file cannot be what it says it is; `None` when nothing was found."""
    gguf: GgufHead | None = None
    """Head of the first file of that format."""


def read_weights(folder: pathlib.Path) -> Weights:
    """Return what the headers of a folder's weights say; nothing when there are none."""
    files = _safetensors(folder)
    if files:
        return _of_safetensors(files)
    files = sorted(folder.glob("*.gguf"))
    if files:
        return _of_gguf(files)
    pickles = [path for pattern in _PICKLES for path in folder.glob(pattern)]
    if not pickles:
        return Weights()
    try:
        return Weights(format="pickle", size_bytes=sum(path.stat().st_size for path in pickles))
    except OSError:
        return Weights(format="pickle")


def weights_bytes(folder: pathlib.Path) -> int | None:
    """Return the size of a folder's tensors; `None` when nobody can say."""
    return read_weights(folder).size_bytes


def _safetensors(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that make up the model; some folders hold it twice."""
    files = sorted(folder.glob("*.safetensors"))
    parts = [path for path in files if "consolidated" not in path.name]
    return parts or files


def _of_safetensors(files: list[pathlib.Path]) -> Weights:
    total = 0
    for path in files:
        try:
            total += _tensor_bytes(path)
        except OSError as error:
            # A matter of the disk or of permissions, which the engine may say more of.
            return Weights(format="safetensors", damage=f"{path.name}: {error.strerror}")
        except _NOT_A_HEADER as error:
            reason = str(error) if isinstance(error, _BrokenError) else "its header is broken"
            return Weights(format="safetensors", damage=f"{path.name}: {reason}")
    return Weights(format="safetensors", size_bytes=total)


class _BrokenError(ValueError):
    """A file is not what its header says; the message is fit to be shown."""


def _tensor_bytes(path: pathlib.Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_HEADER_BYTES, size):
            raise _BrokenError("its header is longer than the file, or than any header")
        header = json.loads(file.read(length))
    total = end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            total += last - first
            end = max(end, last)
    if size < 8 + length + end:
        raise _BrokenError(f"it has {size} bytes and should have {8 + length + end}")
    return int(total)


def _of_gguf(files: list[pathlib.Path]) -> Weights:
    heads = []
    for path in files:
        try:
            heads.append(read_gguf(path))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return Weights(format="gguf", damage=f"{path.name}: {reason}")
    total = sum(head.tensors_bytes for head in heads)
    return Weights(format="gguf", size_bytes=total, gguf=heads[0])
