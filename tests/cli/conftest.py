"""A stand-in for a gateway's HTTP surface, and the command as a process."""

import contextlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that give one answer to everything; called with status and body.

    A third argument has status and body for some paths of their own.
    """
    with contextlib.ExitStack() as stack:

        def start(
            status: int, body: bytes, others: Mapping[str, tuple[int, bytes]] | None = None
        ) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    code, told = (others or {}).get(self.path, (status, body))
                    self.send_response(code)
                    if told.startswith(b"event:"):
                        self.send_header("content-type", "text/event-stream")
                    self.send_header("content-length", str(len(told)))
                    self.send_header("connection", "close")
                    self.end_headers()
                    self.wfile.write(told)

                do_POST = do_GET  # noqa: N815 - as inherited
                do_DELETE = do_GET  # noqa: N815 - as inherited

                def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            stack.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join, 5)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cortex(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `cortex ARGUMENTS` as a process and returns what it said."""

    def run(
        *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        return subprocess.run(
            [sys.executable, "-m", "cortex_cli", *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run
