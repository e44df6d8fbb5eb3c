"""A simulated engine: one model on one node, with the requests that it works on."""

from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from cortex_core.catalogue import Profile
from cortex_core.errors import RequestError
from cortex_core.fleet.feasibility import share_bytes
from cortex_core.ids import DeviceIndex, ReplicaId
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.simulation.machines import SimulatedNode
from cortex_core.simulation.timeline import Action, Timeline
from cortex_core.simulation.trace import Arrival


class Work(msgspec.Struct, kw_only=True, eq=False):
    """One request at an engine."""

    arrival: Arrival
    answered: Callable[["Work"], None]
    """Called when it ends, however it does."""
    first_at: float | None = None
    """When its first token came, or comes; `None` while it waits in the engine."""
    is_cut: bool = False


class _Prefill(msgspec.Struct, kw_only=True):
    """The one prompt at a time that an engine reads, for whichever of its models."""

    free_at: float = 0.0


class Engine:
    """One model that a node has, in whatever state.

    Args:
        replica: its name.
        profile: its model.
        devices: what it takes, in rank order.
        base: whose prompts are read in turn with its own, where it is an adapter.
        speeds: the node's.
        timeline: virtual time.
        changed: called when what a report says of its load has changed.
    """

    def __init__(
        self,
        replica: ReplicaId,
        profile: Profile,
        devices: tuple[DeviceIndex, ...],
        *,
        base: "Engine | None" = None,
        speeds: SimulatedNode,
        timeline: Timeline,
        changed: Action,
    ) -> None:
        self.id = replica
        self.profile = profile
        self.devices = devices
        self.share_bytes = share_bytes(profile)
        self.status = ReplicaStatus.LOADING
        self.ready_at = 0.0
        """When the load or wake that is under way ends."""
        self.load_s: float | None = None
        self.wake_s: float | None = None
        self.sleep_level = 0
        """1 or 2 while it sleeps or is falling asleep."""
        self.when_ready: list[Callable[[RequestError | None], None]] = []
        """Who waits for the load or wake."""
        self.when_gone: list[Callable[[RequestError | None], None]] = []
        """Who waits for the unload that is under way."""
        self.will_fail = False
        """Whether the load that is under way does not work."""
        self.when_empty: Action | None = None
        """Called when the last request has ended, once it takes no more."""
        self.running: dict[int, Work] = {}
        self.waiting: deque[Work] = deque()
        self._speeds = speeds
        self._timeline = timeline
        self._changed = changed
        self._limit = profile.max_in_flight or speeds.max_in_flight
        self._prefill: _Prefill = _Prefill() if base is None else base._prefill
        self._last_used: float | None = None

    @property
    def size_bytes(self) -> int:
        """What it holds over all its devices."""
        return self.share_bytes * len(self.devices)

    @property
    def host_bytes(self) -> int:
        """What it holds of the host's memory: its weights, while it sleeps at level 1."""
        is_asleep = self.status is ReplicaStatus.SLEEPING
        return self.size_bytes if is_asleep and self.sleep_level == 1 else 0

    @property
    def is_empty(self) -> bool:
        """Whether no request is with it."""
        return not self.running and not self.waiting

    def serve(self, work: Work) -> None:
        """Take a request; only while it is loaded."""
        if len(self.running) < self._limit:
            self._begin(work)
        else:
            self.waiting.append(work)
        self._changed()

    def cut(self) -> None:
        """End every request at once."""
        works = [*self.running.values(), *self.waiting]
        self.running.clear()
        self.waiting.clear()
        for work in works:
            work.is_cut = True
            work.answered(work)

    def replica(self) -> Replica:
        """Return how its node reports it."""
        is_asleep = self.status is ReplicaStatus.SLEEPING
        progress = None
        if self.status in (ReplicaStatus.LOADING, ReplicaStatus.RELOADING):
            eta_s = max(0.0, self.ready_at - self._timeline.now)
            progress = LoadProgress(stage="weights", eta_s=eta_s)
        return Replica(
            id=self.id,
            status=self.status,
            harness=self.profile.harness,
            devices=self.devices,
            vram_used_bytes=0 if is_asleep else self.size_bytes,
            in_flight=len(self.running),
            queued=len(self.waiting),
            last_used=self._last_used,
            load_s=self.load_s,
            wake_s=self.wake_s,
            sleep_level=self.sleep_level if is_asleep else None,
            host_used_bytes=self.host_bytes if is_asleep else None,
            max_in_flight=self._limit,
            progress=progress,
            base=self.profile.base,
        )

    def _begin(self, work: Work) -> None:
        speeds, now = self._speeds, self._timeline.now
        arrival = work.arrival
        begin = max(now, self._prefill.free_at)
        work.first_at = begin + arrival.prompt_tokens / speeds.prefill_tok_per_s
        self._prefill.free_at = work.first_at
        self.running[id(work)] = work
        end = work.first_at + arrival.completion_tokens / speeds.decode_tok_per_s
        self._timeline.at(end, partial(self._end, work))

    def _end(self, work: Work) -> None:
        if work.is_cut:
            return
        del self.running[id(work)]
        self._last_used = self._timeline.now
        if self.waiting:
            self._begin(self.waiting.popleft())
        self._changed()
        work.answered(work)
        if self.when_empty is not None and self.is_empty:
            self.when_empty()
