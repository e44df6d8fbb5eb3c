"""What goes between processes arrives as it was sent, in whatever pieces."""

import asyncio
import itertools
import socket

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import (
    ModelDoesNotFitError,
    ModelLoadingError,
    ModelNotFoundError,
    NoReplicaError,
    OverloadedError,
    RequestError,
)
from cortex_core.fleet.state import FleetState, NodeState, Resident
from cortex_core.ids import ModelId, NodeName, ReplicaId
from cortex_core.routing.route import Candidate, Refuse, Serve
from cortex_gateway.workers import wire
from cortex_gateway.workers.channel import Channel, connect, frame, whole

REPLICA = ReplicaId(node=NodeName("left"), model=ModelId("some/model"))

MESSAGES = st.one_of(
    st.builds(wire.Hello),
    st.builds(wire.Places, replica=st.just(REPLICA), change=st.integers(-5, 5)),
    st.builds(wire.Leave, turn=st.integers(0, 9)),
    st.builds(
        wire.Noted,
        counts=st.dictionaries(st.text(), st.integers(1, 2**31)),
        counted_at=st.floats(allow_nan=False),
        took=st.dictionaries(st.text(), st.lists(st.floats(allow_nan=False))),
        lines=st.integers(0, 9),
        journal=st.binary(),
    ),
)


@given(
    frames=st.lists(st.lists(MESSAGES, min_size=1, max_size=4), max_size=5),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
def test_frames_arrive_in_order_however_they_are_cut(
    frames: list[list[wire.FromWorker]], cuts: list[int]
) -> None:
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(list[wire.FromWorker])
    data = b"".join(frame(encoder, messages) for messages in frames)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    buffer, got = bytearray(), []
    for start, end in itertools.pairwise(edges):
        buffer += data[start:end]
        got += [decoder.decode(body) for body in whole(buffer)]
    assert got == frames
    assert not buffer


async def test_number_that_no_message_carries_holds_up_no_other_message() -> None:
    """Ours: nodes may report anything, and one of them must not end all workers."""
    got: list[wire.FromWorker] = []
    told = asyncio.Event()
    lost = asyncio.Event()

    def take(message: wire.FromWorker) -> None:
        got.append(message)
        told.set()

    decoder = msgspec.msgpack.Decoder(list[wire.FromWorker])
    near, far = (Channel(decoder, take, lost.set) for _ in range(2))
    async with asyncio.timeout(5):
        for channel, end in zip((near, far), socket.socketpair(), strict=True):
            await connect(channel, end)
        near.say(wire.Places(replica=REPLICA, change=2**70))
        near.say(wire.Leave(turn=1))
        await told.wait()
        near.close()
        await lost.wait()
        far.close()

    assert got == [wire.Leave(turn=1)]


def test_a_decision_arrives_whole() -> None:
    decision = Serve(
        replica=REPLICA,
        endpoint="http://left:1",
        reason="the only one",
        candidates=(Candidate(replica=REPLICA, score=0.5),),
    )
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(wire.told_of(decision)), type=wire.Told)
    assert wire.decision_of(told) == decision


@pytest.mark.parametrize(
    "error",
    [
        OverloadedError("full", retry_after_s=3.0),
        ModelLoadingError("later", retry_after_s=9.0),
        NoReplicaError("none"),
        ModelNotFoundError("some/model"),
        ModelDoesNotFitError("too large"),
    ],
)
def test_an_error_is_told_in_the_same_words(error: RequestError) -> None:
    told = wire.told_of(Refuse(error=error))
    got = wire.decision_of(msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=wire.Told))
    assert isinstance(got, Refuse)
    assert type(got.error) is type(error)
    assert (got.error.message, got.error.param) == (error.message, error.param)
    assert got.error.retry_after_s == error.retry_after_s
    assert str(got.error) == str(error)


def test_a_fleet_arrives_whole() -> None:
    state = FleetState(
        revision=7,
        nodes={
            NodeName("left"): NodeState(
                name=NodeName("left"),
                endpoint="http://left:1",
                residents={ModelId("a"): Resident(since=1.0, used=float("-inf"))},
            )
        },
        unloads=frozenset({REPLICA}),
    )
    encoded = msgspec.msgpack.encode([wire.Fleet(state=state, heard=3)])
    (got,) = msgspec.msgpack.decode(encoded, type=list[wire.FromControl])
    assert got == wire.Fleet(state=state, heard=3)
