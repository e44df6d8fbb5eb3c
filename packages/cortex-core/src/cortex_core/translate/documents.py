"""Documents within messages, as the text that a model can read."""

import base64
import binascii
from collections.abc import Iterable

from cortex_core.errors import InvalidRequestError
from cortex_core.translate.target import PdfReader
from cortex_core.wire.anthropic.blocks import (
    Block,
    DocumentBlock,
    SearchResultBlock,
    Source,
    TextBlock,
    ToolResultBlock,
)
from cortex_core.wire.anthropic.request import MessagesRequest

PDF = "application/pdf"


def has_pdf(request: MessagesRequest) -> bool:
    """Tell whether a PDF must be read before `request` can be translated."""
    # Plain loops, for there may be tens of thousands of blocks.
    for message in request.messages:
        content = message.content
        if isinstance(content, tuple) and _has_pdf(content):
            return True
    return False


def document_text(block: DocumentBlock, path: str, read_pdf: PdfReader | None) -> str:
    """Return a document as text, under its title and context.

    Args:
        block: the document.
        path: where it is in the request, for errors.
        read_pdf: gets the text out of a PDF; `None` when nothing is installed that can.

    Raises:
        InvalidRequestError: it is of a kind that has no text here.
    """
    head = [text for text in (block.title, block.context) if text]
    return "\n\n".join((*head, _content(block, path, read_pdf)))


def search_result_text(block: SearchResultBlock) -> str:
    """Return a search result as text, under its title and source."""
    return "\n\n".join((block.title, block.source, *(part.text for part in block.content)))


def pdf_text(data: str, path: str, read_pdf: PdfReader | None) -> str:
    """Return the text of a PDF that came as base64.

    Raises:
        InvalidRequestError: it cannot be read here, or has no text layer.
    """
    if read_pdf is None:
        raise InvalidRequestError(
            "PDFs are read when the extra cortex-gateway[pdf] is installed; send text instead",
            param=path,
        )
    try:
        text = read_pdf(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"the PDF cannot be read: {error}", param=path) from None
    if not text.strip():
        raise InvalidRequestError("the PDF has no text layer; send its pages as images", param=path)
    return text


def decoded_text(data: str, path: str) -> str:
    """Return text that came as base64.

    Raises:
        InvalidRequestError: it is no base64, or no text.
    """
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidRequestError("the document is no text in UTF-8", param=path) from None


def _has_pdf(blocks: Iterable[Block]) -> bool:
    for block in blocks:
        if type(block) is ToolResultBlock:
            content = block.content
            if isinstance(content, tuple) and _has_pdf(content):
                return True
        elif type(block) is DocumentBlock and _is_pdf(block.source):
            return True
    return False


def _is_pdf(source: Source) -> bool:
    return source.type == "base64" and source.data is not None and source.media_type == PDF


def _content(block: DocumentBlock, path: str, read_pdf: PdfReader | None) -> str:
    source = block.source
    match source.type:
        case "text" if source.data is not None:
            return source.data
        case "base64" if source.data is not None:
            if _is_pdf(source):
                return pdf_text(source.data, f"{path}.source.data", read_pdf)
            return decoded_text(source.data, f"{path}.source.data")
        case "content" if isinstance(source.content, str):
            return source.content
        case "content" if source.content is not None:
            texts = [part.text for part in source.content if isinstance(part, TextBlock)]
            if len(texts) != len(source.content):
                raise InvalidRequestError(
                    "images within documents are not taken; send them as image blocks",
                    param=f"{path}.source.content",
                )
            return "\n\n".join(texts)
    raise InvalidRequestError(
        f"documents with a source of type {source.type!r} are not taken; "
        "send the text, or a PDF as base64",
        param=f"{path}.source",
    )
