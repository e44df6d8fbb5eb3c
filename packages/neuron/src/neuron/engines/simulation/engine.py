"""One simulated model: answers by arithmetic, at the times that its scheduler says."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from cortex_core.codec import decode_request, encode_json
from cortex_core.errors import ModelLoadFailedError, UnavailableError
from cortex_core.harness import (
    Capabilities,
    EngineAnswer,
    EngineLoad,
    Limit,
    ModelInfo,
    ModelSpec,
    Route,
)
from cortex_core.ids import RequestId
from cortex_core.server.clock import Clock
from cortex_core.sse import DONE
from neuron.engines.simulation.answers import Usage, Writer
from neuron.engines.simulation.nap import Nap
from neuron.engines.simulation.plan import (
    check_context,
    plan_chat,
    plan_completion,
    texts_of,
)
from neuron.engines.simulation.planned import Plan
from neuron.engines.simulation.requests import (
    CHAT_DECODER,
    COMPLETION_DECODER,
    EMBEDDING_DECODER,
)
from neuron.engines.simulation.scheduler import Job, Pace, Scheduler
from neuron.engines.simulation.text import count_tokens
from neuron.engines.simulation.tokens import EngineOptions, Tokens, options_of
from neuron.engines.simulation.vectors import (
    DEFAULT_DIMENSIONS,
    EmbeddingList,
    as_embedding,
    embed,
)
from neuron.settings import Fault, SimulatedSettings


class SimulatedEngine:
    """One loaded model; made by `SimulatedHarness.load`."""

    def __init__(
        self, spec: ModelSpec, settings: SimulatedSettings, fault: Fault, clock: Clock
    ) -> None:
        options = options_of(spec)
        self._clock = clock
        self.info = info_of(spec, settings)
        self.takes_adapters = options.enable_lora
        self._tokens = Tokens(spec, settings)
        self._context = self._tokens.context
        self._embeds = self._tokens.embeds
        self._settings = settings
        self._scheduler = Scheduler(clock, _pace(settings, options, fault))
        self._task: asyncio.Task[None] | None = None
        self._dead = asyncio.Event()
        self.is_closed = False
        self._model = spec.model
        self._nap = Nap(spec.vram_bytes or 0, settings, fault, clock)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start making tokens."""
        self._task = tasks.create_task(self._run(), name="simulated-engine")

    @property
    def failure(self) -> str | None:
        """Why it is dead; `None` while it lives."""
        return self._scheduler.failure

    @property
    def generated_tokens(self) -> int:
        """Tokens that it made in all."""
        return self._scheduler.generated_tokens

    @property
    def process_ids(self) -> frozenset[int]:
        """None: it runs in this process."""
        return frozenset()

    async def serve(
        self, route: Route, body: bytes, request_id: RequestId, urgency: int = 0
    ) -> EngineAnswer:
        """Answer one request; none is more urgent than another."""
        if self._nap.level is not None:
            raise UnavailableError(f"{self._model!r} sleeps")
        match route:
            case Route.CHAT_COMPLETIONS if not self._embeds:
                chat = decode_request(body, CHAT_DECODER)
                plan = plan_chat(chat, self._context)
                return await self._answer(plan, bool(chat.stream), chat.model, request_id)
            case Route.COMPLETIONS if not self._embeds:
                completion = decode_request(body, COMPLETION_DECODER)
                plan = plan_completion(completion, self._context)
                return await self._answer(
                    plan, bool(completion.stream), completion.model, request_id
                )
            case Route.EMBEDDINGS if self._embeds:
                return await self._embed(body)
            case _:
                return EngineAnswer(body=self._tokens.answer(route, body))

    async def check_request(self, route: Route, body: bytes) -> None:
        """Read a request and plan its answer."""
        match route:
            case Route.CHAT_COMPLETIONS if not self._embeds:
                plan_chat(decode_request(body, CHAT_DECODER), self._context)
            case Route.COMPLETIONS if not self._embeds:
                plan_completion(decode_request(body, COMPLETION_DECODER), self._context)
            case _:
                pass

    def load(self) -> EngineLoad:
        """Return how busy it is."""
        settings = self._settings
        return EngineLoad(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            unfinished=self._scheduler.running + self._scheduler.waiting,
            steps=self._scheduler.steps,
            prefill_tok_per_s=settings.prefill_tok_per_s,
            decode_tok_per_s=settings.decode_tok_per_s * self._scheduler.running,
        )

    async def failed(self) -> str:
        """Wait until it dies by its fault."""
        await self._dead.wait()
        return self.failure or "the engine died"

    async def is_compiling(self) -> bool:
        """Return that it does not."""
        return False

    async def kill(self, reason: str) -> None:
        """Die."""
        self._scheduler.die(reason)

    async def check_answer(self) -> None:
        """Fail where the fault says so."""
        if not self._nap.answers_rightly:
            raise ModelLoadFailedError(f"{self._model!r} answers wrongly, as its fault says")

    async def sleep(self, level: int) -> None:
        """Take the time that it takes to fall asleep."""
        await self._nap.begin(level)

    async def wake(self) -> None:
        """Take the time that it takes to wake."""
        await self._nap.end()

    async def close(self, timeout_s: float) -> None:
        """Let requests finish for up to `timeout_s` of the clock, then stop."""
        if timeout_s > 0:
            await self._idle_within(timeout_s)
        self._scheduler.die("the model was unloaded")
        self.is_closed = True
        if self._task is not None:
            self._task.cancel()

    async def _idle_within(self, timeout_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            waits = (
                tasks.create_task(self._scheduler.idle()),
                tasks.create_task(self._clock.sleep(timeout_s)),
            )
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def _run(self) -> None:
        try:
            await self._scheduler.run()
        finally:
            if not self.is_closed:
                self._dead.set()

    async def _answer(
        self, plan: Plan, is_stream: bool, model: str, request_id: RequestId
    ) -> EngineAnswer:
        writer = Writer(plan, request_id, int(self._clock.wall()), model)
        if not is_stream:
            with contextlib.ExitStack() as stack:
                for job in self._jobs(plan, stack):
                    await job.complete()
            return EngineAnswer(body=writer.whole())
        stream = self._stream(plan, writer)
        # The first token is awaited here, so that an engine that dies before it can still be
        # answered with a status.
        first = await anext(stream)
        return EngineAnswer(body=_Primed(first, stream), content_type="text/event-stream")

    def _jobs(self, plan: Plan, stack: contextlib.ExitStack) -> list[Job]:
        return [
            stack.enter_context(self._scheduler.job(choice.prompt_tokens, choice.made_tokens))
            for choice in plan.choices
        ]

    async def _stream(self, plan: Plan, writer: Writer) -> AsyncGenerator[bytes, None]:
        made = 0
        with contextlib.ExitStack() as stack:
            jobs = self._jobs(plan, stack)
            for position in range(max(choice.made_tokens for choice in plan.choices) + 1):
                for index, (job, choice) in enumerate(zip(jobs, plan.choices, strict=True)):
                    if position < choice.made_tokens:
                        await job.next_token()
                        made += 1
                    parts = [] if position else writer.opening(index)
                    if position < choice.made_tokens:
                        parts.extend(writer.token(index, position))
                    elif position == choice.made_tokens:
                        parts.append(writer.closing(index))
                    for part in parts:
                        yield writer.chunk(part, made)
        if plan.has_usage:
            yield writer.usage_chunk(made)
        yield DONE

    async def _embed(self, body: bytes) -> EngineAnswer:
        request = decode_request(body, EMBEDDING_DECODER)
        texts = texts_of(request.input, "input")
        counts = [count_tokens(text) for text in texts]
        for count in counts:
            check_context(count, self._context)
        with self._scheduler.job(sum(counts), 1) as job:
            await job.complete()
        dimensions = request.dimensions or DEFAULT_DIMENSIONS
        encoding = request.encoding_format or "float"
        answer = EmbeddingList(
            data=tuple(
                as_embedding(index, embed(text, dimensions), encoding)
                for index, text in enumerate(texts)
            ),
            model=request.model,
            usage=Usage(prompt_tokens=sum(counts), total_tokens=sum(counts)),
        )
        return EngineAnswer(body=encode_json(answer))


class _Primed:
    """A stream whose first chunk is there already; closing it closes the rest."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


def info_of(spec: ModelSpec, settings: SimulatedSettings) -> ModelInfo:
    """Return what an engine for `spec` says of itself; its options are right."""
    tokens = Tokens(spec, settings)
    embeds, context = tokens.embeds, tokens.context
    return ModelInfo(
        capabilities=Capabilities(
            chat=not embeds,
            completions=not embeds,
            tools=not embeds,
            reasoning=not embeds,
            embeddings=embeds,
            sleep=settings.can_sleep,
        ),
        limit=Limit(context=context, output=None if embeds else context - 1),
        vram_bytes=spec.vram_bytes,
        sleep_bytes=spec.vram_bytes,
        max_in_flight=options_of(spec).max_num_seqs or settings.max_in_flight,
    )


def _pace(settings: SimulatedSettings, options: EngineOptions, fault: Fault) -> Pace:
    return Pace(
        prefill_tok_per_s=settings.prefill_tok_per_s / fault.slow,
        decode_tok_per_s=settings.decode_tok_per_s / fault.slow,
        max_in_flight=options.max_num_seqs or settings.max_in_flight,
        die_after_tokens=fault.die_after_tokens,
        hangs=fault.hang,
    )
