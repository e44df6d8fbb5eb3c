"""Watching over engines that serve: whether they live."""

import logging
from collections.abc import Callable

from cortex_core.harness import Engine
from neuron.lifecycle.recovery import FailureKind, kind_of_text
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts

logger = logging.getLogger(__name__)

OnDeath = Callable[[Life, str, FailureKind], None]
"""Takes the life of an engine that is of no use any more, the short reason, and its kind."""


class Watching:
    """Watches engines.

    Args:
        parts: what it needs.
        on_death: called once for an engine that is of no use any more.
    """

    def __init__(self, parts: Parts, on_death: OnDeath) -> None:
        self._parts = parts
        self._on_death = on_death

    def begin(self, life: Life, engine: Engine) -> None:
        """Watch an engine until it is closed."""
        work = self._watch(life, engine)
        life.tasks.append(self._parts.spawn(work, f"watch {life.model}"))

    async def _watch(self, life: Life, engine: Engine) -> None:
        error = await engine.failed()
        kind = kind_of_text(error)
        if kind is FailureKind.UNKNOWN:
            kind = FailureKind.DIED
        self._on_death(life, error, kind)
