"""The few fields of a request that routing needs; the rest of the body stays opaque."""

import msgspec


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`stream_options` of a streaming request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of any OpenAI request.

    Source: OpenAI API reference, "Create chat completion" (read November 2026).
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None


ENVELOPE_DECODER = msgspec.json.Decoder(Envelope)
