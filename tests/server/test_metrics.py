"""`/metrics` as Prometheus asks for it."""

import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortex_core.server.metrics import metrics_app
from tests.server.harness import get, post, request, serving


def counted() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    return registry


@pytest.mark.parametrize(
    ("accept", "content_type", "last"),
    [
        ("*/*", "text/plain", b"things_created"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", b"# EOF\n"),
    ],
)
async def test_format_is_what_the_caller_accepts(
    accept: str, content_type: str, last: bytes
) -> None:
    """Prometheus, "Exposition formats"."""
    async with serving(metrics_app(counted())) as server:
        answer = await server.ask(get("/metrics", f"accept: {accept}"))

    assert answer.status == 200
    assert answer.headers["content-type"].startswith(content_type)
    assert b"things_total 3.0\n" in answer.body
    assert last in answer.body


async def test_head_has_no_body() -> None:
    """RFC 9110, section 9.3.2."""
    async with serving(metrics_app(counted())) as server:
        client = await server.connect()
        await client.send(request("HEAD", "/metrics", "connection: close"))

        head, _, body = (await client.rest()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


async def test_other_paths_and_methods_are_refused() -> None:
    """Ours: there is nothing else on this port."""
    async with serving(metrics_app(counted())) as server:
        assert (await server.ask(get("/"))).status == 404
        assert (await server.ask(post(b"", "/metrics"))).status == 405


class Witness(Collector):
    """Notes which thread asks it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def collect(self) -> Iterator[Metric]:
        self.threads.add(threading.get_ident())
        yield Metric("witness", "Asked.", "gauge")


async def test_series_are_written_beside_the_loop() -> None:
    """Ours: streams go on while a large fleet is scraped."""
    registry, witness = CollectorRegistry(), Witness()
    registry.register(witness)
    witness.threads.clear()

    async with serving(metrics_app(registry)) as server:
        answer = await server.ask(get("/metrics"))

    assert answer.status == 200
    assert witness.threads
    assert threading.get_ident() not in witness.threads
