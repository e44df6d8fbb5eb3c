"""Counting the tokens of a conversation: vLLM renders it as if it were to be answered."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from cortex_core.codec import encode_json
from cortex_core.harness import EngineAnswer
from neuron.engines.counts import TokenCount

_COUNTED_CONTEXTS = 4
"""Prompts of up to so many contexts are counted, since clients count to learn by how much they
are over. There is an end to it because vLLM's tokenizer has one thread, which requests that are
to be answered wait for too."""


def count_request(chat_request: Any) -> Any:
    """Return the request class of a count: a chat request whose prompt may be too long.

    Args:
        chat_request: vLLM's `ChatCompletionRequest`.
    """

    class CountRequest(chat_request):  # type: ignore[misc]
        """Reads what a chat request does; no answer, so nothing about it matters."""

        def build_tok_params(self, model_config: Any) -> Any:
            if self.truncate_prompt_tokens is not None:
                # What is cut to fit is counted as it is cut.
                return super().build_tok_params(model_config)
            self.max_tokens = self.max_completion_tokens = None
            strict = super().build_tok_params(model_config)
            limit = strict.max_total_tokens * _COUNTED_CONTEXTS
            return dataclasses.replace(strict, max_total_tokens=limit)

    return CountRequest


def counter(
    render: Callable[[Any], Awaitable[Any]], chat_request: Any, too_long: type[Exception]
) -> Callable[[Any], Awaitable[Any]]:
    """Return what answers a count.

    Args:
        render: vLLM's own rendering of a chat request, which is what is counted.
        chat_request: vLLM's `ChatCompletionRequest`.
        too_long: what vLLM raises, among other reasons, for a prompt that is too long.
    """

    async def count(request: Any) -> Any:
        try:
            rendered = await render(request)
        except too_long:
            # Asked for an answer, it is refused for the same reason, with the model's own limit.
            plain = chat_request.model_validate(request.model_dump(exclude_unset=True))
            rendered = await render(plain)
        if not isinstance(rendered, tuple):
            # vLLM's `ErrorResponse`, for whoever reads its answers.
            return rendered
        _, prompts = rendered
        tokens = sum(len(prompt.get("prompt_token_ids", ())) for prompt in prompts)
        answer = TokenCount(model=request.model, prompt_tokens=tokens)
        return EngineAnswer(body=encode_json(answer))

    return count
