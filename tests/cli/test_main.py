"""Dispatch, and how errors become one line and a status."""

import importlib.metadata
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from cortex_cli.main import main

COMMANDS = """
import os, sys

def greet(argv):
    print("greeted", *argv)
    return 7

def environ(argv):
    print(*sorted(name for name in os.environ if name.startswith("CORTEX_")))

def nothing(argv):
    return None

def leave(argv):
    sys.exit("left")

def fail(argv):
    return {}[argv[0]]

def wait(argv):
    raise KeyboardInterrupt
"""

ENTRIES = """
[cortex.commands]
greet = brought:greet
environ = brought:environ
nothing = brought:nothing
leave = brought:leave
fail = brought:fail
wait = brought:wait
status = brought:greet
broken = not_there:main
"""


@pytest.fixture
def brought(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that brings commands."""
    (tmp_path / "brought.py").write_text(COMMANDS)
    folder = tmp_path / "brought-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "brought", raising=False)


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    """Contract: `--version`."""
    status = main(["--version"])

    assert status == 0
    assert capsys.readouterr().out == f"cortex {importlib.metadata.version('cortex-cli')}\n"


@pytest.mark.usefixtures("brought")
def test_brought_command_gets_its_arguments_as_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ours: options, `--help` and `--` are the command's own business; so is its status."""
    status = main(["greet", "--help", "--", "-x", "a b"])

    assert status == 7
    assert capsys.readouterr().out == "greeted --help -- -x a b\n"


@pytest.mark.usefixtures("brought")
def test_brought_command_without_a_status_is_fine() -> None:
    """Ours: `None` is what a function without `return` gives."""
    assert main(["nothing"]) == 0


@pytest.mark.usefixtures("brought")
def test_brought_commands_are_listed_but_not_imported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ours: a broken distribution must not keep `cortex --help` from working."""
    status = main(["--help"])

    assert status == 0
    assert "(from brought)" in capsys.readouterr().out
    assert "brought" not in sys.modules


@pytest.mark.usefixtures("brought")
def test_nobody_replaces_a_command_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours: what `cortex status` does must not depend on what else is installed."""
    main(["status", "--help"])

    assert "Show nodes" in capsys.readouterr().out


@pytest.mark.usefixtures("brought")
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["leave"], 1, "cortex: left"),
        (["fail", "x"], 1, "cortex: a bug of cortex: KeyError: 'x'"),
        (["broken"], 1, "cortex: a bug of cortex: ModuleNotFoundError"),
        (["wait"], 130, ""),
        (["fly"], 2, "cortex: No such command 'fly'. (see 'cortex --help')"),
        (["status", "--nope"], 2, "cortex: No such option '--nope'. (see 'cortex status --help')"),
        (["up", "--nodes", "0"], 2, "cortex: Invalid value for '--nodes'"),
        (["up", "--listen", "here"], 2, "cortex: Invalid value for '--listen': 'here' is no HOST"),
        (["up", "--listen", "::1:80"], 2, "cortex: Invalid value for '--listen'"),
        (["up", "--listen", "a:65536"], 2, "cortex: Invalid value for '--listen'"),
        (["up", "--harness", "abacus"], 2, "cortex: Invalid value for '--harness'"),
        (["up", "--neuron-port", "65535", "--nodes", "2"], 2, "cortex: --neuron-port: 2 nodes"),
    ],
)
def test_errors_are_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    """Contract: 0 fine, 1 the fleet or an answer is not, 2 usage; never a traceback."""
    got = main(arguments)

    captured = capsys.readouterr()
    assert (got, captured.out) == (status, "")
    assert captured.err.strip().startswith(said)
    assert len(captured.err.strip().splitlines()) <= 1


def test_command_of_a_missing_distribution_says_which(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: `cortex serve` without the gateway names the cure."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())

    assert main(["serve"]) == 2
    assert "'serve' comes with cortex-gateway, which is not installed" in capsys.readouterr().err


def test_serve_is_the_gateways_own_command(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract: `cortex serve --config PATH`; 2 configuration."""
    missing = tmp_path / "cortex.toml"

    assert main(["serve", "--config", str(missing)]) == 2
    assert capsys.readouterr().err == (
        f"cortex-gateway: {missing}: cannot be read: No such file or directory\n"
    )


HEEDING_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a command as from a terminal: what a shell starts in the background ignores SIGINT, and
so does all that this starts."""


def test_interrupted_command_ends_with_130_and_no_traceback() -> None:
    """Shells' convention: 128 + SIGINT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", HEEDING_SIGINT, sys.executable, "-m", "cortex_cli"]
        command += ["status", "--endpoint", f"http://127.0.0.1:{listener.getsockname()[1]}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
            listener.settimeout(20)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                assert connection.recv(4)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=20)

    assert process.returncode == 130
    assert said.strip() == ""


def test_reader_that_goes_away_is_no_traceback() -> None:
    """Ours: `cortex --help | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cortex_cli", "--help"],
            stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)

    assert done.returncode == 1
    assert done.stderr == b""
