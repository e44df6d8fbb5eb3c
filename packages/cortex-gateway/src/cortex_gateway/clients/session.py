"""The HTTP client session of the control plane, with settings that suit long streams."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cortex_gateway.settings import Timeouts

READ_BUFFER_BYTES = 64 << 10
"""Per connection; aiohttp stops reading at twice this, and the kernel pushes back."""


@asynccontextmanager
async def open_session(timeouts: Timeouts) -> AsyncIterator[aiohttp.ClientSession]:
    """Open the session; it is closed, with its connections, when the context ends.

    aiohttp's defaults would queue the 101st request without a word, cut every stream after 300 s,
    keep connections for shorter or longer than the neuron does, and unpack compressed bodies.
    """
    connector = aiohttp.TCPConnector(
        limit=0,
        keepalive_timeout=timeouts.keep_alive_s,
        # With aiodns installed aiohttp would resolve through c-ares, which ignores nsswitch.
        resolver=aiohttp.ThreadedResolver(),
    )
    session = aiohttp.ClientSession(
        connector=connector,
        # `connect` covers the name look-up as well, which `sock_connect` does not. Silence is
        # timed by whoever reads, because the head of an answer and its chunks differ in patience.
        timeout=aiohttp.ClientTimeout(
            total=None, connect=timeouts.connect_s, sock_connect=timeouts.connect_s
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        skip_auto_headers=("User-Agent",),
        read_bufsize=READ_BUFFER_BYTES,
        trust_env=False,
    )
    async with session:
        yield session
