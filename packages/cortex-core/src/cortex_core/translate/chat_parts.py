"""Content parts of chat messages as Anthropic's content blocks."""

import base64
import binascii
import re

from cortex_core.errors import InvalidRequestError
from cortex_core.translate.messages_turns import IMAGE_TYPES
from cortex_core.wire.anthropic.blocks import (
    Block,
    DocumentBlock,
    ImageBlock,
    Source,
    TextBlock,
)
from cortex_core.wire.openai.chat import (
    ChatMessage,
    Content,
    FileContent,
    FilePart,
    ImagePart,
    Part,
    RefusalPart,
    TextPart,
)

_PDF = "application/pdf"

# RFC 2397, with what browsers add between type and mark.
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*?;base64,(?P<data>.*)", re.DOTALL)


def text_of(content: Content, path: str) -> str:
    """Return the text of a message that holds nothing else; parts are lines.

    Raises:
        InvalidRequestError: there is something else in it.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = [_text(part, f"{path}.{index}") for index, part in enumerate(content)]
    return "\n".join(filter(None, texts))


def user_blocks(content: Content, path: str) -> list[Block]:
    """Return the blocks of a user's message; empty texts are left out, as they must be.

    Raises:
        InvalidRequestError: a part cannot be said there.
    """
    if content is None or isinstance(content, str):
        return [TextBlock(text=content)] if content else []
    blocks = [_block(part, f"{path}.{index}") for index, part in enumerate(content)]
    return [block for block in blocks if not isinstance(block, TextBlock) or block.text]


def assistant_blocks(message: ChatMessage, path: str) -> list[Block]:
    """Return the text blocks of an assistant's message.

    Raises:
        InvalidRequestError: a part is neither text nor refusal.
    """
    content = message.content
    if content is None or isinstance(content, str):
        texts = [content or ""]
    else:
        texts = [_text(part, f"{path}.content.{index}") for index, part in enumerate(content)]
    texts.append(message.refusal or "")
    return [TextBlock(text=text) for text in texts if text]


def result_content(
    content: Content, path: str
) -> str | tuple[TextBlock | ImageBlock | DocumentBlock, ...] | None:
    """Return what a tool gave: text and images, files too; `None` when it gave nothing.

    Raises:
        InvalidRequestError: a part cannot be said there.
    """
    if content is None or isinstance(content, str):
        return content or None
    blocks = [_block(part, f"{path}.{index}") for index, part in enumerate(content)]
    kept = [block for block in blocks if not isinstance(block, TextBlock) or block.text]
    return tuple(kept) or None


def _text(part: Part, path: str) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, RefusalPart):
        return part.refusal
    raise InvalidRequestError("a message of this role holds text alone", param=path)


def _block(part: Part, path: str) -> TextBlock | ImageBlock | DocumentBlock:
    match part:
        case TextPart(text=text):
            return TextBlock(text=text)
        case RefusalPart(refusal=refusal):
            return TextBlock(text=refusal)
        case ImagePart(image_url=image):
            return ImageBlock(source=_image_source(image.url, f"{path}.image_url.url"))
        case FilePart(file=file):
            return _document(file, f"{path}.file")
        case _:
            raise InvalidRequestError("the upstream takes no sound", param=path)


def _image_source(url: str, path: str) -> Source:
    if url.startswith(("https://", "http://")):
        return Source(type="url", url=url)
    match = _DATA_URL.fullmatch(url)
    if match is None or match["type"].lower() not in IMAGE_TYPES:
        raise InvalidRequestError(
            f"an image is an https URL or a base64 data URL of {', '.join(IMAGE_TYPES)}",
            param=path,
        )
    return Source(type="base64", media_type=match["type"].lower(), data=match["data"])


def _document(file: FileContent, path: str) -> DocumentBlock:
    if file.file_data is None:
        raise InvalidRequestError(
            "files are not kept here; send the file itself as `file_data`", param=path
        )
    match = _DATA_URL.fullmatch(file.file_data)
    kind = match["type"].lower() if match else _PDF
    data = match["data"] if match else file.file_data
    if kind == _PDF:
        source = Source(type="base64", media_type=_PDF, data=data)
    elif kind.startswith("text/"):
        source = Source(type="text", media_type="text/plain", data=_decoded(data, path))
    else:
        raise InvalidRequestError(
            f"files of type {kind!r} are not taken; send a PDF or text", param=f"{path}.file_data"
        )
    return DocumentBlock(source=source, title=file.filename)


def _decoded(data: str, path: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            "the file is not base64 of UTF-8 text", param=f"{path}.file_data"
        ) from None
