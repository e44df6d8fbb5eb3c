"""How nodes and upstreams are spoken to, the keys of these read from where they are kept."""

import pathlib
from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.config import read_secret
from cortex_core.dialect import Dialect
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId
from cortex_gateway.proxy.access import NEURON, Access, Accesses
from cortex_gateway.settings import GatewaySettings, UpstreamEntry

ANTHROPIC_VERSION = "2023-06-01"
"""Sent where the caller names none; the version that every server of the dialect takes."""


def load_accesses(
    settings: GatewaySettings, catalogue: Catalogue, environ: Mapping[str, str]
) -> Accesses:
    """Return the access to every upstream, and to every neuron that asks for the fleet's token.

    Args:
        settings: as loaded.
        catalogue: the models of the fleet, which upstreams must not have as well: a request
            would go to whichever answers first.
        environ: where `api_key_env` is looked up.

    Raises:
        SettingsError: a key cannot be read, or a model is in the catalogue.
    """
    accesses = {}
    for neuron in settings.neurons:
        token = neuron.fleet_token or settings.gateway.fleet_token
        if token is not None:
            headers = [("authorization", f"Bearer {token}")]
            accesses[neuron.name] = msgspec.structs.replace(NEURON, headers=headers)
    for position, entry in enumerate(settings.upstreams):
        where = f"upstreams[{position}]"
        for model in entry.models:
            if model in catalogue.profiles or model in catalogue.aliases:
                raise SettingsError(
                    f"{where}.models.{model!r}: is in the catalogue as well; choose another name"
                )
        accesses[entry.name] = _access(entry, _key(entry, where, environ))
    return accesses


def _access(entry: UpstreamEntry, key: str | None) -> Access:
    headers: list[tuple[str, str]] = []
    dialect = Dialect(entry.dialect)
    if dialect is Dialect.ANTHROPIC:
        if key is not None:
            headers.append(("x-api-key", key))
    elif key is not None:
        headers.append(("authorization", f"Bearer {key}"))
    return Access(
        dialect=dialect,
        headers=headers,
        defaults=(
            [("anthropic-version", ANTHROPIC_VERSION)] if dialect is Dialect.ANTHROPIC else []
        ),
        models={
            ModelId(name): theirs if isinstance(theirs, str) else theirs.model
            for name, theirs in entry.models.items()
        },
    )


def _key(entry: UpstreamEntry, where: str, environ: Mapping[str, str]) -> str | None:
    if entry.api_key_env is not None:
        key = environ.get(entry.api_key_env, "").strip()
        if not key:
            raise SettingsError(
                f"{where}.api_key_env: the environment has no {entry.api_key_env!r}; set it"
            )
    elif entry.api_key_file is not None:
        key = read_secret(pathlib.Path(entry.api_key_file), f"{where}.api_key_file")
    else:
        return None
    if not key.isascii() or not key.isprintable():
        raise SettingsError(f"{where}: the key has characters that no header can carry")
    return key
