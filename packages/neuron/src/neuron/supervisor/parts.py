"""What everything that the supervisor starts stands on."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping

import msgspec

from cortex_core.errors import InvalidRequestError, ModelLoadFailedError
from cortex_core.harness import Harness, ModelSpec
from cortex_core.server.clock import Clock
from neuron.metrics import NeuronMetrics
from neuron.ports import DeviceFacts, DeviceLanes
from neuron.settings import NeuronSettings
from neuron.supervisor.groups import Groups
from neuron.supervisor.memory import Memory
from neuron.supervisor.notebook import Notebook
from neuron.supervisor.trusting import Trusting
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
    groups: Groups = msgspec.field(default_factory=Groups)
    trusting: Trusting = msgspec.field(default_factory=Trusting)
    unusable: Mapping[str, str] = {}
    """Why harnesses that the settings name are not offered, by name."""

    def harness_for(self, spec: ModelSpec) -> Harness:
        """Return the harness that a spec names.

        Raises:
            InvalidRequestError: there is none of that name here.
            ModelLoadFailedError: it cannot be used.
        """
        unusable = self.unusable.get(spec.harness)
        if unusable is not None:
            raise ModelLoadFailedError(f"{spec.model!r} cannot be loaded: {unusable}")
        if spec.harness not in self.harnesses:
            raise InvalidRequestError(
                f"there is no harness {spec.harness!r} here; "
                f"there is {', '.join(self.harnesses) or 'none'}",
                param="harness",
            )
        return self.harnesses[spec.harness]

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Start a procedure; a bug in it must not take the other models' with it."""
        return self.tasks.create_task(_contained(work, name), name=name)


async def _contained(work: Coroutine[object, object, None], name: str) -> None:
    try:
        await work
    except Exception:
        logger.exception("procedure failed", extra={"procedure": name})
