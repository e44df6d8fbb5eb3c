"""A model over two real neurons with the simulated engine, behind a real gateway."""

import pathlib

import httpx

from tests.fleet.daemons import Daemon, gateway, is_loaded, simulated_neuron, until

WIDE = "sim/wide"

CATALOGUE = f"""
[[models]]
id = "{WIDE}"
harness = "simulated"
vram_mb = 40000
min_devices = 2
nodes = ["beast", "mule"]
"""

BODY = {"model": WIDE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def listed(neuron: Daemon) -> dict[str, str]:
    """Return the status of each model on a neuron."""
    return {model["id"]: model["status"] for model in neuron.get("/models").json()}


def ask(gate: Daemon, wait_s: float) -> httpx.Response:
    """Ask the model."""
    headers = {"prefer": f"wait={wait_s}"}
    return httpx.post(f"{gate.url}/v1/chat/completions", json=BODY, headers=headers, timeout=60.0)


def test_request_brings_up_a_model_on_both_nodes_and_needs_both(tmp_path: pathlib.Path) -> None:
    """Ours: too large for either, answered by its head, and gone with either."""
    folders = [tmp_path / name for name in ("beast", "mule", "gate")]
    for folder in folders:
        folder.mkdir()
    with (
        simulated_neuron(folders[0]) as beast,
        simulated_neuron(folders[1]) as mule,
        gateway(folders[2], CATALOGUE, beast=beast.url, mule=mule.url) as gate,
    ):
        answer = ask(gate, 30)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-cortex-node"] == "beast"
        assert listed(beast) == {WIDE: "loaded"}
        assert listed(mule) == {WIDE: "following"}
        assert is_loaded(gate, WIDE)

        mule.kill()
        until(lambda: listed(beast)[WIDE] != "loaded")
        until(lambda: not is_loaded(gate, WIDE))
        beast_now = beast.get("/models").json()[0]
        assert mule.url in beast_now["error"]
        httpx.post(f"{beast.url}/models/unload", json={"model_id": WIDE}, timeout=30.0)
        until(lambda: "down" in gate.get("/admin/fleet").text)

        refused = ask(gate, 1)
        assert refused.status_code == 503
        explained = httpx.post(f"{gate.url}/admin/explain", json={"model": WIDE}).text
        assert "it needs beast and mule together; mule: the node is" in explained
        assert listed(beast) == {}
