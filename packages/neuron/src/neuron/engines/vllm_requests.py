"""What of a request vLLM would ignore, or refuse without saying where it stands."""

from collections.abc import Iterator, Mapping, Set

from cortex_core.errors import InvalidRequestError

IMAGE = "image"
AUDIO = "audio"
VIDEO = "video"

_MODALITIES = (IMAGE, AUDIO, VIDEO)
"""Kinds of media as vLLM names them; the types of content parts are called after them, such as
`image_url` or `input_audio`."""


def check_request(body: object, modalities: Set[str]) -> None:
    """Check what vLLM does not.

    Args:
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
    best_of, choices = body.get("best_of"), body.get("n")
    if isinstance(best_of, int) and best_of > (choices if isinstance(choices, int) else 1):
        raise InvalidRequestError(
            f"best_of is {best_of}, which this engine does not do; ask for n and choose yourself",
            param="best_of",
        )


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
