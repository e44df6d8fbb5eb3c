"""Settings files: what is refused and what the message says."""

import pathlib

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, load_catalogue
from cortex_core.config import Table, overlay_environment, to_settings
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    listen: str = "a"
    limit_s: float = 1.0


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gateway: Inner = Inner()
    port: int = 1


def write(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    path = tmp_path / "models.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[models]]\nid = "a"\nharnes = "vllm"', "models[0].harnes: unknown key; did you mean"),
        ('[[models]]\nid = "a"', "models[0].harness: required key is missing"),
        ('[[models]]\nid = "a"\nharness = "v"\nvram_mb = "1"', "models[0].vram_mb: Expected"),
        ('[[models]]\nid = "a"\nharness = "v"\nmin_devices = 0', "models[0].min_devices: Expected"),
        (
            '[[models]]\nid = "a"\nharness = "v"\nmin_devices = 3\npipeline_parallel = 2',
            "models[0].pipeline_parallel: 3 devices cannot be shared evenly by 2 stages",
        ),
        ('[[models]]\nid = "a b"\nharness = "v"', "models[0].id: 'a b' is no model id"),
        ('[[models]]\nid = "/a b"\nharness = "v"', "models[0].id: '/a b' is no model id"),
        ("[modells]", "modells: unknown key; did you mean 'models'?"),
        ("x = ", "not valid TOML"),
        (
            '[[models]]\nid="a"\nharness="v"\n[[models]]\nid="a"\nharness="v"',
            "models[1].id: 'a' is there twice",
        ),
        ('[[models]]\nid="a"\nharness="v"\n[aliases]\na="b"', "is also a model's id"),
        ('[aliases]\nx="y"\ny="z"', "points at the alias 'y'"),
    ],
)
def test_a_bad_catalogue_is_refused_with_file_path_and_cure(
    tmp_path: pathlib.Path, text: str, expected: str
) -> None:
    """Ours: strict in settings."""
    path = write(tmp_path, text)

    with pytest.raises(SettingsError) as caught:
        load_catalogue(path)

    assert caught.value.message.startswith(str(path))
    assert expected in caught.value.message


def test_a_missing_file_is_said_in_one_line(tmp_path: pathlib.Path) -> None:
    """Ours."""
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_catalogue(tmp_path / "none.toml")


def test_the_context_is_what_the_engine_options_state(tmp_path: pathlib.Path) -> None:
    """Ours: clients see a limit before the model was ever loaded."""
    text = '[[models]]\nid="a"\nharness="v"\n[models.engine]\nmax_model_len=512'

    profile = load_catalogue(write(tmp_path, text)).profiles[ModelId("a")]

    assert profile.context == 512


def test_an_empty_catalogue_is_fine(tmp_path: pathlib.Path) -> None:
    """Ours: a gateway may serve only what its nodes have."""
    assert load_catalogue(write(tmp_path, "")) == Catalogue()


def test_environment_lies_over_the_file() -> None:
    """Contract: `CORTEX_GATEWAY__LISTEN` sets `gateway.listen`."""
    table: Table = {"gateway": {"listen": "file", "limit_s": 2.0}}
    environ = {"CORTEX_GATEWAY__LISTEN": "env", "CORTEX_PORT": "7", "OTHER": "x"}

    settings = to_settings(overlay_environment(table, environ, "CORTEX_"), Outer, "cortex.toml")

    assert settings == Outer(gateway=Inner(listen="env", limit_s=2.0), port=7)
    assert table == {"gateway": {"listen": "file", "limit_s": 2.0}}


def test_an_unknown_variable_is_refused_like_an_unknown_key() -> None:
    """Ours: a typing error in a unit file must not pass unseen."""
    merged = overlay_environment({}, {"CORTEX_GATEWAY__LISTN": "x"}, "CORTEX_")

    with pytest.raises(SettingsError, match=r"gateway\.listn: unknown key; did you mean 'listen'"):
        to_settings(merged, Outer, "environment")


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_any_text_in_a_variable_becomes_some_value(text: str) -> None:
    """Ours: the overlay itself never fails; the struct decides."""
    merged = overlay_environment({}, {"CORTEX_X": text}, "CORTEX_")

    assert set(merged) == {"x"}
