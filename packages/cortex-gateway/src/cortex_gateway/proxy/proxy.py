"""The edge of the data path: whatever happens to a request, it is answered and accounted for."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import (
    DrainingError,
    InternalError,
    ModelNotFoundError,
    RequestError,
)
from cortex_core.harness import FILES_ROUTES
from cortex_core.ids import ModelId
from cortex_core.routing.choose import affinity_of
from cortex_core.routing.queue import ANSWER_TOKENS, BYTES_PER_TOKEN, Ticket, cost_of
from cortex_core.routing.resolve import Resolved, resolve
from cortex_core.routing.route import RouteHints
from cortex_core.server.clock import Clock
from cortex_core.server.exchange import ClientGoneError, Cut, exchange_of
from cortex_core.simulation.trace import Arrival
from cortex_gateway.control.journal import Journal
from cortex_gateway.ports import ProxySettings, RequestMetrics, Store, Upstream
from cortex_gateway.proxy.access import Accesses
from cortex_gateway.proxy.account import Account
from cortex_gateway.proxy.aside import LARGE_BYTES, Aside
from cortex_gateway.proxy.asked import ReadAsked
from cortex_gateway.proxy.call import Call, read_body, read_call
from cortex_gateway.proxy.inflight import InFlight
from cortex_gateway.proxy.lines import Lines
from cortex_gateway.proxy.reply import Reply
from cortex_gateway.proxy.search import Search
from cortex_gateway.proxy.targets import foreseen_target
from cortex_gateway.proxy.unloaded import FilesWalk
from cortex_gateway.proxy.walk import Doors, Foreseen, Walk

logger = logging.getLogger(__name__)


HEARD_S = 10.0
"""Bound on the wait for nodes that were never asked; a poll ends within a second or two."""


class Proxy:
    """Serves model requests of every dialect.

    Args:
        store: the fleet snapshot.
        upstream: sends requests to nodes.
        settings: the waits.
        metrics: where requests are counted.
        clock: monotonic seconds.
        journal: where decisions are noted.
        random: draws from [0, 1), for the choice between replicas.
        accesses: how upstreams that are no neurons are spoken to.
        trace: takes every request for a known model at its end; `None` records none.
        in_flight: counts the requests with replicas; `None` counts anew.
        lines: have requests wait for their turns; `None` makes them.
        aside: does what large bodies need; `None` makes it.
    """

    def __init__(
        self,
        *,
        store: Store,
        upstream: Upstream,
        settings: ProxySettings,
        metrics: RequestMetrics,
        clock: Clock,
        journal: Journal,
        random: Callable[[], float],
        accesses: Accesses | None = None,
        trace: Callable[[Arrival], None] | None = None,
        in_flight: InFlight | None = None,
        lines: Lines | None = None,
        aside: Aside | None = None,
    ) -> None:
        self.journal = journal
        self._trace = trace
        self.in_flight = in_flight or InFlight()
        self.lines = lines or Lines(
            store=store, in_flight=self.in_flight, settings=settings, clock=clock, random=random
        )
        self.aside = aside or Aside()
        self._tickets = itertools.count()
        self._doors = Doors(
            store=store,
            upstream=upstream,
            settings=settings,
            metrics=metrics,
            clock=clock,
            in_flight=self.in_flight,
            lines=self.lines,
            journal=journal,
            # An empty mapping of the caller's may be filled later.
            accesses={} if accesses is None else accesses,
            aside=self.aside,
        )

    def endpoint(self, read: ReadAsked) -> ASGIApp:
        """Return an ASGI application that serves the requests which `read` reads."""
        return Endpoint(self, read)

    async def serve(self, scope: Scope, receive: Receive, send: Send, read: ReadAsked) -> None:
        """Serve one request, and account for it."""
        exchange = exchange_of(scope)
        doors, request_id = self._doors, exchange.request_id
        account = Account(doors.metrics, doors.clock, request_id=request_id, path=scope["path"])
        reply = Reply(send, scope, exchange)
        try:
            with self.in_flight.request:
                await self._serve(scope, receive, reply, account, read)
        except RequestError as error:
            account.fail(error)
            await reply.fail(error, account.answer_headers())
        except asyncio.CancelledError:
            if exchange.cut is Cut.DRAIN:
                await self._drained(reply, account)
            raise
        except ClientGoneError:
            return
        except Exception:
            logger.exception("request failed by a bug", extra={"request_id": request_id})
            bug = InternalError()
            account.fail(bug)
            await reply.fail(bug)
        finally:
            account.close(reply.status)
            if self._trace is not None and (arrival := account.traced()) is not None:
                self._trace(arrival)

    async def _drained(self, reply: Reply, account: Account) -> None:
        """Tell a caller whose request is cut by the drain, unless the guard will."""
        error = DrainingError("this process is going down; try again")
        account.fail(error)
        if reply.is_stream:
            await reply.fail(error)

    async def _serve(
        self, scope: Scope, receive: Receive, reply: Reply, account: Account, read: ReadAsked
    ) -> None:
        doors = self._doors
        call = read_call(scope, exchange_of(scope))
        account.shows_timing = call.shows_timing
        body = await read_body(scope, receive)
        if len(body) >= LARGE_BYTES:
            # To join the body and to decode it take milliseconds each.
            await asyncio.sleep(0)
        asked = await read(call.head, body)
        account.is_stream = asked.is_stream
        reply.stream_type, reply.failed = asked.stream_type, asked.failed
        try:
            resolved = resolve(doors.store.state, doors.store.catalogue, asked.model)
        except ModelNotFoundError:
            resolved = await self._heard(asked.model)
        account.begin(resolved.model)
        # What cannot work is refused before anybody waits for a load.
        target, dialect = foreseen_target(doors.store.state, resolved.model, doors.accesses)
        if len(body) < LARGE_BYTES:
            outbound = asked.outbound(target, dialect)
        else:
            outbound = await self.aside(len(body), asked.outbound, target, dialect)
        affinity = affinity_of(call.session, body)
        search = Search(resolved.model, RouteHints(cold_ok=call.cold_ok, affinity=affinity))
        ticket = self._ticket(call, len(body))
        if self._trace is not None:
            account.arrival = self._arrival(resolved.model, call, len(body))
        if outbound.path in FILES_ROUTES:
            files = FilesWalk(doors, call, asked, outbound, reply, account)
            if await files.run(search.model, search.hints):
                return
        foreseen = Foreseen(target=target, dialect=dialect, outbound=outbound, body_bytes=len(body))
        await Walk(doors, call, asked, ticket, foreseen, search, reply, account).run()

    def _ticket(self, call: Call, body_bytes: int) -> Ticket:
        # Callers choose their requests' ids, and may give the same one twice.
        return Ticket(
            id=str(next(self._tickets)),
            caller=call.caller,
            priority=call.priority,
            cost=cost_of(body_bytes),
            entered_at=self._doors.clock.now(),
        )

    def _arrival(self, model: ModelId, call: Call, body_bytes: int) -> Arrival:
        return Arrival(
            at=self._doors.clock.wall(),
            model=model,
            caller=call.caller,
            prompt_tokens=round(body_bytes / BYTES_PER_TOKEN),
            completion_tokens=round(ANSWER_TOKENS),
            priority=call.priority,
            session=call.session,
        )

    async def _heard(self, requested: str) -> Resolved:
        """Resolve a name that is unknown, perhaps only until the nodes have spoken.

        Raises:
            ModelNotFoundError: no node has it, and the catalogue has not.
        """
        store = self._doors.store
        deadline = self._doors.clock.now() + HEARD_S
        while True:
            state = store.state
            try:
                return resolve(state, store.catalogue, requested)
            except ModelNotFoundError:
                left_s = deadline - self._doors.clock.now()
                if state.is_heard or left_s <= 0:
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await store.changed(state.revision)


class Endpoint:
    """One path of the proxy's; Starlette mounts an object that is no function as an ASGI app.

    Args:
        proxy: serves the requests.
        read: reads them.
    """

    def __init__(self, proxy: Proxy, read: ReadAsked) -> None:
        self._proxy = proxy
        self._read = read

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        return self._proxy.serve(scope, receive, send, self._read)
