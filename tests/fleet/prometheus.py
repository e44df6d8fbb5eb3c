"""A real Prometheus, and what its tool says of what is shown to it."""

import contextlib
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import httpx
import pytest

from tests.fleet.daemons import Daemon, until

WAIT_S = 120.0

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed"
)

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: cortex
  static_configs: [{{targets: ["{gateway}", "{neuron}"]}}]
"""


def metrics_of(door: Daemon) -> str:
    """Return the URL of a gateway's series, as it says in its log."""
    said = re.search(r"metrics on ([^\s\",]+)", "".join(door.log))
    assert said is not None
    return f"http://{said[1]}/metrics"


def complaints(text: str) -> list[str]:
    """Return what `promtool check metrics` says of series in the text format."""
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    # 3 stands for names that are not as is the custom, 1 for what cannot be read.
    assert done.returncode in (0, 3), done.stderr
    return done.stderr.splitlines()


class Prometheus:
    """A running Prometheus.

    Args:
        url: where it answers.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, query: str) -> list[object]:
        """Return the samples that a query gives."""
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": query}, timeout=WAIT_S)
        found: list[object] = answer.json()["data"]["result"]
        return found

    def until_answered(self, *queries: str) -> None:
        """Return when both daemons were scraped and no query gives nothing."""
        until(lambda: len(self.ask("up == 1")) == 2 and all(map(self.ask, queries)), WAIT_S)


@contextlib.contextmanager
def prometheus(folder: pathlib.Path, urls: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run a Prometheus.

    Args:
        folder: for its files.
        urls: of the series of `gateway` and `neuron`.
    """
    targets = {name: urlsplit(url).netloc for name, url in urls.items()}
    (folder / "prometheus.yml").write_text(CONFIG.format_map(targets))
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    ]
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            until(lambda: "Listening on" in (folder / "log").read_text(), WAIT_S)
            said = re.search(r"Listening on\" address=(\S+)", (folder / "log").read_text())
            assert said is not None
            yield Prometheus(f"http://{said[1]}")
        finally:
            process.kill()
