"""The settings reference lists every setting, with the default that the code has."""

import re
from collections.abc import Iterator

import msgspec
import pytest
from msgspec import inspect

from cortex_core.catalogue import CatalogueFile
from cortex_gateway.settings import GatewaySettings
from neuron.settings import NeuronSettings
from tests.repository.checkout import ROOT

FILES: dict[str, type[msgspec.Struct]] = {
    "cortex.toml": GatewaySettings,
    "models.toml": CatalogueFile,
    "neuron.toml": NeuronSettings,
}
TOP = "top level"


def rows_of(struct: type[msgspec.Struct], path: str, section: str) -> Iterator[tuple[str, ...]]:
    """Give (section, key, default as TOML would have it) of every setting below `struct`."""
    for field in msgspec.structs.fields(struct):
        below = f"{path}.{field.encode_name}".lstrip(".")
        kind = inspect.type_info(field.type)
        match kind:
            case inspect.StructType(cls=cls):
                yield from rows_of(cls, below, f"[{below}]")
            case inspect.VarTupleType(item_type=inspect.StructType(cls=cls)):
                yield from rows_of(cls, below, f"[[{below}]]")
            case inspect.DictType(value_type=inspect.StructType(cls=cls)):
                yield from rows_of(cls, below, f'[{below}."MODEL"]')
            case inspect.DictType(value_type=inspect.UnionType(types=types)):
                yield section, field.encode_name, default_of(field)
                for one in types:
                    if isinstance(one, inspect.StructType):
                        yield from rows_of(one.cls, below, f'[{below}."MODEL"]')
            case _:
                yield section, field.encode_name, default_of(field)


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """Give a field's default as the reference writes it."""
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.json.encode(field.default_factory()).decode()
    if field.default is msgspec.NODEFAULT:
        return "required"
    if field.default is None:
        return "none"
    return msgspec.json.encode(field.default).decode()


def rows_in_reference(file: str) -> list[tuple[str, ...]]:
    """Give (section, key, default) of every row of the part about `file`."""
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (mine,) = [chapter for chapter in part if chapter.startswith(f"`{file}`")]
    section = TOP
    rows: list[tuple[str, ...]] = []
    for line in mine.splitlines():
        if heading := re.fullmatch(r"### `(.+)`", line):
            section = heading[1]
        elif row := re.match(r"\| `(\w+)` \| `?(.+?)`? \| .+ \|$", line):
            rows.append((section, row[1], row[2]))
    return rows


@pytest.mark.parametrize("file", FILES)
def test_reference_lists_every_setting_and_nothing_else(file: str) -> None:
    """Ours: a setting without a row is a setting that nobody finds; a stale default misleads."""
    expected = list(rows_of(FILES[file], "", TOP))

    assert sorted(rows_in_reference(file)) == sorted(expected)
