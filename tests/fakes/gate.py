"""A node that answers when the test says so, and callers who stand in line for it."""

import asyncio
import json

from cortex_gateway.settings import QueueSettings
from tests.fakes.gateway import MODEL, Gateway, ask
from tests.fakes.upstream import ScriptedNode, Wire
from tests.gateway.fleet import until_true

ONE = QueueSettings(max_in_flight=1)


class Gate:
    """A node that answers one request for every time that it is told to."""

    def __init__(self) -> None:
        self.node = ScriptedNode(self.script)
        self.order: list[str] = []
        self.open = 0
        self.most = 0
        self._may_end = asyncio.Semaphore(0)

    async def script(self, wire: Wire) -> None:
        self.order.append(json.loads(wire.body)["user"])
        self.open += 1
        self.most = max(self.most, self.open)
        await self._may_end.acquire()
        self.open -= 1
        await wire.answer(200, b'{"choices":[]}')

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._may_end.release()


async def send(g: Gateway, who: str, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await ask(
        g.url, {"user": who}, headers={"authorization": f"Bearer {who}", **names}, limit_s=30
    )
    return answer.status


async def in_line(g: Gateway, count: int) -> None:
    """Wait until so many requests are in line."""
    await until_true(lambda: g.proxy.lines.waiting(MODEL) == count)


def is_empty(g: Gateway) -> bool:
    flight = g.proxy.in_flight
    depths = any(flight.depths.values())
    return not (flight.replicas or depths or flight.requests or g.store.demanded())
