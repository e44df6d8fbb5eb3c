"""The daemons of `cortex up`, with stand-ins for them."""

import asyncio
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from cortex_cli.commands.up import children
from cortex_cli.commands.up.children import ChildSpec, ending, lines_of
from cortex_cli.commands.up.family import Family
from cortex_cli.commands.up.plan import Address, Wishes
from cortex_cli.commands.up.sockets import bound, port_of
from cortex_cli.context import FleetError
from tests.cli.processes import Watch

DAEMON = """
import os, signal, socket, sys, time

what = sys.argv[1]
print("started as", what, flush=True)
if what == "sockets":
    assert int(os.environ["LISTEN_PID"]) == os.getpid()
    got = [socket.socket(fileno=3 + place) for place in range(int(os.environ["LISTEN_FDS"]))]
    for each in got:
        print("port", each.getsockname()[1], flush=True)
    print("open", sorted(os.listdir("/proc/self/fd"), key=int)[:-1], flush=True)
elif what == "pid":
    print("pid", os.getpid(), flush=True)
    signal.pause()
elif what == "fail":
    print("reason: no room", file=sys.stderr)
    sys.exit(3)
elif what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    signal.pause()
elif what == "parent":
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("grandchild", os.getpid(), flush=True)
        signal.pause()
    signal.pause()
else:
    signal.pause()
"""


@pytest.fixture
def environ(tmp_path: pathlib.Path) -> dict[str, str]:
    """Environment in which `-m stand_in` runs the stand-in."""
    (tmp_path / "stand_in.py").write_text(DAEMON)
    path = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": path}


class Log:
    """Collects lines and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._grown = asyncio.Event()

    def show(self, line: str) -> None:
        self.lines.append(line)
        self._grown.set()

    async def line(self, part: str) -> str:
        async with asyncio.timeout(20):
            while True:
                found = [line for line in self.lines if part in line]
                if found:
                    return found[0]
                self._grown.clear()
                await self._grown.wait()


@pytest.fixture
async def log() -> Log:
    return Log()


def spec(name: str, what: str, *sockets: socket.socket) -> ChildSpec:
    return ChildSpec(name=name, module="stand_in", arguments=(what,), sockets=sockets)


Body = Callable[[Family], Awaitable[None]]


async def run(environ: dict[str, str], log: Log, specs: list[ChildSpec], body: Body) -> None:
    """Start everything, run `body`, stop everything."""
    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        family = Family(group, environ, log.show)
        try:
            for each in specs:
                await family.start(each)
            await body(family)
        finally:
            await family.stop()


async def test_child_inherits_its_sockets_in_order_and_no_others(
    environ: dict[str, str], log: Log
) -> None:
    """sd_listen_fds(3): they are 3, 4, ..., announced by LISTEN_FDS and LISTEN_PID."""
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        ports = [listener.getsockname()[1] for listener in (second, first)]
        assert other.fileno() < second.fileno()

        async def body(_: Family) -> None:
            await log.line("open")

        await run(environ, log, [spec("d", "sockets", second, first)], body)

    assert [line for line in log.lines if "port" in line] == [f"d | port {port}" for port in ports]
    assert await log.line("open") == "d | open ['0', '1', '2', '3', '4']"


async def test_child_that_ends_by_itself_is_named_with_its_last_words(
    environ: dict[str, str], log: Log
) -> None:
    """Ours: which, how, and why."""
    verdicts: list[str | None] = []

    async def body(family: Family) -> None:
        await family.happened.wait()
        verdicts.append(await family.verdict())

    await run(environ, log, [spec("good", "idle"), spec("bad", "fail")], body)

    assert verdicts == ["bad ended with status 3; its last line: reason: no room"]
    # What the other one says may come at any time.
    assert [line for line in log.lines if not line.startswith("good |")][-3:] == [
        "cortex up: bad ended with status 3; its last lines:",
        "    started as fail",
        "    reason: no room",
    ]


async def test_end_that_was_asked_for_is_nobodys_fault(environ: dict[str, str], log: Log) -> None:
    """Ours: Ctrl-C is no error."""
    verdicts: list[str | None] = []

    async def body(family: Family) -> None:
        await log.line("started as idle")
        family.ask()
        await family.happened.wait()
        verdicts.append(await family.verdict())

    await run(environ, log, [spec("a", "idle")], body)

    assert verdicts == [None]


async def test_child_that_does_not_obey_is_killed_when_asked_twice(
    environ: dict[str, str], log: Log
) -> None:
    """Ours: whoever presses Ctrl-C twice does not want to wait."""

    async def body(family: Family) -> None:
        await log.line("ready")
        family.ask()
        family.ask()

    await run(environ, log, [spec("a", "stubborn")], body)

    assert log.lines == ["a | started as stubborn", "a | ready"]


async def test_child_that_does_not_obey_is_killed_in_the_end(
    environ: dict[str, str], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: TERM, bounded wait, KILL."""
    monkeypatch.setattr(children, "STOP_TIMEOUT_S", 0.05)

    async def body(_: Family) -> None:
        await log.line("ready")

    await run(environ, log, [spec("a", "stubborn")], body)


async def test_what_a_child_leaves_behind_is_killed(environ: dict[str, str], log: Log) -> None:
    """Ours: engines run in processes of their own, which must not outlive the fleet."""

    grandchildren: list[Watch] = []

    async def body(_: Family) -> None:
        grandchildren.append(Watch([int((await log.line("grandchild")).split()[-1])]))

    await run(environ, log, [spec("a", "parent")], body)

    with grandchildren[0] as grandchild:
        await grandchild.all_ended()


async def test_child_dies_with_a_parent_that_was_killed(
    environ: dict[str, str], tmp_path: pathlib.Path
) -> None:
    """prctl(2), PR_SET_PDEATHSIG: nobody is left to stop it."""
    script = tmp_path / "starter.py"
    script.write_text(
        "import asyncio, os\n"
        "from cortex_cli.commands.up.children import ChildSpec, start\n"
        "async def main():\n"
        "    spec = ChildSpec(name='a', module='stand_in', arguments=('pid',), sockets=())\n"
        "    child = await start(spec, os.environ)\n"
        "    await child.relay(lambda line: print(line, flush=True))\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, env=environ
    )
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        assert b"started" in await parent.stdout.readline()
        pid = int((await parent.stdout.readline()).split()[-1])

        with Watch([pid]) as child:
            parent.kill()
            await parent.wait()
            await child.all_ended()


async def test_lines_come_whole_however_the_bytes_do() -> None:
    """Ours: chunk borders, carriage returns, bad bytes and a missing last newline."""
    stream = asyncio.StreamReader()
    for chunk in (b"one\ntw", b"o\r\n\n  \n10%\r20%\r", b"\xff", b"end"):
        stream.feed_data(chunk)
    stream.feed_eof()

    assert [line async for line in lines_of(stream)] == ["one", "two", "10%", "20%", "\ufffdend"]


async def test_line_without_an_end_comes_in_bounded_pieces() -> None:
    """Ours: a child cannot fill our memory."""
    stream = asyncio.StreamReader()
    stream.feed_data(b"x" * (5 * children.MAX_LINE_BYTES))
    stream.feed_eof()

    pieces = [line async for line in lines_of(stream)]

    assert "".join(pieces) == "x" * (5 * children.MAX_LINE_BYTES)
    assert max(map(len, pieces)) <= 2 * children.MAX_LINE_BYTES


def test_ending_is_told_in_words() -> None:
    """Ours: a signal by its name."""
    assert ending(3) == "ended with status 3"
    assert ending(-signal.SIGKILL) == "was killed by SIGKILL"


def test_port_in_use_is_named_and_nothing_stays_bound() -> None:
    """Ours: one line with the address and the option."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        port = taken.getsockname()[1]
        wishes = Wishes(
            listen=Address(host="127.0.0.1", port=free),
            metrics_listen=Address(host="127.0.0.1", port=port),
            neuron_port=0, models=(), harness="simulated", nodes=1,
        )  # fmt: skip

        with pytest.raises(FleetError) as caught:
            bound(wishes)

        assert caught.value.message == (
            f"--metrics-listen: cannot listen on 127.0.0.1:{port}: address already in use; "
            "choose another with --metrics-listen"
        )
        with socket.create_server(("127.0.0.1", free)):
            pass


def test_every_node_gets_a_free_port_of_its_own() -> None:
    """Contract: port 0 is any free one."""
    wishes = Wishes(
        listen=Address(host="localhost", port=0), metrics_listen=Address(host="127.0.0.1", port=0),
        neuron_port=0, models=(), harness="simulated", nodes=3,
    )  # fmt: skip

    sockets = bound(wishes)

    try:
        assert len({port_of(listener) for listener in sockets.neurons}) == 3
    finally:
        sockets.close()
