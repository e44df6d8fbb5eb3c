"""A real neuron in a process of its own, and what can be seen of it from outside."""

import contextlib
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from neuron.engines import processes

READY_S = 120.0
LOAD_S = 300.0
"""Bounds, not expectations: a load takes two to ten seconds on two free cores."""

SETTINGS = """
host = "127.0.0.1"
port = 0
[[harnesses]]
name = "vllm"
"""


class NeuronProcess:
    """A running daemon.

    Args:
        process: as started, `ready` already printed.
        url: where it listens.
        folder: its temporary folder.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, folder: pathlib.Path) -> None:
        self.folder = folder
        self.process = process
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=LOAD_S)

    def post(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        """Send JSON."""
        return self.http.post(path, json=body)

    def ask(self, path: str, **body: object) -> dict[str, Any]:
        """Send JSON that must succeed and return the answer."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def load(self, model: str, **options: object) -> httpx.Response:
        """Ask for a load and wait for its end."""
        return self.post("/models/load", {"model_id": model, "harness": "vllm", **options})

    def unload(self, model: str, **options: object) -> httpx.Response:
        """Ask for an unload and wait for its end."""
        return self.post("/models/unload", {"model_id": model, **options})

    def model(self, model: str) -> dict[str, Any]:
        """Return what `/health` says of a model; empty when it does not name it."""
        models = self.http.get("/health").json()["models"]
        found: dict[str, Any] = next((entry for entry in models if entry["id"] == model), {})
        return found

    def status(self, model: str) -> str:
        """Return a model's status in `/models`, `absent` when it is not there."""
        models = self.http.get("/models").json()
        return next((entry["status"] for entry in models if entry["id"] == model), "absent")

    def series(self, name: str) -> dict[str, float]:
        """Return the samples of one Prometheus series by their labels, as text."""
        lines = self.http.get("/metrics").text.splitlines()
        samples = [line.rpartition(" ") for line in lines if line.startswith(f"{name}{{")]
        return {labels.removeprefix(name): float(value) for labels, _, value in samples}

    def descendants(self) -> frozenset[processes.Process]:
        """Return the processes that it started and that are alive."""
        family = processes.family([self.process.pid])
        return frozenset(member for member in family if member.pid != self.process.pid)

    def engine_processes(self) -> set[int]:
        """Return the engine cores, by the title that vLLM gives them."""
        return self.commands("EngineCore")

    def commands(self, word: str) -> set[int]:
        """Return the processes that it started and whose command line has `word`."""
        return {member.pid for member in self.descendants() if word in _command(member.pid)}

    def follower_processes(self) -> set[int]:
        """Return the workers of engines whose head is elsewhere; their parents come first."""
        cores = self.engine_processes()
        heads = processes.family(cores)
        workers = {
            member.pid for member in self.descendants() if "VLLM::Worker" in _command(member.pid)
        }
        return workers - {member.pid for member in heads}

    def rss_bytes(self) -> int:
        """Return the daemon's resident memory."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) << 10

    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


@contextlib.contextmanager
def running(folder: pathlib.Path, **environ: str) -> Iterator[NeuronProcess]:
    """Start a neuron on a free port; end it, and whatever it left, afterwards."""
    with starting(folder, **environ) as process:
        daemon = NeuronProcess(process, _ready_url(process), folder)
        with daemon.http:
            yield daemon


@contextlib.contextmanager
def starting(folder: pathlib.Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Start a neuron and do not wait until it is ready."""
    config = folder / "neuron.toml"
    config.write_text(SETTINGS)
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "neuron", "--config", str(config)],
        stdout=subprocess.PIPE,
        env={**os.environ, **ours, **environ},
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        members = processes.family([process.pid])
        process.terminate()
        try:
            process.wait(60)
        finally:
            processes.kill(members)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Return when `condition` holds.

    Raises:
        AssertionError: it does not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


def kill(pid: int) -> None:
    """End a process as the kernel would when memory runs out."""
    os.kill(pid, signal.SIGKILL)


def _ready_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(READY_S), "the neuron did not say that it is ready"
    word, _, url = process.stdout.readline().partition(" ")
    assert word == "ready:", f"the neuron said {word!r}"
    return url.strip()


def _command(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
