"""Which files are taken from the hub, and what of a model may run code."""

import json
import pathlib

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from neuron.weights.fetching import error_of
from neuron.weights.library import failure_of
from neuron.weights.lines import Job
from neuron.weights.safety import check_folder, choose_files
from neuron.weights.source import WeightSource

NAMES = st.sampled_from(
    ["config.json", "model.safetensors", "a.gguf", "pytorch_model.bin", "x.pth", "code.py", "t.txt"]
)
PATHS = st.lists(
    st.one_of(
        NAMES,
        st.builds("{}/{}".format, st.sampled_from(["onnx", "1_Pooling", "..", ".git", ""]), NAMES),
        st.text(max_size=8),
    ),
    max_size=12,
)


@given(PATHS, st.booleans(), st.booleans())
def test_nothing_unsafe_is_chosen(paths: list[str], is_pickle: bool, is_code: bool) -> None:
    """Ours: neither pickles nor code without leave, and no path that leads out of the folder."""
    try:
        chosen = choose_files(paths, is_pickle=is_pickle, is_code=is_code)
    except InvalidRequestError:
        return

    assert set(chosen) <= set(paths)
    assert not any(part in ("", ".", "..") for path in chosen for part in path.split("/"))
    assert is_code or not any(path.endswith(".py") for path in chosen)
    pickles = [path for path in chosen if path.endswith((".bin", ".pt", ".pth"))]
    assert not pickles or (is_pickle and not any(p.endswith(".safetensors") for p in chosen))
    assert "config.json" not in chosen[:-1]


def test_weights_that_are_there_twice_are_taken_once() -> None:
    """Ours: some repositories have a second copy for another engine."""
    paths = [
        "config.json",
        "consolidated.safetensors",
        "model-1.safetensors",
        "onnx/model.safetensors",
        "original/params.json",
        "1_Pooling/config.json",
        "pytorch_model.bin",
    ]

    chosen = choose_files(paths, is_pickle=True, is_code=True)

    assert chosen == ("1_Pooling/config.json", "model-1.safetensors", "config.json")


def make_folder(folder: pathlib.Path, config: object, *names: str) -> pathlib.Path:
    """Make a folder with a configuration and empty files."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in names:
        (folder / name).touch()
    return folder


LOCAL = {"auto_map": {"AutoModel": "modeling.Model"}}
ELSEWHERE = {"text_config": {"auto_map": {"AutoConfig": "org/other--configuration.Config"}}}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LOCAL, ["model.safetensors", "modeling.py"]),
        (ELSEWHERE, ["model.safetensors"]),
        ({"auto_map": {"AutoTokenizer": [None, "org/x--t.T"]}}, ["model.safetensors"]),
        ({}, ["pytorch_model.bin"]),
        ({"padding": "x" * (17 << 20), **LOCAL}, ["model.safetensors", "modeling.py"]),
    ],
    ids=["its own", "elsewhere", "tokenizer", "pickle", "too large to look through"],
)
def test_model_that_would_run_code_is_refused(
    tmp_path: pathlib.Path, config: object, names: list[str]
) -> None:
    """CVE-2025-66448, CVE-2026-22807: not left to `trust_remote_code` alone."""
    folder = make_folder(tmp_path / "m", config, *names)

    with pytest.raises(InvalidRequestError, match=r"harness\.vllm\.allow_"):
        check_folder(folder, is_pickle=False, is_code=False)
    check_folder(folder, is_pickle=True, is_code=True)


@pytest.mark.parametrize("config", [LOCAL, {}, [], "x", {"auto_map": 3}])
def test_model_whose_code_is_not_here_is_loaded(tmp_path: pathlib.Path, config: object) -> None:
    """Ours: many models name code of which an engine has its own version, and do without."""
    folder = make_folder(tmp_path / "m", config, "model.safetensors")

    check_folder(folder, is_pickle=False, is_code=False)


def test_trust_is_the_operators_to_give(tmp_path: pathlib.Path) -> None:
    """Ours: who asks for a load cannot have code run that the node's settings do not allow."""
    folder = make_folder(tmp_path / "m", LOCAL, "model.safetensors", "modeling.py")
    spec = ModelSpec(model=ModelId("org/m"), harness="vllm", engine={"trust_remote_code": True})

    with pytest.raises(InvalidRequestError, match="allow_code"):
        WeightSource(cache=tmp_path).check_loadable(spec, folder)
    trusting = WeightSource(cache=tmp_path, allow_code=frozenset(("org/m",)))
    trusting.check_loadable(spec, folder)


def test_missing_library_is_told_with_the_cure() -> None:
    """Ours: a neuron without vLLM simulates, and downloads nothing."""
    job = Job(model="org/name", revision="main", cache="/cache")

    error = error_of(failure_of(ModuleNotFoundError("huggingface_hub"), job), "org/name", 0)

    assert isinstance(error, InvalidRequestError)
    assert "comes with vLLM" in error.message
