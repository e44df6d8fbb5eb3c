"""What an engine is told, what it says of itself, and the protocol that wraps one.

A harness knows how to bring up one kind of engine; an engine is one loaded model. Both are
implemented by the neuron (`vllm`, `simulated`); the protocol is here so that others can be.
"""

import enum
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from cortex_core.group import Peer, Seat
from cortex_core.ids import DeviceIndex, ModelId, RequestId
from cortex_core.knowledge import ModelFacts


class Route(enum.StrEnum):
    """The inference paths of a neuron, which are the engine-facing dialect of cortex."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COUNT_TOKENS = "/v1/chat/completions/count_tokens"
    """Ours: the body of a chat completion, of which the prompt's tokens are counted."""
    COMPLETIONS = "/v1/completions"
    GENERATE = "/inference/v1/generate"
    """vLLM's: token ids in, token ids out, so that a broken answer can be gone on with exactly."""
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


FILES_ROUTES = frozenset({Route.COUNT_TOKENS, Route.TOKENIZE, Route.DETOKENIZE})
"""Paths that a model's tokenizer answers, so that no engine is needed for them."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a model can do; on the wire as an object of booleans."""

    chat: bool = False
    completions: bool = False
    embeddings: bool = False
    scoring: bool = False
    """Pairs of texts are scored, and documents ranked."""
    tools: bool = False
    """Tool calls are parsed out of the text."""
    reasoning: bool = False
    """Reasoning is separated from the text."""
    vision: bool = False
    audio: bool = False
    sleep: bool = False
    """The harness can put it to sleep."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """Token limits of a model; `None` means not known."""

    context: int | None = None
    """Prompt and answer together, in tokens."""
    output: int | None = None
    """Longest answer, in tokens."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a model takes on its node; `None` takes the node's settings."""

    max_in_flight: int | None = None
    """Requests that are with its engine at once."""
    max_queue: int | None = None
    """Requests that wait for one of those places; more are refused."""
    max_wait_s: float | None = None
    """How long one waits before it is refused."""
    max_share: float | None = None
    """Part of the places that one caller has while others wait, and of the queue at any time."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to be loaded; two equal specs give the same engine."""

    model: ModelId
    harness: str
    devices: tuple[DeviceIndex, ...] = ()
    """Devices to use, in rank order; empty lets the neuron choose."""
    quant: str | None = None
    tensor_parallel: int | None = None
    """Devices that share each layer; `None` takes what `devices` and the stages leave."""
    pipeline_parallel: int | None = None
    """Stages that the layers are split into, of `tensor_parallel` devices each; `None` is 1."""
    vram_bytes: int | None = None
    """Estimate over all its devices on this node; `None` when the catalogue has none."""
    peers: tuple[Peer, ...] = ()
    """Other nodes that hold a part of this copy, in rank order; each has as many devices."""
    seat: Seat | None = None
    """Where in its group this part is, once there is one; `None` on the head until then."""
    engine: Mapping[str, object] = msgspec.field(default_factory=dict)
    """Options of the engine under their own names, as TOML and JSON can say them."""
    bounds: Bounds = Bounds()
    """On its requests; the engine itself knows nothing of them."""
    base: ModelId | None = None
    """Model whose engine it is added to; only an adapter has one."""
    adapter: str | None = None
    """Where the adapter is: a hub id, or the absolute path of a folder; `None` is `model`."""

    @property
    def nodes(self) -> int:
        """How many nodes hold one copy together, 1 or more."""
        return 1 + len(self.peers) if self.seat is None else self.seat.nodes

    @property
    def is_follower(self) -> bool:
        """Whether it is a part of a copy whose head is elsewhere."""
        return self.seat is not None and self.seat.rank > 0

    @property
    def ranks(self) -> int:
        """How many devices of one node a copy takes, 1 or more where it can be shared evenly."""
        if self.tensor_parallel is None and self.devices:
            return len(self.devices)
        return (self.tensor_parallel or 1) * (self.pipeline_parallel or 1) // self.nodes

    def tensor_parallel_on(self, devices: int) -> int:
        """Return how many devices share each layer where it has got `devices`, which may be 0."""
        everywhere = devices * self.nodes
        return self.tensor_parallel or max(1, everywhere // (self.pipeline_parallel or 1))


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine says of itself."""

    capabilities: Capabilities
    limit: Limit
    vram_bytes: int | None = None
    """Device memory that it holds, over all its devices; `None` when not measured."""
    sleep_bytes: int | None = None
    """Host memory that it will hold asleep at level 1; `None` is reckoned as `vram_bytes`."""
    max_in_flight: int | None = None
    """Requests that it runs together; more wait inside it."""


class EngineVersion(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine is installed."""

    name: str
    """Of its distribution."""
    version: str
    tested: bool
    """Whether this release was tested with it."""


class Knowledge(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model that is not loaded."""

    facts: ModelFacts = ModelFacts()
    capabilities: Capabilities | None = None
    """What it would be able to do; `None` is not known."""
    limit: Limit = Limit()
    sampling: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Its defaults where a request says nothing, under the names of the request's fields."""


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy an engine is.

    Source of the numbers for vLLM: its gauges `vllm:num_requests_running`,
    `vllm:num_requests_waiting` and `vllm:kv_cache_usage_perc`.
    """

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float | None = None
    """In [0, 1]; `None` means not measured."""
    prefill_tok_per_s: float | None = None
    decode_tok_per_s: float | None = None
    unfinished: int = 0
    """Requests that it was given and has not finished, whether or not it has looked at them."""
    steps: int | None = None
    """Steps that it has made in all; `None` is not told, and keeps it from being found hung."""


class EngineAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A successful answer of an engine: one body, or a stream."""

    body: bytes | AsyncIterator[bytes]
    """JSON, or ready-made SSE bytes. Whoever takes the stream closes it with `aclose`."""
    content_type: str = "application/json"


class Engine(Protocol):
    """One loaded model. All methods are called on the event loop that loaded it."""

    @property
    def info(self) -> ModelInfo:
        """What it can do."""
        ...

    @property
    def failure(self) -> str | None:
        """Short reason why it is dead; `None` while it lives."""
        ...

    @property
    def process_ids(self) -> frozenset[int]:
        """Processes that belong to it and to nobody else; empty when it runs in this one."""
        ...

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Answer one request; cancelling the call or closing the stream aborts it.

        Args:
            route: which inference path was asked.
            body: the caller's JSON, undecoded.
            request_id: for the engine's own log and abort.
            urgency: who has more goes before who has less, with an engine that tells them apart
                and unless the body says otherwise.

        Raises:
            RequestError: as the caller shall see it.
        """
        ...

    async def check_request(self, route: Route, body: bytes) -> None:
        """Read a request as `serve` would, its prompt whole, and generate nothing.

        Raises:
            RequestError: what `serve` would refuse it with, as far as that can be told before.
        """
        ...

    def load(self) -> EngineLoad:
        """Return how busy it is; never blocks."""
        ...

    async def failed(self) -> str:
        """Wait until the engine dies by itself and return the short reason."""
        ...

    async def is_compiling(self) -> bool:
        """Return whether a compiler that it started holds it up; asked when it makes no step."""
        ...

    async def kill(self, reason: str) -> None:
        """End its processes at once, with their stacks in the log if they still can.

        Args:
            reason: what `failure` says from here on; requests end with it.
        """
        ...

    async def check_answer(self) -> None:
        """Ask something whose answer is known, before anybody else asks anything.

        The first call remembers what cannot be known before; every later one, after a wake, must
        find the same. It also warms the engine up.

        Raises:
            ModelLoadFailedError: the answer is wrong, or there is none.
        """
        ...

    async def sleep(self, level: int) -> None:
        """Give the device memory back; only where `capabilities.sleep` says so.

        Nobody asks it anything from here on until it is awake again.

        Args:
            level: 1 keeps the weights in host memory, 2 drops them.

        Raises:
            RequestError: it does not sleep, and is of no use any more.
        """
        ...

    async def wake(self) -> None:
        """Take the device memory back and be as before `sleep`.

        Raises:
            RequestError: it does not wake, and is of no use any more.
        """
        ...

    async def close(self, timeout_s: float) -> None:
        """Let running requests finish for up to `timeout_s`, then free everything."""
        ...


ProgressCallback = Callable[[str, int | None, int | None], None]
"""Called with stage, bytes done and bytes in all; the numbers may be unknown."""


class Harness(Protocol):
    """Brings up engines of one kind."""

    @property
    def name(self) -> str:
        """As in `harness = "..."` of a profile."""
        ...

    @property
    def engine(self) -> EngineVersion | None:
        """What is installed; `None` when nothing is, or it is a part of the neuron."""
        ...

    @property
    def can_sleep(self) -> bool:
        """Whether its engines can be put to sleep here, as far as is known by now."""
        ...

    async def fetch(self, spec: ModelSpec, on_progress: ProgressCallback) -> None:
        """Have what a load reads on this machine; may take hours, and holds no device.

        Whoever is cancelled leaves, and what nobody else wants ends.

        Args:
            spec: what is to be loaded.
            on_progress: called only when something must be waited for.

        Raises:
            InvalidRequestError: an engine option does not exist or has a wrong type.
            NotFoundError: there are no weights for the model, neither here nor elsewhere.
            RequestError: they cannot be had now.
        """
        ...

    async def check(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` completed with what the harness knows without a device.

        Raises:
            InvalidRequestError: an engine option does not exist or has a wrong type.
            NotFoundError: there are no weights for the model here.
        """
        ...

    async def study(self, spec: ModelSpec) -> Knowledge:
        """Return what is known of a checked spec without a device; what is not stays `None`."""
        ...

    async def load(self, spec: ModelSpec, on_progress: ProgressCallback) -> Engine:
        """Bring up an engine for a checked spec; cancelling the call undoes it.

        Raises:
            RequestError: why it cannot be loaded, short enough to show.
        """
        ...

    async def adapt(self, base: Engine, spec: ModelSpec) -> Engine:
        """Add a fetched adapter to a loaded engine, which answers to both names from then on.

        Args:
            base: an engine of this harness; it outlives what is returned.
            spec: of the adapter; it has a `base`.

        Raises:
            ConflictError: `base` takes no adapters; with the cure.
            RequestError: why this one cannot be added.
        """
        ...

    async def answer_from_files(
        self, spec: ModelSpec, route: Route, body: bytes, request_id: RequestId
    ) -> bytes:
        """Return what the engine of `spec` would answer, without one; JSON.

        Args:
            spec: not checked; of an adapter, with the options of its `base`.
            route: one of `FILES_ROUTES`.
            body: the caller's JSON, undecoded.
            request_id: for logs.

        Raises:
            NotFoundError: the model's files are not here.
            RequestError: as the caller shall see it.
        """
        ...

    async def recycle(self) -> None:
        """End what outlives engines and start it anew; none of its engines is up.

        Raises:
            RequestError: it could not be done.
        """
        ...

    def metrics(self) -> bytes:
        """Return the engines' own series in Prometheus' text format, possibly empty.

        Called in a thread, beside the event loop.
        """
        ...

    async def close(self) -> None:
        """Free what the harness itself holds; its engines are closed already."""
        ...
