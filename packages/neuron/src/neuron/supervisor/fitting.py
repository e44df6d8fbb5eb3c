"""Whether a load would work: what harness, files, devices and ledger say of it together."""

import msgspec

from cortex_core.device import Device
from cortex_core.errors import (
    InsufficientVramError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
    RequestError,
)
from cortex_core.harness import Harness, Knowledge, ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.wire.fit import CheckName, FitCheck, FitDevice, FitReport, Verdict
from neuron.lifecycle.preflight import Case, check, device_name, failures, need
from neuron.lifecycle.suggestion import suggest
from neuron.supervisor.parts import Parts


class Fitting:
    """Looks at loads before they are tried; it changes nothing.

    Args:
        parts: what loads stand on.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def report(self, asked: ModelSpec) -> FitReport:
        """Return what a load would come to, with every check.

        Raises:
            InvalidRequestError: there is no such harness here.
            ModelLoadFailedError: the harness cannot be used.
        """
        harness = self._parts.harness_for(asked)
        try:
            spec = await _checked(harness, asked)
            knowledge = await harness.study(spec)
        except (InvalidRequestError, NotFoundError, ModelLoadFailedError) as error:
            is_option = isinstance(error, InvalidRequestError) and error.param != "model_id"
            name = CheckName.OPTIONS if is_option else CheckName.WEIGHTS
            told = FitCheck(name=name.value, verdict=Verdict.FAILED.value, message=error.message)
            return FitReport(model=asked.model, ok=False, checks=(told,))
        case = self._case(asked, spec, knowledge)
        checks = check(case)
        return FitReport(
            model=asked.model,
            ok=not failures(checks),
            checks=checks,
            devices=tuple(self._device(device) for device in case.considered),
            needed=need(case),
            suggestion=suggest(case),
            capabilities=knowledge.capabilities,
            limit=knowledge.limit,
            sampling=knowledge.sampling,
        )

    async def refuse(self, asked: ModelSpec, spec: ModelSpec) -> frozenset[DeviceIndex]:
        """Raise why a load cannot work, if it cannot, else return devices that cannot run it.

        Whether there is room now is left to the ledger, which may wait for it.

        Args:
            asked: as it came.
            spec: the same, checked by its harness.

        Raises:
            InsufficientVramError: its devices are too small.
            InvalidRequestError: what was asked for is not possible.
            ModelLoadFailedError: its weights are damaged.
        """
        case = self._case(asked, spec, await self._parts.harness_for(spec).study(spec))
        failed = [one for one in failures(check(case)) if one.name != CheckName.ROOM]
        if failed:
            raise _error(case, failed[0])
        return frozenset(device.index for device in case.devices if device not in case.able)

    def _case(self, asked: ModelSpec, spec: ModelSpec, knowledge: Knowledge) -> Case:
        measured = self._parts.notebook.notes.vram_bytes(asked)
        if measured is not None:
            spec = msgspec.structs.replace(spec, vram_bytes=measured)
        return Case(
            spec=spec,
            facts=knowledge.facts,
            devices=self._parts.facts.devices,
            broken=self._parts.memory.broken,
            # Where it is here already, a load joins and takes nothing more.
            budget=self._parts.memory.budget.with_released(asked.model),
            is_measured=measured is not None,
        )

    def _device(self, device: Device) -> FitDevice:
        return FitDevice(
            index=device.index,
            name=device_name(device),
            total_bytes=device.vram_total_bytes or None,
            free_bytes=self._parts.memory.budget.free_bytes(device.index),
        )


async def _checked(harness: Harness, asked: ModelSpec) -> ModelSpec:
    """Return a checked spec, and one whose weights are still to come as it is."""
    try:
        return await harness.check(asked)
    except NotFoundError:
        return asked


def _error(case: Case, failed: FitCheck) -> RequestError:
    suggestion = suggest(case)
    nearest = "" if suggestion is None else f"; {suggestion.message}"
    message = f"{case.spec.model!r} cannot be loaded: {failed.message}{nearest}"
    if failed.name == CheckName.MEMORY:
        return InsufficientVramError(
            message,
            needed_bytes=need(case).total_bytes or 0,
            free_bytes=sum(device.vram_total_bytes for device in case.considered),
        )
    if failed.name == CheckName.FORMAT and case.facts.damage is not None:
        return ModelLoadFailedError(message)
    return InvalidRequestError(message, param=failed.name)
