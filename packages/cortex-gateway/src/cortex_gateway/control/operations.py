"""What operators have done to nodes and models: commands to neurons, seen by the planner."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, assert_never

from cortex_core.errors import (
    ConflictError,
    InternalError,
    NotFoundError,
    RequestError,
    UpstreamError,
)
from cortex_core.fleet.reducers import (
    with_command,
    with_unloads,
    without_command,
    without_unloads,
)
from cortex_core.fleet.state import FleetState, LoadCommand, NodeHealth, NodeState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.routing.record import DecisionKind
from cortex_core.server.clock import Clock
from cortex_core.wire.admin import Action, CordonAnswer, ModelAnswer, ModelCommand, NodeOutcome
from cortex_core.wire.neuron import (
    CordonRequest,
    PinRequest,
    SleepRequest,
    UnloadRequest,
    WakeRequest,
)
from cortex_gateway.control.commands import is_gone, shown
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.store import FleetStore
from cortex_gateway.ports import NodeClient, UpstreamFailure

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESULTS: Mapping[Action, str] = {
    Action.LOAD: "loaded",
    Action.UNLOAD: "unloaded",
    Action.SLEEP: "sleeping",
    Action.WAKE: "loaded",
    Action.PIN: "pinned",
    Action.UNPIN: "unpinned",
}
"""What a model is after an action."""

_PLACED = frozenset({Action.UNLOAD, Action.SLEEP})
"""After these it holds less, so that the planner must not count on it meanwhile."""


class Operations:
    """Sends an operator's commands to neurons.

    A command that was sent is seen through although whoever gave it leaves: half an unload helps
    nobody. An async context manager; what still runs at its end is given up.

    Args:
        store: the fleet; what is under way is noted there.
        clients: of the nodes that are neurons.
        journal: where what is done is noted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        store: FleetStore,
        clients: Mapping[NodeName, NodeClient],
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._store = store
        self._journal = journal
        self._clients = clients
        self._clock = clock
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._running:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(
        self, work: Coroutine[object, object, T], name: str
    ) -> asyncio.Task[T | RequestError]:
        """Run `work` to its end, whoever waits for it; its failure is its result."""
        task = self._group.create_task(_caught(work), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, work: Coroutine[object, object, T], name: str) -> T:
        """Return what `work` returns; it goes on although this is cancelled.

        Raises:
            RequestError: as `work` does.
        """
        result = await asyncio.shield(self.start(work, name))
        if isinstance(result, RequestError):
            raise result
        return result

    async def send(self, node: NodeName, send: Callable[[], Awaitable[T]]) -> T:
        """Send a command; it is given up when the node goes down: no answer may ever come.

        Raises:
            UpstreamError: it went down.
        """
        try:
            with self._store.while_up(node):
                return await send()
        except UpstreamFailure as failure:
            raise UpstreamError(f"{node}: {failure.reason}") from None

    async def cordon(self, name: NodeName, *, is_cordoned: bool, dry_run: bool) -> CordonAnswer:
        """Have a node take no new models, or take them again.

        Raises:
            RequestError: there is no such node, or it does not do so.
        """
        client = self.client(name)
        answer = CordonAnswer(
            node=name,
            status="cordoned" if is_cordoned else "uncordoned",
            changed=self._store.state.nodes[name].is_cordoned is not is_cordoned,
            dry_run=dry_run,
        )
        if not dry_run:
            request = CordonRequest(cordoned=is_cordoned)
            kind = DecisionKind.CORDON if is_cordoned else DecisionKind.UNCORDON
            target = ReplicaId(node=name, model=ModelId(""))
            work = self.send(name, lambda: client.cordon(request))
            await self.run(self._journal.obey(kind, target, work), f"cordon {name}")
            logger.info("%s is %s", name, answer.status)
            await shown(
                self._store, name, lambda s: _is_marked(s.nodes.get(name), is_cordoned=is_cordoned)
            )
        return answer

    async def perform(self, action: Action, model: ModelId, asked: ModelCommand) -> ModelAnswer:
        """Do something to a model on one node, or on every node that has it.

        All nodes are tried, whatever becomes of the others.

        Raises:
            RequestError: a node did not do it; with several nodes the message says what each did.
        """
        targets = self._targets(action, model, asked.node)
        outcomes = {target: self._foreseen(action, target, asked) for target in targets}
        if not asked.dry_run:
            if action in _PLACED:
                # Else what was wanted before would bring back what is sent off here.
                self._store.renounce(model, asked.node)
            tasks = {
                target: self.start(self.act(action, target, asked.level), f"{action} {target}")
                for target in targets
            }
            if tasks:
                # Unlike `gather`, this leaves them alone when it is cancelled.
                await asyncio.wait(tasks.values())
            _raise_failures(action, {target: task.result() for target, task in tasks.items()})
        return ModelAnswer(
            model=model, action=action, dry_run=asked.dry_run, nodes=tuple(outcomes.values())
        )

    async def act(self, action: Action, replica: ReplicaId, level: int = 1) -> None:
        """Do something to one replica, and return when a report shows it.

        Raises:
            RequestError: why it was not done.
        """
        if _is_so(self._store.state, action, replica, level):
            return
        client = self.client(replica.node)
        note, unnote = self._notes(action, replica)
        self._store.update(note)
        try:
            send = partial(self._request, client, action, replica.model, level)
            work = self.send(replica.node, send)
            await self._journal.obey(DecisionKind(action.value), replica, work)
            logger.info("%s: %s, as an operator asked", replica, RESULTS[action])
            await shown(self._store, replica.node, lambda s: _is_shown(s, action, replica, level))
        finally:
            self._store.update(unnote)
            self._store.refresh(replica.node)

    def client(self, name: NodeName) -> NodeClient:
        """Return the client of a node that can be asked.

        Raises:
            NotFoundError: there is no such node.
            ConflictError: it is an upstream.
            UpstreamError: it is down.
        """
        node = self._store.state.nodes.get(name)
        if node is None:
            known = ", ".join(sorted(self._clients)) or "none"
            raise NotFoundError(f"there is no node {name[:200]!r}; there are: {known}")
        if name not in self._clients:
            raise ConflictError(f"{name} is an upstream, which takes no commands")
        if node.health is NodeHealth.DOWN:
            raise UpstreamError(f"{name} is down: {node.last_error}")
        return self._clients[name]

    def _targets(
        self, action: Action, model: ModelId, node: NodeName | None
    ) -> tuple[ReplicaId, ...]:
        """Return where to do it.

        Raises:
            RequestError: the node does not exist, or nobody has what the action needs.
        """
        if node is not None:
            self.client(node)
            return (ReplicaId(node=node, model=model),)
        pairs = self._store.state.replicas_of(model)
        targets = tuple(replica.id for state, replica in pairs if state.name in self._clients)
        if not targets and pairs:
            raise ConflictError(f"{model} is an upstream's, which takes no commands")
        if not targets and action not in (Action.UNLOAD, Action.UNPIN):
            raise ConflictError(f"no node has {model}; say on which one it is meant")
        return targets

    def _foreseen(self, action: Action, replica: ReplicaId, asked: ModelCommand) -> NodeOutcome:
        is_so = _is_so(self._store.state, action, replica, asked.level)
        node = self._store.state.nodes[replica.node]
        reason = "" if node.is_reachable else f"the node is {node.health}"
        return NodeOutcome(
            node=replica.node, status=RESULTS[action], changed=not is_so, reason=reason
        )

    def _notes(
        self, action: Action, replica: ReplicaId
    ) -> tuple[Callable[[FleetState], FleetState], Callable[[FleetState], FleetState]]:
        """Return how what is under way is noted for the planner, and how that is taken back."""
        if action in _PLACED:
            return (
                partial(with_unloads, replicas=(replica,)),
                partial(without_unloads, replicas=(replica,)),
            )
        if action is Action.WAKE:
            known = _known(self._store.state, replica)
            profile = self._store.catalogue.profiles.get(replica.model)
            command = LoadCommand(
                devices=() if known is None else known.devices,
                vram_bytes=None if profile is None else profile.vram_bytes,
                sent_at=self._clock.now(),
                is_wake=True,
            )
            return (
                partial(with_command, replica=replica, command=command),
                partial(without_command, replica=replica),
            )
        return _unchanged, _unchanged

    async def _request(
        self, client: NodeClient, action: Action, model: ModelId, level: int
    ) -> None:
        drain_s = self._store.policy.drain_s
        match action:
            case Action.UNLOAD:
                await _unload(client, UnloadRequest(model_id=model, drain_timeout_s=drain_s))
            case Action.SLEEP:
                request = SleepRequest(
                    model_id=model, level=2 if level == 2 else 1, drain_timeout_s=drain_s
                )
                await client.sleep(request)
            case Action.WAKE:
                await client.wake(WakeRequest(model_id=model))
            case Action.PIN | Action.UNPIN:
                await client.pin(PinRequest(model_id=model, pinned=action is Action.PIN))
            case Action.LOAD:
                raise AssertionError("loads are planned, not sent")
            case _:
                assert_never(action)


async def _caught(work: Coroutine[object, object, T]) -> T | RequestError:
    try:
        return await work
    except RequestError as error:
        return error
    except Exception:
        logger.exception("a command of an operator failed by a bug")
        return InternalError()


async def _unload(client: NodeClient, request: UnloadRequest) -> None:
    try:
        await client.unload(request)
    except NotFoundError:
        return  # gone already, which is what was asked for


def _unchanged(state: FleetState) -> FleetState:
    return state


def _known(state: FleetState, replica: ReplicaId) -> Replica | None:
    node = state.nodes.get(replica.node)
    return None if node is None else node.replicas.get(replica.model)


def _is_marked(node: NodeState | None, *, is_cordoned: bool) -> bool:
    return node is None or node.is_cordoned is is_cordoned


def _is_so(state: FleetState, action: Action, replica: ReplicaId, level: int) -> bool:
    """Whether nothing is left to do, as far as the snapshot knows."""
    known = _known(state, replica)
    match action:
        case Action.UNLOAD:
            return known is None
        case Action.SLEEP:
            is_asleep = known is not None and known.status is ReplicaStatus.SLEEPING
            return is_asleep and known is not None and known.sleep_level in (level, None)
        case Action.WAKE | Action.LOAD:
            return known is not None and known.is_servable
        case Action.PIN:
            return known is not None and known.is_pinned
        case Action.UNPIN:
            return known is not None and not known.is_pinned
        case _:
            assert_never(action)


def _is_shown(state: FleetState, action: Action, replica: ReplicaId, level: int) -> bool:
    """Whether the snapshot shows what an action did, or cannot."""
    node = state.nodes.get(replica.node)
    if node is None or not node.is_reachable:
        return True
    if action is Action.UNLOAD:
        return is_gone(state, replica)
    is_marked = action in (Action.PIN, Action.UNPIN)
    # A pin of a model that is not there is in no report.
    return (is_marked and replica.model not in node.replicas) or _is_so(
        state, action, replica, level
    )


def _raise_failures(action: Action, results: Mapping[ReplicaId, RequestError | None]) -> None:
    """Raise what went wrong, if anything did.

    Raises:
        RequestError: of the node that failed first in order; with several nodes its message says
            what each did.
    """
    first = next((error for error in results.values() if error is not None), None)
    if first is None:
        return
    if len(results) > 1:
        first.message = "; ".join(
            f"{target.node}: {RESULTS[action] if error is None else error.message}"
            for target, error in results.items()
        )
    raise first
