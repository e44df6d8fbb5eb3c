"""`cortex.toml`: what is read, and what is said about what cannot be."""

import pathlib

import pytest

from cortex_core.errors import SettingsError
from cortex_gateway.settings import GatewaySettings, load_settings

# The example of the contract, word for word.
EXAMPLE = """
models_config = "models.toml"
[gateway]
listen = "0.0.0.0:31313"
metrics_listen = "0.0.0.0:31314"
[eviction]
strategy = "lru"            # lru | priority | cost
defrag_after_cycles = 50    # 0 = never
[[neurons]]
name = "beast"
endpoint = "http://beast.internal:13131"
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cortex.toml"


def test_the_given_example_is_the_default_but_for_its_node(file: pathlib.Path) -> None:
    """Contract: cortex.toml."""
    file.write_text(EXAMPLE)

    settings = load_settings(file, {})

    assert settings.gateway == GatewaySettings().gateway
    assert settings.eviction == GatewaySettings().eviction
    assert settings.endpoints == {"beast": "http://beast.internal:13131"}


def test_catalogue_is_relative_to_the_file_that_names_it(file: pathlib.Path) -> None:
    """Contract; a service's working directory is somewhere else."""
    file.write_text(EXAMPLE)

    assert load_settings(file, {}).catalogue_path == file.parent / "models.toml"


def test_absolute_catalogue_stays_where_it_is(file: pathlib.Path) -> None:
    """Contract."""
    file.write_text('models_config = "/srv/models.toml"')

    assert load_settings(file, {}).catalogue_path == pathlib.Path("/srv/models.toml")


def test_catalogue_named_by_the_environment_is_not_beside_the_file(file: pathlib.Path) -> None:
    """Ours: no file names it, so it is relative to the working directory as any argument."""
    file.write_text(EXAMPLE)

    settings = load_settings(file, {"CORTEX_MODELS_CONFIG": "other.toml"})

    assert settings.catalogue_path == pathlib.Path("other.toml")


def test_empty_file_has_no_catalogue_and_no_nodes(file: pathlib.Path) -> None:
    """Ours: a gateway may be brought up before its fleet."""
    file.write_text("")

    settings = load_settings(file, {})

    assert settings.catalogue_path is None
    assert settings.endpoints == {}


def test_environment_lies_over_the_file(file: pathlib.Path) -> None:
    """Contract: `CORTEX_` with `__` as separator."""
    file.write_text(EXAMPLE)
    environ = {
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:0",
        "CORTEX_GATEWAY__TIMEOUTS__HOLD_S": "5",
        "PATH": "/bin",
    }

    settings = load_settings(file, environ)

    assert settings.gateway.listen == "127.0.0.1:0"
    assert settings.gateway.timeouts.hold_s == 5
    assert settings.gateway.metrics_listen == "0.0.0.0:31314"


NODE = '[[neurons]]\nname = "{}"\nendpoint = "{}"\n'


@pytest.mark.parametrize(
    ("text", "where", "cure"),
    [
        ("[gateway]\nlistne = 'x'", "gateway.listne", "did you mean 'listen'?"),
        ("[gateway]\nlisten = 31313", "gateway.listen", "Expected `str`"),
        ("[gateway]\nlisten = '31313'", "gateway.listen", "HOST:PORT"),
        ("[gateway]\nmetrics_listen = 'h:70000'", "gateway.metrics_listen", "HOST:PORT"),
        ("[gateway]\nmetrics_listen = '0.0.0.0:31313'", "gateway.metrics_listen", "another port"),
        ("[gateway.timeouts]\nidle_s = 0", "gateway.timeouts.idle_s", "> 0"),
        ("[gateway.timeouts]\nkeep_alive_s = 75", "gateway.timeouts.keep_alive_s", "< 75"),
        ("[gateway]\nlog_format = 'xml'", "gateway.log_format", "xml"),
        ("[eviction]\nstrategy = 'mru'", "eviction.strategy", "mru"),
        ("[[nodes]]\nname = 'a'", "nodes", "known keys: "),
        ("[[neurons]]\nname = 'a'", "neurons[0].endpoint", "required"),
        (NODE.format("a", "beast:13131"), "neurons[0].endpoint", "http://"),
        (NODE.format("a", "http://h:99999"), "neurons[0].endpoint", "http://"),
        (NODE.format("a", "http://h/?q=1"), "neurons[0].endpoint", "http://"),
        (NODE.format("", "http://h"), "neurons[0].name", "is no node name"),
        (NODE.format("a", "http://h") * 2, "neurons[1].name", "names are unique"),
    ],
)
def test_what_cannot_be_is_told_with_file_path_and_cure(
    file: pathlib.Path, text: str, where: str, cure: str
) -> None:
    """Contract: file, TOML path, what was wrong and what would be right."""
    file.write_text(text)

    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})

    assert caught.value.message.startswith(f"{file}: {where}")
    assert cure in caught.value.message
    assert "\n" not in caught.value.message


def test_wrong_variable_is_named(file: pathlib.Path) -> None:
    """Ours: whoever reads the file in vain is told where else to look."""
    file.write_text(EXAMPLE)

    with pytest.raises(SettingsError, match=r"with CORTEX_GATEWAY__LISTNE.*did you mean 'listen'"):
        load_settings(file, {"CORTEX_GATEWAY__LISTNE": "127.0.0.1:0"})


def test_the_variable_of_the_command_line_is_no_setting() -> None:
    """Ours: an operator may export where the gateway is on the machine that runs it."""
    environ = {"CORTEX_ENDPOINT": "http://127.0.0.1:1", "CORTEX_GATEWAY__LISTEN": "127.0.0.1:5"}

    assert load_settings(None, environ).gateway.listen == "127.0.0.1:5"


def test_one_machine_is_no_two_nodes(tmp_path: pathlib.Path) -> None:
    """Ours: its memory would count twice."""
    path = tmp_path / "cortex.toml"
    entries = [
        f'[[neurons]]\nname = "{name}"\nendpoint = "http://h:1{end}"\n'
        for name, end in (("a", ""), ("b", "/"))
    ]
    path.write_text("".join(entries))

    with pytest.raises(SettingsError, match=r"neurons\[1\]\.endpoint: is that of 'a' already"):
        load_settings(path, {})
