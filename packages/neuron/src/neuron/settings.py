"""Settings of a neuron: `neuron.toml` with the variables that start with `NEURON_` over it."""

import pathlib
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cortex_core.config import load_toml, overlay_environment, read_fleet_token, to_settings
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId

ENVIRONMENT_PREFIX = "NEURON_"

KNOWN_HARNESSES = ("vllm", "simulated")

Port = Annotated[int, Meta(ge=0, le=65535)]
Mib = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", f"{ENVIRONMENT_PREFIX}FLEET_TOKEN")
"""Variables that are told to no process which can do without."""

Whole = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Period = Annotated[float, Meta(gt=0)]
Rate = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, le=1)]


class HarnessEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[harnesses]]` entry: a harness that this neuron offers."""

    name: str
    """`vllm` or `simulated`; its own table is `[harness.NAME]`."""


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.vllm]`."""

    hf_cache: str | None = None
    """Folder of the hub cache; absent takes HF_HUB_CACHE, HF_HOME/hub, the library's default."""
    model_dirs: tuple[str, ...] = ()
    """Folders with models at `ORG/NAME`, looked through before the hub cache, and only read."""
    offline: bool = False
    """Whether the hub is never asked; so does HF_HUB_OFFLINE."""
    endpoint: str | None = None
    """Address of a mirror of the hub; absent takes HF_ENDPOINT, then the public hub."""
    token_file: str | None = None
    """File with the token for the hub, read for every download; absent takes HF_TOKEN."""
    max_downloads: Count = 2
    """Models that are downloaded at once; more wait for their turn."""
    disk_budget_mb: Mib = 0
    """What the hub cache may hold, in MiB: the models that were not used for longest go for a
    new one, but none that is loaded, pinned, or a default model. 0 is no limit, and removes
    nothing."""
    allow_pickle: tuple[str, ...] = ()
    """Models whose weights may be pickles, such as `pytorch_model.bin`, which can run code."""
    allow_code: tuple[str, ...] = ()
    """Models whose own Python modules may be downloaded and run (`trust_remote_code`)."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.simulated.faults."MODEL"]`: what goes wrong with one model, on purpose."""

    fail_to_load: bool | Whole = False
    """`true` fails every load, a number the first so many."""
    reason: str | None = None
    """What failed loads say instead of that it was on purpose, such as an engine's own words."""
    die_after_tokens: Count | None = None
    """The engine dies when it has generated so many tokens in all."""
    hang: bool = False
    """Requests are taken and never answered."""
    hang_load: bool = False
    """Loads never end."""
    slow: Rate = 1.0
    """Factor on every duration of the model."""
    wrong_answer: Literal["load", "wake"] | None = None
    """The engine fails its known-answer check after every load, or after every wake."""


class SimulatedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.simulated]`: an engine of arithmetic, for tests, demos and planning."""

    load_s: Seconds = 2.0
    """Seconds that a load takes besides the reading of weights."""
    load_mb_per_s: Rate | None = None
    """Speed at which weights are read, in MiB per second; absent reads them in no time."""
    can_sleep: bool = True
    """Whether its engines can be put to sleep."""
    sleep_s: Seconds = 0.5
    """Seconds to put a model to sleep, at either level."""
    wake_s: Seconds | None = None
    """Seconds to bring back a model whose weights this process still holds in host memory,
    because it sleeps at level 1 or was loaded before; absent takes `load_s` to wake it, and as
    long as the first time to load it again. Level 2 reads the weights besides."""
    prefill_tok_per_s: Rate = 5000.0
    """Prompt tokens per second, one prompt at a time."""
    decode_tok_per_s: Rate = 50.0
    """Tokens per second of each running request."""
    max_in_flight: Count = 64
    """Requests that run together; more wait in order."""
    context: Count = 8192
    """Context of every model in tokens, unless `max_model_len` is given with the load."""
    vram_mb: Mapping[str, Mib] = msgspec.field(default_factory=dict)
    """Memory that each model holds once it is loaded, in MiB."""
    faults: Mapping[str, Fault] = msgspec.field(default_factory=dict)
    """What goes wrong, by model."""


class HarnessTables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[harness.*]`."""

    vllm: VllmSettings = VllmSettings()
    simulated: SimulatedSettings = SimulatedSettings()


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[admission]`: how many requests a model takes, where nothing is said with its load."""

    max_in_flight: Count | None = None
    """Requests that are with an engine at once; none takes what the engine says it runs
    together."""
    max_queue: Whole = 512
    """Requests that wait for one of those places; more are refused with 503 and `Retry-After`."""
    max_wait_s: Period = 60.0
    """How long one waits before it is refused, in seconds."""
    max_share: Share = 0.5
    """Part of the places that one caller has while others wait, and of the queue at any time."""


class DefaultModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[default_models]]` entry: loaded at start, one after the other."""

    model_id: ModelId
    harness: str
    quant: str | None = None
    tensor_parallel: Count | None = None
    pipeline_parallel: Count | None = None
    """Stages that its layers are split into, each on `tensor_parallel` devices; none is 1."""
    devices: tuple[Whole, ...] | None = None
    """Devices to use; absent lets the neuron choose."""
    vram_mb: Mib | None = None
    """Estimate of the device memory over all its devices, in MiB."""
    engine: Mapping[str, object] = msgspec.field(default_factory=dict)
    """Options passed to the engine under their own names."""
    max_in_flight: Count | None = None
    """Requests that are with its engine at once; none takes that of `[admission]`, as below."""
    max_queue: Whole | None = None
    """Requests that wait for one of those places."""
    max_wait_s: Period | None = None
    """How long one waits before it is refused, in seconds."""
    max_share: Share | None = None
    """Part of the places and of the queue that one caller has."""


class MediaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[media]`: pictures, sound and films that requests bring along or point at."""

    urls: Literal["off", "data", "allow-list"] = "data"
    """`data` takes data URIs alone; `allow-list` fetches from `allowed_hosts` as well, if they are
    on the open internet; `off` takes neither."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that may be fetched from; `*.example.com` stands for every name below it."""
    max_mb: Count = 20
    """Largest medium, in MiB."""
    max_pixels: Count = 50_000_000
    """Largest picture, in pixels; all of one request together may have eight times as many."""
    fetch_timeout_s: Period = 10.0
    """How long the fetching of one medium may take."""


class DeclaredDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[devices]]` entry: a device that is declared instead of discovered."""

    index: Whole
    name: str
    vram_total_mb: Mib
    compute_capability: str = ""


class NeuronSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`neuron.toml`."""

    host: str = "0.0.0.0"  # noqa: S104 - a node serves its fleet
    """Address to listen on."""
    port: Port = 13131
    """Port to listen on; 0 takes any free one."""
    advertise_host: str | None = None
    """Address under which neurons that hold a model together with this one reach its engines;
    absent takes the one from which it reaches them."""
    harnesses: tuple[HarnessEntry, ...] = (HarnessEntry(name="vllm"),)
    """Harnesses that this neuron offers."""
    harness: HarnessTables = HarnessTables()
    media: MediaSettings = MediaSettings()
    default_models: tuple[DefaultModel, ...] = ()
    """Models to load at start, in this order."""
    restore: bool = False
    """Whether what was loaded when the neuron ended is loaded again at its start, after
    `default_models`; needs a state file."""
    devices: tuple[DeclaredDevice, ...] = ()
    """Declared devices; when there is one, the driver is not asked."""
    admission: AdmissionSettings = AdmissionSettings()
    drain_timeout_s: Seconds = 30.0
    """How long running requests may go on when a model is unloaded or the neuron stops."""
    memory_wait_s: Seconds = 60.0
    """How long a load waits for memory that an unload under way will free."""
    close_timeout_s: Period = 30.0
    """How long an engine may take to shut down before it is given up."""
    sleep_timeout_s: Period = 120.0
    """How long an engine may take to fall asleep before it is given up."""
    sleep_budget_mb: Mib | None = None
    """Host memory that sleeping models may hold together, in MiB; absent takes half of what the
    machine has available at the start."""
    hang_timeout_s: Seconds = 60.0
    """Time without a step in which an engine that has unfinished requests is given up, unless it
    compiles; its own first answer may take ten times as long. 0 waits for ever."""
    recovery_failures: Count = 5
    """Failures of an engine within `recovery_window_s` after which its model is given up until
    somebody loads it by hand; 1 never brings an engine back."""
    recovery_window_s: Period = 600.0
    """Time in which the failures of an engine are counted together."""
    fresh_starts_per_hour: Whole = 2
    """Times within an hour that the daemon may end by itself, with status 75, to be started anew
    where engines of several models fail in a row on a device that is said to be well; 0 never.
    Needs a state file, and somebody who starts it again."""
    leak_recycle_mb: Mib = 2048
    """Memory of one device that closed engines may fail to give back, in MiB, before the engines
    on it are replaced; 0 never replaces them."""
    reading_interval_s: Period = 1.0
    """Time between two readings of the devices."""
    heartbeat_s: Period = 5.0
    """Silence on an event stream after which a comment is sent."""
    state_path: str | None = None
    """File that keeps pins, the cordon, what loads measured and what is loaded; absent takes `state.json` in
    systemd's STATE_DIRECTORY, and without that keeps them until the neuron ends."""
    fleet_token: str | None = None
    """What gateways, and peers of a model over several nodes, must bring; without one everybody is
    let in, and nobody is believed to ask for somebody else."""
    fleet_token_file: str | None = None
    """File that holds it, relative to the file that names it."""
    max_body_mb: Count = 64
    """Largest request body, in MiB."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load_settings(path: pathlib.Path | None, environ: Mapping[str, str]) -> NeuronSettings:
    """Read settings.

    Args:
        path: the TOML file; `None` takes the defaults.
        environ: variables such as `NEURON_PORT` or `NEURON_HARNESS__VLLM__HF_CACHE`.

    Raises:
        SettingsError: with file, TOML path, what is wrong and what would be right.
    """
    source = str(path) if path is not None else "environment"
    table = load_toml(path) if path is not None else {}
    if path is not None and isinstance(name := table.get("fleet_token_file"), str):
        table["fleet_token_file"] = str(path.parent / name)
    table = overlay_environment(table, environ, ENVIRONMENT_PREFIX)
    read_fleet_token(table, f"{source}: ")
    settings = to_settings(table, NeuronSettings, source)
    _check_harnesses(settings, source)
    _check_default_models(settings, source)
    _check_devices(settings, source)
    _check_weights(settings.harness.vllm, f"{source}: harness.vllm")
    return settings


def _check_harnesses(settings: NeuronSettings, source: str) -> None:
    seen: set[str] = set()
    for position, entry in enumerate(settings.harnesses):
        where = f"{source}: harnesses[{position}].name"
        if entry.name not in KNOWN_HARNESSES:
            raise SettingsError(
                f"{where}: {entry.name!r} is no harness; use {' or '.join(KNOWN_HARNESSES)}"
            )
        if entry.name in seen:
            raise SettingsError(f"{where}: {entry.name!r} is there twice; once is enough")
        seen.add(entry.name)


def _check_default_models(settings: NeuronSettings, source: str) -> None:
    offered = [entry.name for entry in settings.harnesses]
    seen: set[str] = set()
    for position, model in enumerate(settings.default_models):
        where = f"{source}: default_models[{position}]"
        if model.harness not in offered:
            raise SettingsError(
                f"{where}.harness: {model.harness!r} is not under [[harnesses]]; "
                f"offered: {', '.join(offered) or 'none'}"
            )
        if model.model_id in seen:
            raise SettingsError(f"{where}.model_id: {model.model_id!r} is there twice")
        seen.add(model.model_id)


def _check_devices(settings: NeuronSettings, source: str) -> None:
    seen: set[int] = set()
    for position, device in enumerate(settings.devices):
        if device.index in seen:
            raise SettingsError(
                f"{source}: devices[{position}].index: {device.index} is there twice; "
                "each device has its own"
            )
        seen.add(device.index)


def _check_weights(vllm: VllmSettings, where: str) -> None:
    for position, folder in enumerate(vllm.model_dirs):
        if not folder.startswith("/"):
            raise SettingsError(f"{where}.model_dirs[{position}]: {folder!r} is no absolute path")
    if vllm.endpoint is not None and not vllm.endpoint.startswith(("http://", "https://")):
        raise SettingsError(
            f"{where}.endpoint: {vllm.endpoint!r} is no URL; use one such as https://hub.internal"
        )
