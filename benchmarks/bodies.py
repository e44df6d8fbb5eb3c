"""What large requests cost: `python -m benchmarks.bodies ROUNDS NAME=FOLDER...`.

Each folder's gateway relays for one node that computes nothing. Bodies go directly and through
each gateway in turns, so that other work on the machine hits all alike; what counts is the time
that a gateway adds, and how long it holds its loop meanwhile, which is what callers of streams
wait. Gateways have core 0, node and callers the others.
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from benchmarks import relay
from benchmarks.compare import PACKAGES
from benchmarks.upstream import MODEL, Upstream, run_upstream
from cortex_core.server.listen import open_listener

SIZES = (1_000, 100_000, 1_000_000, 10_000_000)

TICK_S = 0.001
"""How often the loop of a gateway is looked at."""

_KEPT_BYTES = 1024

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

STREAM = (400, 0.005)
"""Events of the stream that is read beside large bodies, and seconds between them."""

BODIES_BESIDE = 12


class Node(Upstream):
    """The node that computes nothing, which keeps no more of a large body than its beginning.

    What holds the node's own loop would be taken for a gap of the gateway's.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._left = 0
        self._kept = b""

    def data_received(self, data: bytes) -> None:
        if not self._left:
            head, end, begin = data.partition(b"\r\n\r\n")
            length = _LENGTH.search(head + b"\r\n") if end and not self.buffer else None
            if length is None or int(length[1]) <= _KEPT_BYTES:
                super().data_received(data)
                return
            self._head = head.replace(length[0], b"\r\ncontent-length: %d" % _KEPT_BYTES)
            self._left, self._kept, data = int(length[1]), b"", begin
        self._left -= len(data)
        self._kept += data[: _KEPT_BYTES - len(self._kept)]
        if not self._left:
            super().data_received(self._head + b"\r\n\r\n" + self._kept)


class Gateway:
    """A checkout's gateway in a process, which tells how long its loop was held."""

    def __init__(self, folder: Path, url: str) -> None:
        listener = open_listener("127.0.0.1:0")
        self.port, fd = listener.port, listener.socket.fileno()
        self._asking, asked = socket.socketpair()
        paths = [str(folder / "packages" / name / "src") for name in PACKAGES]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.bodies",
                "gateway",
                f"{fd}",
                f"{asked.fileno()}",
                url,
            ],
            pass_fds=(fd, asked.fileno()),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(_HERE)])},
        )
        listener.close()
        asked.close()
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(self.process.pid, {0})

    def held_ms(self) -> float:
        """Return the longest time that the loop was held since the last question."""
        self._asking.send(b"?")
        return float(self._asking.recv(100))

    def cpu_ms(self) -> float:
        """Return the CPU time of all threads, which the kernel counts in nanoseconds."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        spent = [int((thread / "schedstat").read_text().split()[0]) for thread in threads]
        return sum(spent) / 1e6

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._asking.close()


async def run_gateway(fd: int, asked: int, url: str) -> None:
    """Be the gateway, and look at the loop."""
    # CPU time of all threads, so that what else the machine does is not counted.
    loop, worst_s, last = asyncio.get_running_loop(), 0.0, time.process_time()

    def tick() -> None:
        nonlocal worst_s, last
        now = time.process_time()
        worst_s, last = max(worst_s, now - last), now
        loop.call_later(TICK_S, tick)

    def tell() -> None:
        nonlocal worst_s
        if question.recv(1):
            question.send(b"%f" % (worst_s * 1000))
            worst_s = 0.0

    with socket.socket(fileno=asked) as question:
        loop.add_reader(question, tell)
        tick()
        await relay.run_gateway(fd, url)
        loop.remove_reader(question)


_TEXTS: dict[str, Callable[[int], object]] = {
    "text": lambda size: "word " * (size // 5),
    "wide": lambda size: "größer und weiter, 更大 " * (size // 28),
    "image": lambda size: [
        {"type": "text", "text": "what is this?"},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + "QUJD" * (size // 4)},
        },
    ],
}
"""What a message says, by kind, of about so many bytes."""

KINDS = ("text", "turns", "wide", "image")


TRANSLATED = {"messages": "/v1/messages", "responses": "/v1/responses"}
"""Dialects that are translated, and where they are spoken."""

SAID = "word " * 100


def messages_of_turns(size: int) -> dict[str, object]:
    """Return a request as agents send them, in Anthropic's dialect."""
    turns: list[object] = [{"role": "user", "content": SAID}]
    for number in range(size // 1750):
        text = {"type": "text", "text": SAID}
        call = {"type": "tool_use", "id": f"call_{number}", "name": "f", "input": {"x": SAID}}
        result = {"type": "tool_result", "tool_use_id": f"call_{number}", "content": SAID}
        turns.append({"role": "assistant", "content": [text, call]})
        turns.append({"role": "user", "content": [result]})
    return {"model": MODEL, "max_tokens": 100, "messages": turns}


def responses_of_turns(size: int) -> dict[str, object]:
    """Return the same in the dialect of responses."""
    items: list[object] = [{"role": "user", "content": SAID}]
    for number in range(size // 1250):
        text = {"type": "output_text", "text": SAID}
        call = {"call_id": f"call_{number}"}
        items += (
            {"type": "message", "role": "assistant", "content": [text]},
            {"type": "function_call", "name": "f", "arguments": "{}", **call},
            {"type": "function_call_output", "output": SAID, **call},
        )
    return {"model": MODEL, "input": items, "store": False}


def request(kind: str, size: int, *, is_stream: bool = False) -> bytes:
    """Return a request of one of `KINDS` or `TRANSLATED`, and of about `size` bytes."""
    fields: dict[str, object]
    if kind in TRANSLATED:
        fields = messages_of_turns(size) if kind == "messages" else responses_of_turns(size)
    else:
        fields = {"messages": chat_messages(kind, size)}
    # What is asked for stands first, where the node looks for it.
    fields = {"model": MODEL, "stream": is_stream, **fields}
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    head = (
        f"POST {TRANSLATED.get(kind, '/v1/chat/completions')} HTTP/1.1\r\nhost: x\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def chat_messages(kind: str, size: int) -> list[object]:
    """Return the messages of a chat request."""
    if kind == "turns":
        said = 'He said: "no"\nand left. ' * 40
        return [{"role": "user", "content": said} for _ in range(max(1, size // 1160))]
    return [{"role": "user", "content": _TEXTS[kind](size)}]


def calls(port: int, count: int, data: bytes) -> list[float]:
    """Make calls one after the other, blocking, and return how long each took, in seconds."""
    took = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            begin, answer = time.perf_counter(), b""
            connection.sendall(data)
            while not _is_whole(answer):
                piece = connection.recv(1 << 16)
                if not piece:
                    raise RuntimeError(f"no whole answer, but {answer[:200]!r}")
                answer += piece
            took.append(time.perf_counter() - begin)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{answer[:200]!r}")
    return took


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not end or length is None:
        return answer.endswith(b"0\r\n\r\n")
    return len(body) == int(length[1])


async def gaps_beside(port: int, data: bytes) -> list[float]:
    """Read a stream while large bodies pass; return the seconds between its reads."""
    events, gap_s = STREAM
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(relay.stream_call(port, events, gap_s))
        await asyncio.to_thread(calls, port, BODIES_BESIDE, data)
    return reading.result()


def added(direct: int, gateways: dict[str, Gateway], rounds: int) -> None:
    """Print what each gateway adds to a body of each size, and how long it held its loop."""
    for kind, sizes, is_stream in (
        ("text", SIZES, False),
        *((kind, SIZES[-1:], True) for kind in KINDS),
        *((kind, SIZES[-1:], False) for kind in TRANSLATED),
    ):
        for size in sizes:
            data = request(kind, size, is_stream=is_stream)
            count = max(4, min(60, 20_000_000 // size))
            took: dict[str, list[float]] = {name: [] for name in gateways}
            spent: dict[str, list[float]] = {name: [] for name in gateways}
            held: dict[str, list[float]] = {name: [] for name in gateways}
            # The node takes no other dialect than its own.
            plain = request("turns", size) if kind in TRANSLATED else data
            for number in range(rounds):
                base = statistics.median(calls(direct, count, plain))
                for name in list(gateways)[:: -1 if number % 2 else 1]:
                    calls(gateways[name].port, 1, data)
                    gateways[name].held_ms()
                    before = gateways[name].cpu_ms()
                    through = statistics.median(calls(gateways[name].port, count, data))
                    took[name].append((through - base) * 1000)
                    spent[name].append((gateways[name].cpu_ms() - before) / count)
                    held[name].append(gateways[name].held_ms())
            title = f"{kind}{', stream' if is_stream else ''}, {size / 1e6:g} MB"
            show(f"{title}: added", took)
            show(f"{title}: CPU", spent)
            show(f"{title}: loop held, CPU", held)


def beside(direct: int, gateways: dict[str, Gateway], rounds: int) -> None:
    """Print the gaps of a stream that is read while bodies of 10 MB pass."""
    data = request("turns", SIZES[-1])
    ports = {"none": direct, **{name: gateway.port for name, gateway in gateways.items()}}
    p99: dict[str, list[float]] = {name: [] for name in ports}
    worst: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(rounds):
        for name in list(ports)[:: -1 if number % 2 else 1]:
            gaps = uvloop.run(gaps_beside(ports[name], data))
            p99[name].append(relay.p(gaps, 99))
            worst[name].append(max(gaps) * 1000)
    events, gap_s = STREAM
    title = f"{events} events {gap_s * 1000:g} ms apart beside 10 MB: gap"
    show(f"{title} p99", p99)
    show(f"{title} max", worst)


def show(title: str, found: dict[str, list[float]]) -> None:
    """Print the median of each, and its ratio to the first."""
    first = statistics.median(next(iter(found.values())))
    for name, values in found.items():
        value = statistics.median(values)
        ratio = f"   ratio {value / first:.2f}" if first > 0 else ""
        print(f"{title:52}{name:10}{value:9.2f} ms{ratio}", flush=True)


@contextlib.contextmanager
def started(folders: dict[str, Path]) -> Iterator[tuple[int, dict[str, Gateway]]]:
    """Start the node and all gateways; they are gone when the context ends."""
    with (
        relay.started("node", module="benchmarks.bodies") as node,
        contextlib.ExitStack() as stack,
    ):
        gateways = {}
        for name, folder in folders.items():
            gateways[name] = Gateway(folder, f"http://127.0.0.1:{node.port}")
            stack.callback(gateways[name].end)
        yield node.port, gateways


def main(rounds: str, *folders: str) -> None:
    named = {name: Path(folder) for name, _, folder in (f.partition("=") for f in folders)}
    cores = os.cpu_count() or 1
    if cores > 1:
        os.sched_setaffinity(0, set(range(1, cores)))
    with started(named or {"this": _HERE}) as (direct, gateways):
        for gateway in gateways.values():
            calls(gateway.port, 50, request("text", 1000))
        added(direct, gateways, int(rounds))
        beside(direct, gateways, int(rounds))


_HERE = Path(__file__).parents[1]


if __name__ == "__main__":
    if sys.argv[1:2] == ["node"]:
        uvloop.run(run_upstream(int(sys.argv[2]), Node))
    elif sys.argv[1:2] == ["gateway"]:
        uvloop.run(run_gateway(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
    else:
        main(*(sys.argv[1:] or ["3"]))
