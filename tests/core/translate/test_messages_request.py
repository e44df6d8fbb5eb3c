"""What the fields of a messages request come to as a chat request, and what no body can do."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cortex_core.codec import encode_json
from cortex_core.errors import InvalidRequestError, RequestError
from cortex_core.harness import Capabilities
from cortex_core.translate.target import Target
from tests.core.translate.messages_asked import (
    ABLE,
    HI,
    LOOK,
    TARGET,
    assistant,
    chat,
    system,
    text,
    translate,
    translate_bytes,
    user,
)

LATER = {**LOOK, "name": "later", "defer_loading": True}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
UNABLE = Target(model="m", capabilities=Capabilities(chat=True))
UNKNOWN = Target(model="m")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def names(**fields: Any) -> list[str]:
    return [tool["function"]["name"] for tool in chat(**fields).get("tools", ())]


def test_fields_have_their_counterparts() -> None:
    """Issue: stop_sequences, metadata.user_id, top_k, temperature."""
    sampling: dict[str, Any] = {"top_k": 5, "top_p": 0.5, "temperature": 0.25}
    done = chat(stop_sequences=["a", "b"], metadata={"user_id": "u"}, stream=True, **sampling)

    assert done == {
        "model": "engine/m",
        "messages": [HI],
        "max_completion_tokens": 10,
        "stop": ["a", "b"],
        "user": "u",
        **sampling,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "reasoning_effort": "none",
    }


@pytest.mark.parametrize(
    ("thinking", "target", "effort", "budget"),
    [
        (None, None, "none", None),
        ({"type": "disabled"}, None, "none", None),
        ({"type": "enabled", "budget_tokens": 1024}, None, "medium", 1024),
        ({"type": "adaptive"}, None, "medium", None),
        ({"type": "adaptive"}, UNABLE, None, None),
        ({"type": "disabled"}, UNABLE, None, None),
        (None, UNABLE, None, None),
        # Nobody knows what a stranger's server takes.
        (None, UNKNOWN, None, None),
        ({"type": "disabled"}, UNKNOWN, None, None),
        ({"type": "enabled", "budget_tokens": 1024}, UNKNOWN, "medium", None),
    ],
)
def test_thinking_is_what_the_model_can_do_of_it(
    thinking: Any, target: Target | None, effort: str | None, budget: int | None
) -> None:
    """Issue: `thinking` enabled / disabled / adaptive mapped to what the model can do."""
    fields: dict[str, Any] = {} if thinking is None else {"thinking": thinking}
    done = chat(target or TARGET, max_tokens=2000, **fields)

    assert done.get("reasoning_effort") == effort
    assert done.get("thinking_token_budget") == budget


def test_effort_says_how_much_and_disabled_wins_over_it() -> None:
    """Protocol 2.6."""
    high: dict[str, Any] = {"output_config": {"effort": "high"}}

    assert chat(thinking={"type": "adaptive"}, **high)["reasoning_effort"] == "high"
    assert chat(thinking={"type": "disabled"}, **high)["reasoning_effort"] == "none"


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_format_is_a_schema_that_the_engine_enforces(name: str) -> None:
    """Issue: structured output."""
    form = {"type": "json_schema", "schema": SCHEMA}
    fields: dict[str, Any] = {name: {"format": form} if name == "output_config" else form}

    form = chat(**fields)["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == SCHEMA
    assert form["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("choice", "told", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any"}, "required", None),
        ({"type": "none"}, "none", None),
        (
            {"type": "tool", "name": "look"},
            {"type": "function", "function": {"name": "look"}},
            None,
        ),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
    ],
)
def test_choices_of_tools(choice: Any, told: Any, parallel: bool | None) -> None:
    """Issue: auto / any / tool / none, disable_parallel_tool_use."""
    done = chat(tools=[LOOK], tool_choice=choice)

    assert done["tool_choice"] == told
    assert done.get("parallel_tool_calls") == parallel


def test_tools_keep_their_order_and_their_schema() -> None:
    """Issue: deterministic tool order, on which prefix caches depend."""
    tools = [{**LOOK, "name": name, "input_schema": SCHEMA} for name in "cab"]
    done = chat(tools=tools)["tools"]

    assert [tool["function"]["name"] for tool in done] == ["c", "a", "b"]
    assert all(tool["function"]["parameters"] == SCHEMA for tool in done)


def test_tools_of_the_hosted_service_are_left_out_and_named() -> None:
    """Protocol 2.5: and a request with nothing else is refused, as Claude Code's own search is."""
    done = translate(tools=[SEARCH, LOOK])
    with pytest.raises(InvalidRequestError, match="web_search_20250305") as refusal:
        translate(tools=[SEARCH])

    assert done.ignored == ("tools.0",)
    assert [tool.function.name for tool in done.chat.tools or ()] == ["look"]
    assert refusal.value.param == "tools.0.type"


@pytest.mark.parametrize(
    ("kind", "member", "told"),
    [
        ("bash_20250124", "command", ""),
        ("text_editor_20250728", "old_str", ""),
        ("memory_20250818", "old_path", ""),
        ("computer_20251124", "coordinate", "1024 x 768"),
    ],
)
def test_tools_that_the_vendor_defines_and_the_caller_runs_have_their_input(
    kind: str, member: str, told: str
) -> None:
    """Protocol 2.5: they come without a schema, which models here were never taught."""
    tool = {"type": kind, "name": "t", "display_width_px": 1024, "display_height_px": 768}
    function = chat(tools=[tool])["tools"][0]["function"]

    assert member in function["parameters"]["properties"]
    assert told in function["description"]


def test_deferred_tools_come_in_when_they_are_found() -> None:
    """Protocol 2.5: left out of the prompt until a reference names them."""
    found = [{"type": "tool_reference", "tool_name": "later"}]
    called = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": found}
    searched = {"type": "tool_search_tool_result", "tool_use_id": "s"}
    by_search = {**searched, "content": {"tool_references": found}}

    assert names(tools=[LATER, LOOK]) == ["look"]
    said = [HI, assistant(called), user(result)]
    assert names(tools=[LATER, LOOK], messages=said) == ["look", "later"]
    said = [HI, assistant(by_search), user("on")]
    assert names(tools=[LATER, LOOK], messages=said) == ["look", "later"]


def test_tools_are_those_at_the_end_of_the_conversation() -> None:
    """Anthropic's beta `mid-conversation-tool-changes`."""

    def change(kind: str, **tool: Any) -> dict[str, Any]:
        return {"type": kind, "tool": tool}

    gone = change("tool_removal", type="tool_reference", name="look")
    back = change("tool_addition", type="tool_reference", name="look")
    new = change("tool_addition", type="tool_definition", definition={**LOOK, "name": "new"})
    hosted = change("tool_addition", type="tool_definition", definition=SEARCH)

    assert names(tools=[LOOK, {**LOOK, "name": "b"}], messages=[HI, system(gone)]) == ["b"]
    assert names(tools=[LOOK], messages=[HI, system(gone, back)]) == ["look"]
    done = translate(tools=[LOOK], messages=[HI, system(new, hosted)])
    assert [tool.function.name for tool in done.chat.tools or ()] == ["look", "new"]
    assert done.ignored == ("messages.1.content.1.tool.definition",)
    assert names(messages=[HI, system(hosted)]) == []
    with pytest.raises(InvalidRequestError) as refusal:
        translate(tools=[LOOK], messages=[HI, system(change("tool_removal", type="x"))])
    assert refusal.value.param == "messages.1.content.0.tool.name"


def test_an_answer_that_is_begun_is_gone_on_with() -> None:
    """Issue: assistant prefill; with tools that may be called, as the hosted service has it."""
    said = [HI, assistant("The answer is")]
    done = chat(messages=said, tools=[LOOK])

    assert done["continue_final_message"] is True
    assert done["add_generation_prompt"] is False
    refused: list[dict[str, Any]] = [
        {"tools": [LOOK], "tool_choice": {"type": "any"}},
        {"thinking": {"type": "adaptive"}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ]
    for more in refused:
        with pytest.raises(InvalidRequestError) as refusal:
            translate(messages=said, **more)
        assert refusal.value.param == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop_sequences": ["a", " "]}, "stop_sequences.1"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"tools": [LOOK], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
        ({"tools": [LOOK, LOOK]}, "tools.1.name"),
        ({"tools": [{**LOOK, "name": ""}]}, "tools.0.name"),
        ({"tools": [{"type": "computer_toolset_20260801"}]}, "tools.0.type"),
        ({"thinking": {"type": "x"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "x"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "x"}}}, "output_config.format"),
    ],
)
def test_what_no_engine_can_be_told_is_refused_with_its_field(
    fields: dict[str, Any], param: str
) -> None:
    """Anthropic's ranges."""
    with pytest.raises(InvalidRequestError) as refusal:
        translate(**fields)

    assert refusal.value.param == param


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=2, max_size=6))
def test_no_word_of_a_prompt_is_changed(instructions: list[str], said: list[str]) -> None:
    """Issue: no prompt is ever changed by us beyond what the dialect demands."""
    turns = [
        user(*map(text, said)) if place % 2 == 0 else assistant(*map(text, said))
        for place in range(3)
    ]
    done = chat(messages=turns, system=[text(one) for one in instructions])["messages"]

    joined = "\n\n".join(said)
    assert done[0] == {"role": "system", "content": "\n\n".join(instructions)}
    assert [message["content"] for message in done[1:]] == [joined] * 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def some(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


ids = st.sampled_from(["a", "b", ""])
tool_names = st.sampled_from(["f", "g", ""])
short = st.text(max_size=8)
sources = some(
    {"type": st.sampled_from(["base64", "url", "text", "content", "file", "x"])},
    media_type=st.sampled_from(["image/png", "application/pdf", "text/plain"]),
    data=st.sampled_from(["", "AAAA", "!!", "/w=="]),
    url=short,
    content=short | st.lists(some({"type": st.just("text"), "text": short}), max_size=2),
)
definitions = some(
    {},
    name=tool_names,
    type=st.sampled_from(["custom", "bash_20250124", "web_search_20250305", "zz"]),
    input_schema=st.dictionaries(short, json_values, max_size=2),
    defer_loading=st.booleans(),
    description=short,
)
inner_parts = st.one_of(
    some({"type": st.just("text"), "text": short}),
    some({"type": st.just("image"), "source": sources}),
    some({"type": st.just("document"), "source": sources}, title=short),
    some({"type": st.just("tool_reference"), "tool_name": tool_names}),
)
parts = st.one_of(
    inner_parts,
    some(
        {"type": st.just("tool_use"), "id": ids, "name": tool_names},
        input=st.dictionaries(short, json_values, max_size=2),
    ),
    some(
        {"type": st.just("tool_result"), "tool_use_id": ids},
        content=short | st.lists(inner_parts, max_size=3) | st.none(),
        is_error=st.booleans(),
    ),
    some({"type": st.just("thinking"), "thinking": short}, signature=short),
    some(
        {
            "type": st.sampled_from(["tool_addition", "tool_removal"]),
            "tool": some({"type": short}, name=tool_names, definition=definitions),
        }
    ),
    some(
        {"type": st.sampled_from(["web_search_tool_result", "tool_search_tool_result"])},
        tool_use_id=ids,
        content=json_values,
    ),
)
roles = st.sampled_from(["user", "assistant", "user", "assistant", "system", "x"])
bodies = some(
    {
        "model": short,
        "messages": st.lists(
            some({"role": roles, "content": short | st.lists(parts, max_size=4)}), max_size=5
        ),
    },
    max_tokens=st.integers(-1, 5000),
    system=short | json_values,
    tools=st.lists(definitions, max_size=3),
    tool_choice=some({"type": st.sampled_from(["auto", "any", "none", "tool"])}, name=tool_names),
    thinking=some({"type": st.sampled_from(["enabled", "adaptive"])}, budget_tokens=st.integers()),
    output_config=json_values,
    mcp_servers=json_values,
    context_management=json_values,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(bodies, st.sampled_from([ABLE, Capabilities(), None]))
def test_any_body_comes_out_as_a_legal_request_or_is_refused(
    body: dict[str, Any], known: Capabilities | None
) -> None:
    """Issue: fuzzed bodies never give a 500."""
    try:
        done = translate(Target(model="m", capabilities=known), **body)
    except RequestError:
        return
    check_legal(msgspec.json.decode(encode_json(done.chat)))


def check_legal(done: dict[str, Any]) -> None:
    """Check what every chat template and every engine needs."""
    waiting: list[str] = []
    for place, message in enumerate(done["messages"]):
        assert message["role"] != "system" or place == 0
        if message["role"] == "tool":
            assert waiting.pop(0) == message["tool_call_id"]
            continue
        assert not waiting
        calls = message.get("tool_calls", [])
        waiting = [call["id"] for call in calls]
        assert all(isinstance(json.loads(c["function"]["arguments"]), dict) for c in calls)
    assert not waiting
    offered = [tool["function"]["name"] for tool in done.get("tools", [])]
    assert len(offered) == len(set(offered))
    assert "" not in offered


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_depth_is_bounded(depth: int) -> None:
    """Ours: a nested body must not end the process, nor give a 500."""
    nested: Any = b'{"a":' * depth + b"1" + b"}" * depth
    call = b'{"type":"tool_use","id":"t","name":"f","input":' + nested + b"}"
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"hi"},'
        b'{"role":"assistant","content":[' + call + b"]},"
        b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"t"}]}]}'
    )
    try:
        done = translate_bytes(body)
    except RequestError:
        assert depth > 100
        return
    assert done.chat.messages[1].tool_calls
