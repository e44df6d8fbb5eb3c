"""The followers on this node, each for as long as its head listens to it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec

from cortex_core.codec import encode_json
from cortex_core.dialect import Dialect, error_body
from cortex_core.errors import (
    DrainingError,
    EngineError,
    ModelNotFoundError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId, RequestId
from cortex_core.replica import ReplicaStatus
from cortex_core.sse import encode_comment, encode_event
from cortex_core.wire.neuron import JOINED_EVENT, Joined
from neuron.supervisor.actor import Supervisor
from neuron.supervisor.groups import Groups, Membership
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts
from neuron.supervisor.waiting import Wait, first, within

_WHOLE = (ReplicaStatus.LOADING, ReplicaStatus.LOADED)


class Followers:
    """Starts and ends followers.

    Args:
        parts: what they need.
        supervisor: loads and unloads them, like whole models.
    """

    def __init__(self, parts: Parts, supervisor: Supervisor) -> None:
        self._parts = parts
        self._groups: Groups = parts.groups
        self._supervisor = supervisor
        self._closing = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._lives: dict[str, Life] = {}

    async def follow(self, spec: ModelSpec, request_id: RequestId) -> AsyncGenerator[bytes, None]:
        """Load a part, keep it for as long as this is read, and tell what becomes of it.

        Yields:
            Events for the wire: `joined` once, then `error` at the end.

        Args:
            spec: with its seat.
            request_id: for the error.
        """
        assert spec.seat is not None
        group = spec.seat.group
        membership = self._groups.memberships[group] = Membership()
        try:
            host = await self._groups.host_towards(spec.seat.address)
            spec = msgspec.structs.replace(spec, seat=msgspec.structs.replace(spec.seat, host=host))
            async with contextlib.aclosing(self._way_made(spec)) as beats:
                async for beat in beats:
                    yield beat
            life = self._lives[group] = await self._supervisor.load(spec)
            async with contextlib.aclosing(self._news(life, membership)) as news:
                async for event in news:
                    yield event
            raise _end_of(life) or DrainingError("this neuron is shutting down")
        except RequestError as error:
            yield encode_event(error_body(error, Dialect.OPENAI, request_id), event="error")
        finally:
            self._groups.memberships.pop(group, None)
            self._lives.pop(group, None)
            # Whoever reads this may be cancelled by now.
            self._ending = self._parts.spawn(self._end(spec), f"end follower of {spec.model}")

    async def settle(self, group: str) -> None:
        """Take the head's word that it is up, and return when its follower counts as loaded.

        Raises:
            NotFoundError: there is no follower of that group.
            RequestError: it failed meanwhile.
        """
        life = self._lives.get(group)
        if life is None:
            raise _unknown(group)
        self._groups.memberships[group].settled.set()
        await asyncio.shield(life.loaded)

    async def end(self, group: str) -> None:
        """End the follower of a group, and return when its memory is free.

        Raises:
            NotFoundError: there is none.
        """
        life = self._lives.get(group)
        if life is None:
            raise _unknown(group)
        await self._end(life.state.asked)

    def close(self) -> None:
        """End all streams, and with them their followers."""
        self._closing.set()

    async def _news(self, life: Life, membership: Membership) -> AsyncGenerator[bytes, None]:
        """Yield events until the part is not whole any more, or the neuron goes down."""
        clock, is_told = self._parts.clock, False
        while _end_of(life) is None and not self._closing.is_set():
            if membership.joined.is_set() and not is_told:
                is_told = True
                joined = Joined(devices=life.state.devices)
                yield encode_event(encode_json(joined), event=JOINED_EVENT)
            waits: list[Wait] = [life.changed.wait(), life.gone.wait(), self._closing.wait()]
            if not is_told:
                waits.append(membership.joined.wait())
            silence = clock.sleep(self._parts.settings.heartbeat_s)
            if await first(*waits, silence) == len(waits):
                yield encode_comment("here")

    async def _way_made(self, spec: ModelSpec) -> AsyncGenerator[bytes, None]:
        """Make way, and say now and then that somebody is here: a silent peer counts as lost."""
        clock, settings = self._parts.clock, self._parts.settings
        errors: list[RequestError] = []

        async def make() -> None:
            try:
                await self._make_way(spec)
            except RequestError as error:
                errors.append(error)

        making = self._parts.spawn(make(), f"make way for {spec.model}")
        try:
            while not await within(clock, settings.heartbeat_s, asyncio.wait([making])):
                yield encode_comment("here")
        finally:
            making.cancel()
        if errors:
            raise errors[0]

    async def _make_way(self, spec: ModelSpec) -> None:
        """End an earlier group's part of the same model: its head has begun anew."""
        state = self._state(spec.model)
        if state is not None and state.seat is not None and state.seat != spec.seat:
            await self._supervisor.unload(spec.model, 0)

    async def _end(self, spec: ModelSpec) -> None:
        held = self._state(spec.model)
        if held is not None and held.seat == spec.seat:
            await self._supervisor.unload(spec.model, 0)

    def _state(self, model: ModelId) -> ModelSpec | None:
        try:
            return self._supervisor.state(model).asked
        except ModelNotFoundError:
            return None


def _end_of(life: Life) -> RequestError | None:
    """Return why a part is not whole any more; `None` while it is."""
    if life.loaded.done():
        error = life.loaded.exception()
        if isinstance(error, RequestError):
            return error
    status = life.state.status
    if life.is_shutting_down:
        return DrainingError("this neuron is shutting down")
    if status in _WHOLE and not life.gone.is_set():
        return None
    return EngineError(life.state.error or f"it is {status.value}")


def _unknown(group: str) -> NotFoundError:
    return NotFoundError(f"there is no follower of the group {group[:40]!r} here", param="group")
