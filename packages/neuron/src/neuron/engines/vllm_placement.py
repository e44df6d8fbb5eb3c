"""Where an engine of vLLM runs, and how much memory it takes there, as vLLM says it."""

from collections.abc import Mapping

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import ModelSpec

CPU_KV_CACHE_BYTES = 2 << 30
"""KV cache of an engine on the CPU when nobody says; vLLM would take 92 % of the memory."""

_MAX_UTILIZATION_RATIO = 0.95
"""Of a device's memory: the driver and other processes need some."""


def check_placement(spec: ModelSpec) -> None:
    """Check that this platform can run a spec's ranks; vLLM must have been imported.

    Raises:
        InvalidRequestError: it loads, and dies on the first request.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and (spec.pipeline_parallel or 1) > 1:
        # Its second stage is given nothing of the first one (`assert intermediate_tensors`).
        raise InvalidRequestError(
            f"pipeline_parallel is {spec.pipeline_parallel}, and vLLM's engine on the CPU dies of "
            "that on the first request; use tensor_parallel",
            param="pipeline_parallel",
        )


def device_arguments(spec: ModelSpec, given: Mapping[str, object]) -> dict[str, object]:
    """Return what `AsyncEngineArgs` is told of devices and memory.

    Args:
        spec: with its devices; a host without devices has none.
        given: engine options of the spec, which count more than what is reckoned.
    """
    from vllm.platforms import current_platform

    arguments: dict[str, object] = {}
    if given.get("distributed_executor_backend") == "ray":
        # Its devices are the cluster's.
        return arguments
    ranks = spec.ranks
    if ranks * spec.nodes > 1:
        arguments["tensor_parallel_size"] = spec.tensor_parallel_on(len(spec.devices))
        arguments["pipeline_parallel_size"] = spec.pipeline_parallel or 1
    if spec.seat is not None:
        arguments |= {
            "distributed_executor_backend": "mp",
            "nnodes": spec.seat.nodes,
            "node_rank": spec.seat.rank,
            "master_addr": spec.seat.address,
            "master_port": spec.seat.port,
        }
    if current_platform.is_cpu():
        if "kv_cache_memory_bytes" not in given:
            arguments["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        return arguments
    if spec.devices:
        arguments["device_ids"] = list(spec.devices)
    if spec.vram_bytes is not None and "gpu_memory_utilization" not in given:
        totals = [current_platform.get_device_total_memory(d) for d in spec.devices or (0,)]
        # vLLM asks for this share of the whole to be free, also when the cache's size is given.
        share = spec.vram_bytes / ranks / min(totals)
        arguments["gpu_memory_utilization"] = min(round(share, 4), _MAX_UTILIZATION_RATIO)
    return arguments
