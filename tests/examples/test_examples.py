"""The examples are run as their first lines say."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import pytest

from tests.fakes.upstream import Script, ScriptedNode, Wire, answers, streams, words
from tests.repository.checkout import ROOT

EXAMPLES = ROOT / "examples"

LIMIT_S = 20


def printed(name: str) -> str:
    """Run an example and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed() -> None:
    """Ours: and nothing else is."""
    listed = set(re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE))

    assert listed == {path.name for path in EXAMPLES.glob("*.py")}


def test_a_request_and_its_answer() -> None:
    """Issue: public API with examples that are run."""
    lines = dict(line.split(": ", 1) for line in printed("translate_request.py").splitlines())
    asked = json.loads(lines["to the engine"])
    message = json.loads(lines["to the caller"])

    assert asked["tools"][0]["function"]["name"] == "get_weather"
    assert message["stop_reason"] == "tool_use"
    assert message["content"][-1]["input"] == {"city": "Paris"}


def test_a_stream_in_two_dialects() -> None:
    """Issue: as above."""
    shown = printed("translate_stream.py")
    kinds = re.findall(r"^event: (\S+)$", shown, re.MULTILINE)

    assert kinds[0] == "message_start"
    assert kinds.count("message_stop") == 1
    assert kinds[-1] == "response.completed"
    assert '"Good "' in shown


def test_a_request_for_an_upstream_of_another_dialect() -> None:
    """Issue: as above."""
    lines = dict(line.split(": ", 1) for line in printed("ask_anthropic_upstream.py").splitlines())

    assert json.loads(lines["to the upstream"])["max_tokens"] == 8192
    assert lines["left out"].strip() == "seed"
    assert json.loads(lines["to the caller"])["choices"][0]["message"]["content"] == "Hello!"


@contextlib.asynccontextmanager
async def routing(script: Script) -> AsyncIterator[tuple[ScriptedNode, anthropic.AsyncAnthropic]]:
    """Run the router in front of a scripted upstream, and yield a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    async with ScriptedNode(script) as upstream:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / "router.py"),
            f"{upstream.url}/v1",
            address,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                while b"Running on" not in await process.stderr.readline():
                    pass
            url = f"http://{address}"
            async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
                yield upstream, client
        finally:
            process.terminate()
            await process.wait()


HELLO: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hi"}]


async def test_the_router_streams_to_anthropics_sdk() -> None:
    """Issue: custom routers use the same functions."""
    async with (
        routing(streams(words(3))) as (upstream, client),
        client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream,
    ):
        message = await stream.get_final_message()

    assert message.content[0].type == "text"
    assert message.content[0].text == "w0 w1 w2 "
    assert upstream.wires[0].path == "/v1/chat/completions"


async def test_the_router_tells_what_the_upstream_refuses() -> None:
    """Ours: in the caller's dialect."""
    error = b'{"error":{"message":"too long","type":"invalid_request_error","code":null}}'
    async with routing(answers(400, error)) as (_, client):
        with pytest.raises(anthropic.BadRequestError, match="too long"):
            await client.messages.create(model="m", max_tokens=9, messages=HELLO)


async def test_a_caller_of_the_router_that_leaves_ends_the_work() -> None:
    """Issue: cancellation reaches the GPU."""

    async def script(wire: Wire) -> None:
        await wire.begin_stream()
        await wire.event(words(1)[0])
        await wire.event(words(1)[1])
        await wire.closed.wait()

    async with routing(script) as (upstream, client):
        async with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
            async for event in stream:
                if event.type == "content_block_delta":
                    break
        async with asyncio.timeout(LIMIT_S):
            await upstream.wires[0].closed.wait()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_caller_that_leaves_before_the_answer_begins_ends_the_work(is_stream: bool) -> None:
    """Issue: as above."""

    async def hangs(wire: Wire) -> None:
        await wire.closed.wait()

    async with routing(hangs) as (upstream, client):
        body = json.dumps({"model": "m", "max_tokens": 9, "messages": HELLO, "stream": is_stream})
        host, port = client.base_url.host, client.base_url.port
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        async with asyncio.timeout(LIMIT_S):
            wire = await upstream.request()
            writer.close()
            await wire.closed.wait()


def test_the_router_is_as_small_as_is_said() -> None:
    """Ours: what the page says."""
    assert len(Path(EXAMPLES / "router.py").read_text().splitlines()) < 135
