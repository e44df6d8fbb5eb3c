"""Loading what is wanted from the start, one after the other, once the neuron answers."""

import asyncio
import logging
from collections.abc import Callable

from cortex_core.errors import RequestError
from cortex_core.harness import Bounds, ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.units import bytes_from_mib
from cortex_core.wire.neuron import Activation, ActivationFailure
from neuron.settings import DefaultModel
from neuron.supervisor.actor import Supervisor

logger = logging.getLogger(__name__)


class Activator:
    """Loads what `[[default_models]]` says; a failure is listed and the next one tried.

    Args:
        models: in the order in which they are loaded.
        supervisor: loads them.
        on_change: called after every step.
        restored: loaded after them, because they were here before a restart.
    """

    def __init__(
        self,
        models: tuple[DefaultModel, ...],
        supervisor: Supervisor,
        on_change: Callable[[], None],
        restored: tuple[ModelSpec, ...] = (),
    ) -> None:
        self._restored = restored
        self._pending = [*(_spec(model) for model in models), *restored]
        self._supervisor = supervisor
        self._on_change = on_change
        self._in_progress: ModelSpec | None = None
        self._completed: list[str] = []
        self._failed: list[ActivationFailure] = []

    @property
    def state(self) -> Activation:
        """How far it is."""
        is_done = not self._pending and self._in_progress is None
        return Activation(
            state="ready" if is_done else "pre_warming",
            pending=tuple(spec.model for spec in self._pending),
            in_progress=None if self._in_progress is None else self._in_progress.model,
            completed=tuple(self._completed),
            failed=tuple(self._failed),
        )

    def to_come(self) -> tuple[ModelSpec, ...]:
        """Return what was here before a restart and is not loaded again yet."""
        return tuple(spec for spec in (self._in_progress, *self._pending) if spec in self._restored)

    async def run(self) -> None:
        """Load all, and return."""
        while self._pending and not self._supervisor.is_draining:
            spec = self._in_progress = self._pending.pop(0)
            self._on_change()
            try:
                life = await self._supervisor.load(spec, was_here=spec in self._restored)
                # Shielded: others may wait for the same load when the activation is stopped.
                await asyncio.shield(life.loaded)
            except RequestError as error:
                failure = ActivationFailure(model_id=spec.model, error=error.message)
                self._failed.append(failure)
                logger.warning(
                    "model not loaded at the start",
                    extra={"model": spec.model, "reason": error.message},
                )
            else:
                self._completed.append(spec.model)
            self._in_progress = None
            self._on_change()


def _spec(model: DefaultModel) -> ModelSpec:
    return ModelSpec(
        model=model.model_id,
        harness=model.harness,
        devices=tuple(DeviceIndex(index) for index in model.devices or ()),
        quant=model.quant,
        tensor_parallel=model.tensor_parallel,
        pipeline_parallel=model.pipeline_parallel,
        vram_bytes=None if model.vram_mb is None else bytes_from_mib(model.vram_mb),
        engine=model.engine,
        bounds=Bounds(
            max_in_flight=model.max_in_flight,
            max_queue=model.max_queue,
            max_wait_s=model.max_wait_s,
            max_share=model.max_share,
        ),
    )
