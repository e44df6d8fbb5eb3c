"""A node that computes nothing, for measuring what stands before it.

It answers whatever is posted: at once, or as a stream of `n` events `gap_s` apart when the body
asks for one and says `n/gap_s events` near its beginning. It says of itself what a neuron and an
OpenAI server say, so that gateways of all kinds take it for a node.
"""

import asyncio
import json
import re
import socket
import sys
from collections.abc import Callable
from typing import ClassVar

import uvloop

MODEL = "org/model"

CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"org/model",'
    b'"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
)
END = CHUNK.replace(b'"content":"word "', b"").replace(b"null", b'"stop"')
DONE = b"data: [DONE]\n\n"
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"org/model","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"word"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)

_PAGES = {
    "/discovery": {
        "hostname": "bench",
        "os": "",
        "kernel": "",
        "devices": [],
        "harnesses": ["none"],
        "boot_id": "b",
    },
    "/health": {"uptime_secs": 1, "devices": [], "models": [{"id": MODEL, "status": "loaded"}]},
    "/models": [{"id": MODEL, "harness": "none", "status": "loaded", "devices": []}],
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
}

_LAST = b"\r\n0\r\n\r\n"
"""End of a chunked body, as everybody writes it."""

_ASKED = re.compile(rb"(\d+)/([\d.e-]+) events")

_EDGE = 2048
"""Bytes at the beginning and the end of a body in which a stream is asked for, so that what is
between, which may be megabytes, need not be searched."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """One connection."""

    streams: ClassVar[int] = 0
    """Streams that are open, over all connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # TCP
        self.buffer = bytearray()
        self.is_streaming = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[: end + 2])
        found = _LENGTH.search(head)
        if found is None and b"chunked" in head.lower():
            # Nobody sends another request before the answer to this one.
            length = len(self.buffer) - end - 4 if self.buffer.endswith(_LAST) else -1
        else:
            length = int(found[1]) if found else 0
        if length < 0 or len(self.buffer) < end + 4 + length:
            return
        body = bytes(self.buffer[end + 4 : end + 4 + length])
        del self.buffer[: end + 4 + length]
        method, path, version = head.split(b"\r\n")[0].split(b" ")
        if version == b"HTTP/2.0":
            # Somebody tries another protocol, and takes this for a no.
            self.transport.close()
        elif method == b"GET":
            self.page(path.decode())
        else:
            self.post(path.decode(), body)

    def connection_lost(self, error: Exception | None) -> None:
        self.end_stream()

    def end_stream(self) -> None:
        Upstream.streams -= self.is_streaming
        self.is_streaming = False

    def page(self, path: str) -> None:
        if path == "/bench":
            page: object = {"streams": Upstream.streams}
        else:
            page = _PAGES.get(path.partition("?")[0])
        text = b"{}" if page is None else json.dumps(page).encode()
        status = b"404 Not Found" if path.startswith("/events") else b"200 OK"
        self.whole(text, status)

    def post(self, path: str, body: bytes) -> None:
        if path.endswith(("/messages", "/responses")):
            # Whoever wants these spoken has to translate.
            self.whole(b"{}", b"404 Not Found")
        else:
            self.answer(body)

    def answer(self, body: bytes) -> None:
        # Searching is quicker than reading, which the mock must not be slow at.
        edges = body[:_EDGE] + body[-_EDGE:]
        if b'"stream":true' not in edges and b'"stream": true' not in edges:
            self.whole(ANSWER)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        # The chunks of a chunked body are not taken apart; what is asked for is in one of them.
        asked = _ASKED.search(edges)
        count, gap_s = (asked[1], asked[2]) if asked else (b"1", b"0")
        Upstream.streams += 1
        self.is_streaming = True
        self.step(int(count), float(gap_s))

    def whole(self, text: bytes, status: bytes = b"200 OK") -> None:
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(text), text)
        )

    def step(self, left: int, gap_s: float) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.end_stream()
            last = END + DONE
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
            return
        self.transport.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
        asyncio.get_running_loop().call_later(gap_s, self.step, left - 1, gap_s)


async def run_upstream(fd: int, connection: Callable[[], Upstream] = Upstream) -> None:
    """Serve on an inherited socket until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, sock=socket.socket(fileno=fd), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(run_upstream(int(sys.argv[1])))
