"""A neuron that does as it is told: its control API on a real socket, with faults."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def open_gate() -> asyncio.Event:
    """Return an event that holds nobody up until it is cleared."""
    gate = asyncio.Event()
    gate.set()
    return gate


class FakeNeuron:
    """What the node holds, what it was asked, and how it misbehaves; set by the test."""

    def __init__(self, *, is_given_only: bool = False) -> None:
        self.is_given_only = is_given_only
        """Speak nothing but what the given system speaks: no events, no boot ids."""
        self.url, self.boot_id, self.uptime_s = "", "boot-1", 100.0
        self.devices = [{"index": 0, "name": "SIM-24", "vram_total_mb": 24576}]
        self.harnesses = ["simulated"]
        self.models: dict[str, dict[str, object]] = {}
        self.requests: Counter[str] = Counter()
        """How often each path was asked."""
        self.loads: list[dict[str, object]] = []
        """Bodies of `/models/load`, in order."""
        self.unloads: list[dict[str, object]] = []
        """Bodies of `/models/unload`, in order."""
        self.commands: list[tuple[str, dict[str, object]]] = []
        """Path and body of every other command, in order."""
        self.refusals: dict[str, tuple[int, dict[str, object]]] = {}
        """Status and body with which a command path answers."""
        self.is_cordoned = False
        self.health_fields: dict[str, object] = {}
        """What `/health` says beside the usual."""
        self.streams_may_end = open_gate()
        """While it is not set, streams stop after their first piece."""
        self.open_streams = 0
        self.unload_may_end = open_gate()
        self.shows_unloads = True
        """Else an unload that was answered is reported only when the test says so."""
        self.unload_error: tuple[int, dict[str, object]] | None = None
        self.load_may_end = open_gate()
        self.load_error: tuple[int, dict[str, object]] | None = None
        self.models_may_leave = open_gate()
        """While it is not set, answers of `/models` are made but not sent."""
        self.cuts_loads = False
        """Close the connection instead of answering a load."""
        self.hidden_paths: set[str] = set()
        """Paths that answer 500."""
        self.endpoints: dict[str, str] = {}
        """Addresses of models that have one of their own."""
        self._is_frozen = False
        self._thawed = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        self._subscribers: set[asyncio.Queue[tuple[str, object] | None]] = set()
        self.fits: dict[str, dict[str, object]] = {}
        """What it says of loads, by model; of others, that they are fine."""
        self.weights: dict[str, object] = {"models": [], "downloads": []}
        """Answer of `/weights`."""
        self.weights_asked = asyncio.Event()
        self.pulls: list[dict[str, object]] = []
        """Bodies of `/weights/pull`, in order; it is answered when `pull_may_end`."""
        self.pull_may_end = asyncio.Event()
        self.pull_may_end.set()
        self.fits_asked: list[dict[str, object]] = []
        """Bodies of `/models/fit`, in order."""

    @property
    def has_subscriber(self) -> bool:
        return bool(self._subscribers)

    def set_model(self, model: str, status: str, **fields: object) -> None:
        """Change a model and tell subscribers."""
        entry = {"id": model, "harness": "simulated", "status": status, "devices": [0], **fields}
        if status == "unloaded":
            self.models.pop(model, None)
        else:
            self.models[model] = entry
        self._tell("model", entry)

    def tell_health(self) -> None:
        """Send a health event to subscribers."""
        self._tell("health", self.health())

    def restart(self, boot_id: str) -> None:
        """Begin another life: nothing is loaded, streams end."""
        self.boot_id, self.uptime_s = boot_id, 1.0
        self.models.clear()
        self.end_events()

    def end_events(self) -> None:
        for queue in self._subscribers:
            queue.put_nowait(None)

    def freeze(self) -> None:
        """Accept connections and requests, answer none; streams end."""
        self._is_frozen = True
        self._thawed.clear()
        self.end_events()

    def thaw(self) -> None:
        self._is_frozen = False
        self._thawed.set()

    def discovery(self) -> dict[str, object]:
        answer: dict[str, object] = {
            "hostname": "host",
            "os": "linux",
            "kernel": "6",
            "devices": self.devices,
            "harnesses": self.harnesses,
        }
        return answer if self.is_given_only else {**answer, "boot_id": self.boot_id}

    def health(self) -> dict[str, object]:
        answer: dict[str, object] = {
            "uptime_secs": self.uptime_s,
            "devices": [
                {"index": 0, "vram_used_mb": 1000, "vram_free_mb": 23576, "utilization_pct": 50}
            ],
        }
        more = {"boot_id": self.boot_id, "cordoned": self.is_cordoned}
        return answer if self.is_given_only else {**answer, **more, **self.health_fields}

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._misbehave], client_max_size=64 << 20)
        app.router.add_get("/discovery", self._answer(self.discovery))
        app.router.add_get("/health", self._answer(self.health))
        app.router.add_get("/models", self._models)
        app.router.add_get("/models/{model:.+}/endpoint", self._endpoint)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)
        app.router.add_post("/v1/chat/completions", self._chat)
        if not self.is_given_only:
            app.router.add_get("/events", self._events)
            app.router.add_post("/models/fit", self._fit)
            app.router.add_get("/weights", self._weights)
            app.router.add_post("/weights/pull", self._pull)
            app.router.add_delete("/weights/{model:.+}", self._remove)
            app.router.add_post("/models/sleep", self._command(self._sleep))
            app.router.add_post("/models/wake", self._command(self._wake))
            app.router.add_post("/models/pin", self._command(self._pin))
            app.router.add_post("/cordon", self._command(self._cordon))
            app.router.add_post("/recycle", self._command(self._recycle))
        return app

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests[request.path] += 1
        if self._is_frozen:
            await self._thawed.wait()
        if request.path in self.hidden_paths:
            return web.Response(status=500)
        return await handler(request)

    def _answer(self, value: Callable[[], object]) -> Handler:
        async def handler(_: web.Request) -> web.StreamResponse:
            return web.json_response(value())

        return handler

    async def _models(self, _: web.Request) -> web.StreamResponse:
        answer = web.json_response(list(self.models.values()))
        await self.models_may_leave.wait()
        return answer

    async def _endpoint(self, request: web.Request) -> web.StreamResponse:
        url = self.endpoints.get(request.match_info["model"])
        if url is None:
            return web.json_response({"error": "not loaded"}, status=404)
        return web.json_response({"url": url})

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.unloads.append(body)
        if self.unload_error is not None:
            status, error = self.unload_error
            return web.json_response(error, status=status)
        model = body["model_id"]
        if model not in self.models:
            return web.json_response(_not_here(model), status=404)
        self.set_model(model, "unloading", vram_used_mb=self.models[model].get("vram_used_mb"))
        await self.unload_may_end.wait()
        if self.shows_unloads:
            self.set_model(model, "unloaded")
        return web.json_response({"status": "unloaded"})

    async def _fit(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.fits_asked.append(body)
        if "/models/fit" in self.refusals:
            status, error = self.refusals["/models/fit"]
            return web.json_response(error, status=status)
        model = body["model_id"]
        return web.json_response({"model": model, "ok": True, **self.fits.get(model, {})})

    async def _weights(self, _: web.Request) -> web.StreamResponse:
        self.weights_asked.set()
        return web.json_response(self.weights)

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.pulls.append(body)
        if request.query.get("wait") == "false":
            return web.json_response({"id": body["model_id"], "status": "queued"}, status=202)
        await self.pull_may_end.wait()
        if "/weights/pull" in self.refusals:
            status, error = self.refusals["/weights/pull"]
            return web.json_response(error, status=status)
        return web.json_response({"id": body["model_id"], "status": "ready"})

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        if "/weights" in self.refusals:
            status, error = self.refusals["/weights"]
            return web.json_response(error, status=status)
        return web.json_response({"id": request.match_info["model"], "status": "removed"})

    def _command(self, act: Callable[[dict[str, object]], str]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            self.commands.append((request.path, body))
            if request.path in self.refusals:
                status, error = self.refusals[request.path]
                return web.json_response(error, status=status)
            model = body.get("model_id")
            if request.path in ("/models/sleep", "/models/wake") and model not in self.models:
                return web.json_response(_not_here(model), status=404)
            return web.json_response({"status": act(body)})

        return handler

    def _change(self, model: str, **fields: object) -> None:
        self.models[model] |= fields
        self._tell("model", self.models[model])

    def _sleep(self, body: dict[str, object]) -> str:
        self._change(str(body["model_id"]), status="sleeping", sleep_level=body["level"])
        return "sleeping"

    def _wake(self, body: dict[str, object]) -> str:
        self._change(str(body["model_id"]), status="loaded", sleep_level=None)
        return "loaded"

    def _pin(self, body: dict[str, object]) -> str:
        if body["model_id"] in self.models:
            self._change(str(body["model_id"]), pinned=body["pinned"])
        return "pinned" if body["pinned"] else "unpinned"

    def _cordon(self, body: dict[str, object]) -> str:
        self.is_cordoned = bool(body["cordoned"])
        self.tell_health()
        return "cordoned" if self.is_cordoned else "uncordoned"

    def _recycle(self, _: dict[str, object]) -> str:
        self.health_fields["cycles"] = 0
        self.tell_health()
        return "recycled"

    async def _load(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.loads.append(body)
        model = body["model_id"]
        if self.load_error is None:
            self.set_model(model, "loading")
        await self.load_may_end.wait()
        if self.cuts_loads and request.transport is not None:
            request.transport.close()
        if self.load_error is not None:
            status, answer = self.load_error
            return web.json_response(answer, status=status)
        self.set_model(model, "loaded", limit={"context": 4096})
        return web.json_response({"status": "loaded"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model = body["model"]
        if self.models.get(model, {}).get("status") != "loaded":
            return web.json_response({"error": {"message": "not loaded"}}, status=503)
        if body.get("stream"):
            return await self._stream(request)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": model,
                "choices": [choice],
                "usage": usage,
            }
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        self.open_streams += 1
        for piece, finish in (("one ", None), ("two", "stop")):
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": finish}
            chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await self.streams_may_end.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        queue: asyncio.Queue[tuple[str, object] | None] = asyncio.Queue()
        snapshot = {
            "discovery": self.discovery(),
            "health": self.health(),
            "models": list(self.models.values()),
        }
        queue.put_nowait(("snapshot", snapshot))
        self._subscribers.add(queue)
        try:
            while (item := await queue.get()) is not None:
                name, value = item
                await response.write(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode())
        finally:
            self._subscribers.discard(queue)
        return response

    def _tell(self, name: str, value: object) -> None:
        for queue in self._subscribers:
            queue.put_nowait((name, value))


def _not_here(model: object) -> dict[str, object]:
    error = {"message": f"there is no {model} here", "code": "model_not_found"}
    return {"error": error}


@asynccontextmanager
async def running(neuron: FakeNeuron) -> AsyncIterator[FakeNeuron]:
    """Serve `neuron` on a free port and set its `url`."""
    runner = web.AppRunner(neuron.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    neuron.url = f"http://{host}:{port}"
    try:
        yield neuron
    finally:
        neuron.thaw()
        neuron.load_may_end.set()
        neuron.unload_may_end.set()
        neuron.streams_may_end.set()
        neuron.models_may_leave.set()
        neuron.end_events()
        await runner.cleanup()


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """Yield the URL of a socket that accepts and never says a word."""
    writers: list[asyncio.StreamWriter] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.read(65536):
            pass

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
