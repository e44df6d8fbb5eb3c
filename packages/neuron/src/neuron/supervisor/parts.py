"""What everything that the supervisor starts stands on."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping

import msgspec

from cortex_core.harness import Harness
from cortex_core.server.clock import Clock
from neuron.metrics import NeuronMetrics
from neuron.ports import DeviceFacts, DeviceLanes
from neuron.settings import NeuronSettings
from neuron.supervisor.memory import Memory
from neuron.supervisor.notebook import Notebook
from neuron.weights.downloads import Downloads

logger = logging.getLogger(__name__)


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What loads, sleeps and unloads need."""

    settings: NeuronSettings
    harnesses: Mapping[str, Harness]
    facts: DeviceFacts
    memory: Memory
    downloads: Downloads
    notebook: Notebook
    lanes: DeviceLanes
    clock: Clock
    metrics: NeuronMetrics
    tasks: asyncio.TaskGroup
    unusable: Mapping[str, str] = {}
    """Why harnesses that the settings name are not offered, by name."""

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Start a procedure; a bug in it must not take the other models' with it."""
        return self.tasks.create_task(_contained(work, name), name=name)


async def _contained(work: Coroutine[object, object, None], name: str) -> None:
    try:
        await work
    except Exception:
        logger.exception("procedure failed", extra={"procedure": name})
