"""What a new configuration changes, and how much of that can be done while the gateway runs."""

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

import msgspec

from cortex_core.wire.admin import ConfigChange
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.settings import GatewaySettings

LIVE = frozenset(
    {
        "gateway.cors_origins",
        "gateway.fleet_token",
        "gateway.fleet_token_file",
        "gateway.log_level",
        "gateway.max_body_mb",
        "gateway.timeouts.first_byte_s",
        "gateway.timeouts.heartbeat_s",
        "gateway.timeouts.hold_s",
        "gateway.timeouts.idle_s",
        "gateway.timeouts.load_s",
        "models_config",
    }
)
"""Settings that are put in force at once, beside the tables of `LIVE_TABLES`."""

LIVE_TABLES = ("eviction.", "gateway.queue.")

_LISTS = ("neurons", "upstreams")

_Table = dict[str, object]

K = TypeVar("K", bound=str)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a new configuration."""

    in_force: Configuration
    """The new one, with the old values of what takes a restart."""
    changed: tuple[ConfigChange, ...]
    """By path."""
    needs_restart: tuple[str, ...]
    """Paths, sorted."""


def compare(old: Configuration, new: Configuration) -> Comparison:
    """Return what is to be put in force, and what that changes.

    Args:
        old: what is in force.
        new: what the files say.
    """
    before, after = _table(old.settings), _table(new.settings)
    told = [path for path in _paths(before, after) if _get(before, path) != _get(after, path)]
    late = tuple(path for path in told if not _is_live(path))
    for path in late:
        _set(after, path, _get(before, path))
    changes = [ConfigChange(path=path, change="changed") for path in told if path not in late]
    changes += _entries("neurons", _by_name(old.settings.neurons), _by_name(new.settings.neurons))
    changes += _entries("upstreams", _upstreams(old), _upstreams(new))
    changes += _entries("models", old.catalogue.profiles, new.catalogue.profiles)
    changes += _entries("aliases", old.catalogue.aliases, new.catalogue.aliases)
    return Comparison(
        in_force=Configuration(
            settings=msgspec.convert(after, GatewaySettings),
            catalogue=new.catalogue,
            accesses=new.accesses,
        ),
        changed=tuple(sorted(changes, key=lambda change: change.path)),
        needs_restart=tuple(sorted(late)),
    )


def _is_live(path: str) -> bool:
    return path in LIVE or path.startswith(LIVE_TABLES)


def _table(settings: GatewaySettings) -> _Table:
    table: _Table = msgspec.to_builtins(settings)
    return table


def _paths(*tables: _Table) -> list[str]:
    """Return every setting that is no list of entries, once, in order."""
    found: dict[str, None] = {}
    for table in tables:
        for key, value in table.items():
            if key not in _LISTS:
                found.update(dict.fromkeys(_below(key, value)))
    return list(found)


def _below(path: str, value: object) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _below(f"{path}.{key}", inner)
    else:
        yield path


def _get(table: _Table, path: str) -> object:
    value: object = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _set(table: _Table, path: str, value: object) -> None:
    *above, last = path.split(".")
    for key in above:
        inner = table.setdefault(key, {})
        assert isinstance(inner, dict)
        table = inner
    table[last] = value


def _by_name(entries: tuple[msgspec.Struct, ...]) -> dict[str, object]:
    return {str(getattr(entry, "name", "")): entry for entry in entries}


def _upstreams(configuration: Configuration) -> dict[str, object]:
    """Return what makes each upstream what it is, its key included."""
    accesses = configuration.accesses
    return {
        entry.name: (entry, accesses.get(entry.name)) for entry in configuration.settings.upstreams
    }


def _entries(
    table: str, old: Mapping[K, object], new: Mapping[K, object]
) -> Iterator[ConfigChange]:
    for name in old.keys() | new.keys():
        change: Literal["added", "removed", "changed"]
        if name not in old:
            change = "added"
        elif name not in new:
            change = "removed"
        elif old[name] != new[name]:
            change = "changed"
        else:
            continue
        yield ConfigChange(path=f"{table}.{name}", change=change)
