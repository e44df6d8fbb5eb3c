"""Responses that are kept: gone on from, read, listed, deleted, and forgotten."""

from pathlib import Path
from typing import Any

import pytest

from cortex_gateway.settings import ResponsesSettings
from tests.fakes.gateway import MODEL
from tests.fakes.upstream import answers
from tests.gateway.responses.asking import LOOK, call, calling, completion, pieces

STORE_OFF = ResponsesSettings(store=False)


async def test_a_response_is_read_and_deleted() -> None:
    """Issue: retrieve, delete."""
    async with calling([completion("hello")]) as caller:
        response = await caller.create()
        path = f"/v1/responses/{response['id']}"
        kept = await caller.get(path)
        deleted = await caller.ask("DELETE", path)
        gone = await caller.ask("GET", path)
        again = await caller.ask("DELETE", path)
        status, told = await caller.refused(previous_response_id=response["id"])

    assert kept == response
    assert deleted == (200, {"id": response["id"], "object": "response", "deleted": True})
    assert (gone[0], again[0]) == (404, 404)
    assert (status, told["code"]) == (400, "previous_response_not_found")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_conversation_goes_on_from_a_response(is_stream: bool) -> None:
    """Issue: previous_response_id; calls are paired with outputs across responses."""
    made = call("look", '{"at":1}')
    first = pieces({"tool_calls": [{**made, "index": 0}]}, finish="tool_calls")
    scripts = [first if is_stream else completion("", tool_calls=[made]), completion("a cat")]
    async with calling([*scripts, completion("yes")]) as caller:
        if is_stream:
            begun = (await caller.stream("what is it?", tools=[LOOK]))[-1]["response"]
        else:
            begun = await caller.create("what is it?", tools=[LOOK])
        output = {"type": "function_call_output", "call_id": "call_1", "output": "fur"}
        then = await caller.create([output], previous_response_id=begun["id"], tools=[LOOK])
        await caller.create("sure?", previous_response_id=then["id"], instructions="Purr.")

    assert then["previous_response_id"] == begun["id"]
    heard = caller.heard()["messages"]
    assert [message["role"] for message in heard] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert heard[2]["tool_calls"][0]["id"] == heard[3]["tool_call_id"] == "call_1"
    assert [m["content"] for m in heard[3:]] == ["fur", "a cat", "sure?"]


async def test_calls_that_repeat_their_ids_from_turn_to_turn_are_paired_in_each() -> None:
    """Ours: engines that count from 0 in every answer do so."""
    scripts = [completion("", tool_calls=[call("look")])] * 2
    output = {"type": "function_call_output", "call_id": "call_1", "output": "fur"}
    async with calling([*scripts, completion()]) as caller:
        first = await caller.create(tools=[LOOK])
        second = await caller.create([output], previous_response_id=first["id"], tools=[LOOK])
        await caller.create([output], previous_response_id=second["id"], tools=[LOOK])

    roles = [role for role, _ in caller.said()]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]


async def test_an_error_names_the_place_in_the_callers_own_input() -> None:
    """Ours: nobody can count what was said before."""
    async with calling([completion()]) as caller:
        first = await caller.create("hi")
        _, told = await caller.refused(
            [{"role": "user", "content": "a"}, {"role": "x", "content": ""}],
            previous_response_id=first["id"],
        )

    assert told["param"] == "input.1.role"


async def test_input_items_come_in_pages() -> None:
    """Issue: input items."""
    said = [{"role": "user", "content": f"n{place}"} for place in range(5)]
    async with calling([completion()]) as caller:
        response = await caller.create(said)
        path = f"/v1/responses/{response['id']}/input_items"
        newest = await caller.get(f"{path}?limit=2")
        older = await caller.get(f"{path}?limit=2&after={newest['last_id']}")
        oldest = await caller.get(f"{path}?limit=2&after={older['last_id']}")
        in_order = await caller.get(f"{path}?order=asc")
        refused = [await caller.ask("GET", f"{path}?{query}") for query in ("limit=0", "order=x")]

    pages = [[item["content"] for item in page["data"]] for page in (newest, older, oldest)]
    assert pages == [["n4", "n3"], ["n2", "n1"], ["n0"]]
    assert [page["has_more"] for page in (newest, older, oldest)] == [True, True, False]
    assert [item["content"] for item in in_order["data"]] == [f"n{place}" for place in range(5)]
    assert [status for status, _ in refused] == [400, 400]


async def test_a_reference_stands_for_an_item_that_is_kept() -> None:
    """OpenAI's: `item_reference`."""
    async with calling([completion("hello")]) as caller:
        first = await caller.create("hi")
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await caller.create(
            [{"role": "user", "content": "hi"}, reference, {"role": "user", "content": "on"}]
        )
        status, told = await caller.refused([{"type": "item_reference", "id": "msg_none"}])

    assert [content for _, content in caller.said()] == ["hi", "hello", "on"]
    assert (status, told["param"]) == (400, "input.0")


async def test_nothing_is_kept_of_a_request_that_says_so() -> None:
    """Issue: `store`; what was kept before may be gone on from all the same."""
    async with calling([completion("hello")]) as caller:
        kept = await caller.create("hi")
        loose = await caller.create("on", previous_response_id=kept["id"], store=False)
        gone = await caller.ask("GET", f"/v1/responses/{loose['id']}")

    assert loose["store"] is False
    assert [content for _, content in caller.said()] == ["hi", "hello", "on"]
    assert gone[0] == 404


async def test_nothing_is_kept_where_the_gateway_keeps_nothing() -> None:
    """Issue: off by setting."""
    async with calling([completion()], keeps=STORE_OFF) as caller:
        response = await caller.create()
        statuses = [
            (await caller.ask("GET", f"/v1/responses/{response['id']}"))[0],
            (await caller.refused(previous_response_id=response["id"]))[0],
            (await caller.refused(background=True))[0],
            (await caller.ask("POST", "/v1/conversations", {}))[0],
        ]

    assert response["store"] is False
    assert statuses == [404, 400, 400, 404]


async def test_what_was_refused_is_not_kept_and_can_be_asked_again() -> None:
    """Ours: a refusal makes no response."""
    error = b'{"error":{"message":"no","type":"x","code":400,"param":null}}'
    async with calling([answers(400, error), completion("hello")]) as caller:
        await caller.refused()
        response = await caller.create()

    assert response["output"][0]["content"][0]["text"] == "hello"


async def test_a_conversation_collects_what_is_said() -> None:
    """Issue: `conversation`."""
    async with calling([completion("hello")]) as caller:
        system = {"role": "developer", "content": "Be brief."}
        begun = {"items": [system], "metadata": {"a": "b"}}
        _, conversation = await caller.ask("POST", "/v1/conversations", begun)
        path = f"/v1/conversations/{conversation['id']}"
        await caller.create("hi", conversation=conversation["id"])
        await caller.create("on", conversation={"id": conversation["id"]})
        items = await caller.get(f"{path}/items?order=asc")
        _, changed = await caller.ask("POST", path, {"metadata": {"c": "d"}})
        item = items["data"][0]["id"]
        found = await caller.get(f"{path}/items/{item}")
        await caller.ask("DELETE", f"{path}/items/{item}")
        left = await caller.get(f"{path}/items")
        await caller.ask("DELETE", path)
        gone = (await caller.ask("GET", path))[0]
        unknown = (await caller.refused(conversation=conversation["id"]))[0]

    assert conversation["metadata"] == {"a": "b"}
    assert changed["metadata"] == {"c": "d"}
    assert [content for _, content in caller.said()] == ["Be brief.", "hi", "hello", "on"]
    assert [entry.get("role") for entry in items["data"]] == [
        "developer",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert found["id"] == item
    assert len(left["data"]) == 4
    assert (gone, unknown) == (404, 404)


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"items":1}', b'{"items":[1]}', b'{"items":[{"type":"x"}]}']
)
async def test_a_conversation_that_cannot_be_is_refused(body: bytes) -> None:
    """Issue: bad input gets a clear error."""
    async with calling([completion()]) as caller:
        status, answer = await caller.ask("POST", "/v1/conversations", body)

    assert status == 400
    assert answer["error"]["message"]


async def test_a_file_outlives_the_gateway(tmp_path: Path) -> None:
    """Issue: an embedded SQLite store."""
    keeps = ResponsesSettings(path=str(tmp_path / "responses.db"))
    async with calling([completion("hello")], keeps=keeps) as caller:
        first = await caller.create("hi")
    async with calling([completion("yes")], keeps=keeps) as caller:
        await caller.create("on", previous_response_id=first["id"])

    assert [content for _, content in caller.said()] == ["hi", "hello", "on"]


async def test_a_chat_caller_is_none_the_wiser() -> None:
    """Ours: the store is of this dialect alone."""
    async with calling([completion()]) as caller:
        body: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "store": True}
        status, _ = await caller.ask("POST", "/v1/chat/completions", body)

    assert status == 200
