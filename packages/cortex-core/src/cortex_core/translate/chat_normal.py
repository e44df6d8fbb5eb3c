"""Chat requests as engines take them, for callers who say some things in older or newer ways.

Everything is done on the level of JSON members: what needs no change is neither decoded nor
copied, and a request without any such thing stays byte for byte the caller's.
"""

import operator
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Limit
from cortex_core.translate.capability import Asks
from cortex_core.translate.target import answer_tokens
from cortex_core.wire.openai.envelope import CHAT_ENVELOPE_DECODER, ChatEnvelope

T = TypeVar("T")

Members = dict[str, msgspec.Raw]

_MEMBERS = msgspec.json.Decoder(Members)
_LIST = msgspec.json.Decoder(list[Members])
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)

_NULLS = (b"", b"null")

_LONGEST_NUMBER = 19
"""Digits that a counter of tokens can have."""


class Normal(msgspec.Struct, frozen=True, kw_only=True):
    """A request that an engine takes."""

    body: bytes
    """The caller's own bytes where nothing had to be changed."""
    envelope: ChatEnvelope
    asks: Asks
    legacy_functions: bool = False
    """The caller offered `functions`, and expects `function_call` in the answer."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class _AllowedTool(msgspec.Struct, frozen=True, kw_only=True):
    function: _Named


class _AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    tools: tuple[_AllowedTool, ...]


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    allowed_tools: _AllowedTools | None = None


class _ToolName(msgspec.Struct, frozen=True, kw_only=True):
    function: _Named | None = None


_PARTS = msgspec.json.Decoder(list[_Part])
_NAMED = msgspec.json.Decoder(_Named)
_CHOICE = msgspec.json.Decoder(_Choice)
_TOOLS = msgspec.json.Decoder(tuple[_ToolName, ...])

_VISION_TYPES = frozenset({"image_url", "input_image", "video_url"})
_AUDIO_TYPES = frozenset({"audio_url", "input_audio"})
_OLD_ROLES = ("developer", "function")
_OPENING = ord("[")
_ABSENT = msgspec.Raw()
_RARE = operator.attrgetter(
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "max_completion_tokens",
    "modalities",
    "audio",
    "thinking_token_budget",
)
_NO_RARE = (None, *[_ABSENT] * 4, None, _ABSENT, _ABSENT)
_LIMITS = operator.attrgetter("max_tokens", "max_completion_tokens")
_NO_LIMITS = (_ABSENT, _ABSENT)
_NOTHING = Asks()
_MEDIA_MARKS = (b'_url"', b'"input_')
"""Nothing above is without one of them, unless it is escaped."""


def normalise(body: bytes) -> Normal:
    """Return the request in `body` as engines take it.

    Raises:
        InvalidJsonError: not JSON, not UTF-8, or nested too deeply.
        InvalidRequestError: no chat request, or one for something that no engine does.
    """
    envelope = decode_request(body, CHAT_ENVELOPE_DECODER)
    if _is_plain(envelope):
        return Normal(body=body, envelope=envelope, asks=_NOTHING)
    _refuse_impossible(envelope)
    has_functions = _is_given(envelope.functions)
    changes = [change for is_needed, change in _CHANGES if is_needed(envelope)]
    if changes:
        members = _MEMBERS.decode(body)
        for change in changes:
            change(members)
        body = encode_json(members)
        envelope = decode_request(body, CHAT_ENVELOPE_DECODER)
    return Normal(
        body=body,
        envelope=envelope,
        asks=_asks(envelope),
        legacy_functions=has_functions,
    )


def _is_plain(envelope: ChatEnvelope) -> bool:
    """Whether there is nothing in it that is looked for one by one below."""
    if _RARE(envelope) != _NO_RARE or _has_idle_options(envelope):
        return False
    for message in envelope.messages:
        if message.role in _OLD_ROLES or message.function_call != _ABSENT:
            return False
        content = memoryview(message.content)
        if content and content[0] == _OPENING:
            return False
    return True


def within(normal: Normal, limit: Limit) -> bytes:
    """Return the body with no more tokens asked for than the model can ever give.

    The same bytes, unless the caller asked for more.
    """
    if _LIMITS(normal.envelope) == _NO_LIMITS:
        return normal.body
    changed = {
        name: shorter
        for name, raw in (
            ("max_tokens", normal.envelope.max_tokens),
            ("max_completion_tokens", normal.envelope.max_completion_tokens),
        )
        if (wanted := _number(raw)) is not None
        and (shorter := answer_tokens(wanted, limit)) != wanted
    }
    if not changed:
        return normal.body
    return encode_json({**_MEMBERS.decode(normal.body), **changed})


def _number(raw: msgspec.Raw) -> int | None:
    """Return a natural number; whatever else a caller wrote is for the engine to refuse."""
    digits = bytes(raw)
    return int(digits) if digits.isdigit() and len(digits) < _LONGEST_NUMBER else None


def _is_given(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in _NULLS


def _refuse_impossible(envelope: ChatEnvelope) -> None:
    if _is_given(envelope.audio) or "audio" in (envelope.modalities or ()):
        param = "audio" if _is_given(envelope.audio) else "modalities"
        raise InvalidRequestError("no model here speaks; ask for text alone", param=param)
    for index, tool in enumerate(envelope.tools or ()):
        if tool.type == "custom":
            raise InvalidRequestError(
                "custom tools are not taken here; describe the tool as a function, "
                "or use /v1/responses",
                param=f"tools.{index}",
            )
    if _is_given(envelope.functions) and envelope.tools:
        raise InvalidRequestError("give `tools` or `functions`, not both", param="functions")


def _asks(envelope: ChatEnvelope) -> Asks:
    kinds = _media_kinds(envelope)
    return Asks(
        vision=not kinds.isdisjoint(_VISION_TYPES),
        audio=not kinds.isdisjoint(_AUDIO_TYPES),
        tools=bool(envelope.tools) and bytes(envelope.tool_choice) != b'"none"',
        reasoning=bytes(envelope.thinking_token_budget) not in (*_NULLS, b"0"),
    )


def _media_kinds(envelope: ChatEnvelope) -> set[str]:
    """Return the types of parts, of messages that may have some that are no text."""
    kinds: set[str] = set()
    for index, message in enumerate(envelope.messages):
        view = memoryview(message.content)
        if not view or view[0] != _OPENING:
            continue
        try:
            parts = _decode(message.content, _PARTS, f"messages.{index}.content")
        except InvalidRequestError:
            # What may be no media is for the engine to refuse. To search costs more than to decode.
            content = bytes(message.content)
            if any(mark in content for mark in _MEDIA_MARKS):
                raise
        else:
            kinds.update(part.type for part in parts)
    return kinds


def _has_old_messages(envelope: ChatEnvelope) -> bool:
    return any(
        message.role in _OLD_ROLES or _is_given(message.function_call)
        for message in envelope.messages
    )


def _has_functions(envelope: ChatEnvelope) -> bool:
    return _is_given(envelope.functions) or _is_given(envelope.function_call)


def _has_allowed_tools(envelope: ChatEnvelope) -> bool:
    return b'"allowed_tools"' in bytes(envelope.tool_choice)


def _has_both_limits(envelope: ChatEnvelope) -> bool:
    return _is_given(envelope.max_tokens) and _is_given(envelope.max_completion_tokens)


def _has_idle_options(envelope: ChatEnvelope) -> bool:
    return bool(envelope.stream_options) and not envelope.stream


def _drop_older_limit(members: Members) -> None:
    del members["max_tokens"]


def _drop_options(members: Members) -> None:
    del members["stream_options"]


def _rename_functions(members: Members) -> None:
    """Say `functions` and `function_call` as `tools` and `tool_choice`."""
    functions = members.pop("functions", msgspec.Raw())
    choice = members.pop("function_call", msgspec.Raw())
    if not _is_given(functions):
        return
    tools = [
        {"type": "function", "function": function}
        for function in _decode(functions, _RAWS, "functions")
    ]
    if not tools:
        return
    members["tools"] = _raw(tools)
    if bytes(choice).startswith(b"{"):
        name = _decode(choice, _NAMED, "function_call").name
        members["tool_choice"] = _raw({"type": "function", "function": {"name": name}})
    elif _is_given(choice):
        members["tool_choice"] = choice
    # The old form of an answer has room for one call.
    members["parallel_tool_calls"] = msgspec.Raw(b"false")


def _keep_allowed_tools(members: Members) -> None:
    """Say `tool_choice: allowed_tools` as the list of those tools and a mode."""
    choice = _decode(members["tool_choice"], _CHOICE, "tool_choice")
    if choice.type != "allowed_tools":
        return
    if choice.allowed_tools is None:
        raise InvalidRequestError("`allowed_tools` is missing", param="tool_choice.allowed_tools")
    allowed = {tool.function.name for tool in choice.allowed_tools.tools}
    raws = _decode(members.get("tools", msgspec.Raw(b"[]")), _RAWS, "tools")
    names = [
        tool.function.name if tool.function else None
        for tool in _decode(members.get("tools", msgspec.Raw(b"[]")), _TOOLS, "tools")
    ]
    unknown = sorted(allowed - set(names))
    if unknown:
        raise InvalidRequestError(
            f"{unknown[0]!r} is allowed but not among the tools", param="tool_choice.allowed_tools"
        )
    members["tools"] = _raw([raw for raw, name in zip(raws, names, strict=True) if name in allowed])
    members["tool_choice"] = _raw(choice.allowed_tools.mode)


def _renew_messages(members: Members) -> None:
    """Say `developer` as `system`, and calls of functions as calls of tools."""
    messages = _decode(members["messages"], _LIST, "messages")
    calls: dict[str, str] = {}
    for index, message in enumerate(messages):
        role = _decode(message["role"], _STRING, f"messages.{index}.role")
        if role == "developer":
            message["role"] = _raw("system")
        elif role == "function":
            _renew_result(message, index, calls)
        call = message.pop("function_call", msgspec.Raw())
        if _is_given(call):
            _renew_call(message, call, index, calls)
    members["messages"] = _raw(messages)


def _renew_call(message: Members, call: msgspec.Raw, index: int, calls: dict[str, str]) -> None:
    name = _decode(call, _NAMED, f"messages.{index}.function_call").name
    # The same history gives the same ids, and with them the same prompt.
    calls[name] = f"call_{index}"
    message.setdefault("content", msgspec.Raw(b"null"))
    if not _is_given(message.get("tool_calls", msgspec.Raw())):
        message["tool_calls"] = _raw([{"id": calls[name], "type": "function", "function": call}])


def _renew_result(message: Members, index: int, calls: Mapping[str, str]) -> None:
    try:
        call_id = calls[_STRING.decode(message.get("name", msgspec.Raw(b"null")))]
    except (msgspec.DecodeError, KeyError):
        raise InvalidRequestError(
            "a `function` message needs the `name` of a function that was called before it",
            param=f"messages.{index}.name",
        ) from None
    message["role"] = _raw("tool")
    message["tool_call_id"] = _raw(call_id)


_CHANGES: tuple[tuple[Callable[[ChatEnvelope], bool], Callable[[Members], None]], ...] = (
    (_has_old_messages, _renew_messages),
    (_has_functions, _rename_functions),
    (_has_allowed_tools, _keep_allowed_tools),
    (_has_both_limits, _drop_older_limit),
    (_has_idle_options, _drop_options),
)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(encode_json(value))


def _decode(raw: msgspec.Raw, decoder: msgspec.json.Decoder[T], param: str) -> T:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(str(error), param=param) from None
