"""Folders of engines: whose they are, and which are swept."""

import os
import pathlib
import signal
import subprocess
import sys

import msgspec
import pytest

from neuron.engines import processes
from neuron.engines.vllm_runtime import Owner, make_runtime_folder, record, sweep
from neuron.settings import SECRETS


def change_owner(folder: pathlib.Path, **changes: object) -> None:
    """Have a folder say that it is another's."""
    path = folder / "owner.json"
    owner = msgspec.json.decode(path.read_bytes(), type=Owner)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(owner, **changes)))


def dead_process() -> processes.Process:
    """Return a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        (found,) = processes.family([child.pid])
        child.kill()
    return found


def test_folder_of_a_living_daemon_stays(tmp_path: pathlib.Path) -> None:
    """Ours: several daemons share one machine."""
    folder = make_runtime_folder(tmp_path)

    assert sweep(tmp_path) == ()
    assert folder.parent == tmp_path
    assert folder.is_dir()


def test_folder_of_a_dead_daemon_is_removed(tmp_path: pathlib.Path) -> None:
    """Ours: a daemon that is killed cannot remove its own."""
    folder = make_runtime_folder(tmp_path)
    (folder / "e-1").mkdir()
    (folder / "e-1" / "socket").touch()
    change_owner(folder, process=dead_process())

    assert sweep(tmp_path) == (folder,)
    assert not folder.exists()


def test_folder_of_another_container_stays(tmp_path: pathlib.Path) -> None:
    """Ours: its process ids mean nothing here."""
    folder = make_runtime_folder(tmp_path)
    change_owner(folder, process=dead_process(), namespace="pid:[1]")

    assert sweep(tmp_path) == ()
    assert folder.is_dir()


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"process": 1}'])
def test_folder_that_does_not_say_whose_it_is_stays(
    tmp_path: pathlib.Path, content: bytes | None
) -> None:
    """Ours: the name alone proves nothing."""
    folder = tmp_path / "neuron-foreign"
    folder.mkdir()
    if content is not None:
        (folder / "owner.json").write_bytes(content)

    assert sweep(tmp_path) == ()
    assert folder.is_dir()


def test_link_to_a_folder_of_a_dead_daemon_stays(tmp_path: pathlib.Path) -> None:
    """Ours: what is swept was made by us, where it is."""
    folder = make_runtime_folder(tmp_path)
    change_owner(folder, process=dead_process())
    elsewhere = folder.rename(tmp_path / "elsewhere")
    (tmp_path / "neuron-link").symlink_to(elsewhere)

    assert sweep(tmp_path) == ()
    assert elsewhere.is_dir()


SLEEPER = "import sys; print(flush=True); sys.stdin.read()"


def sleeper() -> subprocess.Popen[bytes]:
    """Start a process that only ends when it is ended."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def engine_folder(parent: pathlib.Path, members: frozenset[processes.Process]) -> pathlib.Path:
    """Return a daemon's folder in which an engine with these processes is noted."""
    folder = make_runtime_folder(parent)
    (folder / "e-1").mkdir()
    record(folder / "e-1", members)
    return folder


def test_engine_process_that_outlived_its_daemon_is_ended(tmp_path: pathlib.Path) -> None:
    """Issue 5: also one that stands still, whose own watchdog does too."""
    with sleeper() as orphan, sleeper() as stranger:
        orphan.send_signal(signal.SIGSTOP)
        folder = engine_folder(tmp_path, processes.family([orphan.pid]))
        change_owner(folder, process=dead_process())

        sweep(tmp_path)

        assert orphan.wait(5) == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()
    assert not folder.exists()


def test_process_that_took_over_a_noted_id_is_left_alone(tmp_path: pathlib.Path) -> None:
    """Ours: ids are given out again; when a process began tells it from the one that was noted."""
    with sleeper() as stranger:
        (member,) = processes.family([stranger.pid])
        earlier = msgspec.structs.replace(member, started_ticks=member.started_ticks - 1)
        folder = engine_folder(tmp_path, frozenset([earlier]))
        change_owner(folder, process=dead_process())

        assert sweep(tmp_path) == (folder,)

        assert stranger.poll() is None
        stranger.kill()


def test_engine_of_a_living_daemon_is_left_alone(tmp_path: pathlib.Path) -> None:
    """Ours: several daemons share one machine."""
    with sleeper() as engine:
        engine_folder(tmp_path, processes.family([engine.pid]))

        assert sweep(tmp_path) == ()

        assert engine.poll() is None
        engine.kill()


def test_note_that_cannot_be_read_costs_nothing_else(tmp_path: pathlib.Path) -> None:
    """Ours: a daemon may be killed while it writes."""
    folder = engine_folder(tmp_path, frozenset())
    (folder / "e-1" / "processes.json").write_bytes(b"[{")
    change_owner(folder, process=dead_process())

    assert sweep(tmp_path) == (folder,)


def test_secrets_of_the_daemon_are_told_to_no_engine() -> None:
    """Ours: engines run what models bring; those who need a secret have read it before."""
    script = (
        "import os, neuron.engines.vllm_environment as e, neuron.settings as s\n"
        "e.prepare_environment(s.VllmSettings())\n"
        "print(*os.environ.values())"
    )
    secrets = dict.fromkeys(SECRETS, "canary")
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **secrets},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert "ERROR" in ended.stdout
    assert "canary" not in ended.stdout
