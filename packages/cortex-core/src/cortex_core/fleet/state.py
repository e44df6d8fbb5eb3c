"""The fleet snapshot: everything that decisions are taken from."""

import enum
from collections.abc import Iterator, Mapping

import msgspec

from cortex_core.device import DeviceReading
from cortex_core.fleet.breaker import Breaker
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import Measured, NodeFacts
from cortex_core.replica import Replica
from cortex_core.wire.neuron import Activation


class NodeHealth(enum.StrEnum):
    """What the gateway believes of a node."""

    UNSEEN = "unseen"
    """It never answered since this gateway started."""
    UP = "up"
    SUSPECT = "suspect"
    """It missed a beat; still routed to when nothing better is there."""
    DOWN = "down"
    """It missed several; its replicas are unknown, not gone."""


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """One node as last seen."""

    name: NodeName
    endpoint: str
    """Base URL without a trailing slash."""
    health: NodeHealth = NodeHealth.UNSEEN
    misses: int = 0
    """Failed contacts in a row."""
    facts: NodeFacts | None = None
    replicas: Mapping[ModelId, Replica] = msgspec.field(default_factory=dict)
    readings: Mapping[DeviceIndex, DeviceReading] = msgspec.field(default_factory=dict)
    activation: Activation | None = None
    is_draining: bool = False
    is_cordoned: bool = False
    """An operator wants nothing new loaded there; what is there serves on."""
    sleep_budget_bytes: int | None = None
    """Host memory that sleeping models may hold together; `None` where nothing can sleep."""
    sleep_used_bytes: int | None = None
    cycles: int | None = None
    """Loads that ended in an unload since the engines were recycled last."""
    measured: Mapping[ModelId, Measured] = msgspec.field(default_factory=dict)
    """What earlier loads there came to."""
    reported_at: float | None = None
    """Monotonic seconds of the last good report."""
    freed_at: float | None = None
    """Monotonic seconds of the latest report that showed a replica's memory given back; readings
    of devices lag behind that a little."""
    last_error: str | None = None
    """Why the last contact failed; `None` after a good one."""

    @property
    def is_reachable(self) -> bool:
        """Whether requests and commands may be sent to it."""
        return self.health in (NodeHealth.UP, NodeHealth.SUSPECT)

    @property
    def takes_work(self) -> bool:
        """Whether it is reachable and not on its way out."""
        return self.is_reachable and not self.is_draining


class LoadFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Loads of one model on one node that failed in a row."""

    reason: str
    """Short, fit to be shown to callers."""
    failures: int
    retry_at: float
    """Monotonic seconds before which it is not tried again."""
    is_for_room: bool = False
    """The neuron had no room after all, as when another gateway was quicker."""


class LoadCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A load that was sent and not yet answered."""

    devices: tuple[DeviceIndex, ...]
    vram_bytes: int | None
    """What it will take over all its devices, as far as the catalogue knows."""
    sent_at: float
    """Monotonic seconds."""


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is loaded, on this gateway's clock: nodes have clocks of their own."""

    since: float
    """Monotonic seconds of the first report that showed it loaded."""
    used: float
    """Monotonic seconds of the latest report that showed it used, or of `since`."""


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that are being unloaded on a node so that a model fits."""

    node: NodeName
    devices: tuple[DeviceIndex, ...]
    """Kept free of other models meanwhile."""
    share_bytes: int
    """What the model takes of each."""
    victims: tuple[ReplicaId, ...]


class FleetState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known of the fleet; replaced whole, never changed."""

    revision: int = 0
    """Grows by one with every change."""
    nodes: Mapping[NodeName, NodeState] = msgspec.field(default_factory=dict)
    failures: Mapping[ReplicaId, LoadFailure] = msgspec.field(default_factory=dict)
    commands: Mapping[ReplicaId, LoadCommand] = msgspec.field(default_factory=dict)
    breakers: Mapping[ReplicaId, Breaker] = msgspec.field(default_factory=dict)
    residents: Mapping[ReplicaId, Resident] = msgspec.field(default_factory=dict)
    """Every replica that the latest report of its node showed loaded."""
    load_times: Mapping[ReplicaId, float] = msgspec.field(default_factory=dict)
    """Seconds that the latest load of a model on a node took, also when it is gone since."""
    unloads: frozenset[ReplicaId] = frozenset()
    """Replicas that were told to unload; what came of it is not known yet."""
    swaps: Mapping[ModelId, Swap] = msgspec.field(default_factory=dict)
    """By the model that room is made for."""

    @property
    def is_heard(self) -> bool:
        """Whether every node has answered, or failed to, since this gateway started."""
        return all(
            node.health is not NodeHealth.UNSEEN or node.misses for node in self.nodes.values()
        )

    def replicas_of(self, model: ModelId) -> Iterator[tuple[NodeState, Replica]]:
        """Yield every replica of `model` with its node, in the order of the nodes."""
        for node in self.nodes.values():
            replica = node.replicas.get(model)
            if replica is not None:
                yield node, replica
