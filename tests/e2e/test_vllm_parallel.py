"""One model over several devices of a node."""

import msgspec
import pytest

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from neuron.engines.vllm_placement import check_placement, device_arguments
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess, running, wait_for

pytestmark = pytest.mark.timeout(600)

GREEDY = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 24,
    "temperature": 0,
}

GIB = 1 << 30


class Platform:
    """What `device_arguments` asks of vLLM's platform, of a machine with GPUs of 80 GiB."""

    def is_cpu(self) -> bool:
        """It has GPUs."""
        return False

    def get_device_total_memory(self, device: int) -> int:
        """Return the size of each."""
        return 80 * GIB


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"devices": (3,), "vram_bytes": 20 * GIB},
            {"tensor_parallel_size": 1, "device_ids": [3], "gpu_memory_utilization": 0.25},
        ),
        (
            {"devices": (2, 0), "vram_bytes": 80 * GIB},
            {"tensor_parallel_size": 2, "device_ids": [2, 0], "gpu_memory_utilization": 0.5},
        ),
        (
            {"devices": (0, 1, 2, 3), "pipeline_parallel": 2, "vram_bytes": 80 * GIB},
            {
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 2,
                "device_ids": [0, 1, 2, 3],
                "gpu_memory_utilization": 0.25,
            },
        ),
    ],
)
def test_devices_reach_the_arguments_of_the_engine(
    spec: dict[str, object], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: up to vLLM's own `AsyncEngineArgs`, since there is no GPU here to go on with."""
    import vllm.platforms
    from vllm.engine.arg_utils import AsyncEngineArgs

    asked = ModelSpec(model=ModelId(CHAT), harness="vllm")
    monkeypatch.setattr(vllm.platforms, "current_platform", Platform())
    arguments = device_arguments(msgspec.structs.replace(asked, **spec), {})
    monkeypatch.undo()

    args = AsyncEngineArgs(model=str(BUILTIN[ModelId(CHAT)].path), **arguments)
    assert {name: getattr(args, name) for name in expected} == expected


def test_stages_are_refused_on_the_cpu() -> None:
    """Ours: vLLM's engine would load there, and die on the first request."""
    spec = ModelSpec(model=ModelId(CHAT), harness="vllm", pipeline_parallel=2)

    with pytest.raises(InvalidRequestError, match="on the CPU dies of that") as refused:
        check_placement(spec)

    assert refused.value.param == "pipeline_parallel"


def test_two_ranks_answer_as_one_does(
    neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ours: tensor-parallel over two processes of one node; unloading ends them all."""
    one = neuron.ask("/v1/chat/completions", **GREEDY)
    with running(tmp_path_factory.mktemp("tp")) as daemon:
        loaded = daemon.load(CHAT, tensor_parallel=2)
        assert loaded.status_code == 200, loaded.text
        two = daemon.ask("/v1/chat/completions", **GREEDY)
        ranks = daemon.descendants()
        daemon.ask("/models/unload", model_id=CHAT)
        wait_for(lambda: not daemon.engine_processes())

    assert two["choices"][0]["message"] == one["choices"][0]["message"]
    assert len(ranks) >= 3
