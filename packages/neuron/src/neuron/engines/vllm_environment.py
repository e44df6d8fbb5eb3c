"""What must be so in the process before vLLM is imported."""

import contextlib
import gc
import importlib.metadata
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing import forkserver

from cortex_core.harness import EngineVersion
from neuron.engines.watchdog import DAEMON_VARIABLE
from neuron.settings import SECRETS, VllmSettings

_PRELOADED = [
    "neuron.engines.vllm_fork_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
]
"""What ends the server with the daemon, then the modules whose import takes most of the time in
which a small model is loaded."""

TESTED = "0.32"
"""Releases of vLLM that this neuron was tested with; its own distribution asks for them too."""

_SWITCH_S = 0.001
"""How long a thread may hold the interpreter while another wants it. Python's 5 ms are waited
for several times by every answer that the daemon gives while an engine is loaded."""


def prepare_environment(settings: VllmSettings) -> None:
    """Set the variables that vLLM reads when it is imported; those that are set stay.

    `NEURON_DAEMON_PID` (always) ends engine processes with the daemon. `HF_HUB_CACHE`
    (always, when `hf_cache` is set) is where weights are looked for and downloaded to.
    The tokens of the hub and of the fleet are taken out; whoever needs them has read them.
    No statistics are sent (`VLLM_NO_USAGE_STATS`, `DO_NOT_TRACK`). Errors are logged
    (`VLLM_LOGGING_LEVEL`), to standard error (`VLLM_LOGGING_STREAM`), and logging is left
    alone until an engine is loaded (`VLLM_CONFIGURE_LOGGING`). Processes are spawned
    (`VLLM_WORKER_MULTIPROC_METHOD`): a fork of a process with threads may hang.

    On the CPU build also: one process per engine (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), no
    compiler at run time (`TORCHDYNAMO_DISABLE`; a missing g++ would end the engine at the
    first request with log probabilities), threads not bound to cores
    (`VLLM_CPU_OMP_THREADS_BIND`; several engines would share the first core), one core left
    to the daemon (`OMP_NUM_THREADS`; threads that compete with it wait for each other).
    """
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if is_cpu_build():
        defaults |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for name in SECRETS:
        # Engines have the environment of the daemon, and run code of models that it trusts.
        os.environ.pop(name, None)
    os.environ[DAEMON_VARIABLE] = str(os.getpid())
    if settings.hf_cache:
        os.environ["HF_HUB_CACHE"] = settings.hf_cache


def installed_version() -> EngineVersion | None:
    """Return which vLLM is installed; `None` when none is."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        tested = version == TESTED or version.startswith(f"{TESTED}.")
        return EngineVersion(name=name, version=version, tested=tested)
    return None


def is_cpu_build() -> bool:
    """Return whether the installed vLLM is the build for CPUs."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
    return True


def start_fork_server() -> None:
    """Begin to import vLLM in a process that engines on the CPU are then forked from.

    A load takes two seconds instead of eight. The server has the environment of now, one
    thread alone, and ends with the daemon. Does nothing on GPU builds, whose driver must not
    be forked.
    """
    if is_cpu_build():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()


def restart_fork_server() -> None:
    """End the server from which engines are forked and begin a new one; blocks.

    None of its engines may be up: it is their parent, and tells how they ended.
    """
    if is_cpu_build():
        # There is no public way; this one is what Python's own tests use.
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # private, so not in the stubs
        start_fork_server()


@contextlib.contextmanager
def own_log_records() -> Iterator[None]:
    """Keep vLLM from adding a field of its own to every log record of this process."""
    factory = logging.getLogRecordFactory()
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)


def use_fork_server() -> None:
    """Make vLLM, once it is imported, start its engine processes from the fork server."""
    if is_cpu_build():
        import vllm.v1.engine.utils

        context = multiprocessing.get_context("forkserver")
        # There is no setting for it: vLLM takes `fork` or `spawn` only.
        vllm.v1.engine.utils.get_mp_context = lambda: context


def read_variables_anew() -> None:
    """Have vLLM look its variables up in the environment again: a load changes some."""
    import vllm.envs

    vllm.envs.disable_envs_cache()


def remember_variables() -> None:
    """Have vLLM keep its variables as they are now.

    Its front looks one up for every token of every answer, which takes a twentieth of its time
    (`IterationStats.update_from_output`); engine cores remember them by themselves.
    """
    import vllm.envs

    # One that cannot be read is not remembered, all others are; who needs it says what is wrong.
    with contextlib.suppress(ValueError):
        vllm.envs.enable_envs_cache()


def forget_engines() -> None:
    """Drop what is left of engines that are closed, more than a megabyte of each.

    A cache of vLLM's remembers, of 128 callables, which arguments they take; four of each
    engine's are methods of its tokenizers. The rest holds itself in cycles, of too few objects
    for the garbage collector to come by soon.
    """
    import vllm.utils.func_utils

    vllm.utils.func_utils._supports_kw.cache_clear()
    gc.collect()


def favour_the_loop() -> None:
    """Keep what vLLM's import made, and the threads of loads, from stopping the event loop.

    A garbage collection that goes through a million objects of modules stops everything for
    half a second; these objects stay anyway.
    """
    gc.collect()
    gc.freeze()
    # It comes when its number of objects has grown by a quarter, which this one counts anew.
    gc.collect()
    sys.setswitchinterval(_SWITCH_S)
