"""Loading, unloading and failing of the real engine, in one life of a neuron."""

import http.server
import json
import pathlib
import shutil
import threading

import httpx
import pytest

from cortex_core.ids import ModelId
from neuron.engines import processes
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import (
    LOAD_S,
    READY_S,
    NeuronProcess,
    kill,
    running,
    starting,
    wait_for,
)

pytestmark = pytest.mark.timeout(600)

CHAT_PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"model": CHAT, "messages": HELLO, "max_tokens": 3900, "ignore_eos": True}

CYCLES = 10
"""Loads and unloads in a row that must leave nothing behind."""

GROWTH_BYTES = 12 << 20
"""What the daemon may grow by in the eight cycles that are measured, where up to 7 MiB were seen.
A tokenizer that outlives its engine costs more than a megabyte in each, an engine a hundred."""


def is_answering(daemon: NeuronProcess) -> bool:
    """Return whether a short chat succeeds."""
    body = {"model": CHAT, "messages": HELLO, "max_tokens": 2}
    return daemon.post(CHAT_PATH, body).status_code == 200


def left_behind(daemon: NeuronProcess) -> list[pathlib.Path]:
    """Return files in the daemon's temporary folder, which hold nothing when no engine runs."""
    mine = daemon.folder.glob("neuron-*/e-*/**/*")
    return [path for path in (*mine, *daemon.folder.glob("vllm*")) if not path.is_dir()]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"max_model_length": 5}, 400, "did you mean 'max_model_len'?"),
        ({"max_model_len": "5"}, 400, "expected int"),
        ({"tool_call_parser": "hermess"}, 400, "did you mean 'hermes'?"),
        ({"max_model_len": 10_000_000}, 400, "max_model_len"),
        ({"kv_cache_memory_bytes": 1}, 400, "more than the KV cache holds"),
    ],
)
def test_load_with_a_bad_option_says_why(
    own_neuron: NeuronProcess, options: dict[str, object], status: int, words: str
) -> None:
    """Ours: short, with the cure, whether it is found before the engine starts or by it."""
    answer = own_neuron.load(CHAT, engine=options)

    message = answer.json()["error"]["message"]
    assert answer.status_code == status, message
    assert words in message
    assert "Traceback" not in message
    assert len(message) < 1500


def test_load_of_a_model_that_is_not_there_is_404(own_neuron: NeuronProcess) -> None:
    """Ours: told before anything is started."""
    for model in ("org/nowhere", "/nowhere"):
        answer = own_neuron.load(model)

        assert answer.status_code == 404
        assert model in answer.json()["error"]["message"]


class HubHandler(http.server.BaseHTTPRequestHandler):
    """A hub that has nothing, and is out of order for some."""

    def do_GET(self) -> None:
        """Answer as the hub does."""
        if "broken" in self.path:
            self.send_response(500)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_load_of_a_model_that_the_hub_does_not_give_is_told_at_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ours: one question, instead of the half minute for which libraries try again."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{hub.server_port}"
        folder = tmp_path_factory.mktemp("h")
        with running(folder, HF_HUB_OFFLINE="0", HF_ENDPOINT=url) as daemon:
            daemon.http.timeout = httpx.Timeout(15.0)
            unknown = daemon.load("org/nowhere")
            broken = daemon.load("org/broken")
            hub.shutdown()
            hub.server_close()
            unreachable = daemon.load("org/nowhere")
        thread.join()

    assert unknown.status_code == 404
    assert "the hub has no such model" in unknown.json()["error"]["message"]
    assert broken.status_code == 503
    assert "status 500" in broken.json()["error"]["message"]
    assert unreachable.status_code == 503
    assert "the hub cannot be asked" in unreachable.json()["error"]["message"]


def test_load_of_an_unknown_architecture_says_so(
    own_neuron: NeuronProcess, tmp_path: pathlib.Path
) -> None:
    """Ours: a 400 that names it."""
    folder = tmp_path / "strange"
    shutil.copytree(BUILTIN[ModelId(CHAT)].path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["StrangeForCausalLM"], "model_type": "strange"}
    (folder / "config.json").write_text(json.dumps(config))

    answer = own_neuron.load(str(folder))

    assert answer.status_code == 400, answer.text
    assert "strange" in answer.json()["error"]["message"].lower()


def test_load_of_broken_weights_says_so(own_neuron: NeuronProcess, tmp_path: pathlib.Path) -> None:
    """Ours: found before an engine is started."""
    folder = tmp_path / "broken"
    shutil.copytree(BUILTIN[ModelId(CHAT)].path, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])

    answer = own_neuron.load(str(folder))

    assert answer.status_code == 503, answer.text
    size = weights.stat().st_size
    assert f"it has {size} bytes and should have" in answer.json()["error"]["message"]
    assert own_neuron.engine_processes() == set()


@pytest.mark.parametrize("most", [0, 1])
def test_engine_that_tells_few_log_probabilities_loads_all_the_same(
    own_neuron: NeuronProcess, most: int
) -> None:
    """Ours: the question of every load asks for no more than the options allow."""
    answer = own_neuron.load(CHAT, engine={"max_logprobs": most})

    assert answer.status_code == 200, answer.text
    own_neuron.unload(CHAT)


def test_engine_on_the_cpu_says_that_it_cannot_sleep(own_neuron: NeuronProcess) -> None:
    """vLLM 0.32: on the CPU `sleep` frees nothing, and `enable_sleep_mode` is refused."""
    wanted = own_neuron.load(CHAT, engine={"enable_sleep_mode": True})
    assert wanted.status_code in (400, 503), wanted.text
    assert "Sleep mode is not supported" in wanted.json()["error"]["message"]
    assert own_neuron.load(CHAT).status_code == 200

    reports = {entry["id"]: entry for entry in own_neuron.http.get("/models").json()}
    report = reports[CHAT]
    answer = own_neuron.post("/models/sleep", {"model_id": CHAT})

    assert report["capabilities"]["sleep"] is False
    assert report["max_in_flight"] == 64
    assert own_neuron.http.get("/health").json()["sleep_budget_mb"] is None
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert is_answering(own_neuron)
    own_neuron.unload(CHAT)


def test_unload_during_a_load_ends_its_processes(own_neuron: NeuronProcess) -> None:
    """Ours: a load is undone when it is not wanted any more."""
    own_neuron.post("/models/load?wait=false", {"model_id": CHAT, "harness": "vllm"})
    wait_for(own_neuron.engine_processes, timeout_s=60)

    own_neuron.unload(CHAT)

    wait_for(lambda: not own_neuron.engine_processes(), timeout_s=30)
    assert own_neuron.status(CHAT) in ("absent", "unloaded")


def test_unload_cuts_what_does_not_end_in_time(own_neuron: NeuronProcess) -> None:
    """Ours: a stream that is cut never looks complete."""
    assert own_neuron.load(CHAT).status_code == 200
    with own_neuron.http.stream("POST", CHAT_PATH, json={**ENDLESS, "stream": True}) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        thread = threading.Thread(
            target=httpx.post,
            args=(f"{own_neuron.url}/models/unload",),
            kwargs={"json": {"model_id": CHAT, "drain_timeout_s": 0.2}, "timeout": LOAD_S},
        )
        thread.start()
        text += "".join(pieces)
        thread.join(LOAD_S)

    assert '"error"' in text
    assert "[DONE]" not in text
    assert own_neuron.engine_processes() == set()


def test_loading_and_unloading_again_and_again_leaves_nothing(own_neuron: NeuronProcess) -> None:
    """Ours: no process, thread, descriptor or file more after ten cycles, and little memory."""

    def cycle() -> None:
        assert own_neuron.load(CHAT).status_code == 200
        assert is_answering(own_neuron)
        assert own_neuron.unload(CHAT).status_code == 200
        assert own_neuron.engine_processes() == set()

    cycle()
    # The first cycle starts what stays: the fork server, the threads of a pool.
    cycle()
    family = len(own_neuron.descendants())
    threads, descriptors = own_neuron.threads(), own_neuron.descriptors()
    memory_bytes = own_neuron.rss_bytes()

    for _ in range(CYCLES - 2):
        cycle()

    assert len(own_neuron.descendants()) == family
    assert own_neuron.descriptors() <= descriptors + 2
    # The pool of threads grows to its bound and stays there.
    assert own_neuron.threads() <= threads + 16
    assert own_neuron.rss_bytes() - memory_bytes < GROWTH_BYTES
    assert not own_neuron.series("vllm:num_requests_running")
    assert left_behind(own_neuron) == []


def test_recycling_replaces_engine_and_fork_server(own_neuron: NeuronProcess) -> None:
    """Ours: the model is back in new processes, and later loads work as before."""
    assert own_neuron.load(CHAT).status_code == 200
    before = own_neuron.descendants()

    answer = own_neuron.post("/recycle", {})

    assert (answer.status_code, answer.json()) == (200, {"status": "recycled"})
    left = [pathlib.Path(f"/proc/{it.pid}/cmdline").read_text() for it in processes.alive(before)]
    # Python's own, which looks after semaphores for as long as the daemon lives.
    assert all("resource_tracker" in command for command in left)
    assert is_answering(own_neuron)
    assert own_neuron.http.get("/health").json()["cycles"] == 0
    assert own_neuron.unload(CHAT).status_code == 200
    assert own_neuron.load(CHAT).status_code == 200
    own_neuron.unload(CHAT)


def test_everything_ends_with_a_daemon_that_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ours: no orphan holds the memory, and the next daemon removes the files."""
    folder = tmp_path_factory.mktemp("k")
    with running(folder) as daemon:
        assert daemon.load(CHAT).status_code == 200
        members = daemon.descendants()
        assert daemon.engine_processes() < {member.pid for member in members}

        kill(daemon.process.pid)
        daemon.process.wait(5)

        wait_for(lambda: not processes.alive(members), timeout_s=10.0)
    left = list(folder.glob("neuron-*"))
    assert left

    with running(folder):
        assert not any(path.exists() for path in left)


def test_fork_server_that_still_imports_ends_with_a_daemon_that_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ours: it is busy for many seconds, in which it does not look after its parent."""
    with starting(tmp_path_factory.mktemp("f")) as process:
        members: set[processes.Process] = set()

        def has_child() -> bool:
            family = processes.family([process.pid])
            members.update(member for member in family if member.pid != process.pid)
            return len(members) >= 2

        wait_for(has_child, timeout_s=READY_S)
        kill(process.pid)
        process.wait(5)

        wait_for(lambda: not processes.alive(members), timeout_s=5.0)
