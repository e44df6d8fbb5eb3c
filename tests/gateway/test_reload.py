"""Settings that change while the gateway runs."""

import asyncio
import logging
import pathlib
import re

import msgspec
import pytest
from hypothesis import given, strategies as st

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.dialect import Dialect
from cortex_core.ids import ModelId, NodeName
from cortex_core.wire.admin import ConfigChange
from cortex_gateway.proxy.access import Access
from cortex_gateway.reload.changes import LIVE, LIVE_TABLES, compare
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.settings import GatewaySettings
from tests.fakes.neuron import FakeNeuron, black_hole, running
from tests.fakes.upstream import ScriptedNode, streams, words
from tests.gateway.door import WAIT_S, Door, door, write
from tests.repository.checkout import ROOT

A, B = "org/a", "org/b"
STREAMS = 50


def configuration(*models: str, **settings: object) -> Configuration:
    profiles = {ModelId(model): Profile(id=ModelId(model), harness="simulated") for model in models}
    return Configuration(
        settings=msgspec.convert(settings, GatewaySettings),
        catalogue=Catalogue(profiles=profiles),
        accesses={},
    )


def test_what_can_change_changes_and_the_rest_is_named() -> None:
    """Issue: what takes a restart keeps its old value and is told."""
    old = configuration(A, gateway={"listen": "127.0.0.1:1", "timeouts": {"hold_s": 5.0}})
    new = configuration(
        B,
        gateway={
            "listen": "127.0.0.1:2",
            "timeouts": {"hold_s": 6.0, "connect_s": 9.0},
            "responses": {"path": "kept.sqlite"},
        },
        eviction={"strategy": "cost"},
        neurons=[{"name": "beast", "endpoint": "http://h"}],
    )

    found = compare(old, new)

    assert found.needs_restart == (
        "gateway.listen",
        "gateway.responses.path",
        "gateway.timeouts.connect_s",
    )
    assert {(change.path, change.change) for change in found.changed} == {
        ("eviction.strategy", "changed"),
        ("gateway.timeouts.hold_s", "changed"),
        (f"models.{A}", "removed"),
        (f"models.{B}", "added"),
        ("neurons.beast", "added"),
    }
    gateway = found.in_force.settings.gateway
    assert (gateway.listen, gateway.timeouts.hold_s) == ("127.0.0.1:1", 6.0)
    assert gateway.responses.path is None
    assert found.in_force.catalogue is new.catalogue


def test_the_page_of_settings_names_what_needs_no_restart() -> None:
    """Ours: nobody shall have to try."""
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    part = text.split("## Changes while the gateway runs")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_.]+)`", part))
    tables = {f"{name}." for name in re.findall(r"`\[([a-z.]+)\]`", part)}

    assert named >= LIVE
    assert tables == set(LIVE_TABLES)


def test_a_new_key_of_an_upstream_is_a_change() -> None:
    """Ours: keys are rotated in their files, and no setting shows it."""
    entry = {"name": "hosted", "dialect": "openai", "base_url": "http://h", "models": {"m": "m"}}
    old = configuration(upstreams=[entry])

    def with_key(key: str) -> Configuration:
        access = Access(dialect=Dialect.OPENAI, headers=[("authorization", key)])
        return msgspec.structs.replace(old, accesses={NodeName("hosted"): access})

    found = compare(with_key("old"), with_key("new"))

    assert found.changed == (ConfigChange(path="upstreams.hosted", change="changed"),)
    assert found.in_force.accesses[NodeName("hosted")].headers == [("authorization", "new")]


seconds = st.floats(min_value=0.1, max_value=70.0)
some_settings = st.fixed_dictionaries(
    {
        "gateway": st.fixed_dictionaries(
            {
                "listen": st.sampled_from(["h:1", "h:2"]),
                "max_body_mb": st.integers(1, 9),
                "timeouts": st.fixed_dictionaries({"hold_s": seconds, "connect_s": seconds}),
            }
        ),
        "eviction": st.fixed_dictionaries({"drain_s": seconds}),
    }
)


@given(some_settings, some_settings)
def test_a_second_reload_of_the_same_files_changes_nothing(
    before: dict[str, object], after: dict[str, object]
) -> None:
    """Ours: idempotent, and what takes a restart is told each time."""
    new = configuration(**after)
    first = compare(configuration(**before), new)
    second = compare(first.in_force, new)

    assert second.changed == ()
    assert second.needs_restart == first.needs_restart
    assert bool(first.changed or first.needs_restart) == (before != after)


async def test_catalogue_and_settings_are_in_force_at_once(tmp_path: pathlib.Path) -> None:
    """Issue: the answer says what changed, and the view shows it."""
    neuron = FakeNeuron()
    async with running(neuron):
        nodes = {"beast": neuron.url}
        async with door(write(tmp_path, nodes, A, gateway="max_body_mb = 2")) as d:
            assert (await d.chat(A, pad=1 << 20))[0] == 200
            await asyncio.to_thread(
                write, tmp_path, nodes, B, A,
                gateway='max_body_mb = 1\ncors_origins = ["http://page"]\nlog_format = "json"',
                more='[eviction]\nstrategy = "priority"',
            )  # fmt: skip
            status, answer = await d.post("/admin/config/reload")
            again = await d.post("/admin/config/reload")
            view = await d.get("/admin/config")
            models = [entry["id"] for entry in (await d.get("/v1/models"))["data"]]
            too_large, _ = await d.chat(A, pad=1 << 20)
            first = await d.chat("first")
            async with d.session.get(d.url + "/livez", headers={"origin": "http://page"}) as seen:
                allowed = seen.headers.get("access-control-allow-origin")

    assert status == 200
    assert {(one["path"], one["change"]) for one in answer["changed"]} == {
        ("aliases.first", "changed"),
        ("eviction.strategy", "changed"),
        ("gateway.cors_origins", "changed"),
        ("gateway.max_body_mb", "changed"),
        (f"models.{B}", "added"),
    }
    assert answer["needs_restart"] == ["gateway.log_format"]
    assert again[1] == {"changed": [], "needs_restart": ["gateway.log_format"]}
    assert view["settings"]["eviction"]["strategy"] == "priority"
    assert view["settings"]["gateway"]["log_format"] == "text"
    assert (view["file"], view["models"], view["needs_restart"]) == (
        str(d.file),
        2,
        ["gateway.log_format"],
    )
    assert models == ["first", A, B]
    assert (too_large, first[0], allowed) == (413, 200, "http://page")
    assert [body["model_id"] for body in neuron.loads] == [A, B]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("cortex.toml", "[gateway]\nlissen = 'x'\n", "gateway.lissen: unknown key"),
        ("models.toml", "[[models]]\nid = 'a'\n", "models[0].harness: required key is missing"),
        ("models.toml", "[[models\n", "not valid TOML"),
    ],
)
async def test_a_bad_file_changes_nothing_and_says_why(
    tmp_path: pathlib.Path, name: str, text: str, says: str
) -> None:
    """Issue: validated whole; also where only the catalogue is wrong."""
    neuron = FakeNeuron()
    async with running(neuron), door(write(tmp_path, {"beast": neuron.url}, A)) as d:
        before = await d.get("/admin/config")
        await asyncio.to_thread(write, tmp_path, {}, B, more='[eviction]\nstrategy = "cost"')
        await asyncio.to_thread((tmp_path / name).write_text, text)
        status, answer = await d.post("/admin/config/reload")
        after = await d.get("/admin/config")
        fleet, models = await d.fleet(), await d.get("/v1/models")

    assert (status, says in answer["error"]["message"]) == (400, True), answer
    assert after == before
    assert set(fleet) == {"beast"}
    assert [entry["id"] for entry in models["data"]] == ["first", A]


async def test_streams_go_on_while_nodes_come_and_go(tmp_path: pathlib.Path) -> None:
    """Issue: 50 open streams, a node added and one taken out, and nobody notices."""
    old, kept, new = FakeNeuron(), FakeNeuron(), FakeNeuron()
    for neuron, model in ((old, A), (kept, B), (new, A)):
        neuron.set_model(model, "loaded")
        neuron.streams_may_end.clear()
    async with running(old), running(kept), running(new):
        nodes = {"old": old.url, "kept": kept.url}
        async with door(write(tmp_path, nodes, A, B)) as d, asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(d.chat(model, stream=True)) for model in (A, B) * (STREAMS // 2)
            ]
            async with asyncio.timeout(WAIT_S):
                while old.open_streams + kept.open_streams < STREAMS:  # noqa: ASYNC110 - a count
                    await asyncio.sleep(0.01)
            nodes = {"kept": kept.url, "new": new.url}
            await asyncio.to_thread(write, tmp_path, nodes, A, B)
            status, answer = await d.post("/admin/config/reload")
            await d.until_up("kept", "new")
            new.streams_may_end.set()
            late = await d.chat(A, stream=True)
            fleet = await d.fleet()
            asks_before = old.requests["/health"]
            for neuron in (old, kept):
                neuron.streams_may_end.set()

    assert (status, [(one["path"], one["change"]) for one in answer["changed"]]) == (
        200,
        [("neurons.new", "added"), ("neurons.old", "removed")],
    )
    assert set(fleet) == {"kept", "new"}
    answers = [task.result() for task in asked]
    assert {told for told, _ in answers} == {200}
    assert all(body.endswith("data: [DONE]\n\n") and "two" in body for _, body in answers)
    assert late[1].endswith("data: [DONE]\n\n")
    assert (new.open_streams, old.requests["/health"]) == (1, asks_before)


async def test_swaps_and_loads_survive_nodes_that_come_and_go(tmp_path: pathlib.Path) -> None:
    """Ours: commands are under way at whatever moment a node is taken out."""
    stays, goes = FakeNeuron(), FakeNeuron()
    models = [{"id": f"org/{n}", "harness": "simulated", "vram_mb": 20000} for n in range(3)]
    at_once = "[eviction]\nmin_residency_s = 0.0"
    async with running(stays), running(goes):
        both = {"stays": stays.url, "goes": goes.url}
        async with door(write(tmp_path, both, *models, more=at_once)) as d:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(d.chat(f"org/{n % 3}")) for n in range(30)]
                for turn in range(20):
                    nodes = {"stays": stays.url} if turn % 2 == 0 else both
                    await asyncio.to_thread(write, tmp_path, nodes, *models, more=at_once)
                    status, _ = await d.post("/admin/config/reload")
                    assert status == 200
                    if turn < 3:
                        asked.append(tasks.create_task(d.post("/admin/models/org/1/load")))
            alive = await d.get("/livez")
            after = [(await d.chat(str(model["id"])))[0] for model in models]

    assert alive["status"] == "ok"
    # Whoever was with the node when it was taken out may have been told so; nobody hangs.
    assert {task.result()[0] for task in asked} <= {200, 502, 503}
    assert after == [200, 200, 200]


async def test_a_node_that_is_named_and_silent_makes_nothing_unready(
    tmp_path: pathlib.Path,
) -> None:
    """Ours: nobody is sent away because of a machine that is not there yet."""
    neuron = FakeNeuron()
    neuron.set_model(A, "loaded")
    async with (
        running(neuron),
        black_hole() as silent,
        door(write(tmp_path, {"beast": neuron.url}, A)) as d,
    ):
        before = await d.get("/readyz")
        nodes = {"beast": neuron.url, "later": silent}
        await asyncio.to_thread(write, tmp_path, nodes, A)
        await d.post("/admin/config/reload")
        fleet, after = await d.fleet(), await d.get("/readyz")
        served = await d.chat(A)

    assert fleet["later"]["health"] == "unseen"
    assert before["status"] == after["status"] == "ok"
    assert served[0] == 200


async def test_another_address_is_another_node(tmp_path: pathlib.Path) -> None:
    """Ours: what the old one had is not believed of the new one."""
    old, new = FakeNeuron(), FakeNeuron()
    old.set_model(A, "loaded")
    async with running(old), running(new), door(write(tmp_path, {"beast": old.url}, A)) as d:
        await asyncio.to_thread(write, tmp_path, {"beast": new.url}, A)
        _, answer = await d.post("/admin/config/reload")
        await d.until_up("beast")
        node = (await d.fleet())["beast"]
        served = await d.chat(A)

    assert answer["changed"] == [{"path": "neurons.beast", "change": "changed"}]
    assert (node["endpoint"], node["models"]) == (new.url, [])
    assert (served[0], [body["model_id"] for body in new.loads]) == (200, [A])


async def test_an_upstream_is_used_as_soon_as_it_is_named(tmp_path: pathlib.Path) -> None:
    """Ours: with what the file of its key says, and gone again with its entry."""
    key = tmp_path / "key"
    await asyncio.to_thread(key.write_text, "sk-secret")
    neuron = FakeNeuron()
    async with running(neuron), ScriptedNode(streams(words(1))) as node:
        entry = (
            f'[[upstreams]]\nname = "hosted"\ndialect = "openai"\nbase_url = "{node.url}"\n'
            'models = { big = "theirs" }\napi_key_file = "key"\n'
        )
        nodes = {"beast": neuron.url}
        async with door(write(tmp_path, nodes, A)) as d:
            before, _ = await d.chat("big", stream=True)
            await asyncio.to_thread(write, tmp_path, nodes, A, more=entry)
            await d.post("/admin/config/reload")
            served, _ = await d.chat("big", stream=True)
            view = await d.get("/admin/config")
            await asyncio.to_thread(write, tmp_path, nodes, A)
            await d.post("/admin/config/reload")
            after, _ = await d.chat("big", stream=True)

    assert (before, served, after) == (404, 200, 404)
    assert node.wires[0].headers["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(view)


async def test_the_log_gets_as_talkative_as_the_file_says(tmp_path: pathlib.Path) -> None:
    """Ours: one of the settings that people change while something goes wrong."""
    neuron = FakeNeuron()
    async with running(neuron):
        nodes = {"beast": neuron.url}
        async with door(write(tmp_path, nodes, A)) as d:
            await asyncio.to_thread(write, tmp_path, nodes, A, gateway='log_level = "error"')
            await d.post("/admin/config/reload")
            assert logging.getLogger().level == logging.ERROR


async def test_reloads_that_come_together_end_with_what_the_files_say(
    tmp_path: pathlib.Path,
) -> None:
    """Ours: who read first does not put it in force last."""
    neuron = FakeNeuron()
    async with running(neuron):
        nodes = {"beast": neuron.url}
        async with door(write(tmp_path, nodes, A)) as d:
            async with asyncio.TaskGroup() as tasks:
                for index in range(10):
                    text = f"[eviction]\ndrain_s = {index + 1}.0"
                    await asyncio.to_thread(write, tmp_path, nodes, A, more=text)
                    tasks.create_task(reloaded(d))
            view = await d.get("/admin/config")

    assert view["settings"]["eviction"]["drain_s"] == 10.0


async def reloaded(d: Door) -> None:
    status, _ = await d.post("/admin/config/reload")
    assert status in (200, 400)  # a file may be read while it is written
