"""Where models come from, as the settings and the environment say."""

import os
import pathlib
from collections.abc import Mapping
from typing import Self

import msgspec

from cortex_core.errors import InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import ModelSpec
from neuron.settings import VllmSettings
from neuron.weights.files import find_weights, hub_cache
from neuron.weights.safety import check_folder

_TRUE = ("1", "TRUE", "YES", "ON")
"""What huggingface_hub takes for true."""


class WeightSource(msgspec.Struct, frozen=True, kw_only=True):
    """Folders to look through, and whom to ask for what is not there."""

    cache: pathlib.Path
    model_dirs: tuple[pathlib.Path, ...] = ()
    is_offline: bool = False
    """Whether the operator has forbidden to ask the hub."""
    endpoint: str | None = None
    """Address of the hub or a mirror; `None` is the public one."""
    token_file: pathlib.Path | None = None
    allow_pickle: frozenset[str] = frozenset()
    """Models whose pickled weights may be downloaded and loaded."""
    allow_code: frozenset[str] = frozenset()
    """Models whose own code may be downloaded and run."""

    @classmethod
    def from_settings(cls, settings: VllmSettings, environ: Mapping[str, str]) -> Self:
        """Return what `[harness.vllm]` and the library's own variables say."""
        offline = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
        file = settings.token_file
        return cls(
            cache=hub_cache(settings.hf_cache, environ),
            model_dirs=tuple(pathlib.Path(folder) for folder in settings.model_dirs),
            is_offline=settings.offline or offline.upper() in _TRUE,
            endpoint=settings.endpoint or environ.get("HF_ENDPOINT") or None,
            token_file=pathlib.Path(file) if file is not None else None,
            allow_pickle=frozenset(settings.allow_pickle),
            allow_code=frozenset(settings.allow_code),
        )

    def find(self, model: str, revision: str = "main") -> pathlib.Path | None:
        """Return the folder of a model that is here, whole; see `find_weights`."""
        return find_weights(model, self.cache, revision, self.model_dirs)

    def check_loadable(self, spec: ModelSpec, folder: pathlib.Path) -> None:
        """Check that a load runs no code of the model's own, unless it may; reads files.

        Args:
            spec: what is to be loaded.
            folder: its weights.

        Raises:
            InvalidRequestError: it would; with the setting that allows it.
        """
        is_code = spec.model in self.allow_code
        if spec.engine.get("trust_remote_code") and not is_code:
            raise InvalidRequestError(
                "trust_remote_code runs code of the model's own; put the model under "
                "harness.vllm.allow_code of this neuron if you trust it",
                param="engine.trust_remote_code",
            )
        check_folder(folder, is_pickle=spec.model in self.allow_pickle, is_code=is_code)

    def read_token(self, environ: Mapping[str, str]) -> str | None:
        """Return the token for the hub: of the file, else `HF_TOKEN`; blocks.

        The file is read for every download, so that a token can be replaced.

        Raises:
            ModelLoadFailedError: the file cannot be read.
        """
        if self.token_file is None:
            return environ.get("HF_TOKEN", "").strip() or None
        try:
            return self.token_file.read_text().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
            raise ModelLoadFailedError(
                f"the file of harness.vllm.token_file cannot be read: {reason or 'it is no text'}"
            ) from None
