"""The messages of a chat request as system text and turns of user and assistant."""

import hashlib
import re

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.translate.chat_parts import assistant_blocks, result_content, text_of, user_blocks
from cortex_core.wire.anthropic.blocks import Block, TextBlock, ToolResultBlock, ToolUseBlock
from cortex_core.wire.anthropic.request import Message
from cortex_core.wire.openai.chat import ChatMessage, ChatRequest, ToolCall

OPENING = "(no message)"
"""Stands before a conversation that an assistant begins, or that has system messages alone:
there the user speaks first."""

_SYSTEM_ROLES = ("system", "developer")

_NO_ID = re.compile(r"[^A-Za-z0-9_-]")
_ARGUMENTS = msgspec.json.Decoder(dict[str, object])


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in Anthropic's terms."""

    system: str
    """May be empty."""
    messages: tuple[Message, ...]
    """User and assistant by turns, the user first; results before everything else of a turn."""


def turns_of(request: ChatRequest, ignored: list[str]) -> Turns:
    """Return the conversation of `request`.

    Args:
        request: whose messages are meant.
        ignored: paths of what is left out are added to it.

    Raises:
        InvalidRequestError: a message cannot be said there.
    """
    leading = 0
    while leading < len(request.messages) and request.messages[leading].role in _SYSTEM_ROLES:
        leading += 1
    system = [
        text_of(message.content, f"messages.{index}.content")
        for index, message in enumerate(request.messages[:leading])
    ]
    turns = _TurnWriter(ignored)
    for index, message in enumerate(request.messages[leading:], leading):
        turns.add(message, f"messages.{index}")
    return Turns(system="\n\n".join(filter(None, system)), messages=turns.messages())


class CallIds:
    """Ids of calls in the alphabet of the dialect, each used once in a conversation.

    Engines that count from 0 in every answer repeat themselves.
    """

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._current: dict[str, str] = {}

    def open(self, call_id: str) -> str:
        """Return the id for a call; the same history gives the same ids."""
        plain = _NO_ID.sub("_", call_id)
        if plain != call_id or not plain:
            digest = hashlib.blake2s(call_id.encode("utf-8", "surrogatepass"), digest_size=4)
            plain = f"{plain}_{digest.hexdigest()}"
        uses = self._uses.get(plain, 0)
        self._uses[plain] = uses + 1
        own = f"{plain}_{uses}" if uses else plain
        # Somebody may have had the very idea of counting like this.
        while uses and own in self._uses:
            own += "_"
        self._uses.setdefault(own, 1)
        self._current[call_id] = own
        return own

    def answered(self, call_id: str) -> str | None:
        """Return the id of the latest call with `call_id`; `None` when there is none."""
        return self._current.get(call_id)


class _TurnWriter:
    def __init__(self, ignored: list[str]) -> None:
        self._ignored = ignored
        self._ids = CallIds()
        self._turns: list[tuple[str, list[Block]]] = []
        self._unanswered: dict[str, str] = {}
        """Paths of the calls that the next turn must answer, by their ids there."""

    def add(self, message: ChatMessage, path: str) -> None:
        if message.name is not None:
            self._ignored.append(f"{path}.name")
        match message.role:
            case "user":
                self._extend("user", user_blocks(message.content, f"{path}.content"))
            case "assistant":
                self._add_assistant(message, path)
            case "tool":
                self._add_result(message, path)
            case "system" | "developer":
                text = text_of(message.content, f"{path}.content")
                reminder = f"<system-reminder>\n{text}\n</system-reminder>"
                self._extend("user", [TextBlock(text=reminder)] if text else [])
            case _:
                raise InvalidRequestError(
                    f"{message.role!r} is no role; use system, developer, user, assistant or tool",
                    param=f"{path}.role",
                )

    def messages(self) -> tuple[Message, ...]:
        self._check_answered()
        turns = self._turns
        if not turns or turns[0][0] != "user":
            turns = [("user", [TextBlock(text=OPENING)]), *turns]
        role, blocks = turns[-1]
        if role == "assistant":
            turns = [*turns[:-1], (role, _without_trailing_space(blocks))]
        return tuple(_message(role, blocks) for role, blocks in turns if blocks)

    def _extend(self, role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if self._turns and self._turns[-1][0] == role:
            self._turns[-1][1].extend(blocks)
        else:
            self._turns.append((role, blocks))

    def _add_assistant(self, message: ChatMessage, path: str) -> None:
        if message.reasoning or message.reasoning_content:
            # Thoughts without the signature of who had them are not taken there.
            name = "reasoning" if message.reasoning else "reasoning_content"
            self._ignored.append(f"{path}.{name}")
        if message.function_call is not None:
            raise InvalidRequestError(
                "say it as `tool_calls`; `function_call` is not taken here",
                param=f"{path}.function_call",
            )
        if self._turns and self._turns[-1][0] == "user":
            self._check_answered()
        blocks = assistant_blocks(message, path)
        for index, call in enumerate(message.tool_calls or ()):
            blocks.append(self._call(call, f"{path}.tool_calls.{index}"))
        self._extend("assistant", blocks)

    def _call(self, call: ToolCall, path: str) -> ToolUseBlock:
        arguments = call.function.arguments
        try:
            given = _ARGUMENTS.decode(arguments) if arguments.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequestError(
                "the arguments of a call are a JSON object as text",
                param=f"{path}.function.arguments",
            ) from None
        call_id = self._ids.open(call.id)
        self._unanswered[call_id] = path
        return ToolUseBlock(id=call_id, name=call.function.name, input=given)

    def _check_answered(self) -> None:
        for path in self._unanswered.values():
            raise InvalidRequestError(
                "a call needs a `tool` message before the next assistant message, "
                "and before the end",
                param=path,
            )

    def _add_result(self, message: ChatMessage, path: str) -> None:
        call_id = self._ids.answered(message.tool_call_id or "")
        if call_id is None or self._unanswered.pop(call_id, None) is None:
            raise InvalidRequestError(
                f"no open call before it has the id {message.tool_call_id!r}",
                param=f"{path}.tool_call_id",
            )
        result = ToolResultBlock(
            tool_use_id=call_id, content=result_content(message.content, f"{path}.content")
        )
        if self._turns[-1][0] != "user":
            self._turns.append(("user", []))
        blocks = self._turns[-1][1]
        # Results come first in a turn, in the order in which they came.
        results = sum(isinstance(block, ToolResultBlock) for block in blocks)
        blocks.insert(results, result)


def _message(role: str, blocks: list[Block]) -> Message:
    if len(blocks) == 1 and isinstance(blocks[0], TextBlock):
        return Message(role=role, content=blocks[0].text)
    return Message(role=role, content=tuple(blocks))


def _without_trailing_space(blocks: list[Block]) -> list[Block]:
    """Return what the vendor takes as the beginning of an answer."""
    last = blocks[-1]
    if not isinstance(last, TextBlock):
        return blocks
    text = last.text.rstrip()
    return [*blocks[:-1], TextBlock(text=text)] if text else blocks[:-1]
