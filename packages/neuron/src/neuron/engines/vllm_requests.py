"""What of a request vLLM would ignore, or refuse without saying where it stands."""

from collections.abc import Iterator, Mapping, Set
from typing import Any

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Route

IMAGE = "image"
AUDIO = "audio"
VIDEO = "video"

_MODALITIES = (IMAGE, AUDIO, VIDEO)
"""Kinds of media as vLLM names them; the types of content parts are called after them, such as
`image_url` or `input_audio`."""

_NO_TEXT = ("content_parts", "features", "kv_transfer_params", "ec_transfer_params")
"""Fields by which vLLM takes media that are fetched or unpacked without a look, and caches of
other engines."""

_GUIDED = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
)
"""Fields of earlier versions, which vLLM reads over since they were removed."""


def check_request(route: Route, body: object, modalities: Set[str]) -> None:
    """Check what vLLM does not.

    Args:
        route: where it was asked.
        body: the request's JSON; whatever is wrong with its shape is for vLLM to say.
        modalities: media that the model takes.

    Raises:
        InvalidRequestError: the model cannot do what is asked; `param` names the field.
    """
    if not isinstance(body, Mapping):
        return
    for param, kind in _media_of(body.get("messages")):
        modality = next(name for name in _MODALITIES if name in kind)
        if modality not in modalities:
            raise InvalidRequestError(
                f"this model takes no {modality} input, so {kind[:50]!r} cannot be read",
                param=param,
            )
    for field in _NO_TEXT if route is Route.GENERATE else ():
        if body.get(field) is not None:
            raise InvalidRequestError(
                f"{field} is not taken; what is generated from token ids here is text",
                param=field,
            )
    best_of, choices = body.get("best_of"), body.get("n")
    if isinstance(best_of, int) and best_of > (choices if isinstance(choices, int) else 1):
        raise InvalidRequestError(
            f"best_of is {best_of}, which this engine does not do; ask for n and choose yourself",
            param="best_of",
        )


def check_options(body: object, *, has_priorities: bool) -> None:
    """Check the options that vLLM takes and does not heed.

    Args:
        body: the request's JSON; whatever is wrong with its shape is for vLLM to say.
        has_priorities: whether the engine schedules by them.

    Raises:
        InvalidRequestError: the answer would not be as asked; `param` names the field.
    """
    if not isinstance(body, Mapping):
        return
    for field in _GUIDED:
        if body.get(field) is not None:
            raise InvalidRequestError(
                f"{field} is not known any more; use structured_outputs or response_format",
                param=field,
            )
    if body.get("priority") and not has_priorities:
        raise InvalidRequestError(
            "this model does not schedule by priority; have it loaded with the engine option "
            "scheduling_policy = 'priority', or send x-cortex-priority",
            param="priority",
        )


def rank(request: Any, urgency: int) -> None:
    """Have vLLM put a request before less urgent ones, unless its body says where it belongs.

    Args:
        request: vLLM's own object; what cannot be put before others is left as it is.
        urgency: more of it goes first.
    """
    # vLLM handles lower numbers earlier, and refuses any but 0 without priority scheduling.
    if hasattr(request, "priority") and "priority" not in request.model_fields_set:
        request.priority = -urgency


def _media_of(messages: object) -> Iterator[tuple[str, str]]:
    """Yield where each part that is no text stands, and its type."""
    for position, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping):
                # A part without a type is what its one field says.
                kind = part.get("type") or next(iter(part), "")
                if isinstance(kind, str) and any(name in kind for name in _MODALITIES):
                    yield f"messages.{position}.content.{index}", kind
