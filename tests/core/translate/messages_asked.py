"""Requests for messages, on the way that a gateway takes them."""

from typing import Any

import msgspec

from cortex_core.codec import decode_request, encode_json
from cortex_core.harness import Capabilities
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.target import PdfReader, Target, ToChat
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER

ABLE = Capabilities(chat=True, tools=True, reasoning=True, vision=True)
TARGET = Target(model="engine/m", capabilities=ABLE)

LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
HI = {"role": "user", "content": "hi"}


def translate(target: Target = TARGET, read_pdf: PdfReader | None = None, **fields: Any) -> ToChat:
    body = {"model": "m", "max_tokens": 10, "messages": [HI], **fields}
    return translate_bytes(encode_json(body), target, read_pdf)


def translate_bytes(
    body: bytes, target: Target = TARGET, read_pdf: PdfReader | None = None
) -> ToChat:
    request = decode_request(body, MESSAGES_REQUEST_DECODER)
    return messages_to_chat(request, target, read_pdf=read_pdf)


def chat(
    target: Target = TARGET, read_pdf: PdfReader | None = None, **fields: Any
) -> dict[str, Any]:
    """Return the members of the chat request."""
    done: dict[str, Any] = msgspec.json.decode(
        encode_json(translate(target, read_pdf, **fields).chat)
    )
    return done


def messages(*said: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """Return the chat messages that a conversation comes to."""
    done: list[dict[str, Any]] = chat(messages=list(said), **fields)["messages"]
    return done


def user(*content: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": list(content) if content[1:] or isinstance(content[0], dict) else content[0],
    }


def assistant(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "assistant"}


def system(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "system"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def called(call_id: str, name: str = "look", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


def gave(call_id: str, content: Any = "done", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}
