"""What a plan may say: the steps that are taken, and why none can be."""

import msgspec

from cortex_core.fleet.state import LoadCommand, Swap
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.wire.neuron import LoadRequest


class NodeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps one node from loading a model now."""

    node: NodeName
    reason: str
    is_permanent: bool
    """No passing of time and no unloading helps."""
    lacks_room: bool = False
    """It would do if somebody gave way."""
    retry_at: float | None = None
    """Monotonic seconds from which on it is tried again, where somebody else was quicker."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Load a model on a node."""

    replica: ReplicaId
    request: LoadRequest
    command: LoadCommand


class Evict(msgspec.Struct, frozen=True, kw_only=True):
    """Unload replicas so that a model fits; the load follows when the memory is free."""

    model: ModelId
    swap: Swap


class Retire(msgspec.Struct, frozen=True, kw_only=True):
    """Unload a replica that nobody uses."""

    replica: ReplicaId


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing can be loaded for a model now."""

    model: ModelId
    verdicts: tuple[NodeVerdict, ...]
    """One per node, in the order of the nodes; empty when the catalogue lacks the model."""
    retry_at: float | None = None
    """Monotonic seconds at which somebody may give way, infinite when a change must come first;
    `None` when nobody will."""
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


Step = Load | Evict | Retire | Hold
