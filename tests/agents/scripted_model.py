"""A model behind a scripted node that does what an agent's user asked for: it writes a file.

It sees what any engine would see, a chat completion request, and answers as engines do: thoughts,
a sentence, a call in pieces, usage at the end.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.fakes.upstream import DONE, Wire

CONTENT = "hello from cortex"
"""What the file has when the session is over."""

SAID = "The file is there."
"""The last answer of every session."""

THOUGHT = "The user wants a file. I have a tool for that."

Json = dict[str, Any]

TASK = re.compile(r"Write a file (\S+) that says hello\.")


def task(path: str) -> str:
    """Return the prompt that makes the model write `path`."""
    return f"Write a file {path} that says hello."


WRITERS: Mapping[str, Callable[[str], Json]] = {
    "Write": lambda path: {"file_path": path, "content": CONTENT},
    "write": lambda path: {"filePath": path, "content": CONTENT},
    "write_file": lambda path: {"path": path, "content": CONTENT},
    "exec_command": lambda path: {"cmd": f"printf %s '{CONTENT}' > {path}"},
    "shell_command": lambda path: {"command": f"printf %s '{CONTENT}' > {path}"},
}
"""Tools that write, by the names that agents give them, and their arguments."""


async def play(wire: Wire) -> None:
    """Answer one request, as JSON or as a stream."""
    request = json.loads(wire.body)
    if wire.path.endswith("/count_tokens"):
        await wire.answer(200, json.dumps({"count": 7}).encode())
        return
    message = answer_to(request)
    if not request.get("stream"):
        await wire.answer(200, json.dumps(whole(message)).encode())
        return
    await wire.begin_stream()
    for chunk in pieces(message):
        await wire.event(chunk)
    await wire.chunk(DONE)
    await wire.end_stream()


def answer_to(request: Json) -> Json:
    """Return the assistant's message that a request asks for."""
    path = _wanted(request["messages"])
    if path is None:
        return {"content": "A short title"}
    offered = [tool["function"]["name"] for tool in request.get("tools") or ()]
    writer = next((name for name in WRITERS if name in offered), None)
    if request["messages"][-1]["role"] == "tool":
        return {"reasoning": "Done.", "content": SAID}
    if writer is None:
        # For agents that read files out of the text.
        return {"content": f"{path}\n```\n{CONTENT}\n```\n"}
    arguments = json.dumps(WRITERS[writer](path))
    call = {"name": writer, "arguments": arguments}
    calls = [{"id": "call_1", "type": "function", "function": call}]
    return {"reasoning": THOUGHT, "content": "I write it.", "tool_calls": calls}


def whole(message: Json) -> Json:
    """Return the chat completion with this message."""
    finish = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {**_base("chat.completion"), "choices": [choice], "usage": _USAGE}


def pieces(message: Json) -> Iterator[Json]:
    """Yield the chunks of the chat completion with this message."""
    base = _base("chat.completion.chunk")

    def chunk(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**base, "choices": [choice], "usage": _USAGE}

    yield chunk({"role": "assistant", "content": ""})
    for field in ("reasoning", "content"):
        for piece in re.findall(r"(?s).{1,7}", message.get(field, "")):
            yield chunk({field: piece})
    for index, call in enumerate(message.get("tool_calls", ())):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield chunk({"tool_calls": [{**call, "index": index, "function": function}]})
        for piece in re.findall(r"(?s).{1,7}", call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, "tool_calls" if "tool_calls" in message else "stop")
    yield {**base, "choices": [], "usage": _USAGE}


_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _base(kind: str) -> Json:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "m"}


def _wanted(messages: list[Json]) -> str | None:
    """Return the file that the user asked for; `None` in requests that are about something else."""
    for message in messages:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        for text in texts:
            found = TASK.search(text) if message["role"] == "user" else None
            if found:
                return found[1]
    return None
