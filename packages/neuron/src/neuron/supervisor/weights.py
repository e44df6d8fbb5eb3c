"""The weights on this node's disk: what is there, what is brought, what goes."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping

from cortex_core.errors import (
    ConflictError,
    InsufficientDiskError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from cortex_core.units import MIB, bytes_from_mib
from cortex_core.wire.weights import Disk, WeightsEntry, WeightsList, WeightsNews
from neuron.lifecycle.cleaning import Cleaning, Stored, plan_cleaning
from neuron.lifecycle.replica import ReplicaState
from neuron.models import BUILTIN
from neuron.supervisor.parts import Parts
from neuron.weights import stock
from neuron.weights.downloads import Download
from neuron.weights.files import check_hub_id
from neuron.weights.stock import Stock

logger = logging.getLogger(__name__)

_TELL_S = 1.0
"""How often an event tells how far a download is."""


class Weights:
    """Downloads and removes models.

    Args:
        parts: what it stands on.
        states: returns all models of the supervisor.
        tell: told of what happens, not of every step.
    """

    def __init__(
        self,
        parts: Parts,
        states: Callable[[], tuple[ReplicaState, ...]],
        tell: Callable[[WeightsNews], None],
    ) -> None:
        self._parts = parts
        self._states = states
        self._tell = tell
        self._told: dict[str, tuple[str, float]] = {}
        self._cleaning = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._downloads = parts.downloads
        self._downloads.make_room = self._make_room
        self._downloads.on_news = self._on_news

    async def listing(self) -> WeightsList:
        """Return everything that is here or on its way."""
        source, in_use = self._downloads.source, self._in_use()
        cached, folders, usage = await asyncio.gather(
            asyncio.to_thread(stock.list_cache, source.cache),
            asyncio.to_thread(stock.list_folders, source.model_dirs),
            asyncio.to_thread(_disk_usage, source.cache),
        )
        pinned = self._parts.notebook.notes.pinned
        return WeightsList(
            models=tuple(
                WeightsEntry(
                    id=model.id,
                    revisions=model.revisions,
                    size_bytes=model.size_bytes,
                    files=model.files,
                    last_used=model.last_used or None,
                    complete=model.is_complete,
                    in_use=model.id in in_use,
                    pinned=model.id in pinned,
                    removable=model.is_cached,
                )
                for model in (*folders, *cached)
            ),
            downloads=tuple(download.news for download in self._downloads.under_way),
            disk=Disk(
                path=str(source.cache),
                total_bytes=usage[0],
                free_bytes=usage[1],
                budget_bytes=self._budget_bytes,
                used_bytes=sum(model.size_bytes for model in cached),
            ),
        )

    def pull(self, model: str, revision: str) -> Download:
        """Begin to download a model, or join; what changed on the hub comes anew.

        Raises:
            InvalidRequestError: it ships with the neuron, or there can be no such model.
            RequestError: it cannot be downloaded.
        """
        if model in BUILTIN:
            raise InvalidRequestError(f"{model!r} ships with the neuron", param="model_id")
        return self._downloads.pull(model, revision)

    async def remove(self, model: str) -> None:
        """Remove a model from the hub cache; a download of it ends.

        Raises:
            InvalidRequestError: that is no hub id.
            NotFoundError: it is not here.
            ConflictError: it is used, pinned, or not the hub cache's.
        """
        check_hub_id(model)
        here = {entry.id: entry for entry in await asyncio.to_thread(self._look)}
        entry = here.get(model)
        is_coming = any(download.model == model for download in self._downloads.under_way)
        if entry is None and not is_coming:
            raise NotFoundError(f"there are no weights of {model!r} on this node", param="model")
        if entry is not None and not entry.is_cached:
            raise ConflictError(
                f"{model!r} is in a folder of model_dirs, which is only read; remove it there"
            )
        if model in self._in_use():
            raise ConflictError(f"{model!r} is loaded or being loaded; unload it first")
        if model in self._parts.notebook.notes.pinned:
            raise ConflictError(f"{model!r} is pinned; unpin it first")
        await self._remove(model)

    async def _remove(self, model: str) -> None:
        async with self._downloads.removing(model):
            cache = self._downloads.source.cache
            work = asyncio.get_running_loop().run_in_executor(None, stock.remove, cache, model)
            try:
                await asyncio.shield(work)
            finally:
                # A thread goes on whoever leaves: nobody is let in before it is done.
                await asyncio.wait([work])
        self._removed(model)

    def used(self, model: ModelId) -> None:
        """Note that a model was used until now."""
        work = asyncio.to_thread(stock.touch, self._downloads.source.cache, model)
        self._spawn(work, f"note use of {model}")

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        task = self._parts.spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _budget_bytes(self) -> int | None:
        return bytes_from_mib(self._parts.settings.harness.vllm.disk_budget_mb) or None

    def _look(self) -> tuple[Stock, ...]:
        source = self._downloads.source
        # The cache goes first: a model that is in both places can be removed there.
        return (*stock.list_folders(source.model_dirs), *stock.list_cache(source.cache))

    def _in_use(self) -> frozenset[str]:
        """Return what models that are here need: themselves, drafts, adapters, tokenizers."""
        return frozenset(
            name
            for state in self._states()
            if state.status is not ReplicaStatus.FAILED
            for text in _names(state.asked)
            for name in (text, stock.model_at(self._downloads.source.cache, text))
            if name is not None
        )

    def _kept(self) -> frozenset[str]:
        """Return what is never removed to make room."""
        defaults = self._parts.settings.default_models
        return frozenset(
            (
                *self._in_use(),
                *self._parts.notebook.notes.pinned,
                *(download.model for download in self._downloads.under_way),
                *(name for m in defaults for name in (m.model_id, *_strings(m.engine))),
            )
        )

    async def _make_room(self, model: str, needed_bytes: int) -> None:
        """See that a download fits, with what others still bring; remove what must go.

        Raises:
            InsufficientDiskError: it does not.
        """
        stuck: set[str] = set()
        async with self._cleaning:
            promised = sum(
                other.missing_bytes for other in self._downloads.under_way if other.model != model
            )
            while True:
                plan = await self._plan(needed_bytes + promised if needed_bytes else 0, stuck)
                if plan.lacking_bytes and needed_bytes:
                    raise _no_room(model, needed_bytes, plan.lacking_bytes)
                if not await self._clean(plan, stuck):
                    return

    async def _plan(self, needed_bytes: int, stuck: Collection[str]) -> Cleaning:
        cache = self._downloads.source.cache
        models = await asyncio.to_thread(stock.list_cache, cache)
        _, free = await asyncio.to_thread(_disk_usage, cache)
        kept = self._kept()
        stored = [
            Stored(
                id=model.id,
                size_bytes=model.size_bytes,
                last_used=model.last_used,
                is_kept=model.id in kept or model.id in stuck,
            )
            for model in models
        ]
        return plan_cleaning(
            stored, needed_bytes=needed_bytes, budget_bytes=self._budget_bytes, free_bytes=free
        )

    async def _clean(self, plan: Cleaning, stuck: set[str]) -> bool:
        """Remove those who go, unless somebody uses them now; return whether one was tried.

        Those that cannot be removed are put into `stuck`.
        """
        was_tried = False
        for model in plan.victims:
            if model in self._kept():
                continue
            was_tried = True
            try:
                await self._remove(model)
            except ConflictError as error:
                # Perhaps somebody else's files; there may be others that can go.
                stuck.add(model)
                logger.warning("model stays on the disk", extra={"reason": error.message})
        return was_tried

    async def _tidy(self) -> None:
        try:
            await self._make_room("", 0)
        except RequestError as error:
            logger.warning("hub cache not cleaned", extra={"reason": error.message})

    def _removed(self, model: str) -> None:
        logger.info("model removed from the disk", extra={"model": model})
        self._parts.metrics.weights_removed.inc()
        self._on_news(WeightsNews(id=model, revision="", status="removed"))

    def _on_news(self, news: WeightsNews) -> None:
        is_under_way = news.status in ("queued", "downloading")
        if not is_under_way and news.status != "removed":
            self._parts.metrics.downloads.labels(news.status).inc()
        if news.status == "ready":
            self._spawn(self._tidy(), "keep to the disk budget")
        status, told_at = self._told.get(news.id, ("", 0.0))
        now = self._parts.clock.now()
        if is_under_way and status == news.status and now < told_at + _TELL_S:
            return
        self._told[news.id] = (news.status, now)
        if not is_under_way:
            del self._told[news.id]
        self._tell(news)


def _names(spec: ModelSpec) -> Iterable[str]:
    adapter = () if spec.adapter is None else (spec.adapter,)
    return (spec.model, *adapter, *_strings(spec.engine))


def _strings(node: object) -> Iterable[str]:
    """Return all strings in a table of options: some of them are names of models."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _strings(value)


def _disk_usage(path: os.PathLike[str]) -> tuple[int | None, int | None]:
    """Return size and free bytes of the file system that a folder is or will be on; blocks."""
    folder = os.path.abspath(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None, None
    return usage.total, usage.free


def _no_room(model: str, needed_bytes: int, lacking_bytes: int) -> InsufficientDiskError:
    free_bytes = max(0, needed_bytes - lacking_bytes)
    return InsufficientDiskError(
        f"{model!r} needs {needed_bytes / MIB:.0f} MiB on the disk, and there is room for "
        f"{free_bytes / MIB:.0f} MiB; remove models with 'cortex weights rm', or give "
        "harness.vllm.disk_budget_mb more",
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
    )
