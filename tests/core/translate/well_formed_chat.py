"""What every stream of chat completion chunks must look like, as clients need it."""

from typing import Any

import msgspec

from cortex_core.sse import SseDecoder


class ChatAnswerSeen(msgspec.Struct, kw_only=True):
    """A stream as a client would put it together."""

    chunks: list[dict[str, Any]]
    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    function_call: dict[str, Any] | None = None
    finish: str | None = None
    """`None` when the stream broke."""
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


def check_chat(data: bytes, *, include_usage: bool) -> ChatAnswerSeen:
    """Check a stream from its first to its last byte.

    Raises:
        AssertionError: it breaks a rule of OpenAI's reference, or one of protocols.md 5.3 that
            clients rely on.
    """
    assert b"event:" not in data.replace(b"\\", b"").split(b"data:")[0]
    events = [event.data for event in SseDecoder().feed(data)]
    assert events, "a stream is not empty"
    is_done = events[-1] == "[DONE]"
    chunks = [msgspec.json.decode(event) for event in events[: len(events) - is_done]]
    seen = ChatAnswerSeen(chunks=chunks)
    if not is_done:
        seen.error = chunks.pop()["error"]
        assert seen.error is not None
        assert {"message", "type", "param", "code"} == set(seen.error)
    elif include_usage:
        last = chunks.pop()
        assert last["choices"] == [], "usage comes last"
        seen.usage = last["usage"]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) <= 1
    for position, chunk in enumerate(chunks):
        assert ("usage" in chunk) == include_usage
        assert chunk.get("usage") is None
        (choice,) = chunk["choices"]
        assert choice["index"] == 0
        assert seen.finish is None, "nothing follows the finish"
        assert ("role" in choice["delta"]) == (position == 0), "the role comes first, and once"
        _add(seen, choice["delta"])
        seen.finish = choice["finish_reason"]
    assert (seen.finish is not None) == is_done
    return seen


def _add(seen: ChatAnswerSeen, delta: dict[str, Any]) -> None:
    assert delta.get("reasoning") == delta.get("reasoning_content"), "thoughts have both names"
    seen.content += delta.get("content", "")
    seen.reasoning += delta.get("reasoning", "")
    seen.refusal += delta.get("refusal", "")
    for call in delta.get("tool_calls", ()):
        if "id" in call:
            assert call["index"] == len(seen.calls), "calls count up"
            assert call["type"] == "function"
            assert call["id"]
            assert call["function"]["name"]
            seen.calls.append({"id": call["id"], **call["function"]})
        else:
            assert set(call) == {"index", "function"}
            assert set(call["function"]) == {"arguments"}
            assert call["index"] < len(seen.calls)
            seen.calls[call["index"]]["arguments"] += call["function"]["arguments"]
    if (function := delta.get("function_call")) is not None:
        if seen.function_call is None:
            assert function["name"]
            seen.function_call = dict(function)
        else:
            assert set(function) == {"arguments"}, "the name comes once"
            seen.function_call["arguments"] += function["arguments"]
