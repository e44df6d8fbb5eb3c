"""One copy of a model over two neurons with the real engine, both on this machine."""

from typing import Any

import pytest

from cortex_core.ids import ModelId
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess, kill, running, wait_for
from tests.e2e.test_vllm_parallel import GREEDY

pytestmark = pytest.mark.timeout(600)

RECOVERY_S = 180.0
"""Bound on the way from a lost part to a copy that serves again."""


def load(head: NeuronProcess, peer: NeuronProcess, model: str = CHAT) -> None:
    """Load the chat model over both, under whichever name."""
    options = {"tensor_parallel": 2, "engine": dict(BUILTIN[ModelId(CHAT)].engine)}
    answer = head.load(model, peers=[{"endpoint": peer.url}], **options)
    assert answer.status_code == 200, answer.text


def report(daemon: NeuronProcess, model: str = CHAT) -> dict[str, Any]:
    """Return what a neuron says of a model; empty when it does not have it."""
    models = daemon.http.get("/models").json()
    found: dict[str, Any] = next((entry for entry in models if entry["id"] == model), {})
    return found


def answer(daemon: NeuronProcess) -> object:
    """Return what it says, greedily."""
    return daemon.ask("/v1/chat/completions", **GREEDY)["choices"][0]["message"]


def test_two_nodes_hold_one_copy_and_lose_it_together(
    neuron: NeuronProcess, own_neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ours: one replica at its head, the same answer, and never half of it, whoever ends."""
    head = own_neuron
    with running(tmp_path_factory.mktemp("peer")) as peer:
        load(head, peer)
        whole, part = report(head), report(peer)
        assert (whole["status"], whole["peers"]) == ("loaded", [peer.url])
        assert (part["status"], bool(part["head"])) == ("following", True)
        assert not part["servable"]["ok"]
        assert answer(head) == answer(neuron)
        assert peer.post("/v1/chat/completions", GREEDY).status_code == 503

        # A worker of the follower dies: the copy ends as a whole, and comes back as one.
        before = peer.follower_processes()
        kill(min(before))
        wait_for(lambda: report(head)["status"] == "recovering", RECOVERY_S)
        assert peer.url in str(report(head)["error"])
        wait_for(lambda: report(head)["status"] == "loaded", RECOVERY_S)
        assert answer(head) == answer(neuron)
        assert not before & peer.follower_processes()

        # So does the whole peer, and stays away: the head tries until it is told otherwise.
        kill(peer.process.pid)
        wait_for(lambda: report(head)["status"] == "recovering", RECOVERY_S)
        assert peer.url in str(report(head)["error"])
        head.ask("/models/unload", model_id=CHAT)
        wait_for(lambda: not head.engine_processes())


def test_followers_end_with_an_unload_and_with_their_head(
    neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ours: the same model under another name, with a peer that has the first one for itself."""
    model = str(BUILTIN[ModelId(CHAT)].path)
    with running(tmp_path_factory.mktemp("head")) as head:
        load(head, neuron, model)
        head.ask("/models/unload", model_id=model)
        assert (report(head, model), report(neuron, model)) == ({}, {})
        assert not neuron.follower_processes()

        load(head, neuron, model)
        assert neuron.follower_processes()
        kill(head.process.pid)
        wait_for(lambda: not neuron.follower_processes(), RECOVERY_S)
        wait_for(lambda: report(neuron, model) == {}, RECOVERY_S)
        assert answer(neuron)
