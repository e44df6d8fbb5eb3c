"""From a request that was read to an answer: route, wait, attempt, try again."""

import logging
from collections.abc import Awaitable

import msgspec

from cortex_core.dialect import Dialect
from cortex_core.errors import (
    NoReplicaError,
    OverloadedError,
    RejectedAfterEngineFailureError,
)
from cortex_core.ids import ReplicaId
from cortex_core.routing.choose import capacity
from cortex_core.routing.queue import Ticket
from cortex_core.routing.retry import Failure, may_retry
from cortex_core.routing.route import Decision, Refuse, Serve, Wait
from cortex_core.server.clock import Clock
from cortex_core.translate.target import Target
from cortex_gateway.control.journal import Journal
from cortex_gateway.metrics import OK
from cortex_gateway.ports import (
    ProxySettings,
    RequestMetrics,
    Store,
    Upstream,
    UpstreamAnswer,
    UpstreamFailure,
)
from cortex_gateway.proxy.access import NEURON, Access, Accesses, headers_for
from cortex_gateway.proxy.account import FAILED_AT_NODE, Account
from cortex_gateway.proxy.aside import Aside
from cortex_gateway.proxy.asked import Asked, Outbound
from cortex_gateway.proxy.call import Call
from cortex_gateway.proxy.hold import Beat, Hold, Pulse
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines
from cortex_gateway.proxy.overload import OVERLOADED, BackOff, overload_of
from cortex_gateway.proxy.relay import Relay
from cortex_gateway.proxy.reply import Reply
from cortex_gateway.proxy.search import Search, error_of
from cortex_gateway.proxy.targets import target_of

logger = logging.getLogger(__name__)

MAX_ROUNDS = 10
"""How often one request is sent out in all. Every refusal of a neuron brings a fresh report, so
more than a few rounds mean that its reports and its refusals contradict each other."""

NOT_ADMITTED = "x-cortex-not-admitted"
"""Header of a neuron that refused before any work, so that another one may be asked."""

ENGINE_DIED = "x-cortex-engine-died"
"""Header of an error whose request had an engine that died."""

_UNREACHED = frozenset({Failure.CONNECT, Failure.CUT_BEFORE_ANSWER, Failure.CUT_MID_ANSWER})


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """What every request needs of the rooms around."""

    store: Store
    upstream: Upstream
    settings: ProxySettings
    metrics: RequestMetrics
    clock: Clock
    in_flight: InFlight
    lines: Lines
    journal: Journal
    accesses: Accesses
    aside: Aside


class Foreseen(msgspec.Struct, frozen=True, kw_only=True):
    """What will probably be sent, and what it was made for."""

    target: Target
    dialect: Dialect
    outbound: Outbound
    body_bytes: int
    """Size of the caller's body."""


class Walk:
    """Takes one request to an answer.

    Args:
        doors: the rooms around.
        call: the head of the request.
        asked: what it asks for.
        ticket: its place in the line for its model.
        foreseen: what will probably be sent.
        search: its search for a replica.
        reply: the caller's side.
        account: its figures.
    """

    def __init__(
        self,
        doors: Doors,
        call: Call,
        asked: Asked,
        ticket: Ticket,
        foreseen: Foreseen,
        search: Search,
        reply: Reply,
        account: Account,
    ) -> None:
        self._doors = doors
        self._call = call
        self._ticket = ticket
        self._foreseen: Foreseen | None = foreseen
        self._body_bytes = foreseen.body_bytes
        self._thoughts = foreseen.outbound.answer if call.shows_progress else None
        self._shown = ""
        self._overload: OverloadedError | None = None
        """Of the attempt that a full replica has just refused."""
        self._asked = asked
        self._search = search
        self._reply = reply
        self._account = account

    async def run(self) -> None:
        """Send the request out until it is answered.

        Raises:
            RequestError: what the caller is to be told instead.
        """
        settings, call = self._doors.settings, self._call
        hold_s = settings.hold_s if call.wait_s is None else min(call.wait_s, settings.hold_s)
        now = self._doors.clock.now()
        self._doors.store.count(self._search.model, now)
        deadline = now + hold_s
        back_off: BackOff | None = None
        rounds = 0
        while rounds < MAX_ROUNDS:
            serve = await self._choose(deadline)
            if await self._attempt(serve):
                return
            if self._overload is None:
                rounds += 1
                continue
            overload, self._overload = self._overload, None
            back_off = back_off or BackOff(self._doors.clock, deadline)
            await back_off.wait(overload)
        raise NoReplicaError(f"every node that has {self._search.model!r} refuses it")

    def _decide(self) -> Decision:
        doors = self._doors
        return self._search.decide(doors.store.state, doors.lines.decide, doors.clock.now())

    async def _choose(self, deadline: float) -> Serve:
        """Return where to send the request, after a wait if need be."""
        beat = self._show_wait if self._asked.is_stream else None
        if self._search.has_begun:
            decision = await self._anew(deadline, beat)
        else:
            turn = await self._doors.lines.turn(
                self._search.model,
                self._ticket,
                self._search.hints,
                deadline=deadline,
                beat=beat,
                on_wait=self._note,
            )
            decision = turn.decision
            self._search.is_cold |= turn.is_cold
            self._account.load_s += turn.load_s
        self._account.is_cold_start = self._search.is_cold
        self._note(decision)
        if isinstance(decision, Refuse):
            # Many may be told the same; none is to carry the traces of all.
            raise decision.error.with_traceback(None)
        return decision

    def _note(self, decision: Decision) -> None:
        self._doors.journal.request(decision, self._search.model, self._reply.request_id)

    async def _anew(self, deadline: float, beat: Beat | None) -> Serve | Refuse:
        """Return where to send a request that was sent out before."""
        decision = self._decide()
        if isinstance(decision, Wait):
            self._note(decision)
            doors = self._doors
            hold = Hold(doors.store, doors.clock, doors.settings.heartbeat_s)
            with self._account.loading():
                decision = await hold.wait(self._search.model, self._decide, deadline, beat)
        return decision

    async def _attempt(self, serve: Serve) -> bool:
        """Send the request to one replica; False asks for another round."""
        doors, replica, account = self._doors, serve.replica, self._account
        access = doors.accesses.get(replica.node, NEURON)
        target = target_of(doors.store.state, replica, access)
        outbound = self._as_foreseen(target, access.dialect)
        is_retry = self._search.attempts > 0
        try:
            with doors.in_flight.attempt(replica, is_retry=is_retry):
                if outbound is None:
                    outbound = await doors.aside(
                        self._body_bytes, self._asked.outbound, target, access.dialect
                    )
                if self._call.shows_progress:
                    # What is shown from now on must be known to who writes the answer.
                    self._thoughts = outbound.answer
                began = account.dispatch(replica)
                doors.store.touch(replica, began)
                account.ignored = outbound.ignored
                if not await self._send_alive(serve, access, outbound):
                    return False
        except UpstreamFailure as failure:
            self._failed(replica, failure, access)
            return False
        self._answered(replica, began)
        return True

    def _as_foreseen(self, target: Target, dialect: Dialect) -> Outbound | None:
        """Return what was foreseen to be sent, if that is it, the first time."""
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is not None and (foreseen.target, foreseen.dialect) == (target, dialect):
            return foreseen.outbound
        return None

    def _send_alive(self, serve: Serve, access: Access, outbound: Outbound) -> Awaitable[bool]:
        """Send the request, with a heartbeat for who reads a stream; see `_send`."""
        if not self._asked.is_stream:
            return self._send(serve, access, outbound, None)
        return self._send_beating(serve, access, outbound)

    async def _send_beating(self, serve: Serve, access: Access, outbound: Outbound) -> bool:
        text = f"waiting for {serve.replica.model} to begin"
        async with Pulse(self._beat, self._doors.settings.heartbeat_s, text) as pulse:
            return await self._send(serve, access, outbound, pulse)

    async def _send(
        self, serve: Serve, access: Access, outbound: Outbound, pulse: Pulse | None
    ) -> bool:
        """Post the request and pass on its answer; False if the node refused it before any work."""
        answer = None
        doors, url = self._doors, serve.endpoint + outbound.path
        headers = headers_for(access, self._call.onward, outbound.headers)
        try:
            # Once the answer flows it proves by itself that the node lives.
            with doors.store.while_up(serve.replica.node):
                answer = await doors.upstream.post(url, headers, outbound.body)
            if access.is_neuron and answer.status >= 400:
                if has_died(answer):
                    raise UpstreamFailure(Failure.ENGINE_DIED, "its engine died")
                if is_refusal(answer):
                    self._overload = await overload_of(answer)
                    self._refused(serve.replica)
                    return False
            relay = Relay(self._reply, self._account, pulse, self._asked, outbound, access.dialect)
            await relay.run(answer)
        finally:
            if answer is not None:
                answer.close()
        return True

    async def _show_wait(self, text: str, is_load: bool) -> None:
        """Show a streaming caller what it waits for, as reasoning if it wants that."""
        await self._beat(text, is_load)
        if self._thoughts is not None and text != self._shown:
            self._shown = text
            await self._reply.show(self._thoughts.thought(text + "\n"))

    async def _beat(self, text: str, is_load: bool) -> None:
        self._search.is_cold |= is_load
        self._account.is_cold_start = self._search.is_cold
        await self._reply.begin_stream(self._account.answer_headers())
        await self._reply.comment(text)

    def _refused(self, replica: ReplicaId) -> None:
        """Pass a full neuron over until it reports; ask one anew that does not serve the model."""
        doors = self._doors
        if self._overload is not None:
            doors.metrics.attempted(OVERLOADED)
            doors.in_flight.fill(replica, self._places(replica))
            return
        doors.metrics.attempted(Failure.NOT_ADMITTED.value)
        self._search.doubt(replica.node, doors.store.state, doors.clock.now())
        doors.store.doubt(replica)
        doors.store.refresh(replica.node)

    def _places(self, replica: ReplicaId) -> int:
        state, settings = self._doors.store.state, self._doors.settings
        node = state.nodes.get(replica.node)
        known = None if node is None else node.replicas.get(replica.model)
        if known is None:
            return settings.max_in_flight
        return capacity(self._doors.store.catalogue, known, settings.max_in_flight)

    def _failed(self, replica: ReplicaId, failure: UpstreamFailure, access: Access) -> None:
        """Note a failed attempt; returns when another one is allowed.

        Raises:
            RequestError: what the caller is told, when none is.
        """
        doors = self._doors
        if failure.failure is Failure.CUT_MID_ANSWER and not self._reply.has_content:
            # The caller has seen nothing of it, and a node that is cut stops working.
            failure = UpstreamFailure(Failure.CUT_BEFORE_ANSWER, failure.reason)
        self._search.exclude(replica, failure)
        doors.metrics.attempted(failure.failure.value)
        now = doors.clock.now()
        doors.store.failed(replica, now)
        if access.is_neuron:
            self._ask_anew(replica, failure)
        logger.warning(
            "attempt at %s failed: %s",
            replica,
            failure.reason,
            extra={"request_id": self._reply.request_id, "failure": failure.failure.value},
        )
        if not may_retry(
            failure.failure,
            attempts=self._search.attempts,
            bytes_sent=self._reply.has_content,
            retries=doors.in_flight.retries,
            in_flight=doors.in_flight.requests,
        ):
            if self._search.deaths > 1:
                raise RejectedAfterEngineFailureError(
                    f"{self._search.deaths} engines died while they worked on this request; "
                    "send another one"
                )
            raise error_of(failure)

    def _ask_anew(self, replica: ReplicaId, failure: UpstreamFailure) -> None:
        """Have a neuron that could not be reached report, which other upstreams do not."""
        store = self._doors.store
        if failure.failure is Failure.ENGINE_DIED:
            self._search.doubt(replica.node, store.state, self._doors.clock.now())
            store.doubt(replica)
            store.refresh(replica.node)
        if failure.failure is Failure.CONNECT:
            # Nobody listens there, whatever the last report said: others need not try as well.
            store.doubt(replica)
        if failure.failure in _UNREACHED:
            store.refresh(replica.node)

    def _answered(self, replica: ReplicaId, began: float) -> None:
        """Note that the node answered an attempt, well or by itself badly."""
        doors = self._doors
        doors.metrics.attempted(OK)
        now = doors.clock.now()
        doors.store.touch(replica, now)
        doors.store.served(replica.model, now - began)
        if self._account.outcome == FAILED_AT_NODE:
            doors.store.failed(replica, now)
        elif replica in doors.store.state.breakers:
            doors.store.succeeded(replica)


def has_died(answer: UpstreamAnswer) -> bool:
    """Whether a neuron's engine died while it worked on the request, before it said anything."""
    return answer.status >= 500 and (ENGINE_DIED, "1") in answer.headers


def is_refusal(answer: UpstreamAnswer) -> bool:
    """Whether a neuron refused before any work, so that another one may be asked."""
    # 401 is for the fleet's token, which is no matter of the caller.
    return answer.status in (503, 404, 401) and (NOT_ADMITTED, "1") in answer.headers
