"""The conversation of a messages request, as chat messages.

Chat templates are many and strict: one system message, first; users and assistants in turn; the
results of calls right after them, in the order of the calls. So messages of one role in a row
are one turn, and instructions in mid-conversation become a marked part of the user's turn.
"""

from collections.abc import Iterable, Sequence

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.translate.documents import document_text, search_result_text
from cortex_core.translate.sealed import unseal
from cortex_core.translate.target import PdfReader
from cortex_core.wire.anthropic.blocks import (
    Block,
    CompactionBlock,
    ContainerUploadBlock,
    DocumentBlock,
    ImageBlock,
    SearchResultBlock,
    ServerToolUseBlock,
    Source,
    TextBlock,
    ThinkingBlock,
    ToolAdditionBlock,
    ToolReferenceBlock,
    ToolRemovalBlock,
    ToolResultBlock,
    ToolSearchResultBlock,
    ToolUseBlock,
)
from cortex_core.wire.anthropic.request import MessagesRequest
from cortex_core.wire.openai.chat import (
    ChatMessage,
    FunctionCall,
    ImagePart,
    ImageUrl,
    Part,
    TextPart,
    ToolCall,
)

ATTRIBUTION = "x-anthropic-billing-header"
"""Start of a system block that differs with every request and would void every prefix cache."""

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

_FOLLOWED = (ToolAdditionBlock, ToolReferenceBlock, ToolRemovalBlock, ToolSearchResultBlock)
"""What changes the tools, and is nothing that anybody says."""

_ERROR = "error:"
"""Start of a result that says by itself that it is a failure."""

_encode = msgspec.json.Encoder().encode


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A block with its place in the request, for errors."""

    path: str
    block: Block


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one side says before the other one does."""

    role: str
    blocks: tuple[Placed, ...]


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """The messages for the engine."""

    messages: tuple[ChatMessage, ...]
    ignored: tuple[str, ...] = ()


def conversation_of(request: MessagesRequest, read_pdf: PdfReader | None) -> Conversation:
    """Return the whole conversation, the system message first.

    Raises:
        InvalidRequestError: it breaks a rule of the dialect, or has what no engine can read.
    """
    messages: list[ChatMessage] = []
    system = system_text(request)
    if system:
        messages.append(ChatMessage(role="system", content=system))
    turns = _turns(request)
    if not turns:
        raise InvalidRequestError("there must be a message at least", param="messages")
    if turns[0].role != "user":
        raise InvalidRequestError("the first message must be of the user", param="messages.0.role")
    builder = _Builder(read_pdf)
    for turn in turns:
        messages += builder.turn(turn)
    builder.check_answered()
    return Conversation(messages=tuple(messages), ignored=tuple(builder.ignored))


def system_text(request: MessagesRequest) -> str:
    """Return the top-level system prompt as one text; empty when there is none."""
    if request.system is None or isinstance(request.system, str):
        return _without_attribution(request.system or "")
    return _joined([_without_attribution(block.text) for block in request.system])


def _without_attribution(text: str) -> str:
    """Return an instruction without the line that only a bill is made from."""
    return text.partition("\n")[2] if text.startswith(ATTRIBUTION) else text


def _turns(request: MessagesRequest) -> list[Turn]:
    turns: list[tuple[str, list[Placed]]] = []
    for number, message in enumerate(request.messages):
        role = message.role
        if role not in ("user", "assistant", "system"):
            raise InvalidRequestError(
                f"role {role!r} is not one of user, assistant and system",
                param=f"messages.{number}.role",
            )
        content = message.content
        blocks = (TextBlock(text=content),) if isinstance(content, str) else content
        placed = [
            Placed(path=f"messages.{number}.content.{place}", block=block)
            for place, block in enumerate(blocks)
        ]
        if role == "system":
            role, placed = "user", _reminders(placed)
            if not placed:
                continue
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(placed)
        else:
            turns.append((role, placed))
    return [Turn(role=role, blocks=tuple(blocks)) for role, blocks in turns]


def _reminders(placed: Iterable[Placed]) -> list[Placed]:
    """Mark the instructions of the system that stand within the conversation.

    Changes of the tools are followed elsewhere, and are nothing that anybody says.
    """
    said: list[Placed] = []
    for one in placed:
        match one.block:
            case ToolAdditionBlock() | ToolRemovalBlock():
                pass
            case TextBlock(text=text):
                if told := _without_attribution(text):
                    marked = f"<system-reminder>\n{told}\n</system-reminder>"
                    said.append(Placed(path=one.path, block=TextBlock(text=marked)))
            case _:
                said.append(one)
    return said


class _Builder:
    """Turns one turn after the other into messages, and pairs calls with their results."""

    def __init__(self, read_pdf: PdfReader | None) -> None:
        self.ignored: list[str] = []
        self._read_pdf = read_pdf
        self._calls: list[str] = []
        """Ids of the calls that the next turn must answer."""
        self._seen: set[str] = set()

    def turn(self, turn: Turn) -> Iterable[ChatMessage]:
        """Return the messages of a turn."""
        if turn.role == "assistant":
            return [self._assistant(turn)]
        return self._user(turn)

    def check_answered(self) -> None:
        """Refuse calls that nobody has answered.

        Raises:
            InvalidRequestError: there are some.
        """
        if self._calls:
            raise InvalidRequestError(
                f"tool_use {', '.join(self._calls)} has no tool_result in the message after it",
                param="messages",
            )

    def _assistant(self, turn: Turn) -> ChatMessage:
        self.check_answered()
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[ToolCall] = []
        for placed in turn.blocks:
            match placed.block:
                case TextBlock(text=text):
                    texts.append(text)
                case ThinkingBlock() as block:
                    thoughts.append(block.thinking or unseal(block.signature) or "")
                case ToolUseBlock() as block:
                    calls.append(self._call(block, placed.path))
                case CompactionBlock(content=summary):
                    texts.append(summary or "")
                case ServerToolUseBlock(name=name, input=given):
                    texts.append(f"[{name} was called with {_encode(given).decode()}]")
                case _ if isinstance(placed.block, _FOLLOWED):
                    pass
                case ImageBlock() | DocumentBlock() | ToolResultBlock() | SearchResultBlock():
                    raise InvalidRequestError(
                        "an assistant's message has text, thoughts and calls", param=placed.path
                    )
                case _:
                    self.ignored.append(placed.path)
        return ChatMessage(
            role="assistant",
            content=_joined(texts) or (None if calls else ""),
            reasoning="\n".join(thought for thought in thoughts if thought) or None,
            tool_calls=tuple(calls) or None,
        )

    def _call(self, block: ToolUseBlock, path: str) -> ToolCall:
        if not block.id or block.id in self._seen:
            raise InvalidRequestError("tool_use ids are unique and not empty", param=f"{path}.id")
        self._seen.add(block.id)
        self._calls.append(block.id)
        arguments = _encode(block.input).decode()
        return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))

    def _user(self, turn: Turn) -> list[ChatMessage]:
        results: dict[str, ChatMessage] = {}
        pictures: list[Part] = []
        parts: list[Part] = []
        for placed in turn.blocks:
            block = placed.block
            if isinstance(block, ToolResultBlock):
                if block.tool_use_id not in self._calls or block.tool_use_id in results:
                    raise InvalidRequestError(
                        f"tool_result for {block.tool_use_id!r} has no tool_use before it",
                        param=f"{placed.path}.tool_use_id",
                    )
                results[block.tool_use_id] = self._result(block, placed.path, pictures)
            else:
                parts += self._part(placed)
        # Clients send results as they come; templates pair them with the calls by their order.
        messages = [results[call] for call in self._calls if call in results]
        self._calls = [call for call in self._calls if call not in results]
        self.check_answered()
        # Templates want results side by side, and text in them alone.
        parts = pictures + parts
        if parts or not messages:
            messages.append(ChatMessage(role="user", content=_content(parts)))
        return messages

    def _part(self, placed: Placed) -> list[Part]:
        match placed.block:
            case TextBlock(text=text):
                return [TextPart(text=text)] if text else []
            case ImageBlock(source=source):
                return [image_part(source, placed.path)]
            case DocumentBlock() as block:
                return [TextPart(text=document_text(block, placed.path, self._read_pdf))]
            case SearchResultBlock() as block:
                return [TextPart(text=search_result_text(block))]
            case ContainerUploadBlock():
                raise InvalidRequestError("there are no containers here", param=placed.path)
            case ToolUseBlock() | ThinkingBlock() | CompactionBlock():
                raise InvalidRequestError(
                    "a user's message has text, images, documents and results", param=placed.path
                )
            case _ if isinstance(placed.block, _FOLLOWED):
                return []
            case _:
                self.ignored.append(placed.path)
                return []

    def _result(self, block: ToolResultBlock, path: str, pictures: list[Part]) -> ChatMessage:
        content = block.content
        if content is None or isinstance(content, str):
            text = content or ""
        else:
            text = self._result_text(content, path, pictures)
        if block.is_error and text[: len(_ERROR)].lower() != _ERROR:
            text = f"Error: {text}"
        return ChatMessage(role="tool", content=text, tool_call_id=block.tool_use_id)

    def _result_text(self, parts: Sequence[Block], path: str, pictures: list[Part]) -> str:
        texts: list[str] = []
        for place, part in enumerate(parts):
            where = f"{path}.content.{place}"
            match part:
                case TextBlock(text=text):
                    texts.append(text)
                case ImageBlock(source=source):
                    texts.append("[image]")
                    pictures.append(image_part(source, where))
                case DocumentBlock():
                    texts.append(document_text(part, where, self._read_pdf))
                case SearchResultBlock():
                    texts.append(search_result_text(part))
                case _:
                    pass
        return _joined(texts)


def image_part(source: Source, path: str) -> ImagePart:
    """Return an image as chat has it.

    Raises:
        InvalidRequestError: it is of a kind or a format that is not taken.
    """
    if source.type == "url" and source.url:
        return ImagePart(image_url=ImageUrl(url=source.url))
    if source.type == "base64" and source.data:
        if source.media_type not in IMAGE_TYPES:
            raise InvalidRequestError(
                f"{source.media_type!r} is not one of {', '.join(IMAGE_TYPES)}",
                param=f"{path}.source.media_type",
            )
        return ImagePart(image_url=ImageUrl(url=f"data:{source.media_type};base64,{source.data}"))
    raise InvalidRequestError(
        f"images with a source of type {source.type!r} are not taken; use base64 or url",
        param=f"{path}.source",
    )


def _content(parts: list[Part]) -> str | tuple[Part, ...]:
    """Return plain text where there is nothing but text, which every template takes."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return _joined(texts) if len(texts) == len(parts) else tuple(parts)


def _joined(texts: list[str]) -> str:
    return "\n\n".join(text for text in texts if text)
