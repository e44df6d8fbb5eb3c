"""The tutorials are run: what they say to type works, and shows what they say."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.tutorial import Step, missing_lines, steps_of
from tests.repository.checkout import ROOT

PATIENCE_S = 20.0
"""For anything that happens within seconds on a machine that is not busy."""

README_COMMAND = re.compile(r"python3 -m venv \.venv && .* && \.venv/bin/nox -s up")
SIMULATED_UP = (
    "cortex up --harness simulated --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 "
    "--neuron-port 0"
)
READY = re.compile(r"^(?:ready: |\S+ INFO \S+ listening on ).*", re.MULTILINE)
"""What a daemon says when it can be reached; the lines of daemons below `cortex up` have a prefix."""


class Reader:
    """Does what a tutorial says, in a folder of its own.

    A port of the page is 0 until the daemon that has it is started, and the real one after that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports: dict[str, str] = {}
        self._files: dict[str, str] = {}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
        self._environ = {**kept, "PATH": path, "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}

    def follow(self, steps: list[Step]) -> None:
        """Do all steps in order."""
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            match step.kind:
                case "file":
                    self._files[step.argument] = step.block
                case "append":
                    self._files[step.argument] += "\n" + step.block
                case "start":
                    name, *ports = step.argument.split()
                    self._start(name, ports, step.block)
                case "stop":
                    self._stop(step.argument)
                case "run":
                    shows = following is not None and following.kind == "shows"
                    self._run(step, following.block if following and shows else "")
                case _:
                    # What a command shows was looked at when it was run.
                    assert step.kind == "shows"

    def close(self) -> None:
        """End what still runs."""
        for daemon in self._daemons.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait(PATIENCE_S)

    def _start(self, name: str, ports: list[str], block: str) -> None:
        for port in ports:
            self._ports.pop(port, None)
        command = README_COMMAND.sub(SIMULATED_UP, block)
        self._write_files(own=ports)
        log = self._folder / f"{name}.log"
        with log.open("wb") as sink:
            self._daemons[name] = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        for _ in moments():
            assert self._daemons[name].poll() is None, log.read_text()
            line = READY.search(log.read_text())
            if line:
                break
        else:
            pytest.fail(f"{name} is not ready: {log.read_text()}")
        found = re.findall(r"127\.0\.0\.1:(\d+)", line[0])
        self._ports |= dict(zip(ports, found, strict=True))

    def _stop(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(PATIENCE_S) in (0, 130), f"{name} does not end well"

    def _run(self, step: Step, shown: str) -> None:
        """Run a command until it shows what it should, as somebody who reads slowly would."""
        self._write_files()
        wanted_status = int(step.argument.removeprefix("exit ") or 0)
        command = self._here(step.block).replace("ask/bin/python", sys.executable)
        environ = {**self._environ}
        if "31313" in self._ports:
            environ["CORTEX_ENDPOINT"] = f"http://127.0.0.1:{self._ports['31313']}"
        told = ""
        for _ in moments():
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self._folder,
                env=environ,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            missing = missing_lines(self._here(shown), done.stdout)
            if done.returncode == wanted_status and not missing:
                return
            told = f"{command}\n{done.returncode}: {done.stdout}{done.stderr}\nnot: {missing}"
        pytest.fail(told)

    def _write_files(self, own: list[str] | None = None) -> None:
        for name, text in self._files.items():
            (self._folder / name).write_text(self._here(text, own or []))

    def _here(self, text: str, own: list[str] | None = None) -> str:
        """Return `text` with the ports of the page replaced."""
        for port in own or ():
            text = re.sub(rf"\b{port}\b", "0", text)
        for port, real in self._ports.items():
            text = re.sub(rf"\b{port}\b", real, text)
        return text


def moments() -> Iterator[None]:
    """Yield now and then, for `PATIENCE_S` in all."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        yield
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem
)
def test_tutorial_works_as_it_is_written(page: Path, tmp_path: Path) -> None:
    """Ours: whoever follows a tutorial to the letter gets what it promises."""
    reader = Reader(tmp_path)

    with contextlib.closing(reader):
        reader.follow(steps_of(page))


def test_lines_that_are_not_shown_are_told() -> None:
    """Ours: the check above can fail."""
    output = "NODE   HEALTH\nleft   up      0.1.0\n"

    assert missing_lines("NODE HEALTH\nleft up …\n", output) == []
    assert missing_lines("left down …\n", output) == ["left down …"]
