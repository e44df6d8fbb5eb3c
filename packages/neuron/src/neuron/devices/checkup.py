"""Looks at the machine for `neuron check`."""

import os
import pathlib
import pwd
import resource
import shutil

from neuron.lifecycle.checkup import HostFacts
from neuron.ports import DeviceFacts

_DEVICES = pathlib.Path("/dev")
_SHARED = pathlib.Path("/dev/shm")  # noqa: S108 - looked at, not written to


def look_at_host(
    facts: DeviceFacts,
    cache: pathlib.Path,
    *,
    has_vllm: bool,
    devices: pathlib.Path = _DEVICES,
    shared: pathlib.Path = _SHARED,
) -> HostFacts:
    """Return what this process sees of its machine; it changes nothing.

    Args:
        facts: what the driver says.
        cache: folder of the hub cache; it need not be there.
        has_vllm: whether the settings name that harness.
        devices: where the driver's files are.
        shared: where the shared memory is.
    """
    home = _nearest(cache)
    files = sorted(path for path in devices.glob("nvidia*") if not path.is_dir())
    return HostFacts(
        user=_user(),
        has_vllm=has_vllm,
        devices_reason=facts.unavailable_reason,
        closed_device_files=tuple(
            str(path) for path in files if not os.access(path, os.R_OK | os.W_OK)
        ),
        cache=str(cache),
        is_cache_writable=home.is_dir() and os.access(home, os.W_OK | os.X_OK),
        cache_free_mib=_disk_mib(home, "free"),
        open_files=_open_files(),
        shared_mib=_disk_mib(shared, "total"),
        has_fabric=(devices / "infiniband").is_dir(),
        locked_mib=_locked_mib(),
    )


def _nearest(folder: pathlib.Path) -> pathlib.Path:
    """Return `folder`, or what is there of the way to it."""
    # Not `Path.exists`, which fails where the user may not look.
    ways = (folder.absolute(), *folder.absolute().parents)
    return next(path for path in ways if os.path.exists(path))


def _disk_mib(folder: pathlib.Path, part: str) -> int | None:
    try:
        return int(getattr(shutil.disk_usage(folder), part)) >> 20
    except OSError:
        return None


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1 << 62) if soft == resource.RLIM_INFINITY else soft


def _locked_mib() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft >> 20


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        # A container may run as a user without a name.
        return f"user {os.geteuid()}"
