"""What translating costs: `python -m benchmarks.translate`, about ten seconds.

Each cost is also given as a ratio to what msgspec alone needs to decode the same bytes and to
encode them again, measured in turns with it, so that it can be compared between machines.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from cortex_core.codec import encode_json
from cortex_core.sse import SseDecoder
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.chat_request import chat_to_messages
from cortex_core.translate.chat_writer import ChatWriter
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.messages_writer import MessagesWriter
from cortex_core.translate.parts import Translator
from cortex_core.translate.responses_request import responses_to_chat
from cortex_core.translate.responses_writer import ResponsesWriter, begun_response
from cortex_core.translate.target import Target
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER
from cortex_core.wire.responses.items import decode_items
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER

CHUNKS = 2000
TURNS = 9
"""The best of them counts: whatever else runs makes a turn slower, never faster."""
REQUEST_BYTES = 100_000

TARGET = Target(model="org/model")


def main() -> None:
    """Print a line for each direction."""
    chat = [*chat_chunks(), b"data: [DONE]\n\n"]
    messages = split_events(run(to_messages(), chat))
    for name, make, events in (
        ("chat -> messages", to_messages, chat),
        ("chat -> responses", to_responses, chat),
        ("messages -> chat", to_chat, messages),
    ):
        cost_s, base_s = in_turns(lambda: run(make(), events), base_of(events))  # noqa: B023 - called here
        print(
            f"{name:24} {cost_s / len(events) * 1e6:6.2f} us/chunk,"
            f" {cost_s / base_s:.2f} times msgspec alone ({base_s / len(events) * 1e6:.2f})"
        )
    for name, body, translate in requests():
        cost_s, base_s = in_turns(
            lambda: translate(body),  # noqa: B023 - called here
            lambda: encode_json(msgspec.json.decode(body)),  # noqa: B023 - called here
        )
        print(
            f"{name:24} {cost_s * 1e3:6.2f} ms/request of {len(body) / 1000:.0f} kB,"
            f" {cost_s / base_s:.2f} times msgspec alone ({base_s * 1e3:.2f})"
        )


def in_turns(cost: Callable[[], object], base: Callable[[], object]) -> tuple[float, float]:
    """Return the best time of each, in seconds."""
    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for position, work in enumerate((cost, base)):
            begin = time.perf_counter()
            work()
            best[position] = min(best[position], time.perf_counter() - begin)
    return best[0], best[1]


def run(translator: Translator, events: list[bytes]) -> bytes:
    """Translate a stream event by event, as it comes from a network."""
    out = b"".join([translator.feed(event) for event in events]) + translator.end()
    if translator.failure is not None:
        raise translator.failure
    return out


def base_of(events: list[bytes]) -> Callable[[], object]:
    """Return what decodes and encodes the JSON of `events`, and does nothing else."""
    data = [event.data for event in SseDecoder().feed(b"".join(events)) if event.data[0] == "{"]

    def again() -> None:
        for each in data:
            encode_json(msgspec.json.decode(each))

    return again


def to_messages() -> Translator:
    return Translator(ChatReader(), MessagesWriter(model="m", message_id="msg_1"))


def to_responses() -> Translator:
    request = RESPONSES_REQUEST_DECODER.decode(b'{"model":"m","input":"hi"}')
    response = begun_response(request, response_id="resp_1", created_at=1.0, is_stored=False)
    return Translator(ChatReader(), ResponsesWriter(request, response, lambda: 1.0))


def to_chat() -> Translator:
    writer = ChatWriter(model="m", answer_id="chatcmpl-1", created=1, include_usage=True)
    return Translator(MessagesReader(), writer)


def chat_chunks() -> list[bytes]:
    """Return a stream as vLLM sends it: thoughts, text, two calls, usage in every chunk."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning": " thought"}] * (CHUNKS // 4)
    deltas += [{"content": " word"}] * (CHUNKS // 2)
    for index in range(2):
        head = {"index": index, "id": f"call_{index}", "type": "function"}
        deltas.append({"tool_calls": [{**head, "function": {"name": "f", "arguments": ""}}]})
        pieces = ['{"text": "', *([" word"] * (CHUNKS // 8)), '"}']
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces
        ]
    return [chunk(delta, position) for position, delta in enumerate(deltas)]


def chunk(delta: dict[str, Any], position: int) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    fields = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_795_000_000,
        "model": "org/model",
        "choices": [choice],
        "usage": {"prompt_tokens": 25, "completion_tokens": position, "total_tokens": 25},
    }
    return b"data: " + encode_json(fields) + b"\n\n"


def split_events(data: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in data.split(b"\n\n") if event]


def requests() -> list[tuple[str, bytes, Callable[[bytes], bytes]]]:
    """Return requests as agents send them, each with what translates it."""

    def from_messages(body: bytes) -> bytes:
        return encode_json(messages_to_chat(MESSAGES_REQUEST_DECODER.decode(body), TARGET).chat)

    def from_responses(body: bytes) -> bytes:
        request = RESPONSES_REQUEST_DECODER.decode(body)
        items = decode_items(() if isinstance(request.input, str) else request.input or ())
        return encode_json(responses_to_chat(request, items, TARGET).chat)

    def from_chat(body: bytes) -> bytes:
        return encode_json(chat_to_messages(CHAT_REQUEST_DECODER.decode(body), TARGET).request)

    messages = encode_json(messages_request())
    return [
        ("messages request", messages, from_messages),
        ("responses request", encode_json(responses_request()), from_responses),
        ("chat request", from_messages(messages), from_chat),
    ]


TEXT = "word " * 100
SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string", "description": TEXT}, "line": {"type": "integer"}},
    "required": ["path"],
}


def messages_request() -> dict[str, Any]:
    """Return a request of about `REQUEST_BYTES`: a system, tools, and turns with calls."""
    tools = [
        {"name": f"tool_{number}", "description": TEXT * 4, "input_schema": SCHEMA}
        for number in range(12)
    ]
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    fields = {
        "model": "m",
        "max_tokens": 32_000,
        "stream": True,
        "system": [{"type": "text", "text": TEXT * 10}] * 3,
        "tools": tools,
        "messages": turns,
    }
    while len(encode_json(fields)) < REQUEST_BYTES:
        call = {"type": "tool_use", "id": f"call_{len(turns)}", "name": "tool_1"}
        said = {"type": "text", "text": TEXT}
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": TEXT}
        turns.append({"role": "assistant", "content": [said, {**call, "input": {"path": TEXT}}]})
        turns.append({"role": "user", "content": [result]})
    return fields


def responses_request() -> dict[str, Any]:
    """Return the same size in the other dialect."""
    tools = [
        {
            "type": "function",
            "name": f"tool_{number}",
            "description": TEXT * 4,
            "parameters": SCHEMA,
        }
        for number in range(12)
    ]
    items: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]
    fields = {"model": "m", "instructions": TEXT * 30, "tools": tools, "input": items}
    while len(encode_json(fields)) < REQUEST_BYTES:
        pair = {"call_id": f"call_{len(items)}"}
        content = [{"type": "output_text", "text": TEXT}]
        items += (
            {"type": "message", "role": "assistant", "content": content},
            {"type": "function_call", "name": "tool_1", "arguments": "{}", **pair},
            {"type": "function_call_output", "output": TEXT, **pair},
        )
    return fields


if __name__ == "__main__":
    main()
