"""Series about devices, filled from their health when they are scraped."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from cortex_core.device import DeviceCondition
from cortex_core.units import bytes_from_mib
from cortex_core.wire.neuron import DeviceHealth


class DeviceMetrics:
    """What is known of every device; what is not known has no series.

    Labels come from closed sets: `device` from the devices of the node, the others from what
    their series are documented with.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, words: str, *labels: str) -> Gauge:
            return Gauge(f"neuron_device_{name}", words, ["device", *labels], registry=registry)

        self.memory = gauge(
            "memory_bytes",
            "Memory of a device: total, used and free as the driver says, held by the budget, "
            "other for what no model here accounts for.",
            "kind",
        )
        self.utilization = gauge("utilization_ratio", "Share of time in which a device was busy.")
        self.temperature = gauge("temperature_celsius", "Temperature of a device.")
        self.power = gauge("power_watts", "Power of a device: used, and its limit.", "kind")
        self.clock = gauge("clock_hertz", "Clocks of a device: sm and memory.", "domain")
        self.throttled = gauge(
            "throttled", "1 for each reason for which clocks are held down.", "reason"
        )
        self.ecc = gauge(
            "ecc_errors", "Errors in memory since the driver was loaded, by kind.", "kind"
        )
        self.pcie = gauge("pcie", "Generation and width of the PCIe link.", "kind")
        self.nvlinks = gauge("nvlinks", "NVLinks that are up.")
        self.condition = gauge("condition", "1 for the condition of a device.", "condition")
        self.busy = gauge(
            "held_seconds", "For how long one piece of work has held the device's worker."
        )
        self.waiting = gauge("waiting", "Pieces of work that wait for the device's worker.")
        self.xids = Counter(
            "neuron_device_xids_total",
            "Faults that the driver reported, by what NVIDIA says is to be done.",
            ["device", "action"],
            registry=registry,
        )

    def fill(self, devices: Iterable[DeviceHealth]) -> None:
        """Set the gauges; those of which nothing is known any more lose their series."""
        for family in (self.throttled, self.ecc, self.pcie, self.nvlinks, self.condition):
            family.clear()
        for family in (self.utilization, self.temperature, self.power, self.clock, self.busy):
            family.clear()
        for device in devices:
            self._fill(device)

    def _fill(self, device: DeviceHealth) -> None:
        name = str(device.index)
        sizes = {"used": device.vram_used_mb, "free": device.vram_free_mb}
        for kind, size_mb in {**sizes, "other": device.other_mb}.items():
            if size_mb is not None:
                self.memory.labels(name, kind).set(bytes_from_mib(size_mb))
        busy = device.utilization_pct
        for family, kind, value in (
            (self.power, "used", device.power_w),
            (self.power, "limit", device.power_limit_w),
            (self.clock, "sm", _hertz(device.sm_clock_mhz)),
            (self.clock, "memory", _hertz(device.memory_clock_mhz)),
            (self.ecc, "corrected", device.ecc_corrected),
            (self.ecc, "uncorrected", device.ecc_uncorrected),
            (self.pcie, "generation", device.pcie_generation),
            (self.pcie, "width", device.pcie_width),
        ):
            if value is not None:
                family.labels(name, kind).set(value)
        for plain, known in (
            (self.temperature, device.temp_c),
            (self.nvlinks, device.nvlinks),
            (self.busy, device.busy_s),
            (self.utilization, None if busy is None else busy / 100),
        ):
            if known is not None:
                plain.labels(name).set(known)
        for reason in device.throttled or ():
            self.throttled.labels(name, reason).set(1)
        condition = DeviceCondition.from_wire(device.condition)
        self.condition.labels(name, condition.value).set(1)


def _hertz(mhz: int | None) -> float | None:
    return None if mhz is None else mhz * 1e6
