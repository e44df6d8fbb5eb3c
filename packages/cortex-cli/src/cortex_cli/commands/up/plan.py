"""What `cortex up` starts: which models on which node, and the settings files. Pure."""

import pathlib
from collections.abc import Mapping, Sequence

import msgspec
import tomlkit

from cortex_core.catalogue import Catalogue, CatalogueFile
from cortex_core.config import to_settings

DEFAULT_MODELS: Mapping[str, tuple[str, ...]] = {
    # The chat model first: it is what somebody who has just started a fleet asks.
    "vllm": ("cortex/tiny", "cortex/tiny-embed"),
    "simulated": ("cortex/tiny",),
}
"""Models by harness when none is asked for."""

NEURON_HOST = "127.0.0.1"

DRAIN_S = 5.0
"""How long running requests may go on after Ctrl-C; somebody waits at a terminal."""

CLOSE_S = 10.0
"""How long an engine may take to shut down after that."""

SIMULATED_DEVICE = {"index": 0, "name": "SIM-24", "vram_total_mb": 24576}
"""What a simulated node has; the size of a common 24 GB card."""

SIMULATED_VRAM_MB = 4000
"""What a simulated model takes: a sixth of its device, so that memory bars show something."""

SIMULATED_LOAD_S = 0.5
"""Long enough to be seen, short enough not to be waited for."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen."""

    host: str
    port: int
    """0 takes any free one."""

    def __str__(self) -> str:
        """Return `HOST:PORT`, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `cortex up`."""

    listen: Address
    metrics_listen: Address
    neuron_port: int
    """Node k listens on this + k; 0 takes any free ones."""
    models: tuple[str, ...]
    """Empty takes those of `DEFAULT_MODELS`."""
    harness: str
    nodes: int


def node_name(number: int) -> str:
    """Return the name of node `number`, counted from 0."""
    return f"node-{number}"


def neuron_addresses(wishes: Wishes) -> tuple[Address, ...]:
    """Return where node 0, 1, ... listen; only this machine can reach them."""
    first = wishes.neuron_port
    return tuple(
        Address(host=NEURON_HOST, port=first + number if first else 0)
        for number in range(wishes.nodes)
    )


def models_of(wishes: Wishes) -> tuple[str, ...]:
    """Return the models to serve, each once, in the order of loading.

    Raises:
        SettingsError: something asked for is no model id.
    """
    models = tuple(dict.fromkeys(wishes.models)) or DEFAULT_MODELS[wishes.harness]
    source = "--model"
    file = to_settings(_catalogue(models, wishes.harness), CatalogueFile, source)
    Catalogue.from_file(file, source)
    return models


def dealt(models: Sequence[str], nodes: int) -> tuple[tuple[str, ...], ...]:
    """Return the models of each node, dealt out one by one like cards."""
    return tuple(tuple(models[number::nodes]) for number in range(nodes))


def neuron_toml(models: Sequence[str], harness: str, port: int) -> str:
    """Return the `neuron.toml` of one node."""
    table: dict[str, object] = {
        "host": NEURON_HOST,
        "port": port,
        "drain_timeout_s": DRAIN_S,
        "close_timeout_s": CLOSE_S,
        "harnesses": [{"name": harness}],
        "default_models": [{"model_id": model, **_profile(harness)} for model in models],
    }
    if harness == "simulated":
        table["devices"] = [SIMULATED_DEVICE]
        table["harness"] = {"simulated": {"load_s": SIMULATED_LOAD_S}}
    return tomlkit.dumps(table)


def models_toml(models: Sequence[str], harness: str) -> str:
    """Return the `models.toml` of the fleet."""
    return tomlkit.dumps(_catalogue(models, harness))


def cortex_toml(
    listen: Address, metrics_listen: Address, neuron_ports: Sequence[int], catalogue: pathlib.Path
) -> str:
    """Return the `cortex.toml` of the gateway.

    Args:
        listen: where it answers.
        metrics_listen: where it shows its metrics.
        neuron_ports: the port of node 0, 1, ...
        catalogue: path of the `models.toml`.
    """
    return tomlkit.dumps(
        {
            "models_config": str(catalogue),
            "gateway": {
                "listen": str(listen),
                "metrics_listen": str(metrics_listen),
                "timeouts": {"drain_s": DRAIN_S},
            },
            "neurons": [
                {"name": node_name(number), "endpoint": f"http://{NEURON_HOST}:{port}"}
                for number, port in enumerate(neuron_ports)
            ],
        }
    )


def _catalogue(models: Sequence[str], harness: str) -> dict[str, object]:
    return {"models": [{"id": model, **_profile(harness)} for model in models]}


def _profile(harness: str) -> dict[str, object]:
    if harness == "simulated":
        return {"harness": harness, "vram_mb": SIMULATED_VRAM_MB}
    # The real engine measures its models, which nobody knows before.
    return {"harness": harness}
