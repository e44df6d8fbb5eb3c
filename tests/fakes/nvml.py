"""A scripted NVML: the cards that a test says, with the gaps that real ones have."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

T = TypeVar("T")

GIB = 1 << 30

PATIENCE_S = 10.0
"""How long a call hangs at the most in a driver that hangs."""


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


class NVMLError_NoPermission(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_ResetRequired(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_Uninitialized(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


class NVMLError_Timeout(NVMLError):  # noqa: N801, N818 - the binding's name
    """As in the binding."""


@dataclasses.dataclass(eq=False)
class FakeCard:
    """One card; a field that is `None` raises NotSupported, as `[N/A]` of nvidia-smi does."""

    name: str | bytes = "NVIDIA L4"
    _: dataclasses.KW_ONLY
    total: int | None = 24 * GIB
    used: int = 0
    frees: int = 0
    """Bytes that every reading of its memory finds freed, until nothing is used any more."""
    busy: int | None = 10
    temp_c: int | None = 40
    capability: tuple[int, int] | None = (8, 9)
    uuid: str | None = "GPU-0"
    numa_node: int | None = None
    instances: "Mapping[int, FakeCard] | None" = None
    """MIG instances by their number; `None` is not in MIG mode."""
    is_lost: bool = False
    needs_reset: bool = False
    power_mw: int | None = None
    power_limit_mw: int | None = None
    clocks_mhz: tuple[int, int] | None = None
    """Of the processors and of the memory."""
    clock_reasons: int | None = None
    """Bits of `nvmlClocksEventReasons`."""
    ecc: tuple[int, int] | None = None
    """Corrected and uncorrected errors."""
    rows: tuple[int, int, int, int] | None = None
    """Remapped for corrected and for uncorrected errors, pending, failed."""
    pages_pending: int | None = None
    recovery_action: int | None = None
    pcie: tuple[int, int, int, int] | None = None
    """Generation and width now, and at the most."""
    nvlinks: Sequence[int] = ()
    """1 for each link that is up, 0 for one that is down."""
    processes: Mapping[int, int | None] | None = None
    """Memory in use by process; `None` for one of which it is not known."""


class FakeNvml:
    """Stands in for the module `pynvml`."""

    NVMLError: type[Exception] = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_VOLATILE_ECC = 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_NVLINK_MAX_LINKS = 36
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 230
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - the binding's name

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
        self.opened = 0
        """Times that it was opened."""
        self.may_answer = threading.Event()
        """A driver that hangs has it cleared."""
        self.may_answer.set()
        self.calls: list[str] = []
        """Names of what was asked of cards, in order."""
        self.registered: list[FakeCard] = []
        """Cards that somebody listens to."""
        self._events: queue.SimpleQueue[tuple[FakeCard, int]] = queue.SimpleQueue()

    def xid(self, card: FakeCard, number: int) -> None:
        """Have a card report a fault."""
        self._events.put((card, number))

    def reload(self) -> None:
        """Take the driver away under those who use it; opening the library anew finds it."""
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise self.init_error
        self.is_open = True
        self.opened += 1

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
        return self._card(handle).name

    def nvmlDeviceGetUUID(self, handle: object) -> str:  # noqa: N802
        return self._known(handle, "uuid", lambda card: card.uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:  # noqa: N802
        total = self._known(handle, "memory", lambda card: card.total)
        card = self._card(handle)
        used, card.used = card.used, max(0, card.used - card.frees)
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]:  # noqa: N802
        return self._known(handle, "capability", lambda card: card.capability)

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:  # noqa: N802
        busy = self._known(handle, "busy", lambda card: card.busy)
        return SimpleNamespace(gpu=busy, memory=busy // 2)

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:  # noqa: N802
        return self._known(handle, "temperature", lambda card: card.temp_c)

    def nvmlDeviceGetNumaNodeId(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "numa", lambda card: card.numa_node)

    def nvmlDeviceGetMigMode(self, handle: object) -> tuple[int, int]:  # noqa: N802
        return self._known(handle, "mig", lambda card: card.instances is not None and (1, 1))  # type: ignore[return-value]  # `False` is not answered

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: object) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: object, index: int) -> FakeCard:  # noqa: N802
        instances = self._card(handle).instances or {}
        if index not in instances:
            raise NVMLError_NotFound("Not Found")
        return instances[index]

    def nvmlDeviceGetP2PStatus(self, one: object, other: object, caps: int) -> int:  # noqa: N802
        return self.NVML_P2P_STATUS_OK if self.has_nvlink else 1

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "power", lambda card: card.power_mw)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "limit", lambda card: card.power_limit_mw)

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:  # noqa: N802
        return self._known(handle, "clocks", lambda card: card.clocks_mhz)[kind - 1]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "reasons", lambda card: card.clock_reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "reasons", lambda card: card.clock_reasons)

    def nvmlDeviceGetTotalEccErrors(self, handle: object, error: int, counter: int) -> int:  # noqa: N802
        return self._known(handle, "ecc", lambda card: card.ecc)[error]

    def nvmlDeviceGetRemappedRows(self, handle: object) -> tuple[int, int, int, int]:  # noqa: N802
        return self._known(handle, "rows", lambda card: card.rows)

    def nvmlDeviceGetRetiredPagesPendingStatus(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "pages", lambda card: card.pages_pending)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "pcie", lambda card: card.pcie)[0]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "pcie", lambda card: card.pcie)[1]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "pcie", lambda card: card.pcie)[2]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: object) -> int:  # noqa: N802
        return self._known(handle, "pcie", lambda card: card.pcie)[3]

    def nvmlDeviceGetNvLinkState(self, handle: object, link: int) -> int:  # noqa: N802
        links = self._known(handle, "links", lambda card: card.nvlinks or None)
        if link >= len(links):
            raise NVMLError("Invalid Argument")
        return links[link]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:  # noqa: N802
        processes = self._known(handle, "processes", lambda card: card.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: object) -> list[Any]:  # noqa: N802
        return self.nvmlDeviceGetComputeRunningProcesses(handle)

    def nvmlDeviceGetFieldValues(self, handle: object, fields: Sequence[int]) -> list[Any]:  # noqa: N802
        action = self._card(handle).recovery_action
        value = SimpleNamespace(uiVal=action or 0)
        return [SimpleNamespace(nvmlReturn=3 if action is None else 0, value=value)]

    def nvmlEventSetCreate(self) -> object:  # noqa: N802
        self._check_open()
        return object()

    def nvmlDeviceRegisterEvents(self, handle: object, types: int, events: object) -> None:  # noqa: N802
        self.registered.append(self._card(handle))

    def nvmlEventSetWait_v2(self, events: object, timeout_ms: int) -> Any:  # noqa: N802
        try:
            card, number = self._events.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            raise NVMLError_Timeout("Timeout") from None
        return SimpleNamespace(device=card, eventType=8, eventData=number)

    def nvmlEventSetFree(self, events: object) -> None:  # noqa: N802
        self.registered.clear()

    def _check_open(self) -> None:
        if not self.is_open:
            raise NVMLError_Uninitialized("Uninitialized")

    def _card(self, handle: object) -> FakeCard:
        assert isinstance(handle, FakeCard)
        self.may_answer.wait(PATIENCE_S)
        self._check_open()
        if handle.is_lost:
            raise NVMLError_GpuIsLost("GPU is lost")
        if handle.needs_reset:
            raise NVMLError_ResetRequired("GPU requires restart")
        return handle

    def _known(self, handle: object, name: str, field: Callable[[FakeCard], T | None]) -> T:
        self.calls.append(name)
        value = field(self._card(handle))
        if value is None or value is False:
            raise NVMLError_NotSupported("Not Supported")
        return value
