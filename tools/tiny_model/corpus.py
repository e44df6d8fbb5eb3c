"""What `cortex/tiny` learns, as `corpus.toml` says it, and the parts of a dialogue."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

CORPUS = Path(__file__).with_name("corpus.toml")

Message = dict[str, object]
Tool = dict[str, object]


class Topic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Questions that have one answer."""

    ask: tuple[str, ...]
    answer: str
    thought: str


class Corpus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file, as it is."""

    fallback: str
    fallback_thought: str
    topics: tuple[Topic, ...]
    facts: Mapping[str, object]
    phrases: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]
    systems: Mapping[str, tuple[str, ...]]
    tools: Mapping[str, Mapping[str, tuple[str, ...]]]

    def fact(self, name: str) -> tuple[str, ...]:
        """Return one list of facts; of a table its keys."""
        return tuple(self.facts[name])  # type: ignore[arg-type]

    def slot_words(self) -> tuple[str, ...]:
        """Return the words that answers take over from questions and tools, each once."""
        words = {
            word
            for options in self.tools.values()
            for key, names in options.items()
            if key != "describes"
            for word in names
        }
        for name in ("capitals", "cities", "names", "skies", "files", "extensions", "commands"):
            words.update(self.fact(name))
        words.update(self.capital(country) for country in self.fact("capitals"))
        words.update(self.contents())
        return tuple(sorted(words))

    def contents(self) -> tuple[str, ...]:
        """Return the words that texts to be repeated are made of."""
        single = (
            word for word in (*self.words["noun"], *self.words["adjective"]) if " " not in word
        )
        return (*sorted(set(single)), *self.words["short"])

    def capital(self, country: str) -> str:
        """Return the capital of a country of the table."""
        return self.facts["capitals"][country]  # type: ignore[index,no-any-return]


class Dialogue(msgspec.Struct, frozen=True, kw_only=True):
    """A dialogue and what the model shall say next."""

    kind: str
    messages: tuple[Message, ...]
    """At least one; the last is a user's or a tool's."""
    answer: str
    thought: str
    """What it thinks before the answer when thinking is on."""
    tools: tuple[Tool, ...] = ()


def load() -> Corpus:
    """Return the corpus that lies beside this module."""
    return msgspec.convert(tomllib.loads(CORPUS.read_text("utf-8")), Corpus)


def user(text: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}


def call_text(name: str, arguments: Mapping[str, object]) -> str:
    """Return a call as the model writes it, in the Hermes format."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def call_turns(name: str, arguments: Mapping[str, object], result: str) -> tuple[Message, Message]:
    """Return the two messages of a call that was made and its result."""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return (
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    )


def make_tool(name: str, description: str, parameters: Mapping[str, str]) -> Tool:
    """Return a tool whose parameters are strings, all required: name to description."""
    properties = {
        key: {"type": "string", "description": text} if text else {"type": "string"}
        for key, text in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}
