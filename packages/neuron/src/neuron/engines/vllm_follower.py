"""The part of an engine of vLLM whose head is on another node: processes, and nothing to ask.

The head's scheduler drives the workers of all nodes. What runs here is what `vllm serve
--headless` runs on the nodes that follow: an executor that starts this node's workers and
watches them. It does not end with the head; whoever started it has to end it.
"""

import asyncio
import functools
import multiprocessing
import pathlib
import shutil
from concurrent.futures import Executor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from cortex_core.errors import NoReplicaError
from cortex_core.harness import (
    Capabilities,
    EngineAnswer,
    EngineLoad,
    Limit,
    ModelInfo,
    ModelSpec,
    Route,
)
from cortex_core.ids import ModelId, RequestId
from neuron.engines import engine_process, processes, vllm_failures
from neuron.engines.vllm_environment import is_cpu_build
from neuron.engines.vllm_runtime import record

_UP = b"up"

_CHECK_S = 0.25
"""How often a running process is looked at."""


class VllmFollower:
    """One node's part of a loaded model; see `cortex_core.harness.Engine`.

    Args:
        spec: as it was loaded.
        process: holds the executor; its workers descend from it.
        scratch: folder of its processes' files; removed at the end.
        threads: for calls that block.
    """

    def __init__(
        self, spec: ModelSpec, process: BaseProcess, scratch: pathlib.Path, threads: Executor
    ) -> None:
        self._model = spec.model
        self._process = process
        self._scratch = scratch
        self._threads = threads
        self._is_closing = False
        pids = [process.pid] if process.pid is not None else []
        members = processes.family(pids)
        record(scratch, members)
        self._process_ids = frozenset(member.pid for member in members)
        self._info = ModelInfo(capabilities=Capabilities(), limit=Limit())

    @property
    def info(self) -> ModelInfo:
        """That it can do nothing by itself."""
        return self._info

    @property
    def failure(self) -> str | None:
        """Short reason why it is dead; `None` while it lives, and while it is being closed."""
        if self._is_closing or self._process.exitcode is None:
            return None
        return vllm_failures.describe_exit(self._process.exitcode)

    @property
    def process_ids(self) -> frozenset[int]:
        """Its processes, as they were when it joined."""
        return self._process_ids

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Refuse: the head answers."""
        raise NoReplicaError(f"{self._model!r} is answered by another node")

    async def check_request(self, route: Route, body: bytes) -> None:
        """Find nothing: the head reads requests."""

    def load(self) -> EngineLoad:
        """Return nothing: the head counts."""
        return EngineLoad()

    async def failed(self) -> str:
        """Wait until one of its processes ends by itself and return the short reason."""
        while True:
            failure = self.failure
            if failure is not None:
                return failure
            await asyncio.sleep(_CHECK_S)

    async def is_compiling(self) -> bool:
        """Return that it does not: the head is asked."""
        return False

    async def kill(self, reason: str) -> None:
        """End its processes at once."""
        del reason
        processes.kill(processes.family(self._process_ids))

    async def check_answer(self) -> None:
        """Do nothing: the head asks."""

    async def sleep(self, level: int) -> None:
        """Refuse; a model over several nodes does not sleep."""
        raise NoReplicaError(f"{self._model!r} cannot sleep on several nodes")

    async def wake(self) -> None:
        """Refuse."""
        raise NoReplicaError(f"{self._model!r} does not sleep")

    async def close(self, timeout_s: float) -> None:
        """End its processes at once: without the head they have nothing to finish."""
        if self._is_closing:
            return
        self._is_closing = True
        await asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(end, self._process)
        )
        shutil.rmtree(self._scratch, ignore_errors=True)


def start(config: Any) -> tuple[BaseProcess, Connection]:
    """Start the process; blocks for a moment.

    Returns:
        The process, and what `await_up` reads.
    """
    context: Any = multiprocessing.get_context("forkserver" if is_cpu_build() else "spawn")
    reader, writer = context.Pipe(duplex=False)
    # Not a daemon in the sense of `multiprocessing`: those may not have children.
    process: BaseProcess = context.Process(
        target=_follow, args=(config, writer), name="neuron-follower", daemon=False
    )
    process.start()
    writer.close()
    return process, reader


def await_up(
    process: BaseProcess, reader: Connection, scratch: pathlib.Path, model: ModelId
) -> None:
    """Wait until its workers have joined the head's and hold their weights; blocks.

    Args:
        process: from `start`, like `reader`.
        reader: closed at the end.
        scratch: where its processes log to.
        model: for the error.

    Raises:
        RequestError: it ended instead.
    """
    with reader:
        try:
            reader.recv_bytes()
        except (EOFError, OSError):
            process.join()
            ended = vllm_failures.describe_exit(process.exitcode or 0)
            cause = vllm_failures.root_cause(engine_process.read_log(scratch), ended)
            raise vllm_failures.load_error(cause, model) from None


def end(process: BaseProcess) -> None:
    """End it with its workers; blocks until it is gone."""
    members = processes.family([process.pid] if process.pid is not None else [])
    processes.kill(members)
    process.join()


def _follow(config: Any, writer: Connection) -> None:
    """Run in the new process, until one of its workers ends."""
    from vllm.logger import configure_logging
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    configure_logging(config.logging_config)
    # Blocks until the head and all other nodes are there, for as long as that takes.
    executor = MultiprocExecutor(config, monitor_workers=False)
    with writer:
        writer.send_bytes(_UP)
    executor.start_worker_monitor(inline=True)
    raise SystemExit(1)
