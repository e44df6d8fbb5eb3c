"""Having a node download a model, and watching it."""

import asyncio
from collections.abc import AsyncGenerator

from cortex_core.errors import RequestError
from cortex_core.ids import NodeName
from cortex_core.wire.weights import PullRequest, WeightsNews
from cortex_gateway.control.operations import Operations

_LOOK_S = 1.0
"""How often the neuron is asked how far it is."""


class Pull:
    """One download on one node; it goes on when nobody watches.

    Args:
        operations: asks the neuron.
        node: which one.
        request: what is wanted.

    Raises:
        RequestError: the node cannot be asked.
    """

    def __init__(self, operations: Operations, node: NodeName, request: PullRequest) -> None:
        self._operations = operations
        self._node = node
        self._request = request
        self._client = operations.client(node)
        work = operations.send(node, lambda: self._client.pull(request, is_waited_for=True))
        self._task = operations.start(work, f"pull {request.model_id} on {node}")

    async def follow(self) -> AsyncGenerator[WeightsNews, None]:
        """Yield how far it is, once in a second, until it ends."""
        while True:
            # Unlike `wait_for`, this leaves it alone when it is cancelled.
            await asyncio.wait({self._task}, timeout=_LOOK_S)
            if self._task.done():
                return
            news = await self._look()
            if news is not None:
                yield news

    async def result(self) -> WeightsNews:
        """Return what became of it.

        Raises:
            RequestError: why it was not downloaded.
        """
        result = await asyncio.shield(self._task)
        if isinstance(result, RequestError):
            raise result
        return result

    async def _look(self) -> WeightsNews | None:
        try:
            found = await self._operations.send(self._node, self._client.weights)
        except RequestError:
            # What is wrong with the node ends the download as well, with a better reason.
            return None
        wanted = (self._request.model_id, self._request.revision)
        return next((one for one in found.downloads if (one.id, one.revision) == wanted), None)
