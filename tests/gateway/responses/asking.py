"""A caller of the Responses dialect, and what the node behind the gateway then hears."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from cortex_gateway.settings import ResponsesSettings
from tests.fakes.gateway import MODEL, Gateway, gateway
from tests.fakes.upstream import Script, ScriptedNode, answers, streams

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": None}


def completion(content: str = "hello", **message: Any) -> Script:
    """Return a script that answers with a whole chat completion."""
    finish = "tool_calls" if "tool_calls" in message else "stop"
    said = {"role": "assistant", "content": content, **message}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return answers(200, json.dumps(body).encode())


def call(name: str, arguments: str = "{}", call_id: str = "call_1") -> dict[str, Any]:
    """Return a call of a tool, as engines make it."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def pieces(*deltas: Mapping[str, Any], finish: str = "stop") -> Script:
    """Return a script that streams a chat completion."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}

    def chunk(delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    chunks = [chunk(delta) for delta in deltas]
    return streams([*chunks, chunk({}, finish), {**base, "choices": [], "usage": usage}])


class Reading:
    """A stream of which the first event has come."""

    def __init__(self, first: bytes, answer: aiohttp.ClientResponse) -> None:
        (event,) = events(first)
        self.response_id: str = event["response"]["id"]
        self._first = first
        self._answer = answer

    async def rest(self) -> list[Any]:
        """Return all events, the first one as well."""
        return events(self._first + await self._answer.read())


class Caller:
    """Asks one gateway."""

    def __init__(
        self, session: aiohttp.ClientSession, running: Gateway, node: ScriptedNode
    ) -> None:
        self.gateway = running
        self.node = node
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of an answer."""
        url = self.gateway.url + path
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        async with self._session.request(method, url, data=data) as answer:
            return answer.status, await answer.json(content_type=None)

    async def get(self, path: str) -> Any:
        """Return what is found."""
        status, found = await self.ask("GET", path)
        assert status == 200, found
        return found

    async def create(self, said: Any = "hi", **fields: Any) -> Any:
        """Return a response that comes to be."""
        body = {"model": MODEL, "input": said, **fields}
        status, response = await self.ask("POST", "/v1/responses", body)
        assert status == 200, response
        return response

    async def refused(self, said: Any = "hi", **fields: Any) -> tuple[int, Any]:
        """Return status and error of a request that is refused."""
        body = {"model": MODEL, "input": said, **fields}
        status, answer = await self.ask("POST", "/v1/responses", body)
        assert status >= 400
        return status, answer["error"]

    async def stream(self, said: Any = "hi", **fields: Any) -> list[Any]:
        """Return all events of a response."""
        body = {"model": MODEL, "input": said, "stream": True, **fields}
        url = self.gateway.url + "/v1/responses"
        async with self._session.post(url, data=json.dumps(body)) as answer:
            assert answer.status == 200, await answer.text()
            return events(await answer.read())

    @asynccontextmanager
    async def reading(self, said: Any = "hi", **fields: Any) -> AsyncIterator["Reading"]:
        """Begin to read the events of a response in the background."""
        body = {"model": MODEL, "input": said, "stream": True, "background": True, **fields}
        url = self.gateway.url + "/v1/responses"
        async with self._session.post(url, data=json.dumps(body)) as answer:
            first = await answer.content.readuntil(b"\n\n")
            yield Reading(first, answer)

    async def read_again(self, path: str) -> list[Any]:
        """Return the events of a stream that is read with GET."""
        async with self._session.get(self.gateway.url + path) as answer:
            assert answer.status == 200, await answer.text()
            return events(await answer.read())

    def heard(self, number: int = -1) -> Any:
        """Return what the node was asked."""
        return json.loads(self.node.wires[number].body)

    def said(self, number: int = -1) -> list[tuple[str, Any]]:
        """Return roles and contents of what the node was asked."""
        return [(message["role"], message["content"]) for message in self.heard(number)["messages"]]


def events(body: bytes) -> list[Any]:
    """Return the events of a stream, checked for their numbers."""
    lines = [line for line in body.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@asynccontextmanager
async def calling(
    scripts: Sequence[Script], *, keeps: ResponsesSettings | None = None
) -> AsyncIterator[Caller]:
    """Serve a gateway over a node that plays `scripts`."""
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        ScriptedNode(*scripts) as node,
        gateway({"a": node.url}, keeps=keeps) as running,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        yield Caller(session, running, node)
