"""Whether the neuron lives, is ready, and how it does; nothing here waits for an engine."""

import asyncio
from collections.abc import Iterable
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.harness import Harness
from neuron.api.control import json_answer
from neuron.api.series import render_series
from neuron.metrics import NeuronMetrics
from neuron.supervisor.node import Node


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
        # One at a time, lest the gauges are filled again while the thread reads them.
        async with self._scraping:
            self._node.refresh_metrics()
            body, content_type = await asyncio.to_thread(
                render_series,
                self._metrics.registry,
                self._harnesses,
                ",".join(request.headers.getlist("accept")),
            )
        return Response(body, headers={"content-type": content_type})
