"""What reading a request costs: `python -m benchmarks.heads`.

A head as OpenAI's client for Python writes it, and 600 bytes of body, by h11, by our own parser,
by the same where the head is known, and by httptools where it is installed, in turns.
"""

import importlib
import statistics
import time
from collections.abc import Callable

import h11

from cortex_core.server.heads import Heads
from cortex_core.server.http1 import Request, end_of_head, parse_head

ROUNDS, EACH = 60, 150

NAMES = (
    "Host: 127.0.0.1:31313", "Accept-Encoding: gzip, deflate", "Connection: keep-alive",
    "Accept: application/json", "Content-Type: application/json", "User-Agent: OpenAI/Python 2.1.0",
    "X-Stainless-Lang: python", "X-Stainless-Package-Version: 2.1.0", "X-Stainless-OS: Linux",
    "X-Stainless-Arch: x64", "X-Stainless-Runtime: CPython", "X-Stainless-Runtime-Version: 3.11.7",
    "Authorization: Bearer sk-000000000000000000000000000", "X-Stainless-Async: false",
    "x-stainless-retry-count: 0", "Content-Length: 600",
)  # fmt: skip
LINES = "\r\n".join(("POST /v1/chat/completions HTTP/1.1", *NAMES))
MESSAGE = LINES.encode() + b"\r\n\r\n" + b"x" * 600


def by_h11() -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(MESSAGE)
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        pass


def by_ours(read: Callable[[bytes], Request] = parse_head) -> None:
    buffer = bytearray(MESSAGE)
    end = end_of_head(buffer, 0)
    request = read(bytes(buffer[:end]))
    del buffer[: end + 4]
    bytes(buffer[: request.length])
    del buffer[: request.length]


class Callbacks:
    """What a protocol over httptools does at least."""

    def __init__(self) -> None:
        self.parser = importlib.import_module("httptools").HttpRequestParser(self)

    def __call__(self) -> None:
        self.parser.feed_data(MESSAGE)

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.head = (self.parser.get_method(), self.parser.get_http_version())

    def on_body(self, data: bytes) -> None:
        self.body += data


def main() -> None:
    known = Heads()
    readers: dict[str, Callable[[], None]] = {
        "ours": by_ours,
        "known": lambda: by_ours(known.read),
        "h11": by_h11,
    }
    try:
        readers["httptools"] = Callbacks()
    except ImportError:
        print("httptools is not installed")
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, read in readers.items():
            begin = time.thread_time()
            for _ in range(EACH):
                read()
            spent[name].append((time.thread_time() - begin) / EACH * 1e6)
    for name, values in spent.items():
        ratio = statistics.median(a / b for a, b in zip(values, spent["ours"], strict=True))
        print(f"{name:10}{statistics.median(values):7.1f} us   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
