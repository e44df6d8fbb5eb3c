"""LoRA adapters on a loaded engine of vLLM.

vLLM keeps two lists: the front end's of names, by which requests find their adapter, and the
engine's of weights. Taking a name off the first leaves the weights in the second (vLLM 0.32,
`OpenAIServingModels.unload_lora_adapter`), so both are done here.
"""

import contextlib
import itertools
import logging
import pathlib
from typing import Any

from cortex_core.errors import ConflictError, EngineError, ModelLoadFailedError
from cortex_core.ids import ModelId

logger = logging.getLogger(__name__)

_REASON = 300
"""Characters of vLLM's reason that are shown."""


class Adapters:
    """Adds adapters to one engine, and takes them off.

    Args:
        llm: vLLM's `AsyncLLM`.
        models: its `OpenAIServingModels`.
        scratch: folder of the engine's files.
    """

    def __init__(self, llm: Any, models: Any, scratch: pathlib.Path) -> None:
        self._llm = llm
        self._models = models
        self._scratch = scratch
        self._numbers = itertools.count()

    async def add(self, model: ModelId, folder: pathlib.Path, base: ModelId) -> None:
        """Add an adapter under the name `model`.

        Raises:
            ConflictError: the engine takes none; with the cure.
            EngineError: the engine died meanwhile.
            ModelLoadFailedError: vLLM refuses this one.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        if self._llm.vllm_config.lora_config is None:
            raise ConflictError(
                f"{base!r} was loaded without room for adapters; unload it, and load it with the "
                "engine option enable_lora = true (and max_lora_rank, if theirs is above 16)"
            )
        # The prefix cache knows adapters by name and path: what is loaded again under the same
        # name, with other weights, must not find what the earlier ones left.
        path = self._scratch / f"adapter-{next(self._numbers)}"
        path.symlink_to(folder, target_is_directory=True)
        request = LoadLoRAAdapterRequest(lora_name=model, lora_path=str(path))
        result = await self._models.load_lora_adapter(request)
        if not isinstance(result, ErrorResponse):
            return
        if self._llm.errored:
            raise EngineError(f"the engine of {base!r} died while {model!r} was added to it")
        reason = _reason(result.error.message)
        raise ModelLoadFailedError(f"{model!r} cannot be added to {base!r}: {reason}")

    async def remove(self, model: ModelId) -> None:
        """Take an adapter off an engine that lives; one that is not there is no error."""
        from vllm.v1.engine.exceptions import EngineDeadError

        request = self._models.lora_requests.pop(model, None)
        if request is None:
            return
        with contextlib.suppress(EngineDeadError):
            await self._llm.remove_lora(request.lora_int_id)
        # Its link stays until the engine goes: a request that still runs may read it once more.


def _reason(message: str) -> str:
    """Return the last line of what vLLM says, which names the cause."""
    told = message.removeprefix("Call to add_lora method failed: ")
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return (lines[-1] if lines else "vLLM does not say why")[:_REASON]
