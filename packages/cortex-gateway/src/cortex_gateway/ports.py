"""What the rooms of the gateway need of each other, as protocols."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.placement.policy import EvictionPolicy
from cortex_core.routing.retry import Failure
from cortex_core.wire.admin import ConfigView, ReloadAnswer
from cortex_core.wire.fit import FitReport
from cortex_core.wire.neuron import (
    CordonRequest,
    LoadRequest,
    PinRequest,
    SleepRequest,
    UnloadRequest,
    WakeRequest,
)
from cortex_core.wire.weights import PullRequest, WeightsList, WeightsNews


class Store(Protocol):
    """The fleet snapshot: one writer at a time, readers get immutable values."""

    @property
    def state(self) -> FleetState:
        """The newest snapshot."""
        ...

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue in force."""
        ...

    @property
    def policy(self) -> EvictionPolicy:
        """How room is made."""
        ...

    def rates(self, now: float) -> Mapping[ModelId, float]:
        """Return requests per second by model."""
        ...

    def update(self, reducer: Callable[[FleetState], FleetState]) -> None:
        """Replace the snapshot by `reducer(snapshot)` and wake who waits for a change."""
        ...

    async def changed(self, revision: int) -> FleetState:
        """Wait until the snapshot is newer than `revision` and return it."""
        ...

    def doubt(self, replica: ReplicaId) -> None:
        """Believe no more that a replica serves, until its node reports."""
        ...

    def failed(self, replica: ReplicaId, now: float) -> None:
        """Note that a request failed at `replica`."""
        ...

    def succeeded(self, replica: ReplicaId) -> None:
        """Note that a request ended well at `replica`, which has failed before."""
        ...

    def demand(self, model: ModelId) -> AbstractContextManager[None]:
        """Count one waiter for `model` while the context is open; wakes the reconciler."""
        ...

    def count(self, model: ModelId, now: float) -> None:
        """Note one request for a model of the fleet."""
        ...

    def touch(self, replica: ReplicaId, now: float) -> None:
        """Note that a request begins or ends at `replica`, whose neuron may not say so."""
        ...

    def served(self, model: ModelId, request_s: float) -> None:
        """Note how long a request for `model` was with a replica."""
        ...

    def demanded(self) -> frozenset[ModelId]:
        """Models that at least one request waits for."""
        ...

    def refresh(self, node: NodeName) -> None:
        """Ask for a fresh report of `node` at once."""
        ...

    def while_up(self, node: NodeName) -> AbstractContextManager[None]:
        """Run a block that a node is needed for.

        Raises:
            UpstreamFailure: the node went down meanwhile; the block was cancelled.
        """
        ...


class UpstreamFailure(Exception):  # noqa: N818 - it never reaches a caller as an error
    """An attempt at a node that failed before its answer began, or within it."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason


class UpstreamAnswer(Protocol):
    """A node's answer whose head has arrived."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """Header pairs in order, names in lower case, as the node sent them."""
        ...

    async def read(self) -> bytes:
        """Return what of the body has come, all at once; waits if there is nothing yet.

        Returns:
            Bytes, none at the end of the body and ever after.

        Raises:
            UpstreamFailure: cut, or silent for longer than the idle limit.
        """
        ...

    def rest(self) -> bytes | None:
        """Return what is left of the body if all of it has come, else `None` and nothing is read."""
        ...

    async def pass_to(self, take: Callable[[bytes], bool]) -> None:
        """Give the rest of the body to `take` in pieces, as they come; returns at its end.

        `take` is called from where the bytes arrive, so that no task has to wake up for it, and
        first of all with what `read` would return. It answers whether it takes more: after a
        `False` the node is not read until `resume` is called, and that time counts as no
        silence. What `take` raises ends this call, which raises it; the rest can be read.

        Raises:
            UpstreamFailure: as in `read`.
        """
        ...

    def resume(self) -> None:
        """Read the node again after `take` has refused more; else nothing."""
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Have done with the answer: one that has not ended is aborted, so that the work ends.

        If nothing but its end comes within `linger_s` seconds, its connection is used again, as
        after one that was read to its end. Must be called, and may be called twice.
        """
        ...


Body = bytes | tuple[bytes | memoryview, ...]
"""Of a request, whole or in pieces: putting a name into megabytes is to copy none of them."""


class Upstream(Protocol):
    """Sends requests to neurons' inference paths."""

    def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: Body
    ) -> Awaitable[UpstreamAnswer]:
        """Send a request and return its answer once the head is there; close it afterwards.

        Being cancelled closes the connection, which aborts the request.

        Raises:
            UpstreamFailure: no answer began.
        """
        ...


class ProxySettings(Protocol):
    """What the data path reads of the gateway's settings."""

    @property
    def hold_s(self) -> float:
        """Longest wait for a model that is not loaded."""
        ...

    @property
    def heartbeat_s(self) -> float:
        """Seconds between comments to a streaming caller for whom nothing happens yet."""
        ...

    @property
    def max_in_flight(self) -> int:
        """Requests that a replica is given at once where nobody says."""
        ...

    @property
    def max_waiting(self) -> int:
        """Requests that may wait for one model."""
        ...

    @property
    def max_waiting_per_caller(self) -> int:
        """Those of one caller."""
        ...


class RequestMetrics(Protocol):
    """Where the data path counts; `model` and `node` are names the fleet knows, or `unknown`."""

    def began(self, model: str) -> None:
        """Count a request whose model is known as in flight; `ended` follows without fail."""
        ...

    def attempted(self, outcome: str) -> None:
        """Count one attempt at a node: `ok` or a `Failure`'s value."""
        ...

    def ended(
        self,
        *,
        model: str,
        node: str,
        outcome: str,
        has_begun: bool,
        is_cold_start: bool,
        duration_s: float,
        queue_s: float,
        load_s: float,
        ttft_s: float | None,
        inter_token_s: float | None,
        prompt_tokens: int | None,
        cached_prompt_tokens: int | None,
        completion_tokens: int | None,
    ) -> None:
        """Count one request at its end, whatever became of it; `None` is not known.

        Args:
            model: `unknown` when the request named no model of the fleet.
            node: `unknown` when it reached none.
            outcome: `ok`, `client_gone`, or the code of the error that it ended in.
            has_begun: whether `began` was called for it.
            is_cold_start: whether it waited for a load.
            duration_s: from its arrival to the last byte of the answer.
            queue_s: from its arrival to its dispatch, without `load_s`.
            load_s: how long it waited for a load.
            ttft_s: from its arrival to the first content; streams only.
            inter_token_s: mean gap between tokens after the first.
            prompt_tokens: as the engine counted.
            cached_prompt_tokens: the part of `prompt_tokens` that came from a cache.
            completion_tokens: as the engine counted.
        """
        ...


class NodeClient(Protocol):
    """Speaks the control API of one neuron.

    Every method raises `UpstreamError` when the neuron cannot be reached, cuts or answers
    nonsense, and `UpstreamTimeoutError` when it is silent for too long.
    """

    async def discovery(self) -> NodeFacts:
        """Ask `/discovery`."""
        ...

    async def report(self) -> NodeReport:
        """Ask `/models` and `/health`."""
        ...

    def events(self) -> AsyncGenerator["NodeNews", None]:
        """Subscribe to `/events`; ends when the neuron ends the stream.

        Raises:
            NotFoundError: the neuron has no event stream.
        """
        ...

    async def load(self, request: LoadRequest) -> None:
        """Load a model; returns when it serves.

        Raises:
            RequestError: why it could not be loaded.
        """
        ...

    async def unload(self, request: UnloadRequest) -> None:
        """Let a model's requests end, then unload it; returns when its memory is free.

        Raises:
            RequestError: why it could not be unloaded.
        """
        ...

    async def sleep(self, request: SleepRequest) -> None:
        """Let a model's requests end, then put it to sleep; returns when its memory is free.

        Raises:
            RequestError: why it does not sleep.
        """
        ...

    async def wake(self, request: WakeRequest) -> None:
        """Wake a model; returns when it serves.

        Raises:
            RequestError: why it could not be woken.
        """
        ...

    async def pin(self, request: PinRequest) -> None:
        """Mark a model as one that stays there, or no longer.

        Raises:
            RequestError: why it could not be marked.
        """
        ...

    async def cordon(self, request: CordonRequest) -> None:
        """Mark the node as one that takes no new models, or no longer.

        Raises:
            RequestError: why it could not be marked.
        """
        ...

    async def fit(self, request: LoadRequest) -> FitReport:
        """Return whether a load would work there; nothing is done.

        Raises:
            RequestError: why it cannot say.
        """
        ...

    async def weights(self) -> WeightsList:
        """Return what is on the node's disk and on its way there.

        Raises:
            RequestError: why it cannot say.
        """
        ...

    async def pull(self, request: PullRequest, *, is_waited_for: bool) -> WeightsNews:
        """Have a model downloaded; the download goes on whatever becomes of the call.

        Args:
            request: what is wanted.
            is_waited_for: whether to return when it is there, or at once.

        Raises:
            RequestError: why it is not downloaded.
        """
        ...

    async def remove_weights(self, model: ModelId) -> WeightsNews:
        """Have a model removed from the node's disk.

        Raises:
            RequestError: why it stays.
        """
        ...

    async def recycle(self) -> None:
        """Have the node end its engine processes and bring its models back in new ones.

        Raises:
            RequestError: why it could not be done.
        """
        ...


class NodeNews(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a neuron's event stream, already in our terms."""

    facts: NodeFacts | None = None
    report: NodeReport | None = None
    """A full report: replaces what was known."""


class Configured(Protocol):
    """The configuration in force, which can be read anew."""

    def view(self) -> ConfigView:
        """Return what is in force, without secrets."""
        ...

    async def reload(self) -> ReloadAnswer:
        """Read the files and put in force what they say.

        Raises:
            SettingsError: they cannot be used; nothing has changed.
        """
        ...
