"""A process that answers questions about tokens with what they were, or as they tell it to."""

import sys

import msgspec

from neuron.engines.token_frames import HEAD_BYTES, Answer, Question, length_of, pack


def read() -> Question:
    head = sys.stdin.buffer.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        sys.exit(0)
    body = sys.stdin.buffer.read(length_of(head))
    return msgspec.msgpack.decode(body, type=Question)


def write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main() -> None:
    question = read()
    while True:
        answer = pack(Answer(number=question.number, body=question.body))
        match question.body:
            case b"die":
                sys.exit(3)
            case b"half":
                # The rest comes when somebody else asks.
                write(answer[: HEAD_BYTES + 1])
                question = read()
                write(answer[HEAD_BYTES + 1 :])
            case b"hang":
                question = read()
            case _:
                write(answer)
                question = read()


if __name__ == "__main__":
    main()
