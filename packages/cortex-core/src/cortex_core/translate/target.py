"""What a translation needs to know of the model that a request goes to."""

from collections.abc import Callable

import msgspec

from cortex_core.harness import Capabilities, Limit
from cortex_core.wire.openai.chat import ChatRequest


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The model, as the upstream knows it."""

    model: str
    capabilities: Capabilities | None = None
    """`None` when nobody says; then nothing is refused for want of one."""
    limit: Limit = Limit()
    tells_usage: bool = False
    """Whether it is known to take a wish for the usage of a stream."""


PdfReader = Callable[[bytes], str]
"""Returns the text of a PDF, pages apart by blank lines; empty when it has no text layer.

Raises:
    ValueError: the bytes are no PDF that can be read.
"""


class ToChat(msgspec.Struct, frozen=True, kw_only=True):
    """A request of another dialect as a chat completion request."""

    chat: ChatRequest
    ignored: tuple[str, ...] = ()
    """Paths of what was left out although the caller wrote it, such as `tools.3`; harmless
    things only: what would change the meaning is refused."""


def answer_tokens(wanted: int | None, limit: Limit) -> int | None:
    """Return how long an answer may be, in tokens: as long as is wanted and can ever come.

    Agents ask every model for the most that the largest takes, and engines refuse more than
    their context has room for.
    """
    bounds = [bound for bound in (wanted, limit.output, limit.context) if bound is not None]
    return None if wanted is None else min(bounds)
