"""Which source of devices this neuron has."""

import pynvml

from neuron.devices.declared import DeclaredSource
from neuron.devices.nvml import NvmlSource
from neuron.ports import DeviceSource
from neuron.settings import NeuronSettings


def make_device_source(settings: NeuronSettings) -> DeviceSource:
    """Return the declared devices when there are any, and the driver's otherwise."""
    if settings.devices:
        return DeclaredSource(settings.devices)
    return NvmlSource(pynvml)
