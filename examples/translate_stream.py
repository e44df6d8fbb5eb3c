"""Turn one stream of a chat engine into the events of two dialects.

Run it as `python examples/translate_stream.py`; it prints the events of both. The stream is fed
in pieces of seven bytes: a translation may be cut anywhere, and holds no more than a line back.
"""

from collections.abc import Iterator

from cortex_core.codec import decode_request
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.messages_writer import messages_writer_for
from cortex_core.translate.parts import Translator, Writer
from cortex_core.translate.responses_writer import ResponsesWriter, begun_response
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER
from cortex_core.wire.responses.request import RESPONSES_REQUEST_DECODER

STREAM = b"""\
data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}

data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"reasoning":"A greeting."}}]}

data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"Good "}}]}

data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"day!"}}]}

data: {"id":"1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}

data: {"id":"1","model":"m","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":6}}

data: [DONE]

"""


def messages_writer() -> Writer:
    """Return what writes Anthropic's events; the request says whether thoughts are shown."""
    asked = b"""{"model":"m","max_tokens":2000,"messages":[{"role":"user","content":"Hi"}],
        "thinking":{"type":"enabled","budget_tokens":1024}}"""
    request = decode_request(asked, MESSAGES_REQUEST_DECODER)
    return messages_writer_for(request, message_id="msg_1", request_id="req_1")


def responses_writer() -> Writer:
    """Return what writes the events of OpenAI's Responses."""
    request = decode_request(b'{"model":"m","input":"Hi"}', RESPONSES_REQUEST_DECODER)
    begun = begun_response(request, response_id="resp_1", created_at=0.0, is_stored=False)
    return ResponsesWriter(request, begun, lambda: 0.0)


def translated(writer: Writer, size: int = 7) -> Iterator[bytes]:
    """Yield the events of `STREAM` in the writer's dialect, as they are complete."""
    translator = Translator(ChatReader(), writer)
    for start in range(0, len(STREAM), size):
        yield translator.feed(STREAM[start : start + size])
    yield translator.end()


def main() -> None:
    """Print the events of both dialects."""
    for writer in (messages_writer(), responses_writer()):
        print(b"".join(translated(writer)).decode())


if __name__ == "__main__":
    main()
