"""Serve `/v1/messages` in front of any server that speaks chat completions.

Run it as `python examples/router.py http://127.0.0.1:8000/v1 127.0.0.1:8080`, and point Claude
Code or Anthropic's SDK at the second address. A caller that leaves ends the work of the first.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypedDict

import aiohttp
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.dialect import Dialect, render_error
from cortex_core.errors import RequestError, UpstreamCutError, UpstreamError
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.messages_writer import messages_writer_for
from cortex_core.translate.parts import Translator
from cortex_core.translate.refusal import read_refusal
from cortex_core.translate.target import Target
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER

JSON: Mapping[str, str] = {"content-type": "application/json"}


class State(TypedDict):
    """What lives as long as the program."""

    upstream: aiohttp.ClientSession


async def messages(request: Request) -> Response:
    """Answer one request, whole or as a stream; one whose caller leaves is given up."""
    body = await request.body()
    async with asyncio.TaskGroup() as group:
        working = group.create_task(told(body, request.state.upstream))
        leaving = group.create_task(left(request))
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        leaving.cancel()
    # Nobody reads what a caller that has left is told.
    return Response(status_code=499) if working.cancelled() else working.result()


async def left(request: Request) -> None:
    """Return once the caller has left, which is what comes after a body that was read."""
    await request.receive()


async def told(body: bytes, upstream: aiohttp.ClientSession) -> Response:
    """Return the answer, or the failure in the caller's dialect."""
    request_id = f"req_{secrets.token_hex(12)}"
    try:
        return await answered(body, upstream, request_id)
    except aiohttp.ClientError as error:
        failure: RequestError = UpstreamError(f"the server behind this one: {error}")
    except RequestError as error:
        failure = error
    rendered = render_error(failure, Dialect.ANTHROPIC, request_id)
    return Response(rendered.body, rendered.status, dict(rendered.headers))


async def answered(body: bytes, upstream: aiohttp.ClientSession, request_id: str) -> Response:
    """Ask the upstream.

    Raises:
        RequestError: the request cannot be put to it, or it refuses.
    """
    request = decode_request(body, MESSAGES_REQUEST_DECODER)
    asked = messages_to_chat(request, Target(model=request.model))
    writer = messages_writer_for(request, message_id=f"msg_{request_id}", request_id=request_id)
    translator = Translator(ChatReader(), writer)
    answer = await upstream.post("chat/completions", data=encode_json(asked.chat), headers=JSON)
    if answer.status != 200:
        raise read_refusal(answer.status, await answer.read())
    # What means nothing to the upstream: paths in the request, such as `tools.3`.
    told = {"x-left-out": ", ".join(asked.ignored)} if asked.ignored else {}
    if request.stream:
        return StreamingResponse(events(answer, translator), 200, told, "text/event-stream")
    return Response(translator.whole(await answer.read()), 200, told, "application/json")


async def events(answer: aiohttp.ClientResponse, translator: Translator) -> AsyncIterator[bytes]:
    """Yield the events of a stream; closing the answer is what ends the work of the engine."""
    try:
        async for chunk in answer.content.iter_any():
            yield translator.feed(chunk)
        yield translator.end()
    except aiohttp.ClientError as error:
        yield translator.fail(UpstreamCutError(str(error)))
    finally:
        answer.close()


def application(base_url: str) -> Starlette:
    """Return the server for an upstream such as `http://127.0.0.1:8000/v1`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with aiohttp.ClientSession(base_url.rstrip("/") + "/") as upstream:
            yield {"upstream": upstream}

    return Starlette(routes=[Route("/v1/messages", messages, methods=["POST"])], lifespan=lifespan)


def main(base_url: str, address: str) -> None:
    """Serve until Ctrl-C."""
    config = Config()
    config.bind = [address]
    asyncio.run(serve(application(base_url), config))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
