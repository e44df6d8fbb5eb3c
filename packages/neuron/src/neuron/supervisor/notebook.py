"""The notes on the disk: read once, written whole after every change, away from the loop."""

import asyncio
import contextlib
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping

import msgspec

from cortex_core.harness import ModelSpec
from neuron.lifecycle.notes import Experience, Notes, fingerprint
from neuron.metrics import NeuronMetrics

logger = logging.getLogger(__name__)


def notes_path(setting: str | None, environ: Mapping[str, str]) -> pathlib.Path | None:
    """Return where notes are kept: the setting, else systemd's folder, else nowhere.

    Source: `STATE_DIRECTORY` of systemd.exec(5), a list with colons when there are several.
    """
    if setting is not None:
        return pathlib.Path(setting)
    folder = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return pathlib.Path(folder, "state.json") if folder else None


class Notebook:
    """The one owner of the notes.

    Args:
        path: the file; `None` keeps them in memory.
        metrics: counts writes that failed.
    """

    def __init__(self, path: pathlib.Path | None, metrics: NeuronMetrics) -> None:
        self._path = path
        self._metrics = metrics
        self._writing = asyncio.Lock()
        self._written = Notes()
        self._dirty = asyncio.Event()
        self.notes = Notes()

    @property
    def is_kept(self) -> bool:
        """Whether the notes outlive the process."""
        return self._path is not None

    async def read(self) -> None:
        """Take over what the file says; one that cannot be read is set aside."""
        if self._path is None:
            return
        self.notes = self._written = await asyncio.to_thread(_read, self._path)

    def change(self, notes: Notes) -> None:
        """Replace the notes; `run` or `flush` writes them."""
        self.notes = notes
        self._dirty.set()

    def learn(
        self,
        spec: ModelSpec,
        *,
        vram_bytes: int | None = None,
        load_s: float | None = None,
        wake_s: float | None = None,
    ) -> None:
        """Note what a load or a wake of `spec` came to."""
        latest = Experience(
            model=spec.model,
            fingerprint=fingerprint(spec),
            vram_bytes=vram_bytes,
            load_s=load_s,
            wake_s=wake_s,
        )
        self.change(self.notes.with_experience(latest))

    async def run(self) -> None:
        """Write after every change until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.flush()

    async def flush(self) -> None:
        """Return when the notes of now are on the disk, or could not be written there."""
        path = self._path
        if path is None:
            return
        async with self._writing:
            notes = self.notes
            if notes == self._written:
                return
            try:
                await asyncio.to_thread(_write, path, msgspec.json.encode(notes))
            except OSError as error:
                self._metrics.state_write_failures.inc()
                logger.error("notes not written", extra={"path": str(path), "reason": str(error)})
            else:
                self._written = notes


def _read(path: pathlib.Path) -> Notes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Notes()
    except OSError as error:
        logger.error("notes not read", extra={"path": str(path), "reason": str(error)})
        return Notes()
    try:
        return msgspec.json.decode(raw, type=Notes)
    except msgspec.DecodeError as error:
        # Kept for whoever wants to see what became of it; the next write must not destroy it.
        aside = path.with_name(f"{path.name}.broken")
        with contextlib.suppress(OSError):
            path.replace(aside)
        logger.error("notes set aside", extra={"path": str(aside), "reason": str(error)})
        return Notes()


def _write(path: pathlib.Path, data: bytes) -> None:
    """Replace a file whole: whoever reads it sees the old or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(name).replace(path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
