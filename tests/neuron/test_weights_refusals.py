"""What a hub does not give, and what is not taken from it."""

import asyncio
import errno
import os
import pathlib

import pytest

from cortex_core.errors import (
    HubUnreachableError,
    InsufficientDiskError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
)
from cortex_core.server.clock import SystemClock
from neuron.settings import VllmSettings
from neuron.weights.downloads import Downloads
from neuron.weights.fetching import error_of
from neuron.weights.library import failure_of
from neuron.weights.lines import Job
from tests.fakes.hub import FakeHub
from tests.neuron.desk import FILES, SHARD, Desk, children, until_held

pytest.importorskip("huggingface_hub", reason="it comes with vLLM")

CANARY = "hf_canary0123456789"


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("org/none", "main", "the hub has no such model"),
        ("org/name", "v9", "no revision 'v9'"),
        ("org/gated", "main", "accept its terms"),
        ("org/secret", "main", "a token is needed"),
    ],
)
async def test_what_the_hub_does_not_give_is_not_found(
    desk: Desk, hub: FakeHub, model: str, revision: str, words: str
) -> None:
    """Ours: a refused load, with the cure."""
    hub.models |= {"org/gated": dict(FILES), "org/secret": dict(FILES)}
    hub.gated.add("org/gated")
    hub.needs_token["org/secret"] = CANARY

    error = await desk.refused(model, revision)

    assert isinstance(error, NotFoundError)
    assert words in error.message


async def test_token_is_sent_to_the_hub_alone_and_told_to_nobody(
    desk: Desk, hub: FakeHub, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ours: the token is in no output, no process list, and not sent where files are kept."""
    hub.models["org/secret"] = dict(FILES)
    hub.needs_token["org/secret"] = CANARY
    (tmp_path / "token").write_text(f"{CANARY}\n")
    desk.configure(token_file=tmp_path / "token")
    hub.holds["model.safetensors"] = 1_500_000

    fetching = desk.begin("org/secret")
    await until_held(hub)
    seen = await children()
    hub.released.set()
    assert await fetching is None

    assert seen
    assert not any(CANARY in text for text in seen)
    shown = {path for path, headers in hub.requests if CANARY in headers.get("authorization", "")}
    assert shown
    assert not any(path.startswith("/cdn/") for path in shown)
    out, err = capfd.readouterr()
    assert CANARY not in out + err
    assert not any(CANARY in str(news) for news in desk.news)


async def test_token_of_the_environment_is_known_to_downloads_alone(
    hub: FakeHub, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: what starts engines takes it out of the environment once the daemon runs."""
    hub.models["org/secret"] = dict(FILES)
    hub.needs_token["org/secret"] = CANARY
    monkeypatch.setenv("HF_TOKEN", CANARY)
    settings = VllmSettings(hf_cache=str(tmp_path / "cache"), endpoint=hub.url)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        downloads = Downloads.from_settings(settings, os.environ, SystemClock(), tasks)
        monkeypatch.delenv("HF_TOKEN")
        folder = await downloads.fetch("org/secret", "main", lambda *_: None)
        await downloads.close()

    assert (folder / "tokenizer.json").is_file()


async def test_hub_that_has_too_much_to_do_is_asked_again(desk: Desk, hub: FakeHub) -> None:
    """HTTP: 429 with `Retry-After`."""
    hub.refusals = {"/revision/main": [429, 429], "tokenizer.json": [429]}

    folder = await desk.fetch()

    assert (folder / "tokenizer.json").is_file()
    assert len(hub.paths("/revision/main")) == 3


async def test_hub_out_of_order_or_out_of_reach_may_work_later(desk: Desk, hub: FakeHub) -> None:
    """Ours: an error of its own, so that it is tried again; the first answer is enough."""
    hub.refusals["/revision/main"] = [500]

    broken = await desk.refused()
    desk.configure(endpoint="http://127.0.0.1:9")
    away = await desk.refused()

    assert isinstance(broken, HubUnreachableError)
    assert "status 500" in broken.message
    assert len(hub.paths("/revision/main")) == 1
    assert isinstance(away, HubUnreachableError)


async def test_nobody_is_asked_when_offline(desk: Desk, hub: FakeHub) -> None:
    """Ours: HF_HUB_OFFLINE, or the setting."""
    desk.configure(is_offline=True)

    error = await desk.refused()

    assert isinstance(error, NotFoundError)
    assert "offline" in error.message
    assert hub.requests == []


async def test_download_begins_when_there_is_room(desk: Desk, hub: FakeHub) -> None:
    """Ours: the disk is looked at when the size is known and before a file is asked for."""
    asked: list[tuple[str, int]] = []

    async def refuse(model: str, needed_bytes: int) -> None:
        asked.append((model, needed_bytes))
        raise InsufficientDiskError("no room", needed_bytes=needed_bytes, free_bytes=1)

    desk.downloads.make_room = refuse

    error = await desk.refused()

    assert isinstance(error, InsufficientDiskError)
    assert asked == [("org/name", len(SHARD) + len(FILES["config.json"]) + 2)]
    assert not any("/resolve/" in path for path, _ in hub.requests)
    assert not await children()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": SHARD}, "allow_pickle"),
        ({"config.json": b"{}", "a.gguf": SHARD, "b.gguf": SHARD}, "2 GGUF files"),
        ({"config.json": b"{}", "README.md": b"soon"}, "no weights"),
    ],
)
async def test_model_without_safe_weights_is_refused(
    desk: Desk, hub: FakeHub, files: dict[str, bytes], words: str
) -> None:
    """Ours: pickles run code, and are taken only where the operator says so."""
    hub.models["org/odd"] = files

    error = await desk.refused("org/odd")

    assert isinstance(error, InvalidRequestError)
    assert words in error.message
    assert not any("/resolve/" in path for path, _ in hub.requests)


async def test_pickles_and_code_come_where_they_are_allowed(desk: Desk, hub: FakeHub) -> None:
    """Ours: by model, not for all."""
    hub.models["org/odd"] = {
        name: data for name, data in FILES.items() if name != "model.safetensors"
    }
    both = frozenset(("org/odd",))
    desk.configure(allow_pickle=both, allow_code=both)

    folder = await desk.fetch("org/odd")

    assert (folder / "pytorch_model.bin").read_bytes() == SHARD
    assert (folder / "modeling.py").is_file()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up_is_told_as_such(number: int) -> None:
    """Ours: somebody else may fill it meanwhile; with what is still missing."""
    job = Job(model="org/name", revision="main", cache="/cache")

    failed = failure_of(OSError(number, "full"), job)
    error = error_of(failed, "org/name", 5)

    assert isinstance(error, InsufficientDiskError)
    assert error.needed_bytes == 5


def test_cache_that_cannot_be_written_is_no_trouble_of_the_network() -> None:
    """Ours: with the reason, and without the path."""
    job = Job(model="org/name", revision="main", cache="/cache")

    failed = failure_of(PermissionError(errno.EACCES, "no", "/cache/x"), job)
    error = error_of(failed, "org/name", 5)

    assert type(error) is ModelLoadFailedError
    assert "Permission denied" in error.message
    assert "/cache" not in error.message
