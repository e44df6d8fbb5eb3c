"""What the hub cache and the folders of models hold. Everything here blocks."""

import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import msgspec

from cortex_core.errors import ConflictError, InvalidRequestError
from neuron.weights.files import cache_home, check_hub_id, is_complete

_PREFIX = "models--"


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the disk."""

    id: str
    revisions: tuple[str, ...] = ()
    """Branches and tags that are known, and commits that have none, sorted."""
    size_bytes: int = 0
    files: int = 0
    last_used: float = 0.0
    """Epoch seconds of the last load, unload or download."""
    is_complete: bool = False
    is_cached: bool = True
    """Whether it is in the hub cache, and not in a folder that is only read."""


def list_cache(cache: pathlib.Path) -> tuple[Stock, ...]:
    """Return the models in the hub cache, whole or not, by id; empty when there is no cache."""
    found = (_cached(home) for home in cache.glob(f"{_PREFIX}*") if not home.is_symlink())
    return tuple(sorted((stock for stock in found if stock), key=lambda stock: stock.id))


def list_folders(parents: Iterable[pathlib.Path]) -> tuple[Stock, ...]:
    """Return the whole models in folders of models, by id; the first folder that has one wins."""
    found: dict[str, Stock] = {}
    for parent in parents:
        for depth in ("*", "*/*"):
            for folder in parent.glob(depth):
                model = folder.relative_to(parent).as_posix()
                if is_complete(folder) and model not in found:
                    sizes, changed = _measure(folder)
                    found[model] = Stock(
                        id=model,
                        revisions=("main",),
                        size_bytes=sum(sizes),
                        files=len(sizes),
                        last_used=changed,
                        is_complete=True,
                        is_cached=False,
                    )
    return tuple(found[model] for model in sorted(found))


def remove(cache: pathlib.Path, model: str) -> None:
    """Remove a model from the hub cache, with all its revisions; one that is not there is fine.

    Raises:
        InvalidRequestError: that is no hub id.
        ConflictError: its folder is elsewhere, or cannot be removed.
    """
    check_hub_id(model)
    home = cache_home(cache, model)
    if home.is_symlink() or home.resolve().parent != cache.resolve():
        raise ConflictError(f"{model!r} is not kept in this hub cache, but linked into it")
    try:
        # These first: half of a model is none.
        _remove_tree(home / "snapshots")
        _remove_tree(home)
        _remove_tree(cache / ".locks" / home.name)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise ConflictError(f"{model!r} cannot be removed from the hub cache: {reason}") from None


def model_at(cache: pathlib.Path, path: str) -> str | None:
    """Return whose folder in the hub cache an absolute path leads into, if any; reads nothing."""
    try:
        home = pathlib.Path(path).relative_to(cache).parts[0]
    except (ValueError, IndexError):
        return None
    return _model_of(home)


def touch(cache: pathlib.Path, model: str) -> None:
    """Note that a model is used now; nothing happens where that cannot be written."""
    for folder in cache_home(cache, model).glob("snapshots/*"):
        try:
            os.utime(folder)
        except OSError:
            return


def _cached(home: pathlib.Path) -> Stock | None:
    model = _model_of(home.name)
    if model is None:
        return None
    refs = {_text(ref): ref.relative_to(home / "refs").as_posix() for ref in _files(home / "refs")}
    commits = [folder for folder in home.glob("snapshots/*") if folder.is_dir()]
    blobs, changed = _measure(home / "blobs")
    # Where links are not possible, files are in `snapshots` themselves.
    for commit in commits:
        blobs += _measure(commit)[0]
    named = {refs.get(commit.name, commit.name) for commit in commits}
    return Stock(
        id=model,
        revisions=tuple(sorted({*named, *refs.values()})),
        size_bytes=sum(blobs),
        files=max((len(list(_entries(commit))) for commit in commits), default=0),
        last_used=max((_changed(commit) for commit in commits), default=changed),
        is_complete=any(is_complete(commit) for commit in commits),
    )


def _model_of(home: str) -> str | None:
    model = home.removeprefix(_PREFIX).replace("--", "/")
    try:
        check_hub_id(model)
    except InvalidRequestError:
        return None
    return model if home.startswith(_PREFIX) else None


def _measure(folder: pathlib.Path) -> tuple[list[int], float]:
    """Return the sizes of the files below a folder, links left out, and the latest change."""
    sizes, latest = [], 0.0
    for path in _files(folder):
        try:
            status = path.lstat()
        except OSError:
            continue
        sizes.append(status.st_size)
        latest = max(latest, status.st_mtime)
    return sizes, latest


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in _entries(folder) if not path.is_symlink())


def _entries(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for parent, _, names in os.walk(folder):
        yield from (pathlib.Path(parent, name) for name in names)


def _changed(path: pathlib.Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _remove_tree(folder: pathlib.Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
