"""A process that answers what the tokens of a model are, from its files alone.

vLLM renders a request as the loaded engine would: the same classes, the same options. It is a
process of its own because tokenizers are slow to load and hold the interpreter, and because all
that they took is given back when it ends.
"""

import asyncio
import logging
import os
import pathlib
import sys
from collections import OrderedDict
from typing import Any, BinaryIO

import msgspec

from cortex_core.errors import EngineError, ModelLoadFailedError, RequestError
from cortex_core.harness import EngineAnswer, ModelSpec
from cortex_core.ids import RequestId
from neuron.engines import vllm_bringup
from neuron.engines.media import MediaPolicy
from neuron.engines.token_frames import (
    HEAD_BYTES,
    Answer,
    Question,
    failure_of,
    length_of,
    pack,
)
from neuron.engines.vllm_handlers import engineless_handlers
from neuron.engines.vllm_serving import Stack
from neuron.settings import MediaSettings

_KEPT = 8
"""Models whose tokenizers are kept, those used last; each takes some tens of megabytes."""

_QUESTION = msgspec.msgpack.Decoder(Question)

logger = logging.getLogger(__name__)


class Stacks:
    """The models that were asked about last.

    Args:
        media: what media their requests may bring along.
    """

    def __init__(self, media: MediaPolicy) -> None:
        self._media = media
        self._stacks: OrderedDict[bytes, Stack] = OrderedDict()

    def get(self, spec: ModelSpec, folder: str) -> Stack:
        """Return the routes of a model, and forget whoever was not asked about for longest.

        Raises:
            RequestError: its files cannot be used.
        """
        key = msgspec.msgpack.encode((spec, folder))
        stack = self._stacks.pop(key, None) or make_stack(spec, pathlib.Path(folder), self._media)
        self._stacks[key] = stack
        while len(self._stacks) > _KEPT:
            self._stacks.popitem(last=False)
        return stack


def make_stack(spec: ModelSpec, folder: pathlib.Path, media: MediaPolicy) -> Stack:
    """Return the routes that a model's files answer.

    Args:
        spec: its engine options are those of the engine that it would have.
        folder: its files.
        media: what media its requests may bring along.

    Raises:
        InvalidRequestError: an engine option does not exist or has a wrong type.
        ModelLoadFailedError: the files cannot be used.
    """
    try:
        return _make_stack(spec, folder, media)
    except vllm_bringup.load_errors() as error:
        logger.warning("%s cannot be read", spec.model, exc_info=True)
        raise ModelLoadFailedError(
            f"the tokenizer of {spec.model!r} cannot be used: {str(error)[:200]}"
        ) from error


def _make_stack(spec: ModelSpec, folder: pathlib.Path, media: MediaPolicy) -> Stack:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    options = vllm_bringup.check_options(spec)
    tool_parser, reasoning_parser = vllm_bringup.settle_parsers(spec.model, folder, options)
    arguments = vllm_bringup.engine_arguments(spec, folder, options, reasoning_parser)
    args = AsyncEngineArgs(**arguments)
    # As `vllm launch render` does it, which has no device either: nothing is computed here, so
    # that the device need not know the quantisation.
    model_config = args.create_model_config()
    model_config.quantization = None
    config = VllmConfig(
        model_config=model_config,
        structured_outputs_config=args.create_structured_outputs_config(),
    )
    renderer = renderer_from_config(config)
    serving = msgspec.structs.replace(options.serving, tool_call_parser=tool_parser)
    handlers = engineless_handlers(
        config.model_config, renderer, spec.model, serving, reasoning_parser
    )
    return Stack(handlers, vllm_bringup.modalities_of(renderer), media)


def main() -> None:
    """Answer questions from standard input until it ends."""
    # Whatever a library prints must not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    vllm_bringup.import_vllm()
    stacks = Stacks(MediaPolicy(msgspec.json.decode(sys.argv[1], type=MediaSettings)))
    with asyncio.Runner() as runner:
        while (question := _read(sys.stdin.buffer)) is not None:
            answers.write(pack(runner.run(_answer(stacks, question))))
            answers.flush()


async def _answer(stacks: Stacks, question: Question) -> Answer:
    try:
        body = await _body(stacks, question)
    except RequestError as error:
        return Answer(number=question.number, failure=failure_of(error))
    except Exception:
        logger.exception("a question about %s failed", question.spec.model)
        bug = EngineError("the tokens could not be told")
        return Answer(number=question.number, failure=failure_of(bug))
    return Answer(number=question.number, body=body)


async def _body(stacks: Stacks, question: Question) -> bytes:
    stack = stacks.get(question.spec, question.folder)
    answer = await stack.answer(question.route, question.body, RequestId(question.request_id))
    if not isinstance(answer, EngineAnswer) or not isinstance(answer.body, bytes):
        raise EngineError("a question about tokens was answered with a stream")
    return answer.body


def _read(pipe: BinaryIO) -> Question | None:
    head = pipe.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    body: Any = pipe.read(length_of(head))
    return _QUESTION.decode(body)


if __name__ == "__main__":
    main()
