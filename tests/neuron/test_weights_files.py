"""Weights on disk: found, complete, measured."""

import json
import pathlib
import struct

import pytest

from cortex_core.errors import InvalidRequestError
from neuron.weights.files import find_weights, hub_cache
from neuron.weights.sizes import (
    Architecture,
    estimate_vram_bytes,
    kv_bytes_per_token,
    read_architecture,
    weights_bytes,
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def write_safetensors(path: pathlib.Path, sizes: dict[str, int]) -> None:
    """Write the header of a file whose tensors have `sizes` bytes; no data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


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


@pytest.mark.parametrize("raw", [b"", b"\x00" * 8, struct.pack("<Q", 1 << 60), b"\x05" + b"\0" * 7])
def test_size_of_a_broken_file_is_not_known(tmp_path: pathlib.Path, raw: bytes) -> None:
    """Ours: an estimate never fails a load."""
    (tmp_path / "model.safetensors").write_bytes(raw)

    assert weights_bytes(tmp_path) is None


def test_cache_of_one_token() -> None:
    """Ours, measured against vLLM: keys and values, of the key-value heads, in every layer."""
    llama = Architecture(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    latent = Architecture(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
    )

    assert kv_bytes_per_token(llama) == 256
    assert kv_bytes_per_token(latent) == 2 * (16 + 4) * 2
    assert kv_bytes_per_token(Architecture()) is None


def test_architecture_of_a_model_with_parts_is_that_of_its_text(tmp_path: pathlib.Path) -> None:
    """transformers: `text_config` of multimodal models."""
    inner = {name: value for name, value in LLAMA.items() if name != "architectures"}
    outer: dict[str, object] = {"architectures": ["SeeingModel"], "text_config": inner}
    folder = make_model(tmp_path / "m", outer)

    model = read_architecture(folder)

    assert model.architectures == ("SeeingModel",)
    assert model.num_hidden_layers == 2
    assert read_architecture(tmp_path) == Architecture()


def test_estimate_grows_with_context_and_devices(tmp_path: pathlib.Path) -> None:
    """Ours: weights, cache, and an overhead on each device."""
    folder = make_model(tmp_path / "m")

    short = estimate_vram_bytes(folder, {"max_model_len": 100}, 1)
    long = estimate_vram_bytes(folder, {"max_model_len": 1100}, 1)
    fixed = estimate_vram_bytes(folder, {"kv_cache_memory_bytes": 7, "max_model_len": 100}, 1)
    both = estimate_vram_bytes(folder, {"max_model_len": 100}, 2)

    assert short is not None
    assert long is not None
    assert fixed is not None
    assert both is not None
    assert long - short == 1000 * 256
    assert short - fixed == 100 * 256 - 7
    assert both > short
    assert estimate_vram_bytes(tmp_path, {}, 1) is None
