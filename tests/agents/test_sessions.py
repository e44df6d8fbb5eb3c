"""Real agents, as a new user starts them, write a file with a model behind a real gateway."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.agents import scripted_model
from tests.agents.installed import clean_environment, need
from tests.agents.recorded import Asked, Recorder, keep
from tests.agents.sessions import SESSIONS, Session
from tests.fakes.gateway import gateway
from tests.fakes.upstream import ScriptedNode

LIMIT_S = 100.0
"""A bound, not an expectation: they take one to ten seconds."""

pytestmark = pytest.mark.timeout(LIMIT_S + 20)


async def run(session: Session, folder: Path, home: Path) -> str:
    """Run an agent to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *session.command,
        cwd=folder,
        env=clean_environment(home, **session.environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            printed, _ = await process.communicate()
    except TimeoutError:
        os.killpg(process.pid, 9)
        pytest.fail(f"the agent did not end within {LIMIT_S} s")
    assert process.returncode == 0, printed.decode()
    return printed.decode()


@pytest.mark.parametrize("agent", SESSIONS)
async def test_agent_writes_a_file(agent: str, tmp_path: Path) -> None:
    """Issue: with a clean HOME and a dummy key, a tool call at least, and a file written."""
    need(agent.partition("-")[0])
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    path = folder / "hello.txt"
    # aider gives its files names within the folder.
    named = path.name if agent.startswith("aider") else str(path)
    asked: list[Asked] = []
    async with (
        ScriptedNode(scripted_model.play) as node,
        gateway({"a": node.url}, wrap=lambda app: Recorder(app, asked)) as g,
    ):
        session = SESSIONS[agent](g.url, folder, scripted_model.task(named))
        printed = await run(session, folder, home)
        figures = g.recorder.requests

    assert path.read_text().strip() == scripted_model.CONTENT, printed
    assert {figure["outcome"] for figure in figures} == {"ok"}
    if not agent.startswith("aider"):
        assert scripted_model.SAID in printed
        results = [m for m in json.loads(node.wires[-1].body)["messages"] if m["role"] == "tool"]
        assert len(results) == 1
    keep(agent, asked, folder)
