"""Log lines to standard error, through a thread: a sink that stalls must not stall us."""

import collections
import contextlib
import functools
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from cortex_core.server.clock import SystemClock

LogFormat = Literal["text", "json"]

STDERR = 2
_QUEUE_LINES = 10_000
_CLOSE_S = 2.0
# Between two writes, so that one takes many lines: to wake the thread for each costs its maker more
# than the line does.
_PAUSE_S = 0.02
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_TOLD = vars(logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO"}))
"""What all records have in common that `tell` makes."""

_FIELDS = "_cortex_fields"
"""Where such a record has what its caller added, so that it need not be looked for."""

_SECRET_NAMES = re.compile(r"authorization|api[-_]?key|cookie|password|secret|token$", re.I)
_SECRETS = re.compile(
    r"(?P<name>(?:proxy-)?authorization|x-api-key|api[-_]key|cookie)"
    r"(?P<mark>['\"]?\s*[:=,]\s*(?:b(?=['\"]))?['\"]?)(?:(?:bearer|basic)\s+)?[^\s'\",;]+"
    r"|(?P<scheme>\bbearer\s+)[\w.~+/=-]+",
    re.I,
)
_HINTS = ("authorization", "api-key", "api_key", "cookie", "bearer")
"""One of these is in whatever `_SECRETS` finds; to look for them costs a tenth."""
_REDACTED = "[redacted]"

_clock = SystemClock()

_encode = msgspec.json.Encoder(enc_hook=str).encode


@contextlib.contextmanager
def logging_to(
    fd: int = STDERR,
    *,
    form: LogFormat = "text",
    level: str = "info",
    queue_lines: int = _QUEUE_LINES,
    close_s: float = _CLOSE_S,
) -> Iterator["LineWriter"]:
    """Send every logger's records to `fd`, one line each, until the context ends.

    Begin and end it outside the event loop: both wait for the thread, at the end for up to `close_s`. To log never waits.

    Args:
        fd: an open descriptor; stays open.
        form: `text` for people, `json` for programs.
        level: least severe records that are written: debug, info, warning or error.
        queue_lines: how many lines may wait; more are dropped and counted.
        close_s: how long the end may wait for lines that are not written yet.
    """
    writer = LineWriter(fd, queue_lines)
    handler = _QueueingHandler(writer, JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    before = root.level
    _leave_out_what_no_line_shows()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Its notes on every start say less than ours do.
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)
    writer.start()
    try:
        yield writer
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        writer.close(close_s)


def _leave_out_what_no_line_shows() -> None:
    """Have records carry no thread, process or place in the code.

    To find them costs more than to make the line (Python's logging HOWTO, "Optimization").
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the HOWTO names it


def tell(logger: logging.Logger, message: str, fields: Mapping[str, object]) -> None:
    """Log what happens with each request: `logger.info(message, extra=fields)` at a fifth of its cost.

    Args:
        logger: of the module.
        message: as it is, without arguments.
        fields: none of them named like an attribute of `logging.LogRecord`.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    now, handler = _clock.wall(), _only_handler(logger)
    if isinstance(handler, _QueueingHandler):
        handler.tell(now, logger.name, message, fields)
    else:
        record = logging.LogRecord.__new__(logging.LogRecord)
        own = vars(record)
        own.update(fields)
        own.update(_TOLD)
        own.update(name=logger.name, msg=message, created=now, msecs=int(now % 1 * 1000))
        own[_FIELDS] = fields
        logger.handle(record)


def _only_handler(logger: logging.Logger) -> logging.Handler | None:
    """Return the handler that gets what `logger` is told, or `None` if there are more or none."""
    found: logging.Handler | None = None
    up: logging.Logger | None = logger
    while up is not None:
        for handler in up.handlers:
            if found is not None:
                return None
            found = handler
        up = up.parent if up.propagate else None
    return found


class LineWriter:
    """Writes lines in a thread of its own, as many at once as there are."""

    def __init__(self, fd: int, queue_lines: int) -> None:
        self._fd = fd
        self._lines: collections.deque[bytes] = collections.deque()
        self._room = queue_lines
        self._reported = 0
        self._news = threading.Event()
        self._is_ending = threading.Event()
        # Daemonic: a sink that is stuck for good must not keep the process from ending.
        self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self.dropped_lines = 0
        """Lines lost because the sink did not take them in time."""

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Take one line, newline included; never waits."""
        if len(self._lines) >= self._room:
            self.dropped_lines += 1
            return
        self._lines.append(line)
        if not self._news.is_set():
            self._news.set()

    def close(self, timeout_s: float) -> None:
        """Write what is waiting, for `timeout_s` at most."""
        self._is_ending.set()
        self._news.set()
        self._thread.join(timeout_s)

    def _write_all(self) -> None:
        while not self._is_ending.is_set() or self._lines:
            self._news.wait()
            # Cleared first: whatever comes while the lines are taken is taken now or told again.
            self._news.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            lost = self.dropped_lines - self._reported
            if lost:
                self._reported += lost
                lines.append(b"%d log lines were dropped: nobody read them in time\n" % lost)
            self._write(b"".join(lines))
            self._is_ending.wait(_PAUSE_S)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        # A sink that is gone takes nothing; there is no other place to say so.
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._fd, left) :]


class TextFormatter(logging.Formatter):
    """`2026-11-25T10:00:00.000Z INFO logger: message key=value`, line breaks escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without its end."""
        stamp, message = _stamp(record.created, int(record.msecs)), record.getMessage()
        failure = _failure_of(self, record)
        return self.line(stamp, record.levelname, record.name, message, _fields_of(record), failure)

    def line(
        self,
        stamp: str,
        level: str,
        name: str,
        message: str,
        fields: Mapping[str, object],
        failure: str = "",
    ) -> str:
        """Return the line of what is told."""
        if _has_secret(tuple(fields)):
            fields = {key: _shown(key, value) for key, value in fields.items()}
        shown = _pattern(tuple(fields)) % tuple(fields.values())
        line = redact(f"{stamp} {level} {name}: {message}{shown}{failure}")
        return line.replace("\n", "\\n").replace("\r", "\\r")


class JsonFormatter(logging.Formatter):
    """One JSON object per record, its extra fields beside ours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without its end."""
        stamp, message = _stamp(record.created, int(record.msecs)), record.getMessage()
        fields = _fields_of(record)
        if record.exc_info:
            fields = {**fields, "exception": _failure_of(self, record).strip()}
        return self.line(stamp, record.levelname, record.name, message, fields)

    def line(
        self, stamp: str, level: str, name: str, message: str, fields: Mapping[str, object]
    ) -> str:
        """Return the line of what is told."""
        whole: dict[str, object] = {
            "time": stamp, "level": level.lower(), "logger": name, "message": message, **fields
        }  # fmt: skip
        line = _encode(whole).decode()
        if _has_hint(line) or _has_secret(tuple(whole)):
            line = _encode({key: _shown(key, value) for key, value in whole.items()}).decode()
        return line


def redact(text: str) -> str:
    """Return `text` without the values of credentials that it shows."""
    return _SECRETS.sub(_blanked, text) if _has_hint(text) else text


def _has_hint(text: str) -> bool:
    lowered = text.lower()
    return any([hint in lowered for hint in _HINTS])  # noqa: C419 - no generator, for speed


def _blanked(match: re.Match[str]) -> str:
    if match["scheme"]:
        return match["scheme"] + _REDACTED
    return f"{match['name']}{match['mark']}{_REDACTED}"


class _QueueingHandler(logging.Handler):
    """Formats where the record was made, for its arguments may change, and writes elsewhere."""

    def __init__(self, writer: LineWriter, form: "JsonFormatter | TextFormatter") -> None:
        super().__init__()
        self.setFormatter(form)
        self._writer, self._form = writer, form

    def tell(self, now: float, name: str, message: str, fields: Mapping[str, object]) -> None:
        """Queue what a record would come to, without one."""
        line = self._form.line(_stamp(now, int(now % 1 * 1000)), "INFO", name, message, fields)
        self._writer.put(line.encode(errors="backslashreplace") + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        self._writer.put(self.format(record).encode(errors="backslashreplace") + b"\n")


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """Return the fields that the caller added."""
    own = vars(record)
    told: Mapping[str, object] | None = own.get(_FIELDS)
    if told is not None:
        return told
    return {name: value for name, value in own.items() if name not in _OWN_FIELDS}


@functools.lru_cache(maxsize=256)
def _has_secret(names: tuple[str, ...]) -> bool:
    return any(map(_SECRET_NAMES.search, names))


@functools.lru_cache(maxsize=256)
def _pattern(names: tuple[str, ...]) -> str:
    return "".join([f" {name.replace('%', '%%')}=%s" for name in names])


def _shown(name: str, value: object) -> object:
    if _has_secret((name,)):
        return _REDACTED
    return redact(value) if isinstance(value, str) else value


def _failure_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""


def _stamp(created: float, milliseconds: int) -> str:
    return f"{_second(int(created))}.{milliseconds:03}Z"


@functools.lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
