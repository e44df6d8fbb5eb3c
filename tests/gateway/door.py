"""A whole gateway in the process of the test, over real sockets, that an operator speaks to."""

import asyncio
import io
import json
import logging
import pathlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import yarl
from prometheus_client import CollectorRegistry

from cortex_core.server.clock import SystemClock
from cortex_core.server.drain import Drain
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.sse import SseDecoder, SseEvent
from cortex_gateway.lifespan import open_gateway
from cortex_gateway.reload.configuration import read_configuration

WAIT_S = 20.0
"""Replicas that have just come are given their requests at a ramp, and the machine may be busy."""

SMALL = {"harness": "simulated", "vram_mb": 8000}


class Door:
    """A running gateway and what it was started from."""

    def __init__(self, url: str, file: pathlib.Path, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.file = file
        self.session = session

    async def post(self, path: str, body: object = None, **query: str) -> tuple[int, Any]:
        """Send a command and return status and answer."""
        url = yarl.URL(f"{self.url}{path}", encoded=True)
        if query:
            url = url.update_query(query)
        async with asyncio.timeout(WAIT_S), self.session.post(url, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> Any:
        async with asyncio.timeout(WAIT_S), self.session.get(self.url + path) as answer:
            return await answer.json()

    async def fleet(self) -> dict[str, Any]:
        """Return the nodes of `/admin/fleet` by name."""
        return {node["name"]: node for node in (await self.get("/admin/fleet"))["nodes"]}

    async def chat(self, model: str, *, stream: bool = False, pad: int = 0) -> tuple[int, str]:
        """Ask a model and return status and body."""
        messages = [{"role": "user", "content": "x" * pad}]
        body = {"model": model, "stream": stream, "messages": messages}
        url = f"{self.url}/v1/chat/completions"
        # Large bodies are sent in pieces from a file, or aiohttp warns.
        data = io.BytesIO(json.dumps(body).encode())
        async with asyncio.timeout(WAIT_S), self.session.post(url, data=data) as answer:
            return answer.status, await answer.text()

    async def until_up(self, *nodes: str) -> None:
        """Wait until nodes have reported, and been discovered."""
        async with asyncio.timeout(WAIT_S):
            while True:
                fleet = await self.fleet()
                if all(name in fleet and fleet[name]["hostname"] for name in nodes):
                    return
                await asyncio.sleep(0.01)

    async def events(self, path: str) -> list[SseEvent]:
        """Send a command and return the events of its answer."""
        decoder, found = SseDecoder(), []
        headers = {"Accept": "text/event-stream"}
        async with (
            asyncio.timeout(WAIT_S),
            self.session.post(self.url + path, headers=headers) as answer,
        ):
            assert answer.content_type == "text/event-stream", await answer.text()
            async for chunk in answer.content.iter_any():
                found += decoder.feed(chunk)
        return found


def catalogue_text(models: Iterable[Mapping[str, object]], aliases: Mapping[str, str]) -> str:
    """Return a `models.toml`."""
    lines: list[str] = []
    for model in models:
        lines.append("[[models]]")
        lines += [f"{key} = {_toml(value)}" for key, value in model.items()]
    lines.append("[aliases]")
    lines += [f'"{name}" = "{target}"' for name, target in aliases.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def write(
    folder: pathlib.Path,
    nodes: Mapping[str, str],
    *models: str | Mapping[str, object],
    gateway: str = "",
    more: str = "",
) -> pathlib.Path:
    """Write the files of a gateway and return the path of `cortex.toml`.

    Args:
        folder: where to.
        nodes: base URLs by name.
        models: ids, or whole entries.
        gateway: further lines of `[gateway]`.
        more: further tables.
    """
    entries = [{"id": one, **SMALL} if isinstance(one, str) else one for one in models]
    (folder / "models.toml").write_text(catalogue_text(entries, {"first": str(entries[0]["id"])}))
    neurons = "".join(
        f'[[neurons]]\nname = "{name}"\nendpoint = "{url}"\n' for name, url in nodes.items()
    )
    file = folder / "cortex.toml"
    file.write_text(
        'models_config = "models.toml"\n'
        f'[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n{gateway}\n'
        f"{more}\n{neurons}"
    )
    return file


@asynccontextmanager
async def door(file: pathlib.Path) -> AsyncIterator[Door]:
    """Serve the gateway of a settings file, with the nodes that it names up."""
    drain, shutdown = Drain(), Shutdown()
    configuration = await asyncio.to_thread(read_configuration, file, {})
    socket = open_listener("127.0.0.1:0")
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        open_gateway(
            configuration,
            file=file,
            read=lambda: read_configuration(file, {}),
            clock=SystemClock(),
            registry=CollectorRegistry(),
            drain=drain,
            version="0",
        ) as gateway,
        asyncio.TaskGroup() as tasks,
    ):
        listener = Listener(app=gateway.app, socket=socket, keep_alive_s=5.0)
        entrance = Door(socket.url, file, session)
        server = serve(
            [listener], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=0.1,
            graceful_s=0.1, flush_timeout_s=0.1,
        )  # fmt: skip
        tasks.create_task(server)
        # A reload sets it for the process, which here is that of all tests.
        level = logging.getLogger().level
        try:
            await entrance.until_up(*configuration.settings.endpoints)
            yield entrance
        finally:
            logging.getLogger().setLevel(level)
            shutdown.ask()
