"""Words, names and files that nobody foresees, drawn at random."""

import json
import random

import msgspec
from corpus import Corpus


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a weather tool returns, and what the model says of it."""

    told: str
    said: str


class Wording:
    """Draws texts; equal seeds draw equal ones."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.corpus = corpus
        self.random = random.Random(seed)

    def chance(self, ratio: float) -> bool:
        """Return `True` with the given probability."""
        return self.random.random() < ratio

    def pick(self, fact: str) -> str:
        """Return one fact of a list."""
        return self.random.choice(self.corpus.fact(fact))

    def phrase(self, kind: str) -> str:
        """Return one way to ask for something."""
        return self.random.choice(self.corpus.phrases[kind])

    def vary(self, question: str) -> str:
        """Return a question as people write it."""
        if self.chance(0.12):
            question = question.lower()
        if self.chance(0.15):
            question = question.rstrip("?.! ")
        if self.chance(0.04):
            question = f"{question}, please"
        if self.chance(0.04):
            question = f"Please tell me: {question}"
        return question

    def name_like(self) -> str:
        """Return a name that nobody has, to be copied letter by letter."""
        syllables = [
            self.random.choice("bdfgklmnprstvz") + self.random.choice("aeiou")
            for _ in range(self.random.randint(2, 3))
        ]
        return ("".join(syllables) + self.random.choice(("", "n", "r", "s"))).capitalize()

    def city(self) -> str:
        """Return a city, known or not."""
        return self.name_like() if self.chance(0.05) else self.pick("cities")

    def path(self) -> str:
        """Return the path of a file."""
        stem = self.name_like().lower() if self.chance(0.05) else self.pick("files")
        folder = self.random.choice(("", "", "", "", "", "", "", "src/", "docs/"))
        return f"{folder}{stem}.{self.pick('extensions')}"

    def content(self) -> str:
        """Return a few words to be copied."""
        if self.chance(0.2):
            return self.random.choice(("hello", "hello", "hello world", "ok"))
        count = self.random.choices((1, 2, 3), (70, 25, 5))[0]
        return " ".join(self.random.choices(self.corpus.contents(), k=count))

    def hint(self) -> str:
        """Return a description of a parameter, or nothing."""
        return self.prose(1, 6) if self.chance(0.3) else ""

    def forecast(self) -> Forecast:
        """Return what a weather tool may say."""
        sky, degrees = self.pick("skies"), self.random.randint(0, 39)
        both = f"{sky}, {degrees} C"
        forms = (
            Forecast(told=both, said=both),
            Forecast(told=both, said=both),
            Forecast(told=f"{degrees} C and {sky}", said=both),
            Forecast(told=f"{degrees} degrees, {sky}", said=both),
            Forecast(told=sky, said=sky),
            Forecast(told=json.dumps({"temperature": degrees, "condition": sky}), said=both),
            Forecast(told=json.dumps({"condition": sky, "celsius": degrees}), said=both),
        )
        return self.random.choice(forms)

    def prose(self, least: int, most: int) -> str:
        """Return words without sense, in sentences and lines."""
        words = (*self.corpus.words["plain"], *self.corpus.words["noun"])
        count = self.random.randint(least, most)
        parts = []
        for _ in range(count):
            word = self.random.choice(words) if self.chance(0.95) else self.name_like()
            parts.append(
                word
                + self.random.choices(("", ".", ",", ":", ".\n\n", "\n- "), (85, 6, 4, 1, 2, 2))[0]
            )
        text = " ".join(parts).replace("\n ", "\n")
        return text[:1].upper() + text[1:]
