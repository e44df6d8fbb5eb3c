"""The harness `vllm`: vLLM's `AsyncLLM` inside the daemon, one per model.

Tokenizing, chat templates and the reading of outputs run in the daemon; the engine core and
its workers are child processes, as vLLM always makes them. vLLM is imported by the first
check or load, in a thread, and only inside functions.
"""

import asyncio
import functools
import logging
import multiprocessing
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.errors import NotFoundError
from cortex_core.harness import Engine, ModelSpec, ProgressCallback
from cortex_core.ids import ModelId
from neuron.engines import engine_process, processes, vllm_bringup, vllm_failures
from neuron.engines.vllm_engine import VllmEngine
from neuron.engines.vllm_environment import prepare_environment, start_fork_server
from neuron.engines.vllm_stats import render_metrics
from neuron.engines.vllm_weights import estimate_vram_bytes, find_weights, hub_cache
from neuron.models import BUILTIN, BuiltinModel
from neuron.settings import VllmSettings

T = TypeVar("T")

_SPAWN_CHECK_S = 0.02
"""How often a load looks for the process that it is about to start."""

_GIVE_UP_S = 30.0
"""Time that a cancelled load gets to notice that its processes are gone."""

_MAX_TEMPORARY_CHARS = 107 - len("/neuron-12345678/e-12345678/") - 36
"""Longest temporary folder in which vLLM's sockets, named by a UUID, have a path that is short
enough for a socket (`sun_path`, unix(7))."""

_THREADS = 16
"""Loads and shutdowns at a time; each holds one thread."""

logger = logging.getLogger(__name__)


class VllmHarness:
    """Brings up vLLM engines; see `cortex_core.harness.Harness`.

    Args:
        settings: `[harness.vllm]`.
        builtin: models that ship with the neuron, by id.
    """

    def __init__(
        self, settings: VllmSettings, *, builtin: Mapping[ModelId, BuiltinModel] = BUILTIN
    ) -> None:
        self._settings = settings
        self._builtin = builtin
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vllm")
        self._importing = asyncio.Lock()
        self._is_imported = False
        self._spawning = asyncio.Lock()
        self._registries: dict[str, CollectorRegistry] = {}
        self._runtime: pathlib.Path | None = None

    @property
    def name(self) -> str:
        """As in `harness = "..."` of a profile."""
        return "vllm"

    async def check(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` with the options of a built-in model and an estimate of its memory.

        Raises:
            InvalidRequestError: an engine option does not exist or has a wrong type.
            NotFoundError: there are no weights here, and the hub must not be asked.
        """
        builtin = self._builtin.get(spec.model)
        if builtin is not None:
            spec = msgspec.structs.replace(
                spec,
                engine={**builtin.engine, **spec.engine},
                vram_bytes=spec.vram_bytes or builtin.vram_bytes,
            )
        await self._import_vllm()
        vllm_bringup.check_options(spec)
        return await self._in_thread(functools.partial(self._check_weights, spec))

    async def load(self, spec: ModelSpec, on_progress: ProgressCallback) -> Engine:
        """Bring up an engine for a checked spec; cancelling the call undoes it.

        Stages: `importing` (vLLM itself), `weights` (the engine's processes start and read
        them, in bytes where known), `warming` (a first token).

        Raises:
            RequestError: why it cannot be loaded, short enough to show.
        """
        on_progress("importing", None, None)
        await self._import_vllm()
        folder = await self._in_thread(functools.partial(self._find_weights, spec))
        on_progress("weights", None, vllm_bringup.total_bytes(folder))
        scratch = pathlib.Path(tempfile.mkdtemp(prefix="e-", dir=self._runtime_folder()))
        try:
            llm, parts = await self._start(spec, folder, scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        engine = await self._assemble(spec, scratch, llm, parts)
        try:
            on_progress("warming", None, None)
            await vllm_bringup.warm_up(engine, spec.model)
        except BaseException:
            await engine.close(0.0)
            raise
        return engine

    def metrics(self) -> bytes:
        """Return the engines' own series in Prometheus' text format, possibly empty."""
        return render_metrics(self._registries)

    async def close(self) -> None:
        """Free what the harness itself holds; its engines are closed already."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None

    async def _import_vllm(self) -> None:
        async with self._importing:
            if self._is_imported:
                return
            prepare_environment(self._settings)
            start_fork_server()
            await self._in_thread(vllm_bringup.import_vllm)
            self._is_imported = True

    def _check_weights(self, spec: ModelSpec) -> ModelSpec:
        folder = self._find_weights(spec)
        if folder is None or spec.vram_bytes is not None:
            return spec
        devices = spec.tensor_parallel or max(1, len(spec.devices))
        estimate = estimate_vram_bytes(folder, spec.engine, devices)
        return msgspec.structs.replace(spec, vram_bytes=estimate)

    def _find_weights(self, spec: ModelSpec) -> pathlib.Path | None:
        """Return the model's folder; `None` when vLLM is to download it."""
        builtin = self._builtin.get(spec.model)
        model = str(builtin.path) if builtin is not None else spec.model
        cache = hub_cache(self._settings.hf_cache, os.environ)
        revision = spec.engine.get("revision")
        folder = find_weights(model, cache, str(revision) if revision else "main")
        if folder is not None:
            return folder
        if model.startswith("/"):
            raise NotFoundError(f"there are no weights under {spec.model!r} on this node")
        if vllm_bringup.is_offline():
            raise NotFoundError(
                f"there are no weights for {spec.model!r} in this node's hub cache, and it is "
                "offline (HF_HUB_OFFLINE)"
            )
        return None

    async def _start(
        self, spec: ModelSpec, folder: pathlib.Path | None, scratch: pathlib.Path
    ) -> tuple[Any, vllm_bringup.Parts]:
        """Start vLLM's engine; cancelling ends its processes before it returns."""
        level = os.environ["VLLM_LOGGING_LEVEL"]
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
            cause = vllm_failures.root_cause(log, str(error) or type(error).__name__)
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
                await asyncio.wait([asyncio.wrap_future(future)])
            except asyncio.CancelledError:
                await self._give_up(future, members)
                raise
        return future.result()

    async def _give_up(self, future: Future[Any], members: set[int]) -> None:
        processes.kill(processes.family(members))
        await asyncio.wait([asyncio.wrap_future(future)], timeout=_GIVE_UP_S)
        if future.done() and future.exception() is None:
            # It had just come up.
            await self._in_thread(future.result().shutdown)

    async def _assemble(
        self, spec: ModelSpec, scratch: pathlib.Path, llm: Any, parts: vllm_bringup.Parts
    ) -> VllmEngine:
        try:
            tasks = await llm.get_supported_tasks()
            stack = vllm_bringup.make_stack(llm, spec.model, parts, tasks)
            engine = VllmEngine(
                model=spec.model,
                llm=llm,
                stack=stack,
                info=vllm_bringup.describe(llm, stack, parts),
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

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _runtime_folder(self) -> pathlib.Path:
        if self._runtime is None:
            temporary = tempfile.gettempdir()
            folder = temporary if len(temporary) <= _MAX_TEMPORARY_CHARS else "/tmp"  # noqa: S108
            self._runtime = pathlib.Path(tempfile.mkdtemp(prefix="neuron-", dir=folder))
        return self._runtime


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}
