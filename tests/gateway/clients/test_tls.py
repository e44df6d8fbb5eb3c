"""Nodes behind TLS, with a certificate of their own making."""

import asyncio
import pathlib
import shutil
import ssl
import subprocess
from collections.abc import Iterator

import pytest

from cortex_core.routing.retry import Failure
from cortex_gateway.clients import pool
from cortex_gateway.ports import UpstreamFailure
from cortex_gateway.settings import Timeouts
from tests.gateway.clients.scripted import JSON, body_of, posted, request_of, until_closed, upstream

OPENSSL = shutil.which("openssl") or ""
pytestmark = pytest.mark.skipif(not OPENSSL, reason="openssl makes the certificate")


@pytest.fixture
def certificate(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file with a key and a certificate of `localhost`."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    pool._tls.cache_clear()
    yield both
    pool._tls.cache_clear()


async def serve(certificate: pathlib.Path, ended: asyncio.Event) -> tuple[asyncio.Server, str]:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await until_closed(reader)
        ended.set()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=context)
    return server, f"https://localhost:{server.sockets[0].getsockname()[1]}/"


async def test_trusted_node_is_spoken_to(
    certificate: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours: a large body both ways, and the end of it is told."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    body, ended = bytes(range(256)) * (8 << 10), asyncio.Event()
    server, url = await serve(certificate, ended)
    async with upstream(Timeouts(), limit_s=20) as client:
        async with posted(client, url, body) as answer:
            assert await body_of(answer) == body
        assert client.connections == 1
    await ended.wait()
    server.close()


async def test_node_that_is_not_trusted_gets_no_request(
    certificate: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9110, section 4.3.4."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    server, url = await serve(certificate, asyncio.Event())
    async with upstream(Timeouts(connect_s=10), limit_s=20) as client:
        with pytest.raises(UpstreamFailure) as caught:
            await client.post(url, JSON, b"{}")
        assert client.connections == 0
    server.close()

    assert caught.value.failure is Failure.CONNECT
