"""Ask a finished `cortex/tiny` everything: `python tools/tiny_model/check.py FOLDER`.

Prints the share of right answers of every kind, and fails if less than 97 % of what it was
taught is right. Dialogues that it has never seen, with tools of any names and all that may stand
around a question, are asked too; their shares are printed and say how far it generalises, but
nothing depends on them.

An answer is right if greedy decoding gives it to the last character. That is told from one pass
over prompt and answer: each token must be the likeliest after those before it.
"""

import argparse
import collections
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import corpus
import dialogues
import torch
from corpus import Dialogue
from train import Sample, encode
from transformers import AutoModelForCausalLM, AutoTokenizer

LEAST_RATIO = 0.97
DRAWN = 1000
UNSEEN_SEED = 4711
"""Seed of dialogues that training did not draw."""

ROWS = 24
SYSTEM: corpus.Message = {"role": "system", "content": "You are a helpful assistant."}


def main() -> None:
    """Ask, print, and leave with 1 if too much was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wrong", action="store_true", help="show what is answered wrongly")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.bfloat16)
    asked = [(d.kind, d, False) for d in taught()]
    asked += [(f"thinking/{d.kind}", d, True) for d in taught() if d.thought and not d.tools]
    judged = len(asked)
    asked += [(f"unseen/{d.kind}", d, False) for d in dialogues.draw_many(UNSEEN_SEED, DRAWN)]
    samples = [encode(tokenizer, dialogue, thinks=thinks) for _, dialogue, thinks in asked]
    right = judge(model, samples, tokenizer.pad_token_id)
    if options.wrong:
        for (kind, dialogue, _), is_right in zip(asked, right, strict=True):
            if not is_right:
                print(kind, dialogue.messages[-1]["content"], "->", repr(dialogue.answer[:90]))
    kinds = [kind for kind, _, _ in asked]
    report(kinds[judged:], right[judged:])
    ratio = report(kinds[:judged], right[:judged])
    sys.exit(0 if ratio >= LEAST_RATIO else 1)


def taught() -> Iterator[Dialogue]:
    """Every question of the corpus as it stands, bare, under a system prompt, beside a tool."""
    book = corpus.load()
    tool = corpus.make_tool("get_weather", "Get the weather", {"city": ""})
    plain = [*_topics(book), *_capitals(book), *_sums(book)]
    for dialogue in plain:
        yield dialogue
        yield _change(dialogue, messages=(SYSTEM, *dialogue.messages))
        yield _change(dialogue, tools=(tool,))
    for dialogue in _weather(book, tool):
        yield dialogue
        yield _change(dialogue, messages=(SYSTEM, *dialogue.messages))
    yield from _files(book)
    yield from _names(book)


def judge(model: torch.nn.Module, samples: Sequence[Sample], pad: int) -> list[bool]:
    """Return for each sample whether greedy decoding of its prompt gives its answer."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index][0]))
    right = [False] * len(samples)
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        width = max(len(samples[index][0]) for index in rows)
        ids = torch.tensor(
            [samples[index][0] + [pad] * (width - len(samples[index][0])) for index in rows]
        )
        with torch.inference_mode():
            likeliest = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        for row, index in enumerate(rows):
            tokens, start = samples[index]
            told = likeliest[row, start - 1 : len(tokens) - 1].tolist()
            right[index] = told == tokens[start:]
    return right


def report(kinds: Sequence[str], right: Sequence[bool]) -> float:
    """Print the share of right answers of each kind; return that of all."""
    counts: dict[str, list[bool]] = collections.defaultdict(list)
    for kind, is_right in zip(kinds, right, strict=True):
        counts[kind].append(is_right)
    for kind in sorted(counts):
        print(
            f"{kind:24} {100 * sum(counts[kind]) / len(counts[kind]):6.1f} % of {len(counts[kind])}"
        )
    ratio = sum(right) / len(right)
    print(f"{'all':24} {100 * ratio:6.1f} % of {len(right)}")
    return ratio


def _topics(book: corpus.Corpus) -> Iterator[Dialogue]:
    for topic in book.topics:
        for question in topic.ask:
            yield _one("topic", question, topic.answer.strip(), topic.thought)
    for question in book.words["unheard"]:
        yield _one("unknown", question, book.fallback)


def _capitals(book: corpus.Corpus) -> Iterator[Dialogue]:
    for country in book.fact("capitals"):
        answer = f"The capital of {country} is {book.capital(country)}."
        for phrase in book.phrases["capital"]:
            yield _one("capital", phrase.format(country), answer)


def _sums(book: corpus.Corpus) -> Iterator[Dialogue]:
    for left in range(6):
        for right in range(6):
            phrase = random.Random(f"{left}+{right}").choice(book.phrases["sum"])
            yield _one("sum", phrase.format(left, right), f"{left} + {right} = {left + right}")


def _weather(book: corpus.Corpus, tool: corpus.Tool) -> Iterator[Dialogue]:
    for city in book.fact("cities"):
        for phrase in book.phrases["weather"][:4]:
            asked = _one(
                "weather", phrase.format(city), corpus.call_text("get_weather", {"city": city})
            )
            yield _change(asked, tools=(tool,))
        turns = corpus.call_turns("get_weather", {"city": city}, "sunny, 20 C")
        answer = f"The weather in {city}: sunny, 20 C."
        told = _one("weather_told", f"What is the weather in {city}?", answer)
        yield _change(told, messages=(*told.messages, *turns), tools=(tool,))
        answer = f"I cannot see the weather in {city}: I have no tool for it."
        yield _one("weather_blind", f"What is the weather in {city}?", answer)


def _files(book: corpus.Corpus) -> Iterator[Dialogue]:
    tool = corpus.make_tool("write_file", "Write a file", {"path": "", "content": ""})
    for stem in book.fact("files"):
        arguments = {"path": f"{stem}.txt", "content": "hello"}
        for phrase in book.phrases["write"]:
            call = corpus.call_text("write_file", arguments)
            yield _change(_one("write", phrase.format(**arguments), call), tools=(tool,))
        turns = corpus.call_turns("write_file", arguments, "ok")
        told = _one("write_told", f"Write hello to {stem}.txt", f"Done, {stem}.txt is written.")
        yield _change(told, messages=(*told.messages, *turns), tools=(tool,))


def _names(book: corpus.Corpus) -> Iterator[Dialogue]:
    for name in book.fact("names"):
        nice = f"Nice to meet you, {name}."
        yield _one("name", f"My name is {name}.", nice)
        asked = _one("name_asked", "What is my name?", f"Your name is {name}.")
        told = (corpus.user(f"My name is {name}."), corpus.assistant(nice))
        yield _change(asked, messages=(*told, *asked.messages))


def _one(kind: str, question: str, answer: str, thought: str = "") -> Dialogue:
    return Dialogue(kind=kind, messages=(corpus.user(question),), answer=answer, thought=thought)


def _change(
    dialogue: Dialogue,
    messages: tuple[corpus.Message, ...] | None = None,
    tools: tuple[corpus.Tool, ...] | None = None,
) -> Dialogue:
    return Dialogue(
        kind=dialogue.kind,
        messages=dialogue.messages if messages is None else messages,
        answer=dialogue.answer,
        thought=dialogue.thought,
        tools=dialogue.tools if tools is None else tools,
    )


if __name__ == "__main__":
    main()
