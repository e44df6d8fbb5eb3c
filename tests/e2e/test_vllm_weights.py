"""A model from the hub: downloaded, loaded, asked, and removed, with the real engine."""

import concurrent.futures
import contextlib
import json
import pathlib
from collections.abc import Iterator

import pytest

from cortex_core.ids import ModelId
from cortex_core.sse import SseDecoder
from neuron.models import BUILTIN
from tests.e2e.conftest import CHAT
from tests.e2e.neuron_process import NeuronProcess, running
from tests.fakes.hub import COMMIT, FakeHub, hub

pytestmark = pytest.mark.timeout(600)

MODEL = "org/tiny"
HELLO = [{"role": "user", "content": "Hello"}]
OPTIONS = dict(BUILTIN[ModelId(CHAT)].engine)
CANARY = "hf_canary0123456789"


def put_tiny(served: FakeHub) -> None:
    """Have the hub give the files of the built-in model under another name."""
    folder = BUILTIN[ModelId(CHAT)].path
    served.models[MODEL] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def watched_load(daemon: NeuronProcess) -> list[tuple[str | None, dict[str, object]]]:
    """Load the model as a stream, and return its events."""
    body = {"model_id": MODEL, "harness": "vllm", "engine": OPTIONS}
    decoder, found = SseDecoder(), []
    headers = {"accept": "text/event-stream"}
    with daemon.http.stream("POST", "/models/load", json=body, headers=headers) as answer:
        for chunk in answer.iter_bytes():
            found += decoder.feed(chunk)
    return [(event.event, json.loads(event.data)) for event in found]


def chat(daemon: NeuronProcess, model: str) -> str:
    """Return the beginning of an answer."""
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 0}
    answer = daemon.ask("/v1/chat/completions", model=model, **body)
    text: str = answer["choices"][0]["message"]["content"]
    return text


@contextlib.contextmanager
def beside_a_hub(folder: pathlib.Path) -> Iterator[tuple[FakeHub, NeuronProcess]]:
    """Run a neuron with an empty cache, and a hub that gives the model to its token alone."""
    with hub() as served:
        put_tiny(served)
        served.needs_token[MODEL] = CANARY
        served.holds["model.safetensors"] = 1000
        environ = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_TOKEN": CANARY,
        }
        with running(folder, **environ) as daemon:
            yield served, daemon


def test_model_comes_from_the_hub_and_goes_again(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Issue 5: a load of a model that is not here downloads it, and holds no device for that."""
    with (
        concurrent.futures.ThreadPoolExecutor(1) as threads,
        beside_a_hub(tmp_path) as (served, daemon),
    ):
        loading = threads.submit(watched_load, daemon)
        assert served.held.wait(120)
        (coming,) = [m for m in daemon.http.get("/models").json() if m["id"] == MODEL]
        assert daemon.load(CHAT).status_code == 200
        other = chat(daemon, CHAT)
        assert daemon.unload(CHAT).status_code == 200
        served.released.set()
        events = loading.result(300)
        engines = daemon.descendants()
        told = [pathlib.Path(f"/proc/{one.pid}/environ").read_bytes() for one in engines]
        same = chat(daemon, MODEL)
        (entry,) = daemon.http.get("/weights").json()["models"]
        refused = daemon.http.delete(f"/weights/{MODEL}")
        assert daemon.unload(MODEL).status_code == 200
        removed = daemon.http.delete(f"/weights/{MODEL}")
        left = daemon.http.get("/weights").json()["models"]
        shown = [daemon.http.get(path).text for path in ("/metrics", "/health", "/discovery")]

    assert (coming["status"], coming["progress"]["stage"]) == ("loading", "downloading")
    assert coming["devices"] == []
    stages = [news["stage"] for name, news in events if name == "progress"]
    assert stages.index("downloading") < stages.index("weights")
    assert events[-1] == ("done", {"status": "loaded"})
    assert same == other
    assert (entry["id"], entry["complete"], entry["in_use"]) == (MODEL, True, True)
    assert (refused.status_code, removed.status_code, left) == (409, 200, [])
    assert not list((tmp_path / "cache").glob(f"models--*/**/{COMMIT}"))
    assert CANARY not in "".join([*capfd.readouterr(), *shown])
    assert told
    assert CANARY.encode() not in b"".join(told)
