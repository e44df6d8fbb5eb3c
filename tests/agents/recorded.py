"""What agents ask, kept in files: the shape of each request, with filler for the vendors' words.

Set `AGENTS_RECORD` to have the sessions of real agents write the files anew.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.agents.scripted_model import TASK

FOLDER = Path(__file__).parent / "requests"
RECORD = "AGENTS_RECORD"

WORKSPACE = "/workspace"
"""Stands for the folder in which a session ran."""

KEPT_TEXT = 48
"""Longest text without a blank that is kept: names, types, models, headers' values."""

SECRET = ("authorization", "x-api-key", "cookie")
UNTOLD = ("host", "content-length", "connection", "user-agent", "traceparent")
IDENTIFIER = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4,}){2,}|(?<=ses_)\w{20,}")
FILLER = "filler"
WORDS = ("description", "title")
"""Members that have a vendor's words, however short."""

Json = dict[str, Any]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request of an agent."""

    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    body: Any = None


class Recorder:
    """Notes every request that reaches the gateway.

    Args:
        app: what serves it.
    """

    def __init__(self, app: ASGIApp, asked: list[Asked]) -> None:
        self._app = app
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()

        async def listening() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        try:
            await self._app(scope, listening, send)
        finally:
            if scope["type"] == "http":
                self._asked.append(_asked(scope, bytes(body)))


def _asked(scope: Scope, body: bytes) -> Asked:
    query = scope["query_string"].decode()
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    return Asked(
        method=scope["method"],
        target=scope["path"] + (f"?{query}" if query else ""),
        headers={name: value for name, value in headers.items() if name not in UNTOLD},
        body=json.loads(body) if body else None,
    )


def keep(agent: str, asked: list[Asked], workspace: Path) -> None:
    """Write what an agent asked, if files are to be written anew."""
    if not os.environ.get(RECORD):
        return
    kept = [_without_words(one, str(workspace)) for one in asked]
    encoded = msgspec.json.format(msgspec.json.encode(kept), indent=1)
    (FOLDER / f"{agent}.json").write_bytes(encoded + b"\n")


def load(agent: str) -> list[Asked]:
    """Return what an agent asked, as long as it was."""
    data = msgspec.json.decode((FOLDER / f"{agent}.json").read_bytes(), type=list[Asked])
    return [msgspec.structs.replace(one, body=_filled(one.body)) for one in data]


def agents() -> list[str]:
    """Return the names of the agents that were recorded."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def _without_words(asked: Asked, workspace: str) -> Asked:
    headers = {
        name: "k" if name in SECRET else _short(value, workspace)
        for name, value in asked.headers.items()
    }
    return msgspec.structs.replace(asked, headers=headers, body=_shape(asked.body, workspace))


def _short(text: str, workspace: str) -> str:
    """Mask what is of one session alone: identifiers, and the folder it ran in."""
    text = text.replace(workspace, WORKSPACE)
    return re.sub(IDENTIFIER, lambda found: re.sub(r"\w", "0", found[0]), text)


def _shape(value: Any, workspace: str, key: str = "") -> Any:
    match value:
        case dict():
            return {name: _shape(member, workspace, name) for name, member in value.items()}
        case list():
            return [_shape(member, workspace, key) for member in value]
        case str() if key == "arguments" or _is_ours(value):
            return _short(value, workspace)
        case str() if key in WORDS or len(value) > KEPT_TEXT or " " in value:
            task = TASK.search(value)
            head = {"task": _short(task[0], workspace)} if task else {}
            return {FILLER: len(value), **head}
        case str():
            return _short(value, workspace)
        case _:
            return value


def _is_ours(text: str) -> bool:
    """Whether it is the prompt of the session, and nothing around it."""
    return TASK.fullmatch(text.strip('"')) is not None


def _filled(value: Any) -> Any:
    match value:
        case {"filler": int(length)}:
            head = value.get("task", "")
            return (head + " word" * (length // 5 + 1))[: max(length, len(head))]
        case dict():
            return {key: _filled(member) for key, member in value.items()}
        case list():
            return [_filled(member) for member in value]
        case _:
            return value
