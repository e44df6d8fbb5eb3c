"""Settings of the gateway: `cortex.toml` with the variables that start with `CORTEX_` over it."""

import pathlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex_core.config import (
    Table,
    load_toml,
    overlay_environment,
    read_fleet_token,
    to_settings,
)
from cortex_core.errors import SettingsError
from cortex_core.ids import NodeName
from cortex_core.placement.policy import EvictionPolicy, Strategy
from cortex_core.server.hypercorn import NEURON_KEEP_ALIVE_S
from cortex_core.server.listen import ListenError, parse_address

DEFAULT_PATH = pathlib.Path("/etc/cortex/cortex.toml")

ENVIRONMENT_PREFIX = "CORTEX_"

CLIENT_VARIABLE = "CORTEX_ENDPOINT"
"""Tells the command line where a gateway is; it is no setting of one."""

_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway.timeouts]`: how long the gateway waits for what, in seconds."""

    connect_s: Seconds = 2.0
    """For a connection to a neuron."""
    first_byte_s: Seconds = 600.0
    """For the head of a neuron's answer; prefill is slow, and heartbeats keep the caller."""
    idle_s: Seconds = 120.0
    """Between two chunks of a neuron's answer; there is no limit on the whole."""
    keep_alive_s: Annotated[float, Meta(gt=0, lt=NEURON_KEEP_ALIVE_S)] = 30.0
    """How long an idle connection to a neuron is kept; must stay below the neuron's 75."""
    hold_s: Seconds = 600.0
    """How long a request waits for its turn with a model, a load included; callers may ask for
    less."""
    load_s: Seconds = 1800.0
    """How long a neuron may take to load a model before the load counts as failed."""
    heartbeat_s: Seconds = 5.0
    """Time between the signs of life that a streaming caller gets while it waits."""
    drain_s: Seconds = 30.0
    """How long running requests may go on at shutdown."""


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway.queue]`: how many requests wait for a model, and how many are let through."""

    max_in_flight: Count = 64
    """Requests that a replica is given at once, where neither its model's `max_in_flight` nor its
    neuron says how many it runs together."""
    max_waiting: Count = 1024
    """Requests that may wait for one model; more are turned away with 503 and `Retry-After`."""
    max_waiting_per_caller: Count = 256
    """Those of one caller (by key, else by address)."""


class ResponsesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway.responses]`: what is kept of answers in the Responses dialect."""

    store: bool = True
    """Whether responses and conversations are kept, where the caller does not say `store: false`;
    off refuses `previous_response_id`, `conversation` and `background`."""
    path: str | None = None
    """SQLite file, relative to the file that names it; none keeps them in memory, until the
    gateway ends."""
    retention_s: Seconds = 30 * 86400.0
    """How long a response or a conversation is kept after its last use."""
    max_mb: Count = 256
    """Bound on the whole store, in MiB; what was not used for longest goes first."""
    background_limit: Count = 64
    """Responses that may be made in the background at once."""


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: the gateway's own listeners and limits."""

    listen: str = "0.0.0.0:31313"
    """HOST:PORT of the API; an IPv6 host stands in brackets, port 0 takes any free one."""
    metrics_listen: str = "0.0.0.0:31314"
    """HOST:PORT of `/metrics`."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes that serve model requests; 1 is one for everything."""
    timeouts: Timeouts = Timeouts()
    queue: QueueSettings = QueueSettings()
    responses: ResponsesSettings = ResponsesSettings()
    max_body_mb: Count = 64
    """Largest request body, in MiB."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the API from within a browser, such as
    `http://localhost:3000`; `*` lets every page do so, whoever wrote it."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written."""
    fleet_token: str | None = None
    """What neurons know their gateways by; they have the same."""
    fleet_token_file: str | None = None
    """File that holds it, relative to the file that names it."""


class EvictionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[eviction]`: how room is made for models."""

    strategy: Literal["lru", "priority", "cost"] = "lru"
    """Which replica gives way first: the one that was not used for longest, the one of the lowest
    residency priority, or the one that is expected to cost the fewest seconds."""
    min_residency_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a model stays at least once it is loaded, in seconds: how long the turns are of
    models that fight for one device."""
    drain_s: Seconds = 300.0
    """How long the requests of a model that gives way may go on before they are cut, in seconds."""
    idle_unload_s: Seconds | None = None
    """Seconds without a request after which a model is unloaded; none is never. A model's own
    `idle_unload_s` wins."""
    defrag_after_cycles: Annotated[int, Meta(ge=0)] = 50
    """Loads that ended in an unload, after which a node's engines are recycled, one node at a
    time and only while nobody is missing it; 0 is never."""

    @property
    def policy(self) -> EvictionPolicy:
        """The same as decisions take it."""
        return EvictionPolicy(
            strategy=Strategy(self.strategy),
            min_residency_s=self.min_residency_s,
            drain_s=self.drain_s,
            idle_unload_s=self.idle_unload_s,
            defrag_after_cycles=self.defrag_after_cycles,
        )


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[trace]`: whether requests are recorded for `cortex simulate`."""

    record: str | None = None
    """File that gets a line for each request, relative to the file that names it: model, sizes
    and times, a hash of the caller and no content. None records nothing."""
    max_mb: Count = 64
    """How large that file may become, in MiB; then it begins anew, and the last one is kept as `.1`."""

    @property
    def path(self) -> pathlib.Path | None:
        """The file, resolved; `None` when there is none."""
        return None if self.record is None else pathlib.Path(self.record)


class NeuronEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[neurons]]` entry: a node of the fleet."""

    name: NodeName
    """Unique; shown in `/v1/models`, metrics and `x-cortex-node`, used in `pinned_on`."""
    endpoint: str
    """Base URL of its neuron, such as `http://beast.internal:13131`."""
    fleet_token: str | None = None
    """Where this neuron has another one than the rest."""
    fleet_token_file: str | None = None
    """File that holds it, relative to the file that names it."""


class UpstreamModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of an upstream, where more than its name is to be said."""

    model: str
    """What the upstream calls it."""
    context: Count | None = None
    """Prompt and answer together, in tokens."""
    output: Count | None = None
    """Longest answer, in tokens."""


class UpstreamEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[upstreams]]` entry: a service that is no neuron, with models of its own."""

    name: NodeName
    """Unique among nodes and upstreams; shown where node names are."""
    dialect: Literal["openai", "anthropic"]
    """What it speaks: chat completions or messages."""
    base_url: str
    """Such as `https://api.example.com`; a `/v1` at its end makes no difference."""
    models: Annotated[Mapping[str, str | UpstreamModel], Meta(min_length=1)]
    """The names that callers use, each with the upstream's own name, or a table with more."""
    api_key_env: str | None = None
    """Environment variable that holds its key."""
    api_key_file: str | None = None
    """File that holds its key, relative to the file that names it."""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cortex.toml`."""

    models_config: str | None = None
    """The catalogue file, relative to the file that names it; absent serves what nodes have."""
    gateway: ApiSettings = ApiSettings()
    eviction: EvictionSettings = EvictionSettings()
    trace: TraceSettings = TraceSettings()
    neurons: tuple[NeuronEntry, ...] = ()
    upstreams: tuple[UpstreamEntry, ...] = ()

    @property
    def catalogue_path(self) -> pathlib.Path | None:
        """The catalogue file, resolved; `None` when there is none."""
        return None if self.models_config is None else pathlib.Path(self.models_config)

    @property
    def endpoints(self) -> dict[NodeName, str]:
        """Base URLs by node, in the order of the file."""
        return {entry.name: entry.endpoint for entry in self.neurons}


def load_settings(path: pathlib.Path | None, environ: Mapping[str, str]) -> GatewaySettings:
    """Read settings.

    Args:
        path: the TOML file; `None` takes the defaults.
        environ: variables such as `CORTEX_GATEWAY__LISTEN`.

    Returns:
        Settings whose `models_config` is relative to nothing but the working directory.

    Raises:
        SettingsError: with file, TOML path, what is wrong and what would be right.
    """
    table: Table = {} if path is None else load_toml(path)
    if path is not None:
        # A name from the environment has no file to be relative to and stays as it is.
        _anchor(table, path.parent)
    source = _source(path, environ)
    others = {CLIENT_VARIABLE, *_key_variables(table)}
    ours = {name: text for name, text in environ.items() if name not in others}
    table = overlay_environment(table, ours, ENVIRONMENT_PREFIX)
    _read_tokens(table, source)
    settings = to_settings(table, GatewaySettings, source)
    _check_listeners(settings.gateway, source)
    _check_neurons(settings.neurons, source)
    _check_upstreams(settings, source)
    return settings


def _key_variables(table: Table) -> set[str]:
    """Return the variables that hold keys: they are no settings, whatever they begin with."""
    upstreams = table.get("upstreams")
    entries = upstreams if isinstance(upstreams, list) else []
    names = [entry.get("api_key_env") for entry in entries if isinstance(entry, dict)]
    return {name for name in names if isinstance(name, str)}


def _read_tokens(table: Table, source: str) -> None:
    gateway = table.get("gateway")
    if isinstance(gateway, dict):
        read_fleet_token(gateway, f"{source}: gateway.")
    neurons = table.get("neurons")
    for position, entry in enumerate(neurons if isinstance(neurons, list) else ()):
        if isinstance(entry, dict):
            read_fleet_token(entry, f"{source}: neurons[{position}].")


def _anchor(table: Table, folder: pathlib.Path) -> None:
    """Make the file names of a settings file relative to its folder, in place."""
    _anchor_key(table, "models_config", folder)
    gateway = table.get("gateway")
    if isinstance(gateway, dict):
        _anchor_key(gateway, "fleet_token_file", folder)
        if isinstance(gateway.get("responses"), dict):
            _anchor_key(gateway["responses"], "path", folder)
    trace = table.get("trace")
    if isinstance(trace, dict):
        _anchor_key(trace, "record", folder)
    for name, key in (("upstreams", "api_key_file"), ("neurons", "fleet_token_file")):
        entries = table.get(name)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                _anchor_key(entry, key, folder)


def _anchor_key(table: Table, key: str, folder: pathlib.Path) -> None:
    name = table.get(key)
    if isinstance(name, str):
        table[key] = str(folder / name)


def _source(path: pathlib.Path | None, environ: Mapping[str, str]) -> str:
    """Name what a wrong value may come from."""
    variables = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX))
    if path is None:
        return "environment"
    return f"{path} (with {', '.join(variables)})" if variables else str(path)


def _check_listeners(gateway: ApiSettings, source: str) -> None:
    for key, text in (("listen", gateway.listen), ("metrics_listen", gateway.metrics_listen)):
        try:
            parse_address(text)
        except ListenError as error:
            raise SettingsError(f"{source}: gateway.{key}: {error.message}") from None
    if gateway.listen == gateway.metrics_listen and parse_address(gateway.listen)[1]:
        raise SettingsError(
            f"{source}: gateway.metrics_listen: is the same as gateway.listen; choose another port"
        )


def _check_neurons(neurons: tuple[NeuronEntry, ...], source: str) -> None:
    seen: set[str] = set()
    endpoints: dict[str, str] = {}
    for position, entry in enumerate(neurons):
        where = f"{source}: neurons[{position}]"
        if not _NODE_NAME.fullmatch(entry.name):
            raise SettingsError(
                f"{where}.name: {entry.name!r} is no node name; use letters, digits and ._-"
            )
        if entry.name in seen:
            raise SettingsError(f"{where}.name: {entry.name!r} is there twice; names are unique")
        seen.add(entry.name)
        twin = endpoints.setdefault(entry.endpoint.rstrip("/"), entry.name)
        if twin != entry.name:
            raise SettingsError(
                f"{where}.endpoint: is that of {twin!r} already; one machine is one node"
            )
        if not _is_base_url(entry.endpoint):
            raise SettingsError(
                f"{where}.endpoint: {entry.endpoint!r} is no base URL; "
                "use one such as 'http://beast.internal:13131'"
            )


def _check_upstreams(settings: GatewaySettings, source: str) -> None:
    seen = {entry.name for entry in settings.neurons}
    served: dict[str, str] = {}
    for position, entry in enumerate(settings.upstreams):
        where = f"{source}: upstreams[{position}]"
        if not _NODE_NAME.fullmatch(entry.name):
            raise SettingsError(
                f"{where}.name: {entry.name!r} is no name; use letters, digits and ._-"
            )
        if entry.name in seen:
            raise SettingsError(f"{where}.name: {entry.name!r} is there twice; names are unique")
        seen.add(entry.name)
        if not _is_base_url(entry.base_url):
            raise SettingsError(
                f"{where}.base_url: {entry.base_url!r} is no base URL; "
                "use one such as 'https://api.example.com'"
            )
        if entry.api_key_env is not None and entry.api_key_file is not None:
            raise SettingsError(f"{where}.api_key_file: give it or api_key_env, not both")
        for model in entry.models:
            twin = served.setdefault(model, entry.name)
            if twin != entry.name:
                raise SettingsError(
                    f"{where}.models.{model!r}: is served by {twin!r} already; choose another name"
                )


def _is_base_url(text: str) -> bool:
    try:
        url = urllib.parse.urlsplit(text)
        # Reading the port is what checks it.
        _ = url.port
    except ValueError:
        return False
    return (
        url.scheme in ("http", "https")
        and bool(url.hostname)
        and not (url.query or url.fragment or url.username)
        and not any(character.isspace() for character in text)
    )
