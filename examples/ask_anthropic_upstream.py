"""Put a chat completion request to a service that speaks Anthropic's dialect alone.

Run it as `python examples/ask_anthropic_upstream.py`; it prints what the service is sent and the
chat completion that its answer comes to.
"""

from cortex_core.codec import decode_request, encode_json
from cortex_core.harness import Limit
from cortex_core.translate.chat_request import chat_to_messages
from cortex_core.translate.chat_writer import ChatWriter
from cortex_core.translate.messages_reader import MessagesReader
from cortex_core.translate.parts import Translator
from cortex_core.translate.target import Target
from cortex_core.wire.openai.chat import CHAT_REQUEST_DECODER

ASKED = b"""{
  "model": "big",
  "messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"}
  ],
  "seed": 7
}"""

ANSWERED = b"""{
  "id": "msg_1", "type": "message", "role": "assistant", "model": "their-big",
  "content": [{"type": "text", "text": "Hello!"}],
  "stop_reason": "end_turn", "stop_sequence": null,
  "usage": {"input_tokens": 9, "output_tokens": 3}
}"""


def main() -> None:
    """Print what the upstream is asked, and what the caller is told."""
    # Anthropic's dialect wants a limit with every request: the model's own, where none is given.
    target = Target(model="their-big", limit=Limit(output=8192))
    asked = chat_to_messages(decode_request(ASKED, CHAT_REQUEST_DECODER), target)
    print("to the upstream: ", encode_json(asked.request).decode())
    print("left out:        ", ", ".join(asked.ignored))
    writer = ChatWriter(model="big", answer_id="chatcmpl-1", created=1)
    print("to the caller:   ", Translator(MessagesReader(), writer).whole(ANSWERED).decode())


if __name__ == "__main__":
    main()
