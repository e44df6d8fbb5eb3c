"""Ollama's dialect, for editors that know no other."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.codec import decode_request, encode_json
from cortex_core.dialect import Dialect, error_event
from cortex_core.errors import InvalidRequestError, ModelNotFoundError, RequestError
from cortex_core.fleet.views import model_list
from cortex_core.harness import Capabilities
from cortex_core.routing.resolve import resolve
from cortex_core.server.clock import Clock
from cortex_core.translate.capability import refuse_unable
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.chat_request import chat_to_messages
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.ollama_request import ollama_to_chat
from cortex_core.translate.ollama_writer import OllamaWriter
from cortex_core.translate.parts import Reader, Translator
from cortex_core.translate.target import Target
from cortex_core.units import bytes_from_mib
from cortex_core.wire.ollama import OllamaMessage, OllamaRequest
from cortex_core.wire.openai.models import ModelObject
from cortex_gateway.api.counting import CountAsked
from cortex_gateway.api.openai import CHAT_PATH, MESSAGES_PATH, anew
from cortex_gateway.ports import Store
from cortex_gateway.proxy.asked import Asked, Head, Outbound
from cortex_gateway.proxy.proxy import Proxy

VERSION = "0.13.0"
"""Of the Ollama whose API this is; clients refuse servers that are older than they need."""

GENERATE_PATH = "/api/generate"

_REQUEST = msgspec.json.Decoder(OllamaRequest)

_CAPABILITIES = {"chat": "completion", "tools": "tools", "vision": "vision"}
_CAPABILITIES |= {"reasoning": "thinking", "embeddings": "embedding"}
"""What we call what a model can do, and what Ollama does."""

_TEXTS = ("parent_model", "format", "family", "parameter_size", "quantization_level")
_FILE = {**dict.fromkeys(_TEXTS, ""), "families": []}
"""`details` of a model's file, which clients expect to be there."""


def routes(proxy: Proxy, store: Store, clock: Clock) -> list[Route]:
    """Return the routes of the dialect.

    Args:
        proxy: serves the requests.
        store: where the snapshot and the catalogue come from.
        clock: times and dates answers; now is shown as the time of every model's last change.
    """
    created = int(clock.wall())

    async def read(head: Head, body: bytes) -> Asked:
        request = await proxy.aside(len(body), decode_request, body, _REQUEST)
        asked = OllamaAsked(head, request, store, clock)
        return CountAsked(asked, asked.loaded) if asked.is_load else asked

    def models() -> tuple[ModelObject, ...]:
        return model_list(store.state, store.catalogue, created).data

    async def tags(request: Request) -> Response:
        return _json({"models": [_entry(model) for model in models()]})

    async def running(request: Request) -> Response:
        return _json({"models": [_running(model) for model in models() if model.loaded]})

    async def show(request: Request) -> Response:
        name = decode_request(await request.body(), _REQUEST).model
        wanted = known_name(store, name)
        for model in models():
            if model.id == wanted:
                return _json(_details(model))
        raise ModelNotFoundError(name)

    async def version(request: Request) -> Response:
        return _json({"version": VERSION})

    return [
        Route("/api/chat", proxy.endpoint(read), methods=["POST"]),
        Route(GENERATE_PATH, proxy.endpoint(read), methods=["POST"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/version", version, methods=["GET"]),
    ]


def known_name(store: Store, name: str) -> str:
    """Return `name`, without the tag that clients add where only that is known."""
    bare = name.removesuffix(":latest")
    if bare == name:
        return name
    try:
        return resolve(store.state, store.catalogue, name).requested
    except ModelNotFoundError:
        return bare


class OllamaAsked:
    """A request to chat, to generate, or to load a model.

    Raises:
        InvalidRequestError: it asks to unload a model.
    """

    stream_type = "application/x-ndjson"

    def __init__(self, head: Head, request: OllamaRequest, store: Store, clock: Clock) -> None:
        self.model = known_name(store, request.model)
        self.is_stream = request.stream is not False
        self._is_chat = head.path != GENERATE_PATH
        self.is_load = not (request.messages if self._is_chat else request.prompt or request.images)
        if self.is_load:
            if request.keep_alive in (0, "0", "0s"):
                text = "callers cannot unload models here; the fleet does when it needs the room"
                raise InvalidRequestError(text, param="keep_alive")
            some = OllamaMessage(role="user", content=".")
            request = msgspec.structs.replace(request, messages=(some,), stream=False)
        elif not self._is_chat:
            request = msgspec.structs.replace(request, messages=None)
        self._request = request
        self._clock = clock
        self._asked_at = clock.now()
        self._answer: Translator | None = None

    def outbound(self, target: Target, dialect: Dialect) -> Outbound:
        """Send a chat request, or a message to who speaks Anthropic's dialect.

        Raises:
            RequestError: the request cannot be put to that model.
        """
        asked = ollama_to_chat(self._request, target)
        refuse_unable(asked.chat, target.capabilities)
        path, body, ignored = CHAT_PATH, encode_json(asked.chat), asked.ignored
        reader: Reader = ChatReader(limit=target.limit)
        if dialect is Dialect.ANTHROPIC:
            message = chat_to_messages(asked.chat, target)
            path, body = MESSAGES_PATH, encode_json(message.request)
            ignored += message.ignored
            reader = MessagesReader()
        self._answer = anew(self._answer, reader, self._writer)
        return Outbound(
            path=path, body=body, answer=self._answer, is_translated=True, ignored=ignored
        )

    def failed(self, error: RequestError) -> bytes:
        """Return the line that ends the stream."""
        if self._answer is not None:
            return self._answer.fail(error)
        return error_event(error, Dialect.OLLAMA, "")

    async def settle(self) -> None:
        """Nothing is kept."""

    def loaded(self, tokens: int) -> bytes:
        """Return the answer to a request that only loads the model."""
        return self._writer().loaded()

    def _writer(self) -> OllamaWriter:
        return OllamaWriter(
            request=self._request,
            is_chat=self._is_chat,
            now=self._clock.now,
            waited_s=self._clock.now() - self._asked_at,
            epoch_s=self._clock.wall(),
        )


def _entry(model: ModelObject) -> dict[str, object]:
    """Return a model as lists show it; nothing is known here of its files."""
    names = {"name": model.id, "model": model.id, "modified_at": model.created_at}
    return {**names, "size": 0, "digest": "", "details": _FILE}


def _running(model: ModelObject) -> dict[str, object]:
    held = [where.vram_estimate_mb or 0 for where in model.locations if where.status == "loaded"]
    size = bytes_from_mib(sum(held))
    more = {"size": size, "size_vram": size, "context_length": model.max_model_len or 0}
    return {**_entry(model), **more}


def _details(model: ModelObject) -> dict[str, object]:
    info: dict[str, object] = {
        "general.architecture": "unknown",
        "general.basename": model.display_name,
    }
    if model.max_model_len is not None:
        info["unknown.context_length"] = model.max_model_len
    told = model.capabilities or Capabilities()
    able = [theirs for ours, theirs in _CAPABILITIES.items() if getattr(told, ours)]
    texts = {"modelfile": "", "parameters": "", "template": "", "modified_at": model.created_at}
    return {**texts, "details": _FILE, "model_info": info, "capabilities": able}


def _json(value: object) -> Response:
    return Response(encode_json(value), media_type="application/json")
