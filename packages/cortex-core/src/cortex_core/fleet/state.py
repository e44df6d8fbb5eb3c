"""The fleet snapshot: everything that decisions are taken from."""

import enum
import math
from collections.abc import Mapping
from functools import cached_property

import msgspec

from cortex_core.device import DeviceReading
from cortex_core.fleet.breaker import Breaker
from cortex_core.fleet.known import Known, told_by
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import Measured, NodeFacts
from cortex_core.replica import Replica, ReplicaStatus
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


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is loaded or sleeps, on this gateway's clock: nodes have their own."""

    since: float
    """Monotonic seconds of the first report that showed it loaded; a wake begins it anew."""
    used: float
    """Monotonic seconds of the latest sign that it is used, or of `since`."""
    is_new: bool = True
    """Whether it was seen to come; one that a node had at its first report may be of any age."""

    def age_s(self, now: float) -> float:
        """Return for how many seconds it is there, at least; endless if it was not seen to come."""
        return now - self.since if self.is_new else math.inf


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Device memory that the replicas of a node hold, by device and in bytes."""

    staying: Mapping[DeviceIndex, int]
    leaving: Mapping[DeviceIndex, int]
    """Held by those that are being unloaded."""
    unsized: tuple[Replica, ...]
    """Those that hold memory of which their node does not say how much."""


class NodeState(msgspec.Struct, frozen=True, kw_only=True, dict=True):
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
    is_recycling: bool = False
    """Its engine processes are being replaced, whoever asked for that."""
    is_cordoned: bool = False
    """An operator wants nothing new loaded there; what is there serves on."""
    sleep_budget_bytes: int | None = None
    """Host memory that sleeping models may hold together; `None` where nothing can sleep."""
    sleep_used_bytes: int | None = None
    cycles: int | None = None
    """Loads that ended in an unload since the engines were recycled last."""
    measured: Mapping[ModelId, Measured] = msgspec.field(default_factory=dict)
    """What earlier loads there came to."""
    residents: Mapping[ModelId, Resident] = msgspec.field(default_factory=dict)
    """Every replica that the latest report showed loaded or asleep."""
    load_times: Mapping[ModelId, float] = msgspec.field(default_factory=dict)
    """Seconds that the latest load of a model there took, also when it is gone since."""
    sleepless: frozenset[ModelId] = frozenset()
    """Models that would not sleep there when they were told to."""
    recycle_after: float | None = None
    """Monotonic seconds before which its engines are not recycled again, as that failed."""
    reported_at: float | None = None
    """Monotonic seconds of the last good report."""
    freed_at: float | None = None
    """Monotonic seconds of the latest report that showed a replica's memory given back; readings
    of devices lag behind that a little."""
    last_error: str | None = None
    """Why the last contact failed; `None` after a good one."""

    @cached_property
    def tally(self) -> Tally:
        """What its replicas hold, as far as the node itself knows."""
        staying: dict[DeviceIndex, int] = {}
        leaving: dict[DeviceIndex, int] = {}
        unsized = []
        for replica in self.replicas.values():
            if not replica.holds_memory or replica.base is not None:
                continue
            size = self.size_of(replica)
            if size is None:
                unsized.append(replica)
                continue
            to = leaving if replica.status is ReplicaStatus.UNLOADING else staying
            for index in replica.devices:
                to[index] = to.get(index, 0) + size // len(replica.devices)
        return Tally(staying=staying, leaving=leaving, unsized=tuple(unsized))

    @cached_property
    def room(self) -> Mapping[DeviceIndex, int]:
        """Free bytes by device: what the driver says, or less where replicas hold more.

        Replicas whose size the node does not know count as nothing.
        """
        tally, free = self.tally, {}
        for device in self.facts.devices if self.facts is not None else ():
            index = device.index
            held = tally.staying.get(index, 0) + tally.leaving.get(index, 0)
            left = device.vram_total_bytes - held
            reading = self.readings.get(index)
            if reading is not None and reading.vram_free_bytes is not None:
                left = min(left, reading.vram_free_bytes)
            free[index] = max(0, left)
        return free

    @cached_property
    def broken(self) -> frozenset[DeviceIndex]:
        """Devices on which nothing can be loaded, as its neuron says."""
        return frozenset(
            reading.index for reading in self.readings.values() if not reading.condition.is_usable
        )

    @cached_property
    def widest_bytes(self) -> float:
        """The most that is free on a device; infinite on a node without devices."""
        return max(self.room.values(), default=math.inf)

    @cached_property
    def coldest(self) -> tuple[bool, float]:
        """Whether all loaded replicas are busy, and when the one was used that waits for longest.

        The latter is minus infinity where one is loaded that was never seen to come.
        """
        loaded = [r for r in self.replicas.values() if r.status is ReplicaStatus.LOADED]
        known = (self.residents.get(replica.id.model) for replica in loaded)
        used = (-math.inf if resident is None else resident.used for resident in known)
        return all(replica.is_busy for replica in loaded), min(used, default=math.inf)

    @cached_property
    def first_used(self) -> float:
        """When the resident was used that nobody has used for longest; infinite without one."""
        return min((resident.used for resident in self.residents.values()), default=math.inf)

    @cached_property
    def adapters(self) -> Mapping[ModelId, tuple[Replica, ...]]:
        """Adapters that are on an engine or about to be, by its model; others are left out."""
        found: dict[ModelId, tuple[Replica, ...]] = {}
        for replica in self.replicas.values():
            if replica.base is not None and replica.holds_memory:
                found[replica.base] = (*found.get(replica.base, ()), replica)
        return found

    def with_adapters(self, replica: Replica) -> tuple[Replica, ...]:
        """Return a replica with the adapters on its engine, which go when it goes."""
        return (replica, *self.adapters.get(replica.id.model, ()))

    def sharing(self, replica: Replica) -> tuple[Replica, ...]:
        """Return all replicas on the engine of `replica`, which is one of them: a base and its adapters."""
        if not self.adapters:
            return (replica,)
        base = replica.base or replica.id.model
        there = self.replicas.get(base)
        return (*(() if there is None else (there,)), *self.adapters.get(base, ()))

    def size_of(self, replica: Replica) -> int | None:
        """Return what a replica holds over all its devices, as the node has it now or measured it.

        A sleeping one holds nothing; what is returned for it is what it takes awake.
        """
        measured = self.measured.get(replica.id.model)
        known = None if measured is None else measured.vram_bytes
        is_asleep = replica.status is ReplicaStatus.SLEEPING
        return known if is_asleep or replica.vram_used_bytes is None else replica.vram_used_bytes

    @property
    def is_reachable(self) -> bool:
        """Whether requests and commands may be sent to it."""
        return self.health in (NodeHealth.UP, NodeHealth.SUSPECT)

    @property
    def takes_work(self) -> bool:
        """Whether it is reachable and not on its way out."""
        return self.is_reachable and not self.is_draining


Pairs = tuple[tuple[NodeState, Replica], ...]
"""Replicas with their nodes."""


class LoadFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Loads of one model on one node that failed in a row."""

    reason: str
    """Short, fit to be shown to callers."""
    failures: int
    retry_at: float
    """Monotonic seconds before which it is not tried again."""
    is_for_room: bool = False
    """The neuron had no room after all, as when another gateway was quicker."""
    needed_bytes: int = 0
    """What it takes over all its devices, as the neuron said when it had no room; 0 when it did
    not say."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What another node than the head is to hold of a model that is being loaded."""

    node: NodeName
    model: ModelId
    devices: tuple[DeviceIndex, ...]
    vram_bytes: int | None
    """Over all these devices, as far as anybody knows."""


class LoadCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A load or a wake that was sent and not yet answered."""

    devices: tuple[DeviceIndex, ...]
    vram_bytes: int | None
    """What it will take over all its devices, as far as anybody knows."""
    sent_at: float
    """Monotonic seconds."""
    is_wake: bool = False
    members: tuple[Member, ...] = ()
    """The other nodes of a copy that several hold together."""


class Way(enum.StrEnum):
    """How a replica gives way."""

    SLEEP_1 = "sleep_1"
    """Its weights go to host memory."""
    SLEEP_2 = "sleep_2"
    """Its weights are dropped, its engine stays."""
    UNLOAD = "unload"


class Victim(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that gives way, and how."""

    replica: ReplicaId
    way: Way = Way.UNLOAD


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that give way on a node so that a model fits."""

    node: NodeName
    devices: tuple[DeviceIndex, ...]
    """Kept free of other models meanwhile."""
    share_bytes: int
    """What the model takes of each."""
    victims: tuple[Victim, ...]
    """Sleepers among them are unloaded so that others can sleep."""
    is_bound: bool = False
    """Whether the model is wanted on this very node, also when it is served by another."""

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        """Who gives way."""
        return tuple(victim.replica for victim in self.victims)


class FleetState(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything known of the fleet; replaced whole, never changed.

    What is reckoned from it is kept beside it, so that a decision costs what it is about and
    not what the fleet has.
    """

    revision: int = 0
    """Grows by one with every change."""
    nodes: Mapping[NodeName, NodeState] = msgspec.field(default_factory=dict)
    known: Mapping[ModelId, Known] = msgspec.field(default_factory=dict)
    """What a neuron says of models in the catalogue from their files."""
    failures: Mapping[ReplicaId, LoadFailure] = msgspec.field(default_factory=dict)
    commands: Mapping[ReplicaId, LoadCommand] = msgspec.field(default_factory=dict)
    breakers: Mapping[ReplicaId, Breaker] = msgspec.field(default_factory=dict)
    unloads: frozenset[ReplicaId] = frozenset()
    """Replicas that were told to unload or to sleep; what came of it is not known yet."""
    swaps: Mapping[ModelId, Swap] = msgspec.field(default_factory=dict)
    """By the model that room is made for."""
    recycling: NodeName | None = None
    """The node that was told to recycle its engines."""

    @property
    def is_heard(self) -> bool:
        """Whether every node has answered, or failed to, since this gateway started."""
        return all(
            node.health is not NodeHealth.UNSEEN or node.misses for node in self.nodes.values()
        )

    @cached_property
    def homes(self) -> Mapping[ModelId, tuple[NodeName, ...]]:
        """Nodes that have a replica, in any state, by model, in the order of the nodes."""
        homes: dict[ModelId, list[NodeName]] = {}
        for node in self.nodes.values():
            for model in node.replicas:
                homes.setdefault(model, []).append(node.name)
        return {model: tuple(names) for model, names in homes.items()}

    @cached_property
    def spread(self) -> frozenset[ModelId]:
        """Models that are on more nodes than one, in any state."""
        return frozenset(model for model, names in self.homes.items() if len(names) > 1)

    @cached_property
    def commands_at(self) -> Mapping[NodeName, Mapping[ModelId, LoadCommand]]:
        """The commands by node and model; nodes without one are left out."""
        found: dict[NodeName, dict[ModelId, LoadCommand]] = {}
        for target, command in self.commands.items():
            found.setdefault(target.node, {})[target.model] = command
        return found

    @cached_property
    def members_at(self) -> Mapping[NodeName, tuple[Member, ...]]:
        """What nodes are to hold of models whose heads were told to load; others are left out."""
        found: dict[NodeName, tuple[Member, ...]] = {}
        for command in self.commands.values():
            for member in command.members:
                found[member.node] = (*found.get(member.node, ()), member)
        return found

    @cached_property
    def swaps_at(self) -> Mapping[NodeName, tuple[Swap, ...]]:
        """The swaps by node; nodes without one are left out."""
        found: dict[NodeName, tuple[Swap, ...]] = {}
        for swap in self.swaps.values():
            found[swap.node] = (*found.get(swap.node, ()), swap)
        return found

    def resident(self, replica: ReplicaId) -> Resident | None:
        """Return since when a replica is there, or `None` when no report has shown it."""
        node = self.nodes.get(replica.node)
        return None if node is None else node.residents.get(replica.model)

    def sharing(self, replica: ReplicaId) -> tuple[ModelId, ...]:
        """Return the models on the engine of a replica, its own among them."""
        node = self.nodes.get(replica.node)
        known = None if node is None else node.replicas.get(replica.model)
        if node is None or known is None:
            return (replica.model,)
        return tuple(one.id.model for one in node.sharing(known))

    def is_served(self, model: ModelId) -> bool:
        """Whether a request for `model` has somewhere to go now."""
        return any(
            node.takes_work and replica.is_servable for node, replica in self.replicas_of(model)
        )

    @property
    def is_recycling(self) -> bool:
        """Whether the engine processes of a node are being replaced, whoever asked for that."""
        if self.recycling is not None:
            return True
        return any(node.is_recycling for node in self.nodes.values())

    def replicas_of(self, model: ModelId) -> Pairs:
        """Return every replica of `model` with its node, in the order of the nodes."""
        found = self._pairs.get(model)
        if found is None:
            homes = [self.nodes[name] for name in self.homes.get(model, ())]
            found = tuple([(node, node.replicas[model]) for node in homes])
            if found:
                # Not of names that callers make up: they would stay as long as the snapshot.
                self._pairs[model] = found
        return found

    def told_of(self, model: ModelId) -> Known:
        """Return what the replicas of `model` say that it can do."""
        told = self._told.get(model)
        if told is None:
            told = told_by([replica for _, replica in self.replicas_of(model)])
            if self.replicas_of(model):
                self._told[model] = told
        return told

    @cached_property
    def _pairs(self) -> dict[ModelId, Pairs]:
        return {}

    @cached_property
    def _told(self) -> dict[ModelId, Known]:
        return {}
