"""Which harnesses this neuron offers."""

import asyncio

from cortex_core.errors import SettingsError
from cortex_core.harness import Harness
from cortex_core.server.clock import Clock
from neuron.engines.simulated import SimulatedHarness
from neuron.engines.vllm import VllmHarness
from neuron.settings import NeuronSettings


def make_harnesses(
    settings: NeuronSettings, clock: Clock, tasks: asyncio.TaskGroup
) -> dict[str, Harness]:
    """Return the harnesses under `[[harnesses]]` by name, in that order.

    Raises:
        SettingsError: one of them is not known.
    """
    return {entry.name: _make(entry.name, settings, clock, tasks) for entry in settings.harnesses}


def _make(name: str, settings: NeuronSettings, clock: Clock, tasks: asyncio.TaskGroup) -> Harness:
    match name:
        case "simulated":
            return SimulatedHarness(settings.harness.simulated, clock, tasks)
        case "vllm":
            return VllmHarness(settings.harness.vllm)
        case _:
            raise SettingsError(f"harnesses: {name!r} is no harness")
