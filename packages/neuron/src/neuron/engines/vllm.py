"""The harness `vllm`: vLLM's `AsyncLLM` inside the daemon, one per model.

Tokenizing, chat templates and the reading of outputs run in the daemon; the engine core and
its workers are child processes, as vLLM always makes them. vLLM is imported in a thread, before
the daemon serves anything, and only inside functions.
"""

import asyncio
import functools
import importlib.util
import logging
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.errors import ModelLoadFailedError, NotFoundError
from cortex_core.harness import Engine, Knowledge, ModelSpec, ProgressCallback, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines import (
    engine_process,
    processes,
    vllm_bringup,
    vllm_failures,
    vllm_knowledge,
)
from neuron.engines.oom import OomCount
from neuron.engines.token_process import TokenProcess
from neuron.engines.vllm_engine import VllmEngine
from neuron.engines.vllm_environment import (
    forget_engines,
    prepare_environment,
    restart_fork_server,
    start_fork_server,
)
from neuron.engines.vllm_runtime import make_runtime_folder, runtime_parent, sweep
from neuron.engines.vllm_stats import render_metrics
from neuron.lifecycle.footprint import estimate
from neuron.models import BUILTIN, BuiltinModel
from neuron.settings import VllmSettings
from neuron.weights.downloads import Downloads

T = TypeVar("T")

_SPAWN_CHECK_S = 0.02
"""How often a load looks for the process that it is about to start."""

_GIVE_UP_S = 30.0
"""Time that a cancelled load gets to notice that its processes are gone."""

_PREPARE_S = 120.0
"""Time that the import of vLLM gets before the daemon serves without it."""

_CURE = "pip install 'neuron[vllm]', or 'neuron[cpu]' where there is no GPU"

_THREADS = 16
"""Loads and shutdowns at a time; each holds one thread."""

logger = logging.getLogger(__name__)


class VllmHarness:
    """Brings up vLLM engines; see `cortex_core.harness.Harness`.

    Args:
        settings: `[harness.vllm]`.
        downloads: brings weights that are not here.
        builtin: models that ship with the neuron, by id.
    """

    def __init__(
        self,
        settings: VllmSettings,
        downloads: Downloads,
        *,
        builtin: Mapping[ModelId, BuiltinModel] = BUILTIN,
    ) -> None:
        self._settings = settings
        self._downloads = downloads
        self._builtin = builtin
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vllm")
        self._import: Future[None] | None = None
        self._spawning = asyncio.Lock()
        self._registries: dict[str, CollectorRegistry] = {}
        self._runtime: pathlib.Path | None = None
        self._tokens = TokenProcess()

    @property
    def name(self) -> str:
        """As in `harness = "..."` of a profile."""
        return "vllm"

    @property
    def can_sleep(self) -> bool:
        """Whether vLLM, once it is imported, says so of this platform."""
        future = self._import
        if future is None or not future.done() or future.exception() is not None:
            return False
        return vllm_bringup.can_sleep()

    async def prepare(self, stop: asyncio.Event) -> None:
        """Import vLLM, which takes seconds in which nothing else gets on.

        Args:
            stop: ends the waiting; so does a bound. Loads wait for the rest.

        Raises:
            ModelLoadFailedError: it is not installed, or broken; with the cure.
        """
        swept = await self._in_thread(lambda: sweep(runtime_parent()))
        if swept:
            logger.info("removed what killed daemons left", extra={"folders": len(swept)})
        begin = time.monotonic()
        future = self._begin_import()
        logger.info("importing vLLM", extra={"at_most_s": _PREPARE_S})
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(stop.wait())
            waited: set[asyncio.Future[Any]] = {_observed(future), stopping}
            await asyncio.wait(waited, timeout=_PREPARE_S, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
        if future.done():
            _check_import(future)
            logger.info("vLLM imported", extra={"duration_s": round(time.monotonic() - begin, 1)})
        elif not stop.is_set():
            logger.warning("vLLM is still being imported; loads will wait for it")

    async def fetch(self, spec: ModelSpec, on_progress: ProgressCallback) -> None:
        """Have the weights of a model on this machine; see `Harness.fetch`."""
        await self._import_vllm()
        vllm_bringup.check_options(spec)
        model = self._weights_name(spec)
        await self._downloads.fetch(model, _revision(spec), on_progress)

    async def check(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` with the options of a built-in model and an estimate of its memory.

        Raises:
            InvalidRequestError: an engine option does not exist or has a wrong type.
            NotFoundError: there are no weights here.
        """
        spec = self._completed(spec)
        await self._import_vllm()
        vllm_bringup.check_options(spec)
        folder = await self._in_thread(functools.partial(self._find_weights, spec))
        if spec.vram_bytes is not None:
            return spec
        study = functools.partial(self._study, spec, folder)
        parts = estimate((await self._in_thread(study)).facts, spec)
        return msgspec.structs.replace(
            spec, vram_bytes=None if parts is None else parts.total_bytes
        )

    async def study(self, spec: ModelSpec) -> Knowledge:
        """Return what is known of a spec without a device; its options must be right.

        Raises:
            InvalidRequestError: its weights are in a form that may not be loaded.
            NotFoundError: they are not here, and cannot be downloaded.
        """
        spec = self._completed(spec)
        await self._import_vllm()
        source, model = self._downloads.source, self._weights_name(spec)
        folder = await self._in_thread(functools.partial(source.find, model, _revision(spec)))
        if folder is None:
            self._downloads.check(model, _revision(spec))
        return await self._in_thread(functools.partial(self._study, spec, folder))

    async def load(self, spec: ModelSpec, on_progress: ProgressCallback) -> Engine:
        """Bring up an engine for a checked spec; cancelling the call undoes it.

        Stages: `importing` (vLLM itself), `weights` (the engine's processes start and read
        them, in bytes where known).

        Raises:
            RequestError: why it cannot be loaded, short enough to show.
        """
        on_progress("importing", None, None)
        await self._import_vllm()
        folder = await self._in_thread(functools.partial(self._find_weights, spec))
        weights = await self._in_thread(functools.partial(vllm_bringup.total_bytes, folder))
        on_progress("weights", None, weights)
        scratch = pathlib.Path(tempfile.mkdtemp(prefix="e-", dir=self._runtime_folder()))
        try:
            llm, parts = await self._start(spec, folder, scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return await self._assemble(spec, scratch, llm, parts, weights)

    async def answer_from_files(
        self, spec: ModelSpec, route: Route, body: bytes, request_id: RequestId
    ) -> bytes:
        """Answer a request about tokens; see `cortex_core.harness.Harness`."""
        spec = self._completed(spec)
        folder = await self._in_thread(functools.partial(self._find_weights, spec))
        return await self._tokens.ask(spec, folder, route, body, request_id)

    async def recycle(self) -> None:
        """Replace the fork server, where there is one."""
        if self._import is not None:
            await self._in_thread(restart_fork_server)

    def metrics(self) -> bytes:
        """Return the engines' own series in Prometheus' text format, possibly empty."""
        return render_metrics(self._registries)

    async def close(self) -> None:
        """Free what the harness itself holds; its engines are closed already."""
        await self._tokens.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None

    async def _import_vllm(self) -> None:
        future = self._begin_import()
        # A caller who is cancelled does not take the import with it.
        await asyncio.wait([_observed(future)])
        _check_import(future)

    def _begin_import(self) -> Future[None]:
        if self._import is None:
            if importlib.util.find_spec("vllm") is None:
                raise ModelLoadFailedError(f"vLLM is not installed: {_CURE}")
            prepare_environment(self._settings)
            start_fork_server()
            self._import = self._threads.submit(vllm_bringup.import_vllm)
        return self._import

    def _completed(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` with what a built-in model has beside it."""
        builtin = self._builtin.get(spec.model)
        if builtin is None:
            return spec
        return msgspec.structs.replace(
            spec,
            engine={**builtin.engine, **spec.engine},
            vram_bytes=spec.vram_bytes or builtin.vram_bytes,
        )

    def _study(self, spec: ModelSpec, folder: pathlib.Path | None) -> Knowledge:
        return vllm_knowledge.study(
            spec,
            vllm_bringup.check_options(spec),
            folder,
            is_pickle_allowed=spec.model in self._downloads.source.allow_pickle,
        )

    def _weights_name(self, spec: ModelSpec) -> str:
        builtin = self._builtin.get(spec.model)
        return str(builtin.path) if builtin is not None else spec.model

    def _find_weights(self, spec: ModelSpec) -> pathlib.Path:
        """Return the model's folder, which may be loaded."""
        source, model = self._downloads.source, self._weights_name(spec)
        folder = source.find(model, _revision(spec))
        if folder is None:
            raise NotFoundError(f"there are no weights for {spec.model!r} on this node")
        source.check_loadable(spec, folder)
        return folder

    async def _start(
        self, spec: ModelSpec, folder: pathlib.Path, scratch: pathlib.Path
    ) -> tuple[Any, vllm_bringup.Parts]:
        """Start vLLM's engine; cancelling ends its processes before it returns."""
        kills, level = OomCount(), os.environ["VLLM_LOGGING_LEVEL"]
        logging_config = engine_process.write_logging_config(scratch, level)
        try:
            parts = await self._in_thread(
                functools.partial(vllm_bringup.configure, spec, folder, logging_config)
            )
            future, members = await self._spawn(
                scratch, functools.partial(vllm_bringup.start, parts)
            )
            llm = await self._await_start(future, members)
        except vllm_bringup.load_errors() as error:
            log = engine_process.read_log(scratch)
            raised = str(error) or type(error).__name__
            cause = vllm_failures.root_cause(log, raised, was_short=kills.has_grown())
            logger.warning("%s cannot be loaded: %s", spec.model, cause)
            raise vllm_failures.load_error(cause, spec.model) from None
        engine_process.remove_log(scratch)
        return llm, parts

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
                await asyncio.wait([_observed(future)])
            except asyncio.CancelledError:
                await self._give_up(future, members)
                raise
        return future.result()

    async def _give_up(self, future: Future[Any], members: set[int]) -> None:
        processes.kill(processes.family(members))
        await asyncio.wait([_observed(future)], timeout=_GIVE_UP_S)
        if future.done() and future.exception() is None:
            # It had just come up.
            await self._in_thread(future.result().shutdown)

    async def _assemble(
        self,
        spec: ModelSpec,
        scratch: pathlib.Path,
        llm: Any,
        parts: vllm_bringup.Parts,
        weights: int | None,
    ) -> VllmEngine:
        try:
            tasks = await llm.get_supported_tasks()
            stack = vllm_bringup.make_stack(llm, spec.model, parts, tasks)
            engine = VllmEngine(
                model=spec.model,
                llm=llm,
                stack=stack,
                info=vllm_bringup.describe(llm, stack, parts, weights),
                window=parts.window,
                scratch=scratch,
                threads=self._threads,
                on_closed=functools.partial(self._forget, spec.model),
            )
        except BaseException:
            await self._in_thread(llm.shutdown)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._registries[spec.model] = parts.registry
        return engine

    def _forget(self, model: ModelId) -> None:
        self._registries.pop(model, None)
        forget_engines()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _runtime_folder(self) -> pathlib.Path:
        if self._runtime is None:
            self._runtime = make_runtime_folder(runtime_parent())
        return self._runtime


def _observed(future: Future[Any]) -> asyncio.Future[Any]:
    """Return what waits for `future`; a failure that is looked up in `future` alone is told."""
    waiter = asyncio.wrap_future(future)
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waiter


def _check_import(future: Future[None]) -> None:
    try:
        future.result()
    except vllm_bringup.IMPORT_ERRORS as error:
        raise ModelLoadFailedError(
            f"vLLM cannot be imported ({type(error).__name__}: {str(error)[:200]}): {_CURE}"
        ) from error


def _revision(spec: ModelSpec) -> str:
    return str(spec.engine.get("revision") or "main")


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
