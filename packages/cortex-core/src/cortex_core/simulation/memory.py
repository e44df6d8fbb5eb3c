"""What a simulated machine has in memory, and who had it when."""

from collections.abc import Mapping

import msgspec

from cortex_core.errors import InsufficientVramError
from cortex_core.ids import DeviceIndex, ModelId, NodeName
from cortex_core.replica import ReplicaStatus
from cortex_core.simulation.engine import Engine
from cortex_core.simulation.machines import SimulatedNode
from cortex_core.units import MIB, bytes_from_mib


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which a model was in one state on a node."""

    node: NodeName
    model: ModelId
    devices: tuple[DeviceIndex, ...]
    status: str
    """As in `ReplicaStatus`."""
    begin: float
    end: float
    share_bytes: int
    """What it held of each of its devices meanwhile."""


class Memory:
    """The devices' memory, the host's, and the history of both.

    Args:
        node: what the machine has.
        engines: what is there now; owned and changed by the neuron.
    """

    def __init__(self, node: SimulatedNode, engines: Mapping[ModelId, Engine]) -> None:
        self.sizes = tuple(bytes_from_mib(device.vram_total_mb) for device in node.devices)
        """Of the devices, in their order."""
        self.spans: list[Span] = []
        self._node = node
        self._engines = engines
        self._since: dict[ModelId, float] = {}
        self._cache: dict[ModelId, int] = {}
        """Weights that the host has read lately, the longest unread first."""

    def held(self) -> list[int]:
        """Return what is taken, by device."""
        held = [0] * len(self.sizes)
        for engine in self._engines.values():
            if engine.status is not ReplicaStatus.SLEEPING:
                for index in engine.devices:
                    held[index] += engine.share_bytes
        return held

    def asleep_bytes(self) -> int:
        """Return what sleeping models hold of the host's memory."""
        return sum(engine.host_bytes for engine in self._engines.values())

    def has_bed(self, engine: Engine) -> bool:
        """Whether the host has memory for a model's weights while it sleeps."""
        budget = bytes_from_mib(self._node.sleep_mb)
        return self.asleep_bytes() + engine.size_bytes <= budget

    def lacking(self, engine: Engine) -> InsufficientVramError | None:
        """Return why there is no room for an engine that holds nothing yet, or `None`."""
        held = self.held()
        free = min((self.sizes[i] - held[i] for i in engine.devices), default=engine.share_bytes)
        if engine.share_bytes <= free:
            return None
        return InsufficientVramError(
            f"it takes {engine.share_bytes // MIB} MiB of a device, {free // MIB} MiB are free",
            needed_bytes=engine.share_bytes,
            free_bytes=free,
        )

    def read_s(self, engine: Engine) -> float:
        """Return how long its weights are read, and keep them in the host's memory."""
        node, model = self._node, engine.id.model
        is_warm = self._cache.pop(model, None) is not None
        self._cache[model] = engine.size_bytes
        while sum(self._cache.values()) > bytes_from_mib(node.page_cache_mb):
            del self._cache[next(iter(self._cache))]
        speed = node.warm_mb_per_s if is_warm and node.warm_mb_per_s else node.load_mb_per_s
        return engine.size_bytes / MIB / speed

    def shift(self, engine: Engine, status: ReplicaStatus, now: float) -> None:
        """Bring an engine into a state, and note how long it was in the one before."""
        begin = self._since.get(engine.id.model)
        if begin is not None and now > begin:
            is_asleep = engine.status is ReplicaStatus.SLEEPING
            self.spans.append(
                Span(
                    node=engine.id.node,
                    model=engine.id.model,
                    devices=engine.devices,
                    status=engine.status.value,
                    begin=begin,
                    end=now,
                    share_bytes=0 if is_asleep else engine.share_bytes,
                )
            )
        self._since[engine.id.model] = now
        engine.status = status

    def drop(self, engine: Engine, now: float) -> None:
        """Note that an engine is gone."""
        self.shift(engine, ReplicaStatus.UNLOADED, now)
        del self._since[engine.id.model]

    def lose(self) -> None:
        """Forget what the host had read: it was switched off."""
        self._cache.clear()
