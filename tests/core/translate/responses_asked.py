"""Requests for responses, on the way that a gateway takes them."""

from typing import Any

import msgspec

from cortex_core.codec import decode_request, encode_json
from cortex_core.translate.responses_request import responses_to_chat
from cortex_core.translate.target import PdfReader, Target, ToChat
from cortex_core.wire.responses.items import decode_items
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER

TARGET = Target(model="engine/m")

LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object"},
}
PATCH = {"type": "custom", "name": "patch", "description": "Patches."}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "tools": [{"type": "function", "name": "open"}, {"type": "function", "name": "close"}],
}
SEARCH = {"type": "web_search", "external_web_access": True}


def translate(
    body: dict[str, Any], target: Target = TARGET, read_pdf: PdfReader | None = None
) -> ToChat:
    request = decode_request(
        encode_json({"model": "m", "input": "hi", **body}), RESPONSES_REQUEST_DECODER
    )
    given = request.input
    if isinstance(given, str):
        items = decode_items([encode_json({"role": "user", "content": given})])
    else:
        items = decode_items(given or ())
    return responses_to_chat(request, items, target, read_pdf=read_pdf)


def chat(body: dict[str, Any], target: Target = TARGET) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(encode_json(translate(body, target).chat))
    return fields


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(call_id: str, name: str = "look", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def gave(call_id: str, output: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}
