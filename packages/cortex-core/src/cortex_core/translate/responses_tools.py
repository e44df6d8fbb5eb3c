"""The tools of a responses request, as functions, and back.

Source: OpenAI API reference, "Create a model response", `tools` (read November 2026); namespaces
as Codex sends them. A function of a namespace is offered as `<namespace>__<name>`, and a custom
tool as a function whose one argument is the text that the tool gets.
"""

from collections.abc import Iterator, Mapping

import msgspec

from cortex_core.errors import InvalidRequestError
from cortex_core.wire.openai.chat import (
    FunctionDefinition,
    NamedFunction,
    NamedToolChoice,
    Tool,
)
from cortex_core.wire.responses.request import (
    NamedTool,
    ResponsesRequest,
    ResponseTool,
    ToolChoiceObject,
)

CUSTOM_ARGUMENT = "input"
"""The one argument of a custom tool."""

_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}}


class ToolName(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller calls a function that the model knows by one name."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What a request offers to the model."""

    tools: tuple[Tool, ...] = ()
    """In the order of the request, on which prefix caches depend."""
    choice: str | NamedToolChoice | None = None
    ignored: tuple[str, ...] = ()


def flat_name(name: str, namespace: str | None) -> str:
    """Return the name by which the model knows a function."""
    return name if namespace is None else f"{namespace}__{name}"


def tool_names(request: ResponsesRequest) -> dict[str, ToolName]:
    """Return the caller's names by those that the model knows."""
    return {
        flat_name(tool.name, namespace): ToolName(
            name=tool.name, namespace=namespace, is_custom=tool.type == "custom"
        )
        for _, tool, namespace in _callers_tools(request)
    }


def tools_of(request: ResponsesRequest) -> Tools:
    """Return the tools of a request as functions.

    Raises:
        InvalidRequestError: a name is missing or there twice, or the choice cannot be made.
    """
    tools: dict[str, Tool] = {}
    for path, tool, namespace in _callers_tools(request):
        if not tool.name:
            raise InvalidRequestError("a tool needs a name", param=f"{path}.name")
        name = flat_name(tool.name, namespace)
        if name in tools:
            raise InvalidRequestError(
                f"the tool {name!r} is there twice; names are unique", param=f"{path}.name"
            )
        tools[name] = _function(tool, name)
    hosted = tuple(
        f"tools.{number}"
        for number, tool in enumerate(request.tools or ())
        if tool.type not in ("function", "custom", "namespace")
    )
    choice, kept = _choice(request.tool_choice, tools)
    return Tools(tools=tuple(kept.values()), choice=choice, ignored=hosted)


def _callers_tools(request: ResponsesRequest) -> Iterator[tuple[str, ResponseTool, str | None]]:
    """Yield the tools that the caller runs, with path and namespace."""
    for number, tool in enumerate(request.tools or ()):
        path = f"tools.{number}"
        if tool.type in ("function", "custom"):
            yield path, tool, None
        elif tool.type == "namespace":
            for inner, one in enumerate(tool.tools or ()):
                if one.type in ("function", "custom"):
                    yield f"{path}.tools.{inner}", one, tool.name


def _function(tool: ResponseTool, name: str) -> Tool:
    if tool.type == "custom":
        return Tool(
            function=FunctionDefinition(
                name=name,
                description=_custom_description(tool),
                parameters={
                    "type": "object",
                    "properties": {CUSTOM_ARGUMENT: {"type": "string"}},
                    "required": [CUSTOM_ARGUMENT],
                },
            )
        )
    return Tool(
        function=FunctionDefinition(
            name=name,
            description=tool.description,
            parameters=tool.parameters or _NO_PARAMETERS,
            strict=tool.strict,
        )
    )


def _custom_description(tool: ResponseTool) -> str | None:
    """Return what a custom tool says of itself, its grammar included, which nothing enforces."""
    grammar = (tool.format or {}).get("definition")
    if not isinstance(grammar, str):
        return tool.description
    return f"{tool.description or ''}\n\nThe input has this form:\n{grammar}".strip()


def _choice(
    choice: str | ToolChoiceObject | None, tools: dict[str, Tool]
) -> tuple[str | NamedToolChoice | None, dict[str, Tool]]:
    if choice is None or choice in ("auto", "none"):
        return (choice if tools else None), tools
    if choice == "required":
        if not tools:
            raise InvalidRequestError("tool_choice needs tools", param="tool_choice")
        return "required", tools
    if isinstance(choice, str):
        raise InvalidRequestError(
            f"tool_choice {choice!r} is not one of auto, required and none", param="tool_choice"
        )
    if choice.type == "allowed_tools":
        return _allowed(choice.mode or "auto", choice.tools or (), tools)
    if choice.type in ("function", "custom") and choice.name in tools:
        named = NamedToolChoice(function=NamedFunction(name=choice.name))
        return named, tools
    raise InvalidRequestError(
        f"there is no tool {choice.name or choice.type!r} to choose", param="tool_choice"
    )


def _allowed(
    mode: str, allowed: tuple[NamedTool, ...], tools: dict[str, Tool]
) -> tuple[str | NamedToolChoice | None, dict[str, Tool]]:
    names = {flat_name(tool.name, tool.namespace) for tool in allowed}
    kept = {name: tool for name, tool in tools.items() if name in names}
    if mode not in ("auto", "required") or (mode == "required" and not kept):
        raise InvalidRequestError("none of the allowed tools is there", param="tool_choice")
    return (mode if kept else None), kept
