"""`python -m benchmarks.bare PORT NODE`: both HTTP layers of the gateway, and nothing between.

It passes every request on to one node, and the answer back, as the gateway would if it had nothing
to decide, to read, to count or to tell. What the gateway takes beyond that is its own; what this
takes is the price of HTTP in Python.
"""

import contextlib
import sys

from starlette.types import Receive, Scope, Send

from cortex_core.headers import request_headers, response_headers
from cortex_core.server.drain import Drain
from cortex_core.server.exchange import exchange_of
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, run, serve
from cortex_core.server.stack import protect
from cortex_gateway.clients.upstream import HttpUpstream, open_upstream
from cortex_gateway.proxy.call import read_body
from cortex_gateway.proxy.reply import Reply
from cortex_gateway.settings import Timeouts


class Bare:
    """Passes everything on.

    Args:
        upstream: the way to the node.
        node: its base URL.
    """

    def __init__(self, upstream: HttpUpstream, node: str) -> None:
        self._upstream = upstream
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; of a lifespan there is nothing to do."""
        if scope["type"] != "http":
            return
        reply = Reply(send, scope, exchange_of(scope))
        body = await read_body(scope, receive)
        pairs = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        answer = await self._upstream.post(self._node + scope["path"], request_headers(pairs), body)
        with contextlib.closing(answer):
            headers = response_headers(answer.headers)
            if ("content-type", "text/event-stream") not in headers:
                await reply.whole(answer.status, headers, await answer.read())
                return
            await reply.begin(answer.status, headers)
            reply.on_writable(answer.resume)
            await answer.pass_to(reply.write)
            await reply.end()


async def main(port: int, node: str) -> None:
    """Serve until a signal comes."""
    drain, shutdown, timeouts = Drain(), Shutdown(), Timeouts()
    async with open_upstream(timeouts, timeouts) as upstream:
        listener = Listener(
            app=protect(Bare(upstream, node), drain=drain),
            socket=open_listener(f"127.0.0.1:{port}"),
            keep_alive_s=5,
        )
        with shutdown.on_signals():
            await serve([listener], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=1)


if __name__ == "__main__":
    sys.exit(run(main(int(sys.argv[1]), sys.argv[2]), "bare", {}))
