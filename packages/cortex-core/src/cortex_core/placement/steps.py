"""What a plan may say: the steps that are taken, and why none can be."""

from collections.abc import Iterable

import msgspec

from cortex_core.fleet.state import LoadCommand, Swap, Victim, Way
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.wire.neuron import LoadRequest

_WAYS = {
    Way.SLEEP_1: "put to sleep",
    Way.SLEEP_2: "put to sleep without its weights",
    Way.UNLOAD: "unloaded",
}


class NodeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps one node from loading a model now."""

    node: NodeName
    reason: str
    is_permanent: bool
    """No passing of time and no unloading helps."""
    lacks_room: bool = False
    """It would do if somebody gave way."""
    retry_at: float | None = None
    """Monotonic seconds from which on it is tried again, where somebody else was quicker; infinite
    where a change must come first, and will."""
    is_for_base: bool = False
    """What an adapter lacks there is its base."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Load a model on a node."""

    replica: ReplicaId
    request: LoadRequest
    command: LoadCommand


class Wake(msgspec.Struct, frozen=True, kw_only=True):
    """Wake a model that sleeps on a node."""

    replica: ReplicaId
    command: LoadCommand


class Evict(msgspec.Struct, frozen=True, kw_only=True):
    """Have replicas give way so that a model fits; it follows when the memory is free."""

    model: ModelId
    swap: Swap
    lost_s: float = 0.0
    """Seconds that callers of those who give way are expected to lose."""


class Retire(msgspec.Struct, frozen=True, kw_only=True):
    """Unload a replica that nobody uses."""

    replica: ReplicaId


class Recycle(msgspec.Struct, frozen=True, kw_only=True):
    """Have a node replace its engine processes."""

    node: NodeName
    cycles: int
    """Loads that ended in an unload since that was done last."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing can be loaded for a model now."""

    model: ModelId
    verdicts: tuple[NodeVerdict, ...]
    """One per node that is meant, in the order of the nodes; empty when the catalogue lacks the
    model."""
    retry_at: float | None = None
    """Monotonic seconds at which somebody may give way, infinite when a change must come first;
    `None` when nobody will."""
    only: NodeName | None = None
    """The node that was meant; `None` is any."""
    awaited: frozenset[NodeName] = frozenset()
    """Nodes on which somebody is sure to have been there for long enough at some time."""

    @property
    def is_permanent(self) -> bool:
        """Whether every node could never hold it."""
        return bool(self.verdicts) and all(verdict.is_permanent for verdict in self.verdicts)

    @property
    def why(self) -> str:
        """All reasons in one line, node by node."""
        return "; ".join(f"{verdict.node}: {verdict.reason}" for verdict in self.verdicts)


Step = Load | Wake | Evict | Retire | Recycle | Hold


def parting_of(victims: Iterable[Victim]) -> str:
    """Return in words who gives way, and how."""
    return ", ".join(f"{victim.replica.model} {_WAYS[victim.way]}" for victim in victims)
