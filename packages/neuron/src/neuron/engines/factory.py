"""Which harnesses this neuron offers."""

import asyncio
import logging
from collections.abc import Mapping

from cortex_core.errors import RequestError, SettingsError
from cortex_core.harness import Harness
from cortex_core.server.clock import Clock
from neuron.engines.simulated import SimulatedHarness
from neuron.engines.vllm import VllmHarness
from neuron.settings import NeuronSettings
from neuron.weights.downloads import Downloads

logger = logging.getLogger(__name__)


def make_harnesses(
    settings: NeuronSettings, clock: Clock, tasks: asyncio.TaskGroup, downloads: Downloads
) -> dict[str, Harness]:
    """Return the harnesses under `[[harnesses]]` by name, in that order.

    Args:
        settings: of the neuron.
        clock: times simulated engines.
        tasks: where they run.
        downloads: brings weights that are not here.

    Raises:
        SettingsError: one of them is not known.
    """
    return {
        entry.name: _make(entry.name, settings, clock, tasks, downloads)
        for entry in settings.harnesses
    }


async def prepare_harnesses(
    harnesses: Mapping[str, Harness], stop: asyncio.Event
) -> dict[str, str]:
    """Let harnesses do what would keep a daemon that serves from answering in time.

    Args:
        harnesses: by name.
        stop: ends the waiting.

    Returns:
        Why harnesses cannot be used, by name; empty when all can.
    """
    unusable: dict[str, str] = {}
    for name, harness in harnesses.items():
        if isinstance(harness, VllmHarness):
            try:
                await harness.prepare(stop)
            except RequestError as error:
                unusable[name] = error.message
                logger.error(
                    "harness not offered", extra={"harness": name, "reason": error.message}
                )
    return unusable


def _make(
    name: str,
    settings: NeuronSettings,
    clock: Clock,
    tasks: asyncio.TaskGroup,
    downloads: Downloads,
) -> Harness:
    match name:
        case "simulated":
            return SimulatedHarness(settings.harness.simulated, clock, tasks)
        case "vllm":
            return VllmHarness(settings.harness.vllm, downloads, settings.media)
        case _:
            raise SettingsError(f"harnesses: {name!r} is no harness")
