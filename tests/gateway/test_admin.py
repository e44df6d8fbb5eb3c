"""`/admin/*` over real sockets."""

from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from cortex_core.routing.explain import Outcome
from tests.fakes.gateway import MODEL, ask, gateway, replica


async def test_a_model_is_explained_by_its_alias() -> None:
    """Issue: `POST /admin/explain {model}`; the node is not asked anything."""
    aliases = {"small": ModelId(MODEL)}
    async with gateway({"a": "http://127.0.0.1:9"}, aliases=aliases) as g:
        served = await ask(g.url, b'{"model":"small"}', path="/admin/explain")
        g.report("a", replica("a", ReplicaStatus.FAILED))
        failed = await ask(g.url, b'{"model":"org/model"}', path="/admin/explain")

    assert served.status == 200
    assert (served.json["model"], served.json["outcome"]) == (MODEL, Outcome.SERVE)
    assert failed.json["nodes"][0]["node"] == "a"


async def test_what_cannot_be_explained_is_refused() -> None:
    """Issue: bad input gets a clear error."""
    async with gateway({"a": "http://127.0.0.1:9"}) as g:
        unknown = await ask(g.url, b'{"model":"org/none"}', path="/admin/explain")
        nothing = await ask(g.url, b"{}", path="/admin/explain")
        no_json = await ask(g.url, b"{", path="/admin/explain")

    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    assert (nothing.status, no_json.status) == (400, 400)
