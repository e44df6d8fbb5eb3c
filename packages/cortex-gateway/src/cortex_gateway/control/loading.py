"""Loads that an operator asked for: as a request would, or on a node of the operator's choice."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import msgspec

from cortex_core.errors import (
    ConflictError,
    ModelLoadingError,
    NoReplicaError,
    RequestError,
    UpstreamError,
)
from cortex_core.fleet.reducers import with_command, with_swap, without_failures
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.placement.case import UNDER_WAY, Case
from cortex_core.placement.place import Limits, find_room
from cortex_core.placement.steps import Evict, Hold, Load, Wake
from cortex_core.replica import LoadProgress, Replica, ReplicaStatus
from cortex_core.routing.explain import Explanation, NodeOutlook, Outcome, explain
from cortex_core.routing.route import Refuse, RouteHints, Serve, Wait, route
from cortex_core.server.clock import Clock
from cortex_core.wire.admin import Action, LoadNews, ModelAnswer, ModelCommand, NodeOutcome
from cortex_gateway.control.commands import Commands
from cortex_gateway.control.journal import Journal
from cortex_gateway.control.operations import RESULTS, Operations
from cortex_gateway.control.store import FleetStore

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often a wait is looked at although nothing was reported: time alone may end it."""

BEAT_S = 5.0
"""How often the same news are told again, so that whoever listens sees that it is heard."""

_CHANGING = UNDER_WAY | {ReplicaStatus.UNLOADING, ReplicaStatus.UNKNOWN}

News = AsyncGenerator[LoadNews, None]


class Loading:
    """Has models loaded, and tells how far each load is.

    Args:
        store: the fleet.
        commands: does what is decided for a node.
        operations: sees it through.
        journal: where the steps of a load on a given node are noted.
        clock: monotonic seconds.
        limit_s: how long a load may take in all, with what goes before it.
    """

    def __init__(
        self,
        *,
        store: FleetStore,
        commands: Commands,
        operations: Operations,
        journal: Journal,
        clock: Clock,
        limit_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._commands = commands
        self._operations = operations
        self._journal = journal
        self._clock = clock
        self._limit_s = limit_s

    def foreseen(self, model: ModelId, asked: ModelCommand) -> ModelAnswer:
        """Return what a load would come to, without doing it.

        Raises:
            RequestError: the node does not exist, or is down.
        """
        store, now = self._store, self._clock.now()
        if asked.node is not None:
            self._operations.client(asked.node)
        found = explain(
            store.state,
            store.catalogue,
            model,
            policy=store.policy,
            rates=store.rates(now),
            now=now,
        )
        outcome = _outcome_of(found) if asked.node is None else _outcome_on(found, asked.node)
        return ModelAnswer(model=model, action=Action.LOAD, dry_run=True, nodes=(outcome,))

    def ask(self, model: ModelId, node: NodeName | None) -> ModelAnswer:
        """Have a model loaded, and return at once; the load goes on.

        Raises:
            RequestError: it is clear already that it will not be loaded.
        """
        self.check(model, node)
        ready = self.where(model, node)
        if ready is not None:
            return self.answer(model, ready, changed=False)
        _ = self._operations.start(self._unattended(model, node), f"load {model}")
        outcome = NodeOutcome(node=node, status=ReplicaStatus.LOADING.value)
        return ModelAnswer(model=model, action=Action.LOAD, nodes=(outcome,))

    async def load(self, model: ModelId, node: NodeName | None) -> ModelAnswer:
        """Have a model loaded, and return when it serves.

        Raises:
            RequestError: why it is not.
        """
        self.check(model, node)
        ready = self.where(model, node)
        if ready is None:
            await _drained(self.follow(model, node))
        where = ready or self.where(model, node) or node
        return self.answer(model, where, changed=ready is None)

    def answer(self, model: ModelId, node: NodeName | None, *, changed: bool) -> ModelAnswer:
        """Return what is said of a model that serves on `node`."""
        outcome = NodeOutcome(node=node, status=RESULTS[Action.LOAD], changed=changed)
        return ModelAnswer(model=model, action=Action.LOAD, nodes=(outcome,))

    async def follow(self, model: ModelId, node: NodeName | None) -> News:
        """Have a model loaded, and yield how far it is, with every change and now and then; ends when it serves.

        Whoever stops to listen stops to ask; what is under way goes on.

        Raises:
            RequestError: why it is not loaded.
        """
        deadline = self._clock.now() + self._limit_s()
        last, told_at = None, 0.0
        source = self._anywhere(model) if node is None else self._on(model, node, deadline)
        async with contextlib.aclosing(source):
            async for news in source:
                if self._clock.now() >= deadline:
                    raise ModelLoadingError(f"{model} is not loaded yet: {news.stage}")
                if news != last or self._clock.now() - told_at >= BEAT_S:
                    last, told_at = news, self._clock.now()
                    yield news

    async def _unattended(self, model: ModelId, node: NodeName | None) -> None:
        """Have a model loaded while nobody waits; what goes wrong is for the log."""
        try:
            await _drained(self.follow(model, node))
        except RequestError as error:
            logger.warning("loading %s, as an operator asked, failed: %s", model, error.message)

    def check(self, model: ModelId, node: NodeName | None) -> None:
        """Raise what is known beforehand; loads that failed lately are forgiven.

        Raises:
            RequestError: the node cannot be asked, or nobody can load the model.
        """
        # Somebody who asks in person knows more than the last failure.
        self._store.update(partial(without_failures, model=model))
        if node is not None:
            self._operations.client(node)
            replica = self._replica(ReplicaId(node=node, model=model))
            is_known = model in self._store.catalogue.profiles or replica is not None
            if not is_known:
                raise ConflictError(f"{model} is not in the catalogue, so nobody can load it")
        elif isinstance(decision := self._decide(model), Refuse):
            raise decision.error

    def where(self, model: ModelId, node: NodeName | None) -> NodeName | None:
        """Return where the model serves now, if it does: on `node`, or anywhere."""
        for state, replica in self._store.state.replicas_of(model):
            if state.takes_work and replica.is_servable and node in (None, state.name):
                return state.name
        return None

    def _decide(self, model: ModelId) -> Serve | Wait | Refuse:
        store = self._store
        return route(
            store.state,
            store.catalogue,
            model,
            hints=RouteHints(),
            in_flight={},
            now=self._clock.now(),
            policy=store.policy,
        )

    async def _anywhere(self, model: ModelId) -> News:
        store = self._store
        with store.demand_in_person(model):
            while True:
                revision = store.state.revision
                decision = self._decide(model)
                if isinstance(decision, Serve):
                    return
                if isinstance(decision, Refuse):
                    raise decision.error
                yield _news(
                    model, _coming_on(store.state, model), decision.progress, decision.reason
                )
                await self._changed(revision)

    async def _on(self, model: ModelId, node: NodeName, deadline: float) -> News:
        target = ReplicaId(node=node, model=model)
        task = self._operations.start(self._bring(target, deadline), f"load {target}")
        while not task.done():
            revision = self._store.state.revision
            replica = self._replica(target)
            progress = None if replica is None else replica.progress
            yield _news(model, node, progress, _stage(self._store.state, target, replica))
            await self._changed(revision, task)
        error = task.result()
        if error is not None:
            raise error

    async def _bring(self, target: ReplicaId, deadline: float) -> None:
        """Load or wake a model on a node, after others gave way there if need be.

        Raises:
            RequestError: why it is not loaded.
        """
        while self._clock.now() < deadline:
            state, revision = self._store.state, self._store.state.revision
            node, replica = state.nodes.get(target.node), self._replica(target)
            if node is None or node.health is NodeHealth.DOWN:
                raise UpstreamError(f"{target.node} went away while it loaded {target.model}")
            if replica is not None and replica.is_servable:
                return
            if _is_changing(state, target, replica):
                await self._changed(revision)
            else:
                await self._step(target, revision)
        raise ModelLoadingError(f"{target} is not loaded yet, and is not waited for any longer")

    async def _step(self, target: ReplicaId, revision: int) -> None:
        """Do the next thing on the way to a load.

        Raises:
            RequestError: nothing can be done, or it failed.
        """
        store, now = self._store, self._clock.now()
        case = Case(
            state=store.state,
            catalogue=store.catalogue,
            now=now,
            policy=store.policy,
            rates=store.rates(now),
        )
        step = find_room(case, target.model, Limits(only=target.node))
        match step:
            case Wake(replica=replica, command=command):
                store.update(partial(with_command, replica=replica, command=command))
                await self._send(step, target.node, lambda: self._commands.wake(step))
            case Load(replica=replica, command=command, request=request):
                # The neuron loads even what it has given up, if somebody asks in person.
                request = msgspec.structs.replace(request, automatic=False)
                load = msgspec.structs.replace(step, request=request)
                store.update(partial(with_command, replica=replica, command=command))
                await self._send(load, target.node, lambda: self._commands.load(load))
            case Evict(model=model, swap=swap):
                store.update(partial(with_swap, model=model, swap=swap))
                await self._send(step, target.node, lambda: self._commands.make_room(step))
            case Hold(retry_at=None):
                raise _refusal(store.state, step, target)
            case Hold():
                await self._changed(revision)

    async def _send(
        self,
        step: Wake | Load | Evict,
        node: NodeName,
        send: Callable[[], Awaitable[RequestError | None]],
    ) -> None:
        self._journal.step(step, by_operator=True)
        work = self._operations.send(node, send)
        error = await self._journal.follow(step, work, by_operator=True)
        if error is not None:
            raise error

    def _replica(self, target: ReplicaId) -> Replica | None:
        node = self._store.state.nodes.get(target.node)
        return None if node is None else node.replicas.get(target.model)

    async def _changed(
        self,
        revision: int,
        task: asyncio.Task[RequestError | None] | None = None,
    ) -> None:
        """Return with the next snapshot, when `task` is done, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S), asyncio.TaskGroup() as tasks:
                change = tasks.create_task(self._store.changed(revision))
                waits = {change} if task is None else {change, task}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()


async def _drained(source: News) -> None:
    async with contextlib.aclosing(source):
        async for _ in source:
            pass


def _is_changing(state: FleetState, target: ReplicaId, replica: Replica | None) -> bool:
    """Whether something is under way that a report will end."""
    is_moving = replica is not None and replica.status in _CHANGING
    return is_moving or target in state.commands or target.model in state.swaps


def _coming_on(state: FleetState, model: ModelId) -> NodeName | None:
    """Return where a load or the making of room is under way, if it is."""
    for node, replica in state.replicas_of(model):
        if node.takes_work and replica.status in UNDER_WAY:
            return node.name
    swap = state.swaps.get(model)
    if swap is not None:
        return swap.node
    return next((target.node for target in state.commands if target.model == model), None)


def _stage(state: FleetState, target: ReplicaId, replica: Replica | None) -> str:
    swap = state.swaps.get(target.model)
    if swap is not None:
        return f"{', '.join(victim.model for victim in swap.replicas)} gives way on {swap.node}"
    if replica is not None:
        return f"it is {replica.status}"
    return "it is about to be loaded"


def _news(
    model: ModelId, node: NodeName | None, progress: LoadProgress | None, stage: str
) -> LoadNews:
    if progress is None:
        return LoadNews(model=model, node=node, stage=stage)
    return LoadNews(
        model=model,
        node=node,
        stage=progress.stage,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        bytes_per_s=progress.bytes_per_s,
        eta_s=progress.eta_s,
    )


def _refusal(state: FleetState, hold: Hold, target: ReplicaId) -> RequestError:
    verdict = next((one for one in hold.verdicts if one.node == target.node), None)
    if verdict is None:
        return ConflictError(f"{target.model} is not in the catalogue, so nobody can load it")
    reason = f"{target.model} cannot be loaded on {target.node}: {verdict.reason}"
    if verdict.lacks_room:
        return NoReplicaError(f"{reason}; nobody there may give way")
    return ConflictError(reason)


def _outcome_of(found: Explanation) -> NodeOutcome:
    return NodeOutcome(
        node=found.node,
        status=found.outcome.value,
        changed=found.outcome is not Outcome.SERVE,
        reason=found.summary,
        victims=found.victims,
        expected_s=found.expected_s,
    )


def _outcome_on(found: Explanation, node: NodeName) -> NodeOutcome:
    outlook: NodeOutlook = next(one for one in found.nodes if one.node == node)
    return NodeOutcome(
        node=node,
        status=outlook.outcome.value,
        changed=outlook.outcome is not Outcome.SERVE,
        reason=outlook.reason,
        victims=outlook.victims,
        expected_s=outlook.expected_s,
    )
