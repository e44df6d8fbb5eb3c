"""The answer to a count of tokens, which every harness gives alike."""

import msgspec


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the answer."""

    object: str = "chat.completion.token_count"
    model: str
    prompt_tokens: int
    """What `usage.prompt_tokens` would be."""
