"""The watcher of a stream: whatever the cuts, the caller gets whole events and no lie."""

import json

import pytest
from hypothesis import given, strategies as st

from cortex_core.sse import MAX_EVENT_BYTES, SseDecoder
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.proxy.watch import StreamWatch, findings_of, is_only_comments


def delta(**fields: object) -> dict[str, object]:
    return {"id": "c", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


ROLE = delta(role="assistant", content="")
USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}

chunks = st.lists(st.integers(1, 40), max_size=60)
texts = st.text(alphabet='[DONE]data: \n\r"usage{}é', max_size=12)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [piece for piece in (*pieces, stream) if piece]


def wire(events: list[object], end: str = "\n") -> bytes:
    return "".join(f"data: {json.dumps(event)}{end}{end}" for event in events).encode()


def datas(stream: bytes) -> list[str]:
    return [event.data for event in SseDecoder().feed(stream)]


@given(st.lists(texts, max_size=6), line_ends, chunks)
def test_a_complete_stream_passes_and_is_known_to_be_complete(
    words: list[str], end: str, sizes: list[int]
) -> None:
    """Ours: for any cuts, framing and content every event arrives, and the end is seen."""
    events: list[object] = [ROLE, *(delta(content=word) for word in words), FINISH, USAGE]
    stream = wire(events, end) + f"data: [DONE]{end}{end}".encode()
    watch = StreamWatch()

    passed = b"".join(watch.feed(piece) for piece in cut(stream, sizes)) + watch.end()

    assert watch.is_done
    assert datas(passed) == [*(json.dumps(event) for event in events), "[DONE]"]


@given(st.lists(texts, max_size=6), line_ends, chunks, st.integers(0, 600))
def test_a_cut_stream_is_never_complete_and_leaves_no_debris(
    words: list[str], end: str, sizes: list[int], length: int
) -> None:
    """Ours: wherever a stream is cut, what passed is whole events and no terminator."""
    events: list[object] = [ROLE, *(delta(content=word) for word in words)]
    whole = wire(events, end)
    watch = StreamWatch()

    passed = b"".join(watch.feed(piece) for piece in cut(whole[:length], sizes)) + watch.end()

    assert not watch.is_done
    seen = datas(passed + b'data: {"error":1}\n\n')
    assert seen[-1] == '{"error":1}'
    assert seen[:-1] == [json.dumps(event) for event in events][: len(seen) - 1]


@given(chunks, st.binary(max_size=30))
def test_what_follows_the_terminator_is_dropped(sizes: list[int], rest: bytes) -> None:
    """Ours: a stream has one end."""
    stream = wire([ROLE, FINISH]) + b"data: [DONE]\n\n"
    watch = StreamWatch()

    passed = b""
    for piece in cut(stream + rest, sizes):
        passed += watch.feed(piece)
        if watch.is_done:
            break

    assert passed == stream


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n"])
def test_a_terminator_without_its_blank_line_is_completed(tail: bytes) -> None:
    """Ours: a node that ends its answer there has said all."""
    watch = StreamWatch()
    watch.feed(wire([ROLE]) + tail)

    assert watch.end().rstrip().endswith(b"[DONE]")
    assert watch.is_done


@pytest.mark.parametrize(
    "first",
    [
        delta(content="a"),
        delta(reasoning_content="a"),
        delta(reasoning="a"),
        delta(refusal="a"),
        delta(tool_calls=[{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}]),
        {"choices": [{"index": 0, "text": "a"}]},
    ],
)
def test_the_first_token_is_the_first_content(first: dict[str, object]) -> None:
    """Ours: the event that opens the message is no token."""
    watch = StreamWatch()

    watch.feed(wire([ROLE]))
    before = watch.has_content
    watch.feed(wire([first]))

    assert (before, watch.has_content) == (False, True)


@pytest.mark.parametrize("is_compact", [True, False])
def test_usage_and_finish_are_read_from_the_last_events(is_compact: bool) -> None:
    """Ours: the engine's counts, whichever way it spaces its JSON."""
    separators = (",", ":") if is_compact else (", ", ": ")
    watch = StreamWatch()
    for event in [ROLE, *([delta(content="a")] * 50), FINISH, USAGE]:
        watch.feed(f"data: {json.dumps(event, separators=separators)}\n\n".encode())
    watch.feed(b"data: [DONE]\n\n")

    findings = watch.findings()

    assert findings.finish == "length"
    assert findings.usage is not None
    assert findings.usage.prompt_tokens == 9
    assert findings.usage.completion_tokens == 5
    assert findings.usage.prompt_tokens_details is not None
    assert findings.usage.prompt_tokens_details.cached_tokens == 4


def test_an_error_event_of_the_node_is_noticed() -> None:
    """Ours: the caller is not told twice."""
    watch = StreamWatch()
    watch.feed(wire([ROLE, {"error": {"message": "engine", "type": "server_error"}}]))

    assert watch.findings().has_error


def test_garbage_in_events_hides_nothing() -> None:
    """Ours: an event that is no JSON passes; what the others say still counts."""
    watch = StreamWatch()
    watch.feed(b"data: {not json\n\ndata: 1\n\ndata: [1]\n\n" + wire([USAGE]))

    usage = watch.findings().usage
    assert usage is not None
    assert usage.completion_tokens == 5


def test_an_event_without_end_is_bounded() -> None:
    """Ours: a node cannot fill the gateway's memory with one event."""
    watch = StreamWatch()

    watch.feed(b"x" * MAX_EVENT_BYTES)

    with pytest.raises(UpstreamFailure):
        watch.feed(b"x")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (b": keep-alive\n\n", True),
        (b": a\n\n: b\n\n", True),
        (b": a\n\ndata: 1\n\n", False),
        (b"data: 1\n\n", False),
        (b": a\r\n\r\n", True),
    ],
)
def test_a_nodes_heartbeat_is_no_answer(events: bytes, expected: bool) -> None:
    """Ours: a comment does not commit the request to its node."""
    assert is_only_comments(events) is expected


def test_a_plain_answer_tells_its_usage() -> None:
    """OpenAI API reference, "The chat completion object"."""
    body = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}'

    findings = findings_of(body)

    assert findings.finish == "stop"
    assert findings.usage is not None
    assert findings.usage.prompt_tokens == 3
