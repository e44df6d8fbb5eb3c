"""What a chat caller may say that engines do not take."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidJsonError, InvalidRequestError
from cortex_core.translate.capability import Asks
from cortex_core.translate.chat_normal import normalise

USER = {"role": "user", "content": "hi"}


def body(**fields: Any) -> bytes:
    return encode_json({"model": "m", "messages": [USER], **fields})


def normal(**fields: Any) -> Any:
    return msgspec.json.decode(normalise(body(**fields)).body)


def refused(**fields: Any) -> str | None:
    with pytest.raises(InvalidRequestError) as caught:
        normalise(body(**fields))
    return caught.value.param


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
        {"tools": [], "functions": None, "function_call": None, "audio": None},
        {"max_tokens": 5, "store": True, "modalities": ["text"], "anything": {"else": [1]}},
        {"max_tokens": None, "max_completion_tokens": 5},
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ],
)
def test_what_engines_take_stays_byte_for_byte(fields: dict[str, Any]) -> None:
    """Ours: no prompt is ever changed beyond what the dialect demands."""
    written = b" " + body(**fields).replace(b",", b" ,\n") + b"\n"

    assert normalise(written).body is written


def test_functions_become_tools() -> None:
    """OpenAI's: `functions` and `function_call` are the older names."""
    function = {"name": "f", "parameters": {"type": "object"}, "extra": 1.50}

    after = normalise(body(functions=[function], function_call={"name": "f"}, seed=7))

    assert after.legacy_functions
    assert after.asks == Asks(tools=True)
    assert msgspec.json.decode(after.body) == {
        "model": "m",
        "messages": [USER],
        "seed": 7,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    }
    assert normal(functions=[function], function_call="none")["tool_choice"] == "none"


def test_functions_that_are_none_at_all_offer_no_tools() -> None:
    """Ours: engines refuse an empty list of tools."""
    after = normalise(body(functions=[], function_call="auto"))

    assert msgspec.json.decode(after.body) == {"model": "m", "messages": [USER]}
    assert "function_call" not in normal(function_call="auto")
    assert not normalise(body(function_call="auto")).legacy_functions


def test_calls_of_functions_in_history_become_calls_of_tools_with_the_same_ids_each_time() -> None:
    """Ours: the same history is the same prompt, which prefix caches depend on."""
    history = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "2"},
    ]

    messages = normal(messages=history)["messages"]

    def call(name: str, arguments: str) -> dict[str, Any]:
        function = {"name": "f", "arguments": arguments}
        calls = [{"id": name, "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    assert messages == [
        USER,
        call("call_1", "{}"),
        {"role": "tool", "name": "f", "content": "1", "tool_call_id": "call_1"},
        call("call_3", '{"a": 1}'),
        {"role": "tool", "name": "f", "content": "2", "tool_call_id": "call_3"},
    ]
    assert normal(messages=history)["messages"] == messages


def test_a_result_of_a_function_that_nobody_called_is_refused() -> None:
    """Ours: there is no id to pair it by."""
    assert refused(messages=[USER, {"role": "function", "name": "f"}]) == "messages.1.name"
    assert refused(messages=[{"role": "function"}]) == "messages.0.name"


def test_developer_messages_are_system_messages() -> None:
    """OpenAI's: the role replaces `system`; most templates know that alone."""
    developer = {"role": "developer", "content": [{"type": "text", "text": "be", "x": 1}]}

    messages = normal(messages=[developer, USER])["messages"]

    assert messages == [{**developer, "role": "system"}, USER]


def test_allowed_tools_are_what_is_left_of_the_tools() -> None:
    """OpenAI's API reference, "tool_choice"."""
    tools = [{"type": "function", "function": {"name": name, "strict": True}} for name in "abc"]
    names = [{"type": "function", "function": {"name": name}} for name in "ca"]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": names}}

    after = normal(tools=tools, tool_choice=choice)

    assert after["tools"] == [tools[0], tools[2]]
    assert after["tool_choice"] == "required"
    assert refused(tools=tools[:1], tool_choice=choice) == "tool_choice.allowed_tools"
    assert refused(tool_choice={"type": "allowed_tools"}) == "tool_choice.allowed_tools"


def test_the_newer_limit_wins_over_the_older_one() -> None:
    """OpenAI's: `max_tokens` is deprecated in favour of `max_completion_tokens`."""
    after = normal(max_tokens=1, max_completion_tokens=2)

    assert after["max_completion_tokens"] == 2
    assert "max_tokens" not in after


def test_options_of_a_stream_that_is_none_are_dropped() -> None:
    """Ours: engines refuse them, and they mean nothing."""
    assert "stream_options" not in normal(stream_options={"include_usage": True})
    assert "stream_options" not in normal(stream_options={"include_usage": True}, stream=False)


def test_what_no_engine_does_is_refused_with_its_field() -> None:
    """Ours: said before the stream opens."""
    custom = {"type": "custom", "custom": {"name": "c"}}
    function = {"type": "function", "function": {"name": "f"}}

    assert refused(modalities=["text", "audio"]) == "modalities"
    assert refused(audio={"voice": "alloy", "format": "wav"}) == "audio"
    assert refused(tools=[function, custom]) == "tools.1"
    assert refused(tools=[function], functions=[{"name": "f"}]) == "functions"
    assert refused(functions={"name": "f"}) == "functions"
    assert refused(functions=[{"name": "f"}], function_call={}) == "function_call"


@pytest.mark.parametrize(
    ("fields", "asks"),
    [
        ({}, Asks()),
        ({"tools": [{"type": "function"}]}, Asks(tools=True)),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, Asks()),
        ({"thinking_token_budget": 10}, Asks(reasoning=True)),
        ({"thinking_token_budget": 0}, Asks()),
        ({"reasoning_effort": "high"}, Asks()),
    ],
)
def test_what_a_request_needs_is_read_off_its_fields(fields: dict[str, Any], asks: Asks) -> None:
    """Ours: what is only wished for is not a need."""
    assert normalise(body(**fields)).asks == asks


def test_media_are_seen_in_parts_and_nowhere_else() -> None:
    """Ours: a text about an image is no image."""
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    talk = {"type": "text", "text": '{"type": "image_url"}', "image_url": "x", "input_audio": "x"}

    def asks(content: Any) -> Asks:
        return normalise(body(messages=[{"role": "user", "content": content}, USER])).asks

    assert asks([talk, image]) == Asks(vision=True)
    assert asks([sound]) == Asks(audio=True)
    assert asks([talk]) == Asks()
    assert asks('[{"type": "image_url"}]') == Asks()
    assert asks(None) == Asks()


@pytest.mark.parametrize("content", [["hi"], [{"type": 1}], [{"type": "text"}, None], [[]]])
def test_parts_that_are_none_are_refused_where_they_may_be_media(content: list[Any]) -> None:
    """Ours: whatever else is wrong is the engine's to refuse."""
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}

    assert normalise(body(messages=[{"role": "user", "content": content}])).asks == Asks()
    param = refused(messages=[USER, {"role": "user", "content": [image, *content]}])
    assert param == "messages.1.content"


def test_a_body_that_is_no_request_is_refused_as_such() -> None:
    """Ours: a fuzzed body never gives a 500."""
    assert refused(model=1) == "model"
    assert refused(messages={}) == "messages"
    with pytest.raises(InvalidJsonError):
        normalise(b'{"model": "m"')
    with pytest.raises(InvalidJsonError):
        normalise(b'{"a":' * 100_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
members = st.dictionaries(
    st.sampled_from(
        (
            "functions",
            "function_call",
            "tools",
            "tool_choice",
            "max_tokens",
            "max_completion_tokens",
            "stream",
            "stream_options",
            "modalities",
            "audio",
            "messages",
            "other",
        )
    ),
    json_values
    | st.sampled_from([[{"role": "function", "name": "f"}], [{"role": "developer"}], {"name": "f"}])
    | st.sampled_from([{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}]),
)


@given(members)
def test_any_request_comes_out_as_a_request_or_is_refused(fields: dict[str, Any]) -> None:
    """Ours: what comes out has nothing left to change, and no other member was touched."""
    try:
        after = normalise(body(**fields))
    except InvalidRequestError:
        return

    again = normalise(after.body)
    assert msgspec.json.decode(again.body) == msgspec.json.decode(after.body)
    assert again.asks == after.asks
    if "other" in fields:
        assert msgspec.json.decode(after.body)["other"] == fields["other"]
