"""Real daemons in processes of their own, as an operator starts them."""

import contextlib
import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import openai

START_S = 150.0
"""Bound on a start, on a machine that is busy with other tests."""

CATALOGUE = """
[[models]]
id = "sim/fast"
harness = "simulated"
vram_mb = 8000
[[models]]
id = "sim/other"
harness = "simulated"
vram_mb = 8000
[aliases]
"fast" = "sim/fast"
"""

SIMULATED = """
host = "127.0.0.1"
port = {port}
sleep_budget_mb = {sleep_mb}
[[harnesses]]
name = "simulated"
[harness.simulated]
load_s = {load_s}
decode_tok_per_s = {rate}
max_in_flight = {together}
[[devices]]
index = 0
name = "SIM-24"
vram_total_mb = 24576
compute_capability = "8.9"
"""


class Daemon:
    """A running daemon.

    Args:
        process: as started.
        url: where it listens.
        log: what it has written so far, growing.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, log: list[str]) -> None:
        self.process = process
        self.url = url
        self.log = log

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> httpx.Response:
        """Ask a path of the daemon's API."""
        return httpx.get(self.url + path, timeout=5.0)

    def post(self, path: str) -> httpx.Response:
        """Have the daemon do something that needs no body."""
        return httpx.post(self.url + path, timeout=60.0)

    def load(self, model: str, harness: str) -> object:
        """Have a neuron load a model, and return its answer."""
        body = {"model_id": model, "harness": harness}
        return httpx.post(f"{self.url}/models/load", json=body, timeout=300.0).json()

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) << 10

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def sdk(self) -> openai.OpenAI:
        """Return the official client for it, without retries that would hide failures."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)


@contextlib.contextmanager
def started(module: str, config: pathlib.Path, listens: str, **environ: str) -> Iterator[Daemon]:
    """Run a daemon until the context ends; `listens` finds its address in its output."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **environ},
        text=True,
        start_new_session=True,
    )
    log: list[str] = []
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, log, lines))
    reader.start()
    try:
        yield Daemon(process, _address(lines, listens, log), log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            reader.join()


def _read(process: subprocess.Popen[str], log: list[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            log.append(line)
            lines.put(line)
    # No line is empty, so this is the end of the daemon.
    lines.put("")


def _address(lines: queue.Queue[str], listens: str, log: list[str]) -> str:
    deadline = time.monotonic() + START_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            line = ""
        if not line:
            raise AssertionError(f"it did not say where it listens: {''.join(log)}")
        found = re.search(listens, line)
        if found:
            return f"http://{found[1]}"


@contextlib.contextmanager
def simulated_neuron(
    folder: pathlib.Path,
    *,
    port: int = 0,
    load_s: float = 0.1,
    rate: float = 200,
    together: int = 256,
    sleep_mb: int = 0,
) -> Iterator[Daemon]:
    """Run a neuron with the simulated engine on 24 GiB.

    Nothing sleeps there unless it is given host memory: how much a machine has is no matter of
    the tests.
    """
    config = folder / "neuron-simulated.toml"
    text = SIMULATED.format(
        port=port, load_s=load_s, rate=rate, together=together, sleep_mb=sleep_mb
    )
    config.write_text(text)
    with started("neuron", config, r"ready: http://(\S+)") as daemon:
        yield daemon


@contextlib.contextmanager
def gateway(
    folder: pathlib.Path,
    catalogue: str = CATALOGUE,
    *,
    more: str = "",
    told: str = "",
    **nodes: str,
) -> Iterator[Daemon]:
    """Run a gateway over neurons, given as name and URL, and wait until it has seen them.

    Args:
        folder: for its files.
        catalogue: its `models.toml`.
        more: further tables of its `cortex.toml`.
        told: further keys of its `[gateway]`.
        nodes: base URLs by name.
    """
    (folder / "models.toml").write_text(catalogue)
    entries = "".join(
        f'[[neurons]]\nname = "{name}"\nendpoint = "{url}"\n' for name, url in nodes.items()
    )
    config = folder / "cortex.toml"
    config.write_text(
        'models_config = "models.toml"\n'
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        + told
        + entries
        + more
    )
    with started("cortex_gateway", config, r"listening on ([^\s,]+)") as daemon:
        until(lambda: daemon.get("/readyz").status_code == 200, START_S)
        yield daemon


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return when `condition` holds.

    Raises:
        AssertionError: it does not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


def is_loaded(daemon: Daemon, model: str) -> bool:
    """Return whether the gateway lists `model` as loaded."""
    listed = daemon.get("/v1/models").json()["data"]
    return any(entry["id"] == model and entry["loaded"] for entry in listed)


def in_flight(neuron: Daemon) -> int:
    """Return how many requests the neuron counts over all its models."""
    return sum(model["in_flight"] for model in neuron.get("/health").json()["models"])


def victims(door: Daemon, model: str) -> set[str]:
    """Return the models that would give way for `model`, as far as the gateway has heard.

    A neuron says five times in a second what is in use, so that it is a moment behind.
    """
    answer = httpx.post(f"{door.url}/admin/explain", json={"model": model}, timeout=10)
    return set(answer.json().get("victims", ()))
