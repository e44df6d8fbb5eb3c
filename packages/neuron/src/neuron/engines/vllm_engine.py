"""One loaded model of vLLM: serving, its load, its death, its end."""

import asyncio
import contextlib
import functools
import logging
import pathlib
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import msgspec

from cortex_core.errors import EngineError, ModelLoadFailedError, RequestError, UnavailableError
from cortex_core.harness import EngineAnswer, EngineLoad, ModelInfo, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines import engine_process, processes, vllm_check
from neuron.engines.adapted import AdapterEngine
from neuron.engines.oom import OomCount
from neuron.engines.vllm_adapters import Adapters
from neuron.engines.vllm_failures import describe_exit, last_words
from neuron.engines.vllm_runtime import record
from neuron.engines.vllm_serving import EventStream, Stack, event_error, is_error
from neuron.engines.vllm_stats import LoadWindow

_CHECK_S = 0.25
"""vLLM learns of a dead process in a thread and sets a flag; this is how often it is read."""

_EXIT_S = 10.0
"""Time that an engine's processes get to end by themselves before they are killed."""

_ABORT_S = 2.0
"""Time that processes which are given up get to write where they are."""

_CUT_S = 2.0
"""Time in which requests that are cut off must let go of the engine."""

logger = logging.getLogger(__name__)


class VllmEngine:
    """A loaded model; see `cortex_core.harness.Engine`.

    Args:
        model: its id.
        llm: vLLM's `AsyncLLM`; owned by this from here on.
        stack: the routes over it.
        info: what it says of itself.
        window: where its stat logger writes.
        scratch: folder of its processes' files; removed at the end.
        threads: for calls that block.
        on_closed: called once, when nothing is left of it.
    """

    def __init__(
        self,
        *,
        model: ModelId,
        llm: Any,
        stack: Stack,
        info: ModelInfo,
        window: LoadWindow,
        scratch: pathlib.Path,
        threads: Executor,
        on_closed: Callable[[], None],
    ) -> None:
        self._model = model
        self._llm = llm
        self._stack = stack
        self._adapters = Adapters(llm, stack.models, scratch)
        self._info = info
        self._window = window
        self._scratch = scratch
        self._threads = threads
        self._on_closed = on_closed
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut: str | None = None
        self._is_closing = False
        self._sleep_level: int | None = None
        self._kills = OomCount()
        self._reason: str | None = None
        """Why it is dead."""
        self._said: vllm_check.Said | None = None
        self._processes = processes.family(_process_ids(llm))
        record(scratch, self._processes)

    @property
    def info(self) -> ModelInfo:
        """What it can do."""
        return self._info

    @property
    def failure(self) -> str | None:
        """Short reason why it is dead; `None` while it lives, and when it was closed alive."""
        if self._reason is None and not self._is_closing and self._llm.errored:
            self._reason = self._died_of()
        return self._reason

    def _died_of(self) -> str:
        words = engine_process.read_log(self._scratch, engine_process.ERRORS_NAME)
        told = last_words(words)
        if told is not None:
            return told
        statuses = [process.exitcode for process in _engine_processes(self._llm)]
        ended = [status for status in statuses if status is not None]
        if not ended:
            return "the engine stopped working"
        return describe_exit(ended[0], was_short=self._kills.has_grown())

    @property
    def process_ids(self) -> frozenset[int]:
        """Its processes, as they were when it was up."""
        return frozenset(process.pid for process in self._processes)

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Answer one request; cancelling the call or closing the stream aborts it.

        A stream is returned when its first event is there, so that whatever fails before the
        first token is an error with a status of its own.
        """
        if self._is_closing:
            raise UnavailableError(f"{self._model!r} is being unloaded")
        if self._sleep_level is not None:
            # vLLM would take it and let it wait until somebody wakes the engine.
            raise UnavailableError(f"{self._model!r} sleeps")
        failure = self.failure
        if failure is not None:
            raise EngineError(f"the engine is dead: {failure}")
        with contextlib.ExitStack() as counted:
            counted.enter_context(self._counted())
            result = await self._stack.answer(route, body, request_id, urgency)
            if isinstance(result, EngineAnswer):
                self._check_cut()
                return result
            first = await self._first_event(result, route)
            stream = EventStream(first, result, route, counted.pop_all().close, lambda: self._cut)
            return EngineAnswer(body=stream, content_type="text/event-stream")

    async def check_request(self, route: Route, body: bytes) -> None:
        """Read a request, in vLLM's own thread for tokens; see `cortex_core.harness.Engine`."""
        await self._stack.check(route, body)

    def load(self) -> EngineLoad:
        """Return how busy it is; never blocks."""
        # Its front end in this process knows them, also those that a hung engine has not read.
        requests = None if self._is_closing else self._llm.output_processor
        unfinished = 0 if requests is None else requests.get_num_unfinished_requests()
        return self._window.read(time.monotonic(), unfinished)

    async def failed(self) -> str:
        """Wait until the engine dies by itself and return the short reason."""
        while True:
            failure = self.failure
            if failure is not None:
                return failure
            await asyncio.sleep(_CHECK_S)

    async def is_compiling(self) -> bool:
        """Return whether one of its processes is a compiler's."""
        pids = [process.pid for process in self._processes]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, processes.has_compiler, pids)

    async def kill(self, reason: str) -> None:
        """End its processes at once; see `cortex_core.harness.Engine`."""
        self._reason = reason
        members = self._processes | processes.family(_process_ids(self._llm))
        # It writes the stacks, see `engine_process.start`; a stopped process does not even that.
        processes.send(members, signal.SIGABRT)
        for _ in range(int(_ABORT_S / _CHECK_S)):
            if not processes.alive(members):
                break
            await asyncio.sleep(_CHECK_S)
        processes.kill(members)

    async def check_answer(self) -> None:
        """Ask for a few tokens, or a vector; the same must come after every wake."""
        said = await self.ask(self._model)
        if said is None:
            return
        flaw = vllm_check.flaw(said, self._said)
        if flaw is not None:
            raise ModelLoadFailedError(f"{self._model!r} is broken: {flaw}")
        if self._said is None:
            self._said = said

    async def ask(self, model: ModelId) -> vllm_check.Said | None:
        """Return what this model, or an adapter on it, says to the neuron's own question.

        Returns:
            `None` when it does nothing that can be checked.

        Raises:
            ModelLoadFailedError: there is no answer.
        """
        question = vllm_check.question(
            model, self._info.capabilities, self._llm.model_config.max_logprobs
        )
        if question is None:
            return None
        route, body = question
        try:
            answer = await self.serve(route, body, RequestId("check"))
            if not isinstance(answer.body, bytes):
                raise ModelLoadFailedError(f"{model!r} answers with a stream")
            return vllm_check.read_answer(route, answer.body)
        except (RequestError, msgspec.DecodeError) as error:
            raise ModelLoadFailedError(f"{model!r} does not answer: {str(error)[:200]}") from error

    async def add_adapter(self, model: ModelId, folder: pathlib.Path) -> AdapterEngine:
        """Add an adapter, which answers to `model` from here on.

        Args:
            model: id of the adapter.
            folder: its files.

        Raises:
            ConflictError: this engine takes no adapters; with the cure.
            RequestError: why this one cannot be added.
        """
        if self._is_closing or self.failure is not None:
            raise EngineError(f"the engine of {self._model!r} is gone")
        await self._adapters.add(model, folder, self._model)
        return AdapterEngine(
            model,
            self,
            check=functools.partial(self._check_adapter, model),
            remove=functools.partial(self._remove_adapter, model),
        )

    async def _check_adapter(self, model: ModelId) -> None:
        said = await self.ask(model)
        flaw = None if said is None else vllm_check.flaw(said, None)
        if flaw is not None:
            raise ModelLoadFailedError(f"{model!r} is broken: {flaw}")

    async def _remove_adapter(self, model: ModelId) -> None:
        if not self._is_closing and self.failure is None:
            await self._adapters.remove(model)

    async def sleep(self, level: int) -> None:
        """Give the device memory back; see `cortex_core.harness.Engine`."""
        with self._as_errors("sleep"):
            self._sleep_level = level
            await self._llm.sleep(level)

    async def wake(self) -> None:
        """Take the device memory back; see `cortex_core.harness.Engine`."""
        with self._as_errors("wake"):
            if self._sleep_level == 2:
                # Room for the weights first: reading them needs some of what the cache takes.
                await self._llm.wake_up(["weights"])
                await self._llm.collective_rpc("reload_weights")
                await self._llm.wake_up(["kv_cache"])
            else:
                await self._llm.wake_up()
            self._sleep_level = None

    @contextlib.contextmanager
    def _as_errors(self, what: str) -> Iterator[None]:
        from vllm.exceptions import VLLMError

        try:
            yield
        except (VLLMError, RuntimeError, ValueError, AssertionError, OSError) as error:
            logger.warning("%s does not %s: %s", self._model, what, error)
            reason = self.failure or str(error)[:200] or type(error).__name__
            raise EngineError(f"{self._model!r} does not {what}: {reason}") from error

    async def close(self, timeout_s: float) -> None:
        """Let running requests finish for up to `timeout_s`, then free everything."""
        if self._is_closing:
            return
        is_dead = self.failure is not None
        self._is_closing = True
        try:
            if not is_dead:
                await self._drain(timeout_s)
        finally:
            await self._shut_down()

    async def _first_event(self, events: AsyncGenerator[str, None], route: Route) -> str:
        try:
            first = await anext(events)
            if is_error(first):
                raise event_error(first, route)
            self._check_cut()
        except BaseException:
            await events.aclose()
            raise
        return first

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    def _check_cut(self) -> None:
        if self._cut is not None:
            raise EngineError(self._cut)

    async def _drain(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        if self._in_flight == 0:
            return
        logger.warning("%s: %d requests are cut off by unloading", self._model, self._in_flight)
        self._cut = f"{self._model!r} was unloaded before the answer was complete"
        await self._llm.abort(list(self._llm.output_processor.request_states), internal=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), _CUT_S)

    async def _shut_down(self) -> None:
        loop = asyncio.get_running_loop()
        if self._llm.output_handler is not None:
            # It would log the end of its processes as an error, with a traceback.
            self._llm.output_handler.cancel()
        members = self._processes | processes.family(_process_ids(self._llm))
        try:
            await loop.run_in_executor(self._threads, self._llm.shutdown, _EXIT_S)
        finally:
            left = processes.alive(members)
            if left:
                logger.warning("%s: %d engine processes had to be killed", self._model, len(left))
                processes.kill(left)
            shutil.rmtree(self._scratch, ignore_errors=True)
            # vLLM's objects hold each other and much memory; nothing of ours may hold them.
            del self._llm, self._stack, self._adapters
            self._on_closed()


def _engine_processes(llm: Any) -> list[Any]:
    manager = llm.engine_core.resources.engine_manager
    return list(manager.processes) if manager is not None else []


def _process_ids(llm: Any) -> list[int]:
    return [process.pid for process in _engine_processes(llm) if process.pid is not None]
