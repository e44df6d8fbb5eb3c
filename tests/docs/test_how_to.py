"""What the how-to pages tell people to write down can be used as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cortex_core.catalogue import load_catalogue
from cortex_gateway.settings import load_settings as load_gateway
from neuron.settings import load_settings as load_neuron
from tests.docs.tutorial import steps_of
from tests.repository.checkout import ROOT

HOW_TO = ROOT / "docs" / "how-to"
PACKAGING = ROOT / "packaging"
BINARIES = "/usr/local/lib/cortex/bin"


def written(page: str, folder: Path) -> dict[str, Path]:
    """Write the files of a page into `folder`; paths by name."""
    paths = {}
    for step in steps_of(HOW_TO / f"{page}.md"):
        path = paths[step.argument] = folder / step.argument
        # What a unit starts must exist for its check.
        path.write_text(step.block.replace(BINARIES, str(Path(sys.executable).parent)))
    return paths


def test_settings_of_a_new_node_are_valid(tmp_path: Path) -> None:
    """Ours: whoever copies them gets a daemon that starts."""
    paths = written("add-a-node", tmp_path)

    assert load_neuron(paths["neuron.toml"], {}).port == 13131
    assert list(load_gateway(paths["cortex.toml"], {}).endpoints) == ["beast"]


def test_catalogue_of_gpu_models_is_valid(tmp_path: Path) -> None:
    """Ours: as above."""
    catalogue = load_catalogue(written("gpu-machines", tmp_path)["models.toml"])

    assert [profile.min_devices for profile in catalogue.profiles.values()] == [1, 2]


def test_units_are_those_that_are_shipped() -> None:
    """Ours: two copies that differ are one too many."""
    steps = {step.argument: step.block for step in steps_of(HOW_TO / "run-as-a-service.md")}

    assert steps == {path.name: path.read_text() for path in (PACKAGING / "systemd").iterdir()}


def test_settings_that_are_shipped_are_valid() -> None:
    """Contract: the shipped examples are loaded by tests."""
    neuron = load_neuron(PACKAGING / "etc" / "neuron" / "neuron.toml", {})
    gateway = load_gateway(PACKAGING / "etc" / "cortex" / "cortex.toml", {})
    catalogue = load_catalogue(PACKAGING / "etc" / "cortex" / "models.toml")

    assert (neuron.port, neuron.restore) == (13131, True)
    assert list(gateway.endpoints) == ["beast"]
    assert set(catalogue.aliases.values()) <= set(catalogue.profiles)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_units_are_valid(tmp_path: Path) -> None:
    """systemd.service(5), systemd.socket(5): not a word of complaint about ours."""
    paths = written("run-as-a-service", tmp_path)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, paths.values())],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )

    complaints = [line for line in done.stderr.splitlines() if "cortex" in line or "neuron" in line]
    assert (done.returncode, complaints) == (0, [])
    assert set(paths) == {"neuron.service", "cortex-gateway.service", "cortex-gateway.socket"}
