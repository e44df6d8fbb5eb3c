"""`cortex up`: its options, and what must be there before it can work."""

import contextlib
import importlib.util
import re

import click

from cortex_cli.commands.up.fleet import run_fleet
from cortex_cli.commands.up.plan import DEFAULT_MODELS, Address, Wishes
from cortex_cli.context import ConfigurationError, Surroundings

MAX_PORT = 65535

_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]\s]+)\]|(?P<host>[^\[\]:\s]+)):(?P<port>[0-9]{1,5})")


def _address(context: click.Context, parameter: click.Parameter, value: str) -> Address:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match["port"]) > MAX_PORT:
        raise click.BadParameter(
            f"{value!r} is no HOST:PORT such as 127.0.0.1:31313 or [::1]:0", context, parameter
        )
    return Address(host=match["v6"] or match["host"], port=int(match["port"]))


@click.command()
@click.option(
    "--listen", metavar="HOST:PORT", callback=_address, default="127.0.0.1:31313", show_default=True,
    help="Where the gateway answers; port 0 takes any free one.",
)  # fmt: skip
@click.option(
    "--metrics-listen", metavar="HOST:PORT", callback=_address, default="127.0.0.1:31314", show_default=True,
    help="Where the gateway shows its metrics.",
)  # fmt: skip
@click.option(
    "--neuron-port", type=click.IntRange(0, MAX_PORT), default=13131, show_default=True,
    metavar="PORT", help="Port of node 0; node k listens on PORT + k; 0 takes any free ones.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, metavar="ID",
    help="A model to serve; may be repeated. Without it, those that ship with neuron.",
)  # fmt: skip
@click.option(
    "--harness", type=click.Choice(tuple(DEFAULT_MODELS)), default="vllm", show_default=True,
    help="What runs the models: the real engine, or a simulation of one.",
)  # fmt: skip
@click.option(
    "--nodes", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
    help="Neurons to start; models are dealt out over them.",
)  # fmt: skip
@click.pass_context
def up(
    context: click.Context,
    listen: Address,
    metrics_listen: Address,
    neuron_port: int,
    models: tuple[str, ...],
    harness: str,
    nodes: int,
) -> None:
    """Start a fleet on this machine and keep it in the foreground.

    Prints `ready: http://HOST:PORT` on standard output when a request would be answered;
    progress and logs go to standard error. Ctrl-C stops everything that was started.
    """
    if neuron_port and neuron_port + nodes - 1 > MAX_PORT:
        raise click.UsageError(
            f"--neuron-port: {nodes} nodes from {neuron_port} go beyond port {MAX_PORT}", context
        )
    check_installed(harness)
    wishes = Wishes(
        listen=listen,
        metrics_listen=metrics_listen,
        neuron_port=neuron_port,
        models=models,
        harness=harness,
        nodes=nodes,
    )
    run_fleet(wishes, context.ensure_object(Surroundings).environ, _show, _tell)


def check_installed(harness: str) -> None:
    """Check that everything to be started is there.

    Raises:
        ConfigurationError: something is not; the message has the cure.
    """
    engine = [("vllm", "'neuron[cpu]' or, on a GPU machine, 'neuron[vllm]'")]
    for module, cure in [
        ("cortex_gateway", "cortex-gateway"),
        ("neuron", "neuron"),
        *(engine if harness == "vllm" else []),
    ]:
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(
                f"cortex up needs {module}, which is not installed here; "
                f"install {cure} beside cortex-cli"
            )


def _show(line: str) -> None:
    # A terminal that is gone must not keep the fleet from being stopped in order.
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(line)
