"""One copy of a model over two neurons with the real engine, both on this machine."""

from typing import Any

import pytest

from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess, kill, running, wait_for
from tests.e2e.test_vllm_parallel import GREEDY

pytestmark = pytest.mark.timeout(600)

RECOVERY_S = 180.0
"""Bound on the way from a lost part to a copy that serves again."""


def load(head: NeuronProcess, peer: NeuronProcess) -> None:
    """Load the chat model over both."""
    answer = head.load(CHAT, tensor_parallel=2, peers=[{"endpoint": peer.url}])
    assert answer.status_code == 200, answer.text


def report(daemon: NeuronProcess) -> dict[str, Any]:
    """Return what a neuron says of the chat model; empty when it does not have it."""
    models = daemon.http.get("/models").json()
    found: dict[str, Any] = next((entry for entry in models if entry["id"] == CHAT), {})
    return found


def answer(daemon: NeuronProcess) -> object:
    """Return what it says, greedily."""
    return daemon.ask("/v1/chat/completions", **GREEDY)["choices"][0]["message"]


def test_two_nodes_hold_one_copy_and_lose_it_together(
    neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ours: one replica at its head, the same answer, and never half of it, whoever ends."""
    heads, peers = tmp_path_factory.mktemp("head"), tmp_path_factory.mktemp("peer")
    with running(heads) as head, running(peers) as peer:
        load(head, peer)
        whole, part = report(head), report(peer)
        assert (whole["status"], whole["peers"]) == ("loaded", [peer.url])
        assert (part["status"], bool(part["head"])) == ("loaded", True)
        assert not part["servable"]["ok"]
        assert answer(head) == answer(neuron)
        assert peer.post("/v1/chat/completions", GREEDY).status_code == 503

        # An unload at the head ends all processes of both.
        head.ask("/models/unload", model_id=CHAT)
        assert (report(head), report(peer)) == ({}, {})
        wait_for(lambda: not peer.follower_processes() and not head.engine_processes())

        # A worker of the follower dies: the copy ends as a whole.
        load(head, peer)
        kill(min(peer.follower_processes()))
        wait_for(lambda: report(head)["status"] != "loaded", RECOVERY_S)
        assert peer.url in str(report(head)["error"])
