"""Which of vLLM's serving classes answers which route of a model."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cortex_core.harness import Route
from neuron.engines.vllm_counting import count_request, counter
from neuron.engines.vllm_options import NO_PARSER, ServingOptions

Answer = Callable[[Any], Awaitable[Any]]


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """How one route is answered."""

    request: Any
    """A pydantic `TypeAdapter` of the route's request class."""
    answer: Answer
    render: Answer | None = None
    """Reads a request without answering it; `None` where only the engine can tell."""


def serving_models(llm: Any, model: str) -> Any:
    """Return vLLM's `OpenAIServingModels`: the names that a loaded engine answers to.

    Args:
        llm: vLLM's `AsyncLLM`.
        model: id that answers carry as `model`.
    """
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    paths = _model_paths(model, llm.model_config)
    return OpenAIServingModels(engine_client=llm, base_model_paths=paths)


def engine_handlers(
    llm: Any,
    models: Any,
    options: ServingOptions,
    reasoning_parser: str | None,
    tasks: tuple[str, ...],
) -> dict[Route, Handler]:
    """Return the routes that a loaded engine answers.

    Args:
        llm: vLLM's `AsyncLLM`.
        models: see `serving_models`.
        options: how to serve; parsers are settled already.
        reasoning_parser: name of the reasoning parser, or `None`.
        tasks: what the engine supports, as vLLM names it.
    """
    reading = _reading(options, reasoning_parser)
    renderer = _online_renderer(llm.model_config, llm.renderer, reading)
    handlers = _token_handlers(models, renderer, reading)
    if "generate" in tasks:
        handlers |= _generating_handlers(llm, models, options, renderer, reading)
    return handlers | _pooling_handlers(llm, models, options, reading, tasks)


def engineless_handlers(
    model_config: Any,
    renderer: Any,
    model: str,
    options: ServingOptions,
    reasoning_parser: str | None,
) -> dict[Route, Handler]:
    """Return the routes that a model's files alone answer, as its engine would.

    Args:
        model_config: vLLM's `ModelConfig`.
        renderer: vLLM's renderer of that model.
        model: id that answers carry as `model`.
        options: how to serve; parsers are settled already.
        reasoning_parser: name of the reasoning parser, or `None`.
    """
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry

    models = OpenAIModelRegistry(model_config, _model_paths(model, model_config))
    reading = _reading(options, reasoning_parser)
    online = _online_renderer(model_config, renderer, reading)
    handlers = _token_handlers(models, online, reading)
    if model_config.runner_type == "generate":
        handlers[Route.COUNT_TOKENS] = _count_handler(online.render_chat)
    return handlers


def _model_paths(model: str, model_config: Any) -> list[Any]:
    from vllm.entrypoints.openai.models.protocol import BaseModelPath

    return [BaseModelPath(name=model, model_path=model_config.model)]


def _reading(options: ServingOptions, reasoning_parser: str | None) -> dict[str, Any]:
    """Return how conversations are rendered and answers read, as several classes take it."""
    from vllm.renderers.chat_utils import load_chat_template

    tool_parser = options.tool_call_parser
    tool_parser = None if tool_parser == NO_PARSER else tool_parser
    return {
        "request_logger": None,
        "chat_template": load_chat_template(options.chat_template),
        "chat_template_content_format": options.chat_template_content_format,
        "trust_request_chat_template": options.trust_request_chat_template,
        "default_chat_template_kwargs": options.default_chat_template_kwargs,
        "enable_auto_tools": tool_parser is not None,
        "exclude_tools_when_tool_choice_none": options.exclude_tools_when_tool_choice_none,
        "tool_parser": tool_parser,
        "tool_strict_level": options.tool_strict_level,
        "reasoning_parser": reasoning_parser or "",
    }


def _online_renderer(model_config: Any, renderer: Any, reading: dict[str, Any]) -> Any:
    from vllm.renderers.online_renderer import OnlineRenderer

    return OnlineRenderer(model_config=model_config, renderer=renderer, **reading)


_TEMPLATING = (
    "request_logger",
    "chat_template",
    "chat_template_content_format",
    "trust_request_chat_template",
    "default_chat_template_kwargs",
)
"""What of `_reading` goes for those who read no answers."""


def _token_handlers(models: Any, renderer: Any, reading: dict[str, Any]) -> dict[Route, Handler]:
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization

    templating = {name: reading[name] for name in _TEMPLATING}
    tokens = ServingTokenization(models, renderer, **templating)
    return {
        Route.TOKENIZE: _handler(TokenizeRequest, lambda r: tokens.create_tokenize(r, None)),
        Route.DETOKENIZE: _handler(DetokenizeRequest, lambda r: tokens.create_detokenize(r, None)),
    }


def _generating_handlers(
    llm: Any, models: Any, options: ServingOptions, renderer: Any, reading: dict[str, Any]
) -> dict[Route, Handler]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest
    from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens

    telling = {
        "return_tokens_as_token_ids": options.return_tokens_as_token_ids,
        "enable_prompt_tokens_details": True,
    }
    answering = telling | {"enable_force_include_usage": options.enable_force_include_usage}
    chat = OpenAIServingChat(
        llm, models, options.response_role, online_renderer=renderer, **reading, **answering
    )
    completions = OpenAIServingCompletion(
        llm, models, online_renderer=renderer, request_logger=None, **answering
    )
    tokens = ServingTokens(llm, models, renderer, request_logger=None, **telling)
    return {
        Route.CHAT_COMPLETIONS: _handler(
            ChatCompletionRequest, chat.create_chat_completion, chat.render_chat_request
        ),
        Route.COUNT_TOKENS: _count_handler(chat.render_chat_request),
        Route.COMPLETIONS: _handler(
            CompletionRequest,
            completions.create_completion,
            completions.render_completion_request,
        ),
        Route.GENERATE: _handler(GenerateRequest, tokens.serve_tokens),
    }


def _count_handler(render: Answer) -> Handler:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMValidationError

    return _handler(
        count_request(ChatCompletionRequest),
        counter(render, ChatCompletionRequest, VLLMValidationError),
    )


def _pooling_handlers(
    llm: Any,
    models: Any,
    options: ServingOptions,
    reading: dict[str, Any],
    tasks: tuple[str, ...],
) -> dict[Route, Handler]:
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.embed.serving import ServingEmbedding
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
    from vllm.entrypoints.pooling.scoring.serving import ServingScores
    from vllm.entrypoints.pooling.utils import enable_scoring_api
    from vllm.renderers.chat_utils import ChatTemplateConfig

    templating = ChatTemplateConfig(
        chat_template=reading["chat_template"],
        chat_template_content_format=options.chat_template_content_format,
        trust_request_chat_template=options.trust_request_chat_template,
    )
    shared = {"request_logger": None, "chat_template_config": templating}
    handlers = {}
    if llm.model_config.get_pooling_task(tasks) == "embed":
        handlers[Route.EMBEDDINGS] = _handler(
            EmbeddingRequest, ServingEmbedding(llm, models, **shared)
        )
    if enable_scoring_api(tasks, llm.model_config):
        scores = ServingScores(llm, models, supported_tasks=tasks, **shared)
        handlers[Route.SCORE] = _handler(ScoreRequest, scores)
        handlers[Route.RERANK] = _handler(RerankRequest, scores)
    return handlers


def _handler(request: Any, answer: Answer, render: Answer | None = None) -> Handler:
    import pydantic

    return Handler(request=pydantic.TypeAdapter(request), answer=answer, render=render)
