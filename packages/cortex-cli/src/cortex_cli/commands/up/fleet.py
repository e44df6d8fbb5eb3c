"""Runs a fleet from first start to last end."""

import asyncio
import contextlib
import pathlib
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from cortex_cli.client import GatewayClient
from cortex_cli.commands.up.children import ChildSpec, Show
from cortex_cli.commands.up.family import Family
from cortex_cli.commands.up.plan import (
    Address,
    Wishes,
    cortex_toml,
    dealt,
    models_of,
    models_toml,
    neuron_toml,
    node_name,
)
from cortex_cli.commands.up.sockets import Sockets, bound, port_of
from cortex_cli.commands.up.standing import Coming, Failed, Ready, standing
from cortex_cli.context import FleetError

READY_TIMEOUT_S = 3600.0
"""Weights of a big model may come over a slow line; nothing shorter can be called an error."""

LOOK_INTERVAL_S = 0.2
"""Between two looks at a fleet that starts; a person does not notice less."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Each asks for the end; SIGHUP comes when the terminal is closed."""

WILDCARDS: Mapping[str, str] = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing binds
"""Where to ask a gateway that listens everywhere."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a fleet needs."""

    models: tuple[str, ...]
    address: Address
    """Where the gateway answers, host as it was given."""
    specs: tuple[ChildSpec, ...]
    """What to start, in this order; the gateway comes first."""
    environ: Mapping[str, str]
    """Of the daemons."""
    show: Show
    """Takes progress and log lines."""
    tell: Show
    """Takes the one line that says where the fleet answers."""


def run_fleet(wishes: Wishes, environ: Mapping[str, str], show: Show, tell: Show) -> None:
    """Run until a signal asks for the end.

    Args:
        wishes: what to run.
        environ: for the daemons.
        show: takes progress and log lines.
        tell: takes the one line that says where the fleet answers.

    Raises:
        FleetError: something could not be started, or ended by itself.
        SettingsError: a wish cannot be fulfilled as it is written.
    """
    models = models_of(wishes)
    with (
        contextlib.closing(bound(wishes)) as sockets,
        tempfile.TemporaryDirectory(prefix="cortex-up-") as folder,
    ):
        life = Life(
            models=models,
            address=_placed(wishes.listen, port_of(sockets.api)),
            specs=write_files(pathlib.Path(folder), wishes, models, sockets),
            environ=environ,
            show=show,
            tell=tell,
        )
        error = asyncio.run(_run(life, sockets))
    if error is not None:
        raise FleetError(error)


def write_files(
    folder: pathlib.Path, wishes: Wishes, models: Sequence[str], sockets: Sockets
) -> tuple[ChildSpec, ...]:
    """Write the settings into `folder` and return what to start: the gateway, then the nodes."""
    ports = [port_of(listener) for listener in sockets.neurons]
    catalogue = folder / "models.toml"
    catalogue.write_text(models_toml(models, wishes.harness), encoding="utf-8")
    settings = folder / "cortex.toml"
    listen = _placed(wishes.listen, port_of(sockets.api))
    metrics_listen = _placed(wishes.metrics_listen, port_of(sockets.metrics))
    settings.write_text(cortex_toml(listen, metrics_listen, ports, catalogue), encoding="utf-8")
    specs = [
        ChildSpec(
            name="gateway",
            module="cortex_gateway",
            arguments=("--config", str(settings)),
            sockets=(sockets.api, sockets.metrics),
        )
    ]
    for number, share in enumerate(dealt(models, wishes.nodes)):
        path = folder / f"neuron-{number}.toml"
        path.write_text(neuron_toml(share, wishes.harness, ports[number]), encoding="utf-8")
        specs.append(
            ChildSpec(
                name=node_name(number),
                module="neuron",
                arguments=("--config", str(path)),
                sockets=(sockets.neurons[number],),
            )
        )
    return tuple(specs)


async def _run(life: Life, sockets: Sockets) -> str | None:
    """Return why the fleet ended, or `None` when somebody asked for it."""
    async with asyncio.TaskGroup() as group:
        family = Family(group, life.environ, life.show)
        with _signals(family.ask):
            try:
                for spec in life.specs:
                    await family.start(spec)
                sockets.close()
                error = await _live(life, family, group)
            except OSError as cause:
                error = f"a daemon cannot be started: {cause.strerror}"
            finally:
                life.show("cortex up: stopping")
                await family.stop()
    return error


async def _live(life: Life, family: Family, group: asyncio.TaskGroup) -> str | None:
    life.show(f"cortex up: starting {', '.join(life.models)}")
    ready = group.create_task(_not_ready(life))
    happened = group.create_task(family.happened.wait())
    await asyncio.wait({ready, happened}, return_when=asyncio.FIRST_COMPLETED)
    if not happened.done():
        error = ready.result()
        if error is not None:
            happened.cancel()
            return error
        life.tell(f"ready: http://{life.address}")
        await happened
    ready.cancel()
    return await family.verdict()


async def _not_ready(life: Life) -> str | None:
    """Wait until every model would answer; return why that will not be, or `None`."""
    host = WILDCARDS.get(life.address.host, life.address.host)
    endpoint = f"http://{_placed(life.address, life.address.port, host)}"
    said = ""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S), GatewayClient(endpoint) as client:
            while True:
                try:
                    now = standing(await client.overview(), life.models)
                except FleetError as error:
                    now = Coming(text=error.message)
                match now:
                    case Ready():
                        return None
                    case Failed(reason=reason):
                        return reason
                    case Coming(text=text) if text != said:
                        life.show(f"cortex up: {text}")
                        said = text
                await asyncio.sleep(LOOK_INTERVAL_S)
    except TimeoutError:
        return f"not ready after {READY_TIMEOUT_S:g} s: {said}"


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` for every signal that asks for the end."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _placed(address: Address, port: int, host: str | None = None) -> Address:
    return Address(host=host or address.host, port=port)
