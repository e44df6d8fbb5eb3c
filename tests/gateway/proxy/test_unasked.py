"""Tokens of streams whose callers do not ask: counted, and seen by nobody."""

import json

import pytest
from hypothesis import given, strategies as st

from cortex_core.codec import decode_request
from cortex_core.wire.openai.envelope import ENVELOPE_DECODER
from cortex_gateway.api.openai import counted, renamed
from cortex_gateway.api.unasked import UsageHider
from cortex_gateway.proxy.rewrite import whole
from cortex_gateway.proxy.watch import StreamWatch
from tests.fakes.gateway import MODEL, ask, gateway, request
from tests.fakes.upstream import DONE, ScriptedNode, nodes, streams, words
from tests.gateway.hosted import ENVIRON, hosted
from tests.gateway.proxy.test_watch import chunks, cut, texts

keys = st.text(max_size=4) | st.sampled_from(["model", '"stream_options"', "{", "\\"])
texts_and_lists = st.text() | st.just("stream_options") | st.lists(st.text(), max_size=2)
values = st.none() | st.booleans() | st.integers() | texts_and_lists
layouts = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " :\r\n ")])
idle_options = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "include_usage": st.just(False) | st.none(),
        "continuous_usage_stats": st.booleans(),
        "include_obfuscation": st.booleans(),
    },
)
COMPLETION = {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "a"}]}


def with_usage_asked(body: bytes) -> bytes:
    return whole(counted(body, decode_request(body, ENVELOPE_DECODER)))


def event(data: object, end: str = "\n") -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}{end}{end}".encode()


@given(
    st.dictionaries(keys, values, max_size=5), st.booleans(), layouts, st.text(" \n", max_size=2)
)
def test_a_wish_is_put_before_everything_else(
    members: dict[str, object], is_ascii: bool, layout: tuple[str, str], blanks: str
) -> None:
    """Ours: the caller's bytes are there, in their order, all of them."""
    members = {**members, "model": "m"}
    body = (blanks + json.dumps(members, ensure_ascii=is_ascii, separators=layout)).encode(
        "utf-8", "surrogatepass"
    )

    asking = with_usage_asked(body)

    assert json.loads(asking) == {**members, "stream_options": {"include_usage": True}}
    start = len(blanks) + 1
    assert asking[:start] + asking[start + len(asking) - len(body) :] == body


@given(st.dictionaries(keys, values, max_size=3), idle_options, layouts)
def test_options_of_the_callers_own_stay(
    members: dict[str, object], options: dict[str, object] | None, layout: tuple[str, str]
) -> None:
    """Ours: but for what would put usage into every chunk, and had no meaning without."""
    members = {**members, "model": "m"}
    body = json.dumps({"a": 1, **members, "stream_options": options}, separators=layout).encode()

    asked = json.loads(with_usage_asked(body))

    kept = {k: v for k, v in (options or {}).items() if k != "continuous_usage_stats"}
    assert asked.pop("stream_options") == {**kept, "include_usage": True}
    assert asked == {k: v for k, v in {"a": 1, **members}.items() if k != "stream_options"}


@given(
    st.dictionaries(keys, values, max_size=3),
    st.just({}) | idle_options.map(lambda options: {"stream_options": options}),
    st.text(),
    layouts,
    st.booleans(),
)
def test_a_wish_and_another_name_go_together(
    members: dict[str, object],
    options: dict[str, dict[str, object]],
    name: str,
    layout: tuple[str, str],
    is_first: bool,
) -> None:
    """Ours: as if one had been written after the other, whichever stands first."""
    told = {**members, "model": "alias"}
    body = json.dumps({**options, **told} if is_first else {**told, **options}, separators=layout)

    asked = renamed(body.encode(), "alias", name)
    asked = counted(asked, decode_request(body.encode(), ENVELOPE_DECODER))

    kept = {**(options.get("stream_options") or {}), "include_usage": True}
    kept.pop("continuous_usage_stats", None)
    assert json.loads(whole(asked)) == {**told, "model": name, "stream_options": kept}


def test_options_under_an_escaped_key_are_seen() -> None:
    """RFC 8259 section 7: an escaped character is the character."""
    body = b'{"model":"m","stream\\u005foptions":{"include_usage":false}}'

    asked = with_usage_asked(body)

    assert json.loads(asked) == {"model": "m", "stream_options": {"include_usage": True}}
    assert asked.count(b"include_usage") == 1


# Of CR LF the last LF may come too late to be told from an empty line, which means nothing.
@given(st.lists(texts, max_size=5), st.sampled_from(["\n", "\r"]), chunks, st.booleans())
def test_the_caller_sees_the_same_bytes_but_for_one_event(
    pieces: list[str], end: str, sizes: list[int], has_comments: bool
) -> None:
    """Ours: however the bytes of the stream are cut, and whatever the text says."""
    before = b"".join(
        (f": hm{end}{end}".encode() if has_comments else b"")
        + event({"choices": [{"index": 0, "delta": {"content": piece}}]}, end)
        for piece in pieces
    )
    usage = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 3}}, end)
    watch, hider = StreamWatch(), UsageHider()

    seen = b"".join(hider.feed(watch.feed(piece)) for piece in cut(before + usage + DONE, sizes))

    assert seen == before + DONE
    found = watch.findings().usage
    assert found is not None
    assert found.prompt_tokens == 3


@pytest.mark.parametrize(
    "data",
    [
        {"choices": [], "usage": None},
        {"usage": {"prompt_tokens": 3}},
        {"choices": [{"index": 0, "text": "a", "usage": {}}]},
        {"choices": [], "prompt_filter_results": [], "x": '"usage":{'},
        ["usage", {"choices": [], "usage": {}}],
    ],
)
def test_other_events_are_let_through(data: object) -> None:
    """Ours: hidden is only what is nothing but usage."""
    assert UsageHider().feed(event(data)) == event(data)


def test_an_engine_that_tells_everybody_is_let_speak() -> None:
    """vLLM: `enable_force_include_usage` puts usage into every chunk, and sends it at the end."""
    told = event({**COMPLETION, "usage": {"prompt_tokens": 3}})
    last = event({"choices": [], "usage": {"prompt_tokens": 3}})
    hider = UsageHider()

    assert hider.feed(told + last) == told + last
    assert hider.feed(last) == last


async def test_tokens_are_counted_that_nobody_asked_for() -> None:
    """issue: tokens from usage, asked of the engine and hidden from the caller."""
    body = json.dumps(request({"stream": True}), indent=2).encode()
    events = words(5)
    async with nodes(node := ScriptedNode(streams(events))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, body)
        figures = await g.recorder.request()

    assert answer.body == b"".join(map(event, events[:-1])) + DONE
    assert node.wires[0].body == b'{"stream_options":{"include_usage":true},' + body[1:]
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (3, 5)
    assert figures["inter_token_s"] is not None


async def test_tokens_of_completions_are_counted_too() -> None:
    """Ours: likewise, and their answers are touched in no other way."""
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    body = {"model": MODEL, "prompt": "a", "stream": True, "stream_options": None}
    node = ScriptedNode(streams([COMPLETION, usage]))
    async with nodes(node), gateway({"a": node.url}) as g:
        answer = await ask(g.url, json.dumps(body).encode(), path="/v1/completions")
        figures = await g.recorder.request()

    assert answer.body == event(COMPLETION) + DONE
    assert json.loads(node.wires[0].body) == {**body, "stream_options": {"include_usage": True}}
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (2, 1)


async def test_who_asks_is_told() -> None:
    """OpenAI API reference: `include_usage`; every byte of request and answer is as it was."""
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(request(fields), indent=1).encode()
    async with nodes(node := ScriptedNode(streams(words(2)))), gateway({"a": node.url}) as g:
        answer = await ask(g.url, body)

    assert answer.body == b"".join(map(event, words(2))) + DONE
    assert node.wires[0].body == body


async def test_a_service_elsewhere_is_asked_for_nothing_more() -> None:
    """Ours: it may refuse `stream_options`, and its bytes come back as they are."""
    async with nodes(node := ScriptedNode(streams(words(1)))):
        upstream = hosted(node, "openai", models={"big": "big"})
        async with gateway({}, upstreams=[upstream], environ=ENVIRON) as g:
            body = json.dumps({**request({"stream": True}), "model": "big"}).encode()
            answer = await ask(g.url, body)

    assert node.wires[0].body == body
    assert answer.body == b"".join(map(event, words(1))) + DONE
