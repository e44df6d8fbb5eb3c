"""From the name in a request to a model."""

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.errors import ModelNotFoundError
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What a requested name stands for."""

    model: ModelId
    requested: str
    """The name as the caller wrote it."""

    @property
    def is_alias(self) -> bool:
        """Whether the engine knows the model by another name than the caller."""
        return self.model != self.requested


def resolve(state: FleetState, catalogue: Catalogue, requested: str) -> Resolved:
    """Return the model that `requested` names: an alias, a profile, or whatever a node has.

    Raises:
        ModelNotFoundError: it is none of these.
    """
    target = catalogue.aliases.get(requested)
    model = ModelId(requested) if target is None else target
    if model in catalogue.profiles or state.replicas_of(model):
        return Resolved(model=model, requested=requested)
    raise ModelNotFoundError(requested)
