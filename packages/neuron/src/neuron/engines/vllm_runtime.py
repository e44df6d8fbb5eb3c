"""The folder of a daemon's engines: sockets, logs, temporary files; and those of dead daemons."""

import os
import pathlib
import shutil
import tempfile

import msgspec

from neuron.engines import processes

_PREFIX = "neuron-"
_OWNER = "owner.json"

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


def sweep(parent: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Remove the folders of daemons that were killed, and return which; others stay."""
    swept = tuple(folder for folder in parent.glob(f"{_PREFIX}*") if _is_abandoned(folder))
    for folder in swept:
        shutil.rmtree(folder, ignore_errors=True)
    return swept


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
