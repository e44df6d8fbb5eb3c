"""Weights on disk: found, complete, measured."""

import json
import pathlib
import struct

import pytest

from cortex_core.errors import InvalidRequestError
from neuron.weights.files import find_weights, hub_cache
from neuron.weights.sizes import Weights, read_weights, weights_bytes

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def write_safetensors(path: pathlib.Path, sizes: dict[str, int]) -> None:
    """Write a file whose tensors have `sizes` bytes of nothing."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(start))


def make_model(folder: pathlib.Path, config: dict[str, object] | None = None) -> pathlib.Path:
    """Make a folder that looks like a model of 300 bytes in two shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or LLAMA))
    write_safetensors(folder / "a.safetensors", {"x": 100})
    write_safetensors(folder / "b.safetensors", {"y": 150, "z": 50})
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_cached(cache: pathlib.Path, model: str) -> pathlib.Path:
    """Put a model into a hub cache."""
    home = cache / f"models--{model.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc123")
    return make_model(home / "snapshots" / "abc123")


def test_cached_model_is_found_by_branch_and_by_commit(tmp_path: pathlib.Path) -> None:
    """huggingface_hub: refs name the commit of a branch."""
    folder = make_cached(tmp_path, "org/name")

    assert find_weights("org/name", tmp_path) == folder
    assert find_weights("org/name", tmp_path, "abc123") == folder
    assert find_weights("org/name", tmp_path, "other") is None
    assert find_weights("org/other", tmp_path) is None


def test_folder_is_found_by_its_path(tmp_path: pathlib.Path) -> None:
    """Ours: an absolute path needs no cache."""
    folder = make_model(tmp_path / "m")

    assert find_weights(str(folder), tmp_path / "none") == folder
    assert find_weights("/nowhere", tmp_path) is None


def test_adapter_is_found_when_its_tensors_are_there(tmp_path: pathlib.Path) -> None:
    """PEFT: an adapter has no `config.json`, and its weights have one name."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "other.safetensors").write_bytes(b"")
    assert find_weights(str(folder), tmp_path) is None

    write_safetensors(folder / "adapter_model.safetensors", {"x": 100})

    assert find_weights(str(folder), tmp_path) == folder


def test_folder_of_models_goes_before_the_cache(tmp_path: pathlib.Path) -> None:
    """Ours: `model_dirs`, in order; they have no revisions."""
    cache = tmp_path / "cache"
    cached = make_cached(cache, "org/name")
    folder = make_model(tmp_path / "b" / "org" / "name")
    dirs = (tmp_path / "a", tmp_path / "b")

    assert find_weights("org/name", cache, "main", dirs) == folder
    assert find_weights("org/name", cache, "abc123", dirs) == cached
    (folder / "config.json").unlink()
    assert find_weights("org/name", cache, "main", dirs) == cached


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a//b", "", "x" * 500, "a b"])
def test_name_that_is_no_revision_is_refused(tmp_path: pathlib.Path, revision: str) -> None:
    """Ours: no name leads out of the cache."""
    with pytest.raises(InvalidRequestError) as caught:
        find_weights("org/name", tmp_path, revision)

    assert caught.value.param == "revision"


@pytest.mark.parametrize("name", ["b.safetensors", "config.json"])
def test_model_with_a_part_missing_is_not_there(tmp_path: pathlib.Path, name: str) -> None:
    """Ours: a download that was cut off is gone on with, not loaded."""
    folder = make_cached(tmp_path, "org/name")

    (folder / name).unlink()

    assert find_weights("org/name", tmp_path) is None


@pytest.mark.parametrize("index", ["[]", "[" * 100_000, '{"weight_map": {"x": ["a"]}}', "{}", "\0"])
def test_model_with_a_broken_index_is_not_there(tmp_path: pathlib.Path, index: str) -> None:
    """Ours: nothing is raised, so that the others are listed."""
    folder = make_cached(tmp_path, "org/name")

    (folder / "model.safetensors.index.json").write_text(index)

    assert find_weights("org/name", tmp_path) is None


def test_file_that_cannot_be_looked_at_makes_no_model(tmp_path: pathlib.Path) -> None:
    """Ours: nothing is raised; a name that is too long stands for a folder of somebody else."""
    folder = make_model(tmp_path / "m")
    index = {"weight_map": {"x": "x" * 5000}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert find_weights(str(folder), tmp_path) is None


def test_shards_that_were_copied_before_their_index_are_no_model(tmp_path: pathlib.Path) -> None:
    """Ours: their names tell how many there are."""
    (tmp_path / "config.json").write_text("{}")
    for number in (1, 3):
        (tmp_path / f"model-0000{number}-of-00003.safetensors").touch()
    partial = find_weights(str(tmp_path), tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").touch()

    assert partial is None
    assert find_weights(str(tmp_path), tmp_path) == tmp_path


def test_branch_that_is_no_text_is_not_there(tmp_path: pathlib.Path) -> None:
    """Ours: a file that a power cut left."""
    folder = make_cached(tmp_path, "org/name")

    (folder.parent.parent / "refs" / "main").write_bytes(b"\xff\xfe")

    assert find_weights("org/name", tmp_path) is None


@pytest.mark.parametrize(
    "model", ["../x", "a/../b", "a/b/c", "", "relative/../..", "a b", "x" * 500]
)
def test_name_that_is_no_hub_id_is_refused(tmp_path: pathlib.Path, model: str) -> None:
    """Ours: no name leads out of the cache."""
    with pytest.raises(InvalidRequestError) as caught:
        find_weights(model, tmp_path)

    assert caught.value.param == "model_id"


def test_cache_is_the_setting_then_what_the_hub_library_takes() -> None:
    """Contract: hf_cache, else HF_HUB_CACHE, HF_HOME/hub, library default."""
    environ = {"HF_HUB_CACHE": "/c", "HF_HOME": "/h", "HOME": "/u"}

    assert hub_cache("/s", environ) == pathlib.Path("/s")
    assert hub_cache(None, environ) == pathlib.Path("/c")
    assert hub_cache(None, {"HF_HOME": "/h", "HOME": "/u"}) == pathlib.Path("/h/hub")
    assert hub_cache(None, {"HOME": "/u"}) == pathlib.Path("/u/.cache/huggingface/hub")


def test_size_is_that_of_the_tensors(tmp_path: pathlib.Path) -> None:
    """safetensors: the header has each tensor's range of bytes."""
    folder = make_model(tmp_path / "m")

    assert weights_bytes(folder) == 300
    assert weights_bytes(tmp_path) is None


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 1 << 60),
        b"\x05" + b"\0" * 7,
        with_header(b"[" * 100_000),
        with_header(b'{"x": {"data_offsets": [-1e999, 0]}}'),
        with_header(b'{"x": {"data_offsets": [0, 1e999]}}'),
        with_header(b'{"x": {"data_offsets": ["a", "b"]}}'),
        with_header(b'{"x": {"data_offsets": [1]}}'),
    ],
)
def test_broken_file_has_no_size_and_is_told(tmp_path: pathlib.Path, raw: bytes) -> None:
    """Ours: it is named, and nothing is raised."""
    (tmp_path / "model.safetensors").write_bytes(raw)

    weights = read_weights(tmp_path)

    assert (weights.format, weights.size_bytes) == ("safetensors", None)
    assert weights.damage is not None
    assert weights.damage.startswith("model.safetensors: ")


def test_file_that_was_cut_off_is_told_with_both_sizes(tmp_path: pathlib.Path) -> None:
    """Ours: a download that broke off is not found out by the engine, after a minute."""
    path = make_model(tmp_path / "m") / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    size = path.stat().st_size

    damage = read_weights(tmp_path / "m").damage

    assert damage == f"a.safetensors: it has {size} bytes and should have {size + 1}"


def test_pickles_are_told_as_such(tmp_path: pathlib.Path) -> None:
    """Ours: only where there is nothing better."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")

    assert read_weights(tmp_path) == Weights(format="pickle", size_bytes=5)
