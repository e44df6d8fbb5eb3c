"""The folder of a daemon's engines: sockets, logs, temporary files; and those of dead daemons."""

import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable

import msgspec

from neuron.engines import processes

logger = logging.getLogger(__name__)

_PREFIX = "neuron-"
_OWNER = "owner.json"
_PROCESSES = "processes.json"

_Noted = tuple[processes.Process, ...]

# A killed process is gone in no time, unless a driver holds it.
_REAP_S = 5.0
_REAP_LOOK_S = 0.05

_MAX_TEMPORARY_CHARS = 107 - len("/neuron-12345678/e-12345678/") - 36
"""Longest temporary folder in which vLLM's sockets, named by a UUID, have a path that is short
enough for a socket (`sun_path`, unix(7))."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon that made a folder."""

    process: processes.Process
    namespace: str
    """In which its process id counts; containers may share a folder and not that."""


def runtime_parent() -> pathlib.Path:
    """Return where the folders are: the temporary folder, or a shorter one."""
    temporary = tempfile.gettempdir()
    return pathlib.Path(temporary if len(temporary) <= _MAX_TEMPORARY_CHARS else "/tmp")  # noqa: S108


def make_runtime_folder(parent: pathlib.Path) -> pathlib.Path:
    """Return a folder of this daemon's own under `parent`."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    (me,) = (found for found in processes.family([os.getpid()]) if found.pid == os.getpid())
    (folder / _OWNER).write_bytes(msgspec.json.encode(Owner(process=me, namespace=_namespace())))
    return folder


def record(scratch: pathlib.Path, members: Iterable[processes.Process]) -> None:
    """Note in an engine's folder which processes it has, for the daemon that finds them alone."""
    (scratch / _PROCESSES).write_bytes(msgspec.json.encode(tuple(members)))


def sweep(parent: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Remove the folders of daemons that were killed, and return which; others stay.

    Engine processes that outlived their daemon are ended before: those that are noted in the
    folder, told from others by when they began, and what descends from them.
    """
    swept = tuple(folder for folder in parent.glob(f"{_PREFIX}*") if _is_abandoned(folder))
    for folder in swept:
        _reap(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return swept


def _reap(folder: pathlib.Path) -> None:
    noted: set[processes.Process] = set()
    for path in folder.glob(f"*/{_PROCESSES}"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            noted.update(msgspec.json.decode(path.read_bytes(), type=_Noted))
    left = processes.alive(noted)
    if not left:
        return
    orphans = left | processes.family(process.pid for process in left)
    logger.warning("ending engine processes of a dead daemon", extra={"processes": len(orphans)})
    processes.kill(orphans)
    # Their device memory is theirs until they are gone.
    deadline = time.monotonic() + _REAP_S
    while processes.alive(orphans) and time.monotonic() < deadline:
        time.sleep(_REAP_LOOK_S)


def _is_abandoned(folder: pathlib.Path) -> bool:
    try:
        is_mine = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
        owner = msgspec.json.decode((folder / _OWNER).read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return False
    is_ours_to_judge = is_mine and owner.namespace == _namespace()
    return is_ours_to_judge and not processes.alive([owner.process])


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
