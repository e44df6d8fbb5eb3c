"""What is wrong with a machine for a neuron, and how to mend it; pure."""

from collections.abc import Iterator

import msgspec

MIN_CACHE_MIB = 10 << 10
"""Less free disk than this has no room for a small model's weights."""

MIN_OPEN_FILES = 4096
"""Each caller, each engine and each file of weights takes one or more."""

MIN_SHARED_MIB = 1 << 10
"""The processes of an engine on several devices talk over shared memory; containers have 64 MiB
where nobody says otherwise (docker-run(1), `--shm-size`)."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a machine."""

    user: str
    """Whom the neuron would run as."""
    has_vllm: bool
    """Whether its settings name the engine that needs weights on disk and shared memory."""
    devices_reason: str | None
    """Why some or all devices cannot be used; `None` when all can, or are declared."""
    closed_device_files: tuple[str, ...]
    """Those of the driver that the user may not both read and write."""
    cache: str
    """Folder of the hub cache."""
    is_cache_writable: bool
    """Whether the user may write there, or create it."""
    cache_free_mib: int | None
    """Free space of its file system; `None` when that cannot be told."""
    open_files: int
    """Limit of open files in force."""
    shared_mib: int | None
    """Size of `/dev/shm`; `None` when it is not there."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    problem: str
    """What it is, as a sentence without its full stop."""
    fix: str
    """What to do, likewise."""


def find_problems(facts: HostFacts) -> tuple[Finding, ...]:
    """Return all that is wrong, devices first; empty when nothing is."""
    of_engine = (*_of_cache(facts), *_of_shared(facts)) if facts.has_vllm else ()
    return (*_of_devices(facts), *_of_open_files(facts), *of_engine)


def _of_devices(facts: HostFacts) -> Iterator[Finding]:
    if facts.devices_reason is not None:
        yield Finding(
            problem=f"devices cannot be used: {facts.devices_reason}",
            fix="have `nvidia-smi` list them as this user; "
            "a machine without any declares what it has in `[[devices]]`",
        )
    if facts.closed_device_files:
        yield Finding(
            problem=f"{facts.user} may not use {', '.join(facts.closed_device_files)}",
            fix="add the user to the group that owns them (`ls -l /dev/nvidia*`), "
            "or let the container have them",
        )


def _of_cache(facts: HostFacts) -> Iterator[Finding]:
    if not facts.is_cache_writable:
        yield Finding(
            problem=f"{facts.user} may not write to the hub cache {facts.cache}",
            fix="change its owner, or set `hf_cache` in `[harness.vllm]` to a folder of the user's",
        )
    if facts.cache_free_mib is not None and facts.cache_free_mib < MIN_CACHE_MIB:
        yield Finding(
            problem=f"the disk of the hub cache {facts.cache} has {facts.cache_free_mib} MiB left",
            fix=f"free {MIN_CACHE_MIB} MiB or more, "
            "or set `hf_cache` in `[harness.vllm]` to a folder on a larger disk",
        )


def _of_open_files(facts: HostFacts) -> Iterator[Finding]:
    if facts.open_files < MIN_OPEN_FILES:
        yield Finding(
            problem=f"only {facts.open_files} files may be open at once",
            fix="`ulimit -n 65536` in a shell, `LimitNOFILE=65536` in a unit",
        )


def _of_shared(facts: HostFacts) -> Iterator[Finding]:
    if facts.shared_mib is None or facts.shared_mib < MIN_SHARED_MIB:
        has = "is not there" if facts.shared_mib is None else f"has {facts.shared_mib} MiB"
        yield Finding(
            problem=f"the shared memory /dev/shm {has}",
            fix="`--shm-size=8g` for a container, `mount -o remount,size=8g /dev/shm` on a machine",
        )
