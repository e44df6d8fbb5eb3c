"""Reading a request's body whole; the guard has bounded its size and its slowness."""

from starlette.types import Receive


async def read_body(receive: Receive) -> bytes:
    """Return the body; what came when the caller left in the middle of it is dropped."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            # The guard cancels the request at the same moment.
            return b""
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
