"""Models that do not chat, through neuron and gateway, and what no model here can do."""

import socket
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.conftest import CHAT, EMBED
from tests.e2e.neuron_process import NeuronProcess
from tests.e2e.scorer import make_cross_encoder
from tests.fleet.daemons import Daemon, gateway

pytestmark = pytest.mark.timeout(600)

DOCUMENTS = ["hello there", "a b c", "models and tokens", "hello"]
HELLO: Any = [{"role": "user", "content": "Hello"}]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhg"
    "GAWjR9awAAAABJRU5ErkJggg=="
)
OPTIONS = {"runner": "pooling", "max_model_len": 256, "enforce_eager": True}


@pytest.fixture(scope="module")
def scorer(neuron: NeuronProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cross-encoder, loaded for as long as the module runs."""
    model = str(make_cross_encoder(tmp_path_factory.mktemp("s") / "cross-encoder"))
    options = {**OPTIONS, "kv_cache_memory_bytes": 64 << 20}
    answer = neuron.load(model, engine=options)
    assert answer.status_code == 200, answer.text
    yield model
    assert neuron.unload(model).status_code == 200


@pytest.fixture(scope="module")
def door(
    neuron: NeuronProcess, scorer: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    entries = (f'[[models]]\nid = "{model}"\nharness = "vllm"\n' for model in (CHAT, EMBED, scorer))
    catalogue = "".join(entries) + f'[aliases]\n"ranker" = "{scorer}"\n'
    with gateway(tmp_path_factory.mktemp("g"), catalogue, real=neuron.url) as daemon:
        yield daemon


def test_cross_encoder_says_what_it_does(neuron: NeuronProcess, scorer: str) -> None:
    """Ours: it passed its known answer, and is no embedding model."""
    models = {model["id"]: model for model in neuron.http.get("/models").json()}

    able = {name for name, can in models[scorer]["capabilities"].items() if can}
    assert able - {"sleep"} == {"scoring"}
    embeds = {name for name, can in models[EMBED]["capabilities"].items() if can}
    assert embeds - {"sleep"} == {"embeddings", "scoring"}


@pytest.mark.parametrize("model", ["ranker", EMBED])
def test_documents_are_ranked_by_their_scores(door: Daemon, model: str) -> None:
    """vLLM, after Jina and Cohere: best first, with the place of each document, cut at `top_n`."""

    def ask(path: str, **body: object) -> Any:
        answer = httpx.post(door.url + path, json={"model": model, **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    scored = ask("/v1/score", text_1="hello", text_2=DOCUMENTS)["data"]
    ranked = ask("/v1/rerank", query="hello", documents=DOCUMENTS)["results"]
    best = ask("/v1/rerank", query="hello", documents=DOCUMENTS, top_n=2)["results"]

    scores = [entry["score"] for entry in scored]
    assert [entry["index"] for entry in scored] == [0, 1, 2, 3]
    assert len(set(scores)) > 1
    order = [entry["index"] for entry in ranked]
    assert sorted(order) == [0, 1, 2, 3]
    assert [entry["relevance_score"] for entry in ranked] == pytest.approx(
        sorted(scores, reverse=True), abs=1e-2
    )
    assert [entry["index"] for entry in best] == order[:2]
    assert ranked[0]["document"]["text"] == DOCUMENTS[order[0]]


WRONG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat to an embedding model": ("/v1/chat/completions", EMBED, {"messages": HELLO}),
    "chat to a ranking model": ("/v1/chat/completions", "ranker", {"messages": HELLO}),
    "message to an embedding model": ("/v1/messages", EMBED, {"messages": HELLO, "max_tokens": 9}),
    "response of an embedding model": ("/v1/responses", EMBED, {"input": "Hello"}),
    "count for an embedding model": ("/v1/messages/count_tokens", EMBED, {"messages": HELLO}),
    "completion of a ranking model": ("/v1/completions", "ranker", {"prompt": "a"}),
    "embedding by a chat model": ("/v1/embeddings", CHAT, {"input": "a"}),
    "embedding by a ranking model": ("/v1/embeddings", "ranker", {"input": "a"}),
    "ranking by a chat model": ("/v1/rerank", CHAT, {"query": "a", "documents": ["b"]}),
    "score by a chat model": ("/v1/score", CHAT, {"text_1": "a", "text_2": "b"}),
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("path", "model", "body"), WRONG.values(), ids=list(WRONG))
def test_wrong_kind_of_model_is_refused_before_the_stream_opens(
    door: Daemon, path: str, model: str, body: dict[str, Any], is_stream: bool
) -> None:
    """Issue: a 400 in the caller's dialect."""
    more = {"stream": True} if is_stream else {}
    answer = httpx.post(door.url + path, json={"model": model, **body, **more}, timeout=60)

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    if path.startswith("/v1/messages"):
        assert answer.json()["type"] == "error"
    else:
        assert error["param"] == "model"


@pytest.mark.parametrize(("path", "model", "body"), WRONG.values(), ids=list(WRONG))
def test_neuron_refuses_the_wrong_kind_too(
    neuron: NeuronProcess, scorer: str, path: str, model: str, body: dict[str, Any]
) -> None:
    """Ours: also for whoever does not come through a gateway."""
    model = scorer if model == "ranker" else model
    if not path.startswith(("/v1/messages", "/v1/responses")):
        answer = neuron.post(path, {"model": model, **body})

        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "model"


CHAT_IMAGE: Any = {"type": "image_url", "image_url": {"url": PIXEL}}
RESPONSES_IMAGE: Any = {"type": "input_image", "image_url": PIXEL, "detail": "auto"}
MESSAGES_IMAGE: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]},
}


def said(part: Any) -> Any:
    return [{"role": "user", "content": [part]}]


def test_image_for_a_text_model_is_refused_in_every_dialect(door: Daemon) -> None:
    """Issue: as above, with the SDKs' own errors."""
    with (
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as chat,
        anthropic.Anthropic(base_url=door.url, api_key="none", max_retries=0) as messages,
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            chat.chat.completions.create(model=CHAT, stream=True, messages=said(CHAT_IMAGE))
        with pytest.raises(openai.BadRequestError):
            chat.responses.create(model=CHAT, input=said(RESPONSES_IMAGE))
        with pytest.raises(anthropic.BadRequestError):
            messages.messages.create(model=CHAT, max_tokens=9, messages=said(MESSAGES_IMAGE))

    assert refused.value.param == "messages"


def test_sound_for_a_text_model_is_refused(door: Daemon) -> None:
    """Issue: as above."""
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    body = {"model": CHAT, "messages": [{"role": "user", "content": [part]}]}
    answer = httpx.post(f"{door.url}/v1/chat/completions", json=body, timeout=60)

    assert answer.status_code == 400, answer.text


HIDDEN: list[dict[str, Any]] = [
    {"type": "text", "text": "a", "uuid": "x", "image_url": "{url}"},
    {"type": "text", "text": "a", "uuid": "x", "audio_url": {"url": "{url}"}},
    {"type": "image_url", "image_url": {"url": "{url}"}},
    {"image_url": "{url}"},
    {"type": "input_image", "image_url": "{url}"},
    {"type": "video_url", "video_url": {"url": "{url}"}},
]


def test_url_in_a_request_is_never_asked(neuron: NeuronProcess, own_neuron: NeuronProcess) -> None:
    """Issue: no way into private addresses; a listener that nobody may come to sees nobody.

    Whether the model is loaded or not, and in whatever part the URL is.
    """
    with socket.create_server(("127.0.0.1", 0)) as canary:
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/a.png"
        for part in HIDDEN:
            message = {"role": "user", "content": [_with_url(part, url)]}
            bodies: dict[str, dict[str, Any]] = {
                "/v1/chat/completions": {"messages": [message]},
                "/v1/chat/completions/count_tokens": {"messages": [message]},
                "/tokenize": {"messages": [message]},
            }
            for path, body in bodies.items():
                for daemon in (neuron, own_neuron):
                    answer = daemon.post(path, {"model": CHAT, **body})
                    assert answer.status_code in (400, 404), answer.text
                    assert url not in answer.text
            scored = {"queries": {"content": [_with_url(part, url)]}, "documents": ["a"]}
            assert neuron.post("/v1/score", {"model": EMBED, **scored}).status_code == 400
        canary.setblocking(False)
        with pytest.raises(BlockingIOError):
            canary.accept()


def _with_url(value: Any, url: str) -> Any:
    if isinstance(value, dict):
        return {name: _with_url(inner, url) for name, inner in value.items()}
    return url if value == "{url}" else value
