"""The gateway as a process of its own: start, readiness, end, and what it says about mistakes."""

import asyncio
import contextlib
import pathlib
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import anthropic
import msgspec
import openai

from tests.fakes.neuron import FakeNeuron, running
from tests.gateway.fleet import MODEL, until_true

WAIT_S = 20.0
"""A process must start within this on a machine that is busy with other tests."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A running gateway."""

    handle: asyncio.subprocess.Process
    url: str
    metrics_url: str


def write_settings(folder: pathlib.Path, neuron_url: str, extra: str = "") -> pathlib.Path:
    (folder / "models.toml").write_text(
        f'[[models]]\nid = "{MODEL}"\nharness = "simulated"\n[aliases]\nsmall = "{MODEL}"\n'
    )
    path = folder / "cortex.toml"
    path.write_text(
        'models_config = "models.toml"\n'
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        f'{extra}\n[[neurons]]\nname = "beast"\nendpoint = "{neuron_url}"\n'
    )
    return path


@asynccontextmanager
async def started(path: pathlib.Path) -> AsyncIterator[Process]:
    """Run the gateway until the context ends; its ports are read from its first line."""
    handle = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cortex_gateway", "--config", str(path), stderr=PIPE, stdin=DEVNULL
    )
    assert handle.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                line = (await handle.stderr.readline()).decode()
                assert line, "the gateway ended before it listened"
                found = re.search(r"listening on (\S+), metrics on (\S+)", line)
                if found:
                    break
        url, metrics_url = f"http://{found[1]}", f"http://{found[2]}/metrics"
        await until_ready(url)
        yield Process(handle=handle, url=url, metrics_url=metrics_url)
    finally:
        with contextlib.suppress(ProcessLookupError):
            handle.kill()
        await handle.communicate()


async def until_ready(url: str) -> None:
    async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.02)


async def test_process_serves_its_surface_and_ends_with_status_0(tmp_path: pathlib.Path) -> None:
    """Contract: probes, models, metrics on their own listener; SIGTERM is a clean end."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded", limit={"context": 4096})

    async with running(neuron), started(write_settings(tmp_path, neuron.url)) as gateway:
        async with aiohttp.ClientSession() as session:
            async with session.get(gateway.url + "/health") as answer:
                health = await answer.json()
            async with session.get(gateway.url + "/version") as answer:
                version = await answer.json()
            async with session.get(gateway.metrics_url) as answer:
                metrics = await answer.text()
            async with session.get(gateway.url + "/metrics") as answer:
                status_on_api, body = answer.status, await answer.json()
            async with session.get(gateway.metrics_url.replace("metrics", "health")) as answer:
                status_on_metrics = answer.status
        gateway.handle.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            status = await gateway.handle.wait()

    assert health == {"status": "ok", "nodes": {"healthy": 1, "total": 1}}
    assert version["name"] == "cortex-gateway"
    assert 'cortex_node_up{node="beast"} 1.0' in metrics
    assert f'cortex_replica_state{{model="{MODEL}",node="beast",state="loaded"}} 1.0' in metrics
    assert (status_on_api, body["error"]["code"]) == (404, "not_found")
    assert status_on_metrics == 404
    assert status == 0


async def test_both_sdks_list_the_models(tmp_path: pathlib.Path) -> None:
    """Contract: one superset object; ids with a slash raw or percent-encoded."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded", limit={"context": 4096})

    async with running(neuron), started(write_settings(tmp_path, neuron.url)) as gateway:
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none") as client:
            theirs = [model async for model in client.models.list()]
            one = await client.models.retrieve(MODEL)
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none") as client:
            others = [model async for model in client.models.list(limit=1)]
            other = await client.models.retrieve("small")

    assert [model.id for model in theirs] == [MODEL, "small"]
    assert one.object == "model"
    assert isinstance(one.created, int)
    # Paged by one, so that the pager followed `has_more` and `last_id`.
    assert [model.id for model in others] == [MODEL, "small"]
    assert other.type == "model"
    assert other.display_name == "small"
    assert other.created_at.year >= 2026


async def test_cold_model_is_loaded_once_for_all_who_ask(tmp_path: pathlib.Path) -> None:
    """Ours: held, loaded on demand, answered; through the real process, by an official SDK."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()

    async with (
        running(neuron),
        started(write_settings(tmp_path, neuron.url)) as gateway,
        openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0) as client,
        aiohttp.ClientSession() as session,
    ):
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(
                    client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": "hi"}]
                    )
                )
                for model in (MODEL, "small", MODEL, "small", MODEL)
            ]
            await until_true(lambda: bool(neuron.loads))
            neuron.load_may_end.set()
        async with session.get(gateway.metrics_url) as answer:
            metrics = await answer.text()

    assert [task.result().choices[0].message.content for task in asked] == ["hello"] * 5
    assert len(neuron.loads) == 1
    labels = f'model="{MODEL}",node="beast"'
    assert f'cortex_requests_total{{{labels},outcome="ok"}} 5.0' in metrics
    assert f"cortex_load_seconds_count{{{labels}}} 1.0" in metrics
    assert f"cortex_cold_starts_total{{{labels}}}" in metrics


async def test_held_stream_is_told_when_the_process_goes_down(tmp_path: pathlib.Path) -> None:
    """Ours: a drain is bounded, a cut stream never looks complete, and the status is 0."""
    neuron = FakeNeuron()
    neuron.load_may_end.clear()
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}

    async with running(neuron):
        path = write_settings(tmp_path, neuron.url, "[gateway.timeouts]\ndrain_s = 0.2")
        async with started(path) as gateway, aiohttp.ClientSession() as session:
            url = gateway.url + "/v1/chat/completions"
            async with asyncio.timeout(WAIT_S), session.post(url, json=body) as answer:
                # The heartbeat: from here on the stream has begun.
                await answer.content.readline()
                gateway.handle.send_signal(signal.SIGTERM)
                rest = (await answer.content.read()).decode()
                status = await gateway.handle.wait()

    assert '"code":"draining"' in rest
    assert "[DONE]" not in rest
    assert status == 0


async def test_taken_port_is_one_line_and_status_1(tmp_path: pathlib.Path) -> None:
    """Ours."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    path = write_settings(tmp_path, "http://127.0.0.1:1")
    path.write_text(path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))

    status, said = await run_to_end("--config", str(path))
    server.close()

    assert status == 1
    assert said.splitlines() == [
        f"cortex-gateway: cannot listen on 127.0.0.1:{port}: the port is in use by another process"
    ]


async def test_settings_that_cannot_be_used_are_one_line_and_status_2(
    tmp_path: pathlib.Path,
) -> None:
    """Contract: file, TOML path, what was wrong and what would be right."""
    path = tmp_path / "cortex.toml"
    path.write_text('[[neurons]]\nname = "a"\nend_point = "http://h"\n')

    status, said = await run_to_end("--config", str(path))

    assert status == 2
    assert said == (
        f"cortex-gateway: {path}: neurons[0].end_point: unknown key; did you mean 'endpoint'?\n"
    )


async def test_catalogue_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    """Ours: an empty catalogue in production was the seed's silent failure."""
    path = tmp_path / "cortex.toml"
    path.write_text('models_config = "models.toml"\n')

    status, said = await run_to_end("--config", str(path))

    assert status == 2
    assert said.startswith(f"cortex-gateway: {tmp_path / 'models.toml'}: cannot be read: ")


async def test_hangup_reloads_and_a_bad_file_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Issue: SIGHUP logs why a file cannot be used, and goes on with what was in force."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")

    async with running(neuron), aiohttp.ClientSession() as session:
        path = write_settings(tmp_path, neuron.url)
        async with started(path) as gateway:
            good = path.read_text()
            path.write_text(good.replace("[gateway]", "[gate_way]"))
            gateway.handle.send_signal(signal.SIGHUP)
            refused = await said(gateway, "not reloaded")
            async with session.get(gateway.url + "/readyz") as answer:
                status = answer.status
            path.write_text(good + "[eviction]\nstrategy = 'cost'\n")
            gateway.handle.send_signal(signal.SIGHUP)
            told = await said(gateway, "settings reloaded")
            async with session.get(gateway.url + "/admin/config") as answer:
                view = await answer.json()

    assert f"{path}: gate_way: unknown key; did you mean 'gateway'?" in refused
    assert status == 200
    assert "1 changes" in told
    assert view["settings"]["eviction"]["strategy"] == "cost"


async def said(gateway: Process, text: str) -> str:
    """Wait for a line of the log."""
    assert gateway.handle.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while True:
            line = (await gateway.handle.stderr.readline()).decode()
            assert line, "the gateway ended"
            if text in line:
                return line


async def run_to_end(*arguments: str) -> tuple[int | None, str]:
    """Run the gateway until it ends by itself."""
    handle = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cortex_gateway", *arguments, stderr=PIPE, stdin=DEVNULL
    )
    try:
        async with asyncio.timeout(WAIT_S):
            _, said = await handle.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            handle.kill()
    return handle.returncode, said.decode()
