"""Recording requests for `cortex simulate`: sizes and times, and nothing of what was said."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from cortex_core.codec import encode_json
from cortex_core.errors import SettingsError
from cortex_core.simulation.trace import Arrival, read_trace
from cortex_gateway import trace as traces
from cortex_gateway.settings import load_settings
from cortex_gateway.trace import MAX_LINES, TraceRecorder, open_trace
from tests.core.simulation.worlds import asked
from tests.fakes.gateway import MODEL, ask, gateway, request
from tests.fakes.upstream import ScriptedNode, answers, nodes, streams, words

KEY = b"secret"

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@asynccontextmanager
async def recording(
    path: Path, lost: list[int], *, max_bytes: int = 1 << 20
) -> AsyncIterator[TraceRecorder]:
    async with open_trace(path, max_bytes=max_bytes, key=KEY, lost=lost.append) as recorder:
        assert recorder is not None
        yield recorder


def lines_of(path: Path) -> tuple[Arrival, ...]:
    return read_trace(path.read_bytes().splitlines(), str(path))


async def test_a_request_is_a_line_of_sizes_and_times(tmp_path: Path) -> None:
    """Issue: no content; who asked is a hash, and so is the conversation."""
    path, lost = tmp_path / "trace.jsonl", list[int]()
    node = ScriptedNode(
        answers(200, msgspec.json.encode({"usage": USAGE})),
        streams(words(2)),
        answers(400, b'{"error":{}}'),
    )
    headers = {"x-cortex-session": "tom's diary", "x-cortex-priority": "high"}
    async with (
        recording(path, lost) as recorder,
        nodes(node),
        gateway({"a": node.url}, trace=recorder.note) as g,
    ):
        first = await ask(g.url, {"user": "tom"}, headers=headers)
        second = await ask(g.url, {"stream": True})
        third = await ask(g.url, {"model": "unknown/model"})
        fourth = await ask(g.url, {})
        await g.recorder.request(3)

    assert [a.status for a in (first, second, third, fourth)] == [200, 200, 404, 400]
    a, b, c = lines_of(path)
    assert (a.model, a.prompt_tokens, a.completion_tokens) == (MODEL, 7, 3)
    assert (a.priority, b.priority) == ("high", "normal")
    # Nobody counted: a quarter of the bytes, and what answers are taken to cost.
    assert (c.prompt_tokens, c.completion_tokens) == (len(encode_json(request())) // 4, 512)
    assert a.caller == b.caller == c.caller
    assert a.session is not None
    assert b.session is None
    text = path.read_text()
    for secret in ("tom", "diary", "127.0.0.1"):
        assert secret not in text
    assert lost == []


async def test_a_file_that_is_full_begins_anew_and_one_is_kept(tmp_path: Path) -> None:
    """Ours: `trace.max_mb`; two files are the most that there ever are."""
    path = tmp_path / "trace.jsonl"
    async with recording(path, [], max_bytes=1000) as recorder:
        for at in range(40):
            recorder.note(asked(float(at), "m"))
            await recorder.flush()

    kept = tmp_path / "trace.jsonl.1"
    assert [len(file.read_bytes()) <= 1000 for file in (path, kept)] == [True, True]
    lines = [*kept.read_bytes().splitlines(), *path.read_bytes().splitlines()]
    times = [msgspec.json.decode(line)["at"] for line in lines]
    assert times == [float(at) for at in range(40 - len(times), 40)]
    assert sorted(os.listdir(tmp_path)) == [path.name, kept.name]


async def test_a_trace_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """Ours: and what waits at the end is written."""
    path = tmp_path / "trace.jsonl"
    for at in (1.0, 2.0):
        async with recording(path, []) as recorder:
            recorder.note(asked(at, "m"))

    assert [one.at for one in lines_of(path)] == [0.0, 1.0]


async def test_lines_are_written_while_the_gateway_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours."""
    monkeypatch.setattr(traces, "PAUSE_S", 0.0)
    path = tmp_path / "trace.jsonl"
    async with recording(path, []) as recorder, asyncio.timeout(5):
        recorder.note(asked(1.0, "m"))
        while not await asyncio.to_thread(path.read_bytes):
            pass


async def test_what_cannot_be_written_is_lost_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: no caller waits for a trace; the failure is told once."""
    folder, lost = tmp_path / "folder", list[int]()
    folder.mkdir()
    path = folder / "trace.jsonl"
    with caplog.at_level(logging.WARNING):
        async with recording(path, lost) as recorder:
            path.unlink()
            folder.rmdir()
            for _ in range(2):
                recorder.note(asked(1.0, "m"))
                recorder.note(asked(1.0, "m"))
                await recorder.flush()

    assert lost == [2, 2]
    assert [r.message.split(":")[0] for r in caplog.records] == ["the trace cannot be written"]


async def test_lines_that_come_faster_than_they_are_written_are_lost_and_counted(
    tmp_path: Path,
) -> None:
    """Ours: what waits is bounded."""
    lost = list[int]()
    async with recording(tmp_path / "trace.jsonl", lost) as recorder:
        for _ in range(MAX_LINES + 3):
            recorder.note(asked(1.0, "m"))

    assert lost == [1, 1, 1]
    assert len(lines_of(tmp_path / "trace.jsonl")) == MAX_LINES


async def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    """Contract: with the setting and the reason."""
    with pytest.raises(SettingsError, match=r"trace.record: .*nowhere.* cannot be written"):
        async with recording(tmp_path / "nowhere" / "trace.jsonl", []):
            pass


async def test_without_a_file_nothing_is_recorded() -> None:
    """Ours: the default."""
    async with open_trace(None, max_bytes=1, key=KEY, lost=lambda lines: None) as recorder:
        assert recorder is None


def test_the_file_is_relative_to_the_settings(tmp_path: Path) -> None:
    """Contract: as all names of files in them."""
    path = tmp_path / "cortex.toml"
    path.write_text('[trace]\nrecord = "trace.jsonl"\nmax_mb = 1\n')

    assert load_settings(path, {}).trace.path == tmp_path / "trace.jsonl"
