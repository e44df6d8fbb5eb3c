"""The daemon as a process: start, ready line, signals, exit codes, nothing left behind."""

import asyncio
import contextlib
import json
import pathlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest

PATIENCE_S = 20.0

SETTINGS = """
host = "127.0.0.1"
port = 0
drain_timeout_s = 5.0
[[harnesses]]
name = "simulated"
[[devices]]
index = 0
name = "SIM"
vram_total_mb = 24576
[[default_models]]
model_id = "a"
harness = "simulated"
[harness.simulated]
load_s = 0.05
decode_tok_per_s = 20
[harness.simulated.faults.hangs]
hang = true
"""

TWO_HARNESSES = """
[[harnesses]]
name = "vllm"
[[devices]]
"""

CHAT = {"model": "a", "messages": [{"role": "user", "content": "x"}], "stream": True}


@contextlib.asynccontextmanager
async def _daemon(
    tmp_path: pathlib.Path,
    *arguments: str,
    text: str = SETTINGS,
    program: Sequence[str] = ("-m", "neuron"),
) -> AsyncIterator[asyncio.subprocess.Process]:
    config = tmp_path / "neuron.toml"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        "--config",
        str(config),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _ready(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    assert line.startswith("ready: http://127.0.0.1:")
    return line.removeprefix("ready: ").strip()


def _children(pid: int) -> list[str]:
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_sigterm_drains_and_ends_with_zero(tmp_path: pathlib.Path) -> None:
    """Ours: reliability S13, on a real process."""
    async with _daemon(tmp_path) as process, aiohttp.ClientSession() as session:
        url = await _ready(process)
        load = {"model_id": "a", "harness": "simulated"}
        async with session.post(url + "/models/load", json=load) as loaded:
            assert loaded.status == 200
        body = {**CHAT, "max_tokens": 20}
        async with session.post(url + "/v1/chat/completions", json=body) as answer:
            process.send_signal(signal.SIGTERM)
            text = await answer.text()
        children = _children(process.pid) if process.returncode is None else []
        status = await process.wait()

    assert text.endswith("data: [DONE]\n\n")
    assert status == 0
    assert children == []


async def test_what_a_killed_daemon_had_loaded_comes_back(tmp_path: pathlib.Path) -> None:
    """Ours: a crash remembers as much as an end in good order."""
    state = tmp_path / "state.json"
    text = f'restore = true\nstate_path = "{state}"\n{SETTINGS}'
    async with _daemon(tmp_path, text=text) as process, aiohttp.ClientSession() as session:
        url = await _ready(process)
        load = {"model_id": "b", "harness": "simulated"}
        async with session.post(url + "/models/load", json=load) as loaded:
            assert loaded.status == 200
        while b'"b"' not in (state.read_bytes() if state.exists() else b""):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
    async with _daemon(tmp_path, text=text) as process, aiohttp.ClientSession() as session:
        url = await _ready(process)
        while True:
            async with session.get(url + "/health") as health:
                activation = json.loads(await health.text())["activation"]
            if activation["state"] == "ready":
                break

    assert activation["completed"] == ["a", "b"]


async def test_status_says_that_it_wants_to_be_started_anew(tmp_path: pathlib.Path) -> None:
    """Ours: whoever starts it again can tell this end from all others."""
    fault = '[harness.simulated.faults.{}]\nfail_to_load = true\nreason = "CUDA error"\n'
    text = f'state_path = "{tmp_path / "state.json"}"\n{SETTINGS}{fault.format("b")}{fault.format("c")}'
    async with _daemon(tmp_path, text=text) as process, aiohttp.ClientSession() as session:
        url = await _ready(process)
        for model in ("b", "c", "b"):
            load = {"model_id": model, "harness": "simulated"}
            async with session.post(url + "/models/load", json=load) as loaded:
                assert loaded.status == 503
        status = await process.wait()

    assert status == 75


async def test_request_that_does_not_end_is_cut_at_the_drain_s_end(tmp_path: pathlib.Path) -> None:
    """Ours: the process ends in time, and the caller gets an error."""
    text = SETTINGS.replace("drain_timeout_s = 5.0", "drain_timeout_s = 0.2")
    async with _daemon(tmp_path, text=text) as process, aiohttp.ClientSession() as session:
        url = await _ready(process)
        load = {"model_id": "hangs", "harness": "simulated"}
        async with session.post(url + "/models/load", json=load) as loaded:
            assert loaded.status == 200
        async with asyncio.TaskGroup() as tasks:
            hanging = tasks.create_task(
                session.post(url + "/v1/chat/completions", json={**CHAT, "model": "hangs"})
            )
            while True:
                async with session.get(url + "/health") as health:
                    models = json.loads(await health.text())["models"]
                if any(model["in_flight"] for model in models):
                    break
            process.send_signal(signal.SIGTERM)
        answer = hanging.result()
        body = await answer.json()
        status = await process.wait()

    assert (answer.status, body["error"]["code"]) == (503, "draining")
    assert status == 0


async def test_thread_that_is_stuck_does_not_keep_the_process(tmp_path: pathlib.Path) -> None:
    """Ours: a look-up in the hub that waits for the network ends with the daemon."""
    stuck = (
        "import sys, threading; from neuron.__main__ import main; "
        "threading.Thread(target=threading.Event().wait, name='stuck').start(); "
        "sys.exit(main(sys.argv[1:]))"
    )
    async with _daemon(tmp_path, program=("-c", stuck)) as process:
        await _ready(process)
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()

    assert process.returncode == 0
    assert b"left the thread 'stuck' behind" in errors


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("sys.modules['vllm'] = None", "vLLM is not installed"),
        ("sys.path.insert(0, sys.argv[2] + '.d')", "ImportError: libspoilt.so is missing"),
    ],
)
async def test_daemon_without_a_usable_vllm_starts_and_says_why(
    tmp_path: pathlib.Path, spoil: str, reason: str
) -> None:
    """Ours: the harness is not offered, the log and a load name the reason and the cure."""
    folder = tmp_path / "neuron.toml.d"
    folder.mkdir()
    (folder / "vllm.py").write_text("raise ImportError('libspoilt.so is missing')")
    program = f"import sys; {spoil}; from neuron.__main__ import main; sys.exit(main(sys.argv[1:]))"
    text = SETTINGS.replace("[[devices]]", TWO_HARNESSES)
    async with (
        _daemon(tmp_path, text=text, program=("-c", program)) as process,
        aiohttp.ClientSession() as session,
    ):
        url = await _ready(process)
        async with session.get(url + "/discovery") as discovery:
            harnesses = (await discovery.json())["harnesses"]
        load = {"model_id": "cortex/tiny", "harness": "vllm"}
        async with session.post(url + "/models/load", json=load) as refused:
            message = (await refused.json())["error"]["message"]
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()

    assert harnesses == ["simulated"]
    assert refused.status == 503
    for said in (message, errors.decode()):
        assert reason in said
        assert "pip install 'neuron[vllm]'" in said
    assert process.returncode == 0


async def test_mistake_in_the_settings_is_one_line_and_exit_code_two(
    tmp_path: pathlib.Path,
) -> None:
    """Given: exit code 2 for configuration."""
    async with _daemon(tmp_path, text="prot = 1") as process:
        _, errors = await process.communicate()

    assert process.returncode == 2
    assert errors.decode().count("\n") == 1
    assert "did you mean 'port'?" in errors.decode()


@pytest.mark.parametrize(("text", "status"), [(SETTINGS, 0), ("port = -1", 2)])
async def test_check_reads_the_settings_and_ends(
    tmp_path: pathlib.Path, text: str, status: int
) -> None:
    """Ours: `--check` starts nothing."""
    async with _daemon(tmp_path, "--check", text=text) as process:
        output, _ = await process.communicate()

    assert process.returncode == status
    assert output == b""


async def test_port_that_is_taken_is_one_line(tmp_path: pathlib.Path) -> None:
    """Ours: no traceback for what an operator can cause."""
    async with _daemon(tmp_path) as first:
        url = await _ready(first)
        port = url.rpartition(":")[2]
        async with _daemon(tmp_path, "--port", port) as second:
            _, errors = await second.communicate()

    assert second.returncode == 1
    assert b"in use" in errors
    assert b"Traceback" not in errors
