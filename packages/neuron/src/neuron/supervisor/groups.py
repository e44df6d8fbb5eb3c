"""Copies over several nodes: this one has the head, or follows another node's head.

The engine's processes find each other by themselves; what is here starts and ends them together.
A follower lives for as long as its head holds a connection to its neuron, so that a head that
dies takes its followers along with nobody having to remember them. A follower that is lost ends
the whole copy, which the supervisor of the head then treats like any dead engine.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import msgspec

from cortex_core.errors import (
    ConflictError,
    InternalError,
    InvalidRequestError,
    RequestError,
)
from cortex_core.group import Seat
from cortex_core.harness import Engine, Harness, ModelSpec, ProgressCallback
from cortex_core.units import mib_from_bytes
from cortex_core.wire.neuron import FollowerRequest
from neuron.ports import Follower, Peers
from neuron.supervisor.grouped import FollowingEngine, LeadingEngine

T = TypeVar("T")


class Membership:
    """How far one follower on this node is."""

    def __init__(self) -> None:
        self.joined = asyncio.Event()
        """Set when it has its memory and its devices."""
        self.settled = asyncio.Event()
        """Set when its head is up."""


class Groups:
    """Brings engines up, alone or together with other nodes.

    Args:
        peers: the other nodes; `None` where there are none to ask.
        wait_s: how long peers get to find memory and devices for their parts.
    """

    def __init__(self, peers: Peers | None = None, wait_s: float = 60.0) -> None:
        self._peers = peers
        self._wait_s = wait_s
        self.memberships: dict[str, Membership] = {}
        """Of the followers on this node, by group."""

    async def load(
        self, harness: Harness, spec: ModelSpec, on_progress: ProgressCallback
    ) -> Engine:
        """Bring up what `spec` says; see `Harness.load`. Its devices are held meanwhile."""
        if spec.is_follower:
            return await self._follow(harness, spec, on_progress)
        if spec.peers:
            return await self._lead(harness, spec, on_progress)
        return await harness.load(spec, on_progress)

    async def host_towards(self, address: str) -> str:
        """Return the address under which this node is reached from a head at `address`."""
        return address if self._peers is None else await self._peers.host_towards(address)

    async def _follow(
        self, harness: Harness, spec: ModelSpec, on_progress: ProgressCallback
    ) -> Engine:
        assert spec.seat is not None
        membership = self.memberships.get(spec.seat.group)
        if membership is None:
            raise ConflictError(f"the head of {spec.model!r} has gone")
        membership.joined.set()
        return FollowingEngine(await harness.load(spec, on_progress), membership.settled)

    async def _lead(
        self, harness: Harness, spec: ModelSpec, on_progress: ProgressCallback
    ) -> Engine:
        if self._peers is None:
            raise InvalidRequestError("this neuron has no way to its peers", param="peers")
        seat = await self._peers.seat(spec.peers[0].endpoint)
        seat = msgspec.structs.replace(seat, nodes=spec.nodes)
        on_progress("peers", None, None)
        group = Group(
            [
                self._peers.follow(peer.endpoint, _request(spec, seat, place))
                for place, peer in enumerate(spec.peers)
            ]
        )
        try:
            await group.joined(self._wait_s)
            led = msgspec.structs.replace(spec, seat=seat)
            engine = await group.during(harness.load(led, on_progress))
            try:
                await group.settle()
            except BaseException:
                await engine.close(0)
                raise
        except BaseException:
            await group.close()
            raise
        return LeadingEngine(engine, group.lost, group.close)


class Group:
    """The followers of one copy.

    Args:
        followers: one for each peer.
    """

    def __init__(self, followers: Sequence[Follower]) -> None:
        self._followers = followers
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the copy is not whole any more, with the reason."""
        self._why: RequestError | None = None
        for follower in followers:
            follower.lost.add_done_callback(self._take_loss)

    async def joined(self, wait_s: float) -> None:
        """Wait until all have memory and devices.

        Raises:
            ConflictError: not in time. Two groups may wait for each other's devices.
            RequestError: why one of them cannot join.
        """
        try:
            async with asyncio.timeout(wait_s):
                for follower in self._followers:
                    await self.during(follower.joined())
        except TimeoutError:
            late = ", ".join(follower.endpoint for follower in self._followers)
            raise ConflictError(
                f"no devices for the model in {wait_s:g} s at its peers ({late}); try again"
            ) from None

    async def settle(self) -> None:
        """Say to all that the head is up, and wait until they count as loaded.

        Raises:
            RequestError: one of them is lost.
        """
        for follower in self._followers:
            await self.during(follower.settle())

    async def during(self, work: Awaitable[T]) -> T:
        """Do `work`, which is cancelled when a follower is lost.

        Raises:
            RequestError: why it was lost.
        """
        is_over = False

        def cut(_: object) -> None:
            # It may have been called already, to run in a moment, when the work ends.
            if not is_over:
                scope.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(None) as scope:
                self.lost.add_done_callback(cut)
                try:
                    return await work
                finally:
                    is_over = True
        except TimeoutError:
            if self._why is None:
                raise
            raise self._why from None
        finally:
            self.lost.remove_done_callback(cut)

    async def close(self) -> None:
        """End all followers, and wait until they are gone, within bounds."""
        async with asyncio.TaskGroup() as tasks:
            for follower in self._followers:
                tasks.create_task(follower.close())

    def _take_loss(self, ended: asyncio.Future[RequestError]) -> None:
        if self.lost.done():
            return
        self._why = InternalError() if ended.cancelled() else ended.result()
        self.lost.set_result(f"a part of the model was lost: {self._why.message}")


def _request(spec: ModelSpec, seat: Seat, place: int) -> FollowerRequest:
    peer = spec.peers[place]
    return FollowerRequest(
        model_id=spec.model,
        harness=spec.harness,
        group=seat.group,
        rank=place + 1,
        nodes=seat.nodes,
        address=seat.address,
        port=seat.port,
        head=seat.head,
        quant=spec.quant,
        tensor_parallel=spec.tensor_parallel,
        pipeline_parallel=spec.pipeline_parallel,
        devices=peer.devices or None,
        engine=spec.engine,
        vram_mb=None if spec.vram_bytes is None else mib_from_bytes(spec.vram_bytes),
    )
