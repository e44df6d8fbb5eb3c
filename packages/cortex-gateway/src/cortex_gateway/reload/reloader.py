"""The configuration in force, and how another one takes its place."""

import asyncio
import logging
import pathlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from cortex_core.errors import SettingsError
from cortex_core.server.clock import Clock
from cortex_core.wire.admin import ConfigView, ReloadAnswer
from cortex_gateway.reload.changes import compare
from cortex_gateway.reload.configuration import Configuration
from cortex_gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

HIDDEN = "***"
"""Shown in place of a token."""


class Reloader:
    """Reads the files anew when somebody asks: `Configured`, and an async context manager.

    Args:
        in_force: what the gateway was started with.
        file: the settings file, to be shown.
        read: reads and checks the files; called in a thread.
        apply: puts a configuration in force, at one blow; it cannot fail.
        clock: dates the reading.
    """

    def __init__(
        self,
        in_force: Configuration,
        *,
        file: pathlib.Path | None,
        read: Callable[[], Configuration],
        apply: Callable[[Configuration], None],
        clock: Clock,
    ) -> None:
        self._in_force = in_force
        self._file = file
        self._read = read
        self._apply = apply
        self._clock = clock
        self._loaded_at = clock.wall()
        self._needs_restart: tuple[str, ...] = ()
        # Who reads first shall not put it in force last.
        self._turn = asyncio.Lock()
        self._hangup = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._following = self._group.create_task(self._follow(), name="reload")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._group.__aexit__(None, None, None)

    @property
    def in_force(self) -> Configuration:
        """What is in force."""
        return self._in_force

    def view(self) -> ConfigView:
        """Return what is in force, without secrets."""
        in_force = self._in_force
        return ConfigView(
            file=None if self._file is None else str(self._file),
            loaded_at=self._loaded_at,
            settings=_without_tokens(in_force.settings),
            models=len(in_force.catalogue.profiles),
            aliases=len(in_force.catalogue.aliases),
            needs_restart=self._needs_restart,
        )

    async def reload(self) -> ReloadAnswer:
        """Read the files and put in force what they say.

        Raises:
            SettingsError: they cannot be used; nothing has changed.
        """
        async with self._turn:
            new = await asyncio.to_thread(self._read)
            found = compare(self._in_force, new)
            self._apply(found.in_force)
            self._in_force, self._needs_restart = found.in_force, found.needs_restart
            self._loaded_at = self._clock.wall()
        for change in found.changed:
            logger.info("settings: %s %s", change.path, change.change)
        for path in found.needs_restart:
            logger.warning("settings: %s takes a restart", path)
        return ReloadAnswer(changed=found.changed, needs_restart=found.needs_restart)

    def hang_up(self) -> None:
        """Ask for a reload, as the handler of a signal may; it is done while the context is open."""
        self._hangup.set()

    async def _follow(self) -> None:
        """Reload whenever `hang_up` is called; mistakes are for the log."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            try:
                answer = await self.reload()
            except SettingsError as error:
                logger.error("the settings were not reloaded: %s", error.message)
            else:
                logger.info("settings reloaded, %d changes", len(answer.changed))


def _without_tokens(settings: GatewaySettings) -> dict[str, object]:
    """Return the settings as they may be shown."""
    table: dict[str, object] = msgspec.to_builtins(settings)
    gateway, neurons = table["gateway"], table["neurons"]
    entries = [gateway, *neurons] if isinstance(neurons, list | tuple) else [gateway]
    for entry in entries:
        if isinstance(entry, dict) and entry["fleet_token"] is not None:
            entry["fleet_token"] = HIDDEN
    return table
