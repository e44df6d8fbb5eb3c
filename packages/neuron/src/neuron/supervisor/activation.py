"""Loading what is wanted from the start, one after the other, once the neuron answers."""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from cortex_core.errors import HubUnreachableError, RequestError
from cortex_core.harness import Bounds, ModelSpec
from cortex_core.ids import DeviceIndex, ModelId
from cortex_core.server.clock import Clock
from cortex_core.units import bytes_from_mib
from cortex_core.wire.neuron import Activation, ActivationFailure
from neuron.lifecycle.restoring import retry_s
from neuron.settings import DefaultModel
from neuron.supervisor.actor import Supervisor

logger = logging.getLogger(__name__)


class _Retry(msgspec.Struct, frozen=True, kw_only=True):
    """What is tried again."""

    spec: ModelSpec
    tried: int
    at: float
    """Monotonic seconds."""


class Activator:
    """Loads what `[[default_models]]` says; a failure is listed and the next one tried.

    What cannot be downloaded because the hub is out of reach is tried again, for as long as the
    neuron lives: a machine may be up before its network is.

    Args:
        models: in the order in which they are loaded.
        supervisor: loads them.
        on_change: called after every step.
        clock: times further attempts.
        restored: loaded after them, because they were here before a restart.
    """

    def __init__(
        self,
        models: tuple[DefaultModel, ...],
        supervisor: Supervisor,
        on_change: Callable[[], None],
        clock: Clock,
        restored: tuple[ModelSpec, ...] = (),
    ) -> None:
        self._restored = restored
        self._pending = [*(spec_of(model) for model in models), *restored]
        self._supervisor = supervisor
        self._on_change = on_change
        self._clock = clock
        self._in_progress: ModelSpec | None = None
        self._completed: list[str] = []
        self._failed: dict[ModelId, str] = {}
        self._retries: list[_Retry] = []
        self._is_through = not self._pending

    @property
    def state(self) -> Activation:
        """How far it is."""
        return Activation(
            state="ready" if self._is_through else "pre_warming",
            pending=tuple(spec.model for spec in self._pending),
            in_progress=None if self._in_progress is None else self._in_progress.model,
            completed=tuple(self._completed),
            failed=tuple(self._failure(model, error) for model, error in self._failed.items()),
        )

    def to_come(self) -> tuple[ModelSpec, ...]:
        """Return what was here before a restart and is not loaded again yet."""
        later = (retry.spec for retry in self._retries)
        wanted = (self._in_progress, *self._pending, *later)
        return tuple(spec for spec in wanted if spec in self._restored)

    async def run(self) -> None:
        """Load all, try again what the network kept from being loaded, and return."""
        while self._pending and not self._supervisor.is_draining:
            await self._load(self._pending.pop(0), tried=1)
        self._is_through = True
        self._on_change()
        while self._retries and not self._supervisor.is_draining:
            retry = min(self._retries, key=lambda retry: retry.at)
            await self._clock.sleep(retry.at - self._clock.now())
            self._retries.remove(retry)
            model = retry.spec.model
            if self._supervisor.has(model):
                await self._load(retry.spec, tried=retry.tried + 1)
            else:
                # Somebody has unloaded it meanwhile, and does not want it.
                self._failed.pop(model, None)

    async def _load(self, spec: ModelSpec, tried: int) -> None:
        self._in_progress = spec
        self._on_change()
        try:
            is_restored = spec in self._restored
            life = await self._supervisor.load(spec, was_here=is_restored, is_automatic=is_restored)
            # Shielded: others may wait for the same load when the activation is stopped.
            await asyncio.shield(life.loaded)
        except RequestError as error:
            if isinstance(error, HubUnreachableError):
                at = self._clock.now() + retry_s(tried)
                self._retries.append(_Retry(spec=spec, tried=tried, at=at))
            self._failed[spec.model] = error.message
            logger.warning(
                "model not loaded at the start",
                extra={"model": spec.model, "reason": error.message, "tried": tried},
            )
        else:
            self._failed.pop(spec.model, None)
            self._completed.append(spec.model)
        self._in_progress = None
        self._on_change()

    def _failure(self, model: ModelId, error: str) -> ActivationFailure:
        now = self._clock.now()
        at = next((retry.at for retry in self._retries if retry.spec.model == model), None)
        return ActivationFailure(
            model_id=model, error=error, retry_s=None if at is None else round(max(0, at - now), 1)
        )


def spec_of(model: DefaultModel) -> ModelSpec:
    """Return how an entry of the settings is to be loaded."""
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
