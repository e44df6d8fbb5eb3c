"""Which files of a model are taken from the hub, and what of a model may run code here.

Pickled weights (`.bin`, `.pt`, `.pth`) and a model's own modules (`*.py`, named by `auto_map` in
its configuration) run whatever their author wrote when they are loaded. vLLM has run the latter
although it was told not to (CVE-2025-66448, CVE-2026-22807), so nothing relies on that flag
alone.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch

from cortex_core.errors import InvalidRequestError

_SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
"""Configuration, tokenizer and chat template; few megabytes."""

_PICKLES = ("*.bin", "*.pt", "*.pth")

_OTHER_ENGINES = frozenset(("coreml", "flax", "metal", "onnx", "openvino", "original", "tf"))
"""Folders with the same weights for somebody else."""

_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")
"""Where `auto_map` may be, besides `preprocessor_config.json`; see `transformers`' guide
"Customizing models", read November 2026."""

MAX_CONFIG_BYTES = 16 << 20


def choose_files(paths: Iterable[str], *, is_pickle: bool, is_code: bool) -> tuple[str, ...]:
    """Return which of a repository's files to download, in order; `config.json` is the last.

    Args:
        paths: all files, relative to the repository.
        is_pickle: whether pickled weights will do where there are no others.
        is_code: whether the model's own modules are wanted.

    Raises:
        InvalidRequestError: there are no weights in a form that is allowed, or it is not clear
            which of them.
    """
    usable = sorted(path for path in paths if _is_usable(path))
    weights = _choose_weights(usable, is_pickle=is_pickle)
    kinds = (*_SIDE_FILES, "*.py") if is_code else _SIDE_FILES
    sides = [path for path in usable if any(fnmatch(path, kind) for kind in kinds)]
    return tuple(sorted({*weights, *sides}, key=lambda path: (path == "config.json", path)))


def check_folder(folder: pathlib.Path, *, is_pickle: bool, is_code: bool) -> None:
    """Check that a model that is here runs no code of its own, unless it may; reads files.

    Raises:
        InvalidRequestError: it would; with the setting that allows it.
    """
    names = [path.name for path in folder.iterdir()]
    if not is_pickle and _is_pickle_alone(names):
        raise InvalidRequestError(_PICKLE_ADVICE.format("the model"), param="model_id")
    if is_code:
        return
    for name in (*_CONFIGS, "preprocessor_config.json"):
        for target in _auto_map(folder / name):
            repository, _, reference = target.rpartition("--")
            module = reference.partition(".")[0]
            if repository or (folder / f"{module}.py").exists():
                raise InvalidRequestError(
                    f"{name} names code of the model's own ({target[:100]!r}), which would run "
                    "here; put the model under harness.vllm.allow_code if you trust it",
                    param="model_id",
                )


_PICKLE_ADVICE = (
    "{} has pickled weights alone, which can run code when they are read; put it under "
    "harness.vllm.allow_pickle if you trust it"
)


def _is_usable(path: str) -> bool:
    parts = path.split("/")
    is_plain = all(part not in ("", ".", "..") and "\\" not in part for part in parts)
    return is_plain and parts[0] not in _OTHER_ENGINES and not parts[0].startswith(".")


def _choose_weights(usable: list[str], *, is_pickle: bool) -> list[str]:
    tensors = [path for path in usable if path.endswith(".safetensors")]
    # Some repositories have everything twice, the second time in the form of another engine.
    named = [path for path in tensors if not fnmatch(path, "consolidated*")]
    if tensors:
        return named or tensors
    quantised = [path for path in usable if path.endswith(".gguf")]
    if len(quantised) > 1:
        raise InvalidRequestError(
            f"the model has {len(quantised)} GGUF files and one load takes one; put the one that "
            "you want, with its configuration, into a folder and load that by its path",
            param="model_id",
        )
    if quantised:
        return quantised
    pickles = [path for path in usable if any(fnmatch(path, kind) for kind in _PICKLES)]
    if pickles and is_pickle:
        return [path for path in pickles if "/" not in path]
    if pickles:
        raise InvalidRequestError(_PICKLE_ADVICE.format("the model"), param="model_id")
    raise InvalidRequestError(
        "there are no weights in the repository, neither safetensors nor GGUF", param="model_id"
    )


def _is_pickle_alone(names: list[str]) -> bool:
    has_others = any(name.endswith((".safetensors", ".gguf")) for name in names)
    return not has_others and any(fnmatch(name, kind) for name in names for kind in _PICKLES)


def _auto_map(path: pathlib.Path) -> list[str]:
    """Return the classes that a configuration names under `auto_map`, wherever it stands.

    Raises:
        InvalidRequestError: it is too large to be looked through.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError:
        return []
    if len(raw) > MAX_CONFIG_BYTES:
        # Whoever loads it would read all of it.
        raise InvalidRequestError(
            f"{path.name} is larger than any configuration; put the model under "
            "harness.vllm.allow_code if you trust it",
            param="model_id",
        )
    try:
        return list(_targets(json.loads(raw)))
    except (ValueError, RecursionError):
        return []


def _targets(node: object) -> Iterable[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "auto_map":
                yield from _leaves(value)
            else:
                yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _leaves(node: object) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value)
