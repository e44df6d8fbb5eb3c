"""The tokenizer of `cortex/tiny`: bytes, merged by what the corpus and its templates need."""

import inspect
import json
import random
import re
from collections.abc import Iterable, Iterator
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
            pre_tokenizers.Split(Regex(_pattern(corpus.load().slot_words())), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
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


def _pattern(words: Iterable[str]) -> str:
    """Return where text is cut before bytes are merged.

    A word that an answer takes over from the question is one token, the same one after a space as
    after a quotation mark. To take it over is then to look at one place, which a small model
    learns soon; to spell it again it would have to learn to copy, which takes far longer.
    """
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    taken = f"(?:{'|'.join(re.escape(word) for word in longest_first)})(?![A-Za-z0-9])"
    return "|".join(
        (
            f"(?<![A-Za-z0-9]){taken}",
            r"\d{1,2}",
            rf"(?: (?!{taken}))?\p{{L}}+",
            r" ?[^\s\p{L}\d]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


def _texts() -> Iterator[str]:
    # Often enough that each of them becomes one token.
    for word in corpus.load().slot_words():
        yield from [word] * 60
    for number in range(100):
        yield from [str(number)] * 60
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
