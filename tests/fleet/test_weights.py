"""Weights brought to a node and removed from it by command, all the way to a hub."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.fakes.hub import hub
from tests.fleet.daemons import Daemon, gateway, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

pytest.importorskip("huggingface_hub", reason="it comes with vLLM")

MODEL = "sim/fast"
FILES = {"config.json": b"{}", "model.safetensors": bytes(3 << 20), "pytorch_model.bin": b"x"}

SETTINGS = """
host = "127.0.0.1"
port = 0
[[harnesses]]
name = "simulated"
[[devices]]
index = 0
name = "SIM"
vram_total_mb = 24576
[harness.vllm]
hf_cache = "{cache}"
endpoint = "{hub}"
"""


def cortex(door: Daemon, line: str) -> tuple[int, str, str]:
    """Run a command against a gateway."""
    done = subprocess.run(
        [sys.executable, "-m", "cortex_cli", *line.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "CORTEX_ENDPOINT": door.url},
    )
    return done.returncode, done.stdout, done.stderr


def test_model_is_pulled_listed_and_removed(tmp_path: pathlib.Path) -> None:
    """Issue 5: `cortex weights ls|pull|rm`, with what stands in the way."""
    config = tmp_path / "neuron.toml"
    with hub() as served:
        served.models[MODEL] = dict(FILES)
        config.write_text(SETTINGS.format(cache=tmp_path / "cache", hub=served.url))
        listens = r"ready: http://(\S+)"
        with (
            started("neuron", config, listens, HF_HUB_OFFLINE="0") as neuron,
            gateway(tmp_path, sim=neuron.url) as door,
        ):
            missing = cortex(door, "weights pull org/none --node sim")
            pulled = cortex(door, f"weights pull {MODEL} --node sim")
            listed = cortex(door, "weights ls --json")
            assert cortex(door, f"load {MODEL}")[0] == 0
            refused = cortex(door, f"weights rm {MODEL} --node sim")
            assert cortex(door, f"unload {MODEL}")[0] == 0
            removed = cortex(door, f"weights rm {MODEL} --node sim")
            left = json.loads(cortex(door, "weights ls --node sim --json")[1])

    assert missing[0] == 1
    assert "the hub has no such model" in missing[2]
    assert (pulled[0], pulled[1]) == (0, f"{MODEL} on sim: ready\n")
    ((node,), status) = json.loads(listed[1]), listed[0]
    assert (status, node["node"]) == (0, "sim")
    assert [entry["id"] for entry in node["weights"]["models"]] == [MODEL]
    assert node["weights"]["models"][0]["size_bytes"] == (3 << 20) + 2
    assert refused[0] == 1
    assert "unload it first" in refused[2]
    assert (removed[0], removed[1]) == (0, f"{MODEL} on sim: removed\n")
    assert left[0]["weights"]["models"] == []
