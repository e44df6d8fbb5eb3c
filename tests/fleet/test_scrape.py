"""What both daemons show to a scraper: well-formed, and no more than there is to show."""

import asyncio
import pathlib
import re
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.tables import rows_of
from tests.fleet.daemons import CATALOGUE, Daemon, gateway, simulated_neuron
from tests.fleet.prometheus import (
    complaints,
    metrics_of,
    needs_prometheus,
    needs_promtool,
    prometheus,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REQUESTS = 10_000
CONNECTIONS = 20
WAIT_S = 120.0
HELLO = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}

BIG = """
[[models]]
id = "sim/big"
harness = "simulated"
vram_mb = 20000
"""
"""A model that needs the room of all others."""

AT_ONCE = "[eviction]\nmin_residency_s = 0\n"

PATHS = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/responses",
    "/api/chat",
    "/of/nobody/{number}",
)


class Scraped:
    """A running fleet, and the URLs of its series."""

    def __init__(self, neuron: Daemon, door: Daemon, workers: int) -> None:
        self.workers = workers
        self.neuron = neuron
        self.door = door
        self.urls = {"gateway": metrics_of(door), "neuron": f"{neuron.url}/metrics"}

    def text(self, daemon: str, **headers: str) -> str:
        return httpx.get(self.urls[daemon], headers=headers, timeout=WAIT_S).text

    def series(self, daemon: str) -> set[str]:
        """Return all series by name and labels."""
        lines = self.text(daemon).splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def fleet(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Scraped]:
    """Run a fleet that has answered in every dialect, streamed, refused, and made room."""
    folder, told = tmp_path_factory.mktemp("scraped"), f"workers = {request.param}\n"
    with (
        simulated_neuron(folder) as neuron,
        gateway(folder, BIG + CATALOGUE, more=AT_ONCE, told=told, sim=neuron.url) as door,
    ):
        for fields in ({"model": "sim/big"}, {}, {"stream": True}, {"model": "none"}):
            for path in ("/v1/chat/completions", "/v1/messages"):
                httpx.post(door.url + path, json={**HELLO, **fields}, timeout=WAIT_S)
        httpx.post(door.url + "/v1/responses", json={"model": "fast", "input": "Hello"})
        yield Scraped(neuron, door, request.param)


async def flood(port: int, number: int, count: int) -> int:
    """Send requests that nobody else sends on one connection; return how many were answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    for turn in range(count):
        mine = number * count + turn
        path = PATHS[mine % len(PATHS)].format(number=mine)
        body = b'{"model":"stranger/%d","messages":[{"role":"user","content":"x"}]}' % mine
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: key-{mine}\r\n"
            f"x-cortex-session: talk-{mine}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer.lower())
        assert length is not None, answer
        await reader.readexactly(int(length[1]))
        assert answer.split()[1].startswith(b"4"), answer
        answered += 1
    writer.close()
    return answered


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
async def test_strangers_add_no_series(fleet: Scraped, daemon: str) -> None:
    """Contract: labels come from closed sets, whatever callers name."""
    port = (fleet.door if daemon == "gateway" else fleet.neuron).port
    # Each kind of refusal once.
    await flood(port, 0, len(PATHS))
    before = fleet.series(daemon)

    async with asyncio.timeout(WAIT_S):
        each = REQUESTS // CONNECTIONS
        counts = await asyncio.gather(*(flood(port, n, each) for n in range(CONNECTIONS)))

    assert sum(counts) == REQUESTS
    assert fleet.series(daemon) == before
    assert "stranger" not in fleet.text(daemon)


@pytest.mark.parametrize(
    ("daemon", "prefix"),
    [("gateway", "cortex_"), ("neuron", "neuron_"), ("neuron", "simulated_")],
)
def test_what_is_shown_is_what_is_documented(fleet: Scraped, daemon: str, prefix: str) -> None:
    """Ours: the tables of metrics are those of running daemons, with one process and with more."""
    rows = [*rows_of("metrics", daemon.title()), *rows_of("metrics", "Process")]
    documented = {
        row[0]: (row[1], set(filter(None, row[2].split(", "))))
        for row in rows
        if row[0].startswith((prefix, "process_"))
        and (fleet.workers > 1 or not row[0].startswith("cortex_worker"))
    }

    found = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in text_string_to_metric_families(fleet.text(daemon))
        if family.name.startswith((prefix, "process_")) and not family.name.endswith("_created")
    }

    assert {name: family.type for name, family in found.items()} == {
        name: kind for name, (kind, _) in documented.items()
    }
    for name, family in found.items():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == documented[name][1], sample


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_text_format_is_strictly_right(fleet: Scraped, daemon: str) -> None:
    """Prometheus, "Exposition formats": every family once, every sample in its family."""
    families = list(text_string_to_metric_families(fleet.text(daemon)))

    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(family.documentation for family in families)
    assert all(family.type != "unknown" for family in families)


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_openmetrics_is_strictly_right(fleet: Scraped, daemon: str) -> None:
    """OpenMetrics 1.0: its parser refuses what is not; nothing of the text format is missing."""
    text = fleet.text(daemon, **OPENMETRICS)

    families = openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    plain = text_string_to_metric_families(fleet.text(daemon))
    names = {family.name for family in plain if not family.name.endswith("_created")}
    assert {family.name for family in families} == names


@needs_promtool
@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_promtool_finds_nothing(fleet: Scraped, daemon: str) -> None:
    """`promtool check metrics`: names, units and texts as is the custom."""
    assert complaints(fleet.text(daemon)) == []


ANSWERED = (
    "cortex_requests_total{outcome='ok'} > 0",
    "cortex_request_errors_total > 0",
    "cortex_rejections_total{reason='model_not_found'} > 0",
    "cortex_cold_starts_total > 0",
    "cortex_evictions_total{model='sim/big'} > 0",
    "cortex_upstream_attempts_total{outcome='ok'} > 0",
    "cortex_decisions_total{kind='evict'} > 0",
    "cortex_prompt_tokens_total > 0",
    "cortex_completion_tokens_total > 0",
    "histogram_quantile(0.99, sum by (le) (cortex_request_duration_seconds_bucket)) > 0",
    "histogram_quantile(0.99, sum by (le) (cortex_time_to_first_token_seconds_bucket)) > 0",
    "cortex_inter_token_seconds_count > 0",
    "cortex_tokens_per_second_count > 0",
    "cortex_queue_seconds_count > 0",
    "cortex_load_seconds_count > 0",
    "cortex_requests_in_flight == 0",
    "cortex_node_up == 1",
    "cortex_device_memory_bytes{kind='total'} > 0",
    "cortex_event_loop_lag_seconds_count > 0",
    "neuron_event_loop_lag_seconds_count > 0",
    "neuron_requests_total{outcome='ok'} > 0",
    "cortex_replica_state{state='loaded'} == 1",
    "cortex_open_connections > 0",
    "neuron_open_connections > 0",
    "process_open_fds > 0",
)
"""What a dashboard asks; none may say "no data"."""


@needs_prometheus
def test_prometheus_scrapes_a_fleet(fleet: Scraped, tmp_path: pathlib.Path) -> None:
    """Ours: a real one takes what both daemons show, and answers what dashboards ask."""
    asked = ANSWERED if fleet.workers == 1 else (*ANSWERED, "sum(cortex_worker_up) == 2")
    with prometheus(tmp_path, fleet.urls) as scraper:
        scraper.until_answered(*asked)
