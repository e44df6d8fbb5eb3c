"""What both dialects can say survives the way into the other one and back."""

import string
from typing import Any

import msgspec
from hypothesis import given, strategies as st

from cortex_core.codec import encode_json
from cortex_core.translate.chat_request import chat_to_messages
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.target import Target
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER

TARGET = Target(model="m")

words = st.text(max_size=20).filter(lambda text: text.strip() == text and text != "")
names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(), json_values, max_size=3)
images = st.sampled_from(
    [
        ("image/png", "iVBORw0KGgo="),
        ("image/webp", "UklGRg=="),
        ("", "https://example.org/a.png"),
    ]
)
turns = st.tuples(
    st.lists(words | images, min_size=1, max_size=3),
    st.none() | words,
    st.lists(st.tuples(names, objects, st.none() | words), max_size=3),
)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a conversation that neither dialect has words of its own for."""
    tools = draw(st.lists(names, unique=True, max_size=3))
    choices = ["auto", "none", "required", *tools] if tools else []
    return {
        "system": draw(st.none() | words),
        "turns": draw(st.lists(turns, max_size=4)),
        "last": draw(st.lists(words | images, min_size=1, max_size=3)),
        "tools": [(name, draw(st.none() | words), draw(objects)) for name in tools],
        "choice": draw(st.none() | st.sampled_from(choices)) if choices else None,
        "single": draw(st.booleans()) if tools else False,
        "stop": draw(st.lists(words, max_size=2)),
        "schema": draw(st.none() | objects),
        "max_tokens": draw(st.integers(1, 100_000)),
        "temperature": draw(st.none() | st.floats(0, 1)),
        "top_p": draw(st.none() | st.floats(0, 1)),
        "top_k": draw(st.none() | st.integers(1, 100)),
        "stream": draw(st.booleans()),
        "user": draw(st.none() | words),
    }


def without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, [])}


def as_chat(drawn: dict[str, Any]) -> dict[str, Any]:
    """Write a conversation as chat has it."""
    is_stream = drawn["stream"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    is_named = drawn["choice"] not in (None, "auto", "none", "required")
    named = {"type": "function", "function": {"name": drawn["choice"]}}
    form = {"name": "output", "strict": True, "schema": drawn["schema"]}
    has_form = drawn["schema"] is not None
    return without_none(
        {
            "model": "m",
            "messages": chat_messages(drawn),
            "max_completion_tokens": drawn["max_tokens"],
            "stream": is_stream or None,
            "stream_options": options if is_stream else None,
            "temperature": drawn["temperature"],
            "top_p": drawn["top_p"],
            "top_k": drawn["top_k"],
            "stop": drawn["stop"],
            "tools": [chat_tool(*tool) for tool in drawn["tools"]],
            "tool_choice": named if is_named else drawn["choice"],
            "parallel_tool_calls": False if has_single_calls(drawn) else None,
            "response_format": {"type": "json_schema", "json_schema": form} if has_form else None,
            "user": drawn["user"],
        }
    )


def chat_messages(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if drawn["system"]:
        messages.append({"role": "system", "content": drawn["system"]})
    for turn, (parts, text, calls) in enumerate(drawn["turns"]):
        messages.append({"role": "user", "content": chat_content(parts)})
        said = {"role": "assistant", "content": text if calls else text or "ok"}
        if calls:
            said["tool_calls"] = [
                {
                    "id": f"call_{turn}_{place}",
                    "type": "function",
                    "function": {"name": name, "arguments": encode_json(given).decode()},
                }
                for place, (name, given, _) in enumerate(calls)
            ]
        messages.append(said)
        messages += [
            {"role": "tool", "tool_call_id": f"call_{turn}_{place}", "content": result or ""}
            for place, (_, _, result) in enumerate(calls)
        ]
    return [*messages, {"role": "user", "content": chat_content(drawn["last"])}]


def chat_tool(name: str, description: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", **schema}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": without_none(function)}


def chat_content(parts: list[Any]) -> Any:
    if all(isinstance(part, str) for part in parts):
        return "\n\n".join(parts)
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": f"data:{part[0]};base64,{part[1]}" if part[0] else part[1]},
        }
        for part in parts
    ]


def as_messages(drawn: dict[str, Any]) -> dict[str, Any]:
    """Write the same as messages."""
    form = {"format": {"type": "json_schema", "schema": drawn["schema"]}}
    return without_none(
        {
            "model": "m",
            "messages": [plain(message) for message in messages_of(drawn)],
            "max_tokens": drawn["max_tokens"],
            "system": drawn["system"],
            "stream": drawn["stream"] or None,
            "stop_sequences": drawn["stop"],
            "temperature": drawn["temperature"],
            "top_p": drawn["top_p"],
            "top_k": drawn["top_k"],
            "tools": [tool(*tool_drawn) for tool_drawn in drawn["tools"]],
            "tool_choice": choice_of(drawn),
            "output_config": None if drawn["schema"] is None else form,
            "metadata": {"user_id": drawn["user"]} if drawn["user"] else None,
        }
    )


def messages_of(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for turn, (parts, text, calls) in enumerate(drawn["turns"]):
        messages.append({"role": "user", "content": [*results, *blocks(parts)]})
        said = text if calls else text or "ok"
        uses = [
            {"type": "tool_use", "id": f"call_{turn}_{place}", "name": name, "input": given}
            for place, (name, given, _) in enumerate(calls)
        ]
        texts = [{"type": "text", "text": said}] if said else []
        messages.append({"role": "assistant", "content": [*texts, *uses]})
        results = [
            without_none(
                {
                    "type": "tool_result",
                    "tool_use_id": f"call_{turn}_{place}",
                    "content": result or None,
                }
            )
            for place, (_, _, result) in enumerate(calls)
        ]
    return [*messages, {"role": "user", "content": [*results, *blocks(drawn["last"])]}]


def tool(name: str, description: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    input_schema = {"type": "object", **schema}
    return without_none({"name": name, "description": description, "input_schema": input_schema})


def choice_of(drawn: dict[str, Any]) -> dict[str, Any] | None:
    kinds = {"auto": "auto", "none": "none", "required": "any"}
    choice = drawn["choice"]
    is_single = has_single_calls(drawn)
    if choice is None and not is_single:
        return None
    return without_none(
        {
            "type": kinds.get(choice or "auto", "tool"),
            "name": None if choice in kinds else choice,
            "disable_parallel_tool_use": True if is_single else None,
        }
    )


def has_single_calls(drawn: dict[str, Any]) -> bool:
    # Neither dialect says it of a model that may call nothing.
    return bool(drawn["single"]) and drawn["choice"] != "none"


def blocks(parts: list[Any]) -> list[dict[str, Any]]:
    if all(isinstance(part, str) for part in parts):
        return [{"type": "text", "text": "\n\n".join(parts)}]
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "source": source(*part)}
        for part in parts
    ]


def source(media_type: str, data: str) -> dict[str, str]:
    if not media_type:
        return {"type": "url", "url": data}
    return {"type": "base64", "media_type": media_type, "data": data}


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Write a lone text as a string, which is the same thing."""
    content = message["content"]
    if len(content) == 1 and content[0]["type"] == "text":
        return {**message, "content": content[0]["text"]}
    return message


def json_of(struct: msgspec.Struct) -> Any:
    return msgspec.json.decode(encode_json(struct))


def comparable_chat(chat: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of calls as JSON; their text may be laid out in another way."""
    for message in chat["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = msgspec.json.decode(call["function"]["arguments"])
    return chat


@given(conversations())
def test_chat_becomes_the_messages_that_say_the_same(drawn: dict[str, Any]) -> None:
    """Ours: ids, names, texts, arguments and order are those of the caller."""
    chat = CHAT_REQUEST_DECODER.decode(encode_json(as_chat(drawn)))

    translated = chat_to_messages(chat, TARGET)

    assert json_of(translated.request) == as_messages(drawn)
    assert translated.ignored == ()


@given(conversations())
def test_chat_survives_the_way_through_messages(drawn: dict[str, Any]) -> None:
    """Ours: a fleet may speak another dialect than its callers, and loses nothing by it."""
    chat = CHAT_REQUEST_DECODER.decode(encode_json(as_chat(drawn)))

    there = encode_json(chat_to_messages(chat, TARGET).request)
    back = messages_to_chat(MESSAGES_REQUEST_DECODER.decode(there), TARGET)

    assert comparable_chat(json_of(back.chat)) == comparable_chat(with_auto(as_chat(drawn)))
    assert back.ignored == ()


@given(conversations())
def test_messages_survive_the_way_through_chat(drawn: dict[str, Any]) -> None:
    """Ours: as above."""
    request = MESSAGES_REQUEST_DECODER.decode(encode_json(as_messages(drawn)))

    there = encode_json(messages_to_chat(request, TARGET).chat)
    back = chat_to_messages(CHAT_REQUEST_DECODER.decode(there), TARGET)

    assert json_of(back.request) == as_messages(drawn)
    assert back.ignored == ()


def with_auto(chat: dict[str, Any]) -> dict[str, Any]:
    """Name the choice that is meant when none is named; messages need one beside single calls."""
    if "parallel_tool_calls" in chat and "tool_choice" not in chat:
        return {**chat, "tool_choice": "auto"}
    return chat
