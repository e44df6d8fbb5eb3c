"""Ollama's API over the whole data path; the shapes are those of Ollama's documentation."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from starlette.applications import Starlette

from cortex_core.harness import Capabilities, Limit
from cortex_core.ids import ModelId, NodeName
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.server.clock import SystemClock
from cortex_core.server.failures import exception_handlers
from cortex_core.server.hypercorn import PUBLIC_KEEP_ALIVE_S
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_core.server.stack import protect
from cortex_gateway.api import ollama
from cortex_gateway.settings import Timeouts, UpstreamEntry
from tests.docs.tables import rows_of
from tests.fakes.gateway import MODEL, Answer, Gateway, ask, gateway, replica
from tests.fakes.upstream import ScriptedNode, Wire, answers, nodes, streams, words

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}

ABLE = Capabilities(chat=True, completions=True, tools=True, reasoning=True)

WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "reasoning": "hm"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
    }
).encode()


def loaded(**fields: Any) -> Replica:
    return msgspec.structs.replace(replica("a"), **fields)


@asynccontextmanager
async def serving(
    node: ScriptedNode, replicas: Iterable[Replica] | None = None, **more: Any
) -> AsyncIterator[tuple[Gateway, str]]:
    """Serve the dialect over the data path of a fleet of one node."""
    async with nodes(node), gateway({"a": node.url}, replicas, **more) as g:
        app = Starlette(
            routes=ollama.routes(g.proxy, g.store, SystemClock()),
            exception_handlers=exception_handlers(),
        )
        socket = open_listener("127.0.0.1:0")
        listener = Listener(
            app=protect(app, drain=g.drain), socket=socket, keep_alive_s=PUBLIC_KEEP_ALIVE_S
        )
        url, shutdown = socket.url, Shutdown()
        async with asyncio.TaskGroup() as tasks:
            running = serve(
                [listener],
                drain=g.drain,
                shutdown=shutdown,
                environ={},
                drain_timeout_s=0.1,
                graceful_s=0.1,
                flush_timeout_s=0.1,
            )
            tasks.create_task(running)
            try:
                yield g, url
            finally:
                shutdown.ask()


async def post(url: str, path: str, body: Mapping[str, object]) -> Answer:
    return await ask(url, msgspec.json.encode(body), path=path)


async def get(url: str, path: str) -> Any:
    async with (
        asyncio.timeout(5),
        aiohttp.ClientSession() as session,
        session.get(url + path) as response,
    ):
        assert response.status == 200
        return await response.json()


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.splitlines()]


async def test_chat_streams_lines_unless_told_otherwise() -> None:
    """Ollama's: NDJSON, one piece a line, figures in the last."""
    node = ScriptedNode(streams(words(3)))

    async with serving(node) as (g, url):
        answer = await post(url, "/api/chat", CHAT)
        figures = await g.recorder.request()

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-cortex-node"] == "a"
    *pieces, last = lines(answer)
    assert [piece["message"]["content"] for piece in pieces] == ["w0 ", "w1 ", "w2 "]
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 3)
    assert last["total_duration"] >= last["load_duration"] >= 0
    sent = json.loads(node.wires[0].body)
    assert (sent["stream"], sent["stream_options"]["include_usage"]) == (True, True)
    assert (figures["outcome"], figures["completion_tokens"]) == ("ok", 3)


async def test_chat_without_a_stream_is_one_object() -> None:
    """Ollama's: `stream: false` answers with one object."""
    async with serving(ScriptedNode(answers(200, WHOLE))) as (_, url):
        answer = await post(url, "/api/chat", {**CHAT, "stream": False})

    assert answer.headers["content-type"] == "application/json"
    assert answer.json["message"] == {"role": "assistant", "content": "hello", "thinking": "hm"}
    assert (answer.json["done"], answer.json["eval_count"]) == (True, 7)


async def test_tools_are_called_with_objects() -> None:
    """Ollama's: arguments are objects, and results come without an id."""
    delta = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a": 1}'},
    }
    base = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    events = [
        {**base, "choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    node = ScriptedNode(streams(events), streams(words(1)))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    async with serving(node) as (_, url):
        first = lines(await post(url, "/api/chat", {**CHAT, "tools": tools}))
        called = first[0]["message"]
        result = {"role": "tool", "tool_name": "f", "content": "2"}
        history = [*CHAT["messages"], called, result]
        await post(url, "/api/chat", {"model": MODEL, "messages": history, "tools": tools})

    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}, "index": 0}
    sent = json.loads(node.wires[1].body)["messages"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] != ""


async def test_generate_answers_with_responses() -> None:
    """Ollama's `/api/generate`: a prompt in, bare texts out."""
    node = ScriptedNode(streams(words(2)))

    async with serving(node) as (_, url):
        body = {"model": MODEL, "prompt": "hi", "system": "be brief", "options": {"num_ctx": 9}}
        answer = await post(url, "/api/generate", body)

    assert [line["response"] for line in lines(answer)] == ["w0 ", "w1 ", ""]
    assert lines(answer)[-1]["done"] is True
    assert answer.headers["x-cortex-ignored"] == "options.num_ctx"
    assert [m["role"] for m in json.loads(node.wires[0].body)["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/api/chat", {"messages": []}, {"message": {"role": "assistant", "content": ""}}),
        ("/api/chat", {}, {"message": {"role": "assistant", "content": ""}}),
        ("/api/generate", {}, {"response": ""}),
        ("/api/generate", {"prompt": "", "keep_alive": "5m"}, {"response": ""}),
    ],
)
async def test_a_request_without_a_message_loads_the_model(
    path: str, body: dict[str, object], text: dict[str, object]
) -> None:
    """Ollama's: editors warm a model up that way; nothing is generated."""
    node = ScriptedNode(answers(200, b'{"prompt_tokens": 3}'))

    async with serving(node) as (_, url):
        answer = await post(url, path, {"model": MODEL, **body})

    assert answer.status == 200
    (only,) = lines(answer)
    assert {**only, **text} == only
    assert (only["done"], only["done_reason"]) == (True, "load")
    assert [wire.path for wire in node.wires] == ["/v1/chat/completions/count_tokens"]


async def test_a_request_to_unload_is_refused() -> None:
    """Ours: what is loaded is the fleet's to decide, and a lie would be worse than an error."""
    async with serving(ScriptedNode(answers(200, b"{}"))) as (_, url):
        answer = await post(url, "/api/generate", {"model": MODEL, "keep_alive": 0})

    assert answer.status == 400
    assert "unload" in answer.json["error"]


async def test_latest_is_stripped_where_only_the_bare_name_is_known() -> None:
    """Ours: clients add the tag by themselves; a model that has it in its name keeps it."""
    tagged = replica("a", model=ModelId("x:latest"))
    node = ScriptedNode(streams(words(1)))

    async with serving(node, [replica("a"), tagged]) as (_, url):
        first = await post(url, "/api/chat", {**CHAT, "model": f"{MODEL}:latest"})
        await post(url, "/api/chat", {**CHAT, "model": "x:latest"})
        missing = await post(url, "/api/chat", {**CHAT, "model": "nope:latest"})
        shown = await post(url, "/api/show", {"model": f"{MODEL}:latest"})

    assert [json.loads(wire.body)["model"] for wire in node.wires] == [MODEL, "x:latest"]
    assert lines(first)[0]["model"] == f"{MODEL}:latest"
    assert (missing.status, list(missing.json)) == (404, ["error"])
    assert shown.status == 200


async def test_tags_ps_and_show_tell_what_the_fleet_knows() -> None:
    """Ours: keys that clients read are there; what nobody knows is empty, not made up."""
    able = loaded(capabilities=ABLE, limit=Limit(context=8192), vram_used_bytes=3 << 20)
    cold = replica("a", ReplicaStatus.LOADING, model=ModelId("cold"))

    async with serving(
        ScriptedNode(answers(200, b"{}")), [able, cold], aliases={"small": MODEL}
    ) as (_, url):
        tags = await get(url, "/api/tags")
        running = await get(url, "/api/ps")
        shown = (await post(url, "/api/show", {"model": "small"})).json
        unknown = (await post(url, "/api/show", {"model": "cold"})).json
        version = await get(url, "/api/version")

    assert [model["name"] for model in tags["models"]] == ["cold", MODEL, "small"]
    details = {"format", "family", "families", "parameter_size", "quantization_level"}
    for model in tags["models"]:
        assert model["model"] == model["name"]
        assert (model["size"], model["digest"]) == (0, "")
        assert details <= model["details"].keys()
    assert [model["name"] for model in running["models"]] == [MODEL, "small"]
    assert running["models"][0]["size_vram"] == 3 << 20
    assert running["models"][0]["context_length"] == 8192
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == 8192
    assert unknown["capabilities"] == []
    assert "unknown.context_length" not in unknown["model_info"]
    assert version == {"version": ollama.VERSION}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"model": MODEL, "messages": [{"role": "wizard", "content": "a"}]}),
        ("/api/chat", {"messages": []}),
        ("/api/generate", {"model": MODEL, "prompt": "hi", "raw": True}),
        ("/api/chat", {**CHAT, "messages": [{"role": "user", "content": "", "images": ["AAAA"]}]}),
    ],
)
async def test_what_cannot_be_answered_is_an_error_in_words(
    path: str, body: dict[str, object]
) -> None:
    """Ollama's: errors are an object with a sentence; nothing reaches a node."""
    node = ScriptedNode(answers(200, WHOLE))

    async with serving(node, [loaded(capabilities=ABLE)]) as (_, url):
        answer = await post(url, path, body)

    assert answer.status == 400
    assert isinstance(answer.json["error"], str)
    assert node.wires == []


async def test_a_stream_that_breaks_ends_in_an_error_line() -> None:
    """Ollama's: an error within a stream is a line of its own, and nothing is `done`."""

    async def breaks(wire: Wire) -> None:
        await wire.begin_stream()
        for event in words(2)[:3]:
            await wire.event(event)
        await wire.event({"error": {"message": "burnt", "type": "server_error", "code": None}})
        await wire.end_stream()

    async def is_cut(wire: Wire) -> None:
        await wire.begin_stream()
        for event in words(2)[:3]:
            await wire.event(event)
        wire.cut()

    async with serving(ScriptedNode(breaks, is_cut)) as (_, url):
        told = lines(await post(url, "/api/chat", CHAT))
        cut = lines(await post(url, "/api/chat", CHAT))

    assert told[-1] == {"error": "burnt"}
    assert list(cut[-1]) == ["error"]
    assert not any(line.get("done") for line in (*told, *cut))


async def test_a_caller_who_waits_gets_lines_alone() -> None:
    """Ours: the dialect has no comments, so that heartbeats are left out."""
    timeouts = Timeouts(heartbeat_s=0.05)
    go = asyncio.Event()

    async def waits(wire: Wire) -> None:
        await go.wait()
        await streams(words(1))(wire)

    async with (
        serving(ScriptedNode(waits), timeouts=timeouts) as (_, url),
        asyncio.timeout(5),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/chat", json=CHAT) as response,
    ):
        # The head comes with the first heartbeat, while the node says nothing.
        go.set()
        body = await response.read()

    assert [line["done"] for line in map(json.loads, body.splitlines())] == [False, True]


async def test_an_upstream_of_anthropics_dialect_answers_too() -> None:
    """Ours: every dialect reaches every model."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "theirs",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 4, "output_tokens": 2},
    }
    hosted = ScriptedNode(answers(200, json.dumps(message).encode()))
    async with nodes(hosted):
        entry = UpstreamEntry(
            name=NodeName("hosted"),
            dialect="anthropic",
            base_url=hosted.url,
            models={"big": "theirs"},
        )
        async with serving(ScriptedNode(answers(500, b"{}")), upstreams=[entry]) as (_, url):
            body = {**CHAT, "model": "big", "stream": False, "options": {"seed": 1}}
            answer = await post(url, "/api/chat", body)

    assert answer.json["message"]["content"] == "hello"
    assert (answer.json["done_reason"], answer.json["prompt_eval_count"]) == ("length", 4)
    assert answer.headers["x-cortex-ignored"] == "seed"
    assert json.loads(hosted.wires[0].body)["model"] == "theirs"


async def test_the_page_has_every_path_and_no_other() -> None:
    """Ours: the reference lists what is served."""
    documented = [row[0] for row in rows_of("ollama") if row[0].startswith("/api/")]

    async with nodes(node := ScriptedNode(answers(200, WHOLE))), gateway({"a": node.url}) as g:
        served = [route.path for route in ollama.routes(g.proxy, g.store, SystemClock())]

    assert sorted(documented) == sorted(served)
