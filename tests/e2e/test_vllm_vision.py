"""A model that sees, on the CPU: pictures in every dialect, and what it does not take."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.neuron_process import NeuronProcess
from tests.e2e.seer import make_seer
from tests.fleet.daemons import Daemon, gateway

pytestmark = pytest.mark.timeout(600)

COUNT_PATH = "/v1/chat/completions/count_tokens"
OPTIONS = {
    "max_model_len": 512,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "limit_mm_per_prompt": {"image": 2},
}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


@pytest.fixture(scope="module")
def seer(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that sees, loaded for as long as the module runs."""
    model = str(make_seer(tmp_path_factory.mktemp("v") / "seer"))
    answer = neuron.load(model, engine=OPTIONS)
    assert answer.status_code == 200, answer.text
    yield model
    assert neuron.unload(model).status_code == 200


@pytest.fixture(scope="module")
def door(
    neuron: NeuronProcess, seer: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    catalogue = f'[[models]]\nid = "{seer}"\nharness = "vllm"\n[aliases]\n"seer" = "{seer}"\n'
    with gateway(tmp_path_factory.mktemp("g"), catalogue, real=neuron.url) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    """Pictures in base64, by their colour."""
    image = pytest.importorskip("PIL.Image")
    found = {}
    for colour in ("red", "blue"):
        data = io.BytesIO()
        image.new("RGB", (40, 30), colour).save(data, "PNG")
        found[colour] = base64.b64encode(data.getvalue()).decode()
    return found


def chat_of(picture: str) -> Any:
    url = f"data:image/png;base64,{picture}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": parts}]


def by_chat(door: Daemon, picture: str) -> str:
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="seer",
            max_tokens=8,
            temperature=0,
            stream=True,
            messages=chat_of(picture),
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def by_message(door: Daemon, picture: str) -> str:
    source: Any = {"type": "base64", "media_type": "image/png", "data": picture}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
    with anthropic.Anthropic(base_url=door.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(
            model="seer",
            max_tokens=8,
            extra_body={"temperature": 0},
            messages=[{"role": "user", "content": content}],
        )
    return "".join(block.text for block in message.content if block.type == "text")


def by_response(door: Daemon, picture: str) -> str:
    url = f"data:image/png;base64,{picture}"
    content: Any = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": "What?"},
    ]
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        response = client.responses.create(
            model="seer",
            max_output_tokens=16,
            temperature=0,
            store=False,
            input=[{"role": "user", "content": content}],
        )
    return response.output_text


def test_model_says_that_it_sees(neuron: NeuronProcess, seer: str) -> None:
    """Ours: pictures, and no sound."""
    models = {model["id"]: model for model in neuron.http.get("/models").json()}

    able = models[seer]["capabilities"]
    assert able["chat"]
    assert able["vision"]
    assert not able["audio"]


def test_picture_reaches_the_model_in_every_dialect(door: Daemon, pictures: dict[str, str]) -> None:
    """Issue: vision models; what is said depends on the picture, and not on the dialect."""
    red, blue = by_chat(door, pictures["red"]), by_chat(door, pictures["blue"])

    assert red
    assert red != blue
    assert by_message(door, pictures["red"]) == red
    assert by_message(door, pictures["blue"]) == blue
    assert by_response(door, pictures["red"]).startswith(red)


def test_count_of_a_picture_is_what_the_answer_reports(
    neuron: NeuronProcess,
    own_neuron: NeuronProcess,
    seer: str,
    pictures: dict[str, str],
) -> None:
    """Ours: pictures are counted, whether the model is loaded or not."""
    body = {"model": seer, "messages": chat_of(pictures["red"])}
    answered = neuron.ask("/v1/chat/completions", **body, max_tokens=1)["usage"]["prompt_tokens"]
    loaded, unloaded = (daemon.ask(COUNT_PATH, **body) for daemon in (neuron, own_neuron))

    assert loaded == unloaded
    assert loaded["prompt_tokens"] == answered


@pytest.mark.parametrize("path", ["/v1/chat/completions", COUNT_PATH, "/tokenize"])
@pytest.mark.parametrize(
    "part",
    [
        SOUND,
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ],
    ids=["sound", "inside", "file", "no picture"],
)
def test_what_it_does_not_take_is_refused(
    neuron: NeuronProcess, seer: str, path: str, part: dict[str, Any]
) -> None:
    """Issue: a wrong modality, and what may not be fetched, are a 400."""
    answer = neuron.post(path, {"model": seer, "messages": [{"role": "user", "content": [part]}]})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("messages.0.content.0")


def test_sound_is_refused_at_the_gateway_before_a_stream(door: Daemon) -> None:
    """Issue: as above, in the caller's dialect."""
    body = {
        "model": "seer",
        "stream": True,
        "messages": [{"role": "user", "content": [SOUND]}],
    }
    answer = httpx.post(f"{door.url}/v1/chat/completions", json=body, timeout=60)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "messages"
