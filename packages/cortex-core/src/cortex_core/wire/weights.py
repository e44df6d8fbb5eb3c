"""The neuron's messages about weights on its disk.

Sizes are bytes here: files are told to the byte, so that nobody has to guess what was rounded.
"""

from typing import Literal

import msgspec

DownloadStatus = Literal["queued", "downloading", "ready", "failed", "cancelled", "removed"]


class WeightsNews(msgspec.Struct, frozen=True, kw_only=True):
    """How far a download is, or what became of it; data of a `weights` event."""

    id: str
    revision: str = "main"
    """Branch, tag or commit, as it was asked for."""
    status: DownloadStatus = "downloading"
    """`ready`, `failed`, `cancelled` and `removed` are the last word on a download or model."""
    done_bytes: int | None = None
    """What is on the disk, earlier attempts included."""
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    """Over the last seconds."""
    eta_s: float | None = None
    error: str | None = None


class WeightsEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the disk."""

    id: str
    revisions: tuple[str, ...] = ()
    """Branches, tags and commits that are there, whole or not."""
    size_bytes: int = 0
    files: int = 0
    last_used: float | None = None
    """Epoch seconds of the last load, unload or download."""
    complete: bool = True
    """Whether a load would need no download."""
    in_use: bool = False
    """It is loaded, asleep, or being loaded, or another model that is needs it."""
    pinned: bool = False
    """An operator wants the model to stay."""
    removable: bool = True
    """Whether it is in the hub cache; folders of `model_dirs` are only read."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The file system of the hub cache."""

    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    budget_bytes: int | None = None
    """What the hub cache may hold; `None` is no limit."""
    used_bytes: int = 0
    """What the hub cache holds."""


class WeightsList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /weights`."""

    models: tuple[WeightsEntry, ...] = ()
    downloads: tuple[WeightsNews, ...] = ()
    """Under way, or waiting for their turn."""
    disk: Disk | None = None


class PullRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /weights/pull`."""

    model_id: str
    revision: str = "main"
    """Branch, tag or commit."""


class PullCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a gateway's `POST /admin/nodes/{name}/weights/pull`."""

    model: str
    """A hub id, or an alias of the catalogue."""
    revision: str = "main"
    """Branch, tag or commit."""
    wait: bool = True
    """Answer when it is there, else as soon as it was asked for."""


WEIGHTS_EVENT = "weights"
"""Event name of a `WeightsNews`: replaces what was known of that model's download."""
