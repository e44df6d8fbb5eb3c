"""A full neuron behind real gateways: its refusals are waited out, and its line is fair."""

import concurrent.futures
import pathlib
import threading

import httpx
import pytest

from tests.fleet.daemons import Daemon, gateway, in_flight, is_loaded, started, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NARROW = """
host = "127.0.0.1"
port = 0
[[harnesses]]
name = "simulated"
[harness.simulated]
load_s = 0.1
decode_tok_per_s = {rate}
{more}
[[devices]]
index = 0
name = "SIM-24"
vram_total_mb = 24576
compute_capability = "8.9"
"""

GIVES_MORE = """
[[models]]
id = "sim/fast"
harness = "simulated"
vram_mb = 8000
"""

EACH = 12


def _ask(door: Daemon, key: str) -> int:
    body = {
        "model": "sim/fast",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "ignore_eos": True,
    }
    answer = httpx.post(
        f"{door.url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {key}"},
        timeout=120.0,
    )
    return answer.status_code


def test_two_gateways_share_a_neuron_that_takes_one_request(tmp_path: pathlib.Path) -> None:
    """Issue: a full neuron is no sick one: every request is answered, none by an error.

    With no queue, whatever a gateway sends beside the other's request is refused.
    """
    config = tmp_path / "neuron.toml"
    config.write_text(NARROW.format(rate=400, more="[admission]\nmax_in_flight = 1\nmax_queue = 0"))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with (
        started("neuron", config, r"ready: http://(\S+)") as neuron,
        gateway(first, GIVES_MORE, sim=neuron.url) as one,
        gateway(second, GIVES_MORE, sim=neuron.url) as two,
        concurrent.futures.ThreadPoolExecutor(2 * EACH) as pool,
    ):
        jobs = [pool.submit(_ask, door, "x") for door in (one, two) for _ in range(EACH)]
        statuses = [job.result(timeout=120) for job in jobs]
        until(lambda: in_flight(neuron) == 0)
        fleets = [door.get("/admin/fleet").text for door in (one, two)]

    assert statuses == [200] * (2 * EACH)
    assert all('"up"' in fleet for fleet in fleets)


ALONE = """
[[default_models]]
model_id = "sim/fast"
harness = "simulated"
max_in_flight = 1
"""

MANY = GIVES_MORE + "max_in_flight = 20\n"


def _waiting(door: Daemon) -> int:
    """Return how many requests wait at the neuron, as it reported."""
    (node,) = door.get("/admin/fleet").json()["nodes"]
    return sum(model["queued"] for model in node["models"])


def test_shares_are_by_caller_whichever_gateway_sends(tmp_path: pathlib.Path) -> None:
    """Issue: two gateways over one neuron; one caller's many requests are one caller's.

    Both gateways are one peer to the neuron: without the callers that they name, the last request
    would be the last to be answered.
    """
    config = tmp_path / "neuron.toml"
    config.write_text('fleet_token = "one-for-all"' + NARROW.format(rate=20, more=ALONE))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    told = 'fleet_token = "one-for-all"\n'
    ended: list[str] = []
    lock = threading.Lock()

    def ask(door: Daemon, key: str) -> int:
        status = _ask(door, key)
        with lock:
            ended.append(key)
        return status

    with (
        started("neuron", config, r"ready: http://(\S+)") as neuron,
        gateway(first, MANY, told=told, sim=neuron.url) as one,
        gateway(second, MANY, told=told, sim=neuron.url) as two,
        concurrent.futures.ThreadPoolExecutor(2 * EACH + 1) as pool,
    ):
        until(lambda: is_loaded(one, "sim/fast") and is_loaded(two, "sim/fast"))
        jobs = [pool.submit(ask, door, "greedy") for door in (one, two) for _ in range(8)]
        until(lambda: _waiting(one) >= 10)
        jobs.append(pool.submit(ask, two, "modest"))
        statuses = [job.result(timeout=120) for job in jobs]

    assert statuses == [200] * 17
    assert ended.index("modest") < 13
