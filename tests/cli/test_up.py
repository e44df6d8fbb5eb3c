"""`cortex up` with real daemons and the simulated engine."""

import asyncio
import contextlib
import importlib.util
import os
import pathlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping

import openai
import pytest

from cortex_cli.main import main
from tests.cli.processes import Watch, children_of

PATIENCE_S = 40
"""Three Python processes start; on a busy machine that takes its time."""

ANYWHERE = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--neuron-port", "0")
SIMULATED = ("--harness", "simulated", *ANYWHERE)

pytestmark = pytest.mark.slow


class Up:
    """One running `cortex up`."""

    def __init__(self, process: asyncio.subprocess.Process, log: pathlib.Path) -> None:
        self.process = process
        self._log = log

    async def url(self) -> str:
        """Wait for the ready line and return the address in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await self.process.stdout.readline()
        assert line.startswith(b"ready: http://"), self.log
        return line.decode().removeprefix("ready: ").strip()

    async def status(self) -> int:
        """Wait for its end; nothing but the ready line may have come on stdout."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await self.process.stdout.read() == b"", self.log
            return await self.process.wait()

    @property
    def log(self) -> str:
        """What it said on stderr so far."""
        return self._log.read_text(encoding="utf-8")

    async def logged(self, text: str) -> None:
        """Wait until it has said `text` on stderr."""
        # A file cannot be waited for; the bound is what keeps this from going on for ever.
        async with asyncio.timeout(PATIENCE_S):
            while text not in self.log:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.02)

    @property
    def last_line(self) -> str:
        """The last line on stderr."""
        return self.log.splitlines()[-1]

    def children(self) -> dict[str, int]:
        """Process ids by settings file: `cortex.toml`, `neuron-0.toml`, ..."""
        found: dict[str, int] = {}
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in map(int, tasks.read_text().split()):
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            found[pathlib.Path(command[command.index("--config") + 1]).name] = pid
        return found


@contextlib.asynccontextmanager
async def started(
    folder: pathlib.Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Up]:
    """Start `cortex up ARGUMENTS`; whatever is left of it in the end is killed."""
    log = folder / "stderr"
    temporary = folder / "tmp"
    temporary.mkdir()
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cortex_cli", "up", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            env={**os.environ, "TMPDIR": str(temporary), **(environ or {})},
        )  # fmt: skip
    try:
        yield Up(process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert list(temporary.iterdir()) == []


async def test_two_simulated_nodes_answer_and_leave_nothing_behind(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract: one ready line, requests are answered, Ctrl-C ends everything with status 0."""
    async with started(
        tmp_path, *SIMULATED, "--nodes", "2", "--model", "org/a", "--model", "org/b"
    ) as up:
        url = await up.url()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=20) as client:
            answers = [
                await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=5
                )
                for model in ("org/a", "org/b")
            ]
        status = await asyncio.to_thread(main, ["status", "--endpoint", url])
        with Watch(children_of(up.process.pid)) as children:
            up.process.send_signal(signal.SIGINT)
            assert await up.status() == 0, up.log
            assert children.living() == []

    assert [answer.model for answer in answers] == ["org/a", "org/b"]
    assert all(answer.choices[0].message.content for answer in answers)
    assert status == 0
    shown = capsys.readouterr().out
    assert "fleet ok: 2 of 2 nodes up" in shown
    assert "node-1/0  SIM-24" in shown
    assert "3.9 GiB" in shown


async def test_neuron_that_dies_ends_the_fleet_and_is_named(tmp_path: pathlib.Path) -> None:
    """Ours: a fleet that is not what was asked for must not go on as if it were."""
    async with started(tmp_path, *SIMULATED, "--nodes", "2") as up:
        await up.url()
        await up.logged("node-1 | ")
        with Watch(children_of(up.process.pid)) as children:
            os.kill(up.children()["neuron-1.toml"], signal.SIGKILL)
            assert await up.status() == 1, up.log
            assert children.living() == []

        assert "node-1 was killed by SIGKILL; its last lines:" in up.log
        assert up.last_line.startswith("cortex: node-1 was killed by SIGKILL; its last line: ")


async def test_neuron_that_cannot_start_ends_the_fleet_with_its_reason(
    tmp_path: pathlib.Path,
) -> None:
    """Ours: the reason is in the last line, and nothing was said to be ready."""
    environ = {"NEURON_DRAIN_TIMEOUT_S": "soon"}
    async with started(tmp_path, *SIMULATED, environ=environ) as up:
        assert await up.status() == 1, up.log
        assert up.last_line.startswith(
            "cortex: node-0 ended with status 2; its last line: neuron: "
        )
        assert "drain_timeout_s" in up.last_line
        assert "Traceback" not in up.log


async def test_model_that_does_not_load_ends_the_fleet_with_its_reason(
    tmp_path: pathlib.Path,
) -> None:
    """Ours: waiting for it would be waiting for ever."""
    faults = "NEURON_HARNESS__SIMULATED__FAULTS"
    environ = {faults: '{ "cortex/tiny" = { fail_to_load = true } }'}
    async with started(tmp_path, *SIMULATED, environ=environ) as up:
        assert await up.status() == 1, up.log
        assert up.last_line.startswith("cortex: cortex/tiny did not load on node-0: ")


async def test_stop_before_ready_is_a_stop(tmp_path: pathlib.Path) -> None:
    """Ours: SIGTERM while the model still loads."""
    environ = {"NEURON_HARNESS__SIMULATED__LOAD_S": "1000"}
    async with started(tmp_path, *SIMULATED, environ=environ) as up:
        await up.logged("cortex up: cortex/tiny loading")
        with Watch(children_of(up.process.pid)) as children:
            up.process.terminate()
            assert await up.status() == 0, up.log
            assert children.living() == []


async def test_port_in_use_is_one_line(tmp_path: pathlib.Path) -> None:
    """Contract: 1, and the line names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with started(tmp_path, *SIMULATED, "--listen", address) as up:
            assert await up.status() == 1
            assert up.log == (
                f"cortex: --listen: cannot listen on {address}: address already in use; "
                "choose another with --listen\n"
            )


@pytest.mark.parametrize("missing", ["cortex_gateway", "neuron", "vllm"])
def test_missing_package_is_one_line_with_the_cure(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract: 2 usage or configuration."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)

    assert main(["up", *ANYWHERE]) == 2

    said = capsys.readouterr().err
    assert said.startswith(f"cortex: cortex up needs {missing}, which is not installed here")
    assert len(said.splitlines()) == 1
