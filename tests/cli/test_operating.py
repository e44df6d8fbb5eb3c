"""The commands that operate a fleet, as processes, against a gateway with nodes that are fakes."""

import asyncio
import json
import os
import pathlib
import pty
import re
import shlex
import sys
from typing import Any

import msgspec
import pytest

from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.door import Door, door, write
from tests.gateway.fleet import until_true
from tests.repository.checkout import ROOT

A, B = "org/a", "org/b"
LIFE = (
    f"load {A}",
    f"load {A}",
    f"pin {A}",
    f"sleep {A} --level 2",
    f"wake {A} --node beast",
    f"unpin {A}",
    f"unload {A} --dry-run",
    f"unload {A}",
    f"unload {A}",
)
WAIT_S = 30.0
"""A process starts within this on a machine that is busy with other tests."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a command said."""

    status: int | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def cortex(d: Door, *arguments: str) -> Done:
    """Run `cortex ARGUMENTS` against a gateway."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cortex_cli", *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CORTEX_ENDPOINT": d.url},
    )  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    return Done(status=process.returncode, out=out.decode(), err=err.decode())


async def test_a_model_goes_through_its_tiers_by_command(tmp_path: pathlib.Path) -> None:
    """Issue: load, sleep, wake, pin, unload; each says what it is then, and twice is no mistake."""
    neuron = FakeNeuron()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        foreseen = await cortex(d, "load", A, "--dry-run")
        assert neuron.loads == []
        said = [await cortex(d, *line.split()) for line in LIFE]
        asleep = [body for path, body in neuron.commands if path == "/models/sleep"]

    assert (foreseen.status, foreseen.out.startswith(f"{A}: load on beast (")) == (0, True)
    assert {done.status for done in said} == {0}
    assert [done.out for done in said] == [
        f"{A}: loaded on beast\n",
        f"{A}: already loaded on beast\n",
        f"{A}: pinned on beast\n",
        f"{A}: sleeping on beast\n",
        f"{A}: loaded on beast\n",
        f"{A}: unpinned on beast\n",
        f"{A}: would be unloaded on beast\n",
        f"{A}: unloaded on beast\n",
        f"{A}: no node has it\n",
    ]
    assert [body["level"] for body in asleep] == [2]


async def test_tables_show_nodes_and_models(tmp_path: pathlib.Path) -> None:
    """Issue: every model with tier, places and size; `--json` is the same as data."""
    neuron = FakeNeuron()
    neuron.set_model(A, "sleeping", sleep_level=1, pinned=True)
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A, B)) as d:
        await cortex(d, "nodes", "cordon", "beast")
        models, as_data = await cortex(d, "models"), await cortex(d, "models", "--json")
        nodes, node_data = await cortex(d, "nodes"), await cortex(d, "nodes", "--json")

    assert [line.split()[:2] for line in models.out.splitlines()] == [
        ["MODEL", "TIER"],
        [A, "sleeping"],
        [B, "unloaded"],
    ]
    assert "beast (sleeping, level 1, pinned)" in models.out
    assert "7.8 GiB" in models.out
    assert [(row["id"], row["tier"]) for row in as_data.json] == [
        (A, "sleeping"),
        (B, "unloaded"),
    ]
    assert as_data.json[0]["locations"][0]["sleep_level"] == 1
    assert "cordoned" in nodes.out.splitlines()[1]
    assert [node["name"] for node in node_data.json] == ["beast"]


async def test_a_load_shows_how_far_it_is(tmp_path: pathlib.Path) -> None:
    """Issue: plain lines where nobody watches, one a stage; the answer alone on standard output."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(cortex(d, "load", A, "--json"))
            await progressed(neuron, A)
            neuron.load_may_end.set()
        quiet = asked.result()
        neuron.set_model(A, "unloaded")
        neuron.load_may_end.clear()
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(cortex(d, "load", A))
            await progressed(neuron, A)
            neuron.load_may_end.set()
        told = asked.result()

    assert (quiet.status, quiet.err, quiet.json["nodes"][0]["status"]) == (0, "", "loaded")
    assert (told.status, told.out) == (0, f"{A}: loaded on beast\n")
    (line,) = [line for line in told.err.splitlines() if "weights" in line]
    assert line.endswith("1.0 of 2.0 GiB, 4 s left")


async def test_a_terminal_gets_one_line_that_renews_itself(tmp_path: pathlib.Path) -> None:
    """Issue: a progress bar while a load runs; the line is empty again at the end."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    master, slave = pty.openpty()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cortex_cli", "load", A,
            stdin=slave, stdout=asyncio.subprocess.PIPE, stderr=slave,
            env={**os.environ, "CORTEX_ENDPOINT": d.url, "TERM": "xterm"},
        )  # fmt: skip
        await progressed(neuron, A)
        shown = b""
        async with asyncio.timeout(WAIT_S):
            while b"weights" not in shown:
                shown += await asyncio.to_thread(os.read, master, 1 << 16)
            neuron.load_may_end.set()
            out, _ = await process.communicate()
    os.close(slave)
    rest = await asyncio.to_thread(os.read, master, 1 << 16)
    os.close(master)

    assert (process.returncode, out.decode()) == (0, f"{A}: loaded on beast\n")
    assert b"\r\x1b[K" in shown
    assert b"\n" not in shown + rest
    assert (shown + rest).endswith(b"\r\x1b[K")


async def progressed(neuron: FakeNeuron, model: str) -> None:
    """Wait for a load, and report how far it is."""
    count = len(neuron.loads)
    async with asyncio.timeout(WAIT_S):
        while model not in neuron.models:  # noqa: ASYNC110 - a process in between
            await asyncio.sleep(0.01)
    assert len(neuron.loads) >= count
    progress = {"stage": "weights", "done_bytes": 1 << 30, "total_bytes": 1 << 31, "eta_s": 4.0}
    for _ in range(3):
        # Whoever asks late must see it as well.
        neuron.set_model(model, "loading", progress=progress)
        await asyncio.sleep(0)


async def test_a_drain_says_what_stays_and_why(tmp_path: pathlib.Path) -> None:
    """Ours: status 1 while the node is not empty."""
    neuron = FakeNeuron()
    neuron.set_model(A, "loaded", pinned=True)
    neuron.set_model(B, "loaded")
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A, B)) as d:
        foreseen = await cortex(d, "nodes", "drain", "beast", "--dry-run")
        assert not neuron.is_cordoned
        first = await cortex(d, "nodes", "drain", "beast")
        await cortex(d, "unpin", A)
        then = await cortex(d, "nodes", "drain", "beast", "--json")
        back = await cortex(d, "nodes", "uncordon", "beast")

    assert (foreseen.status, first.status, then.status) == (1, 1, 0)
    lines = first.out.splitlines()
    assert lines[0] == "beast: cordoned, and 1 model(s) stay"
    assert lines[3].split(maxsplit=3) == [A, "stays", "-", "it is pinned there"]
    assert lines[4].split()[:2] == [B, "unloaded"]
    assert then.json["drained"]
    assert back.out == "beast: uncordoned\n"


async def test_settings_are_reloaded_by_command(tmp_path: pathlib.Path) -> None:
    """Issue: what changed, and status 2 for a file that cannot be used."""
    neuron = FakeNeuron()
    async with running(neuron):
        nodes = {"beast": neuron.url}
        async with door(write(tmp_path, nodes, A)) as d:
            same = await cortex(d, "config", "reload")
            more = "[eviction]\nstrategy = 'cost'"
            await asyncio.to_thread(
                write, tmp_path, nodes, A, gateway="log_format = 'json'", more=more
            )
            changed = await cortex(d, "config", "reload")
            await asyncio.to_thread(d.file.write_text, "[gate]\n")
            bad = await cortex(d, "config", "reload")

    assert (same.status, same.out) == (0, "nothing has changed\n")
    assert changed.out == ("changed: eviction.strategy\ntakes a restart: gateway.log_format\n")
    assert (bad.status, bad.out) == (2, "")
    assert bad.err.startswith(f"cortex: {d.file}: gate: unknown key")


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("load org/none", 1, "the model 'org/none' does not exist here"),
        (f"unload {A} --node nowhere", 1, "there is no node 'nowhere'; there are: beast"),
        (f"sleep {A}", 1, f"no node has {A}; say on which one it is meant"),
        (f"sleep {A} --level 3", 2, "'3' is not one of '1', '2'"),
        ("nodes drain", 2, "Missing argument 'NAME'"),
        (f"load {B} --dry-run", 1, ""),
        (f"load {B}", 1, "fits on no node"),
    ],
)
async def test_what_cannot_be_done_is_one_line_and_a_status(
    tmp_path: pathlib.Path, line: str, status: int, says: str
) -> None:
    """Contract: 1 the fleet or an answer is not, 2 usage."""
    neuron = FakeNeuron()
    big = {"id": B, "harness": "simulated", "vram_mb": 99999}
    small = {"id": A, "harness": "simulated", "vram_mb": 8000}
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, small, big)) as d:
        done = await cortex(d, *line.split())

    assert (done.status, says in done.err) == (status, True), done
    assert len(done.err.splitlines()) == (1 if says else 0)


async def test_a_load_that_nobody_waits_for_goes_on(tmp_path: pathlib.Path) -> None:
    """Ours: `--no-wait`."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        done = await cortex(d, "load", A, "--no-wait", "--node", "beast")
        await until_true(lambda: bool(neuron.loads))

    assert (done.status, done.out) == (0, f"{A}: loading on beast\n")


async def test_commands_of_the_page_work_as_they_are_written(tmp_path: pathlib.Path) -> None:
    """Ours: whoever copies a line of the how-to gets what it says."""
    text = (ROOT / "docs" / "how-to" / "operate-the-fleet.md").read_text()
    blocks = re.findall(r"^```shell\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("cortex ")]
    beast, tiny = FakeNeuron(), FakeNeuron()
    model = "Qwen/Qwen3-8B"
    beast.set_model(model, "loaded", vram_used_mb=8000)
    async with running(beast), running(tiny):
        urls = {"beast": beast.url, "tiny": tiny.url}
        async with door(write(tmp_path, urls, model)) as d:
            done = [(line, await cortex(d, *shlex.split(line)[1:])) for line in lines]

    assert len(done) > 10
    assert [(line, one) for line, one in done if one.status != 0] == []
    # In its order, the page leaves the model on the node that was not drained.
    assert (beast.is_cordoned, model in tiny.models) == (False, True)
