"""Continuous batching by arithmetic: when every token of every request is there."""

import asyncio
import contextlib
from collections.abc import Iterator

import msgspec

from cortex_core.errors import EngineError
from cortex_core.server.clock import Clock


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast an engine is."""

    prefill_tok_per_s: float
    decode_tok_per_s: float
    """Of each running request."""
    max_in_flight: int
    """Requests that run together; more wait in order."""
    die_after_tokens: int | None = None
    """The engine dies when it has generated so many tokens in all."""
    hangs: bool = False
    """Requests are taken and never answered."""


class Job:
    """One sequence in the scheduler; made by `Scheduler.job`."""

    def __init__(self, prompt_tokens: int, budget_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.budget_tokens = budget_tokens
        self.made_tokens = 0
        self._taken_tokens = 0
        self._error: str | None = None
        self._changed = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether all its tokens are made."""
        return self.made_tokens >= self.budget_tokens

    async def next_token(self) -> None:
        """Wait for the next token; tokens made meanwhile are not lost.

        Raises:
            EngineError: the engine died first.
        """
        while self._taken_tokens >= self.made_tokens:
            if self._error is not None:
                raise EngineError(self._error)
            self._changed.clear()
            await self._changed.wait()
        self._taken_tokens += 1

    async def complete(self) -> None:
        """Wait for all tokens.

        Raises:
            EngineError: the engine died first.
        """
        while self._taken_tokens < self.budget_tokens:
            await self.next_token()

    def advance(self) -> None:
        """Add one token."""
        self.made_tokens += 1
        self._changed.set()

    def fail(self, reason: str) -> None:
        """End it with an error after the tokens that are made."""
        self._error = reason
        self._changed.set()


class Scheduler:
    """One loop that makes one token for every running job per step.

    A step takes the time of one decode step and of the prefills of the jobs that joined in it,
    one prompt after the other. Jobs join in order of arrival.
    """

    def __init__(self, clock: Clock, pace: Pace) -> None:
        self._clock = clock
        self._pace = pace
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._changed = asyncio.Event()
        self.generated_tokens = 0
        self.steps = 0
        self.failure: str | None = None

    @property
    def running(self) -> int:
        """Jobs that get tokens."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a place."""
        return len(self._waiting)

    @contextlib.contextmanager
    def job(self, prompt_tokens: int, budget_tokens: int) -> Iterator[Job]:
        """Run a job for as long as the context is open; leaving it early aborts the job.

        Raises:
            EngineError: the engine is dead.
        """
        if self.failure is not None:
            raise EngineError(self.failure)
        job = Job(prompt_tokens, budget_tokens)
        self._waiting.append(job)
        self._changed.set()
        try:
            yield job
        finally:
            self._forget(job)

    async def run(self) -> None:
        """Make tokens until the engine dies or the call is cancelled."""
        due = self._clock.now()
        while self.failure is None:
            joined = self._join()
            if not self._running or self._pace.hangs:
                self._changed.clear()
                await self._changed.wait()
                due = self._clock.now()
                continue
            due += self._step_s(joined)
            await self._clock.sleep(max(0.0, due - self._clock.now()))
            self._make_tokens()

    async def idle(self) -> None:
        """Wait until no job is left."""
        while self._running or self._waiting:
            self._changed.clear()
            await self._changed.wait()

    def die(self, reason: str) -> None:
        """End every job with an error and take no more."""
        self.failure = self.failure or reason
        for job in (*self._running, *self._waiting):
            job.fail(self.failure)
        self._running.clear()
        self._waiting.clear()
        self._changed.set()

    def _join(self) -> list[Job]:
        room = self._pace.max_in_flight - len(self._running)
        joined, self._waiting = self._waiting[:room], self._waiting[room:]
        self._running.extend(joined)
        return joined

    def _step_s(self, joined: list[Job]) -> float:
        prefill_tokens = sum(job.prompt_tokens for job in joined)
        return prefill_tokens / self._pace.prefill_tok_per_s + 1 / self._pace.decode_tok_per_s

    def _make_tokens(self) -> None:
        self.steps += 1
        limit = self._pace.die_after_tokens
        for job in tuple(self._running):
            if limit is not None and self.generated_tokens >= limit:
                self.die(f"the engine died after {limit} tokens, as its fault says")
                return
            job.advance()
            self.generated_tokens += 1
            if job.is_complete:
                self._forget(job)

    def _forget(self, job: Job) -> None:
        for queue in (self._running, self._waiting):
            if job in queue:
                queue.remove(job)
        self._changed.set()
