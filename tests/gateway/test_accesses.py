"""`[[upstreams]]`: what is read of them, what is said against them, and where their keys are."""

import pathlib
from typing import Any

import msgspec
import pytest

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.dialect import Dialect
from cortex_core.errors import SettingsError
from cortex_core.fleet.feasibility import infeasible_reason
from cortex_core.fleet.reducers import from_endpoints
from cortex_core.fleet.views import fleet_health, model_list
from cortex_core.harness import Limit
from cortex_core.ids import ModelId, NodeName
from cortex_gateway.clients.accesses import ANTHROPIC_VERSION, load_accesses
from cortex_gateway.control.upstreams import with_upstreams
from cortex_gateway.proxy.access import NEURON, headers_for
from cortex_gateway.settings import GatewaySettings, UpstreamEntry, UpstreamModel, load_settings

KEY = "sk-our-own-secret"

EMPTY = Catalogue(profiles={}, aliases={})

EXAMPLE = """
[[upstreams]]
name = "hosted"
dialect = "anthropic"
base_url = "https://api.example.com"
api_key_env = "HOSTED_KEY"
[upstreams.models]
"big" = "their-model-name"
[upstreams.models.small]
model = "their-small-one"
context = 200000
output = 32000
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cortex.toml"


def entry(**fields: Any) -> UpstreamEntry:
    told = {
        "name": "hosted",
        "dialect": "anthropic",
        "base_url": "https://api.example.com",
        "models": {"big": "theirs"},
    }
    return msgspec.convert({**told, **fields}, UpstreamEntry)


def settings(*entries: UpstreamEntry) -> GatewaySettings:
    return GatewaySettings(upstreams=entries)


def test_an_upstream_is_read_with_its_models(file: pathlib.Path) -> None:
    """Ours: a model is a name, or a table where more is to be said."""
    file.write_text(EXAMPLE)

    (read,) = load_settings(file, {}).upstreams

    assert (read.name, read.dialect) == ("hosted", "anthropic")
    small = UpstreamModel(model="their-small-one", context=200000, output=32000)
    assert read.models == {"big": "their-model-name", "small": small}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"anthropic"', '"klingon"', "upstreams[0].dialect"),
        ('"https://api.example.com"', '"api.example.com"', "upstreams[0].base_url"),
        ('"https://api.example.com"', '"https://me:pw@a.example"', "upstreams[0].base_url"),
        ('"hosted"', '"no name"', "upstreams[0].name"),
        ('api_key_env = "HOSTED_KEY"', 'api_key = "x"', "upstreams[0].api_key: unknown key"),
        (
            'api_key_env = "HOSTED_KEY"',
            'api_key_env = "A"\napi_key_file = "b"',
            "upstreams[0].api_key_file",
        ),
        ("output = 32000", "outputs = 32000", "outputs"),
        ("output = 32000", "output = 0", "output"),
        ('name = "hosted"\n', "", "upstreams[0].name: required"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(
    file: pathlib.Path, old: str, new: str, complaint: str
) -> None:
    """Ours: a start stops with file, path, what is wrong and what would be right."""
    file.write_text(EXAMPLE.replace(old, new, 1))

    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})

    assert complaint in caught.value.message
    assert str(file) in caught.value.message


def test_an_upstream_without_models_is_refused(file: pathlib.Path) -> None:
    """Ours: nobody could ever be answered by it."""
    file.write_text(EXAMPLE.split("[upstreams.models]")[0] + "models = {}\n")

    with pytest.raises(SettingsError, match="models"):
        load_settings(file, {})


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (EXAMPLE, "is there twice"),
        (EXAMPLE.replace('"hosted"', '"other"'), "served by 'hosted' already"),
        ('[[neurons]]\nname = "hosted"\nendpoint = "http://a:1"\n', "is there twice"),
    ],
)
def test_names_are_unique_among_nodes_upstreams_and_models(
    file: pathlib.Path, more: str, complaint: str
) -> None:
    """Ours: `x-cortex-node` and a model's name mean one thing each."""
    file.write_text(EXAMPLE + more)

    with pytest.raises(SettingsError, match=complaint):
        load_settings(file, {})


def test_the_key_comes_from_the_environment() -> None:
    """Ours: each dialect has a header of its own for it."""
    theirs = entry(api_key_env="A_KEY")
    other = entry(name="o", dialect="openai", models={"x": "y"}, api_key_env="B_KEY")

    accesses = load_accesses(settings(theirs, other), EMPTY, {"A_KEY": f" {KEY}\n", "B_KEY": "b"})

    assert accesses[NodeName("hosted")].dialect is Dialect.ANTHROPIC
    assert list(accesses[NodeName("hosted")].headers) == [("x-api-key", KEY)]
    assert list(accesses[NodeName("hosted")].defaults) == [("anthropic-version", ANTHROPIC_VERSION)]
    assert accesses[NodeName("o")].dialect is Dialect.OPENAI
    assert list(accesses[NodeName("o")].headers) == [("authorization", "Bearer b")]
    assert accesses[NodeName("o")].models == {"x": "y"}


def test_the_key_comes_from_a_file_beside_the_settings(file: pathlib.Path) -> None:
    """Ours: a name in a file is relative to that file."""
    file.write_text(EXAMPLE.replace('api_key_env = "HOSTED_KEY"', 'api_key_file = "secrets/key"'))
    (file.parent / "secrets").mkdir()
    (file.parent / "secrets" / "key").write_text(KEY + "\n")

    accesses = load_accesses(load_settings(file, {}), EMPTY, {})

    assert list(accesses[NodeName("hosted")].headers) == [("x-api-key", KEY)]


def test_an_upstream_may_want_no_key() -> None:
    """Ours: somebody else's server within one's own walls."""
    access = load_accesses(settings(entry()), EMPTY, {})[NodeName("hosted")]

    assert list(access.headers) == []


@pytest.mark.parametrize(
    ("fields", "environ", "complaint"),
    [
        ({"api_key_env": "A_KEY"}, {}, "upstreams[0].api_key_env"),
        ({"api_key_env": "A_KEY"}, {"A_KEY": " \n"}, "upstreams[0].api_key_env"),
        ({"api_key_env": "A_KEY"}, {"A_KEY": "ключ"}, "no header can carry"),
        ({"api_key_env": "A_KEY"}, {"A_KEY": "a\nx-evil: b"}, "no header can carry"),
        ({"api_key_file": "/nonexistent/key"}, {}, "upstreams[0].api_key_file"),
        ({"api_key_file": "/"}, {}, "upstreams[0].api_key_file"),
    ],
)
def test_a_key_that_cannot_be_used_stops_the_start(
    fields: dict[str, str], environ: dict[str, str], complaint: str
) -> None:
    """Ours: a gateway that could only be refused later should not come up; the key is not said."""
    with pytest.raises(SettingsError) as caught:
        load_accesses(settings(entry(**fields)), EMPTY, environ)

    assert complaint in caught.value.message
    assert not any(
        value.strip() and value.strip() in caught.value.message for value in environ.values()
    )


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_key_file_without_a_key_stops_the_start(tmp_path: pathlib.Path, content: bytes) -> None:
    """Ours: the message names the file."""
    (tmp_path / "key").write_bytes(content)

    with pytest.raises(SettingsError, match=r"api_key_file: .*key"):
        load_accesses(settings(entry(api_key_file=str(tmp_path / "key"))), EMPTY, {})


def test_a_model_is_an_upstreams_or_the_catalogues() -> None:
    """Ours: a request would go to whichever answers first. An alias may point to it."""
    profile = Profile(id=ModelId("big"), harness="vllm")
    twice = Catalogue(profiles={profile.id: profile}, aliases={})
    alias = Catalogue(profiles={}, aliases={"big": ModelId("other")})
    pointed = Catalogue(profiles={}, aliases={"large": ModelId("big")})

    for catalogue in (twice, alias):
        with pytest.raises(SettingsError, match="in the catalogue as well"):
            load_accesses(settings(entry()), catalogue, {})
    load_accesses(settings(entry()), pointed, {})

    state = with_upstreams(from_endpoints({}), [entry()], 0.0)
    listed = {model.id: model for model in model_list(state, pointed, 0).data}
    assert listed["large"].alias_of == "big"
    assert listed["large"].loaded


def test_a_stranger_sees_little_of_a_caller_and_our_key_wins() -> None:
    """Ours: a node of ours gets the caller's headers, a hosted service what it needs."""
    access = load_accesses(settings(entry(api_key_env="K")), EMPTY, {"K": KEY})[NodeName("hosted")]
    onward = [
        ("accept", "text/event-stream"),
        ("content-type", "application/json"),
        ("user-agent", "me/1"),
        ("x-cortex-session", "s"),
        ("x-request-id", "mine"),
        ("traceparent", "00-a"),
    ]
    more = [("anthropic-version", "2026-10-21"), ("x-api-key", "the caller's")]

    assert dict(headers_for(access, onward, more)) == {
        "accept": "text/event-stream",
        "content-type": "application/json",
        "traceparent": "00-a",
        "anthropic-version": "2026-10-21",
        "x-api-key": KEY,
    }
    assert dict(headers_for(access, onward, []))["anthropic-version"] == ANTHROPIC_VERSION
    assert list(headers_for(NEURON, onward, more)) == [*onward, *more]


def test_an_upstream_is_a_node_that_is_up_and_holds_nothing() -> None:
    """Ours: its models are served at once, and no model of the catalogue is loaded there."""
    models = {"big": "theirs", "small": {"model": "s", "context": 9, "output": 4}}
    theirs = entry(models=models, base_url="https://api.example.com/v1/")

    state = with_upstreams(from_endpoints({}), [theirs], 5.0)

    node = state.nodes[NodeName("hosted")]
    assert node.endpoint == "https://api.example.com"
    assert node.is_reachable
    assert state.is_heard
    assert fleet_health(state).status == "ok"
    replicas = {replica.id.model: replica for replica in node.replicas.values()}
    assert all(replica.is_servable for replica in replicas.values())
    assert replicas[ModelId("small")].limit == Limit(context=9, output=4)
    profile = Profile(id=ModelId("p"), harness="vllm")
    assert infeasible_reason(profile, node) is not None
