"""Fetching media, against a server that does whatever a bad one may."""

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cortex_core.errors import InvalidRequestError
from cortex_core.harness import Route
from neuron.engines.media import MediaPolicy
from neuron.engines.media_fetch import Fetched, FetchError, fetch
from neuron.lifecycle.media import Source, is_public
from neuron.settings import MediaSettings

WAIT_S = 30.0
PICTURES = pytest.importorskip("PIL.Image")


def picture(width: int, height: int) -> bytes:
    data = io.BytesIO()
    PICTURES.new("1", (width, height)).save(data, "PNG")
    return data.getvalue()


class Server:
    """Answers every connection with the same bytes and counts them."""

    def __init__(self, answer: bytes, *, stays_open: bool) -> None:
        self.answer = answer
        self.stays_open = stays_open
        self.heads: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            if self.stays_open:
                # Until the other side leaves.
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(answer: bytes, *, stays_open: bool = False) -> AsyncIterator[Server]:
    server = Server(answer, stays_open=stays_open)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield server


def ok(body: bytes, kind: str = "image/png") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def get(server: Server, *, most: int = 1000, timeout_s: float = WAIT_S) -> Fetched:
    source = Source(is_tls=False, host="127.0.0.1", port=server.port, target="/a?b=1")
    return await fetch(source, most, timeout_s, may_connect=lambda _: True)


async def test_answer_is_fetched_once_from_the_address_that_was_checked() -> None:
    """Ours: one connection, with the host's name and without anything of the caller's."""
    async with serving(ok(b"picture", "image/png; charset=x")) as server:
        got = await get(server)

    assert got == Fetched(data=b"picture", content_type="image/png")
    assert server.connections == 1
    head = server.heads[0].decode().lower()
    assert head.startswith("get /a?b=1 http/1.1\r\n")
    assert f"host: 127.0.0.1:{server.port}\r\n" in head


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        ok(b"x" * 1001),
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n" + b"x" * 2000,
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
async def test_what_is_no_medium_is_an_error_and_not_followed(answer: bytes) -> None:
    """Ours: redirects, errors, too much, too little, and no HTTP."""
    async with serving(answer) as server:
        with pytest.raises(FetchError):
            await get(server)

    assert server.connections == 1


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", ok(b"x" * 9)[:-1]])
async def test_server_that_says_nothing_more_is_left(answer: bytes) -> None:
    """Ours: the time is for everything together."""
    async with serving(answer, stays_open=True) as server:
        with pytest.raises(TimeoutError):
            await get(server, timeout_s=0.3)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "::1"])
async def test_private_addresses_are_never_connected_to(host: str) -> None:
    """Issue: no way into private addresses, whatever they are called."""
    async with serving(ok(b"secret")) as server:
        source = Source(is_tls=False, host=host, port=server.port, target="/")
        with pytest.raises(FetchError):
            await fetch(source, 1000, WAIT_S)

    assert server.connections == 0


async def test_host_without_an_address_is_an_error() -> None:
    """Ours: also a name that cannot be one."""
    for host in ("nowhere.invalid", "a..b", "a" * 70):
        with pytest.raises(FetchError):
            await fetch(Source(is_tls=False, host=host, port=80, target="/"), 1, WAIT_S)


def chat(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}


def policy(urls: Any, got: Fetched | None = None, **more: Any) -> tuple[MediaPolicy, list[Source]]:
    asked: list[Source] = []

    async def fetched(source: Source, most: int, timeout_s: float) -> Fetched:
        asked.append(source)
        if got is None:
            raise FetchError("what is inside must not be told")
        return got

    settings = MediaSettings(urls=urls, allowed_hosts=("example.com",), **more)
    return MediaPolicy(settings, fetched), asked


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "", 'x"\r\n'])
async def test_url_is_replaced_by_what_it_points_at(kind: str) -> None:
    """Issue: vLLM never sees a URL."""
    data = picture(3, 2)
    settling, asked = policy("allow-list", Fetched(data=data, content_type=kind))
    body = chat("https://example.com/a.png")
    await settling.settle(Route.CHAT_COMPLETIONS, body)

    assert [source.host for source in asked] == ["example.com"]
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/")
    assert base64.b64decode(url.partition(",")[2]) == data


@pytest.mark.parametrize("urls", ["off", "data"])
async def test_urls_are_not_fetched_unless_they_are_listed(urls: str) -> None:
    """Issue: data URIs only by default; a list without the setting is none."""
    settling, asked = policy(urls, Fetched(data=picture(1, 1), content_type="image/png"))
    with pytest.raises(InvalidRequestError):
        await settling.settle(Route.CHAT_COMPLETIONS, chat("https://example.com/a.png"))

    assert asked == []


async def test_data_uris_pass_untouched_unless_media_are_off() -> None:
    """Ours: and are refused then."""
    body = chat(uri(picture(2, 2)))
    before = json.dumps(body)
    await policy("data")[0].settle(Route.CHAT_COMPLETIONS, body)
    assert json.dumps(body) == before

    with pytest.raises(InvalidRequestError):
        await policy("off")[0].settle(Route.CHAT_COMPLETIONS, body)


BAD: dict[str, Callable[[], str]] = {
    "bomb": lambda: uri(picture(20_000, 20_000)),
    "no picture": lambda: uri(b"GIF89a but not really"),
    "cut picture": lambda: uri(picture(9, 9)[:20]),
    "no base64": lambda: "data:image/png;base64,A",
    "nothing": lambda: "data:image/png;base64,",
}


@pytest.mark.parametrize("make", BAD.values(), ids=list(BAD))
async def test_pictures_are_looked_at_before_they_are_unpacked(make: Callable[[], str]) -> None:
    """CVE-2026-22778, CVE-2026-34755: bombs are refused by their head, in words of ours."""
    settling, _ = policy("data")
    with pytest.raises(InvalidRequestError) as caught:
        await settling.settle(Route.CHAT_COMPLETIONS, chat(make()))

    assert "0x" not in caught.value.message
    assert caught.value.param == "messages.0.content.1.image_url.url"


def film(*pictures: bytes) -> dict[str, Any]:
    frames = ",".join(base64.b64encode(data).decode() for data in pictures)
    part = {"video_url": {"url": f"data:video/JPEG;base64,{frames}"}}
    return {"messages": [{"role": "user", "content": [part]}]}


async def test_frames_of_a_film_are_looked_at_as_pictures() -> None:
    """vLLM 0.32: those of `video/jpeg` are unpacked one by one and kept together."""
    settling, _ = policy("data", max_pixels=100)

    await settling.settle(Route.CHAT_COMPLETIONS, film(picture(10, 10), picture(9, 9)))
    for frames in ([picture(9, 9), picture(11, 10)], [picture(10, 10)] * 9, [b"none"]):
        with pytest.raises(InvalidRequestError):
            await settling.settle(Route.CHAT_COMPLETIONS, film(*frames))


async def test_pictures_of_a_request_are_bounded_together() -> None:
    """Ours: all of them are unpacked at once."""
    settling, _ = policy("data", max_pixels=100)
    part = {"image_url": uri(picture(10, 10))}

    await settling.settle(Route.CHAT_COMPLETIONS, {"messages": [part] * 8})
    with pytest.raises(InvalidRequestError) as caught:
        await settling.settle(Route.CHAT_COMPLETIONS, {"messages": [part] * 9})

    assert caught.value.param == "messages.8.image_url"


async def test_failed_fetch_does_not_say_why() -> None:
    """Ours: the answer would map what is behind the node."""
    settling, _ = policy("allow-list")
    with pytest.raises(InvalidRequestError) as caught:
        await settling.settle(Route.CHAT_COMPLETIONS, chat("https://example.com/a.png"))

    assert caught.value.message == "the image could not be fetched"


async def test_too_many_media_are_refused_before_any_is_fetched() -> None:
    """Ours: one request is not a crawler."""
    settling, asked = policy("allow-list", Fetched(data=picture(1, 1), content_type="image/png"))
    part = {"image_url": "https://example.com/a.png"}
    body = {"messages": [{"role": "user", "content": [part] * 65}]}
    with pytest.raises(InvalidRequestError):
        await settling.settle(Route.CHAT_COMPLETIONS, body)

    assert asked == []


def test_default_takes_data_alone() -> None:
    """Issue: data URIs only by default, and addresses are those of the internet."""
    assert MediaSettings().urls == "data"
    assert fetch.__kwdefaults__ == {"may_connect": is_public}
