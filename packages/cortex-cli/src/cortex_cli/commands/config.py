"""`cortex config`: whether settings files can be used, and having a gateway use them."""

import asyncio
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

import click

from cortex_cli.client import GatewayClient
from cortex_cli.commands.options import endpoint_option, gateway_of, json_option, show
from cortex_cli.context import ConfigurationError, Surroundings
from cortex_cli.render.answers import render_reload
from cortex_core.config import load_toml
from cortex_core.errors import SettingsError
from cortex_core.wire.admin import ReloadAnswer

GROUP = "cortex.settings"
"""Entry points `KIND = loader`; a loader takes `(path, environ)` and raises `SettingsError`."""

DEFAULT_FILES = (
    pathlib.Path("/etc/cortex/cortex.toml"),
    pathlib.Path("/etc/cortex/models.toml"),
    pathlib.Path("/etc/neuron/neuron.toml"),
)

KEYS: Mapping[str, frozenset[str]] = {
    "cortex": frozenset({"models_config", "gateway", "eviction", "neurons", "upstreams"}),
    "models": frozenset({"models", "aliases"}),
    "neuron": frozenset({"port", "host", "harnesses", "harness", "default_models", "devices"}),
}
"""Top-level keys that tell the kinds of files apart when the name does not."""

PACKAGES: Mapping[str, str] = {
    "cortex": "cortex-gateway",
    "models": "cortex-core",
    "neuron": "neuron",
}
"""Distribution that brings the loader of each kind."""

CATALOGUE_ATTRIBUTE = "catalogue_path"
"""Where settings say which catalogue they use, if they do: a path or `None`."""

Loader = Callable[[pathlib.Path, Mapping[str, str]], object]


@click.group()
def config() -> None:
    """Work with settings files."""


@config.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=pathlib.Path))
@click.pass_context
def check(context: click.Context, files: Sequence[pathlib.Path]) -> None:
    """Check settings files as the daemons would at their start, environment included.

    Without FILE, those of /etc/cortex and /etc/neuron that exist. Prints one line per file;
    exit status 2 when any cannot be used.
    """
    around = context.ensure_object(Surroundings)
    files = files or [path for path in DEFAULT_FILES if path.exists()]
    if not files:
        names = ", ".join(str(path) for path in DEFAULT_FILES)
        raise ConfigurationError(f"no settings file to check: none of {names} exists")
    is_well = True
    for path, error in check_files(files, around.environ):
        if error is None:
            click.echo(f"{path}: ok")
        else:
            is_well = False
            click.echo(error, err=True)
    if not is_well:
        context.exit(2)


@config.command()
@endpoint_option
@json_option
@click.pass_context
def reload(context: click.Context, endpoint: str | None, as_json: bool) -> None:
    """Have the gateway read its settings and its catalogue anew, and say what that changes.

    Nobody's request is disturbed. Exit status 2 when the files cannot be used; nothing has changed
    then.
    """
    around = context.ensure_object(Surroundings)
    answer = asyncio.run(_reload(gateway_of(context, endpoint)))
    show(answer, render_reload(answer, around.style), as_json=as_json)


async def _reload(endpoint: str) -> ReloadAnswer:
    async with GatewayClient(endpoint) as client:
        return await client.reload()


def check_files(
    files: Sequence[pathlib.Path], environ: Mapping[str, str]
) -> Iterator[tuple[pathlib.Path, str | None]]:
    """Yield each file, and each catalogue that a file names, with its error or `None`.

    A file comes once, however often it is named.
    """
    waiting = list(files)
    seen: set[pathlib.Path] = set()
    while waiting:
        path = waiting.pop(0)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            settings = _loader(kind_of(path), path)(path, environ)
        except SettingsError as error:
            yield path, " ".join(error.message.split())
            continue
        yield path, None
        named = getattr(settings, CATALOGUE_ATTRIBUTE, None)
        if isinstance(named, pathlib.Path):
            waiting.insert(0, named)


def kind_of(path: pathlib.Path) -> str:
    """Return `cortex`, `models` or `neuron`: by name, else by the keys at the top.

    Raises:
        SettingsError: it cannot be read, or neither tells.
    """
    for kind in KEYS:
        if path.suffix == ".toml" and path.name.startswith(kind):
            return kind
    found = load_toml(path).keys()
    kinds = [kind for kind, keys in KEYS.items() if found & keys]
    if len(kinds) != 1:
        raise SettingsError(
            f"{path}: neither name nor content tells what it sets; "
            "name it cortex*.toml, models*.toml or neuron*.toml"
        )
    return kinds[0]


def _loader(kind: str, path: pathlib.Path) -> Loader:
    found: list[EntryPoint] = list(entry_points(group=GROUP, name=kind))
    if not found:
        raise SettingsError(
            f"{path}: cannot be checked: {PACKAGES[kind]} is not installed beside cortex-cli"
        )
    loader: Loader = found[0].load()
    return loader
