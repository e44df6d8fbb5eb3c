"""The one guard around every app: what ASGI servers leave to chance is settled here.

ASGI tells an app that its caller has left only if the app happens to ask, and puts no limit on
what a caller may send. Behind the guard an app is cancelled when its caller leaves, whatever it
is doing; sending to nobody raises; and bodies, heads and slow callers are bounded.
"""

import asyncio
import functools
from collections.abc import Awaitable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import DrainingError, RequestError
from cortex_core.server.checks import check
from cortex_core.server.exchange import SCOPE_KEY, ClientGoneError, Cut, Exchange
from cortex_core.server.failures import send_error
from cortex_core.server.limits import Limits
from cortex_core.server.request_id import NewRequestId, random_request_id
from cortex_core.server.seam import CONNECTION_KEY, Connection

# Starlette then relies on `send` to raise, which the guard's does, and runs no second task.
_ASGI = {"version": "3.0", "spec_version": "2.4"}


class Guard:
    """Outermost ASGI app: one `Exchange` per request.

    Args:
        app: what is guarded; gets HTTP and lifespan scopes only.
        limits: what callers may do.
        new_request_id: makes the ids of requests that bring none.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits | None = None,
        new_request_id: NewRequestId = random_request_id,
    ) -> None:
        self._app = app
        self._limits = limits or Limits()
        self._new_request_id = new_request_id
        self._live: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None
        # Late by at most a quarter of the shortest limit, and never busier than it must be.
        shortest = min(
            self._limits.write_stall_s, self._limits.body_timeout_s, self._limits.body_grace_s
        )
        self._period_s = min(1.0, shortest / 4)

    def limit_bodies(self, max_body_bytes: int) -> None:
        """Bound the bodies of requests that come from now on."""
        self._limits = msgspec.structs.replace(self._limits, max_body_bytes=max_body_bytes)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            return self._app(scope, receive, send)
        connection: Connection = scope["state"].pop(CONNECTION_KEY)
        head = check(connection.request, scope, self._limits)
        exchange = Exchange(
            limits=self._limits,
            path=scope["path"],
            send=send,
            has_body=head.body_bytes != 0,
            request_id=head.request_id or self._new_request_id(),
            connection=connection,
        )
        scope[SCOPE_KEY] = exchange
        scope["asgi"] = _ASGI
        return self._run(exchange, scope, connection.refusal or head.error)

    async def _run(self, exchange: Exchange, scope: Scope, error: RequestError | None) -> None:
        self._watch(exchange)
        try:
            if error is not None:
                exchange.is_last = True
                await exchange.run(functools.partial(_refuse, error), scope)
            else:
                await exchange.run(self._app, scope)
            if exchange.cut is Cut.DRAIN and not exchange.is_started:
                exchange.is_last = True
                refuse = functools.partial(_refuse, DrainingError("going down"))
                await exchange.run(refuse, scope)
        finally:
            self._live.discard(exchange)
        # Up to 1.0 the end of the connection is the end of the answer: only a reset differs.
        if exchange.is_started and not exchange.is_complete and scope["http_version"] == "1.0":
            exchange.abort()

    def _watch(self, exchange: Exchange) -> None:
        self._live.add(exchange)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._period_s, self._check_all, loop)

    def _check_all(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._timer = loop.time(), None
        if self._live:
            # First: whatever becomes of one of them, the others are looked at again.
            self._timer = loop.call_later(self._period_s, self._check_all, loop)
        for exchange in tuple(self._live):
            exchange.check(now)


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await send_error(error, scope, send)
    except ClientGoneError:
        return
