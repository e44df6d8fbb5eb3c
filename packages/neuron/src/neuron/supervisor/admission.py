"""Letting requests to engines: at once, after a wait, or not at all."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

from cortex_core.errors import InvalidRequestError, OverloadedError, RequestError
from cortex_core.harness import FILES_ROUTES, EngineLoad
from cortex_core.ids import ModelId
from cortex_core.routing.queue import Ticket, cost_of
from neuron.lifecycle.line import Limits, is_pressed, is_to_be_read, limits_of
from neuron.supervisor.lease import NotAdmittedError, Wish
from neuron.supervisor.life import Life
from neuron.supervisor.parts import Parts
from neuron.supervisor.waiting import within

LOOK_AGAIN_S = 0.25
"""How often an engine without room in its KV cache is looked at: its cache empties by itself."""

Refusal = Callable[[ModelId, Life | None], RequestError | None]
"""Why requests for a model are not admitted now; `None` when they are."""


class Admission:
    """Keeps the lines of all models.

    Args:
        parts: the settings and the clock.
        refusal: see `Refusal`; the life is the one that the model has now.
        on_change: called when somebody begins or ends to wait.
    """

    def __init__(self, parts: Parts, refusal: Refusal, on_change: Callable[[Life], None]) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._refusal = refusal
        self._on_change = on_change
        self._tickets = itertools.count()

    @contextlib.asynccontextmanager
    async def place(self, life: Life, wish: Wish) -> AsyncIterator[None]:
        """Wait for a place with the engine of `life`, and keep it while the context is open.

        Raises:
            NotAdmittedError: there is none, or the model stopped to take requests.
        """
        if wish.route in FILES_ROUTES:
            # Its tokenizer answers those.
            yield
            return
        now = self._clock.now()
        # Callers choose their requests' ids, and may give the same one twice.
        ticket = Ticket(
            id=str(next(self._tickets)),
            caller=wish.caller,
            priority=wish.priority,
            cost=cost_of(len(wish.body)),
            entered_at=now,
        )
        try:
            is_placed = life.door.line.enter(ticket, self._limits(life), _load(life), now)
        except OverloadedError as error:
            raise NotAdmittedError(error) from None
        try:
            if not is_placed:
                await self._wait(life, ticket, wish)
            waited_s = self._clock.now() - now
            self._parts.metrics.queue_seconds.labels(life.model).observe(waited_s)
            yield
        finally:
            life.door.waiters.pop(ticket.id, None)
            life.door.line.leave(ticket.id, self._clock.now())
            self.let_in(life)

    def let_in(self, life: Life) -> None:
        """Give places that are free to who is next."""
        door = life.door
        if not door.line.waiting or self._refusal(life.model, life) is not None:
            return
        limits = self._limits(life)
        while (ticket := door.line.next(limits, _load(life))) is not None:
            door.grant(ticket.id)
        self._look_out(life)

    def review(self, life: Life) -> None:
        """Send all waiters away if the model takes no requests any more."""
        if not life.door.waiters:
            return
        refused = self._refusal(life.model, life)
        if refused is not None:
            life.door.send_away(refused)

    async def _wait(self, life: Life, ticket: Ticket, wish: Wish) -> None:
        limits = self._limits(life)
        future = life.door.stand(ticket.id)
        # It is the engine's cache that it may wait for, and not the end of another request.
        self._look_out(life)
        self._on_change(life)
        try:
            if not await self._granted(life, ticket, wish, future):
                raise NotAdmittedError(
                    OverloadedError(
                        f"no place with {life.model!r} came free in {limits.max_wait_s:g} s",
                        retry_after_s=life.door.line.retry_after_s(self._clock.now()),
                    )
                )
            future.result()
        finally:
            self._on_change(life)
        # Between the grant and now the model may have stopped to take requests.
        refused = self._refusal(life.model, life)
        if refused is not None:
            raise NotAdmittedError(refused)

    async def _granted(
        self, life: Life, ticket: Ticket, wish: Wish, future: asyncio.Future[None]
    ) -> bool:
        """Wait for the end of `future`, and say whether it came in time."""
        turn = within(self._clock, self._limits(life).max_wait_s, asyncio.wait([future]))
        info = life.state.info
        if info is None or not is_to_be_read(wish.body, info.limit.context):
            return await turn
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(life, ticket, wish))
            is_in_time = await turn
            reading.cancel()
        return is_in_time

    async def _read(self, life: Life, ticket: Ticket, wish: Wish) -> None:
        """Have the engine refuse a request that can never fit, while it waits."""
        if life.engine is None:
            return
        try:
            await life.engine.check_request(wish.route, wish.body)
        except InvalidRequestError as error:
            life.door.refuse(ticket.id, error)
        except RequestError:
            # What is wrong with the engine is found out by whoever gets to it.
            return

    def _look_out(self, life: Life) -> None:
        """Have the engine looked at again, if somebody waits for room in its cache."""
        door = life.door
        if door.line.waiting and is_pressed(_load(life)) and door.looking is None:
            work = self._look_again(life)
            door.looking = self._parts.spawn(work, f"look for room with {life.model}")

    async def _look_again(self, life: Life) -> None:
        try:
            while life.door.line.waiting and is_pressed(_load(life)):
                await self._clock.sleep(LOOK_AGAIN_S)
        finally:
            life.door.looking = None
        self.let_in(life)

    def _limits(self, life: Life) -> Limits:
        info = life.state.info
        engine = None if info is None else info.max_in_flight
        return limits_of(self._parts.settings.admission, life.state.asked.bounds, engine)


def _load(life: Life) -> EngineLoad:
    return EngineLoad() if life.engine is None else life.engine.load()
