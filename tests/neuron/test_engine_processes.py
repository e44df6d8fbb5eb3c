"""Engine processes from outside and from inside: found, ended, prepared, watched."""

import json
import logging.config
import os
import pathlib
import subprocess
import sys

import pytest

from neuron.engines import engine_process, processes

SLEEPER = "import sys; sys.stdin.read()"
PARENT = (
    "import subprocess, sys;"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdin=subprocess.PIPE);"
    "print(child.pid, flush=True); sys.stdin.read()"
)
UNREADABLE = (
    "import pathlib, sys; pathlib.Path('/proc/self/comm').write_bytes(b'\\xc3');"
    "print(flush=True); sys.stdin.read()"
)
WATCHED = (
    "import threading; from neuron.engines import watchdog; watchdog.register();"
    "watchdog.register(); print(threading.active_count(), flush=True); threading.Event().wait()"
)


def start(code: str, **environ: str) -> subprocess.Popen[str]:
    """Start a Python process whose first line says that it is ready."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environ},
        text=True,
    )


def test_family_is_the_process_and_all_below_it() -> None:
    """Ours: killed together, and then none is alive."""
    with start(PARENT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())

        members = processes.family([parent.pid])
        processes.kill(members)
        parent.wait(5)

        assert {member.pid for member in members} == {parent.pid, child}
        assert parent.pid not in {member.pid for member in processes.alive(members)}


def test_process_with_a_reused_id_is_another() -> None:
    """Ours: nobody else is killed for having the id of one that is gone."""
    (me,) = (member for member in processes.family([os.getpid()]) if member.pid == os.getpid())
    earlier = processes.Process(pid=me.pid, started_ticks=me.started_ticks - 1)

    assert processes.alive([me, earlier]) == {me}


def test_processes_of_others_may_have_any_name() -> None:
    """Ours: Linux cuts names at 15 bytes, in the middle of a character if need be."""
    with start(UNREADABLE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        members = processes.family([stranger.pid])
        has_compiler = processes.has_compiler([stranger.pid])
        processes.kill(members)
        stranger.wait(5)

    assert {member.pid for member in members} == {stranger.pid}
    assert not has_compiler


def test_watchdog_ends_a_process_whose_daemon_is_gone() -> None:
    """Ours: within some seconds, and one thread however often it is asked for."""
    with start(SLEEPER) as daemon, start(WATCHED, NEURON_DAEMON_PID=str(daemon.pid)) as engine:
        assert engine.stdout is not None
        threads = int(engine.stdout.readline())

        daemon.kill()
        daemon.wait(5)

        assert engine.wait(5) == 70
    assert threads == 2


@pytest.mark.parametrize("value", ["", "0"])
def test_watchdog_does_nothing_without_a_daemon(value: str) -> None:
    """Ours: the plugin is installed for every vLLM of the environment."""
    with start(WATCHED, NEURON_DAEMON_PID=value) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline().strip() == "1"
        engine.kill()


ENGINE = (
    "import json, logging.config, logging, sys, tempfile;"
    "logging.config.dictConfig(json.load(open(sys.stdin.readline().strip())));"
    "logging.getLogger('vllm.core').info('loading');"
    "print(tempfile.gettempdir(), flush=True); sys.stdin.readline();"
    "logging.getLogger('vllm.core').info('serving'); print('done', flush=True)"
)


def test_engine_logs_to_its_folder_while_it_is_loaded(tmp_path: pathlib.Path) -> None:
    """Ours: a file that nobody reads any more does not come back."""
    config = engine_process.write_logging_config(tmp_path, "ERROR")
    with start(ENGINE, NEURON_DAEMON_PID="") as engine:
        assert engine.stdin is not None
        assert engine.stdout is not None
        print(config, file=engine.stdin, flush=True)
        temporary = engine.stdout.readline().strip()

        log = engine_process.read_log(tmp_path)
        engine_process.remove_log(tmp_path)
        print(file=engine.stdin, flush=True)
        assert engine.stdout.readline().strip() == "done"

    assert log == "loading\n"
    assert temporary == str(tmp_path)
    assert engine_process.read_log(tmp_path) == ""


def test_daemon_is_left_as_it_is_by_an_engines_configuration(tmp_path: pathlib.Path) -> None:
    """Ours: vLLM configures the daemon from the same file."""
    config = json.loads(engine_process.write_logging_config(tmp_path, "ERROR").read_text())
    made = engine_process.start(config["handlers"]["load"]["scratch"], os.getpid())

    assert isinstance(made, logging.NullHandler)
    assert engine_process.read_log(tmp_path) == ""
