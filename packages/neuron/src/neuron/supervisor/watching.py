"""Watching over engines that serve: whether they live, and get on with their work."""

import logging
from collections.abc import Callable

from cortex_core.errors import EngineError, RequestError
from cortex_core.harness import Engine
from cortex_core.ids import ModelId
from neuron.lifecycle.recovery import FailureKind, kind_of_text
from neuron.lifecycle.stall import Stall
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts
from neuron.supervisor.waiting import first, within

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often an engine is looked at, unless the bound is shorter than some looks."""

_LOOKS = 4

_GRACE = 10.0
"""So many times the bound may the first answer take, for which much is compiled."""

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
        self._clock = parts.clock
        self._on_death = on_death
        self._ages: dict[ModelId, float | None] = {}
        self._bound_s = parts.settings.hang_timeout_s
        self._look_s = min(LOOK_S, self._bound_s / _LOOKS) if self._bound_s else LOOK_S

    def last_step_age_s(self, model: ModelId) -> float | None:
        """Return for how long the engine of a model has made no step although it has work."""
        return self._ages.get(model)

    def begin(self, life: Life, engine: Engine) -> None:
        """Watch an engine until it is closed."""
        work = self._watch(life, engine)
        life.tasks.append(self._parts.spawn(work, f"watch {life.model}"))

    async def check(self, life: Life, engine: Engine) -> None:
        """Have an engine answer the neuron's own question, within bounds.

        Raises:
            RequestError: the answer is wrong, or there is none.
        """
        # A part of an engine whose head is elsewhere answers when the head does.
        if not self._bound_s or life.state.asked.seat is not None:
            await engine.check_answer()
            return
        errors: list[RequestError] = []

        async def ask() -> None:
            try:
                await engine.check_answer()
            except RequestError as error:
                errors.append(error)

        bound_s = _GRACE * self._bound_s
        if not await within(self._clock, bound_s, ask()):
            reason = f"the engine made no step for {bound_s:g} s"
            await engine.kill(reason)
            raise EngineError(f"{life.model!r}: {reason}")
        if errors:
            raise errors[0]

    async def _watch(self, life: Life, engine: Engine) -> None:
        try:
            is_hung = await first(engine.failed(), self._until_hung(life.model, engine)) == 1
        finally:
            self._ages.pop(life.model, None)
        if is_hung:
            await engine.kill(f"the engine made no step for {self._bound_s:g} s")
        reason = engine.failure or "the engine died"
        kind = kind_of_text(reason)
        if kind is FailureKind.UNKNOWN:
            kind = FailureKind.DIED
        self._on_death(life, reason, kind)

    async def _until_hung(self, model: ModelId, engine: Engine) -> None:
        stall = Stall(looked_at=self._clock.now())
        while True:
            await self._clock.sleep(self._look_s)
            stall = stall.after(engine.load(), self._clock.now(), self._look_s)
            self._ages[model] = stall.age_s
            if stall.is_hung(self._bound_s) and not await self._is_compiling(model, engine):
                return

    async def _is_compiling(self, model: ModelId, engine: Engine) -> bool:
        try:
            is_compiling = await engine.is_compiling()
        except RequestError:
            return False
        if is_compiling:
            logger.info("engine is waited for, because it compiles", extra={"model": model})
        return is_compiling
