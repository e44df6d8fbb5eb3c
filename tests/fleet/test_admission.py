"""A full neuron behind real gateways: its refusals are waited out, and its line is fair."""

import concurrent.futures
import pathlib

import httpx
import pytest

from tests.fleet.daemons import Daemon, gateway, in_flight, started, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NARROW = """
host = "127.0.0.1"
port = 0
[[harnesses]]
name = "simulated"
[harness.simulated]
load_s = 0.1
decode_tok_per_s = 400
[admission]
{admission}
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
    config.write_text(NARROW.format(admission="max_in_flight = 1\nmax_queue = 0"))
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
