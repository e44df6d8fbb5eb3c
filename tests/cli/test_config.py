"""`cortex config check`."""

import pathlib

import pytest

from cortex_cli.commands import config
from cortex_cli.main import main

CORTEX = 'models_config = "{models}"\n[[neurons]]\nname = "a"\nendpoint = "http://a:13131"\n'
MODELS = '[[models]]\nid = "org/model"\nharness = "vllm"\n'
NEURON = "port = 0\n"


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A working directory with one good file of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cortex.toml").write_text(CORTEX.format(models="models.toml"))
    (tmp_path / "models.toml").write_text(MODELS)
    (tmp_path / "neuron-3.toml").write_text(NEURON)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_good_files_are_ok_and_a_catalogue_is_checked_with_its_fleet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Contract: a relative `models_config` is relative to the file that names it."""
    status = main(["config", "check", "cortex.toml", "neuron-3.toml"])

    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    assert captured.out == "cortex.toml: ok\nmodels.toml: ok\nneuron-3.toml: ok\n"


@pytest.mark.usefixtures("folder")
def test_file_is_checked_once_however_often_it_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ours: one line per file."""
    status = main(["config", "check", "models.toml", "cortex.toml", "./cortex.toml"])

    assert status == 0
    assert capsys.readouterr().out == "models.toml: ok\ncortex.toml: ok\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cortex.toml", '[gateway]\nlistn = "a:1"\n', "gateway.listn: unknown key; did you mean"),
        ("cortex.prod.toml", "neurons = 3\n", "neurons: Expected `array`"),
        ("models.toml", '[[models]]\nid = "a"\n', "models[0].harness: required key is missing"),
        ("neuron.toml", "port = 99999\n", "port: Expected `int` <= 65535"),
        ("neuron.toml", "port = \n", "not valid TOML: Invalid value (at line 1"),
        ("neuron.toml", None, "cannot be read: No such file or directory"),
        ("here.toml", None, "cannot be read: No such file or directory"),
        ("here.toml", "colour = 3\n", "neither name nor content tells what it sets"),
        ("here.toml", "port = 1\nneurons = []\n", "neither name nor content tells what it sets"),
    ],
)
def test_bad_file_is_one_line_with_the_cure_and_status_two(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    said: str,
) -> None:
    """Contract: file, TOML path, what was wrong and what would be right; 2 configuration."""
    path = tmp_path / name
    if content is not None:
        path.write_text(content)

    status = main(["config", "check", str(path)])

    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith(str(path))
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[[neurons]]\n", "cortex"),
        ("[gateway]\n[eviction]\n", "cortex"),
        ("[aliases]\n", "models"),
        ("[[models]]\n", "models"),
        ("[[devices]]\n", "neuron"),
        ("[harness.simulated]\n", "neuron"),
    ],
)
def test_kind_is_told_by_content_when_the_name_does_not(
    tmp_path: pathlib.Path, content: str, kind: str
) -> None:
    """Ours: files of several fleets lie side by side under names of their own."""
    path = tmp_path / "west.toml"
    path.write_text(content)

    assert config.kind_of(path) == kind


def test_catalogue_that_a_fleet_names_is_an_error_of_its_own(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours: the file that names it is right, so each gets its line."""
    (folder / "models.toml").unlink()

    status = main(["config", "check", "cortex.toml"])

    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "cortex.toml: ok\n")
    assert captured.err == "models.toml: cannot be read: No such file or directory\n"


@pytest.mark.usefixtures("folder")
def test_environment_is_part_of_what_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours: the daemon would read it as well; but the CLI's own variable is no setting."""
    monkeypatch.setenv("CORTEX_ENDPOINT", "http://127.0.0.1:1")
    fine = main(["config", "check", "cortex.toml"])
    monkeypatch.setenv("CORTEX_GATEWAY__LISTEN", "nowhere")
    wrong = main(["config", "check", "cortex.toml"])

    assert (fine, wrong) == (0, 2)
    said = capsys.readouterr().err
    assert "gateway.listen: " in said
    assert "'nowhere'" in said


def test_without_arguments_the_installed_files_are_checked(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract: those of /etc that exist."""
    there = (folder / "cortex.toml", folder / "neuron.toml")
    monkeypatch.setattr(config, "DEFAULT_FILES", there)

    status = main(["config", "check"])

    assert status == 0
    assert capsys.readouterr().out == (
        f"{folder / 'cortex.toml'}: ok\n{folder / 'models.toml'}: ok\n"
    )


def test_nothing_to_check_is_wrong_usage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract: 2 usage or configuration."""
    monkeypatch.setattr(config, "DEFAULT_FILES", (tmp_path / "cortex.toml",))

    assert main(["config", "check"]) == 2
    assert "no settings file to check" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_loader_that_is_not_installed_names_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours: the CLI can be installed alone."""
    monkeypatch.setattr(config, "entry_points", lambda **_: ())

    assert main(["config", "check", "cortex.toml"]) == 2
    assert "cortex-gateway is not installed beside cortex-cli" in capsys.readouterr().err
