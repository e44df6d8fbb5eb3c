"""Put a Messages request to a chat engine, and its answer back into a message.

Run it as `python examples/translate_request.py`; it prints both bodies.
"""

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import RequestError
from cortex_core.translate.chat_reader import ChatReader
from cortex_core.translate.messages_request import messages_to_chat
from cortex_core.translate.messages_writer import messages_writer_for
from cortex_core.translate.parts import Translator
from cortex_core.translate.target import Target
from cortex_core.wire.anthropic.request import MESSAGES_REQUEST_DECODER

ASKED = b"""{
  "model": "claude-sonnet-5",
  "max_tokens": 100,
  "system": "Be brief.",
  "messages": [{"role": "user", "content": "Is it raining in Paris?"}],
  "tools": [{"name": "get_weather", "input_schema": {"type": "object"}}]
}"""

ANSWERED = b"""{
  "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "org/model",
  "choices": [{
    "index": 0,
    "finish_reason": "tool_calls",
    "message": {
      "role": "assistant",
      "content": null,
      "tool_calls": [{
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}
      }]
    }
  }],
  "usage": {"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39}
}"""


def main() -> None:
    """Print what the engine is asked, and what the caller is told."""
    try:
        request = decode_request(ASKED, MESSAGES_REQUEST_DECODER)
        asked = messages_to_chat(request, Target(model="org/model"))
    except RequestError as error:
        # `cortex_core.dialect` renders it for whichever dialect the caller speaks.
        raise SystemExit(f"{error.status} {error.param}: {error.message}") from None
    print("to the engine: ", encode_json(asked.chat).decode())
    if asked.ignored:
        print("left out:      ", ", ".join(asked.ignored))
    writer = messages_writer_for(request, message_id="msg_1", request_id="req_1")
    message = Translator(ChatReader(), writer).whole(ANSWERED)
    print("to the caller: ", message.decode())


if __name__ == "__main__":
    main()
