"""The daemon's side of the process that tells tokens, against one that misbehaves on demand."""

import asyncio
import pathlib
import sys
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import (
    ContextLengthError,
    EngineError,
    InvalidJsonError,
    InvalidRequestError,
    ModelLoadFailedError,
    OverloadedError,
    RequestError,
    UpstreamTimeoutError,
)
from cortex_core.harness import ModelSpec, Route
from cortex_core.ids import ModelId, RequestId
from neuron.engines.token_frames import error_of, failure_of
from neuron.engines.token_process import TokenProcess
from tests.fleet.daemons import until

COMMAND = (sys.executable, "-m", "tests.fakes.token_process")
SPEC = ModelSpec(model=ModelId("m"), harness="vllm")
WAIT_S = 30.0


@pytest.fixture
async def process() -> AsyncIterator[TokenProcess]:
    process = TokenProcess(COMMAND)
    yield process
    await process.close()


async def ask(process: TokenProcess, body: bytes) -> bytes:
    folder = pathlib.Path("/nowhere")
    async with asyncio.timeout(WAIT_S):
        return await process.ask(SPEC, folder, Route.TOKENIZE, body, RequestId("r"))


async def test_process_is_told_no_secret(
    process: TokenProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: it needs neither the hub nor the fleet."""
    for name in ("HF_TOKEN", "NEURON_FLEET_TOKEN"):
        monkeypatch.setenv(name, "canary")

    await ask(process, b"first")
    known = await asyncio.to_thread(pathlib.Path(f"/proc/{process.pid}/environ").read_bytes)

    assert b"PATH=" in known
    assert b"canary" not in known


async def test_answers_belong_to_their_questions(process: TokenProcess) -> None:
    """Ours: one process, whatever is asked at the same time, of whatever length."""
    bodies = [b"%d" % number * (1 + 9_000 * (number % 3)) for number in range(30)]

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(process, body)) for body in bodies]

    assert [task.result() for task in asked] == bodies


@pytest.mark.parametrize("body", [b"half", b"hang"])
async def test_whoever_leaves_does_not_spoil_the_next_answer(
    process: TokenProcess, body: bytes
) -> None:
    """Ours: also when the caller leaves in the middle of its answer."""
    assert await ask(process, b"first") == b"first"
    pid = process.pid
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask(process, body)

    assert await ask(process, b"next") == b"next"
    assert process.pid == pid


async def test_process_that_ends_is_an_error_and_is_started_again(process: TokenProcess) -> None:
    """Ours: one question is lost with it."""
    with pytest.raises(EngineError):
        await ask(process, b"die")

    assert await ask(process, b"next") == b"next"


async def test_answer_that_never_comes_ends_the_process() -> None:
    """Ours: 504, and the next question is put to a new one."""
    process = TokenProcess(COMMAND, answer_s=1.0)
    with pytest.raises(UpstreamTimeoutError):
        await ask(process, b"hang")
    assert process.pid is None

    process = TokenProcess(COMMAND)
    assert await ask(process, b"next") == b"next"
    await process.close()


async def test_process_ends_when_nobody_asks() -> None:
    """Ours: what it holds is given back."""
    process = TokenProcess(COMMAND, idle_s=0.05)
    assert await ask(process, b"first") == b"first"

    await asyncio.to_thread(until, lambda: process.pid is None, WAIT_S)


async def test_too_many_are_refused(process: TokenProcess) -> None:
    """Ours: 503 with a hint, rather than a line without end."""
    waiting = [asyncio.Event() for _ in range(64)]

    async def wait(event: asyncio.Event) -> None:
        event.set()
        await ask(process, b"hang")

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(wait(event)) for event in waiting]
        for event in waiting:
            await event.wait()
        with pytest.raises(OverloadedError):
            await ask(process, b"one more")
        for task in running:
            task.cancel()


@given(
    st.sampled_from(
        [
            InvalidRequestError("a", param="b"),
            InvalidRequestError("a"),
            InvalidJsonError("a"),
            ContextLengthError("a", prompt_tokens=5, limit_tokens=3),
            ModelLoadFailedError("a"),
            EngineError("a"),
        ]
    )
)
def test_errors_are_the_same_on_both_sides(error: RequestError) -> None:
    """Ours: what callers see of an error goes through the pipe."""
    again = error_of(failure_of(error))

    assert type(again) is type(error)
    assert vars(again) == vars(error)
