"""A neuron and `vllm serve`, each as a process that has one built-in model loaded."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.engine_loads import Caller, Load
from benchmarks.peers.running import process_cpu_s
from cortex_core.ids import ModelId
from cortex_core.server.listen import open_listener
from neuron.engines import processes
from neuron.models import BUILTIN

START_S = 180.0
"""Bound on a start with its load; ten to forty seconds are usual."""

LOOK_S = 0.1
"""Between two looks whether a server is up."""

SERVERS = ("vllm serve", "neuron")

NEURON = 'host = "127.0.0.1"\nport = 0\n[[harnesses]]\nname = "vllm"\n'

ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
}
"""What a neuron sets for its engines on a CPU."""


class Served:
    """A server that starts, or is up."""

    def __init__(
        self, name: str, model: ModelId, process: subprocess.Popen[bytes], port: int, log: Path
    ) -> None:
        self.name = name
        self.port = port
        """0 until a neuron says which."""
        self._model = model
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of the front and of the engine core so far."""
        front = core = 0.0
        for member in processes.family([self.pid]):
            spent = process_cpu_s(member.pid)
            if b"EngineCore" in Path(f"/proc/{member.pid}/cmdline").read_bytes():
                core += spent
            else:
                front += spent
        return front, core

    async def loaded(self) -> None:
        """Wait until it has its model loaded.

        Raises:
            RuntimeError: it has ended, or takes too long.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if await self._is_up():
                return
            await asyncio.sleep(LOOK_S)
        raise RuntimeError(f"{self.name} did not start: {self._said()[-2000:]}")

    async def _is_up(self) -> bool:
        if self.name == "neuron":
            found = re.search(r"ready: http://\S+:(\d+)", self._said())
            if found is None:
                return False
            self.port = int(found[1])
            fields: dict[str, object] = {"model_id": self._model, "harness": "vllm"}
            wish = Load(path="/models/load", fields=fields, connections=1, calls=1)
            async with asyncio.timeout(START_S):
                await Caller(self.port).one(wish.request(self._model))
            return True
        with contextlib.suppress(OSError):
            # Listens when its model is loaded.
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
            return True
        return False

    def _said(self) -> str:
        return self._log.read_text(errors="replace")


@contextlib.contextmanager
def running(model: ModelId, names: tuple[str, ...] = SERVERS) -> Iterator[list[Served]]:
    """Run servers that have `model` loaded; they and their engines are gone afterwards.

    They start at the same time, and the order of `names` is that of what is given.
    """
    with contextlib.ExitStack() as ending:
        served = [ending.enter_context(_started(name, model)) for name in names]

        async def loaded() -> None:
            async with asyncio.TaskGroup() as tasks:
                for one in served:
                    tasks.create_task(one.loaded())

        uvloop.run(loaded())
        yield served


@contextlib.contextmanager
def _started(name: str, model: ModelId) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as place, open(Path(place, "log"), "wb") as output:
        folder, port = Path(place), 0
        if name == "neuron":
            (folder / "neuron.toml").write_text(NEURON)
            command = [sys.executable, "-m", "neuron", "--config", str(folder / "neuron.toml")]
        else:
            listener = open_listener("127.0.0.1:0")
            port = listener.port
            listener.close()
            command = vllm_command(model, port)
        environ = {**os.environ, **ENVIRON}
        with subprocess.Popen(
            command, stdout=output, stderr=output, env=environ, start_new_session=True
        ) as process:
            try:
                yield Served(name, model, process, port, folder / "log")
            finally:
                members = processes.family([process.pid])
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                processes.send(members, signal.SIGKILL)


def vllm_command(model: ModelId, port: int) -> list[str]:
    """Return the command line of `vllm serve` with the options of a built-in model.

    The module is what `vllm serve` runs; the command itself does not start where vLLM's
    distribution is `vllm-cpu`, for it asks for the version of `vllm`.
    """
    builtin = BUILTIN[model]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(builtin.path), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    for name, value in builtin.engine.items():
        option = f"--{name.replace('_', '-')}"
        if name == "tool_call_parser":
            command.append("--enable-auto-tool-choice")
        if value is True:
            command.append(option)
        else:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            command += [option, text]
    return command
