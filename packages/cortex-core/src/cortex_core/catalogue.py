"""The catalogue: which models the fleet may serve, and how each is to be loaded."""

import pathlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

import msgspec
from msgspec import Meta

from cortex_core.config import load_toml, to_settings
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId, NodeName
from cortex_core.units import bytes_from_mib

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}")
_PATH = re.compile(r"/[!-~]{1,999}")

Mib = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class Replicas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`replicas = {min, max}` of a model: how many copies the fleet has of it."""

    min: Annotated[int, Meta(ge=0)] = 0
    """Copies that are kept loaded whether or not anybody asks."""
    max: Count = 1
    """Copies at most, when many ask."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[models]]` entry."""

    id: ModelId
    """Hub id or path, as the engine takes it."""
    harness: str
    """Which harness loads it: `vllm` or `simulated`."""
    quant: str | None = None
    """Quantisation to load it with; none takes what the weights say."""
    vram_mb: Mib | None = None
    """Estimate of the device memory over all its devices, in MiB."""
    min_devices: Count = 1
    """Devices that it needs together; its tensor-parallel size, unless it has stages."""
    pipeline_parallel: Count = 1
    """Stages that its layers are split into, each on an equal part of `min_devices`."""
    nodes: tuple[NodeName, ...] = ()
    """Nodes that hold a copy of it together, each an equal part of `min_devices`; the first is its
    head. None puts a copy on one node."""
    min_device_vram_mb: Mib = 0
    """Memory that each of these devices must have in all, in MiB."""
    pinned_on: tuple[NodeName, ...] = ()
    """Nodes on which alone it may live, and from which it is never evicted."""
    residency_priority: int | None = None
    """Who stays when memory is short: a model is never evicted for one of lower priority. None is
    100, or 1000 for a model that is pinned."""
    idle_unload_s: Annotated[float, Meta(gt=0)] | None = None
    """Seconds without a request after which it is unloaded; none takes the gateway's."""
    replicas: Replicas = Replicas()
    """How many copies of it the fleet has, each on a node of its own."""
    max_in_flight: Count | None = None
    """Requests that a copy of it is given at once; none takes what its neuron says, else the
    gateway's."""
    max_queue: Annotated[int, Meta(ge=0)] | None = None
    """Requests that wait at its neuron for one of those places; none takes the neuron's."""
    max_wait_s: Annotated[float, Meta(gt=0)] | None = None
    """How long one waits there before it is refused, in seconds; none takes the neuron's."""
    max_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Part of the places and of the queue there that one caller has; none takes the neuron's."""
    base: ModelId | None = None
    """Model of this catalogue on whose engine it lives; only a LoRA adapter has one."""
    adapter: str | None = None
    """Where the adapter is: a hub id, or the absolute path of a folder; none is `id`."""
    engine: Mapping[str, object] = msgspec.field(default_factory=dict)
    """Options passed to the engine under their own names."""

    @property
    def adapter_places(self) -> int:
        """How many adapters its engine keeps at once; 0 where it takes none.

        Source: vLLM 0.32, `LoRAConfig`, where `max_cpu_loras` is `max_loras` unless it is given.
        """
        if self.engine.get("enable_lora") is not True:
            return 0
        places = self.engine.get("max_cpu_loras", self.engine.get("max_loras", 1))
        return places if isinstance(places, int) else 1

    @property
    def vram_bytes(self) -> int | None:
        """Estimate over all its devices, in bytes; `None` when the catalogue has none."""
        return None if self.vram_mb is None else bytes_from_mib(self.vram_mb)

    @property
    def context(self) -> int | None:
        """Context in tokens as far as the engine options state it (`max_model_len`)."""
        context = self.engine.get("max_model_len")
        return context if isinstance(context, int) else None


class CatalogueFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`models.toml` as it is written."""

    models: tuple[Profile, ...] = ()
    """The profiles; ids are unique."""
    aliases: Mapping[str, ModelId] = msgspec.field(default_factory=dict)
    """Further names, each for one model; a target need not be in the catalogue."""


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All profiles and aliases."""

    profiles: Mapping[ModelId, Profile] = msgspec.field(default_factory=dict)
    aliases: Mapping[str, ModelId] = msgspec.field(default_factory=dict)

    @cached_property
    def kept(self) -> tuple[Profile, ...]:
        """Those of which copies are kept loaded whether or not anybody asks."""
        return tuple(profile for profile in self.profiles.values() if profile.replicas.min)

    @cached_property
    def least_idle_s(self) -> float | None:
        """The shortest `idle_unload_s` of a profile; `None` when no profile has one."""
        own = (profile.idle_unload_s for profile in self.profiles.values())
        return min((idle_s for idle_s in own if idle_s is not None), default=None)

    @classmethod
    def from_file(cls, file: CatalogueFile, source: str) -> "Catalogue":
        """Check what single fields cannot say.

        Raises:
            SettingsError: an id is malformed or there twice, or an alias cannot work.
        """
        _check(file, source)
        profiles = {profile.id: profile for profile in file.models}
        _check_adapters(file, profiles, source)
        for profile in file.models:
            if profile.base is not None:
                profiles[profile.id] = _completed(profile, profiles[profile.base])
        return cls(profiles=profiles, aliases=file.aliases)

    def host(self, profile: Profile) -> Profile:
        """Return the profile of the engine that a model needs: its own, or that of its base.

        The base is where the adapter may be.
        """
        if profile.base is None:
            return profile
        base = self.profiles[profile.base]
        return msgspec.structs.replace(base, pinned_on=profile.pinned_on or base.pinned_on)


def load_catalogue(path: pathlib.Path, environ: Mapping[str, str] | None = None) -> Catalogue:
    """Read `models.toml`.

    Args:
        path: the file.
        environ: taken for symmetry with the other loaders; the catalogue has no overlay.

    Raises:
        SettingsError: with file, TOML path, what is wrong and what would be right.
    """
    return Catalogue.from_file(to_settings(load_toml(path), CatalogueFile, str(path)), str(path))


def _completed(adapter: Profile, base: Profile) -> Profile:
    """Return an adapter with what it takes from its base, in whose memory it is."""
    idle_s = base.idle_unload_s if adapter.idle_unload_s is None else adapter.idle_unload_s
    return msgspec.structs.replace(adapter, vram_mb=0, idle_unload_s=idle_s)


_OF_THE_BASE = (
    ("quant", None),
    ("vram_mb", None),
    ("min_devices", 1),
    ("pipeline_parallel", 1),
    ("nodes", ()),
    ("min_device_vram_mb", 0),
)
"""What an adapter does not say, and what it is then."""


def _check_adapters(
    catalogue: CatalogueFile, profiles: Mapping[ModelId, Profile], source: str
) -> None:
    for position, profile in enumerate(catalogue.models):
        where = f"{source}: models[{position}]"
        if profile.base is not None:
            _check_adapter(profile, profiles.get(profile.base), where)
        elif profile.adapter is not None:
            raise SettingsError(f"{where}.adapter: name the `base` of {profile.id!r}")


def _check_adapter(profile: Profile, base: Profile | None, where: str) -> None:
    if base is None or base.base is not None or base.nodes:
        raise SettingsError(
            f"{where}.base: {profile.base!r} is no base for {profile.id!r}; name another model "
            "of this file that is no adapter and has no `nodes`"
        )
    said = [name for name, unsaid in _OF_THE_BASE if getattr(profile, name) != unsaid]
    said += [f"engine.{name}" for name in profile.engine if name != "revision"]
    if said:
        raise SettingsError(
            f"{where}.{said[0]}: the adapter {profile.id!r} takes it from {base.id!r}; leave it out"
        )
    if profile.harness != base.harness:
        raise SettingsError(
            f"{where}.harness: {base.id!r} has {base.harness!r}, so its adapter {profile.id!r} too"
        )
    if not base.adapter_places:
        raise SettingsError(
            f"{where}.base: {base.id!r} takes no adapters such as {profile.id!r}; give it "
            "enable_lora = true under its `engine`"
        )
    if base.pinned_on and not set(profile.pinned_on) <= set(base.pinned_on):
        raise SettingsError(
            f"{where}.pinned_on: {base.id!r} is on {', '.join(base.pinned_on)} alone"
        )


def _check_nodes(profile: Profile, where: str) -> None:
    nodes = profile.nodes
    if not nodes:
        return
    if len(set(nodes)) != len(nodes) or len(nodes) < 2:
        raise SettingsError(f"{where}.nodes: name two or more nodes, each once")
    if profile.min_devices % len(nodes):
        raise SettingsError(
            f"{where}.nodes: {profile.min_devices} devices cannot be shared evenly by "
            f"{len(nodes)} nodes; make min_devices a multiple of it"
        )
    if profile.pinned_on and profile.pinned_on != nodes[:1]:
        raise SettingsError(f"{where}.pinned_on: a model with `nodes` is on its head, {nodes[0]!r}")
    if profile.replicas.max > 1:
        raise SettingsError(f"{where}.replicas: a model with `nodes` has one copy")


def _check(catalogue: CatalogueFile, source: str) -> None:
    seen: set[str] = set()
    for position, profile in enumerate(catalogue.models):
        where = f"{source}: models[{position}]"
        if not _ID.fullmatch(profile.id) and not _PATH.fullmatch(profile.id):
            raise SettingsError(
                f"{where}.id: {profile.id!r} is no model id; use letters, digits and ._:@/+-"
            )
        if profile.replicas.min > profile.replicas.max:
            raise SettingsError(
                f"{where}.replicas: min {profile.replicas.min} is above max {profile.replicas.max}"
            )
        if profile.min_devices % profile.pipeline_parallel:
            raise SettingsError(
                f"{where}.pipeline_parallel: {profile.min_devices} devices cannot be shared evenly "
                f"by {profile.pipeline_parallel} stages; make min_devices a multiple of it"
            )
        _check_nodes(profile, where)
        if profile.id in seen:
            raise SettingsError(f"{where}.id: {profile.id!r} is there twice; ids are unique")
        seen.add(profile.id)
    for alias, target in catalogue.aliases.items():
        if alias in seen:
            raise SettingsError(
                f"{source}: aliases.{alias!r}: is also a model's id; choose another name"
            )
        if target in catalogue.aliases:
            raise SettingsError(
                f"{source}: aliases.{alias!r}: points at the alias {target!r}; name the model itself"
            )
