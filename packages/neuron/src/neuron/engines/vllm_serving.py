"""vLLM's own serving classes over one engine, without its HTTP server.

What a caller gets is what `vllm serve` would answer: the same request classes check the body,
the same classes answer it, and a stream's bytes are theirs. Only errors are cortex's.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Set
from typing import Any

from cortex_core.errors import EngineError, InvalidJsonError, InvalidRequestError, RequestError
from cortex_core.harness import FILES_ROUTES, EngineAnswer, Route
from cortex_core.ids import RequestId
from neuron.engines import vllm_failures
from neuron.engines.media import MediaPolicy
from neuron.engines.vllm_handlers import Handler
from neuron.engines.vllm_requests import check_options, check_request, rank

_ERROR_EVENT = 'data: {"error"'
"""Start of the event that vLLM sends when a stream breaks; it goes on with `[DONE]` as if all
were well."""


class Stack:
    """The routes that one model answers.

    Args:
        handlers: of those routes.
        modalities: media that the model takes beside text, as vLLM names them.
        media: what may be brought along of those.
        has_priorities: whether the engine schedules by them.
        models: vLLM's own list of the names that the engine answers to; `None` without an engine.
    """

    def __init__(
        self,
        handlers: Mapping[Route, Handler],
        modalities: Set[str],
        media: MediaPolicy,
        *,
        has_priorities: bool = False,
        models: Any = None,
    ) -> None:
        self._media = media
        self.models = models
        self.modalities = modalities
        self._has_priorities = has_priorities
        self._handlers = handlers

    @property
    def routes(self) -> frozenset[Route]:
        """Routes that the model answers."""
        return frozenset(self._handlers)

    async def answer(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer | AsyncGenerator[str, None]:
        """Answer one request; see `cortex_core.harness.Engine.serve`.

        Returns:
            The whole answer, or vLLM's own stream of events, not begun.

        Raises:
            RequestError: as the caller shall see it.
        """
        handler = self._handler(route)
        with translated_errors(route):
            request = await self._parse(route, handler, body)
            if hasattr(request, "request_id"):
                request.request_id = request_id
            if self._has_priorities:
                rank(request, urgency)
            result = await handler.answer(request)
        # vLLM turns a cancellation into an answer, "Client disconnected".
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        return _to_answer(result, route)

    async def check(self, route: Route, body: bytes) -> None:
        """Read one request, its prompt whole, and leave it at that.

        Raises:
            RequestError: it would be refused.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        handler = self._handler(route)
        with translated_errors(route):
            request = await self._parse(route, handler, body)
            result = None if handler.render is None else await handler.render(request)
        if isinstance(result, ErrorResponse):
            raise _error_of(result, route)

    async def _parse(self, route: Route, handler: Handler, body: bytes) -> Any:
        value = _read(body)
        check_request(route, value, self.modalities)
        if route not in FILES_ROUTES:
            check_options(value, has_priorities=self._has_priorities)
        await self._media.settle(route, value)
        # In two steps, as vLLM's server does it: pydantic is stricter with JSON that it reads
        # itself.
        return handler.request.validate_python(value)

    def _handler(self, route: Route) -> Handler:
        handler = self._handlers.get(route)
        if handler is None:
            raise InvalidRequestError(
                f"this model does not answer {route}; it answers "
                f"{', '.join(sorted(self._handlers))}",
                param="model",
            )
        return handler


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
                event = await anext(self._events)
            except BaseException:
                self._end()
                # Only now: every token comes by here, and to enter the context takes 3 us.
                with translated_errors(self._route):
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


def _read(body: bytes) -> Any:
    import pydantic_core

    try:
        return pydantic_core.from_json(body)
    except ValueError as error:
        raise InvalidJsonError(f"the body is not valid JSON: {error}") from None


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
