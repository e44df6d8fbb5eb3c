"""Whether the neuron lives, is ready, and how it does; nothing here waits for an engine."""

import asyncio
from collections.abc import Iterable
from typing import Literal

import msgspec
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.harness import Harness
from neuron.api.control import json_answer
from neuron.metrics import NeuronMetrics
from neuron.supervisor.node import Node

# Source: Prometheus text format 0.0.4, which every scraper takes.
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/livez`."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/readyz`: ready means that requests are taken, whatever is loaded yet."""

    status: Literal["ready", "draining"]
    activation: str
    """`pre_warming` while default models are still being loaded."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/version`."""

    version: str
    boot_id: str


class HealthApi:
    """Endpoints for whoever watches.

    Args:
        node: what is watched.
        metrics: our own series.
        harnesses: whose series are appended.
    """

    def __init__(self, node: Node, metrics: NeuronMetrics, harnesses: Iterable[Harness]) -> None:
        self._node = node
        self._metrics = metrics
        self._scraping = asyncio.Lock()
        self._harnesses = tuple(harnesses)

    def routes(self) -> list[Route]:
        """Return the paths."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/livez", self.livez, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """Answer how everything does."""
        return json_answer(self._node.health())

    async def livez(self, request: Request) -> Response:
        """Answer that the process lives."""
        return json_answer(Liveness())

    async def readyz(self, request: Request) -> Response:
        """Answer whether requests are taken."""
        is_draining = self._node.supervisor.is_draining
        answer = Readiness(
            status="draining" if is_draining else "ready",
            activation=self._node.activator.state.state,
        )
        return json_answer(answer, status=503 if is_draining else 200)

    async def version(self, request: Request) -> Response:
        """Answer which version this is."""
        identity = self._node.identity
        return json_answer(Version(version=identity.version, boot_id=identity.boot_id))

    async def metrics(self, request: Request) -> Response:
        """Answer all series, our own first."""
        # What the process says of itself is read from files; one at a time, lest the gauges are
        # filled again meanwhile.
        async with self._scraping:
            self._node.refresh_metrics()
            own = await asyncio.to_thread(generate_latest, self._metrics.registry)
        texts = (own, *(harness.metrics() for harness in self._harnesses))
        return Response(join_series(texts), media_type=_METRICS_TYPE)


def join_series(texts: Iterable[bytes]) -> bytes:
    """Join texts of series; a family that an earlier text has is left out of later ones."""
    seen: set[bytes] = set()
    kept: list[bytes] = []
    for text in texts:
        here: set[bytes] = set()
        is_kept = True
        for line in text.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                family = line.split(b" ", 3)[2]
                is_kept = family not in seen
                here.add(family)
            if is_kept and line:
                kept.append(line)
        seen |= here
    return b"".join(line + b"\n" for line in kept)
