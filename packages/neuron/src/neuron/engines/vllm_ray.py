"""Engines on a Ray cluster that somebody else runs; Ray is imported here, if asked for.

vLLM drives Ray by itself. What is done here is what it leaves to others: to connect to a certain
cluster, to take devices there for this engine alone, and to give them back. All of it blocks.
"""

import importlib
import importlib.util
import os
from typing import Any

from cortex_core.errors import InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import ModelSpec
from neuron.engines.vllm_options import EngineOptions, RayOptions

_BACKEND = "ray"
"""Value of vLLM's `distributed_executor_backend`."""

_OPTION = "distributed_executor_backend"

_CURE = "pip install 'ray[default]' beside vLLM, of the cluster's own version"


def check_ray(spec: ModelSpec, options: EngineOptions) -> None:
    """Check that a spec which asks for Ray can have it; vLLM must have been imported.

    Raises:
        InvalidRequestError: why it cannot, with the cure.
    """
    from vllm.platforms import current_platform

    is_asked = options.engine.get(_OPTION) == _BACKEND
    if not is_asked:
        if options.serving.ray is not None:
            raise _refusal("engine option 'ray' needs distributed_executor_backend = 'ray'", "ray")
        return
    if not current_platform.ray_device_key:
        raise _refusal(f"vLLM has no Ray on {current_platform.device_name}", _OPTION)
    if importlib.util.find_spec("ray") is None:
        raise _refusal(f"Ray is not installed: {_CURE}", _OPTION)
    if spec.peers or spec.ranks > 1:
        raise _refusal(
            "on a Ray cluster, engine.ray says how many devices there are; leave out peers, "
            "tensor_parallel and pipeline_parallel",
            "ray",
        )
    if spec.vram_bytes != 0:
        raise InvalidRequestError(
            "the devices of a Ray cluster are in no neuron's ledger; say vram_mb = 0",
            param="vram_mb",
        )


def ray_arguments(options: RayOptions | None) -> dict[str, object]:
    """Return what `AsyncEngineArgs` is told of a cluster's devices; nothing without one."""
    if options is None:
        return {}
    return {
        "tensor_parallel_size": options.tensor_parallel,
        "pipeline_parallel_size": options.pipeline_parallel,
    }


def cluster_of(options: EngineOptions) -> "RayCluster | None":
    """Return the cluster of an engine; `None` when it runs without."""
    if options.engine.get(_OPTION) != _BACKEND:
        return None
    return RayCluster(options.serving.ray or RayOptions())


class RayCluster:
    """Devices of a cluster, taken for one engine as a placement group.

    Args:
        options: of the engine.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._group: Any = None

    def take(self) -> Any:
        """Connect, take the devices, and return the placement group.

        Raises:
            ModelLoadFailedError: the cluster cannot be reached, or has them not free in time.
        """
        from vllm.platforms import current_platform

        options = self._options
        ray: Any = importlib.import_module("ray")
        placement: Any = importlib.import_module("ray.util.placement_group")
        address = options.address or "auto"
        if options.address is not None:
            # The engine's own process connects by itself, and is told in this way only.
            os.environ["RAY_ADDRESS"] = options.address
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ModelLoadFailedError(
                f"there is no Ray cluster at {address!r}: {str(error)[:200]}"
            ) from None
        devices = options.tensor_parallel * options.pipeline_parallel
        key = current_platform.ray_device_key
        self._group = placement.placement_group([{key: 1.0}] * devices, strategy="PACK")
        if not self._group.wait(options.wait_s):
            self.give_back()
            raise ModelLoadFailedError(
                f"the Ray cluster at {address!r} had not {devices} {key}(s) free "
                f"within {options.wait_s:g} s"
            )
        return self._group

    def give_back(self) -> None:
        """Free the devices; does nothing when none are taken."""
        group, self._group = self._group, None
        if group is not None:
            importlib.import_module("ray.util.placement_group").remove_placement_group(group)


def _refusal(why: str, option: str) -> InvalidRequestError:
    return InvalidRequestError(why, param=f"engine.{option}")
