"""vLLM's own serving classes over one engine, without its HTTP server.

What a caller gets is what `vllm serve` would answer: the same request classes check the body,
the same classes answer it, and a stream's bytes are theirs. Only errors are cortex's.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Set
from typing import Any

import msgspec

from cortex_core.errors import EngineError, InvalidJsonError, InvalidRequestError, RequestError
from cortex_core.harness import EngineAnswer, Route
from cortex_core.ids import RequestId
from neuron.engines import vllm_failures
from neuron.engines.vllm_counting import count_request, counter
from neuron.engines.vllm_options import NO_PARSER, ServingOptions
from neuron.engines.vllm_requests import check_request

Answer = Callable[[Any], Awaitable[Any]]

_ERROR_EVENT = 'data: {"error"'
"""Start of the event that vLLM sends when a stream breaks; it goes on with `[DONE]` as if all
were well."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """How one route is answered."""

    request: Any
    """A pydantic `TypeAdapter` of the route's request class."""
    answer: Answer


class Stack:
    """The routes that one engine answers.

    Args:
        llm: vLLM's `AsyncLLM`.
        model: id that answers carry as `model`.
        options: how to serve; parsers are settled already.
        reasoning_parser: name of the reasoning parser, or `None`.
        tasks: what the engine supports, as vLLM names it.
        modalities: media that the model takes beside text, as vLLM names them.
    """

    def __init__(
        self,
        llm: Any,
        model: str,
        options: ServingOptions,
        reasoning_parser: str | None,
        tasks: tuple[str, ...],
        modalities: Set[str],
    ) -> None:
        self.modalities = modalities
        # The engine is spoken to through the serving classes alone, but for its state.
        self._llm = llm
        self._handlers = _build_handlers(llm, model, options, reasoning_parser, tasks)

    @property
    def routes(self) -> frozenset[Route]:
        """Routes that the model answers."""
        return frozenset(self._handlers)

    async def answer(
        self, route: Route, body: bytes, request_id: RequestId
    ) -> EngineAnswer | AsyncGenerator[str, None]:
        """Answer one request.

        Returns:
            The whole answer, or vLLM's own stream of events, not begun.

        Raises:
            RequestError: as the caller shall see it.
        """
        handler = self._handlers.get(route)
        if handler is None:
            raise InvalidRequestError(
                f"this model does not answer {route}; it answers "
                f"{', '.join(sorted(self._handlers))}",
                param="model",
            )
        with translated_errors(route):
            request = _parse(handler.request, body, self.modalities)
            if hasattr(request, "request_id"):
                request.request_id = request_id
            result = await handler.answer(request)
        # vLLM turns a cancellation into an answer, "Client disconnected".
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        return _to_answer(result, route)


class EventStream(AsyncIterator[bytes]):
    """A stream of vLLM's events as bytes, its first event already there.

    Args:
        first: the first event.
        events: vLLM's own generator, begun.
        route: where it was asked.
        on_end: called once, when the stream has ended or was closed.
        cut: returns why streams end before their time, or `None`.
    """

    def __init__(
        self,
        first: str,
        events: AsyncGenerator[str, None],
        route: Route,
        on_end: Callable[[], None],
        cut: Callable[[], str | None],
    ) -> None:
        self._first: str | None = first
        self._events = events
        self._route = route
        self._on_end: Callable[[], None] | None = on_end
        self._cut = cut

    async def __anext__(self) -> bytes:
        """Return the next event, ready to send.

        Raises:
            RequestError: the stream broke.
        """
        if self._first is not None:
            event, self._first = self._first, None
        else:
            try:
                with translated_errors(self._route):
                    event = await anext(self._events)
            except BaseException:
                self._end()
                raise
        # An engine that is shut down ends its streams with `finish_reason: abort`.
        cut = self._cut()
        if cut is not None:
            await self.aclose()
            raise EngineError(cut)
        if event.startswith(_ERROR_EVENT):
            await self.aclose()
            raise event_error(event, self._route)
        return event.encode()

    async def aclose(self) -> None:
        """End the stream; the engine drops the request if it still runs."""
        try:
            await self._events.aclose()
        finally:
            self._end()

    def _end(self) -> None:
        if self._on_end is not None:
            self._on_end()
            self._on_end = None


def is_error(event: str) -> bool:
    """Return whether an event says that the stream broke."""
    return event.startswith(_ERROR_EVENT)


def event_error(event: str, route: Route) -> RequestError:
    """Return the error that a stream's error event stands for."""
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    payload = event.removeprefix("data: ").strip()
    return _error_of(ErrorResponse.model_validate_json(payload), route)


@contextlib.contextmanager
def translated_errors(route: Route) -> Iterator[None]:
    """Turn what vLLM's serving classes raise into cortex's errors."""
    import jinja2
    import pydantic
    from vllm.entrypoints.serve import create_error_response
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    # The same classes as vLLM's own exception handlers; jinja2's are those of chat templates.
    foreseen = (ValueError, TypeError, OverflowError, NotImplementedError, jinja2.TemplateError)
    try:
        yield
    except EngineDeadError:
        raise EngineError("the engine died while it worked on the request") from None
    except EngineGenerateError as error:
        raise EngineError("the engine failed while it worked on the request") from error
    except pydantic.ValidationError as error:
        # Also where the body is used: parts of messages are checked when they are read.
        raise vllm_failures.validation_error(error.errors(include_url=False)) from None
    except (VLLMError, *foreseen) as error:
        raise _error_of(create_error_response(error), route) from error


def _build_handlers(
    llm: Any,
    model: str,
    options: ServingOptions,
    reasoning_parser: str | None,
    tasks: tuple[str, ...],
) -> dict[Route, Handler]:
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers.chat_utils import load_chat_template

    paths = [BaseModelPath(name=model, model_path=llm.model_config.model)]
    models = OpenAIServingModels(engine_client=llm, base_model_paths=paths)
    template = load_chat_template(options.chat_template)
    handlers = _token_handlers(llm, models, options, template, reasoning_parser, tasks)
    return handlers | _pooling_handlers(llm, models, options, template, tasks)


def _token_handlers(
    llm: Any,
    models: Any,
    options: ServingOptions,
    template: str | None,
    reasoning_parser: str | None,
    tasks: tuple[str, ...],
) -> dict[Route, Handler]:
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
    from vllm.renderers.online_renderer import OnlineRenderer

    templating = {
        "request_logger": None,
        "chat_template": template,
        "chat_template_content_format": options.chat_template_content_format,
        "trust_request_chat_template": options.trust_request_chat_template,
        "default_chat_template_kwargs": options.default_chat_template_kwargs,
    }
    reading = templating | _parsing(options, reasoning_parser)
    renderer = OnlineRenderer(model_config=llm.model_config, renderer=llm.renderer, **reading)
    tokens = ServingTokenization(models, renderer, **templating)
    handlers = {
        Route.TOKENIZE: _handler(TokenizeRequest, lambda r: tokens.create_tokenize(r, None)),
        Route.DETOKENIZE: _handler(DetokenizeRequest, lambda r: tokens.create_detokenize(r, None)),
    }
    if "generate" in tasks:
        handlers |= _generating_handlers(llm, models, options, renderer, reading)
    return handlers


def _generating_handlers(
    llm: Any, models: Any, options: ServingOptions, renderer: Any, reading: dict[str, object]
) -> dict[Route, Handler]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.exceptions import VLLMValidationError

    answering = {
        "return_tokens_as_token_ids": options.return_tokens_as_token_ids,
        "enable_prompt_tokens_details": True,
        "enable_force_include_usage": options.enable_force_include_usage,
    }
    chat = OpenAIServingChat(
        llm, models, options.response_role, online_renderer=renderer, **reading, **answering
    )
    completions = OpenAIServingCompletion(
        llm, models, online_renderer=renderer, request_logger=None, **answering
    )
    return {
        Route.CHAT_COMPLETIONS: _handler(ChatCompletionRequest, chat.create_chat_completion),
        Route.COUNT_TOKENS: _handler(
            count_request(ChatCompletionRequest),
            counter(chat, ChatCompletionRequest, VLLMValidationError),
        ),
        Route.COMPLETIONS: _handler(CompletionRequest, completions.create_completion),
    }


def _parsing(options: ServingOptions, reasoning_parser: str | None) -> dict[str, object]:
    tool_parser = options.tool_call_parser
    tool_parser = None if tool_parser == NO_PARSER else tool_parser
    return {
        "enable_auto_tools": tool_parser is not None,
        "exclude_tools_when_tool_choice_none": options.exclude_tools_when_tool_choice_none,
        "tool_parser": tool_parser,
        "tool_strict_level": options.tool_strict_level,
        "reasoning_parser": reasoning_parser or "",
    }


def _pooling_handlers(
    llm: Any,
    models: Any,
    options: ServingOptions,
    template: str | None,
    tasks: tuple[str, ...],
) -> dict[Route, Handler]:
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.embed.serving import ServingEmbedding
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
    from vllm.entrypoints.pooling.scoring.serving import ServingScores
    from vllm.entrypoints.pooling.utils import enable_scoring_api
    from vllm.renderers.chat_utils import ChatTemplateConfig

    templating = ChatTemplateConfig(
        chat_template=template,
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


def _handler(request: Any, answer: Answer) -> Handler:
    import pydantic

    return Handler(request=pydantic.TypeAdapter(request), answer=answer)


def _parse(request: Any, body: bytes, modalities: Set[str]) -> Any:
    import pydantic_core

    try:
        value = pydantic_core.from_json(body)
    except ValueError as error:
        raise InvalidJsonError(f"the body is not valid JSON: {error}") from None
    check_request(value, modalities)
    # In two steps, as vLLM's server does it: pydantic is stricter with JSON that it reads itself.
    return request.validate_python(value)


def _to_answer(result: Any, route: Route) -> EngineAnswer | AsyncGenerator[str, None]:
    import pydantic
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    if isinstance(result, ErrorResponse):
        raise _error_of(result, route)
    if isinstance(result, pydantic.BaseModel):
        return EngineAnswer(body=result.model_dump_json().encode())
    if isinstance(result, AsyncGenerator):
        return result
    body = getattr(result, "body", None)
    if not isinstance(body, bytes):
        # Raw bytes come with their shape in a header, which an answer here has no place for.
        raise InvalidRequestError(
            "this encoding is not offered; use 'float' or 'base64'", param="encoding_format"
        )
    return EngineAnswer(body=body)


def _error_of(response: Any, route: Route) -> RequestError:
    error = response.error
    return vllm_failures.request_error(error.code, error.message, error.param, route)
