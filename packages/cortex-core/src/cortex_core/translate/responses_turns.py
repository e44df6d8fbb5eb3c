"""The items of a responses request, as chat messages.

The rules are those of `messages_turns`: one system message, first; users and assistants in turn;
results right after their calls, in the order of the calls.
"""

from collections.abc import Iterable, Sequence

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError
from cortex_core.translate.documents import decoded_text, pdf_text
from cortex_core.translate.responses_tools import CUSTOM_ARGUMENT, flat_name
from cortex_core.translate.sealed import unseal
from cortex_core.translate.target import PdfReader
from cortex_core.wire.openai.chat import (
    AudioPart,
    ChatMessage,
    FunctionCall,
    ImagePart,
    ImageUrl,
    InputAudio,
    Part,
    TextPart,
    ToolCall,
)
from cortex_core.wire.responses.items import (
    CallOutputItem,
    Content,
    ContentPart,
    CustomCallItem,
    FunctionCallItem,
    HostedItem,
    Item,
    MessageItem,
    ReasoningItem,
    ReferenceItem,
)

_SYSTEM = ("system", "developer")

_PDF_START = "data:application/pdf;base64,"


class Turns:
    """Collects messages from items; `finish` gives them.

    Args:
        instructions: the first part of the system message.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.
    """

    def __init__(self, instructions: str | None, read_pdf: PdfReader | None) -> None:
        self.ignored: list[str] = []
        self._read_pdf = read_pdf
        self._system = [instructions] if instructions else []
        self._messages: list[ChatMessage] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        """Of the assistant's turn that is being collected, like the two above."""
        self._open: list[str] = []
        """Ids of calls that wait for their outputs."""
        self._results: dict[str, ChatMessage] = {}
        self._pictures: list[Part] = []
        self._parts: list[Part] = []
        """Of the user's turn that is being collected."""

    def add(self, item: Item, path: str) -> None:
        """Take the next item.

        Raises:
            InvalidRequestError: it does not fit, or has what no engine can read.
        """
        match item:
            case MessageItem(role="assistant"):
                self._end_user()
                self._texts.append(_plain_text(item.content, path))
            case MessageItem():
                self._said(item, path)
            case FunctionCallItem():
                name = flat_name(item.name, item.namespace)
                self._call(item.call_id, name, item.arguments or "{}", path)
            case CustomCallItem():
                arguments = encode_json({CUSTOM_ARGUMENT: item.input}).decode()
                name = flat_name(item.name, item.namespace)
                self._call(item.call_id, name, arguments, path)
            case CallOutputItem():
                self._result(item, path)
            case ReasoningItem():
                self._end_user()
                self._thoughts.append(_thoughts(item))
            case HostedItem(type="compaction"):
                # It stands for all that was said before, so the model would not know any of it.
                raise InvalidRequestError(
                    "compacted items cannot be opened here; send the conversation itself",
                    param=path,
                )
            case HostedItem():
                self.ignored.append(path)
            case ReferenceItem():
                raise InvalidRequestError(f"there is no item {item.id!r} here", param=path)

    def finish(self) -> tuple[ChatMessage, ...]:
        """Return all messages, the system message first.

        Raises:
            InvalidRequestError: a call has no output.
        """
        self._end_assistant()
        self._end_user()
        system = "\n\n".join(text for text in self._system if text)
        head = (ChatMessage(role="system", content=system),) if system else ()
        return (*head, *self._messages)

    def _said(self, item: MessageItem, path: str) -> None:
        is_system = item.role in _SYSTEM
        if not is_system and item.role != "user":
            raise InvalidRequestError(
                f"role {item.role!r} is not one of user, assistant, system and developer",
                param=f"{path}.role",
            )
        is_first = not (self._messages or self._parts or self._texts or self._calls)
        if is_system and is_first:
            self._system.append(_plain_text(item.content, path))
            return
        self._end_assistant()
        if is_system:
            text = _plain_text(item.content, path)
            marked = f"<system-reminder>\n{text}\n</system-reminder>"
            self._parts.append(TextPart(text=marked))
            return
        self._parts += self._content(item.content, path)

    def _call(self, call_id: str, name: str, arguments: str, path: str) -> None:
        self._end_user()
        # Engines that count from 0 in every answer repeat themselves from turn to turn.
        if not call_id or any(call.id == call_id for call in self._calls):
            raise InvalidRequestError("call ids of a turn are unique and not empty", param=path)
        function = FunctionCall(name=name, arguments=arguments)
        self._calls.append(ToolCall(id=call_id, function=function))

    def _result(self, item: CallOutputItem, path: str) -> None:
        self._end_assistant()
        if item.call_id not in self._open or item.call_id in self._results:
            raise InvalidRequestError(
                f"there is no call {item.call_id!r} before its output", param=path
            )
        text = self._result_text(item.output, path)
        self._results[item.call_id] = ChatMessage(
            role="tool", content=text, tool_call_id=item.call_id
        )

    def _result_text(self, output: Content, path: str) -> str:
        if isinstance(output, str):
            return output
        texts: list[str] = []
        for part in self._content(output, f"{path}.output"):
            if isinstance(part, TextPart):
                texts.append(part.text)
            else:
                texts.append("[image]")
                self._pictures.append(part)
        return "\n\n".join(texts)

    def _end_assistant(self) -> None:
        if not (self._texts or self._thoughts or self._calls):
            return
        text = "\n\n".join(text for text in self._texts if text)
        self._messages.append(
            ChatMessage(
                role="assistant",
                content=text or (None if self._calls else ""),
                reasoning="\n".join(t for t in self._thoughts if t) or None,
                tool_calls=tuple(self._calls) or None,
            )
        )
        self._open = [call.id for call in self._calls]
        self._texts, self._thoughts, self._calls = [], [], []

    def _end_user(self) -> None:
        if not (self._open or self._parts):
            return
        missing = [call for call in self._open if call not in self._results]
        if missing:
            raise InvalidRequestError(
                f"no tool output found for function call {missing[0]}", param="input"
            )
        self._messages += [self._results[call] for call in self._open]
        parts = [*self._pictures, *self._parts]
        if parts:
            self._messages.append(ChatMessage(role="user", content=_joined(parts)))
        self._open, self._results, self._pictures, self._parts = [], {}, [], []

    def _content(self, content: Content, path: str) -> list[Part]:
        if isinstance(content, str):
            return [TextPart(text=content)]
        return [self._part(part, f"{path}.content.{n}") for n, part in enumerate(content)]

    def _part(self, part: ContentPart, path: str) -> Part:
        match part.type:
            case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
                return TextPart(text=part.text or "")
            case "refusal":
                return TextPart(text=part.refusal or "")
            case "input_image" if part.image_url is not None:
                return ImagePart(image_url=ImageUrl(url=part.image_url, detail=_detail(part)))
            case "input_audio" if part.input_audio is not None:
                sound = part.input_audio
                audio = InputAudio(data=sound.get("data", ""), format=sound.get("format", ""))
                return AudioPart(input_audio=audio)
            case "input_file" if part.file_data is not None:
                return TextPart(text=self._file(part.file_data, part.filename, path))
            case "input_image" | "input_file":
                raise InvalidRequestError("files are not kept here; send their content", param=path)
            case other:
                raise InvalidRequestError(f"parts of type {other!r} are not taken", param=path)

    def _file(self, data: str, filename: str | None, path: str) -> str:
        payload = data.rpartition(",")[2]
        if _is_pdf(data, filename):
            text = pdf_text(payload, path, self._read_pdf)
        else:
            text = decoded_text(payload, path)
        return text if not filename else f"{filename}\n\n{text}"


def has_pdf(items: Iterable[Item]) -> bool:
    """Tell whether a PDF must be read before `items` can be translated."""
    for item in items:
        if isinstance(item, MessageItem):
            content = item.content
        elif isinstance(item, CallOutputItem):
            content = item.output
        else:
            continue
        if isinstance(content, tuple) and any(map(_has_pdf, content)):
            return True
    return False


def _has_pdf(part: ContentPart) -> bool:
    data = part.file_data
    return part.type == "input_file" and data is not None and _is_pdf(data, part.filename)


def _is_pdf(data: str, filename: str | None) -> bool:
    if data.startswith(_PDF_START):
        return True
    return filename is not None and filename.lower().endswith(".pdf") and data.find(",", 1) < 0


def _detail(part: ContentPart) -> str | None:
    return None if part.detail in (None, "auto") else part.detail


def _plain_text(content: Content, path: str) -> str:
    if isinstance(content, str):
        return content
    texts = [part.text or part.refusal or "" for part in content]
    if any(part.text is None and part.refusal is None for part in content):
        raise InvalidRequestError("this message can only have text", param=f"{path}.content")
    return "\n\n".join(text for text in texts if text)


def _thoughts(item: ReasoningItem) -> str:
    text = "\n".join(part.text for part in item.content or ())
    sealed = unseal(item.encrypted_content) if item.encrypted_content else None
    return text or sealed or "\n".join(part.text for part in item.summary)


def _joined(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    """Return plain text where there is nothing but text, which every template takes."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) < len(parts):
        return tuple(parts)
    return "\n\n".join(text for text in texts if text)
