"""Settings files: TOML plus an overlay of environment variables, into strict structs.

An unknown key, a wrong type or an impossible value is a `SettingsError` that names the file,
the TOML path, what was wrong and what would be right. Nothing here reads the environment or
the disk on its own but `load_toml` and what reads secrets: both are passed in.
"""

import difflib
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from cortex_core.errors import SettingsError

T = TypeVar("T")
Table = dict[str, object]

_UNKNOWN = re.compile(
    r"Object contains unknown field `(?P<field>[^`]+)`(?: - at `\$\.?(?P<path>[^`]*)`)?"
)
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")


def load_toml(path: pathlib.Path) -> Table:
    """Read a TOML file.

    Raises:
        SettingsError: it cannot be read or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path}: cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


def read_secret(path: pathlib.Path, where: str) -> str:
    """Read a key or a token from a file of its own; blanks around it are not of it.

    Args:
        path: the file.
        where: the setting that names it, for the message.

    Raises:
        SettingsError: it cannot be read, or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"{where}: cannot read {str(path)!r}: {reason}") from None
    if not secret:
        raise SettingsError(f"{where}: {str(path)!r} is empty")
    return secret


def read_fleet_token(table: Table, where: str) -> None:
    """Put what `fleet_token_file` holds into `fleet_token`, in place.

    Args:
        table: that may have one of them; what else is wrong with it is for `to_settings` to say.
        where: it stands, for the message.

    Raises:
        SettingsError: both are there, the file cannot be used, or the token fits no header.
    """
    token, name = table.get("fleet_token"), table.get("fleet_token_file")
    if token is not None and name is not None:
        raise SettingsError(f"{where}fleet_token_file: give it or fleet_token, not both")
    if isinstance(name, str):
        token = table["fleet_token"] = read_secret(pathlib.Path(name), f"{where}fleet_token_file")
    if isinstance(token, str) and not _fits_header(token):
        raise SettingsError(f"{where}fleet_token: it has characters that no header can carry")


def _fits_header(token: str) -> bool:
    # Blanks around a header's value are no part of it (RFC 9110 section 5.5).
    return token.isascii() and token.isprintable() and token == token.strip() != ""


def overlay_environment(table: Table, environ: Mapping[str, str], prefix: str) -> Table:
    """Return `table` with the variables that start with `prefix` laid over it.

    `__` separates levels and names are lower-cased: `CORTEX_GATEWAY__LISTEN=127.0.0.1:0` sets
    `gateway.listen`. A value is read as TOML where it is TOML (`5`, `true`, `[1, 2]`), and as a
    plain string otherwise. Variables without `__` set a top-level key. Lists of tables cannot
    be reached.
    """
    merged = dict(table)
    for name in sorted(environ):
        if name.startswith(prefix):
            keys = name.removeprefix(prefix).lower().split("__")
            if all(keys):
                _set(merged, keys, _value(environ[name]))
    return merged


def to_settings(table: Mapping[str, object], kind: type[T], source: str) -> T:
    """Convert a table to settings.

    Args:
        table: what TOML and environment gave.
        kind: a struct that forbids unknown fields.
        source: file name for the message.

    Raises:
        SettingsError: see the module.
    """
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: {_explain(str(error), kind)}") from None


def _set(table: Table, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        inner = table.get(key)
        inner = dict(inner) if isinstance(inner, dict) else {}
        table[key] = inner
        table = inner
    table[keys[-1]] = value


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(message: str, kind: type) -> str:
    unknown = _UNKNOWN.search(message)
    if unknown:
        where, field = unknown["path"] or "", unknown["field"]
        known = _fields_at(kind, where)
        close = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"{_join(where, field)}: unknown key; {hint}"
    at = _AT.search(message)
    where = at["path"] if at else ""
    missing = _MISSING.search(message)
    if missing:
        return f"{_join(where, missing['field'])}: required key is missing"
    text = _AT.sub("", message)
    return f"{where}: {text}" if where else text


def _join(where: str, field: str) -> str:
    return f"{where}.{field}" if where else field


def _fields_at(kind: type, path: str) -> list[str]:
    """Names that are allowed at `path`, as far as plain structs and lists of them go."""
    info = msgspec.inspect.type_info(kind)
    for step in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        info = _step(info, step)
    while isinstance(info, msgspec.inspect.UnionType):
        info = next(
            (t for t in info.types if isinstance(t, msgspec.inspect.StructType)), info.types[0]
        )
    if isinstance(info, msgspec.inspect.StructType):
        return [field.encode_name for field in info.fields]
    return []


def _step(info: msgspec.inspect.Type, step: str) -> msgspec.inspect.Type:
    while isinstance(info, msgspec.inspect.UnionType):
        info = next(
            (t for t in info.types if isinstance(t, msgspec.inspect.StructType)), info.types[0]
        )
    if step.startswith("["):
        if isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
            return info.item_type
        if isinstance(info, msgspec.inspect.DictType):
            return info.value_type
    elif isinstance(info, msgspec.inspect.StructType):
        for field in info.fields:
            if field.encode_name == step:
                return field.type
    return msgspec.inspect.AnyType()
