"""Requests of Ollama's API as chat completion requests."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, strategies as st

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.translate.ollama_request import ollama_to_chat
from cortex_core.translate.target import Target, ToChat
from cortex_core.wire.ollama import OllamaRequest
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER
from tests.docs.tables import rows_of

DECODER = msgspec.json.Decoder(OllamaRequest)

PNG = "iVBORw0KGgoAAAANSUhEUg=="
JPEG = "/9j/4AAQSkZJRgABAQ=="


def translated(fields: dict[str, Any]) -> ToChat:
    """Return what a request comes to, for an upstream that calls the model `theirs`."""
    request = msgspec.convert({"model": "ours", **fields}, OllamaRequest)
    return ollama_to_chat(request, Target(model="theirs"))


def chat(fields: dict[str, Any]) -> Any:
    """Return the chat completion request as JSON has it."""
    return msgspec.json.decode(encode_json(translated(fields).chat))


def said(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def user(content: str = "hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(*names: str, **more: Any) -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": {"a": 1}}, **more} for name in names]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def test_a_request_without_stream_is_a_stream_with_usage() -> None:
    """Ollama's: `stream` is on unless it is switched off."""
    assert chat(said(user())) == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": None},
    }
    assert "stream" not in chat({**said(user()), "stream": False})


def test_options_of_sampling_go_on_and_the_others_are_named() -> None:
    """Ours: what means nothing to an engine is left out, and the caller is told."""
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "num_predict": 7,
        "stop": ["x"],
        "seed": 3,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "num_ctx": 4096,
        "mirostat": None,
    }

    asked = translated({**said(user()), "options": options, "logprobs": True})

    body = msgspec.json.decode(encode_json(asked.chat))
    assert body["max_completion_tokens"] == 7
    assert body["repetition_penalty"] == 1.1
    same = options.keys() - {"num_predict", "repeat_penalty", "num_ctx", "mirostat"}
    assert {name: body[name] for name in same} == {name: options[name] for name in same}
    assert asked.ignored == ("options.num_ctx", "logprobs")


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_no_limit_and_any_seed_are_left_out(limit: int) -> None:
    """Ollama's: a `num_predict` of no tokens is no limit, a negative seed is none."""
    body = chat({**said(user()), "options": {"num_predict": limit, "seed": -1}})

    assert "max_completion_tokens" not in body
    assert "seed" not in body


@pytest.mark.parametrize(
    ("think", "effort"), [(None, None), (True, "medium"), (False, "none"), ("high", "high")]
)
def test_thinking_is_asked_for_as_effort(think: object, effort: object) -> None:
    """Ours: `think` without a level is the middle one; without `think` the model decides."""
    assert chat({**said(user()), "think": think}).get("reasoning_effort") == effort


def test_format_is_json_or_a_schema() -> None:
    """Ollama's two forms of structured output."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}

    assert chat({**said(user()), "format": "json"})["response_format"] == {"type": "json_object"}
    form = chat({**said(user()), "format": schema})["response_format"]["json_schema"]
    assert form == {"name": "answer", "schema": schema, "strict": True}
    assert "response_format" not in chat({**said(user()), "format": ""})


def test_images_get_the_media_type_that_their_bytes_tell() -> None:
    """Ours: engines want a `data:` URL, Ollama's callers send bare base64."""
    message = {"role": "user", "content": "look", "images": [PNG, JPEG]}

    assert chat(said(message))["messages"][0]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + JPEG}},
    ]


def test_systems_become_one_at_the_front() -> None:
    """Ollama's: its templates gather the systems of a conversation, a blank line between."""
    body = chat(
        said({"role": "system", "content": "a"}, user(), {"role": "system", "content": "b"})
    )

    assert body["messages"] == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "hi"},
    ]


def test_results_are_paired_by_id_by_name_and_by_order() -> None:
    """Ours: engines want ids, which Ollama's older callers do not send."""
    by_name = [{"role": "tool", "content": name, "tool_name": name} for name in ("g", "f")]
    by_order = [{"role": "tool", "content": name} for name in ("f", "g")]
    by_id = {"role": "tool", "content": "h", "tool_call_id": "mine"}

    messages = chat(
        said(
            user(),
            called("f", "g"),
            *by_name,
            called("f", "g"),
            *by_order,
            called("h", id="mine"),
            by_id,
        )
    )["messages"]

    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    assert ids == ["call_0", "call_1", "call_2", "call_3", "mine"]
    results = [(m["content"], m["tool_call_id"]) for m in messages if m["role"] == "tool"]
    assert results == [
        ("g", "call_1"),
        ("f", "call_0"),
        ("f", "call_2"),
        ("g", "call_3"),
        ("h", "mine"),
    ]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert messages[1]["content"] is None


def test_an_answer_at_the_end_is_gone_on_with() -> None:
    """Ollama's: a history that ends in an answer is its beginning."""
    body = chat(said(user(), {"role": "assistant", "content": "Well", "thinking": "hm"}))

    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body["messages"][1] == {"role": "assistant", "content": "Well", "reasoning": "hm"}


def test_a_prompt_is_a_message_with_its_system_before_it() -> None:
    """Ollama's `/api/generate`, which puts both into the model's template."""
    body = chat({"prompt": "hi", "system": "be brief", "images": [PNG]})

    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == "be brief"
    assert body["messages"][1]["content"][0] == {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "hi", "raw": True}, "raw"),
        ({"prompt": "hi", "suffix": "there"}, "suffix"),
        ({"prompt": "hi", "template": "{{ .Prompt }}"}, "template"),
        ({"prompt": "hi", "context": [1]}, "context"),
        ({**said(user()), "format": "yaml"}, "format"),
        ({**said(user()), "options": {"temperature": "hot"}}, "options"),
        (said({"role": "system", "content": "a"}), "messages"),
        (said(user(), {"role": "tool", "content": "1"}), "messages.1"),
        (said(user(), called("f"), {"role": "tool", "tool_name": "g"}), "messages.2"),
    ],
)
def test_what_cannot_be_said_to_an_engine_is_refused(fields: dict[str, Any], param: str) -> None:
    """Ours: nothing that changes the meaning is left out silently."""
    with pytest.raises(InvalidRequestError) as caught:
        translated(fields)

    assert caught.value.param == param


names = st.sampled_from(["f", "g", "h"])


@given(st.lists(st.lists(names, max_size=4), max_size=4), st.randoms(use_true_random=False))
def test_every_call_gets_its_result_in_whatever_order(turns: list[list[str]], random: Any) -> None:
    """Ours: ids are unique, and each result has the id of a call of its name in its turn."""
    history = [user()]
    for turn in turns:
        results = [{"role": "tool", "content": name, "tool_name": name} for name in turn]
        random.shuffle(results)
        history += [called(*turn), *results] if turn else []

    messages = chat(said(*history))["messages"]

    calls = {c["id"]: c["function"]["name"] for m in messages for c in m.get("tool_calls", ())}
    answered = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    assert answered == calls
    assert len(calls) == sum(map(len, turns))


def test_the_page_has_every_field_and_no_other() -> None:
    """Ours: the reference says of each field what becomes of it."""
    documented = [row[0] for row in rows_of("ollama", "Requests")]

    assert sorted(documented) == sorted(OllamaRequest.__struct_fields__)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
options = st.dictionaries(st.sampled_from(["seed", "stop", "num_predict", "top_k", "x"]), anything)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
        optional={
            "content": st.text(max_size=5) | anything,
            "images": st.lists(st.text(max_size=8), max_size=2) | anything,
            "thinking": st.text(max_size=5),
            "tool_name": names,
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {"function": st.fixed_dictionaries({"name": names, "arguments": anything})}
                ),
                max_size=2,
            ),
        },
    ),
    max_size=4,
)
bodies = st.fixed_dictionaries(
    {"model": st.text(max_size=5)},
    optional={
        "messages": turns | anything,
        "options": options | anything,
        "think": anything,
        "format": anything,
        "prompt": anything,
        "system": anything,
        "stream": anything,
    },
)


@given(bodies)
def test_whatever_is_sent_is_understood_or_refused(body: dict[str, Any]) -> None:
    """Ours: a strange body is the caller's fault, never ours."""
    with contextlib.suppress(InvalidRequestError):
        request = decode_request(encode_json(body), DECODER)
        asked = ollama_to_chat(request, Target(model="m"))
        event(f"understood with {len(asked.chat.messages)} messages")

        assert CHAT_REQUEST_DECODER.decode(encode_json(asked.chat)) == asked.chat
