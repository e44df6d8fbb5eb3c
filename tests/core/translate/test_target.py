"""How long an answer may be, whatever dialect asks for how much."""

from typing import Any

import msgspec
import pytest

from cortex_core.codec import encode_json
from cortex_core.harness import Capabilities, Limit
from cortex_core.translate.chat_normal import normalise, within
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.responses_request import responses_to_chat
from cortex_core.translate.target import Target, answer_tokens
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER
from cortex_core.wire.responses.items import MessageItem
from cortex_core.wire.responses.request import ResponsesRequest

HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("wanted", "limit", "given"),
    [
        (None, Limit(context=10, output=5), None),
        (7, Limit(), 7),
        (7, Limit(context=10), 7),
        (32_000, Limit(context=10), 10),
        (32_000, Limit(output=5), 5),
        (32_000, Limit(context=10, output=5), 5),
        (0, Limit(context=10), 0),
    ],
)
def test_answer_is_as_long_as_is_wanted_and_can_ever_come(
    wanted: int | None, limit: Limit, given: int | None
) -> None:
    """vLLM's: more than the context has room for is a 400, and agents ask for 32000."""
    assert answer_tokens(wanted, limit) == given


@pytest.mark.parametrize("context", [4096, None])
def test_every_dialect_asks_the_engine_for_what_it_can_give(context: int | None) -> None:
    """Ours: Claude Code, Codex and opencode do not know how small a model is."""
    target = Target(model="m", limit=Limit(context=context))
    body = encode_json({"model": "m", "max_tokens": 32_000, "messages": HI})
    messages = messages_to_chat(MESSAGES_REQUEST_DECODER.decode(body), target).chat
    asked = ResponsesRequest(model="m", max_output_tokens=32_000)
    responses = responses_to_chat(asked, [MessageItem(role="user", content="hi")], target).chat
    chat = msgspec.json.decode(within(normalise(body), target.limit))

    given = context or 32_000
    assert messages.max_completion_tokens == given
    assert responses.max_completion_tokens == given
    assert chat == {"model": "m", "max_tokens": given, "messages": HI}


@pytest.mark.parametrize(
    ("context", "wanted", "given"),
    [
        (4096, 31_999, 4095),
        (4096, 4096, 4095),
        (4096, 4095, 4095),
        (4096, 1024, 1024),
        (512, 1024, 511),
        (None, 31_999, 31_999),
    ],
)
def test_thoughts_leave_room_for_an_answer_of_those_tokens_that_can_come(
    context: int | None, wanted: int, given: int
) -> None:
    """Protocol 2.6: the budget is less than the tokens, and so it stays when these are fewer."""
    known = Capabilities(reasoning=True)
    target = Target(model="m", capabilities=known, limit=Limit(context=context))
    thinking = {"type": "enabled", "budget_tokens": wanted}
    body = {"model": "m", "max_tokens": 32_000, "messages": HI, "thinking": thinking}
    done = messages_to_chat(MESSAGES_REQUEST_DECODER.decode(encode_json(body)), target).chat

    assert done.thinking_token_budget == given


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 4096},
        {"max_completion_tokens": 1},
        {"max_tokens": -1},
        {"max_tokens": "many"},
        {"max_completion_tokens": 1.5},
        {"max_tokens": None},
    ],
)
def test_a_chat_body_that_asks_for_no_more_stays_byte_for_byte(fields: dict[str, Any]) -> None:
    """Ours: and what is no number is for the engine to refuse."""
    body = encode_json({"model": "m", "messages": HI, **fields})

    assert within(normalise(body), Limit(context=4096)) is body
