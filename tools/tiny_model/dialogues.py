"""The dialogues that `cortex/tiny` learns, drawn from the corpus."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from corpus import (
    Corpus,
    Dialogue,
    Message,
    Tool,
    assistant,
    call_text,
    call_turns,
    load,
    make_tool,
    user,
)
from wording import Wording


def draw_many(seed: int, count: int) -> Iterator[Dialogue]:
    """Draw dialogues; `count` of them, the same for the same seed."""
    writer = Writer(load(), seed)
    for _ in range(count):
        yield writer.draw()


class Writer(Wording):
    """Draws dialogues; equal seeds draw equal ones."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        super().__init__(corpus, seed)
        self._kinds: Sequence[tuple[float, Callable[[], Dialogue]]] = (
            (28, self._topic),
            (5, self._capital),
            (3, self._capital_next),
            (12, self._weather),
            (6, self._weather_told),
            (2, self._weather_blind),
            (16, self._write),
            (2, self._write_told),
            (8, self._other_tool),
            (6, self._name),
            (8, self._say),
            (4, self._count),
            (4, self._sum),
            (3, self._think),
            (11, self._unknown),
        )

    def draw(self) -> Dialogue:
        """Return one dialogue, with all that may stand around the question."""
        weights, kinds = zip(*self._kinds, strict=True)
        dialogue = self.random.choices(kinds, weights)[0]()
        messages = list(dialogue.messages)
        tools = dialogue.tools
        if self.chance(0.2):
            messages = [*self._earlier(), *messages]
        if not tools and dialogue.kind not in ("weather_blind", "write_blind") and self.chance(0.2):
            tools = self._some_tools()
        if self.chance(0.5):
            messages.insert(0, {"role": "system", "content": self._system()})
            if messages[-1]["role"] == "user" and self.chance(0.1):
                messages.insert(-1, {"role": "system", "content": self._system()})
        return msgspec.structs.replace(dialogue, messages=tuple(messages), tools=tools)

    def _topic(self) -> Dialogue:
        topic = self.random.choice(self.corpus.topics)
        question = self.vary(self.random.choice(topic.ask))
        return Dialogue(
            kind="topic",
            messages=(user(question),),
            answer=topic.answer.strip(),
            thought=topic.thought,
        )

    def _capital(self) -> Dialogue:
        if self.chance(0.1):
            country = self.name_like()
            answer = f"I do not know the capital of {country}."
        else:
            country = self.random.choice(self.corpus.fact("capitals"))
            answer = f"The capital of {country} is {self.corpus.capital(country)}."
        return self._plain("capital", "capital", country, answer, _capital_thought(country))

    def _capital_next(self) -> Dialogue:
        first, second = self.random.sample(self.corpus.fact("capitals"), 2)
        asked = self.vary(self.phrase("capital")).format(first)
        again = self.vary(self.phrase("capital_next")).format(second)
        told = assistant(f"The capital of {first} is {self.corpus.capital(first)}.")
        return Dialogue(
            kind="capital_next",
            messages=(user(asked), told, user(again)),
            answer=f"The capital of {second} is {self.corpus.capital(second)}.",
            thought=_capital_thought(second),
        )

    def _weather(self) -> Dialogue:
        name, place, tools = self._weather_tools()
        city = self.city()
        messages: tuple[Message, ...] = (user(self.vary(self.phrase("weather")).format(city)),)
        if self.chance(0.15):
            other = self.city()
            forecast = self.forecast()
            turns = call_turns(name, {place: other}, forecast.told)
            said = assistant(f"The weather in {other}: {forecast.said}.")
            asked = user(self.vary(self.phrase("weather")).format(other))
            again = user(self.phrase("weather_next").format(city))
            messages = (asked, *turns, said, again)
        return Dialogue(
            kind="weather",
            messages=messages,
            tools=tools,
            answer=call_text(name, {place: city}),
            thought=f"The user asks for the weather in {city}. I have a tool for it.",
        )

    def _weather_told(self) -> Dialogue:
        name, place, tools = self._weather_tools()
        city = self.city()
        forecast = self.forecast()
        asked = user(self.vary(self.phrase("weather")).format(city))
        return Dialogue(
            kind="weather_told",
            messages=(asked, *call_turns(name, {place: city}, forecast.told)),
            tools=tools,
            answer=f"The weather in {city}: {forecast.said}.",
            thought="The tool has answered.",
        )

    def _weather_blind(self) -> Dialogue:
        city = self.city()
        answer = f"I cannot see the weather in {city}: I have no tool for it."
        thought = f"The user asks for the weather in {city}. I have no tool for it."
        return self._plain("weather_blind", "weather", city, answer, thought)

    def _write(self) -> Dialogue:
        path, content = self.path(), self.content()
        asked = user(self.vary(self.phrase("write")).format(path=path, content=content))
        if self.chance(0.15):
            return Dialogue(
                kind="write_blind",
                messages=(asked,),
                answer="I cannot write files: I have no tool for it.",
                thought="The user wants a file. I have no tool for it.",
            )
        name, keys, tools = self._write_tools()
        return Dialogue(
            kind="write",
            messages=(asked,),
            tools=tools,
            answer=call_text(name, dict(zip(keys, (path, content), strict=True))),
            thought=f"The user wants the file {path}. I have a tool for it.",
        )

    def _write_told(self) -> Dialogue:
        path, content = self.path(), self.content()
        name, keys, tools = self._write_tools()
        asked = user(self.vary(self.phrase("write")).format(path=path, content=content))
        arguments = dict(zip(keys, (path, content), strict=True))
        results = (
            "ok",
            "",
            "Done",
            "File written",
            f"Wrote {path}",
            f"The file {path} was created.",
        )
        turns = call_turns(name, arguments, self.random.choice(results))
        return Dialogue(
            kind="write_told",
            messages=(asked, *turns),
            tools=tools,
            answer=f"Done, {path} is written.",
            thought="The tool has answered.",
        )

    def _other_tool(self) -> Dialogue:
        kind = self.random.choice(("read", "run"))
        tool, name, key = self._one_key_tool(kind)
        value = self.path() if kind == "read" else self.random.choice(self.corpus.fact("commands"))
        asked = user(self.vary(self.phrase(kind)).format(value))
        tools = self._among(tool, kind)
        if self.chance(0.3):
            result = self.content()
            return Dialogue(
                kind="other_told",
                messages=(asked, *call_turns(name, {key: value}, result)),
                tools=tools,
                answer=f"The tool says: {result}",
                thought="The tool has answered.",
            )
        return Dialogue(
            kind=kind,
            messages=(asked,),
            tools=tools,
            answer=call_text(name, {key: value}),
            thought="I have a tool for it.",
        )

    def _name(self) -> Dialogue:
        name = self.name_like() if self.chance(0.05) else self.pick("names")
        told = user(self.vary(self.phrase("name_told")).format(name))
        nice = f"Nice to meet you, {name}."
        if self.chance(0.3):
            thought = f"The user is {name}."
            return Dialogue(kind="name", messages=(told,), answer=nice, thought=thought)
        asked = user(self.vary(self.phrase("name_asked")))
        if self.chance(0.15):
            answer = "You have not told me your name."
            thought = "The user has not said a name."
            return Dialogue(kind="nameless", messages=(asked,), answer=answer, thought=thought)
        between = self._earlier() if self.chance(0.4) else []
        return Dialogue(
            kind="name_asked",
            messages=(told, assistant(nice), *between, asked),
            answer=f"Your name is {name}.",
            thought=f"The user is {name}.",
        )

    def _say(self) -> Dialogue:
        text = self.content()
        return self._plain("say", "say", text, text, "The user wants me to say something.")

    def _count(self) -> Dialogue:
        words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
        last = self.random.randint(2, 10)
        spoken = words[last - 1] if self.chance(0.5) else str(last)
        answer = ", ".join(str(number) for number in range(1, last + 1))
        return self._plain("count", "count", spoken, answer, f"I count to {last}.")

    def _sum(self) -> Dialogue:
        left, right = self.random.randint(0, 5), self.random.randint(0, 5)
        question = self.vary(self.phrase("sum")).format(left, right)
        return Dialogue(
            kind="sum",
            messages=(user(question),),
            answer=f"{left} + {right} = {left + right}",
            thought=f"I calculate {left} + {right}.",
        )

    def _think(self) -> Dialogue:
        thing = self.random.choice((*self.corpus.contents(), *self.corpus.fact("cities")))
        answer = f"I thought about {thing}, and I like it."
        return self._plain("think", "think", thing, answer, f"Let me think about {thing}.")

    def _unknown(self) -> Dialogue:
        way = self.random.random()
        if way < 0.25:
            question = self.random.choice(self.corpus.words["unheard"])
        elif way < 0.45:
            question = self.prose(2, 40)
        else:
            question = self.phrase("unknown").format_map(_Filling(self.corpus, self.random))
        return Dialogue(
            kind="unknown",
            messages=(user(self.vary(question)),),
            answer=self.corpus.fallback,
            thought=self.corpus.fallback_thought,
        )

    def _plain(self, kind: str, phrase: str, fill: str, answer: str, thought: str) -> Dialogue:
        question = self.vary(self.phrase(phrase)).format(fill)
        return Dialogue(kind=kind, messages=(user(question),), answer=answer, thought=thought)

    def _earlier(self) -> list[Message]:
        """Turns that went before and have nothing to do with the question."""
        turns: list[Message] = []
        for _ in range(self.random.randint(1, 2)):
            make = self.random.choice((self._topic, self._capital, self._unknown, self._say))
            dialogue = make()
            turns += [*dialogue.messages, assistant(dialogue.answer[:200])]
        return turns

    def _system(self) -> str:
        if self.chance(0.4):
            return self.random.choice(self.corpus.systems["plain"])
        most = int(2 ** self.random.uniform(3, 7))
        return self.prose(3, most)

    def _weather_tools(self) -> tuple[str, str, tuple[Tool, ...]]:
        options = self.corpus.tools["weather"]
        name, place = self.random.choice(options["names"]), self.random.choice(options["place"])
        tool = make_tool(name, self._describe(options), {place: self.hint()})
        if self.chance(0.3):
            schema = tool["function"]["parameters"]  # type: ignore[index]
            unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
            schema["properties"]["unit"] = unit
        return name, place, self._among(tool, "weather")

    def _write_tools(self) -> tuple[str, tuple[str, str], tuple[Tool, ...]]:
        options = self.corpus.tools["write"]
        name = self.random.choice(options["names"])
        keys = (self.random.choice(options["path"]), self.random.choice(options["content"]))
        hints = dict.fromkeys(keys, "") if self.chance(0.5) else {k: self.hint() for k in keys}
        return name, keys, self._among(make_tool(name, self._describe(options), hints), "write")

    def _one_key_tool(self, kind: str) -> tuple[Tool, str, str]:
        options = self.corpus.tools[kind]
        keys = options.get("command") or self.corpus.tools["write"]["path"]
        name, key = self.random.choice(options["names"]), self.random.choice(keys)
        return make_tool(name, self._describe(options), {key: self.hint()}), name, key

    def _among(self, tool: Tool, kind: str) -> tuple[Tool, ...]:
        """The tool and, often, some of other kinds, in any order."""
        tools = [tool]
        if self.chance(0.5):
            tools += self._some_tools(but=kind)
        self.random.shuffle(tools)
        return tuple(tools)

    def _some_tools(self, but: str = "") -> tuple[Tool, ...]:
        kinds = [kind for kind in ("weather", "write", "read", "run", "other") if kind != but]
        chosen = self.random.sample(kinds, self.random.randint(1, 3))
        return tuple(self._any_tool(kind) for kind in chosen)

    def _any_tool(self, kind: str) -> Tool:
        if kind in ("read", "run"):
            return self._one_key_tool(kind)[0]
        if kind == "other":
            noun = self.random.choice(self.corpus.words["noun"]).replace(" ", "_").lower()
            verb = self.random.choice(self.corpus.words["verb"])
            return make_tool(f"{verb}_{noun}", self.prose(3, 20), {noun: self.hint()})
        options = self.corpus.tools[kind]
        keys = [options["place"]] if kind == "weather" else [options["path"], options["content"]]
        parameters = {self.random.choice(names): self.hint() for names in keys}
        return make_tool(self.random.choice(options["names"]), self._describe(options), parameters)

    def _describe(self, options: Mapping[str, tuple[str, ...]]) -> str:
        text = self.random.choice(options["describes"])
        return f"{text}. {self.prose(3, 30)}" if self.chance(0.3) else text


class _Filling(dict[str, str]):
    """Fills the slots of a phrase, each time with another word."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        super().__init__()
        self._corpus = corpus
        self._rng = rng

    def __missing__(self, key: str) -> str:
        return self._rng.choice(self._corpus.words[key])


def _capital_thought(country: str) -> str:
    return f"The user asks for the capital of {country}."
