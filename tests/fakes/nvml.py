"""A scripted NVML: the cards that a test says, with the gaps that real ones have."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

T = TypeVar("T")

GIB = 1 << 30


class NVMLError(Exception):
    """As in the binding."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_NotFound(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_LibRmVersionMismatch(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class FakeCard:
    """One card; a field that is `None` raises NotSupported, as `[N/A]` of nvidia-smi does."""

    def __init__(
        self,
        name: str | bytes = "NVIDIA L4",
        *,
        total: int | None = 24 * GIB,
        used: int = 0,
        busy: int | None = 10,
        temp_c: int | None = 40,
        capability: tuple[int, int] | None = (8, 9),
        uuid: str | None = "GPU-0",
        numa_node: int | None = None,
        instances: "Mapping[int, FakeCard] | None" = None,
        is_lost: bool = False,
    ) -> None:
        self.name, self.total, self.used, self.busy = name, total, used, busy
        self.temp_c, self.capability, self.uuid, self.numa_node = (
            temp_c,
            capability,
            uuid,
            numa_node,
        )
        self.instances = instances
        """MIG instances by their number; `None` is not in MIG mode."""
        self.is_lost = is_lost


class FakeNvml:
    """Stands in for the module `pynvml`."""

    NVMLError: type[Exception] = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0

    def __init__(
        self,
        cards: Sequence[FakeCard] = (),
        *,
        init_error: Exception | None = None,
        has_nvlink: bool = False,
    ) -> None:
        self.cards = list(cards)
        self.init_error = init_error
        self.has_nvlink = has_nvlink
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise self.init_error
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.124.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 12080

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        if self.cards[index].is_lost:
            raise NVMLError_GpuIsLost("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: object) -> str | bytes:  # noqa: N802
        return _card(handle).name

    def nvmlDeviceGetUUID(self, handle: object) -> str:  # noqa: N802
        return _known(_card(handle).uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:  # noqa: N802
        total = _known(_card(handle).total)
        return SimpleNamespace(
            total=total, used=_card(handle).used, free=total - _card(handle).used
        )

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]:  # noqa: N802
        return _known(_card(handle).capability)

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=_known(_card(handle).busy))

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:  # noqa: N802
        return _known(_card(handle).temp_c)

    def nvmlDeviceGetNumaNodeId(self, handle: object) -> int:  # noqa: N802
        return _known(_card(handle).numa_node)

    def nvmlDeviceGetMigMode(self, handle: object) -> tuple[int, int]:  # noqa: N802
        if _card(handle).instances is None:
            raise NVMLError_NotSupported("Not Supported")
        return (1, 1)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: object) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: object, index: int) -> FakeCard:  # noqa: N802
        if index not in (_card(handle).instances or {}):
            raise NVMLError_NotFound("Not Found")
        return (_card(handle).instances or {})[index]

    def nvmlDeviceGetP2PStatus(self, one: object, other: object, caps: int) -> int:  # noqa: N802
        return self.NVML_P2P_STATUS_OK if self.has_nvlink else 1


def _card(handle: object) -> FakeCard:
    assert isinstance(handle, FakeCard)
    return handle


def _known(value: T | None) -> T:
    if value is None:
        raise NVMLError_NotSupported("Not Supported")
    return value
