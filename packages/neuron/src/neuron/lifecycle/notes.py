"""What a neuron knows over its restarts: what operators marked, and what loads came to."""

import hashlib
from collections.abc import Mapping
from typing import Self, TypeVar

import msgspec

from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId

T = TypeVar("T")

MAX_EXPERIENCES = 1000
"""Of models and their options; enough for every one that a machine may ever serve."""


MAX_FRESH_STARTS = 100
"""Far more than may happen in an hour."""


class Experience(msgspec.Struct, frozen=True, kw_only=True):
    """What a model came to here, loaded with one set of options; `None` is not known."""

    model: ModelId
    fingerprint: str
    """Of its options; see `fingerprint`."""
    vram_bytes: int | None = None
    """Over all its devices."""
    load_s: float | None = None
    wake_s: float | None = None


MAX_GIVEN_UP = 100
"""Models that were given up lately; more than a machine can load in the time that it counts."""


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """A model that failed too often with one set of options."""

    model: ModelId
    fingerprint: str
    """Of its options; see `fingerprint`."""
    at: float
    """Epoch seconds of its last failure."""
    reason: str


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """All that is kept. On the disk as JSON; fields of other versions are read over."""

    pinned: tuple[ModelId, ...] = ()
    """Models that operators want to stay here, loaded or not."""
    is_cordoned: bool = False
    """Operators want nothing new loaded here."""
    experiences: tuple[Experience, ...] = ()
    """The latest last."""
    loaded: tuple[ModelSpec, ...] = ()
    """What was loaded lately, as it was asked for; see `lifecycle.restoring.residents`."""

    given_up: tuple[GivenUp, ...] = ()
    """What programs do not load for a while; the latest last."""
    fresh_starts: tuple[float, ...] = ()
    """Epoch seconds at which the daemon ended by itself to be started anew; the latest last."""

    def with_pin(self, model: ModelId, is_pinned: bool) -> Self:
        """Return the notes with a pin, or without it."""
        rest = tuple(name for name in self.pinned if name != model)
        return msgspec.structs.replace(self, pinned=(*rest, model) if is_pinned else rest)

    def with_cordon(self, is_cordoned: bool) -> Self:
        """Return the notes with the cordon, or without it."""
        return msgspec.structs.replace(self, is_cordoned=is_cordoned)

    def with_loaded(self, specs: tuple[ModelSpec, ...]) -> Self:
        """Return the notes with what is loaded; the same notes when it is the same in any order."""
        if {spec.model: spec for spec in specs} == {spec.model: spec for spec in self.loaded}:
            return self
        return msgspec.structs.replace(self, loaded=specs)

    def with_given_up(self, spec: ModelSpec, reason: str, now_epoch: float) -> Self:
        """Return the notes with a model that was given up just now."""
        latest = GivenUp(
            model=spec.model, fingerprint=fingerprint(spec), at=now_epoch, reason=reason
        )
        kept = (*self.without_given_up(spec).given_up, latest)[-MAX_GIVEN_UP:]
        return msgspec.structs.replace(self, given_up=kept)

    def without_given_up(self, spec: ModelSpec) -> Self:
        """Return the notes with a model that starts afresh; the same notes when it does anyway."""
        found = self.find_given_up(spec)
        if found is None:
            return self
        rest = tuple(entry for entry in self.given_up if entry is not found)
        return msgspec.structs.replace(self, given_up=rest)

    def find_given_up(self, spec: ModelSpec) -> GivenUp | None:
        """Return when and why a load like `spec` was given up; `None` when it was not."""
        options = fingerprint(spec)
        for entry in self.given_up:
            if (entry.model, entry.fingerprint) == (spec.model, options):
                return entry
        return None

    def with_fresh_start(self, now_epoch: float) -> Self:
        """Return the notes with one more time that the daemon ended to be started anew."""
        kept = (*self.fresh_starts, now_epoch)[-MAX_FRESH_STARTS:]
        return msgspec.structs.replace(self, fresh_starts=kept)

    def with_experience(self, latest: Experience) -> Self:
        """Return the notes with what `latest` knows in place of what was known before."""
        known = self._find(latest.model, latest.fingerprint)
        if known is not None:
            latest = Experience(
                model=latest.model,
                fingerprint=latest.fingerprint,
                vram_bytes=_or(latest.vram_bytes, known.vram_bytes),
                load_s=_or(latest.load_s, known.load_s),
                wake_s=_or(latest.wake_s, known.wake_s),
            )
        rest = tuple(entry for entry in self.experiences if entry is not known)
        kept = (*rest, latest)[-MAX_EXPERIENCES:]
        return msgspec.structs.replace(self, experiences=kept)

    def vram_bytes(self, spec: ModelSpec) -> int | None:
        """Return what a load like `spec` held, or `None` when that was never measured."""
        known = self._find(spec.model, fingerprint(spec))
        return None if known is None else known.vram_bytes

    def latest(self) -> Mapping[ModelId, Experience]:
        """Return the latest experience with each model."""
        return {entry.model: entry for entry in self.experiences}

    def _find(self, model: ModelId, options: str) -> Experience | None:
        for entry in self.experiences:
            if (entry.model, entry.fingerprint) == (model, options):
                return entry
        return None


def fingerprint(spec: ModelSpec) -> str:
    """Return what tells apart loads of one model that may differ in time and memory.

    Which devices they are does not matter, only how many, nor does the estimate of the memory.
    """
    # They count where there are some, so that what older neurons noted is found again.
    more = (spec.pipeline_parallel or 1, spec.nodes)
    stages = () if more == (1, 1) else more
    parallel = spec.tensor_parallel_on(len(spec.devices))
    options = msgspec.json.encode(
        (spec.harness, spec.quant, parallel, dict(spec.engine), *stages), order="sorted"
    )
    return hashlib.sha256(options).hexdigest()[:16]


def _or(new: T | None, old: T | None) -> T | None:
    return old if new is None else new
