"""Everything that the settings files say, read and checked as a whole."""

import pathlib
from collections.abc import Mapping

import msgspec

from cortex_core.catalogue import Catalogue, load_catalogue
from cortex_gateway.clients.accesses import load_accesses
from cortex_gateway.proxy.access import Accesses
from cortex_gateway.settings import GatewaySettings, load_settings


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway is to do; the parts fit each other."""

    settings: GatewaySettings
    catalogue: Catalogue
    accesses: Accesses
    """How upstreams are spoken to, with their keys."""


def read_configuration(path: pathlib.Path | None, environ: Mapping[str, str]) -> Configuration:
    """Read the settings file, and what it names.

    Args:
        path: of `cortex.toml`; `None` takes the defaults.
        environ: variables that are laid over it, and keys of upstreams.

    Raises:
        SettingsError: a file cannot be used, or two of them contradict each other.
    """
    settings = load_settings(path, environ)
    named = settings.catalogue_path
    catalogue = Catalogue() if named is None else load_catalogue(named)
    accesses = load_accesses(settings, catalogue, environ)
    return Configuration(settings=settings, catalogue=catalogue, accesses=accesses)
