"""Hypothesis strategies of answers: legal sequences of parts, and chat streams of any engine."""

import itertools
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from cortex_core.errors import EngineError, OverloadedError, UpstreamCutError
from cortex_core.translate.parts import (
    Begin,
    Close,
    Delta,
    End,
    Fail,
    Finish,
    Open,
    PartEvent,
    PartKind,
    Usage,
)

texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)
counts = st.integers(1, 9000)
objects = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers(-5, 5) | texts | st.lists(texts), max_size=3
)
arguments = objects.map(lambda value: msgspec.json.encode(value).decode())
plain_kinds = st.sampled_from([PartKind.REASONING, PartKind.TEXT, PartKind.REFUSAL])


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A part as a whole."""

    kind: PartKind
    text: str
    name: str = ""
    call_id: str = ""


class ChatStream(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream's stream, and what it says."""

    data: bytes
    chunks: tuple[bytes, ...]
    """The same, event by event."""
    told: tuple[Told, ...]
    """Ids are empty where the upstream gave none."""
    finish: Finish
    stop_sequence: str | None
    usage: Usage | None
    """`None` when the upstream did not say."""
    deltas: int
    """Chunks that add something."""


def told(events: Iterable[PartEvent]) -> tuple[Told, ...]:
    """Return the parts of a legal sequence that were closed."""
    parts: list[Told] = []
    part: Open | None = None
    fragments: list[str] = []
    for event in events:
        match event:
            case Open():
                part, fragments = event, []
            case Delta():
                fragments.append(event.text)
            case Close():
                assert part is not None
                text = "".join(fragments)
                call_id, name = part.call_id, part.name
                parts.append(Told(kind=part.kind, text=text, name=name, call_id=call_id))
            case _:
                pass
    return tuple(parts)


def check_legal(events: Sequence[PartEvent]) -> None:
    """Check a whole sequence against the rules in `parts`.

    Raises:
        AssertionError: a rule is broken.
    """
    assert events, "a sequence has an end"
    assert isinstance(events[-1], End | Fail), "the last event is an end"
    assert isinstance(events[0], Begin | Fail), "the first event is a beginning"
    opened, is_open = 0, False
    ids: set[str] = set()
    for position, event in enumerate(events):
        match event:
            case Begin():
                assert position == 0, "there is one beginning"
            case Open():
                assert not is_open, "one part is open at a time"
                assert event.index == opened, "indices count up from 0"
                is_call = event.kind is PartKind.TOOL_CALL
                assert is_call == bool(event.name) == bool(event.call_id)
                assert not is_call or event.call_id not in ids, "ids are unique"
                ids.add(event.call_id)
                opened, is_open = opened + 1, True
            case Delta():
                assert is_open, "a delta is within a part"
                assert event.text, "a delta is not empty"
            case Close():
                assert is_open, "what is closed was open"
                is_open = False
            case End():
                assert not is_open
                assert position == len(events) - 1
            case Fail():
                assert position == len(events) - 1


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Return `data` in the pieces that the cuts make."""
    places = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


cuts = st.sets(st.integers(0, 3000), max_size=12)


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """Draw fragments that make up `text`, none of them empty."""
    places = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
    ends = [0, *(place for place in places if place < len(text)), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(ends) if start < stop]


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(counts), draw(counts)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=draw(st.none() | st.integers(0, prompt)),
        completion_tokens=completion,
        reasoning_tokens=draw(st.none() | st.integers(0, completion)),
    )


@st.composite
def part_sequences(
    draw: st.DrawFn, *, may_fail: bool = True, may_refuse: bool = True
) -> list[PartEvent]:
    """Draw a legal sequence; the calls' arguments are objects, or empty."""
    usage = draw(usages())
    known = Usage(prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens)
    events: list[PartEvent] = [Begin(usage=draw(st.sampled_from([known, Usage()])))]
    kinds = list(PartKind) if may_refuse else [k for k in PartKind if k is not PartKind.REFUSAL]
    chosen = draw(st.lists(st.sampled_from(kinds), max_size=5))
    for index, kind in enumerate(chosen):
        is_call = kind is PartKind.TOOL_CALL
        call_id, name = (f"call_{draw(names)}_{index}", draw(names)) if is_call else ("", "")
        text = draw(st.just("") | arguments if is_call else texts)
        events.append(Open(index=index, kind=kind, call_id=call_id, name=name))
        events += [Delta(text=piece) for piece in draw(pieces(text))]
        events.append(Close())
    if may_fail and draw(st.integers(0, 4)) == 0:
        kept = events[: draw(st.integers(0, len(events)))]
        return [*kept, Fail(error=draw(errors))]
    finish = draw(st.sampled_from(list(Finish)))
    if finish in (Finish.STOP, Finish.TOOL_CALLS):
        finish = Finish.TOOL_CALLS if PartKind.TOOL_CALL in chosen else Finish.STOP
    stop = draw(st.none() | texts) if finish is Finish.STOP else None
    return [*events, End(finish=finish, stop_sequence=stop, usage=usage)]


errors = st.sampled_from(
    [EngineError("it broke"), OverloadedError("the queue is full"), UpstreamCutError("cut")]
)


@st.composite
def _call_group(draw: st.DrawFn, first: int) -> tuple[list[dict[str, Any]], list[Told]]:
    """Draw calls whose pieces are mixed, each in its own order, and what they say."""
    said: list[Told] = []
    heads, tails = [], []
    for index in range(first, first + draw(st.integers(1, 3))):
        call_id = f"id_{index}" if draw(st.booleans()) else ""
        name, text = draw(names), draw(st.just("") | arguments)
        said.append(Told(kind=PartKind.TOOL_CALL, text=text, name=name, call_id=call_id))
        cut = draw(st.integers(0, len(name) - 1)) if draw(st.integers(0, 4)) == 0 else 0
        name_pieces = [piece for piece in (name[:cut], name[cut:]) if piece]
        head: dict[str, Any] = {"index": index, "function": {"name": name_pieces[0]}}
        if call_id:
            head |= {"id": call_id, "type": "function"}
        if draw(st.booleans()):
            head["function"]["arguments"] = ""
        more = [{"index": index, "function": {"name": piece}} for piece in name_pieces[1:]]
        fragments = draw(pieces(text))
        more += [{"index": index, "function": {"arguments": piece}} for piece in fragments]
        if fragments and len(name_pieces) == 1 and draw(st.booleans()):
            head["function"] |= more.pop(0)["function"]
        heads.append(head)
        tails.append(more)
    return draw(_mixed(heads, tails)), said


@st.composite
def _mixed(
    draw: st.DrawFn, heads: list[dict[str, Any]], tails: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Draw an order in which every head comes before its tail, and heads in theirs."""
    if not draw(st.booleans()):
        return [piece for head, tail in zip(heads, tails, strict=True) for piece in (head, *tail)]
    mixed: list[dict[str, Any]] = []
    begun = 0
    while begun < len(heads) or any(tails[:begun]):
        ready: list[Callable[[], dict[str, Any]]] = [
            lambda tail=tail: tail.pop(0)  # type: ignore[misc]  # bound now, not at the call
            for tail in tails[:begun]
            if tail
        ]
        choice = draw(st.integers(0, len(ready) - (begun == len(heads))))
        if choice == len(ready):
            mixed.append(heads[begun])
            begun += 1
        else:
            mixed.append(ready[choice]())
    return mixed


@st.composite
def _deltas(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Told]]:
    """Draw what the chunks of an answer add, and what it says."""
    deltas: list[dict[str, Any]] = []
    said: list[Told] = []
    calls = 0
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            kind, text = draw(plain_kinds), draw(texts)
            deltas += [draw(_plain_delta(kind, piece)) for piece in draw(pieces(text))]
            if said and said[-1].kind is kind:
                said[-1] = Told(kind=kind, text=said[-1].text + text)
            else:
                said.append(Told(kind=kind, text=text))
            continue
        group, more = draw(_call_group(calls))
        calls += len(more)
        said += more
        while group:
            size = draw(st.integers(1, 3))
            deltas.append({"tool_calls": group[:size]})
            group = group[size:]
    return deltas, said


@st.composite
def _plain_delta(draw: st.DrawFn, kind: PartKind, text: str) -> dict[str, Any]:
    if kind is PartKind.TEXT:
        return {"content": text}
    if kind is PartKind.REFUSAL:
        return {"refusal": text}
    fields = draw(st.sampled_from([("reasoning",), ("reasoning_content",), ()]))
    return dict.fromkeys(fields or ("reasoning", "reasoning_content"), text)


@st.composite
def chat_streams(draw: st.DrawFn) -> ChatStream:
    """Draw a complete stream of chunks as vLLM or another engine may send it."""
    deltas, said = draw(_deltas())
    usage = draw(st.none() | usages())
    finish, reason = draw(_finishes(any(part.kind is PartKind.TOOL_CALL for part in said)))
    stop = draw(st.none() | texts) if finish is Finish.STOP else None
    is_continuous = usage is not None and draw(st.booleans())
    chunks = [_chunk(delta) for delta in [{"role": "assistant", "content": ""}, *deltas]]
    last = {"index": 0, "delta": {}, "finish_reason": reason, "stop_reason": stop}
    chunks.append({**_chunk({}), "choices": [last]})
    if is_continuous:
        assert usage is not None
        for chunk in chunks:
            chunk["usage"] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": 1}
    if usage is not None:
        chunks.append({**_chunk({}), "choices": [], "usage": _wire_usage(usage)})
    end = draw(st.sampled_from(["\n\n", "\r\n\r\n"]))
    events = [f"data: {msgspec.json.encode(chunk).decode()}{end}".encode() for chunk in chunks]
    events.append(f"data: [DONE]{end}".encode())
    if draw(st.booleans()):
        events.insert(draw(st.integers(0, len(events))), b": keep-alive\n\n")
    return ChatStream(
        data=b"".join(events),
        chunks=tuple(events),
        told=tuple(said),
        finish=finish,
        stop_sequence=stop,
        usage=usage,
        deltas=len(deltas),
    )


@st.composite
def _finishes(draw: st.DrawFn, has_call: bool) -> tuple[Finish, str]:
    if draw(st.integers(0, 3)) == 0:
        return draw(
            st.sampled_from([(Finish.LENGTH, "length"), (Finish.CONTENT_FILTER, "content_filter")])
        )
    if has_call:
        return Finish.TOOL_CALLS, draw(st.sampled_from(["stop", "tool_calls"]))
    return Finish.STOP, "stop"


def _chunk(delta: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [choice]}


def _wire_usage(usage: Usage) -> dict[str, Any]:
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    told: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if usage.cached_tokens is not None:
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return told
