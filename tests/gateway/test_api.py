"""The routes that answer from the snapshot, in the process of the test but over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
import yarl
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry

from cortex_core.catalogue import Catalogue
from cortex_core.errors import InvalidRequestError
from cortex_core.fleet.reducers import from_endpoints, with_miss, with_report
from cortex_core.fleet.views import model_list
from cortex_core.ids import ModelId, NodeName
from cortex_core.node import NodeReport
from cortex_core.server.clock import SystemClock
from cortex_core.server.drain import Drain
from cortex_core.server.listen import open_listener
from cortex_core.server.serve import Listener, Shutdown, serve
from cortex_gateway.api.health import unready_reason
from cortex_gateway.api.models import MAX_LIMIT, Paging, page, paging_from_query
from cortex_gateway.lifespan import open_gateway
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.settings import GatewaySettings
from tests.gateway.fleet import PROFILE

IDS = [f"org/{letter}" for letter in "abcde"]
MODELS = model_list(
    from_endpoints({}),
    Catalogue(
        profiles={
            ModelId(name): msgspec.structs.replace(PROFILE, id=ModelId(name)) for name in IDS
        },
        aliases={"dangling": ModelId("org/nowhere"), "org/alias": ModelId("org/c")},
    ),
    created=1_795_000_000,
)
ALL = sorted([*IDS, "org/alias"])


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway that is served in this process."""

    url: str
    drain: Drain
    session: aiohttp.ClientSession


@asynccontextmanager
async def served(catalogue: Catalogue) -> AsyncIterator[Door]:
    """Serve a gateway without nodes."""
    drain, shutdown = Drain(), Shutdown()
    configuration = Configuration(settings=GatewaySettings(), catalogue=catalogue, accesses={})
    socket = open_listener("127.0.0.1:0")
    async with (
        aiohttp.ClientSession() as session,
        open_gateway(
            configuration,
            file=None,
            read=lambda: configuration,
            clock=SystemClock(),
            registry=CollectorRegistry(),
            drain=drain,
            version="1.2.3",
        ) as gateway,
        asyncio.TaskGroup() as tasks,
    ):
        url = socket.url
        listener = Listener(app=gateway.app, socket=socket, keep_alive_s=5.0)
        server = serve([listener], drain=drain, shutdown=shutdown, environ={}, drain_timeout_s=0)
        tasks.create_task(server)
        try:
            yield Door(url=url, drain=drain, session=session)
        finally:
            shutdown.ask()


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(profiles={PROFILE.id: PROFILE}, aliases={"small": PROFILE.id})


@pytest.mark.parametrize("spelling", ["org/model", "org%2Fmodel", "org%2fmodel"])
async def test_model_is_found_by_its_id_however_it_is_written(
    catalogue: Catalogue, spelling: str
) -> None:
    """Contract: the SDKs percent-encode the slash, people do not."""
    async with (
        served(catalogue) as door,
        door.session.get(_raw(f"{door.url}/v1/models/{spelling}")) as answer,
    ):
        body = await answer.json()

    assert (answer.status, body["id"]) == (200, "org/model")


async def test_list_has_aliases_beside_their_targets(catalogue: Catalogue) -> None:
    """Contract: sorted by id, everything at once unless paging is asked for."""
    async with served(catalogue) as door, door.session.get(door.url + "/v1/models") as answer:
        body = await answer.json()

    assert [entry["id"] for entry in body["data"]] == ["org/model", "small"]
    assert (body["object"], body["has_more"]) == ("list", False)
    assert (body["first_id"], body["last_id"]) == ("org/model", "small")


@pytest.mark.parametrize(
    ("headers", "key"),
    [({}, "code"), ({"anthropic-version": "2023-06-01"}, "type")],
)
async def test_unknown_model_is_refused_in_the_callers_dialect(
    catalogue: Catalogue, headers: dict[str, str], key: str
) -> None:
    """Contract: on shared paths the dialect is told by the headers."""
    async with served(catalogue) as door:
        url = door.url + "/v1/models/org/none"
        async with door.session.get(url, headers=headers) as answer:
            body = await answer.json()

    assert answer.status == 404
    assert body["error"][key] == {"code": "model_not_found", "type": "not_found_error"}[key]


async def test_bad_limit_is_refused(catalogue: Catalogue) -> None:
    """Contract: limit out of 1..1000 is 400."""
    async with (
        served(catalogue) as door,
        door.session.get(door.url + "/v1/models?limit=1001") as answer,
    ):
        body = await answer.json()

    assert (answer.status, body["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("path", ["/", "/health", "/livez", "/version", "/v1/models"])
async def test_head_is_answered_without_a_body(catalogue: Catalogue, path: str) -> None:
    """RFC 9110 section 9.3.2: probes use it."""
    async with served(catalogue) as door, door.session.head(door.url + path) as answer:
        body = await answer.read()

    assert (answer.status, body) == (200, b"")


async def test_fleet_without_nodes_is_degraded_and_not_ready(catalogue: Catalogue) -> None:
    """Given: `/health` is 200 whatever it says; `/readyz` has a real status."""
    async with served(catalogue) as door:
        async with door.session.get(door.url + "/health") as answer:
            health = answer.status, await answer.json()
        async with door.session.get(door.url + "/readyz") as answer:
            ready = answer.status, await answer.json()
        async with door.session.get(door.url + "/") as answer:
            root = await answer.json()

    assert health == (200, {"status": "degraded", "nodes": {"healthy": 0, "total": 0}})
    assert root == health[1]
    assert ready == (503, {"status": "unready", "reason": "no node can be reached"})


async def test_draining_gateway_is_alive_but_not_ready(catalogue: Catalogue) -> None:
    """Ours: whoever balances looks elsewhere, whoever supervises does not restart."""
    async with served(catalogue) as door:
        await door.drain.drain(0)
        async with door.session.get(door.url + "/readyz") as answer:
            ready = answer.status, await answer.json()
        async with door.session.get(door.url + "/livez") as answer:
            alive = answer.status

    assert ready == (503, {"status": "unready", "reason": "draining"})
    assert alive == 200


def test_ready_is_who_has_asked_every_node() -> None:
    """Ours: right after a restart a gateway would answer 404 for models that are there."""
    seen, silent = NodeName("seen"), NodeName("silent")
    state = from_endpoints({seen: "http://h", silent: "http://h"})

    assert unready_reason(state) == "not heard of yet: seen, silent"
    state = with_miss(state, silent, "silent")
    assert unready_reason(state) == "not heard of yet: seen"
    # One node that stays away must not keep the gateway from serving the others.
    assert unready_reason(with_report(state, seen, NodeReport(replicas=()), 0.0)) is None
    assert unready_reason(with_miss(state, seen, "silent")) == "no node can be reached"


@pytest.mark.parametrize("query", [{}, {"lifecycle": "active"}])
def test_everything_comes_at_once_unless_paging_is_asked_for(query: dict[str, str]) -> None:
    """Contract: OpenAI's clients never page."""
    assert paging_from_query(query) is None


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "+5", "ten", "", "5.0", "1_0", "٣", "00005"])
def test_limit_must_be_a_plain_number_in_range(limit: str) -> None:
    """Contract."""
    with pytest.raises(InvalidRequestError):
        paging_from_query({"limit": limit})


@pytest.mark.parametrize("limit", [1, MAX_LIMIT])
def test_limits_at_the_bounds_are_taken(limit: int) -> None:
    """Contract."""
    assert paging_from_query({"limit": str(limit)}) == Paging(limit=limit)


def test_both_ends_at_once_are_refused() -> None:
    """Ours: it is not clear what the page would be."""
    with pytest.raises(InvalidRequestError):
        paging_from_query({"after_id": "a", "before_id": "b"})


@given(limit=st.integers(1, 8))
def test_pages_forward_make_up_the_list(limit: int) -> None:
    """Anthropic's pager: `after_id = last_id` while `has_more`."""
    seen: list[str] = []
    paging = Paging(limit=limit)
    while True:
        part = page(MODELS, paging)
        seen += [entry.id for entry in part.data]
        if not part.has_more:
            break
        assert part.last_id == seen[-1]
        paging = Paging(limit=limit, after_id=part.last_id)

    assert seen == ALL


@given(limit=st.integers(1, 8), start=st.sampled_from(ALL))
def test_page_before_an_id_ends_right_before_it(limit: int, start: str) -> None:
    """Anthropic: `before_id` gives the page immediately before."""
    part = page(MODELS, Paging(limit=limit, before_id=start))

    before = ALL[: ALL.index(start)]
    assert [entry.id for entry in part.data] == before[-limit:]
    assert part.has_more == (len(before) > limit)


def test_page_after_an_unknown_id_is_empty() -> None:
    """Contract: first and last are null on an empty page."""
    part = page(MODELS, Paging(after_id="org/none"))

    assert (part.data, part.first_id, part.last_id, part.has_more) == ((), None, None, False)


def _raw(url: str) -> yarl.URL:
    return yarl.URL(url, encoded=True)
