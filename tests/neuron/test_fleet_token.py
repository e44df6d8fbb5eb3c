"""The fleet's token: who is let in, whose word about callers counts, and what is told of the rest."""

import asyncio
import logging
import pathlib

import pytest

from cortex_core.errors import SettingsError
from neuron.api.fleet import OPEN_PATHS
from neuron.settings import load_settings
from tests.neuron.conftest import RunningNeuron, Start

TOKEN = "fleet-secret-0123456789"
MEMBER = {"authorization": f"Bearer {TOKEN}"}
CHAT = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
PATH = "/v1/chat/completions"
ONE = {"max_in_flight": 1, "max_queue": 2, "max_share": 0.5}
HANGS = {"faults": {"a": {"hang": True}}}


async def _status(neuron: RunningNeuron, method: str, path: str, **headers: str) -> int:
    async with neuron.session.request(method, neuron.url + path, headers=headers) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/discovery"),
        ("GET", "/health"),
        ("GET", "/models"),
        ("GET", "/events"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/models/a/endpoint"),
        ("GET", "/no/such/path"),
        ("POST", "/models/load"),
        ("POST", "/models/unload"),
        ("POST", "/models/sleep"),
        ("POST", "/models/wake"),
        ("POST", "/models/pin"),
        ("POST", "/cordon"),
        ("POST", "/recycle"),
        ("POST", PATH),
        ("POST", "/tokenize"),
    ],
)
async def test_nothing_else_is_answered_without_the_token(
    start: Start, method: str, path: str
) -> None:
    """Issue: reliability 3.1, a token per fleet; not even what there is can be learnt without it."""
    async with (
        start(fleet_token=TOKEN) as neuron,
        neuron.session.request(method, neuron.url + path) as answer,
    ):
        body = await answer.json()

    assert (answer.status, body["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_probes_need_no_token(start: Start, path: str) -> None:
    """Ours: what starts and stops processes has none."""
    async with start(fleet_token=TOKEN) as neuron:
        status = await _status(neuron, "GET", path)

    assert status == 200


@pytest.mark.parametrize(
    "sent", ["", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ä"]
)
async def test_another_token_is_none(start: Start, sent: str) -> None:
    async with start(fleet_token=TOKEN) as neuron:
        wrong = await _status(neuron, "GET", "/models", authorization=sent)
        right = await _status(neuron, "GET", "/models", **MEMBER)

    assert (wrong, right) == (401, 200)


async def test_strangers_are_counted_and_told_of_once(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue: no log storm, and the token is in no line of it."""
    with caplog.at_level(logging.DEBUG):
        async with start(fleet_token=TOKEN) as neuron:
            for _ in range(20):
                await _status(neuron, "GET", "/models", authorization=f"Bearer {TOKEN}-stale")
            async with neuron.session.get(f"{neuron.url}/metrics", headers=MEMBER) as answer:
                text = await answer.text()

    told = [record for record in caplog.records if "without the fleet's token" in record.message]
    assert len(told) == 1
    assert 'neuron_refusals_total{reason="invalid_api_key"} 20.0' in text
    assert not any(TOKEN in str(vars(record)) for record in caplog.records)
    assert TOKEN not in text


async def test_callers_are_who_the_fleets_gateways_say(start: Start) -> None:
    """Issue: shares are by caller, whichever gateway sends; identity only with the token."""
    async with start(fleet_token=TOKEN, admission=ONE, simulated=HANGS) as neuron:
        await _load(neuron, **MEMBER)
        async with asyncio.TaskGroup() as tasks:
            asked = []
            refused = []
            for caller, waiting in (("greedy", 0), ("greedy", 1), ("modest", 2)):
                headers = {**MEMBER, "x-cortex-caller": caller}
                asked.append(tasks.create_task(neuron.post(PATH, CHAT, **headers)))
                await _in_line(neuron, waiting)
                if waiting == 1:
                    # The queue has room, but not for more of this caller's.
                    refused.append(await neuron.post(PATH, CHAT, **headers))
            for task in asked:
                task.cancel()

    ((status, body, _),) = refused
    assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
    assert "of your requests" in body["error"]["message"]


async def test_without_a_token_nobody_is_believed_to_ask_for_somebody_else(start: Start) -> None:
    """Ours: else a caller would have as many shares as it can think of names."""
    async with start(admission=ONE, simulated=HANGS) as neuron:
        await _load(neuron)
        async with asyncio.TaskGroup() as tasks:
            asked = []
            for number in range(2):
                headers = {"x-cortex-caller": f"name-{number}"}
                asked.append(tasks.create_task(neuron.post(PATH, CHAT, **headers)))
                await _in_line(neuron, number)
            status, _, _ = await neuron.post(PATH, CHAT, **{"x-cortex-caller": "another"})
            for task in asked:
                task.cancel()

    assert status == 503


async def _load(neuron: RunningNeuron, **headers: str) -> None:
    spec = {"model_id": "a", "harness": "simulated"}
    status, _, _ = await neuron.post("/models/load", spec, **headers)
    assert status == 200


async def _in_line(neuron: RunningNeuron, waiting: int) -> None:
    """Wait until one request is with the engine and so many wait."""
    async with asyncio.timeout(5):
        while True:
            async with neuron.session.get(f"{neuron.url}/health", headers=MEMBER) as answer:
                (model,) = (await answer.json())["models"]
            if (model["in_flight"], model["queued"]) == (waiting + 1, waiting):
                return
            await asyncio.sleep(0.005)


def test_token_comes_from_a_file_beside_the_settings(tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    config = tmp_path / "neuron.toml"
    config.write_text('fleet_token_file = "token"')

    assert load_settings(config, {}).fleet_token == TOKEN


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('fleet_token_file = "gone"', "fleet_token_file: cannot read"),
        ('fleet_token_file = "empty"', "is empty"),
        ('fleet_token = "a"\nfleet_token_file = "empty"', "not both"),
        ('fleet_token = "a\\nb"', "no header can carry"),
        ('fleet_token = ""', "no header can carry"),
        ('fleet_token = "a "', "no header can carry"),
    ],
)
def test_token_that_cannot_be_used_stops_the_start(
    tmp_path: pathlib.Path, text: str, wrong: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    config = tmp_path / "neuron.toml"
    config.write_text(text)

    with pytest.raises(SettingsError, match=wrong):
        load_settings(config, {})
