"""The life of a daemon: start, ready, signals, end; and the ways in which it cannot start."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.types import ASGIApp

from cortex_core.errors import SettingsError
from cortex_core.server.drain import Drain
from cortex_core.server.listen import open_listener
from cortex_core.server.metrics import metrics_app
from cortex_core.server.notify import notify
from cortex_core.server.serve import Listener, Shutdown, StartError, run, serve
from cortex_core.server.stack import protect
from tests.server.apps import hello
from tests.server.harness import WAIT_S, eventually, get, serving

DAEMON = """
import asyncio, os, sys
from cortex_core.server.drain import Drain
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, run, serve
from cortex_core.server.stack import protect

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        await asyncio.Event().wait()

async def main():
    drain, shutdown = Drain(), Shutdown()
    socket = open_listener("127.0.0.1:0")
    listener = Listener(app=protect(app, drain=drain), socket=socket, keep_alive_s=5)
    with shutdown.on_signals():
        await serve(
            [listener], drain=drain, shutdown=shutdown, environ=os.environ,
            drain_timeout_s=float(sys.argv[1]), hurry_timeout_s=0.1,
            on_ready=lambda: print(socket.port, flush=True),
        )

sys.exit(run(main(), "daemon", os.environ))
"""


async def serve_once(apps: Sequence[ASGIApp]) -> None:
    """Serve until the apps have started, or could not."""
    shutdown = Shutdown()
    listeners = [
        Listener(app=protect(app), socket=open_listener("127.0.0.1:0"), keep_alive_s=1)
        for app in apps
    ]
    async with asyncio.timeout(WAIT_S):
        await serve(
            listeners,
            drain=Drain(),
            shutdown=shutdown,
            environ={},
            on_ready=shutdown.ask,
        )


@contextlib.asynccontextmanager
async def daemon(drain_timeout_s: float) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run a process that serves; gives it and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DAEMON,
        str(drain_timeout_s),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S * 4):
            port = int(await process.stdout.readline())
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, bytes]:
    async with asyncio.timeout(WAIT_S):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_the_process_in_good_order(number: signal.Signals) -> None:
    """Ours: exit 0 and not a word, also with a stream that must be cut."""
    async with daemon(0.1) as (process, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get())
        async with asyncio.timeout(WAIT_S):
            await reader.readuntil(b"begin")

        process.send_signal(number)

        assert await ended(process) == (0, b"")
        writer.close()


async def test_second_signal_is_in_a_hurry() -> None:
    """Ours: `hurry_timeout_s` in place of the rest of the drain's time."""
    async with daemon(600) as (process, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get())
        async with asyncio.timeout(WAIT_S):
            await reader.readuntil(b"begin")

        process.send_signal(signal.SIGTERM)
        # The first has been taken when new requests are refused.
        async with asyncio.timeout(WAIT_S):
            while True:
                other, sender = await asyncio.open_connection("127.0.0.1", port)
                sender.write(get())
                status = await other.readline()
                sender.close()
                if b" 503 " in status:
                    break
        process.send_signal(signal.SIGTERM)

        assert await ended(process) == (0, b"")
        writer.close()


def refuse_settings() -> None:
    raise SettingsError("neuron.toml: [harness] is missing; add one")


@contextlib.asynccontextmanager
async def failing_start(app: Starlette) -> AsyncIterator[None]:
    refuse_settings()
    yield


@contextlib.asynccontextmanager
async def failing_end(app: Starlette) -> AsyncIterator[None]:
    yield
    raise OSError("cannot save")


async def raw_failing_start(scope: object, receive: object, send: object) -> None:
    refuse_settings()


@pytest.mark.parametrize("app", [Starlette(lifespan=failing_start), raw_failing_start])
async def test_app_that_cannot_start_is_not_served(app: ASGIApp) -> None:
    """Hypercorn takes an exception at start for an app without lifespan, and serves it."""
    with pytest.raises(StartError, match=r"^cannot start: neuron.toml: \[harness\] is missing"):
        await serve_once([app])


async def test_port_is_free_after_a_failed_start() -> None:
    """Ours: whoever tries again in the same process, as tests do, can have it."""
    sock = open_listener("127.0.0.1:0")
    app = Starlette(lifespan=failing_start)
    with pytest.raises(StartError):
        await serve(
            [Listener(app=app, socket=sock, keep_alive_s=1)],
            drain=Drain(),
            shutdown=Shutdown(),
            environ={},
        )

    open_listener(sock.address).close()


async def test_one_app_that_cannot_start_ends_the_others() -> None:
    """Ours: half a daemon is none."""
    with pytest.raises(StartError, match="harness"):
        await serve_once([hello, Starlette(lifespan=failing_start)])


async def test_failure_at_the_end_is_not_hidden() -> None:
    """Ours: the process ends all the same, but not as if all were well."""
    with pytest.raises(OSError, match="cannot save"):
        await serve_once([Starlette(lifespan=failing_end)])


async def test_app_without_a_lifespan_is_served() -> None:
    """ASGI, lifespan protocol: an app may know nothing of it."""
    await serve_once([hello])


async def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StartError("the port is in use"), 1),
        (SettingsError("cortex.toml: no such key"), 2),
        (ExceptionGroup("tasks", [StartError("the port is in use")]), 1),
    ],
)
def test_what_went_wrong_is_one_line(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """contracts.md, exit codes; and no traceback for what is no bug."""
    assert run(failing(error), "neuron", {}) == status

    message = str(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
    assert capsys.readouterr().err == f"neuron: {message}\n"


def test_a_bug_keeps_its_traceback() -> None:
    """Ours: an error that nobody foresaw is not turned into a line."""
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), "neuron", {})


async def test_metrics_are_served_beside_the_api() -> None:
    """Ours: two listeners, one process."""
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc()
    sockets = [open_listener("127.0.0.1:0"), open_listener("127.0.0.1:0")]
    shutdown = Shutdown()
    apps = [protect(hello), protect(metrics_app(registry))]
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        listeners = [
            Listener(app=app, socket=sock, keep_alive_s=1)
            for app, sock in zip(apps, sockets, strict=True)
        ]
        ports = [sock.port for sock in sockets]
        tasks.create_task(
            serve(listeners, drain=Drain(), shutdown=shutdown, environ={}, on_ready=ready.set)
        )
        async with asyncio.timeout(WAIT_S):
            await ready.wait()
            bodies = []
            for port, path in zip(ports, ("/", "/metrics"), strict=True):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(get(path, "connection: close"))
                bodies.append(await reader.read())
                writer.close()
        shutdown.ask()

    assert bodies[0].endswith(b"hi")
    assert b"things_total 1.0" in bodies[1]


async def test_service_manager_is_told(tmp_path: Path) -> None:
    """sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(str(tmp_path / "notify"))
        loop = asyncio.get_running_loop()
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        async with serving(hello, environ=environ):
            async with asyncio.timeout(WAIT_S):
                ready = await loop.sock_recv(manager, 100)
        async with asyncio.timeout(WAIT_S):
            stopping = await loop.sock_recv(manager, 100)

    assert (ready, stopping) == (b"READY=1", b"STOPPING=1")


def test_abstract_notify_socket_is_reached() -> None:
    """sd_notify(3): a leading `@` stands for a zero byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        name = f"cortex-test-{os.getpid()}"
        manager.bind("\0" + name)

        assert notify("STATUS=fine", {"NOTIFY_SOCKET": "@" + name})

        assert manager.recv(100) == b"STATUS=fine"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_no_service_manager_is_no_failure(environ: dict[str, str]) -> None:
    """Ours: a daemon in a terminal tells nobody."""
    assert not notify("READY=1", environ)


async def test_ready_comes_after_the_start_of_the_app() -> None:
    """Ours: who asks after "ready" is answered, and not before."""
    go_on = asyncio.Event()
    started = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow_start(app: Starlette) -> AsyncIterator[None]:
        started.set()
        await go_on.wait()
        yield

    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(serve_once([Starlette(lifespan=slow_start)]))
        async with asyncio.timeout(WAIT_S):
            await started.wait()
        assert not served.done()
        go_on.set()
        await eventually(served.done)
