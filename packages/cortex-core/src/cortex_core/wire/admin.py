"""What operators ask a gateway to do, and what it answers: `/admin/*` beside the questions.

What is asked for is strict, unlike other messages: a misspelt `dry_run` must not do the thing.
"""

import enum
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex_core.ids import ModelId, NodeName


class Action(enum.StrEnum):
    """What may be done to a model; the last part of its path."""

    LOAD = "load"
    UNLOAD = "unload"
    SLEEP = "sleep"
    WAKE = "wake"
    PIN = "pin"
    UNPIN = "unpin"


class ModelCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/{id}/*`; each field may be in the query instead."""

    node: NodeName | None = None
    """Where; `None` is every node that has the model, and for a load the best one."""
    level: Literal[1, 2] = 1
    """For `sleep` alone: 1 keeps the weights in host memory, 2 drops them."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""
    wait: bool = True
    """For `load` alone: answer when it serves, else as soon as it was asked for."""


class NodeCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/nodes/{name}/*`; the field may be in the query instead."""

    dry_run: bool = False
    """Say what would be done, and do nothing."""


class NodeOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, or would be, to a model on one node."""

    node: NodeName | None = None
    """`None` while nobody can say where."""
    status: str
    """What the model is then: `loaded`, `loading`, `unloaded`, `sleeping`, `pinned`, `unpinned`;
    in a dry run of a load an `Outcome` of `explain`."""
    changed: bool = True
    """False when it was so before."""
    reason: str = ""
    """In words, where there is more to say."""
    victims: tuple[ModelId, ...] = ()
    """Models that would give way."""
    expected_s: float | None = None
    """Seconds that it would take; `None` when nobody can say."""


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /admin/models/{id}/*`, and data of the event `done`."""

    model: ModelId
    """Aliases resolved."""
    action: Action
    dry_run: bool = False
    nodes: tuple[NodeOutcome, ...] = ()
    """One for each node that was asked; empty when none has the model."""


class LoadNews(msgspec.Struct, frozen=True, kw_only=True):
    """Data of a `progress` event: how far a load is."""

    model: ModelId
    node: NodeName | None = None
    """`None` until it is known."""
    stage: str
    """As the neuron calls it, such as `weights`, or what is waited for."""
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None


class CordonAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /admin/nodes/{name}/cordon` and `uncordon`."""

    node: NodeName
    status: Literal["cordoned", "uncordoned"]
    changed: bool
    """False when it was so before."""
    dry_run: bool = False


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a model on a node that was drained, or would become of it."""

    model: ModelId
    outcome: Literal["unloaded", "moved", "stays"]
    to: NodeName | None = None
    """Where it is served instead, when it was moved."""
    reason: str
    victims: tuple[ModelId, ...] = ()
    """Models that give way to it there."""


class DrainAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /admin/nodes/{name}/drain`."""

    node: NodeName
    drained: bool
    """Whether no model stays; false as well where a pinned one does."""
    dry_run: bool = False
    models: tuple[Departure, ...] = ()
    """By id."""


class ConfigChange(msgspec.Struct, frozen=True, kw_only=True):
    """One difference that a reload has put in force."""

    path: str
    """As in the files, such as `eviction.strategy`, `neurons.beast` or `models.org/model`."""
    change: Literal["added", "removed", "changed"]


class ReloadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /admin/config/reload`."""

    changed: tuple[ConfigChange, ...] = ()
    """What is in force now; empty when the files say what was in force already."""
    needs_restart: tuple[str, ...] = ()
    """Paths whose new values take a restart; the old ones stay in force."""


class ConfigView(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /admin/config`."""

    file: str | None = None
    """The settings file."""
    loaded_at: Annotated[float, Meta(ge=0)]
    """Epoch seconds at which the files were read that are in force."""
    settings: Mapping[str, object]
    """As in `cortex.toml`, defaults and environment included; keys of upstreams are not in it."""
    models: int
    """Models in the catalogue."""
    aliases: int
    """Aliases in the catalogue."""
    needs_restart: tuple[str, ...] = ()
    """Paths that the files have other values for, since the latest reload."""


PROGRESS_EVENT = "progress"
"""Event name of a `LoadNews`."""

DONE_EVENT = "done"
"""Event name of the `ModelAnswer` that ends a stream."""

ERROR_EVENT = "error"
"""Event name of the error that ends a stream instead, as an error answer has it."""
