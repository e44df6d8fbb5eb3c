"""`neuron --config PATH [--port N] [--check]`: the daemon; `neuron check`: its machine."""

import argparse
import asyncio
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from cortex_core.errors import SettingsError
from cortex_core.server.clock import SystemClock
from cortex_core.server.listen import inherited_listeners, open_listener
from cortex_core.server.logging import logging_to
from cortex_core.server.serve import Shutdown, run as run_daemon
from neuron.devices.checkup import look_at_host
from neuron.devices.source import make_device_source
from neuron.lifecycle.checkup import (
    find_engine_problems,
    find_model_problems,
    find_problems,
    load_lines,
    needs_devices,
)
from neuron.lifespan import run
from neuron.rehearsal import rehearse
from neuron.settings import NeuronSettings, load_settings
from neuron.weights.files import hub_cache

DEFAULT_CONFIG = pathlib.Path("/etc/neuron/neuron.toml")
"""Read when no other file is named and this one is there."""

FRESH_START = 75
"""Exit status of a daemon that wants to be started again (`EX_TEMPFAIL` of sysexits.h)."""

_FAILED = 1
_MISCONFIGURED = 2

# Idle threads end at once; what is still at work then may be so for long.
_THREADS_TIMEOUT_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for and return its exit status.

    0 fine, 1 failed, 2 misconfigured, 75 to be started again.
    """
    arguments = _parser().parse_args(argv)
    environ = dict(os.environ)
    try:
        settings = _settings(arguments, environ)
    except SettingsError as error:
        print(f"neuron: {error.message}", file=sys.stderr)
        return _MISCONFIGURED
    if arguments.check:
        return 0
    if arguments.action == "check":
        return _leave(_check(settings, environ))
    with logging_to(form=settings.log_format, level=settings.log_level):
        wanted: list[int] = []
        status = run_daemon(_serve(settings, environ, wanted.append), "neuron", environ)
    return _leave(status or max(wanted, default=0))


def _check(settings: NeuronSettings, environ: Mapping[str, str]) -> int:
    """Print what would load, and what is wrong with this machine; 1 when anything is."""
    cache = hub_cache(settings.harness.vllm.hf_cache, environ)
    has_vllm = any(entry.name == "vllm" for entry in settings.harnesses)
    source = make_device_source(settings)
    found = asyncio.run(rehearse(settings, source=source, clock=SystemClock(), environ=environ))
    has_devices = bool(found.facts.devices) and not found.facts.is_declared
    facts = found.facts
    if not facts.devices and not needs_devices(found.engines):
        facts = msgspec.structs.replace(facts, unavailable_reason=None)
    problems = (
        *find_problems(look_at_host(facts, cache, has_vllm=has_vllm)),
        *find_engine_problems(found.engines, found.unusable, has_devices=has_devices),
        *find_model_problems(found.reports),
    )
    for engine in found.engines:
        print(f"{engine.name} {engine.version}")
    for line in load_lines(found.reports):
        print(line)
    for one in problems:
        print(f"{one.problem}\n  to mend it: {one.fix}")
    if not problems:
        print("nothing is wrong with this machine")
    return _FAILED if problems else 0


async def _serve(
    settings: NeuronSettings, environ: Mapping[str, str], leave: Callable[[int], None]
) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    inherited = inherited_listeners(environ, os.getpid())
    listener = open_listener(f"{host}:{settings.port}", inherited)
    shutdown = Shutdown()
    with shutdown.on_signals():
        is_anew = await run(
            settings,
            listener=listener,
            source=make_device_source(settings),
            shutdown=shutdown,
            clock=SystemClock(),
            environ=environ,
            on_ready=lambda: print(f"ready: {listener.url}", flush=True),
        )
    if is_anew:
        leave(FRESH_START)


def _leave(status: int) -> int:
    """Return `status`, or end the process with it when a thread would not let it end.

    Python waits for every thread that is not a daemon. One that waits for the hub or a driver
    may take minutes, and nobody needs its answer any more.
    """
    deadline = time.monotonic() + _THREADS_TIMEOUT_S
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                print(f"neuron: left the thread {thread.name!r} behind", file=sys.stderr)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    return status


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str]) -> NeuronSettings:
    path = arguments.config
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    settings = load_settings(path, environ)
    if arguments.port is not None:
        settings = msgspec.structs.replace(settings, port=arguments.port)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neuron", description="Owns the devices of one machine and the models on them."
    )
    parser.add_argument(
        "--config", type=pathlib.Path, metavar="PATH", help=f"settings; else {DEFAULT_CONFIG}"
    )
    parser.add_argument(
        "action", nargs="?", choices=["check"], help="look at the machine, say what is wrong, end"
    )
    parser.add_argument("--port", type=_port, metavar="N", help="listen on this port; 0 any free")
    parser.add_argument("--check", action="store_true", help="check the settings and end")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


if __name__ == "__main__":
    sys.exit(main())
