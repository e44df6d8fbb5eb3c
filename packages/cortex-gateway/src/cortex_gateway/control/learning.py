"""What models can do that are loaded nowhere: neurons are asked what their files say."""

import logging
from collections.abc import Iterator
from functools import partial

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.errors import RequestError
from cortex_core.fleet.known import Known
from cortex_core.fleet.reducers import with_known
from cortex_core.fleet.state import NodeState
from cortex_core.ids import BootId, ModelId, NodeName
from cortex_core.placement.place import load_request
from cortex_core.server.clock import Clock
from cortex_gateway.control.operations import Operations
from cortex_gateway.control.store import FleetStore

logger = logging.getLogger(__name__)

PAUSE_S = 0.5
"""Between two looks at what is not known yet, however often the fleet changes."""

RETRY_S = 300.0
"""After which a node is asked again that could not say; its weights may have come."""


class _Asked(msgspec.Struct, frozen=True):
    """What a node was asked, when, and in which of its lives."""

    profile: Profile
    boot_id: BootId | None
    at: float

    def is_stale(self, profile: Profile, boot_id: BootId | None, now: float) -> bool:
        """Return whether the answer may be another one now."""
        is_same = (self.profile, self.boot_id) == (profile, boot_id)
        return not is_same or now - self.at >= RETRY_S


class Learning:
    """Asks for each model of the catalogue one node after the other, until one knows.

    Args:
        store: the fleet and the catalogue; what was learnt is noted there.
        operations: asks the neurons.
        clock: monotonic seconds.
    """

    def __init__(self, *, store: FleetStore, operations: Operations, clock: Clock) -> None:
        self._store = store
        self._operations = operations
        self._clock = clock
        self._learnt: dict[ModelId, Profile] = {}
        self._asked: dict[tuple[NodeName, ModelId], _Asked] = {}

    async def run(self) -> None:
        """Learn until cancelled."""
        while True:
            revision = self._store.state.revision
            for profile, node in tuple(self._open()):
                if self._learnt.get(profile.id) != profile:
                    await self._ask(profile, node)
            await self._clock.sleep(PAUSE_S)
            await self._store.changed(revision)

    def _open(self) -> Iterator[tuple[Profile, NodeState]]:
        """Yield what is not known, with whom to ask."""
        now = self._clock.now()
        for profile in self._store.catalogue.profiles.values():
            if profile.base is not None or self._learnt.get(profile.id) == profile:
                continue  # what an adapter can do is what its base can
            for node in self._store.state.nodes.values():
                facts = node.facts
                if facts is None or not node.takes_work or profile.harness not in facts.harnesses:
                    continue
                asked = self._asked.get((node.name, profile.id))
                if asked is None or asked.is_stale(profile, facts.boot_id, now):
                    yield profile, node

    async def _ask(self, profile: Profile, node: NodeState) -> None:
        boot_id = None if node.facts is None else node.facts.boot_id
        asked = _Asked(profile, boot_id, self._clock.now())
        self._asked[(node.name, profile.id)] = asked
        try:
            client = self._operations.client(node.name)
            request = load_request(profile)
            report = await self._operations.send(node.name, lambda: client.fit(request))
        except RequestError as error:
            logger.debug("%s does not say what %s is: %s", node.name, profile.id, error.message)
            return
        except Exception:
            logger.exception("%s could not be asked what %s is", node.name, profile.id)
            return
        if report.capabilities is None:
            return
        self._learnt[profile.id] = profile
        known = Known(capabilities=report.capabilities, limit=report.limit)
        self._store.update(partial(with_known, model=profile.id, known=known))
