"""Traces: who asked for which model and when, and how much it was; sizes and times alone."""

from collections.abc import Iterable

import msgspec

from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId
from cortex_core.routing.queue import Priority


class Arrival(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request: one line of a trace."""

    at: float
    """Seconds; from when on they are counted makes no difference."""
    model: ModelId
    caller: str
    """A name, or whatever tells callers apart."""
    prompt_tokens: int
    completion_tokens: int
    priority: Priority = Priority.NORMAL
    session: str | None = None
    """The same in all requests of one conversation."""


_decoder = msgspec.json.Decoder(Arrival)


def line_of(arrival: Arrival) -> bytes:
    """Return the line of a trace that says this, with its newline."""
    return msgspec.json.encode(arrival) + b"\n"


def read_trace(lines: Iterable[bytes], source: str) -> tuple[Arrival, ...]:
    """Read a trace, in the order of the arrivals; the first of them is at 0.

    Lines may come in any order, since a gateway writes them when requests end; empty ones count
    for nothing.

    Raises:
        SettingsError: a line cannot be used; names it and says why.
    """
    arrivals = [
        _arrival(line, f"{source}: line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return from_zero(arrivals)


def from_zero(arrivals: Iterable[Arrival]) -> tuple[Arrival, ...]:
    """Return arrivals in order, moved so that the first is at 0."""
    ordered = sorted(arrivals, key=lambda arrival: arrival.at)
    start = ordered[0].at if ordered else 0.0
    if not start:
        return tuple(ordered)
    return tuple(msgspec.structs.replace(one, at=one.at - start) for one in ordered)


def _arrival(line: bytes, where: str) -> Arrival:
    try:
        arrival = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where}: {error}") from None
    if arrival.prompt_tokens < 0 or arrival.completion_tokens < 0:
        raise SettingsError(f"{where}: a request cannot have fewer than no tokens")
    return arrival
