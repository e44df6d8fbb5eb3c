"""Where a model's weights are on this machine.

Layout of the hub cache: huggingface_hub's guide "Understand caching", read November 2026.
"""

import json
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cortex_core.errors import InvalidRequestError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_PART = re.compile(r"(.*)-[0-9]+-of-([0-9]+)(\.[a-z]+)", re.ASCII)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def find_weights(
    model: str,
    cache: pathlib.Path,
    revision: str = "main",
    model_dirs: Sequence[pathlib.Path] = (),
) -> pathlib.Path | None:
    """Return the folder that holds a model's weights, whole; `None` when there is none here.

    Args:
        model: a hub id, or the absolute path of a folder.
        cache: folder of the hub cache; need not exist.
        revision: branch, tag or commit.
        model_dirs: folders with models at `org/name`, looked through first and in this order.
            They know no revisions, so that any other than `main` is not found there.

    Raises:
        InvalidRequestError: `model` is neither of the two, or `revision` is none.
    """
    if model.startswith("/"):
        folder = pathlib.Path(model)
        return folder if is_complete(folder) else None
    check_hub_id(model)
    check_revision(revision)
    if revision == "main":
        for parent in model_dirs:
            if is_complete(parent / model):
                return parent / model
    home = cache_home(cache, model)
    try:
        commit = (home / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    folder = home / "snapshots" / commit
    return folder if is_complete(folder) else None


def check_hub_id(model: str) -> None:
    """Check that a name is one that the hub could have.

    Raises:
        InvalidRequestError: it is not, or leads out of the folder that it is looked up in.
    """
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model:
        raise InvalidRequestError(
            f"{model[:200]!r} is neither a hub id such as 'org/name' nor an absolute path",
            param="model_id",
        )


def check_revision(revision: str) -> None:
    """Check that a name is one that a branch, tag or commit could have.

    Raises:
        InvalidRequestError: it is not, or leads out of the folder that it is looked up in.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise InvalidRequestError(
            f"{revision[:200]!r} is no branch, tag or commit", param="revision"
        )


def cache_home(cache: pathlib.Path, model: str) -> pathlib.Path:
    """Return the folder that a model has in the hub cache; it need not exist."""
    return cache / f"models--{model.replace('/', '--')}"


def hub_cache(setting: str | None, environ: Mapping[str, str]) -> pathlib.Path:
    """Return the folder of the hub cache: the setting, else what the hub's library would use."""
    if setting:
        return pathlib.Path(setting)
    for name, tail in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if environ.get(name):
            return pathlib.Path(environ[name]).expanduser() / tail
    base = environ.get("XDG_CACHE_HOME") or pathlib.Path(environ.get("HOME", "/"), ".cache")
    return pathlib.Path(base) / "huggingface" / "hub"


def is_adapter(folder: pathlib.Path) -> bool:
    """Return whether a folder has a LoRA adapter alone, as the PEFT library writes them."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def is_complete(folder: pathlib.Path) -> bool:
    """Return whether a folder has a configuration and all weights that it names; never fails."""
    try:
        return _is_complete(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # It may not be read, or its index is none.
        return False


def _is_complete(folder: pathlib.Path) -> bool:
    if is_adapter(folder):
        return (folder / "adapter_model.safetensors").is_file()
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        return all((folder / str(shard)).is_file() for shard in shards)
    for pattern in _WEIGHTS:
        names = [path.name for path in folder.glob(pattern)]
        if names:
            # Copied by name, the shards come before the index that would tell how many there are.
            parts = Counter(found.groups() for name in names if (found := _PART.fullmatch(name)))
            return all(count >= int(total) for (_, total, _), count in parts.items())
    return False
