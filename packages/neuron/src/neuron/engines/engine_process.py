"""What runs first inside an engine's own processes: their log, temporary folder, watchdog.

vLLM configures logging in each process that it starts from a file of the caller's, before it
does anything else. That file names `start` as the maker of a log handler, which is how a
setting of one engine reaches its processes and no others.
"""

import faulthandler
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable

from neuron.engines import watchdog

LOG_NAME = "load.log"
"""File in the engine's scratch folder that its processes log to until the daemon removes it."""

ERRORS_NAME = "errors.log"
"""Likewise, for what they log as errors until they end: the last one tells why they did."""

_MOST_BYTES = 1 << 20
"""Of each; a traceback is some kilobytes."""


def write_logging_config(scratch: pathlib.Path, level: str, host: str = "") -> pathlib.Path:
    """Write the logging configuration of one engine.

    Args:
        scratch: the engine's folder; its processes put their temporary files there.
        level: least severity that goes to standard error.
        host: address under which its processes are reached from other nodes.

    Returns:
        Path of the file, in the form of `logging.config.dictConfig`.
    """
    for name in (LOG_NAME, ERRORS_NAME):
        (scratch / name).touch()
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(name)s[%(process)d]: %(message)s"}},
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "plain",
                "level": level,
            },
            "load": {**_handler(start, scratch), "host": host, "level": "INFO"},
            "errors": {**_handler(keep_errors, scratch), "level": "ERROR"},
        },
        "loggers": {
            "vllm": {
                "handlers": ["console", "load", "errors"],
                "level": "INFO",
                "propagate": False,
            },
            # The serving classes log their callers' mistakes as errors, with tracebacks and
            # values; the answers say them.
            "vllm.entrypoints": {"level": "CRITICAL"},
        },
    }
    path = scratch / "logging.json"
    path.write_text(json.dumps(config))
    return path


def start(scratch: str, daemon: int, host: str = "") -> logging.Handler:
    """Prepare an engine process and return the handler for its load's log.

    In the daemon itself, which vLLM configures from the same file, nothing is prepared and
    the handler drops every record.
    """
    if os.getpid() == daemon:
        return logging.NullHandler()
    # vLLM leaves the rendezvous files of its process groups behind in the temporary folder.
    tempfile.tempdir = scratch
    if host:
        # vLLM would take the address with which the internet is reached.
        os.environ["VLLM_HOST_IP"] = host
    # Stacks to standard error when the daemon gives a hung process up with SIGABRT.
    faulthandler.enable()
    watchdog.register()
    return _FileLog(str(pathlib.Path(scratch, LOG_NAME)))


def keep_errors(scratch: str, daemon: int) -> logging.Handler:
    """Return the handler for the errors of an engine process, for as long as it lives."""
    if os.getpid() == daemon:
        return logging.NullHandler()
    return _FileLog(str(pathlib.Path(scratch, ERRORS_NAME)))


def read_log(scratch: pathlib.Path, name: str = LOG_NAME) -> str:
    """Return what the engine's processes logged; empty when nothing is there."""
    try:
        return (scratch / name).read_text(errors="replace")
    except OSError:
        return ""


def remove_log(scratch: pathlib.Path) -> None:
    """Remove the log, after which the processes write no more to it."""
    (scratch / LOG_NAME).unlink(missing_ok=True)


def _handler(maker: Callable[..., logging.Handler], scratch: pathlib.Path) -> dict[str, object]:
    return {
        "()": f"{maker.__module__}.{maker.__name__}",
        "scratch": str(scratch),
        "daemon": os.getpid(),
    }


class _FileLog(logging.Handler):
    """Appends to a file as long as somebody else keeps it there, and it is not too long."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # No O_CREAT: the daemon removes the file when the load is over.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        except OSError:
            return
        try:
            if os.fstat(descriptor).st_size < _MOST_BYTES:
                os.write(descriptor, f"{self.format(record)}\n".encode(errors="replace"))
        finally:
            os.close(descriptor)
