"""What the simulated gateway has nodes do: each step from its sending to what came of it."""

from collections.abc import Callable, Mapping
from functools import partial

from cortex_core.errors import (
    ConflictError,
    InsufficientVramError,
    NotFoundError,
    RequestError,
    UpstreamError,
)
from cortex_core.fleet.reducers import (
    with_command,
    with_load_failure,
    with_report,
    with_sleepless,
    with_swap,
    with_unloads,
    without_command,
    without_swap,
    without_unloads,
)
from cortex_core.fleet.state import FleetState, Victim, Way
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.steps import Evict, Load, Retire, Wake
from cortex_core.replica import ReplicaStatus
from cortex_core.simulation.journal import Deed, Journal
from cortex_core.simulation.neuron import Answer, Neuron
from cortex_core.simulation.store import Store
from cortex_core.simulation.timeline import Timeline
from cortex_core.wire.neuron import SleepRequest, UnloadRequest, WakeRequest

RETRY_S = 60.0
"""How long a replica that would not be unloaded for want of use is left in peace."""


class Orders:
    """Performs the steps of a plan.

    Args:
        store: the fleet.
        neurons: the machines.
        timeline: virtual time.
        journal: where deeds are noted.
    """

    def __init__(
        self,
        store: Store,
        neurons: Mapping[NodeName, Neuron],
        timeline: Timeline,
        journal: Journal,
    ) -> None:
        self._store = store
        self._neurons = neurons
        self._timeline = timeline
        self._journal = journal

    def bring(self, step: Load | Wake) -> None:
        """Load or wake a model, and note why when it fails."""
        replica, command = step.replica, step.command
        self._did("load" if isinstance(step, Load) else "wake", replica)
        self._store.note(partial(with_command, replica=replica, command=command))

        def answered(error: RequestError | None) -> None:
            if self._store.state.commands.get(replica) is not command:
                return  # given up when its node was
            if error is not None:
                self._failed(replica, error)
            self._store.update(partial(without_command, replica=replica))

        def send(neuron: Neuron) -> None:
            if isinstance(step, Load):
                neuron.load(step.request, answered)
            else:
                neuron.wake(WakeRequest(model_id=replica.model), answered)

        self._to(replica.node, send, answered)

    def make_room(self, step: Evict) -> None:
        """Have those go who give way; the next plan sees the room."""
        model, swap = step.model, step.swap
        replica = ReplicaId(node=swap.node, model=model)
        self._did("evict", replica, tuple(victim.model for victim in swap.replicas))
        self._store.note(partial(with_swap, model=model, swap=swap))

        def done(error: RequestError | None) -> None:
            if self._store.state.swaps.get(model) is not swap:
                return
            if error is not None:
                self._failed(replica, error)
            self._store.update(partial(without_swap, model=model))
            if error is None and swap.is_bound:
                self._store.want_on(replica)
            elif error is None:
                # Who asked may have left, and nobody shall have given way for nothing.
                self._store.want_first(model)

        replicas = self._store.state.nodes[swap.node].replicas
        asleep = {name for name, r in replicas.items() if r.status is ReplicaStatus.SLEEPING}
        first = [victim for victim in swap.victims if victim.replica.model in asleep]
        then = [victim for victim in swap.victims if victim.replica.model not in asleep]
        # Those who are to sleep need the host's memory that the sleepers give back.
        self._send_off(first, lambda error: done(error) if error else self._send_off(then, done))

    def retire(self, step: Retire) -> None:
        """Unload what nobody uses."""
        replica = step.replica
        self._did("retire", replica)
        self._store.note(partial(with_unloads, replicas=(replica,)))

        def forget() -> None:
            self._store.update(partial(without_unloads, replicas=(replica,)))

        def answered(error: RequestError | None) -> None:
            if error is None:
                forget()
            else:
                self._timeline.at(self._timeline.now + RETRY_S, forget)

        self._unload(replica, answered)

    def _send_off(self, victims: list[Victim], done: Answer) -> None:
        """Have some replicas go together, and tell when all are gone, or why one is not."""
        errors: list[RequestError | None] = []

        def gone(error: RequestError | None) -> None:
            errors.append(error)
            if len(errors) == len(victims):
                done(next((error for error in errors if error is not None), None))

        if not victims:
            done(None)
        for victim in victims:
            if victim.way is Way.UNLOAD:
                self._unload(victim.replica, gone)
            else:
                self._lay_down(victim, gone)

    def _lay_down(self, victim: Victim, gone: Answer) -> None:
        """Put a replica to sleep, or unload it when it does not sleep."""
        replica = victim.replica
        request = SleepRequest(
            model_id=replica.model,
            level=1 if victim.way is Way.SLEEP_1 else 2,
            drain_timeout_s=self._store.policy.drain_s,
        )

        def answered(error: RequestError | None) -> None:
            if error is None:
                gone(None)
                return
            if isinstance(error, ConflictError | NotFoundError):
                self._store.note(partial(with_sleepless, replica=replica))
            self._unload(replica, gone)

        self._to(replica.node, lambda neuron: neuron.sleep(request, answered), answered)

    def _unload(self, replica: ReplicaId, answered: Answer) -> None:
        request = UnloadRequest(model_id=replica.model, drain_timeout_s=self._store.policy.drain_s)

        def told(error: RequestError | None) -> None:
            if isinstance(error, NotFoundError):
                # A node that has just begun anew is shown as it was; who was not told better
                # would plan the same again, in no time, for ever.
                self._store.note(partial(self._reported, replica.node))
                error = None
            answered(error)

        self._to(replica.node, lambda neuron: neuron.unload(request, told), told)

    def _reported(self, name: NodeName, state: FleetState) -> FleetState:
        return with_report(state, name, self._neurons[name].report(), self._timeline.now)

    def _to(self, name: NodeName, send: Callable[[Neuron], None], answered: Answer) -> None:
        neuron = self._neurons[name]
        if neuron.is_up:
            send(neuron)
        else:
            answered(UpstreamError("the node could not be reached"))

    def _failed(self, replica: ReplicaId, error: RequestError) -> None:
        lacks_room = isinstance(error, InsufficientVramError)
        self._store.update(
            partial(
                with_load_failure,
                replica=replica,
                reason=error.message,
                now=self._timeline.now,
                is_for_room=lacks_room,
                needed_bytes=error.needed_bytes if isinstance(error, InsufficientVramError) else 0,
            )
        )

    def _did(self, kind: str, replica: ReplicaId, victims: tuple[ModelId, ...] = ()) -> None:
        deed = Deed(
            at=self._timeline.now,
            kind=kind,
            model=replica.model,
            node=replica.node,
            victims=victims,
        )
        self._journal.deeds.append(deed)


def without_orders(state: FleetState, *, name: NodeName) -> FleetState:
    """Forget what a node that is down was told: its answers may never come."""
    for replica in [replica for replica in state.commands if replica.node == name]:
        state = without_command(state, replica)
    for model in [model for model, swap in state.swaps.items() if swap.node == name]:
        state = without_swap(state, model)
    return without_unloads(state, [r for r in state.unloads if r.node == name])
