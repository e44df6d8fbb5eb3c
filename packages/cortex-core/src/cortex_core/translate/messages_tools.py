"""The tools of a messages request, as functions.

Source: Anthropic API reference, "Tool use", for the inputs of the tools that the vendor defines
and the caller runs (read November 2026). Their descriptions here are our own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.wire.anthropic.blocks import (
    Block,
    ToolAdditionBlock,
    ToolChange,
    ToolReferenceBlock,
    ToolRemovalBlock,
    ToolResultBlock,
    ToolSearchResultBlock,
)
from cortex_core.wire.anthropic.request import MessagesRequest
from cortex_core.wire.anthropic.tools import ToolChoice, ToolDefinition
from cortex_core.wire.openai.chat import (
    FunctionDefinition,
    NamedFunction,
    NamedToolChoice,
    Tool,
)

_SERVER_TOOLS = re.compile(
    r"(web_search|web_fetch|code_execution|tool_search_tool|mcp_toolset|advisor)(_|$)"
)
"""Types of tools that the hosted service runs itself."""

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_POINT = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}


def _schema(required: Iterable[str], **properties: Mapping[str, object]) -> Mapping[str, object]:
    return {"type": "object", "properties": properties, "required": list(required)}


_CALLER_TOOLS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "bash": (
        "Runs a command in a shell that lives on between calls; `restart` starts a new one.",
        _schema((), command=_TEXT, restart={"type": "boolean"}),
    ),
    "text_editor": (
        "Views, creates and edits text files.",
        _schema(
            ("command", "path"),
            command={
                "type": "string",
                "enum": ["view", "create", "str_replace", "insert", "undo_edit"],
            },
            path=_TEXT,
            file_text=_TEXT,
            old_str=_TEXT,
            new_str=_TEXT,
            insert_line=_NUMBER,
            insert_text=_TEXT,
            view_range={"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
        ),
    ),
    "computer": (
        "Looks at a screen and works its mouse and keyboard.",
        _schema(
            ("action",),
            action=_TEXT,
            coordinate=_POINT,
            start_coordinate=_POINT,
            text=_TEXT,
            scroll_direction={"type": "string", "enum": ["up", "down", "left", "right"]},
            scroll_amount=_NUMBER,
            duration={"type": "number"},
            region={"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4},
        ),
    ),
    "memory": (
        "Views, creates and edits files of a memory that outlives the conversation.",
        _schema(
            ("command",),
            command={
                "type": "string",
                "enum": ["view", "create", "str_replace", "insert", "delete", "rename"],
            },
            path=_TEXT,
            view_range={"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
            file_text=_TEXT,
            old_str=_TEXT,
            new_str=_TEXT,
            insert_line=_NUMBER,
            insert_text=_TEXT,
            old_path=_TEXT,
            new_path=_TEXT,
        ),
    ),
}
"""What callers run themselves, by the type without its date: description and input."""


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What a request offers to the model."""

    tools: tuple[Tool, ...] = ()
    """In the order of the request, on which prefix caches depend."""
    choice: str | NamedToolChoice | None = None
    parallel: bool | None = None
    ignored: tuple[str, ...] = ()


def tools_of(request: MessagesRequest) -> Tools:
    """Return the tools of a request as functions.

    Raises:
        InvalidRequestError: nothing is left of them, or the choice cannot be made.
    """
    kept: dict[str, Tool] = {}
    deferred: dict[str, Tool] = {}
    ignored: list[str] = []
    for position, tool in enumerate(request.tools or ()):
        path = f"tools.{position}"
        if _SERVER_TOOLS.match(tool.type or ""):
            ignored.append(path)
            continue
        function = _function(tool, path)
        if tool.name in kept or tool.name in deferred:
            raise InvalidRequestError(
                f"the tool {tool.name!r} is there twice; names are unique", param=f"{path}.name"
            )
        (deferred if tool.defer_loading else kept)[tool.name] = function
    has_hosted = bool(ignored)
    _change(request, kept, deferred, ignored)
    if has_hosted and not kept and not deferred:
        kind = (request.tools or ())[0].type
        raise InvalidRequestError(f"tool type {kind} is not supported", param="tools.0.type")
    choice, parallel = _choice(request.tool_choice, kept)
    return Tools(
        tools=tuple(kept.values()), choice=choice, parallel=parallel, ignored=tuple(ignored)
    )


def _function(tool: ToolDefinition, path: str) -> Tool:
    description, schema = tool.description, tool.input_schema
    if tool.type not in (None, "custom"):
        kind = re.sub(r"_\d{8}$", "", tool.type or "")
        if kind not in _CALLER_TOOLS and schema is None:
            raise InvalidRequestError(
                f"tool type {tool.type} is not supported", param=f"{path}.type"
            )
        known_description, known_schema = _CALLER_TOOLS.get(kind, (None, None))
        description, schema = description or known_description, schema or known_schema
        description = " ".join(text for text in (description, *_told(tool)) if text)
    if not tool.name:
        raise InvalidRequestError("a tool needs a name", param=f"{path}.name")
    return Tool(
        function=FunctionDefinition(
            name=tool.name,
            description=description,
            # Claude Code sends tools without one; engines want an object.
            parameters=schema or {"type": "object", "properties": {}},
            strict=tool.strict,
        )
    )


def _told(tool: ToolDefinition) -> Iterator[str]:
    """Yield what a tool of the vendor's tells the model beside its input."""
    if tool.display_width_px and tool.display_height_px:
        yield f"The screen is {tool.display_width_px} x {tool.display_height_px} pixels."
    if tool.max_characters:
        yield f"A view shows {tool.max_characters} characters at most."


def _change(
    request: MessagesRequest,
    kept: dict[str, Tool],
    deferred: dict[str, Tool],
    ignored: list[str],
) -> None:
    """Follow what the conversation says of its tools, in place; the list at its end counts."""
    for path, block in _blocks(request):
        match block:
            case ToolReferenceBlock(tool_name=name):
                _bring_in(name, kept, deferred)
            case ToolSearchResultBlock():
                for name in _found(block):
                    _bring_in(name, kept, deferred)
            case ToolAdditionBlock(tool=change) if change.definition is not None:
                added = change.definition
                if _SERVER_TOOLS.match(added.type or ""):
                    ignored.append(f"{path}.tool.definition")
                else:
                    kept[added.name] = _function(added, f"{path}.tool.definition")
            case ToolAdditionBlock(tool=change):
                _bring_in(_name(change, path), kept, deferred)
            case ToolRemovalBlock(tool=change):
                gone = kept.pop(_name(change, path), None)
                if gone is not None:
                    deferred[gone.function.name] = gone
            case _:
                pass


def _name(change: ToolChange, path: str) -> str:
    if not change.name:
        raise InvalidRequestError("a change of tools names a tool", param=f"{path}.tool.name")
    return change.name


def _blocks(request: MessagesRequest) -> Iterator[tuple[str, Block]]:
    """Yield every block with its path, those within results as well."""
    for number, message in enumerate(request.messages):
        if isinstance(message.content, str):
            continue
        for place, block in enumerate(message.content):
            path = f"messages.{number}.content.{place}"
            yield path, block
            if isinstance(block, ToolResultBlock) and isinstance(block.content, tuple):
                for part in block.content:
                    yield path, part


def _bring_in(name: str, kept: dict[str, Tool], deferred: dict[str, Tool]) -> None:
    tool = deferred.pop(name, None)
    if tool is not None:
        kept[name] = tool


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    tool_references: tuple[ToolReferenceBlock, ...] = ()


_FOUND = msgspec.json.Decoder(_Found)


def _found(block: ToolSearchResultBlock) -> list[str]:
    """Return the names that a tool search found; none when it failed."""
    try:
        return [found.tool_name for found in _FOUND.decode(block.content).tool_references]
    except msgspec.DecodeError:
        return []


def _choice(
    choice: ToolChoice | None, tools: Mapping[str, Tool]
) -> tuple[str | NamedToolChoice | None, bool | None]:
    if choice is None:
        return None, None
    if not tools and choice.type != "none":
        raise InvalidRequestError("tool_choice needs tools", param="tool_choice")
    parallel = False if choice.disable_parallel_tool_use else None
    match choice.type:
        case "auto":
            return "auto", parallel
        case "any":
            return "required", parallel
        case "none":
            return ("none" if tools else None), None
        case "tool" if choice.name in tools:
            return NamedToolChoice(function=NamedFunction(name=choice.name or "")), parallel
        case "tool":
            raise InvalidRequestError(f"there is no tool {choice.name!r}", param="tool_choice.name")
        case other:
            raise InvalidRequestError(
                f"tool_choice {other!r} is not one of auto, any, tool and none",
                param="tool_choice.type",
            )
