"""The harness `vllm`: vLLM's `AsyncLLM` inside the daemon, one per model.

Tokenizing, chat templates and the reading of outputs run in the daemon; the engine core and
its workers are child processes, as vLLM always makes them. vLLM is imported in a thread, before
the daemon serves anything, and only inside functions.
"""

import asyncio
import functools
import importlib.util
import logging
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from cortex_core.errors import (
    ConflictError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
)
from cortex_core.harness import Engine, EngineVersion, Knowledge, ModelSpec, ProgressCallback, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines import vllm_bringup, vllm_knowledge
from neuron.engines.media import MediaPolicy
from neuron.engines.token_process import TokenProcess, token_command
from neuron.engines.vllm_engine import VllmEngine
from neuron.engines.vllm_environment import (
    TESTED,
    forget_engines,
    installed_version,
    prepare_environment,
    restart_fork_server,
    start_fork_server,
)
from neuron.engines.vllm_ray import RayCluster
from neuron.engines.vllm_runtime import make_runtime_folder, runtime_parent, sweep
from neuron.engines.vllm_start import Starter, observed
from neuron.engines.vllm_stats import render_metrics
from neuron.lifecycle.footprint import estimate
from neuron.models import BUILTIN, BuiltinModel, completed
from neuron.settings import MediaSettings, VllmSettings
from neuron.weights.downloads import Downloads
from neuron.weights.files import is_adapter

T = TypeVar("T")

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
        media: `[media]`.
        builtin: models that ship with the neuron, by id.
    """

    def __init__(
        self,
        settings: VllmSettings,
        downloads: Downloads,
        media: MediaSettings,
        *,
        builtin: Mapping[ModelId, BuiltinModel] = BUILTIN,
    ) -> None:
        self._settings = settings
        self._downloads = downloads
        self._builtin = builtin
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vllm")
        self._import: Future[None] | None = None
        self._starter = Starter(self._threads)
        self._registries: dict[str, CollectorRegistry] = {}
        self._runtime: pathlib.Path | None = None
        self._tokens = TokenProcess(token_command(media))
        self._media = MediaPolicy(media)

    @property
    def name(self) -> str:
        """As in `harness = "..."` of a profile."""
        return "vllm"

    @functools.cached_property
    def engine(self) -> EngineVersion | None:
        """Which vLLM is installed."""
        return installed_version()

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
            waited: set[asyncio.Future[Any]] = {observed(future), stopping}
            await asyncio.wait(waited, timeout=_PREPARE_S, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
        if future.done():
            _check_import(future)
            self._tell_version()
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
        spec = completed(spec, self._builtin)
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
        spec = completed(spec, self._builtin)
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
            if spec.is_follower:
                return await self._starter.follow(spec, folder, scratch)
            llm, parts = await self._starter.start(spec, folder, scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return await self._assemble(spec, scratch, llm, parts, weights)

    async def adapt(self, base: Engine, spec: ModelSpec) -> Engine:
        """Add an adapter to an engine; see `cortex_core.harness.Harness`."""
        if not isinstance(base, VllmEngine):
            raise ConflictError(f"{spec.base!r} is held by several nodes, and takes no adapters")
        folder = await self._in_thread(functools.partial(self._find_weights, spec))
        return await base.add_adapter(spec.model, folder)

    async def answer_from_files(
        self, spec: ModelSpec, route: Route, body: bytes, request_id: RequestId
    ) -> bytes:
        """Answer a request about tokens; see `cortex_core.harness.Harness`."""
        # An adapter has the tokenizer of its base, and answers by its own name.
        owner = msgspec.structs.replace(
            spec, model=spec.base or spec.model, base=None, adapter=None
        )
        owner = completed(owner, self._builtin)
        folder = await self._in_thread(functools.partial(self._find_weights, owner))
        known = msgspec.structs.replace(owner, model=spec.model)
        return await self._tokens.ask(known, folder, route, body, request_id)

    async def recycle(self) -> None:
        """Replace the fork server, where there is one."""
        if self._import is not None:
            await self._in_thread(restart_fork_server)

    def metrics(self) -> bytes:
        """Return the engines' own series in Prometheus' text format, possibly empty."""
        # A copy, made in one step: this runs beside the loop, where engines come and go.
        return render_metrics(dict(self._registries))

    async def close(self) -> None:
        """Free what the harness itself holds; its engines are closed already."""
        await self._tokens.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None

    def _tell_version(self) -> None:
        if self.engine is not None and not self.engine.tested:
            logger.warning(
                "vLLM of a release that was not tested",
                extra={"version": self.engine.version, "tested": TESTED},
            )

    async def _import_vllm(self) -> None:
        future = self._begin_import()
        # A caller who is cancelled does not take the import with it.
        await asyncio.wait([observed(future)])
        _check_import(future)

    def _begin_import(self) -> Future[None]:
        if self._import is None:
            if importlib.util.find_spec("vllm") is None:
                raise ModelLoadFailedError(f"vLLM is not installed: {_CURE}")
            prepare_environment(self._settings)
            start_fork_server()
            self._import = self._threads.submit(vllm_bringup.import_vllm)
        return self._import

    def _study(self, spec: ModelSpec, folder: pathlib.Path | None) -> Knowledge:
        return vllm_knowledge.study(
            spec,
            vllm_bringup.check_options(spec),
            folder,
            is_pickle_allowed=spec.model in self._downloads.source.allow_pickle,
        )

    def _weights_name(self, spec: ModelSpec) -> str:
        if spec.base is not None:
            return spec.adapter or spec.model
        builtin = self._builtin.get(spec.model)
        return str(builtin.path) if builtin is not None else spec.model

    def _find_weights(self, spec: ModelSpec) -> pathlib.Path:
        """Return the model's folder, which may be loaded."""
        source, model = self._downloads.source, self._weights_name(spec)
        folder = source.find(model, _revision(spec))
        if folder is None:
            raise NotFoundError(f"there are no weights for {spec.model!r} on this node")
        if is_adapter(folder) is (spec.base is None):
            what = "an adapter; load it with its `base`" if spec.base is None else "no adapter"
            raise InvalidRequestError(f"{model!r} is {what}", param="base")
        source.check_loadable(spec, folder)
        return folder

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
            stack = vllm_bringup.make_stack(llm, spec.model, parts, tasks, self._media)
            engine = VllmEngine(
                model=spec.model,
                llm=llm,
                stack=stack,
                info=vllm_bringup.describe(llm, stack, parts, weights),
                window=parts.window,
                scratch=scratch,
                threads=self._threads,
                on_closed=functools.partial(self._forget, spec.model, parts.cluster),
            )
        except BaseException:
            await self._in_thread(llm.shutdown)
            if parts.cluster is not None:
                await self._in_thread(parts.cluster.give_back)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._registries[spec.model] = parts.registry
        return engine

    def _forget(self, model: ModelId, cluster: RayCluster | None) -> None:
        self._registries.pop(model, None)
        if cluster is not None:
            # Blocks for a message to the cluster; there is nobody who would wait for it.
            self._threads.submit(cluster.give_back)
        forget_engines()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _runtime_folder(self) -> pathlib.Path:
        if self._runtime is None:
            self._runtime = make_runtime_folder(runtime_parent())
        return self._runtime


def _check_import(future: Future[None]) -> None:
    try:
        future.result()
    except vllm_bringup.IMPORT_ERRORS as error:
        raise ModelLoadFailedError(
            f"vLLM cannot be imported ({type(error).__name__}: {str(error)[:200]}): {_CURE}"
        ) from error


def _revision(spec: ModelSpec) -> str:
    return str(spec.engine.get("revision") or "main")
