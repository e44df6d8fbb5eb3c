"""Adapters: models of their own that live on the engine of another one, their base.

The base is loaded for itself, and an adapter waits for it; it takes no memory of its own and
has its base's devices. Whoever unloads the base unloads its adapters, and the base waits for
them. Its death is theirs, and each comes back when the base has.
"""

import asyncio
from collections.abc import Callable, Mapping

from cortex_core.errors import ConflictError, EngineError, InvalidRequestError
from cortex_core.harness import Engine, ProgressCallback
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.events import Event, UnloadAsked
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts
from neuron.supervisor.watching import Watching

_COMING = (ReplicaStatus.LOADING, ReplicaStatus.RECOVERING, ReplicaStatus.LOADED)


class Adapting:
    """Adds adapters to engines.

    Args:
        parts: what it needs.
        lives: those that models have now.
        apply: takes the events that end them.
        watching: has engines checked.
    """

    def __init__(
        self,
        parts: Parts,
        lives: Mapping[ModelId, Life],
        apply: Callable[[Life, Event], None],
        watching: Watching,
    ) -> None:
        self._parts = parts
        self._lives = lives
        self._apply = apply
        self._watching = watching

    async def load(
        self,
        life: Life,
        on_progress: ProgressCallback,
        on_placed: Callable[[tuple[DeviceIndex, ...]], None],
    ) -> Engine:
        """Return an engine for an adapter, once its base has one.

        Args:
            life: of the adapter.
            on_progress: told what is waited for.
            on_placed: told its devices, which are its base's.

        Raises:
            RequestError: why there is none.
        """
        spec = life.state.asked
        harness = self._parts.harnesses[spec.harness]
        self._coming(life)
        await harness.fetch(spec, on_progress)
        base = self._coming(life)
        if not base.loaded.done():
            life.accepted.set()
            on_progress("base", None, None)
        # Shielded: an adapter that is given up must not take its base's load with it.
        await asyncio.shield(base.loaded)
        devices = base.state.devices
        on_placed(devices)
        async with self._parts.lanes.hold(devices):
            on_progress("adapter", None, None)
            engine = await harness.adapt(_engine_of(base), spec)
            try:
                on_progress("checking", None, None)
                await self._watching.check(life, engine)
            except BaseException:
                await engine.close(0)
                raise
            return engine

    def unload_all(self, base: Life, drain_timeout_s: float) -> tuple[Life, ...]:
        """Begin to unload the adapters of a base, and return their lives."""
        adapters = self._adapters_of(base.model)
        now = self._parts.clock.now()
        for life in adapters:
            self._apply(life, UnloadAsked(now=now, drain_timeout_s=drain_timeout_s))
        return adapters

    def check_none(self, model: ModelId) -> None:
        """Check that a model has no adapters, as one that is to sleep must.

        Raises:
            ConflictError: it has.
        """
        names = [repr(life.model) for life in self._adapters_of(model)]
        if names:
            raise ConflictError(
                f"{model!r} cannot sleep under its adapters; unload {', '.join(names)} first"
            )

    def _adapters_of(self, model: ModelId) -> tuple[Life, ...]:
        return tuple(life for life in self._lives.values() if life.state.asked.base == model)

    def _coming(self, life: Life) -> Life:
        """Return the life of the base, which has an engine or will have one."""
        spec = life.state.asked
        assert spec.base is not None
        base = self._lives.get(spec.base)
        if base is None or base.state.status not in _COMING:
            how = "not here" if base is None else base.state.status.value
            raise ConflictError(
                f"{spec.model!r} is an adapter and its base {spec.base!r} is {how}; load that "
                "first, with the engine option enable_lora = true"
            )
        asked = base.state.asked
        if asked.base is not None:
            raise InvalidRequestError(f"{spec.base!r} is an adapter itself", param="base")
        if asked.harness != spec.harness:
            raise InvalidRequestError(
                f"the harness of {spec.base!r} is {asked.harness!r}, so its adapters' is too",
                param="harness",
            )
        return base


def _engine_of(base: Life) -> Engine:
    engine = base.engine
    if base.state.status is not ReplicaStatus.LOADED or engine is None or engine.failure:
        raise EngineError(f"the engine of {base.model!r} has just gone")
    return engine
