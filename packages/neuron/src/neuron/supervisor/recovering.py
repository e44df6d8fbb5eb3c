"""Bringing back engines that failed: after a while, again and again, until it is too often."""

import asyncio
import logging
from collections.abc import Callable

from cortex_core.errors import InternalError, ModelLoadFailedError, RequestError
from cortex_core.harness import ModelSpec
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.events import EngineDied, Event, RecoveryFailed, Retry
from neuron.lifecycle.recovery import (
    Attempt,
    FailureKind,
    Failures,
    Key,
    Limits,
    kind_of_error,
    quarantine_s,
)
from neuron.lifecycle.replica import ReplicaState
from neuron.supervisor.life import Life, Refusal
from neuron.supervisor.parts import Parts
from neuron.supervisor.procedures import Procedures, interrupted_error

logger = logging.getLogger(__name__)


class Recovering:
    """The one owner of the record of failures; what was given up is kept in the notes.

    Args:
        parts: what it needs.
        procedures: bring engines up.
        apply: takes the events that say what came of it.
    """

    def __init__(
        self, parts: Parts, procedures: Procedures, apply: Callable[[Life, Event], None]
    ) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._procedures = procedures
        self._apply = apply
        self._failures = Failures()
        self._limits = Limits(
            most=parts.settings.recovery_failures, window_s=parts.settings.recovery_window_s
        )

    def check(self, spec: ModelSpec, state: ReplicaState | None) -> None:
        """Let through what may be loaded although nobody in person asks for it.

        Args:
            spec: what to load.
            state: of the model now.

        Raises:
            ModelLoadFailedError: it was given up, and for how long that holds.
        """
        noted = self._parts.notebook.notes.find_given_up(spec)
        if noted is None:
            return
        left_s = quarantine_s(noted, self._clock.wall(), self._limits)
        if left_s > 0:
            reason = (state.error if state is not None else None) or noted.reason
            raise ModelLoadFailedError(
                f"{spec.model!r} failed too often here; load it by hand on this node: {reason}",
                retry_after_s=left_s,
            )

    def forget(self, spec: ModelSpec) -> None:
        """Count the failures of a model from nothing again."""
        self._failures = self._failures.without(Key.of(spec))
        notebook = self._parts.notebook
        notes = notebook.notes.without_given_up(spec)
        if notes is not notebook.notes:
            notebook.change(notes)

    def died(self, life: Life, error: str, kind: FailureKind, *, is_wanted: bool) -> None:
        """Decide what becomes of a model whose engine is of no use any more.

        Args:
            life: of the engine.
            error: short reason.
            kind: of the failure.
            is_wanted: whether engines are brought back at all now.
        """
        logger.error(
            "engine died", extra={"model": life.model, "kind": kind.value, "reason": error}
        )
        self._parts.metrics.deaths.labels(kind.value).inc()
        self._parts.trusting.failed(life.state.devices, life.model, kind)
        # Where there is no device for it, the model has not failed, and it is not tried again.
        is_wanted = is_wanted and self._parts.memory.hopeless(life.state.asked) is None
        attempt = self._next(life, error) if is_wanted else None
        # It tells of one that is gone for good, because it was asleep.
        life.refusal = Refusal(reason=error, kind=kind)
        died = EngineDied(
            error=self._told(error, attempt) if is_wanted else error,
            kind=kind,
            now=self._clock.now(),
            retry=self._retry(attempt),
        )
        self._apply(life, died)

    def give_up(self, life: Life, reason: str) -> None:
        """End a recovery, because no device is left that the model could come back on."""
        logger.warning("recovery given up", extra={"model": life.model, "reason": reason})
        self._parts.metrics.recoveries.labels("given_up").inc()
        given_up = RecoveryFailed(
            error=reason, kind=FailureKind.CUDA, now=self._clock.now(), retry=None
        )
        self._apply(life, given_up)
        self._procedures.cancel(life)

    def begin(self, life: Life, dead: Life, attempt: Attempt) -> None:
        """Bring back the engine of `life`, once what is left of the `dead` one is gone."""
        life.accepted.set()
        work = self._recover(life, dead, attempt)
        life.tasks.append(self._parts.spawn(work, f"recover {life.model}"))

    async def _recover(self, life: Life, dead: Life, attempt: Attempt) -> None:
        began = failed_at = self._clock.now()
        try:
            await dead.gone.wait()
            while True:
                wait_s = failed_at + attempt.delay_s - self._clock.now()
                await self._clock.sleep(max(0.0, wait_s))
                error = await self._try(life)
                if error is None:
                    break
                failed_at = self._clock.now()
                again = self._failed_again(life, error)
                if again is None:
                    self._give_up(life, error)
                    return
                attempt = again
        except asyncio.CancelledError:
            self._procedures.end_load(life, interrupted_error(life, "recovering"), "cancelled")
            raise
        if life.state.status is ReplicaStatus.LOADED:
            recovery_s = self._clock.now() - began
            self._parts.metrics.recoveries.labels("ok").inc()
            self._parts.metrics.recovery_seconds.observe(recovery_s)
            logger.info(
                "model recovered",
                extra={
                    "model": life.model,
                    "recovery_s": round(recovery_s, 3),
                    "attempts": attempt.number,
                },
            )

    async def _try(self, life: Life) -> RequestError | None:
        """Make one attempt, and return why it came to nothing."""
        error: RequestError
        try:
            life.engine = await self._procedures.load_engine(life)
        except RequestError as raised:
            error = raised
        except Exception:
            logger.exception("recovery failed", extra={"model": life.model})
            error = InternalError()
        else:
            await self._procedures.keep(life, life.engine)
            return None
        self._procedures.let_go(life, "failed")
        return error

    def _failed_again(self, life: Life, error: RequestError) -> Attempt | None:
        attempt, kind = self._next(life, error.message), kind_of_error(error)
        self._parts.trusting.failed(life.state.devices, life.model, kind)
        self._parts.metrics.recoveries.labels("failed" if attempt else "given_up").inc()
        logger.warning(
            "model not recovered",
            extra={
                "model": life.model,
                "reason": error.message,
                "next_s": attempt.delay_s if attempt else None,
            },
        )
        failed = RecoveryFailed(
            error=self._told(error.message, attempt),
            kind=kind,
            now=self._clock.now(),
            retry=self._retry(attempt),
        )
        self._apply(life, failed)
        return attempt

    def _give_up(self, life: Life, error: RequestError) -> None:
        life.gone.set()
        life.fail_loaded(ModelLoadFailedError(life.state.error or error.message))

    def _next(self, life: Life, reason: str) -> Attempt | None:
        key, now = Key.of(life.state.asked), self._clock.now()
        self._failures = self._failures.with_failure(key, now, self._limits)
        attempt = self._failures.next_attempt(key, self._limits)
        if attempt is None:
            notebook, at = self._parts.notebook, self._clock.wall()
            notebook.change(notebook.notes.with_given_up(life.state.asked, reason, at))
        return attempt

    def _retry(self, attempt: Attempt | None) -> Retry | None:
        if attempt is None:
            return None
        return Retry(attempt=attempt, at_epoch=self._clock.wall() + attempt.delay_s)

    def _told(self, reason: str, attempt: Attempt | None) -> str:
        limits = self._limits
        if attempt is not None or limits.most == 1:
            return reason
        return f"{reason}; given up after {limits.most} failures in {limits.window_s:g} s"
