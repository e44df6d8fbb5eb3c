"""Starting the processes of an engine of vLLM, and ending them when its load is cancelled."""

import asyncio
import functools
import logging
import multiprocessing
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cortex_core.harness import ModelSpec
from neuron.engines import (
    engine_process,
    processes,
    vllm_bringup,
    vllm_environment,
    vllm_failures,
    vllm_follower,
    vllm_runtime,
)
from neuron.engines.oom import OomCount
from neuron.engines.vllm_follower import VllmFollower

T = TypeVar("T")

_SPAWN_CHECK_S = 0.02
"""How often a load looks for the process that it is about to start."""

_GIVE_UP_S = 30.0
"""Time that a cancelled load gets to notice that its processes are gone."""

logger = logging.getLogger(__name__)


class Starter:
    """Starts engines, one after the other for as long as their processes have no owner.

    Args:
        threads: for calls that block.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._spawning = asyncio.Lock()
        self._starting = 0

    async def start(
        self, spec: ModelSpec, folder: pathlib.Path, scratch: pathlib.Path
    ) -> tuple[Any, vllm_bringup.Parts]:
        """Start vLLM's engine; cancelling ends its processes before it returns.

        Args:
            spec: checked.
            folder: the weights.
            scratch: folder for its processes' files.

        Raises:
            RequestError: why it does not start.
        """
        self._starting += 1
        vllm_environment.read_variables_anew()
        try:
            return await self._start(spec, folder, scratch)
        finally:
            self._starting -= 1
            if not self._starting:
                vllm_environment.remember_variables()

    async def _start(
        self, spec: ModelSpec, folder: pathlib.Path, scratch: pathlib.Path
    ) -> tuple[Any, vllm_bringup.Parts]:
        kills = OomCount()
        try:
            parts = await self._configure(spec, folder, scratch)
            future, members = await self._spawn(
                scratch, functools.partial(vllm_bringup.start, parts)
            )
            vllm_runtime.record(scratch, processes.family(members))
            llm = await self._await_start(future, members)
        except vllm_bringup.load_errors() as error:
            log = engine_process.read_log(scratch)
            raised = str(error) or type(error).__name__
            cause = vllm_failures.root_cause(log, raised, was_short=kills.has_grown())
            logger.warning("%s cannot be loaded: %s", spec.model, cause)
            raise vllm_failures.load_error(cause, spec.model) from None
        engine_process.remove_log(scratch)
        return llm, parts

    async def follow(
        self, spec: ModelSpec, folder: pathlib.Path, scratch: pathlib.Path
    ) -> VllmFollower:
        """Start this node's part of an engine; see `start`."""
        try:
            parts = await self._configure(spec, folder, scratch)
        except vllm_bringup.load_errors() as error:
            cause = vllm_failures.root_cause("", str(error) or type(error).__name__)
            raise vllm_failures.load_error(cause, spec.model) from None
        begin = functools.partial(vllm_follower.start, parts.config)
        async with self._spawning:
            started = self._threads.submit(begin)
            cancelled = await _ended(started)
        process, reader = started.result()
        try:
            if cancelled is not None:
                raise cancelled
            await self._in_thread(
                functools.partial(vllm_follower.await_up, process, reader, scratch, spec.model)
            )
        except BaseException:
            await self._in_thread(functools.partial(vllm_follower.end, process))
            raise
        engine_process.remove_log(scratch)
        return VllmFollower(spec, process, scratch, self._threads)

    async def _configure(
        self, spec: ModelSpec, folder: pathlib.Path, scratch: pathlib.Path
    ) -> vllm_bringup.Parts:
        level = os.environ["VLLM_LOGGING_LEVEL"]
        host = spec.seat.host if spec.seat is not None else ""
        logging_config = engine_process.write_logging_config(scratch, level, host)
        return await self._in_thread(
            functools.partial(vllm_bringup.configure, spec, folder, logging_config)
        )

    async def _spawn(
        self, scratch: pathlib.Path, start: Callable[[], Any]
    ) -> tuple[Future[Any], set[int]]:
        """Begin a start in a thread and wait until its processes can be told from others'.

        vLLM gives no handle on them before it is done. Only one load at a time is in this
        phase, so that a child that appears is its own.
        """
        cancelled: asyncio.CancelledError | None = None
        async with self._spawning:
            before = _children()
            # Where vLLM puts the sockets of this engine, and leaves some of them.
            os.environ["VLLM_RPC_BASE_PATH"] = str(scratch)
            future = self._threads.submit(start)
            while not (members := _children() - before) and not future.done():
                try:
                    await asyncio.sleep(_SPAWN_CHECK_S)
                except asyncio.CancelledError as error:
                    # Put off: a process that has no owner yet could not be ended.
                    cancelled = error
        if cancelled is not None:
            await self._give_up(future, members)
            raise cancelled
        return future, members

    async def _await_start(self, future: Future[Any], members: set[int]) -> Any:
        while not future.done():
            try:
                await asyncio.wait([observed(future)])
            except asyncio.CancelledError:
                await self._give_up(future, members)
                raise
        return future.result()

    async def _give_up(self, future: Future[Any], members: set[int]) -> None:
        processes.kill(processes.family(members))
        await asyncio.wait([observed(future)], timeout=_GIVE_UP_S)
        if future.done() and future.exception() is None:
            # It had just come up.
            await self._in_thread(future.result().shutdown)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


async def _ended(future: Future[Any]) -> asyncio.CancelledError | None:
    """Wait for what starts a process, and return a cancellation that was put off for it."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([observed(future)])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


def observed(future: Future[Any]) -> asyncio.Future[Any]:
    """Return what waits for `future`; a failure that is looked up in `future` alone is told."""
    waiter = asyncio.wrap_future(future)
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waiter


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
