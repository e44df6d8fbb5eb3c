"""Traces that nobody recorded: arrivals drawn from a description of who asks for what.

Everything is drawn from the source of numbers that is passed in, so the same one gives the same
trace.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Protocol, get_args

import msgspec
from msgspec import Meta

from cortex_core.config import to_settings
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId
from cortex_core.routing.queue import Priority
from cortex_core.simulation.trace import Arrival

Positive = Annotated[float, Meta(gt=0)]
Tokens = Annotated[int, Meta(ge=1)]

Pattern = Literal["steady", "diurnal", "bursts", "agents"]

PATTERNS: tuple[str, ...] = get_args(Pattern)

MAX_PROMPT_TOKENS = 100_000
"""Where a conversation is cut; a few times what most models read at once."""

READING_TOKENS_PER_S = 50.0
"""How fast an agent gets the answer that it goes on from, for the pace of its session."""


class Dice(Protocol):
    """Where numbers come from; `random.Random` is one."""

    def random(self) -> float:
        """Return the next number in [0, 1)."""
        ...


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[sources]]` entry of a trace definition: callers that behave alike."""

    callers: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Their names."""
    pattern: Pattern = "steady"
    """When they ask: at all times alike; more at some hours than at others; in bursts, each for one
    model; or as agents, whose sessions ask one model again and again with growing prompts."""
    per_second: Positive = 1.0
    """Requests per second of all its callers together, on average."""
    models: tuple[ModelId, ...] = ()
    """What they ask for, the most popular first; empty is the whole catalogue in its order."""
    zipf: Annotated[float, Meta(ge=0)] = 1.0
    """Exponent of the popularity (Zipf): the model of rank k is asked for as 1 / k to that; 0 asks
    for all alike."""
    prompt_tokens: Tokens = 800
    """Median of what a request reads; for agents, of what each turn adds."""
    completion_tokens: Tokens = 200
    """Median of what it writes."""
    spread: Annotated[float, Meta(ge=0, le=3)] = 0.7
    """How far sizes scatter around the median: sigma of their logarithm."""
    priority: Priority = Priority.NORMAL
    """What they say in `x-cortex-priority`."""
    from_s: Annotated[float, Meta(ge=0)] = 0.0
    """When they begin."""
    until_s: Positive | None = None
    """When they stop; none is the end of the trace."""
    period_s: Positive = 86400.0
    """For `diurnal`: length of a day; it begins at its quietest."""
    depth: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """For `diurnal`: how far the rate swings around its average; 1 reaches nothing at all."""
    burst_s: Positive = 60.0
    """For `bursts`: how long one lasts, on average."""
    quiet_s: Positive = 240.0
    """For `bursts`: how long a caller is quiet between two, on average."""
    turns: Tokens = 10
    """For `agents`: requests of one session, on average."""
    think_s: Positive = 5.0
    """For `agents`: time between an answer and the next request, on average."""


class TraceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trace definition, as it is written in TOML."""

    duration_s: Positive = 3600.0
    """From the first to the last moment at which somebody may ask."""
    sources: Annotated[tuple[Source, ...], Meta(min_length=1)]
    """Who asks; all of them together are the trace."""


def ordinary(pattern: str, per_second: float) -> TraceFile:
    """Return an hour of one pattern with eight callers, which is a day of the `diurnal` one.

    Raises:
        SettingsError: there is no such pattern, or `per_second` is not above 0.
    """
    callers = [f"caller-{number}" for number in range(1, 9)]
    source = {"pattern": pattern, "per_second": per_second, "callers": callers, "period_s": 3600.0}
    return to_settings({"sources": [source]}, TraceFile, "the trace")


def generate(file: TraceFile, models: Sequence[ModelId], dice: Dice) -> tuple[Arrival, ...]:
    """Return the arrivals of a definition, in order.

    Args:
        file: the definition.
        models: those of the catalogue, for sources that name none.
        dice: where numbers come from.

    Raises:
        SettingsError: there is no model to ask for.
    """
    arrivals: list[Arrival] = []
    for position, source in enumerate(file.sources):
        chosen = source.models or tuple(models)
        if not chosen:
            raise SettingsError(f"sources[{position}].models: there is no model to ask for")
        until = file.duration_s if source.until_s is None else min(source.until_s, file.duration_s)
        arrivals.extend(_Drawn(source, chosen, dice).arrivals(source.from_s, until))
    return tuple(sorted(arrivals, key=lambda one: (one.at, one.caller, one.model)))


class _Drawn:
    """Draws the arrivals of one source."""

    def __init__(self, source: Source, models: Sequence[ModelId], dice: Dice) -> None:
        self._source = source
        self._models = models
        self._random = dice.random
        weights = [1.0 / rank**source.zipf for rank in range(1, len(models) + 1)]
        total = sum(weights)
        self._sums: list[float] = []
        for weight in weights:
            self._sums.append((self._sums[-1] if self._sums else 0.0) + weight / total)

    def arrivals(self, begin: float, end: float) -> Iterator[Arrival]:
        match self._source.pattern:
            case "steady":
                yield from self._steady(begin, end)
            case "diurnal":
                yield from self._diurnal(begin, end)
            case "bursts":
                for caller in self._source.callers:
                    yield from self._bursts(caller, begin, end)
            case "agents":
                yield from self._agents(begin, end)

    def _steady(self, begin: float, end: float) -> Iterator[Arrival]:
        for at in self._times(self._source.per_second, begin, end):
            yield self._arrival(at, self._caller(), self._model())

    def _diurnal(self, begin: float, end: float) -> Iterator[Arrival]:
        source = self._source
        # Thinning (Lewis and Shedler, 1979): draw at the highest rate, keep as many as are due.
        for at in self._times(source.per_second * (1.0 + source.depth), begin, end):
            swing = -math.cos(2 * math.pi * at / source.period_s)
            due = (1.0 + source.depth * swing) / (1.0 + source.depth)
            if self._random() < due:
                yield self._arrival(at, self._caller(), self._model())

    def _bursts(self, caller: str, begin: float, end: float) -> Iterator[Arrival]:
        source = self._source
        share = source.per_second / len(source.callers)
        rate = share * (source.burst_s + source.quiet_s) / source.burst_s
        at = begin + self._random() * source.quiet_s
        while at < end:
            stop = at + self._exponential(source.burst_s)
            model = self._model()
            for when in self._times(rate, at, min(stop, end)):
                yield self._arrival(when, caller, model)
            at = stop + self._exponential(source.quiet_s)

    def _agents(self, begin: float, end: float) -> Iterator[Arrival]:
        source = self._source
        starts = self._times(source.per_second / source.turns, begin, end)
        for number, start in enumerate(starts):
            caller, model = self._caller(), self._model()
            # Sessions end with each turn as likely as with any other.
            turns = 1 + int(self._exponential(source.turns - 1)) if source.turns > 1 else 1
            at, read = start, 0
            for _ in range(turns):
                read = min(read + self._tokens(source.prompt_tokens), MAX_PROMPT_TOKENS)
                written = self._tokens(source.completion_tokens)
                if at >= end:
                    break
                yield Arrival(
                    at=at,
                    model=model,
                    caller=caller,
                    prompt_tokens=read,
                    completion_tokens=written,
                    priority=source.priority,
                    session=f"{caller}/{number}",
                )
                read += written
                at += written / READING_TOKENS_PER_S + self._exponential(source.think_s)

    def _arrival(self, at: float, caller: str, model: ModelId) -> Arrival:
        source = self._source
        return Arrival(
            at=at,
            model=model,
            caller=caller,
            prompt_tokens=self._tokens(source.prompt_tokens),
            completion_tokens=self._tokens(source.completion_tokens),
            priority=source.priority,
        )

    def _times(self, rate: float, begin: float, end: float) -> Iterator[float]:
        """Yield the times of a Poisson process."""
        at = begin + self._exponential(1.0 / rate)
        while at < end:
            yield at
            at += self._exponential(1.0 / rate)

    def _caller(self) -> str:
        callers = self._source.callers
        return callers[int(self._random() * len(callers))]

    def _model(self) -> ModelId:
        drawn = self._random()
        for model, reached in zip(self._models, self._sums, strict=True):
            if drawn < reached:
                return model
        return self._models[-1]

    def _tokens(self, median: int) -> int:
        # Box and Muller; one of the two numbers is enough.
        radius = math.sqrt(-2.0 * math.log(1.0 - self._random()))
        normal = radius * math.cos(2 * math.pi * self._random())
        return min(max(1, round(median * math.exp(self._source.spread * normal))), 1 << 20)

    def _exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self._random())
