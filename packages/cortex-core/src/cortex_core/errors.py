"""Everything that cortex tells a caller or an operator that went wrong.

A `RequestError` carries its two faces, OpenAI's and Anthropic's, as class attributes: the
table of `docs/reference/errors.md` in code. `cortex_core.dialect` renders them. Statuses and
types follow the API references of both vendors (error pages, read November 2026).
"""

from typing import ClassVar


class CortexError(Exception):
    """Root of every error that cortex raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(CortexError):
    """A settings file cannot be used; the message names file, TOML path and the cure."""


class RequestError(CortexError):
    """A request that ends in an error answer.

    Args:
        message: what was wrong and what would be right; shown to the caller.
        param: name of the offending request field, if it is one field.
        retry_after_s: when a retry makes sense, in seconds; `None` leaves the header out.
    """

    status: ClassVar[int] = 500
    """HTTP status in the OpenAI dialect."""
    openai_type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    """OpenAI's `code`: a stable string, or `None`."""
    anthropic_status: ClassVar[int] = 500
    anthropic_type: ClassVar[str] = "api_error"
    error_code: ClassVar[str | None] = None
    """Anthropic's `error.details.error_code`: a stable string, or `None`."""
    default_retry_after_s: ClassVar[float | None] = None
    should_retry: ClassVar[bool | None] = None
    """Value of `x-should-retry`, which both SDKs obey; `None` leaves the choice to them."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = (
            retry_after_s if retry_after_s is not None else self.default_retry_after_s
        )


class InvalidRequestError(RequestError):
    """The request is well-formed JSON but a field is missing, mistyped or impossible."""

    status = 400
    openai_type = "invalid_request_error"
    anthropic_status = 400
    anthropic_type = "invalid_request_error"


class InvalidJsonError(InvalidRequestError):
    """The body is not JSON, not UTF-8, or nested too deeply to read."""

    code = "invalid_json"


class ContextLengthError(InvalidRequestError):
    """The prompt is longer than the model's context.

    Args:
        prompt_tokens: tokens in the prompt; `None` when the engine did not say.
        limit_tokens: the model's context.
        message: the engine's own sentence, used when the counts are not known.
    """

    code = "context_length_exceeded"

    def __init__(
        self, message: str, *, prompt_tokens: int | None = None, limit_tokens: int | None = None
    ) -> None:
        super().__init__(message, param="messages")
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class MalformedRequestError(InvalidRequestError):
    """The HTTP message itself is not acceptable; the connection is closed after it."""


class RejectedAfterEngineFailureError(InvalidRequestError):
    """Two engines have died while they worked on the request; a third is not put at risk."""

    code = "request_rejected_after_engine_failure"


class PreviousResponseNotFoundError(InvalidRequestError):
    """The response to go on from is not kept here, or not any more."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(
            f"there is no response {response_id[:200]!r} to go on from; send the whole input",
            param="previous_response_id",
        )


class UnsupportedThreadError(InvalidRequestError):
    """Only the new messages were sent; clients go on with the whole history when told so."""

    error_code = "thread_unsupported_request"


class AuthenticationError(RequestError):
    """No key, or one that is not known."""

    status = 401
    openai_type = "invalid_request_error"
    code = "invalid_api_key"
    anthropic_status = 401
    anthropic_type = "authentication_error"


class PermissionDeniedError(RequestError):
    """The key is known but may not do this."""

    status = 403
    openai_type = "invalid_request_error"
    code = "permission_denied"
    anthropic_status = 403
    anthropic_type = "permission_error"


class NotFoundError(RequestError):
    """No such path or object."""

    status = 404
    openai_type = "invalid_request_error"
    code = "not_found"
    anthropic_status = 404
    anthropic_type = "not_found_error"


class ModelNotFoundError(NotFoundError):
    """The model is in no catalogue and on no node."""

    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"the model {model[:200]!r} does not exist here; GET /v1/models lists those that do",
            param="model",
        )


class MethodNotAllowedError(RequestError):
    """The path exists, the method does not.

    Args:
        allowed: methods for the `Allow` header, at least one.
    """

    status = 405
    openai_type = "invalid_request_error"
    code = "method_not_supported"
    anthropic_status = 405
    anthropic_type = "invalid_request_error"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not supported here; use {' or '.join(allowed)}")
        self.allowed = allowed


class RequestTimeoutError(RequestError):
    """The caller took too long to send its request."""

    status = 408
    openai_type = "invalid_request_error"
    code = "request_timeout"
    anthropic_status = 408
    anthropic_type = "timeout_error"


class ConflictError(RequestError):
    """The model's state does not allow what was asked."""

    status = 409
    openai_type = "invalid_request_error"
    code = "conflict"
    anthropic_status = 409
    anthropic_type = "conflict_error"


class CordonedError(ConflictError):
    """The node takes no new models, because an operator said so."""

    code = "cordoned"


class BodyTooLargeError(RequestError):
    """The request body is over the limit."""

    status = 413
    openai_type = "invalid_request_error"
    code = "body_too_large"
    anthropic_status = 413
    anthropic_type = "request_too_large"


class UpgradeRequiredError(RequestError):
    """A WebSocket was asked for where there is none; clients fall back at once on 426."""

    status = 426
    openai_type = "invalid_request_error"
    code = "websocket_not_supported"
    anthropic_status = 426
    anthropic_type = "invalid_request_error"


class HeadersTooLargeError(RequestError):
    """Too many request headers, or too large ones."""

    status = 431
    openai_type = "invalid_request_error"
    code = "headers_too_large"
    anthropic_status = 431
    anthropic_type = "invalid_request_error"


class InsufficientVramError(RequestError):
    """A model does not fit into the memory that is free now.

    Args:
        needed_bytes: what the load needs, over all its devices.
        free_bytes: what those devices have free.
    """

    status = 507
    openai_type = "server_error"
    code = "insufficient_vram"

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class InsufficientSleepMemoryError(InsufficientVramError):
    """A model cannot be put to sleep: those that sleep hold too much host memory already."""

    code = "insufficient_sleep_memory"


class InsufficientDiskError(RequestError):
    """A download does not fit on the disk, or into the budget of the hub cache."""

    status = 507
    code = "insufficient_disk"

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class UnavailableError(RequestError):
    """Cannot serve at the moment; a retry after a while may."""

    status = 503
    openai_type = "server_error"
    code = "no_replica"
    anthropic_status = 529
    anthropic_type = "overloaded_error"
    default_retry_after_s = 5.0


class OverloadedError(UnavailableError):
    """The queue is full."""

    code = "server_is_overloaded"


class NoReplicaError(UnavailableError):
    """The model is known, but no healthy node can serve it now."""


class ModelLoadingError(UnavailableError):
    """The model is being loaded and the caller did not want to wait longer."""

    code = "model_loading"


class DrainingError(UnavailableError):
    """The process is going down and takes no new work."""

    code = "draining"


class RecoveringError(UnavailableError):
    """The model's engine failed and is being brought back."""

    code = "recovering"


class ModelDoesNotFitError(RequestError):
    """No node could ever hold the model; the message says why, node by node."""

    status = 503
    code = "model_does_not_fit"
    should_retry = False


class ModelLoadFailedError(RequestError):
    """The last load failed; the message has the short reason, no internals."""

    status = 503
    code = "model_load_failed"
    default_retry_after_s = 30.0


class HubUnreachableError(ModelLoadFailedError):
    """Weights are to be downloaded and the hub cannot be asked; that may pass."""

    code = "hub_unreachable"


class UpstreamError(RequestError):
    """The node that should have answered did not, and there was nowhere else to go."""

    status = 502
    anthropic_status = 502
    code = "upstream_unreachable"


class UpstreamCutError(UpstreamError):
    """The node's answer ended before it was complete."""

    code = "upstream_cut"


class UpstreamTimeoutError(RequestError):
    """The node was silent for too long."""

    status = 504
    code = "timeout"
    anthropic_status = 504
    anthropic_type = "timeout_error"


class UpstreamRefusalError(RequestError):
    """An upstream's own refusal that none of the other classes stands for.

    Args:
        message: the upstream's.
        status: HTTP status, 400 to 599.
        openai_type: as in the OpenAI dialect.
        anthropic_status: where the Anthropic dialect has another status; `None` means the same.
        anthropic_type: as in the Anthropic dialect.
        code: the upstream's own, if it has one.
        param: the offending field.
        retry_after_s: as the upstream advised.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        openai_type: str,
        anthropic_type: str,
        anthropic_status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        # The one class whose faces are not known before: they shadow those of the class.
        self.status = status  # type: ignore[misc]  # an instance's own, on purpose
        self.anthropic_status = anthropic_status or status  # type: ignore[misc]
        self.openai_type = openai_type  # type: ignore[misc]
        self.anthropic_type = anthropic_type  # type: ignore[misc]
        self.code = code  # type: ignore[misc]


class EngineError(RequestError):
    """The engine failed while it worked on the request."""

    code = "engine_error"


class InternalError(RequestError):
    """A bug of ours; the caller gets the request id and nothing else."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("internal error; quote the request id when you report it")
