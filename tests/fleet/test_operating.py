"""A gateway and simulated neurons as real processes, operated while they serve."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

import openai
import pytest

from tests.fleet.daemons import Daemon, gateway, in_flight, simulated_neuron, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MODEL, OTHER = "sim/fast", "sim/other"
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
STREAMS = 20


def cortex(door: Daemon, line: str) -> tuple[int, str, str]:
    """Run a command against a gateway."""
    done = subprocess.run(
        [sys.executable, "-m", "cortex_cli", *line.split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "CORTEX_ENDPOINT": door.url},
    )
    return done.returncode, done.stdout, done.stderr


def stream(client: openai.OpenAI, tokens: int) -> tuple[int, str | None]:
    """Return how many pieces of text came, and the finish reason."""
    pieces, finish = 0, None
    for chunk in client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    ):
        pieces += bool(chunk.choices and chunk.choices[0].delta.content)
        finish = chunk.choices[0].finish_reason if chunk.choices else finish
    return pieces, finish


def node(door: Daemon, name: str) -> dict[str, object]:
    nodes = door.get("/admin/fleet").json()["nodes"]
    found: dict[str, object] = next(one for one in nodes if one["name"] == name)
    return found


def test_a_model_goes_through_its_tiers_at_a_real_neuron(tmp_path: pathlib.Path) -> None:
    """Issue: load, sleep, wake, pin, unload by command; each tier is told by the neuron."""
    with simulated_neuron(tmp_path) as neuron, gateway(tmp_path, sim=neuron.url) as door:
        loaded = cortex(door, f"load {MODEL}")
        asleep = cortex(door, f"sleep {MODEL} --level 2")
        shown = cortex(door, "models")
        awake = cortex(door, f"wake {MODEL}")
        pinned = cortex(door, f"pin {MODEL}")
        is_pinned = [model["pinned"] for model in neuron.get("/models").json()]
        unpinned = cortex(door, f"unpin {MODEL}")
        gone = cortex(door, f"unload {MODEL}")
        left = neuron.get("/models").json()

    assert loaded[:2] == (0, f"{MODEL}: loaded on sim\n"), loaded
    assert asleep == (0, f"{MODEL}: sleeping on sim\n", "")
    assert "sim (sleeping, level 2)" in shown[1]
    assert awake[1] == f"{MODEL}: loaded on sim\n"
    assert (pinned[1], is_pinned) == (f"{MODEL}: pinned on sim\n", [True])
    assert unpinned[0] == 0
    assert (gone[1], left) == (f"{MODEL}: unloaded on sim\n", [])


def test_whether_a_model_fits_is_told_by_every_neuron(tmp_path: pathlib.Path) -> None:
    """Issue 5: status 0 where it fits somewhere; nothing is loaded for it."""
    catalogue = '[[models]]\nid = "sim/huge"\nharness = "simulated"\nvram_mb = 30000\n'
    with (
        simulated_neuron(tmp_path) as neuron,
        gateway(tmp_path, catalogue, sim=neuron.url) as door,
    ):
        fits = cortex(door, "fit sim/unheard-of")
        huge = cortex(door, "fit sim/huge --node sim")
        models = neuron.get("/models").json()

    assert fits[0] == 0, fits
    assert huge[0] == 1, huge
    assert "it needs 30,000 MiB; cuda-dev-0 has 24,576 MiB" in huge[1]
    assert models == []


def test_a_node_is_drained_under_its_streams(tmp_path: pathlib.Path) -> None:
    """Ours: served elsewhere first, unloaded when the requests have ended; nobody is cut."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with (
        simulated_neuron(folders[0]) as one,
        simulated_neuron(folders[1]) as two,
        gateway(tmp_path, one=one.url, two=two.url) as door,
        door.sdk() as client,
        concurrent.futures.ThreadPoolExecutor(STREAMS + 1) as pool,
    ):
        cortex(door, f"load {MODEL} --node one")
        jobs = [pool.submit(stream, client, 300) for _ in range(STREAMS)]
        until(lambda: in_flight(one) > 0)
        status, out, err = cortex(door, "nodes drain one")
        answers = [job.result(timeout=120) for job in jobs]
        late = stream(client, 3)
        left = one.get("/models").json()
        refused = cortex(door, f"load {OTHER} --node one")

        assert (status, err) == (0, ""), out
        assert out.startswith("one: drained\n")
        assert set(answers) == {(300, "length")}
        assert late[1] == "length"
        assert left == []
        assert [model["id"] for model in two.get("/models").json()] == [MODEL]
        assert refused[0] == 1
        assert "cordoned" in refused[2]
        assert node(door, "one")["cordoned"]


def test_a_pin_and_a_cordon_outlive_the_gateway(tmp_path: pathlib.Path) -> None:
    """Ours: the neuron keeps them, so that the next gateway knows."""
    with simulated_neuron(tmp_path) as neuron:
        with gateway(tmp_path, sim=neuron.url) as door:
            cortex(door, f"load {MODEL}")
            assert cortex(door, f"pin {MODEL}")[0] == 0
            assert cortex(door, "nodes cordon sim")[0] == 0
        with gateway(tmp_path, sim=neuron.url) as door:
            nodes, models = cortex(door, "nodes")[1], cortex(door, "models")[1]

    assert "cordoned" in nodes
    assert "sim (pinned)" in models
