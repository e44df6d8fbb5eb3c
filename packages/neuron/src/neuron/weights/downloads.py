"""Downloads under way: one at a time for each model, a few at once, joined by all who want them."""

import asyncio
import contextlib
import logging
import pathlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Self

import msgspec

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    InternalError,
    ModelLoadFailedError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import ProgressCallback
from cortex_core.server.clock import Clock
from cortex_core.wire.weights import WeightsNews
from neuron.lifecycle.rate import Meter
from neuron.settings import VllmSettings
from neuron.weights.fetching import Fetching, error_of
from neuron.weights.files import check_hub_id, check_revision
from neuron.weights.lines import Ended, Failed, Planned
from neuron.weights.source import WeightSource

logger = logging.getLogger(__name__)

STAGE = "downloading"
"""Of a load, while its weights come."""

RoomMaker = Callable[[str, int], Awaitable[None]]
"""Takes a model and the bytes that it needs on the disk; raises `InsufficientDiskError`."""


class Download:
    """One download, for everybody who wants it; only `Downloads` changes it.

    Args:
        model: a hub id.
        revision: branch, tag or commit.
    """

    def __init__(self, model: str, revision: str) -> None:
        self.model = model
        self.revision = revision
        self.news = WeightsNews(id=model, revision=revision, status="queued")
        self.is_kept = False
        """Whether it goes on when nobody waits for it."""
        self.waiting = 0
        """Loads that wait for it."""
        self.cancelled: RequestError = ConflictError(f"the download of {model!r} was cancelled")
        """Why it ends, should it be cancelled."""
        self.changed = asyncio.Event()
        """Set at the next news, and replaced then."""
        self.done: asyncio.Future[pathlib.Path] = asyncio.get_running_loop().create_future()
        """The model's folder."""
        self.done.add_done_callback(_retrieve)
        self.task: asyncio.Task[None] | None = None

    @property
    def missing_bytes(self) -> int:
        """What is still to come, as far as is known."""
        return max(0, (self.news.total_bytes or 0) - (self.news.done_bytes or 0))

    def tell(self, news: WeightsNews) -> None:
        """Replace what is known."""
        self.news = news
        self.changed.set()
        self.changed = asyncio.Event()


class _Removal:
    """Everybody who is removing one model."""

    def __init__(self) -> None:
        self.wanted = 0
        self.turn = asyncio.Lock()
        self.over = asyncio.Event()


class Downloads:
    """Has models downloaded.

    Args:
        source: whom to ask, and where to put it.
        limit: how many at once.
        clock: times them.
        tasks: where they run.
        environ: has the hub's token, unless a file does.
    """

    def __init__(
        self,
        source: WeightSource,
        limit: int,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        # A copy: what is told to no engine is taken out of the daemon's own.
        self._environ = dict(environ or {})
        self._clock = clock
        self._tasks = tasks
        self._slots = asyncio.Semaphore(limit)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._under_way: dict[tuple[str, str], Download] = {}
        self._removals: dict[str, _Removal] = {}
        self._is_closed = False
        self.on_news: Callable[[WeightsNews], None] = _ignore
        """Told of everything that happens."""
        self.make_room: RoomMaker = _assume_room
        """Asked when it is known how large a download is."""

    @classmethod
    def from_settings(
        cls,
        settings: VllmSettings,
        environ: Mapping[str, str],
        clock: Clock,
        tasks: asyncio.TaskGroup,
    ) -> Self:
        """Return the downloads of `[harness.vllm]`."""
        source = WeightSource.from_settings(settings, environ)
        return cls(source, settings.max_downloads, clock, tasks, environ)

    @property
    def under_way(self) -> tuple[Download, ...]:
        """Those that have not ended, in the order in which they came."""
        return tuple(self._under_way.values())

    async def fetch(self, model: str, revision: str, on_progress: ProgressCallback) -> pathlib.Path:
        """Return the folder of a model, which is downloaded if it is not here.

        Whoever is cancelled leaves; the download ends when nobody is left who wants it.

        Args:
            model: a hub id, or an absolute path, which cannot be downloaded.
            revision: branch, tag or commit.
            on_progress: told how far it is; not called when there is nothing to do.

        Raises:
            RequestError: it is not here and cannot be downloaded.
        """
        await self._until_removed(model)
        folder = await asyncio.to_thread(self.source.find, model, revision)
        if folder is not None:
            return folder
        self.check(model, revision)
        download = self._join(model, revision)
        download.waiting += 1
        try:
            while not download.done.done():
                changed, news = download.changed, download.news
                if news.total_bytes is not None:
                    on_progress(STAGE, news.done_bytes, news.total_bytes)
                await changed.wait()
            return await download.done
        finally:
            download.waiting -= 1
            if not download.waiting and not download.is_kept:
                self._cancel(download)

    def pull(self, model: str, revision: str) -> Download:
        """Begin to download a model, or join; it goes on whether or not somebody waits.

        Raises:
            RequestError: it cannot be downloaded.
        """
        self.check(model, revision)
        download = self._join(model, revision)
        download.is_kept = True
        return download

    def check(self, model: str, revision: str) -> None:
        """Check that a model may be downloaded, as far as that is known without the hub.

        Raises:
            InvalidRequestError: there can be no such model or revision.
            NotFoundError: it is not here, and the hub must not be asked.
            DrainingError: nothing is begun any more.
        """
        if model.startswith("/"):
            raise NotFoundError(f"there are no weights under {model!r} on this node")
        check_hub_id(model)
        check_revision(revision)
        if self.source.is_offline:
            raise NotFoundError(
                f"there are no weights for {model!r} in this node's hub cache, and it is offline "
                "(harness.vllm.offline or HF_HUB_OFFLINE)"
            )
        if self._is_closed:
            raise DrainingError("this neuron is shutting down")

    async def cancel(self, model: str) -> bool:
        """End the downloads of a model; return whether there was one, when its process is gone."""
        found = [download for download in self.under_way if download.model == model]
        for download in found:
            self._cancel(download)
        await _ended(found)
        return bool(found)

    @contextlib.asynccontextmanager
    async def removing(self, model: str) -> AsyncIterator[None]:
        """End the downloads of a model, and let none begin and no load find it meanwhile.

        Of several who remove the same one, each waits for its turn.

        Nothing is waited for before others are kept off, so that what was true when it was
        called is true still.
        """
        removal = self._removals.setdefault(model, _Removal())
        removal.wanted += 1
        try:
            await self.cancel(model)
            async with removal.turn:
                yield
        finally:
            removal.wanted -= 1
            if not removal.wanted:
                del self._removals[model]
                removal.over.set()

    async def _until_removed(self, model: str) -> None:
        while model in self._removals:
            await self._removals[model].over.wait()

    def start_closing(self) -> None:
        """Begin to end all downloads, and begin none any more."""
        self._is_closed = True
        for download in self.under_way:
            download.cancelled = DrainingError("this neuron is shutting down")
            self._cancel(download)

    async def close(self) -> None:
        """End all downloads; no process is left."""
        found = list(self.under_way)
        self.start_closing()
        await _ended(found)

    def _join(self, model: str, revision: str) -> Download:
        key = (model, revision)
        known = self._under_way.get(key)
        # One that was cancelled a moment ago still runs until its process is gone.
        if known is not None and not known.done.done():
            return known
        download = Download(model, revision)
        self._under_way[key] = download
        download.task = self._tasks.create_task(
            self._run(download), name=f"download {model} {revision}"
        )
        download.task.add_done_callback(lambda _: self._forget(download))
        self._tell(download)
        return download

    def _forget(self, download: Download) -> None:
        # Not where it runs: one that is cancelled at once never does.
        if self._under_way.get((download.model, download.revision)) is download:
            del self._under_way[(download.model, download.revision)]

    def _cancel(self, download: Download) -> None:
        if download.task is not None and not download.done.done():
            self._end(download, download.cancelled, "cancelled")
            download.task.cancel()

    async def _run(self, download: Download) -> None:
        try:
            await self._until_removed(download.model)
            async with self._locks[download.model], self._slots:
                folder = await self._download(download)
        except RequestError as error:
            self._end(download, error, "failed")
        except asyncio.CancelledError:
            self._end(download, download.cancelled, "cancelled")
            raise
        except Exception:
            logger.exception("download failed", extra={"model": download.model})
            self._end(download, InternalError(), "failed")
        else:
            if not download.done.done():
                download.done.set_result(folder)
                logger.info("model downloaded", extra={"model": download.model})
                self._tell(download, status="ready", eta_s=None, bytes_per_s=None)

    async def _download(self, download: Download) -> pathlib.Path:
        """Have it done, and return the model's folder."""
        meter = Meter()
        async with Fetching(
            self.source, download.model, download.revision, self._environ
        ) as fetching:
            async for line in fetching.lines():
                if isinstance(line, Ended):
                    return pathlib.Path(line.folder)
                if isinstance(line, Failed):
                    raise error_of(line, download.model, download.missing_bytes)
                total_bytes = download.news.total_bytes
                if isinstance(line, Planned):
                    total_bytes = line.total_bytes
                    await self.make_room(download.model, max(0, total_bytes - line.done_bytes))
                    await fetching.go()
                meter = meter.with_sample(self._clock.now(), line.done_bytes)
                self._progressed(download, meter, line.done_bytes, total_bytes)
        raise ModelLoadFailedError(
            f"{download.model!r} cannot be downloaded: the process that does it ended with status "
            f"{fetching.status}"
        )

    def _progressed(
        self, download: Download, meter: Meter, done_bytes: int, total_bytes: int | None
    ) -> None:
        if download.done.done():
            return
        rate = meter.bytes_per_s
        left = None if total_bytes is None else max(0, total_bytes - done_bytes)
        self._tell(
            download,
            status="downloading",
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            bytes_per_s=None if rate is None else round(rate),
            eta_s=None if not rate or left is None else round(left / rate, 1),
        )

    def _end(self, download: Download, error: RequestError, status: str) -> None:
        if download.done.done():
            return
        download.done.set_exception(error)
        logger.warning(
            "model not downloaded",
            extra={"model": download.model, "outcome": status, "reason": error.message},
        )
        self._tell(download, status=status, error=error.message, eta_s=None, bytes_per_s=None)

    def _tell(self, download: Download, **changes: object) -> None:
        download.tell(msgspec.structs.replace(download.news, **changes))
        self.on_news(download.news)


async def _ended(downloads: list[Download]) -> None:
    tasks = [download.task for download in downloads if download.task is not None]
    if tasks:
        await asyncio.wait(tasks)


def _retrieve(future: asyncio.Future[pathlib.Path]) -> None:
    # Nobody has to wait; an error must not be reported as forgotten then.
    if not future.cancelled():
        future.exception()


def _ignore(news: WeightsNews) -> None:
    """Tell nobody."""


async def _assume_room(model: str, needed_bytes: int) -> None:
    """Leave it to the disk."""
