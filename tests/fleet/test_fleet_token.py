"""A fleet with a token: gateways bring it, and one with another token is told so once."""

import pathlib
import signal

import httpx
import pytest

from tests.fleet.daemons import Daemon, gateway, started, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NEURON = """
host = "127.0.0.1"
port = 0
fleet_token_file = "token"
[[harnesses]]
name = "simulated"
[harness.simulated]
load_s = 0.1
[[devices]]
index = 0
name = "SIM-24"
vram_total_mb = 24576
"""

TOKEN = "the-fleets-own-token"
OTHER = "some-other-token"


def _node(door: Daemon) -> dict[str, object]:
    (node,) = door.get("/admin/fleet").json()["nodes"]
    assert isinstance(node, dict)
    return node


def _ask(door: Daemon) -> httpx.Response:
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    headers = {"prefer": "wait=20", "authorization": "Bearer a-callers-key"}
    url = f"{door.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60.0)


def test_gateway_with_another_token_is_unauthorized_until_it_has_the_right_one(
    tmp_path: pathlib.Path,
) -> None:
    """Issue: shown in the fleet overview, no storm in any log, and a reload mends it."""
    (tmp_path / "token").write_text(TOKEN)
    config = tmp_path / "neuron.toml"
    config.write_text(NEURON)
    folder = tmp_path / "gateway"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    told = 'fleet_token_file = "token"\n'
    with (
        started("neuron", config, r"ready: http://(\S+)") as neuron,
        gateway(folder, told=told, sim=neuron.url) as door,
    ):
        served = _ask(door)
        shown = door.get("/admin/config").text
        (folder / "token").write_text(OTHER)
        door.process.send_signal(signal.SIGHUP)
        until(lambda: _node(door)["health"] == "down")
        shut_out, refused = _node(door), _ask(door)
        (folder / "token").write_text(TOKEN)
        door.process.send_signal(signal.SIGHUP)
        until(lambda: _node(door)["health"] == "up")
        again = _ask(door)
        logs = [*neuron.log, *door.log]

    assert "unauthorized" in str(shut_out["last_error"])
    assert refused.status_code == 503
    assert (served.status_code, again.status_code) == (200, 200)
    assert TOKEN not in shown
    assert not any(TOKEN in line or OTHER in line for line in logs)
    assert sum("unauthorized" in line for line in logs) < 10
    assert sum("without the fleet's token" in line for line in logs) == 1
