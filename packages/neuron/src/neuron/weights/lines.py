"""What the daemon and the process that downloads a model say to each other, as lines of JSON."""

import enum

import msgspec


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be downloaded; the first line to the process."""

    model: str
    revision: str
    cache: str
    token: str | None = None
    is_pickle: bool = False
    is_code: bool = False


class Planned(msgspec.Struct, frozen=True, kw_only=True, tag="planned"):
    """What there is to do. The process then waits for a line, whatever it says."""

    done_bytes: int
    """What is here already, whole files and parts of them."""
    total_bytes: int


class Progressed(msgspec.Struct, frozen=True, kw_only=True, tag="progressed"):
    """How far it is; at most a few times in a second."""

    done_bytes: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """Everything is there; the last line."""

    folder: str


class Problem(enum.StrEnum):
    """Why a download does not work."""

    REFUSED = "refused"
    """Nothing is wrong with hub and disk: there is no such model, or not in a safe form."""
    NOT_FOUND = "not_found"
    UNREACHABLE = "unreachable"
    """It may work later."""
    CHECKSUM = "checksum"
    """What came is not what the hub promised."""
    DISK_FULL = "disk_full"
    OTHER = "other"


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It does not work; the last line."""

    problem: Problem
    message: str


Line = Planned | Progressed | Ended | Failed
