"""The daemons of one fleet together: started in order, watched, ended in order."""

import asyncio
from collections.abc import Mapping

from cortex_cli.commands.up.children import LAST_WORDS_S, Child, ChildSpec, Show, ending, start


class Family:
    """Owns the started daemons. Its tasks live in the group that it is given."""

    def __init__(self, group: asyncio.TaskGroup, environ: Mapping[str, str], show: Show) -> None:
        self.happened = asyncio.Event()
        """Set when a daemon has ended by itself or somebody asked for the end."""
        self._group = group
        self._environ = environ
        self._show = show
        self._children: list[Child] = []
        self._logs: dict[str, asyncio.Task[None]] = {}
        self._dead: tuple[Child, int] | None = None
        self._is_asked = False

    async def start(self, spec: ChildSpec) -> None:
        """Start one more daemon.

        Raises:
            OSError: the system has no room for it.
        """
        child = await start(spec, self._environ)
        self._children.append(child)
        self._logs[child.name] = self._group.create_task(child.relay(self._show))
        self._group.create_task(self._watch(child))

    def ask(self) -> None:
        """Ask for the end; whoever asks twice does not want to wait, so the rest is killed."""
        if self._is_asked:
            for child in self._children:
                child.kill()
        self._is_asked = True
        self.happened.set()

    async def verdict(self) -> str | None:
        """Return which daemon ended by itself and why, after its last lines were shown.

        `None` when the end was asked for.
        """
        if self._is_asked or self._dead is None:
            return None
        child, status = self._dead
        await asyncio.wait({self._logs[child.name]}, timeout=LAST_WORDS_S)
        text = f"{child.name} {ending(status)}"
        if not child.tail:
            return f"{text} without a word"
        self._show(f"cortex up: {text}; its last lines:")
        for line in child.tail:
            self._show(f"    {line}")
        return f"{text}; its last line: {child.tail[-1].strip()}"

    async def stop(self) -> None:
        """End the first child (the gateway, which finishes its requests), then all others."""
        for batch in (self._children[:1], self._children[1:]):
            async with asyncio.TaskGroup() as group:
                for child in batch:
                    group.create_task(child.stop())
        if self._logs:
            await asyncio.wait(self._logs.values(), timeout=LAST_WORDS_S)
        for log in self._logs.values():
            log.cancel()

    async def _watch(self, child: Child) -> None:
        status = await child.ended()
        if self._dead is None:
            self._dead = (child, status)
        self.happened.set()
