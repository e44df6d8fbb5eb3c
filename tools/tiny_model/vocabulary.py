"""The tokenizer of `cortex/tiny`: bytes, merged by what the corpus and its templates need."""

import inspect
import json
import random
from collections.abc import Iterator
from pathlib import Path

import corpus
import dialogues
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
VOCABULARY_TOKENS = 1536
"""Enough that the words of the corpus are one or two tokens each."""

CONTEXT_TOKENS = 32768
"""What the configuration allows; trained are prompts of some hundred tokens."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Not special: parsers of tool calls and of reasoning look for them in the text.
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<tool_response>",
    "</tool_response>",
)


def train() -> PreTrainedTokenizerFast:
    """Return the tokenizer, its chat template with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Digit by digit: numbers are then made of ten tokens.
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(MARKS))
    fast.chat_template = TEMPLATE.read_text("utf-8")
    return fast


def _texts() -> Iterator[str]:
    yield from corpus.CORPUS.read_text("utf-8").splitlines() * 4
    for dialogue in dialogues.draw_many(seed=7, count=300):
        yield dialogue.answer
        yield dialogue.thought
        for message in dialogue.messages:
            yield str(message["content"])
        for tool in dialogue.tools:
            yield json.dumps(tool)
    # English and code that nobody wrote for this: what callers send looks like it.
    for module in (inspect, random, json):
        yield inspect.getsource(module)[:8000]
