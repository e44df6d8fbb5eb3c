"""What a connection and the exchanges on it know of each other."""

import asyncio
from typing import Protocol

from cortex_core.errors import RequestError
from cortex_core.server.http1 import Request

CONNECTION_KEY = "cortex.connection"
"""Where the guard finds the connection in `scope["state"]`."""

WHOLE_KEY = "cortex.body"
"""Of an answer that is known completely: its body, in the message that begins it."""


class Listener(Protocol):
    """Whoever is told what comes of a request after its head."""

    @property
    def body_bytes(self) -> int:
        """What was taken of the body, and not thrown away."""

    def take(self, data: bytes, *, is_end: bool) -> None:
        """Take a piece of the body."""

    def fail(self, error: RequestError) -> None:
        """Take note that the rest of the body is none."""

    def leave(self) -> None:
        """Take note that the caller has left, or has its answer."""

    def go_on(self) -> None:
        """Take note that more may be written."""


class Connection(Protocol):
    """Where an exchange's request came from."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where it runs; up to Python 3.11 it costs a system call to ask for the running one."""

    @property
    def request(self) -> Request:
        """The head of the request."""

    @property
    def refusal(self) -> RequestError | None:
        """Why the request must not run, if it was malformed."""

    def listen(self, listener: Listener, /) -> None:
        """Tell `listener` from now on, and at once, what has come after the request's head."""

    @property
    def is_asked(self) -> bool:
        """Whether the caller wants to hear first that its body is wanted."""

    def invite(self) -> None:
        """Tell it so (RFC 9110, section 10.1.1)."""

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not reached the kernel."""

    def write(self, data: bytes) -> bool:
        """Write a piece of the body; False asks for no more until the listener's `go_on`."""

    def abort(self) -> None:
        """Drop it at once, with what has not been sent."""
