"""Apps that the tests serve: plain ASGI, so that nothing else stands between."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def chunk(data: bytes, *, more: bool = True) -> Message:
    """Return one piece of an answer's body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once and leave the body unread."""
    if scope["type"] != "http":
        return
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(chunk(b"hi", more=False))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body, read to its end."""
    if scope["type"] != "http":
        return
    body = b""
    is_more = True
    while is_more:
        message = await receive()
        body += message.get("body", b"")
        is_more = message.get("more_body", False)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(chunk(body, more=False))


class Watched:
    """An app that waits where it is told to, and remembers how it ended."""

    def __init__(self, *, is_started: bool = True, has_pieces: bool = False) -> None:
        self.is_started = is_started
        self.has_pieces = has_pieces
        self.running = 0
        self.cancelled = 0
        self.finished = 0
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.running += 1
        try:
            if self.is_started:
                await send(START)
                await send(chunk(b"data: begin\n\n"))
            while self.has_pieces and not self.go_on.is_set():
                await asyncio.sleep(0.005)
                await send(chunk(b"data: piece\n\n"))
            await self.go_on.wait()
            if not self.is_started:
                await send(START)
            await send(chunk(b"data: end\n\n", more=False))
            self.finished += 1
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
