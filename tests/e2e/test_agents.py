"""Command-line and library clients through gateway and neuron to the real engine."""

import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.agents import installed
from tests.agents.sessions import MODEL, SESSIONS, Session
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess
from tests.fleet.daemons import Daemon, gateway

LIMIT_S = 100.0
"""A bound, not an expectation."""

pytestmark = pytest.mark.timeout(300)

CATALOGUE = f"""
[[models]]
id = "{CHAT}"
harness = "vllm"
[aliases]
"{MODEL}" = "{CHAT}"
"""


PROMPT = "Write hello to hello.txt"
"""What the tiny model was taught to answer with a call of `write_file`."""


@pytest.fixture(scope="module")
def door(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gateway(tmp_path_factory.mktemp("g"), CATALOGUE, real=neuron.url) as daemon:
        yield daemon


def run(session: Session, folder: pathlib.Path) -> str:
    """Run a client to its end and return what it printed."""
    done = subprocess.run(
        session.command,
        cwd=folder,
        env=installed.clean_environment(folder, **session.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "client", ["llm", "langchain-chat", "langchain-messages", "langchain-responses"]
)
def test_client_has_the_real_model_write_a_file(
    client: str, door: Daemon, tmp_path: pathlib.Path
) -> None:
    """Issue: a session with a tool call and a file written, by the tiny model itself."""
    installed.need(client)
    printed = run(SESSIONS[client](door.url, tmp_path, PROMPT), tmp_path)

    assert (tmp_path / "hello.txt").read_text() == "hello", printed
