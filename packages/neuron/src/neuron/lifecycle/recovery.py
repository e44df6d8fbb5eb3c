"""Whether, and when, an engine that failed is brought back, and what kind of failure it was."""

import enum
import re
from collections.abc import Mapping
from typing import Self

import msgspec

from cortex_core.errors import (
    InsufficientVramError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from neuron.lifecycle.notes import GivenUp, fingerprint

FIRST_DELAY_S = 1.0
"""Time before the first attempt; it doubles with every failure (reliability S9)."""

LONGEST_DELAY_S = 60.0


class FailureKind(enum.StrEnum):
    """What kind of failure it was, by its name on the wire."""

    OUT_OF_MEMORY = "out_of_memory"
    """Of a device or of the host."""
    MISSING_FILE = "missing_file"
    BAD_OPTION = "bad_option"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    CUDA = "cuda"
    NETWORK = "network"
    DIED = "died"
    """An engine's process ended, and nobody knows why."""
    HUNG = "hung"
    """Requests ran and the engine made no step."""
    WRONG_ANSWER = "wrong_answer"
    """It did not answer the neuron's own question as it should."""
    UNKNOWN = "unknown"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When bringing back is given up."""

    most: int
    """Failures within `window_s` with which a model is given up; 1 never brings it back."""
    window_s: float


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A model will be brought back."""

    number: int
    """Failures within the window, this one included; 1 or more."""
    delay_s: float
    """From the failure on."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """Whose failures are counted together: those of one model with one set of options."""

    model: ModelId
    fingerprint: str

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        """Return the key of a load like `spec`."""
        return cls(model=spec.model, fingerprint=fingerprint(spec))


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """When engines failed, by model and options."""

    times: Mapping[Key, tuple[float, ...]] = msgspec.field(default_factory=dict)
    """Monotonic seconds in order, all within one window, n >= 1 for every key."""

    def with_failure(self, key: Key, now: float, limits: Limits) -> Self:
        """Return the record with a failure of now, and without what is long over."""
        times = {
            known: past for known, past in self.times.items() if now - past[-1] < limits.window_s
        }
        recent = tuple(at for at in times.get(key, ()) if now - at < limits.window_s)
        times[key] = (*recent, now)[-limits.most :]
        return msgspec.structs.replace(self, times=times)

    def without(self, key: Key) -> Self:
        """Return the record of a model that starts afresh."""
        times = {known: past for known, past in self.times.items() if known != key}
        return msgspec.structs.replace(self, times=times)

    def next_attempt(self, key: Key, limits: Limits) -> Attempt | None:
        """Return when a model that has just failed is tried next; `None` is never."""
        number = len(self.times.get(key, ()))
        if number >= limits.most:
            return None
        return Attempt(number=number, delay_s=_delay_s(number))


def quarantine_s(given_up: GivenUp, now_epoch: float, limits: Limits) -> float:
    """Return for how long a model may not be loaded unless by hand; 0 when it may.

    A model that was given up is left alone for as long as failures are remembered. A clock that
    was set back by more ends that.
    """
    left_s = given_up.at + limits.window_s - now_epoch
    return left_s if 0.0 < left_s <= limits.window_s else 0.0


def _delay_s(number: int) -> float:
    # The exponent is bounded, because a float is not.
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(max(0, number - 1), 30))


def kind_of_error(error: RequestError) -> FailureKind:
    """Return the kind of a load that failed."""
    match error:
        case InsufficientVramError():
            return FailureKind.OUT_OF_MEMORY
        case NotFoundError():
            return FailureKind.MISSING_FILE
        case InvalidRequestError():
            found = kind_of_text(error.message)
            is_named = found is FailureKind.UNSUPPORTED_ARCHITECTURE
            return found if is_named else FailureKind.BAD_OPTION
        case _:
            return kind_of_text(error.message)


def kind_of_text(reason: str) -> FailureKind:
    """Return the kind of a failure from its short reason; the first that it speaks of."""
    for pattern, kind in _WORDS:
        if pattern.search(reason):
            return kind
    return FailureKind.UNKNOWN


_WORDS = (
    (re.compile(r"does not answer|is broken:|answers? wrongly", re.I), FailureKind.WRONG_ANSWER),
    (
        re.compile(r"out of memory|MemoryError|allocate memory|bad_alloc", re.I),
        FailureKind.OUT_OF_MEMORY,
    ),
    # oneDNN's word for it, on CPUs.
    (
        re.compile(r"not enough memory|could not create a memory object", re.I),
        FailureKind.OUT_OF_MEMORY,
    ),
    (re.compile(r"device memory|memory for the cache", re.I), FailureKind.OUT_OF_MEMORY),
    (re.compile(r"\bCUDA\b|\bcuBLAS|\bcuDNN|\bNCCL|\bXid\b|NVML", re.I), FailureKind.CUDA),
    (
        re.compile(r"architectures?\b|model type .* not recogni[sz]e", re.I),
        FailureKind.UNSUPPORTED_ARCHITECTURE,
    ),
    (
        re.compile(r"hub cannot be asked|connection|timed? ?out|resolve host|network", re.I),
        FailureKind.NETWORK,
    ),
    (
        re.compile(r"no such file|no weights|not found|deserializ|safetensors", re.I),
        FailureKind.MISSING_FILE,
    ),
    (re.compile(r"no step for", re.I), FailureKind.HUNG),
    (
        re.compile(r"process (?:was|ended)|engine (?:died|is dead|stopped)|was killed", re.I),
        FailureKind.DIED,
    ),
)
"""What reasons say, most telling first: of a process that ended because memory was short, the
memory is the reason."""
