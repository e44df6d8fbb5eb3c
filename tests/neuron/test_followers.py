"""One copy of a model over several neurons, which talk to each other through real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from cortex_core.group import Seat
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId, RequestId
from cortex_core.sse import encode_comment
from neuron.supervisor.followers import Followers
from tests.neuron.bench import Bench
from tests.neuron.conftest import Json, RunningNeuron, Start

MODEL = "sim/wide"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def wide(*peers: str, **more: object) -> dict[str, object]:
    """Return the body of a load over this node and `peers`."""
    return {
        "model_id": MODEL,
        "harness": "simulated",
        "tensor_parallel": 1 + len(peers),
        "peers": [{"endpoint": url} for url in peers],
        **more,
    }


@contextlib.asynccontextmanager
async def pair(start: Start, **table: object) -> AsyncIterator[tuple[RunningNeuron, RunningNeuron]]:
    """Run two neurons, the head's first."""
    async with start(**table) as head, start(**table) as peer:
        yield head, peer


async def seen(neuron: RunningNeuron, *statuses: str | None) -> Json:
    """Wait until the model has one of `statuses` on a node, and return its report."""

    def holds(health: Json) -> bool:
        found = [model["status"] for model in health["models"] if model["id"] == MODEL]
        return (found[0] if found else None) in statuses

    await neuron.until(holds)
    return await neuron.model(MODEL)


async def used_mb(neuron: RunningNeuron) -> int:
    """Return what models hold of the only device of a node."""
    used: int = (await neuron.get("/health"))["devices"][0]["vram_used_mb"]
    return used


async def test_copy_over_two_nodes_is_one_replica_at_its_head(start: Start) -> None:
    """Ours: the head answers, the other part takes room, says for whom, and answers nobody."""
    async with pair(start) as (head, peer):
        loaded = await head.post("/models/load", wide(peer.url, vram_mb=600))
        chat = await head.post("/v1/chat/completions", CHAT)
        elsewhere = await peer.post("/v1/chat/completions", CHAT)
        whole, part = await head.model(MODEL), await peer.model(MODEL)
        held = [await used_mb(head), await used_mb(peer)]

    assert loaded[:2] == (200, {"status": "loaded"})
    assert chat[0] == 200
    assert elsewhere[0] == 503
    assert elsewhere[2]["x-cortex-not-admitted"] == "1"
    assert (whole["status"], whole["peers"], whole["head"]) == ("loaded", [peer.url], None)
    assert whole["servable"]["ok"]
    assert (part["status"], part["peers"], part["devices"]) == ("following", [], [0])
    assert part["head"]
    assert not part["servable"]["ok"]
    assert held == [300, 300]


async def test_unload_at_the_head_frees_both(start: Start) -> None:
    """Ours: when the answer is there, the memory is back on all nodes."""
    async with pair(start) as (head, peer):
        await head.post("/models/load", wide(peer.url))
        there = await peer.post("/models/unload", {"model_id": MODEL})
        unloaded = await head.post("/models/unload", {"model_id": MODEL})
        left = [await head.get("/models"), await peer.get("/models")]
        held = [await used_mb(head), await used_mb(peer)]

    assert there[0] == 409
    assert "unload it there" in there[1]["error"]["message"]
    assert unloaded[:2] == (200, {"status": "unloaded"})
    assert left == [[], []]
    assert held == [0, 0]


@pytest.mark.parametrize(
    ("load", "status", "words"),
    [
        ({"vram_mb": 2200}, 507, "1,100 MiB"),
        ({"harness": "nope"}, 400, "harness"),
        ({"tensor_parallel": 3}, 400, "2 nodes cannot share evenly"),
    ],
)
async def test_load_that_cannot_be_is_refused_and_leaves_nothing(
    start: Start, load: dict[str, object], status: int, words: str
) -> None:
    """Ours: whoever of the nodes finds out, and before any of them starts an engine."""
    async with pair(start) as (head, peer):
        answer = await head.post("/models/load", {**wide(peer.url), **load})
        left = [await head.get("/models"), await peer.get("/models")]

    assert answer[0] == status
    assert words in answer[1]["error"]["message"]
    assert left == [[], []]


async def test_peer_without_room_is_named(start: Start) -> None:
    """Ours: the head has the room, and says who has not."""
    async with (
        start() as head,
        start(devices=[{"index": 0, "name": "S", "vram_total_mb": 100}]) as p,
    ):
        answer = await head.post("/models/load", wide(p.url, vram_mb=1000))
        left = [await head.get("/models"), await p.get("/models")]
        held = await used_mb(head)

    assert answer[0] == 507
    assert p.url in answer[1]["error"]["message"]
    assert answer[1]["error"]["needed_bytes"] == 500 << 20
    assert (left, held) == ([[], []], 0)


async def test_peer_that_is_not_there_is_named(start: Start) -> None:
    """Ours: the load fails at once, and gives its memory back."""
    async with start() as head:
        async with start() as gone:
            url = gone.url
        answer = await head.post("/models/load", wide(url))
        held = await used_mb(head)

    assert answer[0] == 502
    assert f"{url} cannot be reached" in answer[1]["error"]["message"]
    assert held == 0


async def test_peer_whose_device_is_busy_is_not_waited_for_without_end(start: Start) -> None:
    """Ours: two groups that wait for each other's devices must not wait for ever."""
    faults = {"hangs": {"hang_load": True}}
    async with start(memory_wait_s=0.2) as head, start(simulated={"faults": faults}) as peer:
        hanging = await peer.session.post(
            f"{peer.url}/models/load?wait=false",
            json={"model_id": "hangs", "harness": "simulated", "vram_mb": 10},
        )
        answer = await head.post("/models/load", wide(peer.url, vram_mb=20))
        models = await peer.get("/models")
        await peer.post("/models/unload", {"model_id": "hangs", "force": True})

    assert hanging.status == 202
    assert answer[0] == 409
    assert "no devices" in answer[1]["error"]["message"]
    assert [model["id"] for model in models] == ["hangs"]


async def test_lost_peer_ends_the_whole_copy(start: Start) -> None:
    """Ours: never half of it; the reason names the node."""
    async with start() as head:
        async with start() as peer:
            await head.post("/models/load", wide(peer.url))
            url = peer.url
        report = await seen(head, "recovering", "failed")
        chat = await head.post("/v1/chat/completions", CHAT)

    assert url in report["error"]
    assert chat[0] == 503


def follower(group: str, **more: object) -> dict[str, object]:
    """Return what a head asks of a peer."""
    return {
        "model_id": MODEL,
        "harness": "simulated",
        "group": group,
        "rank": 1,
        "nodes": 2,
        "address": "127.0.0.1",
        "port": 1,
        "head": "elsewhere",
        "tensor_parallel": 2,
        "vram_mb": 100,
        **more,
    }


async def test_follower_ends_with_the_connection_of_its_head(start: Start) -> None:
    """Ours: a head that dies takes its followers along, at whatever point they are."""
    async with start() as peer, aiohttp.ClientSession() as session:
        loading = await session.post(f"{peer.url}/followers", json=follower("a"))
        await seen(peer, "following")
        loading.close()
        await seen(peer, None)

        loaded = await session.post(f"{peer.url}/followers", json=follower("b"))
        await loaded.content.readuntil(b"\n\n")
        settled = await peer.post("/followers/b/settle", {})
        part = await seen(peer, "following")
        loaded.close()
        await seen(peer, None)
        held = await used_mb(peer)

    assert settled[:2] == (200, {"status": "loaded"})
    assert part["head"] == "elsewhere"
    assert held == 0


async def test_head_that_begins_anew_displaces_its_earlier_follower(start: Start) -> None:
    """Ours: a cut in the network may leave the peer with a follower that nobody wants."""
    async with start() as peer, aiohttp.ClientSession() as session:
        old = await session.post(f"{peer.url}/followers", json=follower("old"))
        await seen(peer, "following")
        new = await session.post(f"{peer.url}/followers", json=follower("new"))
        joined = await new.content.readuntil(b"\n\n")
        settled = await peer.post("/followers/new/settle", {})
        told = (await old.content.read()).decode()
        unknown = await peer.post("/followers/old/settle", {})
        report = await peer.model(MODEL)
        new.close()

    assert b"event: joined" in joined
    assert settled[0] == 200
    assert "event: error" in told
    assert unknown[0] == 404
    assert report["status"] == "following"


async def test_head_hears_of_a_peer_that_still_makes_way_for_it(bench: Bench) -> None:
    """Ours: an engine may take longer to close than a head bears silence."""
    followers = Followers(bench.parts, bench.supervisor)
    old, new = (followers.follow(part(group), RequestId("r")) for group in ("old", "new"))
    joined = await anext(old)
    await followers.settle("old")

    async with bench.workers.hold(bench.supervisor.state(ModelId(MODEL)).devices):
        word = bench.tasks.create_task(anext(new))
        await bench.clock.advance(bench.parts.settings.heartbeat_s)
        async with asyncio.timeout(5):
            beat = await word
    after = await anext(new)
    await old.aclose()
    await new.aclose()

    assert b"event: joined" in joined
    assert beat == encode_comment("here")
    assert b"event: joined" in after


def part(group: str) -> ModelSpec:
    """Return how a follower of a group is loaded."""
    seat = Seat(group=group, rank=1, nodes=2, address="127.0.0.1", port=1, host="", head="h")
    return ModelSpec(
        model=ModelId(MODEL), harness="fake", vram_bytes=10, tensor_parallel=2, seat=seat
    )


async def test_follower_does_not_displace_a_whole_model(start: Start) -> None:
    """Ours: somebody may be using it."""
    async with start() as peer, aiohttp.ClientSession() as session:
        await peer.load(MODEL)
        stream = await session.post(f"{peer.url}/followers", json=follower("g"))
        told = (await stream.content.read()).decode()
        report = await peer.model(MODEL)

    assert '"conflict"' in told
    assert report["servable"]["ok"]


@pytest.mark.parametrize("change", [{"rank": 0}, {"rank": 2}, {"nodes": 1}, {"address": 5}])
async def test_follower_with_an_impossible_place_is_refused(
    start: Start, change: dict[str, object]
) -> None:
    """Ours: 400, and nothing is started."""
    async with start() as peer:
        status, _, _ = await peer.post("/followers", follower("g", **change))
        models = await peer.get("/models")

    assert (status, models) == (400, [])


async def test_silent_peer_is_lost(start: Start) -> None:
    """Ours: a network that swallows everything closes no connection; heartbeats are missed."""

    async def follow(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'event: joined\ndata: {"devices": [0]}\n\n')
        await asyncio.Event().wait()
        return answer

    async def settle(request: web.Request) -> web.Response:
        return web.json_response({"status": "loaded"})

    app = web.Application()
    app.router.add_post("/followers", follow)
    app.router.add_post("/followers/{group}/settle", settle)
    app.router.add_delete("/followers/{group}", settle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with start(heartbeat_s=0.1) as head:
        loaded = await head.post("/models/load", wide(f"http://{host}:{port}"))
        report = await seen(head, "recovering", "failed")
    await runner.cleanup()

    assert loaded[0] == 200
    assert "is silent" in report["error"]


async def test_peers_bring_the_token_of_the_fleet(start: Start) -> None:
    """Ours: a peer answers its fleet alone, and the head is of it."""
    bring = {"authorization": "Bearer s3cret-of-the-fleet"}
    async with pair(start, fleet_token="s3cret-of-the-fleet") as (head, peer):
        stranger = await peer.post("/followers", follower("g"))
        loaded = await head.post("/models/load", wide(peer.url), **bring)
        unloaded = await head.post("/models/unload", {"model_id": MODEL}, **bring)

    assert stranger[0] == 401
    assert loaded[:2] == (200, {"status": "loaded"})
    assert unloaded[:2] == (200, {"status": "unloaded"})
