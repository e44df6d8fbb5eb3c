"""Asking NVML one thing at a time, so that no answer costs another."""

import enum
from collections.abc import Callable
from typing import TypeVar

from cortex_core.ids import DeviceIndex
from neuron.devices.nvml_api import Nvml

T = TypeVar("T")


class Trouble(enum.Enum):
    """What an error says of more than the question that was asked."""

    LOST = enum.auto()
    """The device does not answer any more."""
    RESET = enum.auto()
    """The device answers nothing before it is reset."""
    LIBRARY = enum.auto()
    """The library has lost its driver; nothing that it handed out is good any more."""


# By class name, so that a binding which lacks one of them is no problem. Meanings: NVML API
# reference, `nvmlReturn_t`.
_TROUBLES = {
    "NVMLError_GpuIsLost": Trouble.LOST,
    "NVMLError_GpuNotFound": Trouble.LOST,
    "NVMLError_ResetRequired": Trouble.RESET,
    "NVMLError_Uninitialized": Trouble.LIBRARY,
    "NVMLError_DriverNotLoaded": Trouble.LIBRARY,
    "NVMLError_LibRmVersionMismatch": Trouble.LIBRARY,
}

# What is so will stay so for as long as driver and device are the same.
_LASTING = frozenset(
    {
        "NVMLError_NotSupported",
        "NVMLError_FunctionNotFound",
        "NVMLError_ArgumentVersionMismatch",
        "NVMLError_NoPermission",
    }
)


class Questions:
    """Asks, remembers what has no answer, and stops where a device does not answer at all.

    Args:
        nvml: the module `pynvml`, or what stands in for it.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._unanswerable: set[tuple[DeviceIndex, str]] = set()
        self._troubles: dict[DeviceIndex, tuple[Trouble, str]] = {}

    def begin(self) -> None:
        """Begin a round: devices that were in trouble may be asked again."""
        self._troubles = {}

    def forget(self) -> None:
        """Ask everything again: another driver may have answers."""
        self._unanswerable = set()
        self._troubles = {}

    def trouble(self, device: DeviceIndex) -> tuple[Trouble, str] | None:
        """Return what this round found to be wrong with a device, in words."""
        return self._troubles.get(device)

    def ask(self, device: DeviceIndex, name: str, question: Callable[[], T]) -> T | None:
        """Return the answer, or `None` when there is none.

        Args:
            device: which one is asked.
            name: of the question; one that has no answer is not asked again.
            question: calls NVML, and looks its function up itself: an older binding lacks some.
        """
        if (device, name) in self._unanswerable or device in self._troubles:
            return None
        try:
            return question()
        except self._nvml.NVMLError as error:
            kind = type(error).__name__
            if kind in _LASTING:
                self._unanswerable.add((device, name))
            elif kind in _TROUBLES:
                self._troubles[device] = (_TROUBLES[kind], str(error))
            return None
        except AttributeError:
            self._unanswerable.add((device, name))
            return None
