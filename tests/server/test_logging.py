"""Log lines go out through a thread, one per record, without secrets."""

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator

import pytest

from cortex_core.server.logging import LogFormat, logging_to, redact, tell
from tests.server.harness import WAIT_S

logger = logging.getLogger("tests.server.logging")


@contextlib.contextmanager
def logged(form: LogFormat, *, level: str = "info") -> Iterator[list[str]]:
    """Give a list that holds, after the end, the lines that were logged."""
    reader, writer = os.pipe()
    lines: list[str] = []
    with logging_to(writer, form=form, level=level):
        yield lines
    os.close(writer)
    with open(reader) as file:
        lines += file.read().splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
def test_line_is_the_same_whoever_makes_the_record(form: LogFormat) -> None:
    """Ours: but for the time; and none is made that nobody wants to see."""
    fields = {"model": "org/a", "took_s": 1.5, "api_key": "sk-1", "node": None}
    with logged(form) as lines:
        logger.info("ended", extra=fields)
        tell(logger, "ended", fields)
    with logged(form, level="warning") as quiet:
        tell(logger, "ended", fields)

    usual, told = (re.sub(r"\d{4}-\S+?Z", "TIME", line) for line in lines)
    assert told == usual
    assert "sk-1" not in told
    assert quiet == []


def test_text_is_one_line_per_record() -> None:
    """Ours: also when a message or a traceback has several."""
    with logged("text") as lines:
        logger.info("state of %s\nchanged", "replica", extra={"model": "org/a", "took_s": 1.5})
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("failed")

    first, second = lines
    assert first.endswith(
        " INFO tests.server.logging: state of replica\\nchanged model=org/a took_s=1.5"
    )
    assert first[:4].isdigit()
    assert "ERROR tests.server.logging: failed\\nTraceback" in second
    assert second.endswith("ValueError: wrong")


def test_json_has_the_extra_fields() -> None:
    """Ours: one object per record."""
    with logged("json") as lines:
        logger.warning("retry", extra={"attempt": 2, "node": "beast", "odd": object})
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("failed")

    first, second = map(json.loads, lines)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "logger": "tests.server.logging",
        "message": "retry",
        "attempt": 2,
        "node": "beast",
        "odd": "<class 'object'>",
    }
    assert second["exception"].startswith("Traceback")


def test_level_is_obeyed_and_put_back() -> None:
    """Ours: nothing of it outlives the context."""
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    with logged("text", level="warning") as lines:
        logger.info("no")
        logger.warning("yes")

    assert len(lines) == 1
    assert (logging.getLogger().level, logging.getLogger().handlers) == before


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer s3cr3t-key",
        "Authorization: s3cr3t-key",
        "{'x-api-key': 's3cr3t-key'}",
        "(b'authorization', b'Bearer s3cr3t-key')",
        '"X-API-Key":"s3cr3t-key"',
        "sent bearer s3cr3t-key to the node",
        "api_key=s3cr3t-key",
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_credentials_are_blanked(text: str, form: LogFormat) -> None:
    """Ours: in messages, fields and tracebacks, by value and by name."""
    with logged(form) as lines:
        logger.info("got %s", text, extra={"detail": text, "api_key": "s3cr3t-key"})
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("failed")

    assert len(lines) == 2
    assert "s3cr3t" not in "".join(lines)
    assert "[redacted]" in lines[0]


def test_other_text_stays() -> None:
    """Ours: a line that says nothing secret is not touched."""
    text = "POST /v1/messages authorization failed for key ctx_ab12, 3 tokens"

    assert redact(text) == text


def test_stalled_sink_does_not_hold_us_and_losses_are_counted() -> None:
    """Ours: a full pipe blocks the thread that writes, nobody else."""
    end, sink = os.pipe()
    written = b""

    def read() -> None:
        nonlocal written
        while b"were dropped" not in written and (data := os.read(end, 65536)):
            written += data

    with logging_to(sink, queue_lines=50) as writer:
        # Some 1.2 MB, where the pipe takes 64 KiB.
        for number in range(5000):
            logger.info("line %d %s", number, "x" * 200)

        assert 4000 < writer.dropped_lines < 5000
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(WAIT_S)
        assert not reader.is_alive()

    assert b" log lines were dropped: nobody read them in time\n" in written
    os.close(sink)
    os.close(end)


def test_sink_that_is_stuck_for_good_does_not_hold_the_end() -> None:
    """Ours: the process ends, its last lines are lost."""
    end, sink = os.pipe()

    with logging_to(sink, queue_lines=1000, close_s=0.05) as writer:
        for number in range(1000):
            logger.info("line %d %s", number, "x" * 200)

    os.close(end)
    # Its thread writes on; the number of its descriptor must not be another test's meanwhile.
    writer.close(WAIT_S)
    os.close(sink)


def test_sink_that_is_gone_is_no_failure() -> None:
    """Ours: there is no other place to complain at."""
    end, sink = os.pipe()
    os.close(end)

    with logging_to(sink):
        logger.info("into the void")

    os.close(sink)
