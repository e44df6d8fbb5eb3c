"""Waiting on a caller's behalf, with a sign of life now and then."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from cortex_core.errors import ModelLoadingError
from cortex_core.ids import ModelId
from cortex_core.replica import LoadProgress
from cortex_core.routing.route import Decision, Refuse, Serve, Wait
from cortex_core.server.clock import Clock
from cortex_core.server.exchange import ClientGoneError
from cortex_core.units import mib_from_bytes
from cortex_gateway.ports import Store

FIRST_HEARTBEAT_S = 0.5
"""When a held caller first sees that it is heard; promised within a second."""

MAX_RETRY_AFTER_S = 60.0
"""Bound on advice that comes from an estimate; openai-py does not retry at all above 120 s."""

Beat = Callable[[str, bool], Awaitable[None]]
"""Shows the caller a line of text; the second says whether a load is what it waits for."""


class Hold:
    """Waits, for a request that has had its turn and failed, until another replica is there.

    Args:
        store: the fleet; the wait is counted there as demand, which has the model loaded.
        clock: monotonic seconds.
        heartbeat_s: seconds between signs of life after the first.
    """

    def __init__(self, store: Store, clock: Clock, heartbeat_s: float) -> None:
        self._store = store
        self._clock = clock
        self._heartbeat_s = heartbeat_s

    async def wait(
        self, model: ModelId, ask: Callable[[], Decision], deadline: float, beat: Beat | None
    ) -> Serve | Refuse:
        """Ask with every new snapshot until the decision is no `Wait`.

        Args:
            model: what is waited for.
            ask: takes the decision from the newest snapshot.
            deadline: by the clock.
            beat: called after `FIRST_HEARTBEAT_S`, then every `heartbeat_s`; `None` holds
                silently.

        Raises:
            ModelLoadingError: the deadline has come.
        """
        beat_at = math.inf
        if beat is not None:
            beat_at = self._clock.now() + min(FIRST_HEARTBEAT_S, self._heartbeat_s)
        with self._store.demand(model):
            while True:
                revision = self._store.state.revision
                decision = ask()
                if not isinstance(decision, Wait):
                    return decision
                now = self._clock.now()
                if now >= deadline:
                    raise too_late(decision, None)
                if beat is not None and now >= beat_at:
                    await beat(describe(decision), decision.is_load)
                    beat_at = now + self._heartbeat_s
                # A decision may also change with time alone, when a cool-down ends.
                wake_at = min(deadline, now + FIRST_HEARTBEAT_S, beat_at)
                await self._changed(revision, wake_at - now)

    async def _changed(self, revision: int, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._store.changed(revision)
        except TimeoutError:
            pass


class Pulse:
    """Calls `beat` every `interval_s` from a task of its own while a block waits.

    Nothing is started before the first interval has passed, so that a quick answer costs one
    timer.
    """

    def __init__(self, beat: Beat, interval_s: float, text: str) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._text = text
        self._group = asyncio.TaskGroup()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_beating = False
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        # The block's own error is not the group's to wrap.
        await self._group.__aexit__(None, None, None)

    async def stop(self) -> None:
        """Return when no beat is under way and none will come."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            # A beat is let finish: cut in two, it could lose the head of the answer.
            if not self._is_beating:
                self._task.cancel()
            await asyncio.wait((self._task,))

    def _start(self) -> None:
        self._task = self._group.create_task(self._run())

    async def _run(self) -> None:
        try:
            while not self._is_stopped:
                self._is_beating = True
                await self._beat(self._text, False)
                self._is_beating = False
                if not self._is_stopped:
                    await asyncio.sleep(self._interval_s)
        except ClientGoneError:
            # The caller has left; its own task is told by other means.
            return


def describe(wait: Wait) -> str:
    """Return one line on how far the load is that a request waits for."""
    progress = wait.progress
    if progress is None:
        return f"waiting for {wait.model}: {wait.reason}"
    parts = [f"loading {wait.model}: {progress.stage}"]
    if progress.done_bytes is not None and progress.total_bytes:
        done, total = (mib_from_bytes(n) for n in (progress.done_bytes, progress.total_bytes))
        parts.append(f"{done} of {total} MiB")
    if progress.eta_s is not None:
        parts.append(f"about {round(progress.eta_s)} s left")
    return ", ".join(parts)


def too_late(wait: Wait, expected_s: float | None) -> ModelLoadingError:
    """Return what a caller is told whose time is up.

    Args:
        wait: what it waited for.
        expected_s: how long that will still take, where its own progress does not say.
    """
    return ModelLoadingError(
        f"{wait.model!r} is not ready yet ({wait.reason}); try again later",
        retry_after_s=_advice(wait.progress, expected_s),
    )


def _advice(progress: LoadProgress | None, expected_s: float | None) -> float | None:
    if progress is not None and progress.eta_s is not None:
        expected_s = progress.eta_s
    return None if expected_s is None else min(max(expected_s, 1.0), MAX_RETRY_AFTER_S)
