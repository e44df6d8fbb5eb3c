"""Whether an engine that was just loaded or woken answers as it should.

What a model says to a prompt cannot be known before, but two things can: that it is numbers, and
that it is the same before and after a sleep. Weights that came back broken fail one of the two.
"""

import math
from collections.abc import Mapping

import msgspec

from cortex_core.harness import Capabilities, Route

PROMPT = "1 2 3 4 5 6 7 8 9"

_TOKENS = 8
"""Enough for broken weights to show, few enough to cost less than the first answer anyway."""

_LOGPROBS = 2
"""The token itself and the one that nearly came instead."""

_CLOSE_CALL = 0.1
"""Difference of two log probabilities below which either token may come first: kernels do not
add up in the same order every time."""

_DRIFT = 0.25
"""Difference of a token's log probability that the same weights may show."""

_VECTOR_DRIFT = 0.02
"""Largest distance of two vectors from the same weights, of the length of the first."""


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """What a model that generates said, token by token."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    """Of each token; `None` is not a number, or not told."""
    runners_up: tuple[Mapping[str, float | None], ...] = ()
    """The most likely tokens at each place, with their log probabilities; may be empty."""


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """What a model that embeds or scores said."""

    values: tuple[float | None, ...]
    """`None` is not a number."""


Said = Spoken | Vector


class _Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[Mapping[str, float | None] | None, ...] | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    text: str = ""
    logprobs: _Logprobs | None = None


class _Completion(msgspec.Struct, frozen=True, kw_only=True):
    choices: tuple[_Choice, ...] = ()


class _Embedding(msgspec.Struct, frozen=True, kw_only=True):
    embedding: tuple[float | None, ...] = ()


class _Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[_Embedding, ...] = ()


class _Score(msgspec.Struct, frozen=True, kw_only=True):
    score: float | None = None


class _Scores(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[_Score, ...] = ()


def question(
    model: str, capabilities: Capabilities, max_logprobs: int = _LOGPROBS
) -> tuple[Route, bytes] | None:
    """Return what to ask a model, or `None` when it does nothing that can be checked.

    Args:
        model: its id.
        capabilities: of it.
        max_logprobs: how many it may be asked for at each place, as its options say; -1 is any
            number. With 0 the text alone is looked at.
    """
    if capabilities.completions:
        body: dict[str, object] = {
            "model": model,
            "prompt": PROMPT,
            "max_tokens": _TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        if max_logprobs:
            body["logprobs"] = _LOGPROBS if max_logprobs < 0 else min(_LOGPROBS, max_logprobs)
        return Route.COMPLETIONS, msgspec.json.encode(body)
    if capabilities.embeddings:
        body = {"model": model, "input": PROMPT, "encoding_format": "float"}
        return Route.EMBEDDINGS, msgspec.json.encode(body)
    if capabilities.scoring:
        body = {"model": model, "text_1": PROMPT, "text_2": [PROMPT, *PROMPT.split()]}
        return Route.SCORE, msgspec.json.encode(body)
    return None


def read_answer(route: Route, body: bytes) -> Said:
    """Return what an engine said to `question`.

    Raises:
        msgspec.DecodeError: it is of another shape, or holds what is not a number of JSON.
    """
    if route is Route.EMBEDDINGS:
        data = msgspec.json.decode(body, type=_Embeddings).data
        return Vector(values=data[0].embedding if data else ())
    if route is Route.SCORE:
        scores = msgspec.json.decode(body, type=_Scores).data
        return Vector(values=tuple(score.score for score in scores))
    choices = msgspec.json.decode(body, type=_Completion).choices
    if choices and choices[0].logprobs is None and choices[0].text:
        return Spoken(tokens=(choices[0].text,), logprobs=(0.0,))
    said = (choices[0].logprobs if choices else None) or _Logprobs()
    return Spoken(
        tokens=said.tokens,
        logprobs=said.token_logprobs,
        runners_up=tuple(top or {} for top in said.top_logprobs or ()),
    )


def flaw(said: Said, before: Said | None) -> str | None:
    """Say what is wrong with an answer, or `None` when it is right.

    Args:
        said: now.
        before: what the same engine said when it was loaded; `None` for the first time.
    """
    values = said.values if isinstance(said, Vector) else said.logprobs
    if not values:
        return "it says nothing"
    if any(value is None or not math.isfinite(value) for value in values):
        return "it computes what is not a number"
    if before is None:
        return None
    if isinstance(said, Vector):
        return None if isinstance(before, Vector) and _is_near(said, before) else _ANOTHER
    return None if isinstance(before, Spoken) and _is_same(said, before) else _ANOTHER


_ANOTHER = "it says something else than before it slept"


def _is_near(said: Vector, before: Vector) -> bool:
    now = [value or 0.0 for value in said.values]
    then = [value or 0.0 for value in before.values]
    if len(now) != len(then):
        return False
    return math.dist(now, then) <= _VECTOR_DRIFT * math.hypot(*then)


def _is_same(said: Spoken, before: Spoken) -> bool:
    """Say whether the same weights could have said both."""
    if len(said.tokens) != len(before.tokens):
        return False
    for place, (now, then) in enumerate(zip(said.tokens, before.tokens, strict=True)):
        if now != then:
            # From here on they continue different texts.
            return _is_close_call(before, place, now)
        if abs((said.logprobs[place] or 0.0) - (before.logprobs[place] or 0.0)) > _DRIFT:
            return False
    return True


def _is_close_call(before: Spoken, place: int, other: str) -> bool:
    runners_up = before.runners_up[place] if place < len(before.runners_up) else {}
    mine, theirs = before.logprobs[place], runners_up.get(other)
    return mine is not None and theirs is not None and abs(mine - theirs) <= _CLOSE_CALL
