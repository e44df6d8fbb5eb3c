"""Engines on Ray, up to vLLM's door: it has no Ray on the CPU, and there is no cluster here."""

import importlib.machinery
import os
import sys
import types
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from cortex_core.errors import InvalidRequestError, ModelLoadFailedError
from cortex_core.group import Peer
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from neuron.engines import vllm_bringup
from neuron.engines.vllm_options import RayOptions, ServingOptions, read_options
from neuron.engines.vllm_placement import device_arguments
from neuron.engines.vllm_ray import RayCluster, check_ray, ray_arguments
from neuron.engines.vllm_stats import LoadWindow
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT

pytestmark = pytest.mark.filterwarnings("ignore")
"""Those of vLLM and torch, which are imported here."""

TABLE = {"address": "ray-head:6379", "tensor_parallel": 4, "pipeline_parallel": 2}
ENGINE = {"distributed_executor_backend": "ray", "ray": TABLE}
SPEC = ModelSpec(model=ModelId(CHAT), harness="vllm", vram_bytes=0, engine=ENGINE)


class Platform:
    """vLLM's platform on a machine with GPUs, as far as Ray is concerned."""

    device_name = "cuda"
    ray_device_key = "GPU"

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        """Return what the platform of this machine has."""
        return getattr(self._real, name)


class Group:
    """A placement group of the fake cluster."""

    def __init__(self, bundles: object, *, is_ready: bool) -> None:
        self.bundles = bundles
        self.is_ready = is_ready
        self.is_removed = False

    def wait(self, timeout_s: float) -> bool:
        """Say whether it has its devices."""
        return self.is_ready


class Ray:
    """What is used of Ray, and what became of it."""

    def __init__(self) -> None:
        self.address: str | None = None
        self.groups: list[Group] = []
        self.is_ready = True
        self.error: Exception | None = None

    def init(self, *, address: str, **options: object) -> None:
        """Connect."""
        if self.error is not None:
            raise self.error
        self.address = address

    def placement_group(self, bundles: object, strategy: str) -> Group:
        """Take devices."""
        self.groups.append(Group(bundles, is_ready=self.is_ready))
        return self.groups[-1]

    def remove_placement_group(self, group: Group) -> None:
        """Give them back."""
        group.is_removed = True


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM be on a machine with GPUs."""
    import vllm.platforms

    # Its modules take the platform when they are imported: those get the real one.
    import vllm.v1.engine.async_llm

    platform = Platform(vllm.platforms.current_platform)
    monkeypatch.setattr(vllm.platforms, "current_platform", platform)


@pytest.fixture
def ray(gpus: None, monkeypatch: pytest.MonkeyPatch) -> Ray:
    """Put a Ray in place of one that is not installed."""
    fake, module = Ray(), types.ModuleType("ray")
    module.__spec__ = importlib.machinery.ModuleSpec("ray", None)
    module.__dict__["init"] = fake.init
    monkeypatch.setenv("RAY_ADDRESS", "")
    placement = types.ModuleType("ray.util.placement_group")
    placement.__dict__["placement_group"] = fake.placement_group
    placement.__dict__["remove_placement_group"] = fake.remove_placement_group
    for name, one in (
        ("ray", module),
        ("ray.util", types.ModuleType("ray.util")),
        ("ray.util.placement_group", placement),
    ):
        monkeypatch.setitem(sys.modules, name, one)
    return fake


def checked(spec: ModelSpec) -> None:
    """Check a spec as a load does."""
    known: dict[str, object] = {"distributed_executor_backend": str}
    check_ray(spec, read_options(spec.engine, known))


def refusal(spec: ModelSpec) -> str:
    """Return why a spec is refused."""
    with pytest.raises(InvalidRequestError) as refused:
        checked(spec)
    return refused.value.message


def test_ray_is_refused_on_the_cpu() -> None:
    """vLLM 0.32: `current platform cpu does not support ray`, which it says late."""
    assert "vLLM has no Ray on cpu" in refusal(SPEC)


def test_ray_that_is_not_installed_is_named_with_the_cure(gpus: None) -> None:
    """Ours: it is no dependency, and asked for by few."""
    assert "pip install" in refusal(SPEC)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vram_bytes": 5}, "vram_mb = 0"),
        ({"vram_bytes": None}, "vram_mb = 0"),
        ({"tensor_parallel": 2}, "engine.ray"),
        ({"peers": (Peer(endpoint="http://p"),)}, "engine.ray"),
        ({"engine": {"ray": TABLE}}, "distributed_executor_backend"),
        ({"engine": {**ENGINE, "ray": {"addresses": 1}}}, "addresses"),
    ],
)
def test_spec_that_does_not_go_with_ray_is_refused(
    ray: Ray, change: dict[str, object], words: str
) -> None:
    """Ours: the devices of a cluster are in no ledger of a neuron."""
    checked(SPEC)

    assert words in refusal(msgspec.structs.replace(SPEC, **change))


def test_cluster_reaches_the_arguments_of_the_engine() -> None:
    """Ours: sizes from the table, and nothing of this node's devices."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    table = msgspec.convert(TABLE, RayOptions)
    arguments = device_arguments(SPEC, ENGINE) | ray_arguments(table)
    args = AsyncEngineArgs(
        model=str(BUILTIN[SPEC.model].path),
        distributed_executor_backend="ray",
        **arguments,
    )

    assert (args.tensor_parallel_size, args.pipeline_parallel_size) == (4, 2)
    assert args.device_ids is None
    assert "gpu_memory_utilization" not in arguments


def parts_of(cluster: RayCluster) -> vllm_bringup.Parts:
    """Return what a load would have put together."""
    config = types.SimpleNamespace(parallel_config=types.SimpleNamespace(placement_group=None))
    return vllm_bringup.Parts(
        config=config,
        serving=ServingOptions(),
        reasoning_parser=None,
        registry=CollectorRegistry(),
        window=LoadWindow(),
        cluster=cluster,
    )


def test_engine_is_handed_a_placement_group_of_its_own(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: as many bundles as ranks on the cluster that the profile names, freed at the end."""
    from vllm.v1.engine.async_llm import AsyncLLM

    seen: list[Any] = []

    def at_the_door(config: Any, **options: object) -> str:
        seen.append(config.parallel_config.placement_group)
        return "engine"

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", at_the_door)
    cluster = RayCluster(msgspec.convert(TABLE, RayOptions))

    assert vllm_bringup.start(parts_of(cluster)) == "engine"
    assert ray.address == "ray-head:6379"
    assert os.environ["RAY_ADDRESS"] == "ray-head:6379"
    assert seen == ray.groups
    assert ray.groups[0].bundles == [{"GPU": 1.0}] * 8
    assert not ray.groups[0].is_removed
    cluster.give_back()
    assert ray.groups[0].is_removed


def test_placement_group_of_a_load_that_fails_is_given_back(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: devices of a cluster are others' too."""
    from vllm.v1.engine.async_llm import AsyncLLM

    def fails(config: Any, **options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(AsyncLLM, "from_vllm_config", fails)
    with pytest.raises(RuntimeError, match="no"):
        vllm_bringup.start(parts_of(RayCluster(RayOptions())))
    assert (ray.address, ray.groups[0].is_removed) == ("auto", True)

    ray.is_ready = False
    with pytest.raises(ModelLoadFailedError, match="had not 1 GPU"):
        RayCluster(RayOptions()).take()
    assert ray.groups[1].is_removed

    ray.error = ConnectionError("nobody there")
    with pytest.raises(ModelLoadFailedError, match="there is no Ray cluster at 'auto'"):
        RayCluster(RayOptions()).take()
