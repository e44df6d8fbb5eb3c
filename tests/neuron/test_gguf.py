"""The head of a GGUF file, whoever wrote it."""

import pathlib
import struct

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from neuron.weights.gguf import read_gguf
from neuron.weights.sizes import read_weights

_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


ENTRIES = (
    entry("general.architecture", _STRING, text("llama")),
    entry("llama.context_length", _U32, struct.pack("<I", 4096)),
    entry("llama.rope.freq_base", _F32, struct.pack("<f", 10000.0)),
    entry("tokenizer.chat_template", _STRING, text("{{ messages }}" * 1000)),
    entry(
        "tokenizer.ggml.tokens",
        _ARRAY,
        struct.pack("<IQ", _STRING, 2) + text("a") + text("bc"),
    ),
    entry("tokenizer.ggml.scores", _ARRAY, struct.pack("<IQ2f", _F32, 2, 0.5, 1.5)),
)

TENSORS = (
    tensor("token_embd.weight", (64, 32), 12, 0),  # Q4_K: 256 elements in 144 bytes
    tensor("output_norm.weight", (32,), 0, 1152),
)

DATA_BYTES = 1152 + 32 * 4


def model(version: int = 3, data_bytes: int = DATA_BYTES) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(TENSORS), len(ENTRIES))
    head += b"".join(ENTRIES) + b"".join(TENSORS)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def test_head_says_what_the_file_holds(tmp_path: pathlib.Path) -> None:
    """ggml, docs/gguf.md: metadata, then tensors, then data at the alignment."""
    path = tmp_path / "m.gguf"
    path.write_bytes(model())

    head = read_gguf(path)

    assert head.metadata["general.architecture"] == "llama"
    assert head.metadata["llama.context_length"] == 4096
    assert head.metadata["llama.rope.freq_base"] == 10000.0
    assert "tokenizer.chat_template" in head.keys
    assert "tokenizer.ggml.tokens" not in head.metadata
    assert head.tensors_bytes == DATA_BYTES


def test_weights_in_gguf_files_have_a_size(tmp_path: pathlib.Path) -> None:
    """Ours."""
    (tmp_path / "m.gguf").write_bytes(model())

    weights = read_weights(tmp_path)

    assert (weights.format, weights.size_bytes, weights.damage) == ("gguf", DATA_BYTES, None)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "longer than the file"),
        (b"GGML" + bytes(20), "does not begin"),
        (model(version=1), "version"),
        (model(data_bytes=DATA_BYTES - 1), "should have"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "more entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "more entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63), "longer than the file"),
        (model()[:200], "longer than the file"),
    ],
)
def test_file_that_is_not_what_it_says_is_told(
    tmp_path: pathlib.Path, raw: bytes, words: str
) -> None:
    """Ours: named, and nothing is raised out of the room."""
    (tmp_path / "m.gguf").write_bytes(raw)

    damage = read_weights(tmp_path).damage

    assert damage is not None
    assert damage.startswith("m.gguf: ")
    assert words in damage


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(model()) - 1), raw=st.binary(min_size=1, max_size=9))
def test_no_file_makes_the_reader_fail_otherwise(
    tmp_path: pathlib.Path, place: int, raw: bytes
) -> None:
    """Ours: whatever is written over it, it is read or told."""
    whole = model()
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:place] + raw + whole[place + len(raw) :])

    weights = read_weights(tmp_path)

    assert (weights.size_bytes is None) is (weights.damage is not None)
