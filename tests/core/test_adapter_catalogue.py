"""Adapters in the catalogue: what they say, and what they take from their base."""

import pathlib

import pytest

from cortex_core.catalogue import load_catalogue
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId

BASE, A = ModelId("base"), ModelId("a")

BASE_TOML = """
[[models]]
id = "base"
harness = "vllm"
idle_unload_s = 60
[models.engine]
enable_lora = true
max_loras = 2
max_cpu_loras = 8
"""


def test_a_catalogue_gives_an_adapter_what_its_base_says(tmp_path: pathlib.Path) -> None:
    """Ours: no memory of its own, and the base's time where it has none."""
    path = tmp_path / "models.toml"
    path.write_text(
        BASE_TOML + '[[models]]\nid = "a"\nharness = "vllm"\nbase = "base"\nadapter = "/a"\n'
    )

    profiles = load_catalogue(path).profiles

    assert (profiles[A].vram_mb, profiles[A].idle_unload_s) == (0, 60)
    assert (profiles[BASE].adapter_places, profiles[A].adapter_places) == (8, 0)


@pytest.mark.parametrize(
    ("base", "adapter_toml", "why"),
    [
        (BASE_TOML, 'base = "none"', "models[1].base: 'none' is no base for 'a'"),
        (BASE_TOML, 'base = "a"', "models[1].base: 'a' is no base for 'a'"),
        (BASE_TOML.replace("true", "false"), 'base = "base"', "enable_lora = true"),
        (BASE_TOML, 'base = "base"\nvram_mb = 5', "models[1].vram_mb: the adapter 'a' takes it"),
        (BASE_TOML, 'base = "base"\nengine = {dtype = "x"}', "models[1].engine.dtype"),
        (BASE_TOML.replace('"vllm"', '"x"'), 'base = "base"', "'base' has 'x', so its adapter 'a'"),
        (BASE_TOML, 'adapter = "/a"', "models[1].adapter: name the `base` of 'a'"),
        (
            BASE_TOML.replace("idle_unload_s = 60", 'pinned_on = ["one"]'),
            'base = "base"\npinned_on = ["two"]',
            "models[1].pinned_on: 'base' is on one alone",
        ),
    ],
)
def test_a_catalogue_with_an_adapter_that_cannot_be_says_whose_and_why(
    tmp_path: pathlib.Path, base: str, adapter_toml: str, why: str
) -> None:
    """Issue: a clear error with the profile's name."""
    path = tmp_path / "models.toml"
    path.write_text(f'{base}[[models]]\nid = "a"\nharness = "vllm"\n{adapter_toml}\n')

    with pytest.raises(SettingsError) as raised:
        load_catalogue(path)

    assert why in str(raised.value)
