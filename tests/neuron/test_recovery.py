"""Engines that fail are brought back, with patience, and given up when that is no use."""

import asyncio

import pytest
from hypothesis import given, strategies as st

from cortex_core.errors import (
    ConflictError,
    DrainingError,
    InsufficientVramError,
    InvalidRequestError,
    ModelLoadFailedError,
    NotFoundError,
    RecoveringError,
    RequestError,
)
from cortex_core.harness import ModelSpec
from cortex_core.ids import ModelId
from cortex_core.replica import ReplicaStatus
from neuron.lifecycle.notes import MAX_GIVEN_UP, GivenUp, Notes
from neuron.lifecycle.recovery import (
    LONGEST_DELAY_S,
    FailureKind,
    Failures,
    Key,
    Limits,
    kind_of_error,
    kind_of_text,
    quarantine_s,
)
from neuron.supervisor.actor import Supervisor
from tests.fakes.clock import settle
from tests.neuron.bench import Bench, outcome_of

A, B = ModelId("a"), ModelId("b")
SPEC = ModelSpec(model=A, harness="fake", vram_bytes=10)
KEYS = [Key(model=model, fingerprint=print_) for model in (A, B) for print_ in ("x", "y")]

limits = st.builds(Limits, most=st.integers(1, 7), window_s=st.floats(1.0, 1000.0))
histories = st.lists(st.tuples(st.sampled_from(KEYS), st.floats(0.0, 300.0)), max_size=40)


@given(histories, limits)
def test_delays_grow_to_a_bound_and_end_with_too_many_failures(
    history: list[tuple[Key, float]], bounds: Limits
) -> None:
    """Ours: reliability S9; what is older than the window counts no more."""
    record, now = Failures(), 0.0
    times: dict[Key, list[float]] = {key: [] for key in KEYS}
    for key, pause_s in history:
        now += pause_s
        times[key].append(now)
        record = record.with_failure(key, now, bounds)
        recent = sum(now - at < bounds.window_s for at in times[key])
        attempt = record.next_attempt(key, bounds)

        assert (attempt is None) == (recent >= bounds.most)
        if attempt is not None:
            assert attempt.number == recent
            assert attempt.delay_s == min(LONGEST_DELAY_S, 2.0 ** (recent - 1))


@given(st.floats(0.0, 2e9), limits, st.floats(-2000.0, 2000.0))
def test_what_is_given_up_is_left_alone_for_one_window(
    at: float, bounds: Limits, later_s: float
) -> None:
    """Ours: from the last failure on; never for longer, whatever becomes of the clock."""
    given_up = GivenUp(model=A, fingerprint="f", at=at, reason="no")

    left_s = quarantine_s(given_up, at + later_s, bounds)

    expected = bounds.window_s - later_s if 0 <= later_s < bounds.window_s else 0.0
    assert left_s <= bounds.window_s
    assert left_s == pytest.approx(expected, abs=1e-3) or abs(later_s) < 1e-3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_last_word_on_what_is_given_up_counts(words: list[tuple[str, bool]]) -> None:
    """Ours: a model is noted once, and not at all once it has started afresh."""
    notes, last = Notes(), dict[str, tuple[bool, float]]()
    for at, (name, is_given_up) in enumerate(words):
        spec = ModelSpec(model=ModelId(name), harness="fake")
        last[name] = (is_given_up, float(at))
        notes = (
            notes.with_given_up(spec, "no", float(at))
            if is_given_up
            else notes.without_given_up(spec)
        )

    kept = {entry.model: entry.at for entry in notes.given_up}
    assert len(kept) == len(notes.given_up)
    assert kept == {name: at for name, (is_given_up, at) in last.items() if is_given_up}


def test_what_was_given_up_is_bounded() -> None:
    """Ours: the file does not grow."""
    notes = Notes()
    for number in range(MAX_GIVEN_UP + 5):
        spec = ModelSpec(model=ModelId(f"m{number}"), harness="fake")
        notes = notes.with_given_up(spec, "no", float(number))

    assert [entry.at for entry in notes.given_up] == [float(n + 5) for n in range(MAX_GIVEN_UP)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InsufficientVramError("no", needed_bytes=2, free_bytes=1), FailureKind.OUT_OF_MEMORY),
        (NotFoundError("there are no weights for 'x'"), FailureKind.MISSING_FILE),
        (InvalidRequestError("engine.max_model_len: expected int"), FailureKind.BAD_OPTION),
        (
            InvalidRequestError("'x' cannot be loaded: Model architectures ['Y'] are not known"),
            FailureKind.UNSUPPORTED_ARCHITECTURE,
        ),
        (ModelLoadFailedError("the hub cannot be asked for 'x'"), FailureKind.NETWORK),
        (
            ModelLoadFailedError("'x' cannot be loaded: CUDA error: device-side assert"),
            FailureKind.CUDA,
        ),
        (ModelLoadFailedError("'x' is broken: it says nothing"), FailureKind.WRONG_ANSWER),
        (
            ModelLoadFailedError("'x' cannot be loaded: Error while deserializing header"),
            FailureKind.MISSING_FILE,
        ),
        (ModelLoadFailedError("a mystery"), FailureKind.UNKNOWN),
    ],
)
def test_failures_are_told_apart(error: RequestError, kind: FailureKind) -> None:
    """Ours: a closed set that programs can act upon."""
    assert kind_of_error(error) is kind


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("the engine process was killed (signal 9)", FailureKind.DIED),
        ("the machine ran out of memory: the kernel killed it", FailureKind.OUT_OF_MEMORY),
        ("CUDA out of memory. Tried to allocate 2 GiB", FailureKind.OUT_OF_MEMORY),
        ("the engine failed: could not create a memory object", FailureKind.OUT_OF_MEMORY),
        ("the engine failed: std::bad_alloc", FailureKind.OUT_OF_MEMORY),
        ("CUDA error: an illegal memory access was encountered", FailureKind.CUDA),
        ("the engine made no step for 60 s", FailureKind.HUNG),
        ("the engine process ended with status 1", FailureKind.DIED),
    ],
)
def test_deaths_are_told_apart(reason: str, kind: FailureKind) -> None:
    """Ours: likewise."""
    assert kind_of_text(reason) is kind


async def _die(bench: Bench, reason: str = "killed") -> None:
    bench.harness.engines[-1].die(reason)
    await settle()


async def test_model_whose_engine_dies_serves_again(bench: Bench) -> None:
    """Ours: reliability S9, without anybody asking; what asks meanwhile is told so."""
    await bench.load(A, 80)
    await _die(bench)

    assert bench.status(A) is ReplicaStatus.RECOVERING
    assert isinstance(await bench.ask(A), RecoveringError)
    await bench.clock.advance(1)

    state = bench.supervisor.state(A)
    assert (state.status, state.error, state.retry) == (ReplicaStatus.LOADED, None, None)
    assert bench.harness.engines[0].is_closed
    assert bench.held() == [80, 0]
    told = list(dict.fromkeys(status for _, status in bench.changes))
    assert told == ["loading", "loaded", "recovering"]


async def test_engine_comes_back_only_when_the_dead_one_is_gone(bench: Bench) -> None:
    """Ours: its memory is waited for, and loads that ask meanwhile join."""
    await bench.load(A, 80)
    bench.harness.engines[0].may_close.clear()
    await _die(bench)
    joined = bench.tasks.create_task(bench.load(A, 80))
    await bench.clock.advance(0.9)
    assert len(bench.harness.specs) == 1

    bench.harness.engines[0].may_close.set()
    await bench.clock.advance(1)
    await joined

    assert bench.status(A) is ReplicaStatus.LOADED
    assert len(bench.harness.specs) == 2


async def test_attempts_that_fail_are_made_further_and_further_apart_and_end(
    bench: Bench,
) -> None:
    """Ours: 1, 2, 4, 8 s; the fifth failure in ten minutes is the last, and says its kind."""
    await bench.load(A)
    bench.harness.check_error = ModelLoadFailedError("'a' is broken: it says nothing")
    await _die(bench)
    joined = bench.tasks.create_task(outcome_of(bench.load(A)))
    at = []
    for _ in range(40):
        before = len(bench.harness.specs)
        await bench.clock.advance(0.5)
        if len(bench.harness.specs) > before:
            at.append(bench.clock.now())

    assert at == [1.0, 3.0, 7.0, 15.0]
    state = bench.supervisor.state(A)
    assert (state.status, state.error_kind) == (ReplicaStatus.FAILED, FailureKind.WRONG_ANSWER)
    assert "given up after 5 failures in 600 s" in (state.error or "")
    assert isinstance(await joined, ModelLoadFailedError)
    assert bench.held() == [0, 0]
    assert all(engine.is_closed for engine in bench.harness.engines)


async def test_recovery_that_is_given_up_before_it_has_begun_ends(bench: Bench) -> None:
    """Ours: the engine dies, and in the same round of the event loop somebody unloads it."""
    await bench.load(A, 80)
    bench.harness.engines[0].die("killed")
    for _ in range(1000):
        if bench.status(A) is ReplicaStatus.RECOVERING:
            break
        await asyncio.sleep(0)
    await bench.supervisor.unload(A, 0)

    assert bench.supervisor.states() == ()
    assert bench.held() == [0, 0]


async def _give_up(bench: Bench) -> None:
    await bench.load(A)
    for _ in range(5):
        await _die(bench)
        await bench.clock.advance(20)
    assert bench.status(A) is ReplicaStatus.FAILED


async def test_programs_do_not_load_what_was_given_up(bench: Bench) -> None:
    """Ours: an engine that loads and dies with the first request would go on for ever."""
    await _give_up(bench)

    error = await outcome_of(_automatic(bench))

    assert isinstance(error, ModelLoadFailedError)
    assert error.retry_after_s == pytest.approx(580.0)
    await bench.clock.advance(580)
    assert await outcome_of(_automatic(bench)) is None


async def test_restart_does_not_forget_what_was_given_up(bench: Bench) -> None:
    """Ours: it would be loaded, and fail, as often again; by hand it starts afresh."""
    await _give_up(bench)
    again = Supervisor(bench.parts, lambda *_: None)

    with pytest.raises(ModelLoadFailedError, match="killed"):
        await again.load(SPEC, is_automatic=True)
    life = await again.load(SPEC)
    await asyncio.shield(life.loaded)

    assert bench.notebook.notes.given_up == ()
    await again.close()


async def _automatic(bench: Bench) -> None:
    life = await bench.supervisor.load(SPEC, is_automatic=True)
    await asyncio.shield(life.loaded)


async def test_load_by_hand_starts_afresh(bench: Bench) -> None:
    """Ours: whoever asks in person has mended something."""
    await _give_up(bench)
    await bench.load(A)
    await _die(bench)
    assert bench.status(A) is ReplicaStatus.RECOVERING

    await bench.clock.advance(1)

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_other_options_are_counted_apart(bench: Bench) -> None:
    """Ours: what fails with one set of options may do with another."""
    await _give_up(bench)
    other = ModelSpec(model=A, harness="fake", vram_bytes=10, engine={"x": 1})

    life = await bench.supervisor.load(other, is_automatic=True)
    await asyncio.shield(life.loaded)

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_memory_that_is_gone_meanwhile_is_a_failed_attempt(bench: Bench) -> None:
    """Ours: the model is not forgotten, and comes back when there is room."""
    await bench.load(A, 80)
    await bench.load(B, 80)
    await _die(bench)
    await bench.clock.advance(0.5)
    # The memory is free for a moment, and somebody is quick.
    bench.harness.engines[-1].may_close.set()
    await bench.load(ModelId("c"), 20)
    await bench.load(ModelId("d"), 80)
    await bench.clock.advance(1)
    state = bench.supervisor.state(B)
    assert (state.status, state.error_kind) == (
        ReplicaStatus.RECOVERING,
        FailureKind.OUT_OF_MEMORY,
    )

    await bench.supervisor.unload(ModelId("d"), 0)
    await bench.clock.advance(2)

    assert bench.status(B) is ReplicaStatus.LOADED


@pytest.mark.parametrize("is_loading", [True, False])
async def test_unload_ends_a_recovery(bench: Bench, is_loading: bool) -> None:
    """Ours: whether it waits or is under way; joiners are told, and the memory is free."""
    await bench.load(A)
    bench.harness.may_load.clear()
    bench.harness.engines[0].may_close.clear()
    await _die(bench)
    joined = bench.tasks.create_task(outcome_of(bench.load(A)))
    await bench.clock.advance(2.0 if is_loading else 0.5)
    unload = bench.tasks.create_task(bench.supervisor.unload(A, 0))
    await bench.clock.advance(2)
    await unload

    assert isinstance(await joined, ConflictError)
    assert (bench.supervisor.states(), bench.held()) == ((), [0, 0])
    await bench.clock.advance(100)
    assert bench.supervisor.states() == ()


async def test_going_down_ends_a_recovery(bench: Bench) -> None:
    """Ours: nobody waits for an engine that nobody will use."""
    await bench.load(A)
    await _die(bench)
    joined = bench.tasks.create_task(outcome_of(bench.load(A)))
    await settle()

    closing = bench.tasks.create_task(bench.supervisor.close())
    await bench.clock.advance(2)
    await closing

    assert isinstance(await joined, DrainingError)
    assert (bench.supervisor.states(), bench.held()) == ((), [0, 0])


async def test_engine_that_dies_while_the_neuron_drains_stays_dead(bench: Bench) -> None:
    """Ours: it would be ended in a moment."""
    await bench.load(A)
    bench.supervisor.is_draining = True
    await _die(bench)

    assert bench.status(A) is ReplicaStatus.FAILED
    assert bench.supervisor.state(A).error == "killed"


async def test_cordon_does_not_keep_a_model_from_coming_back(bench: Bench) -> None:
    """Ours: it is nothing new."""
    await bench.load(A)
    bench.notebook.change(bench.notebook.notes.with_cordon(True))
    await _die(bench)

    await bench.clock.advance(1)

    assert bench.status(A) is ReplicaStatus.LOADED


async def test_recycling_brings_back_what_was_recovering(bench: Bench) -> None:
    """Ours: new processes may be the very cure."""
    await bench.load(A)
    await _die(bench)
    recycling = bench.tasks.create_task(bench.supervisor.recycle())
    await bench.clock.advance(2)
    await recycling

    assert bench.status(A) is ReplicaStatus.LOADED
    assert len([engine for engine in bench.harness.engines if not engine.is_closed]) == 1


async def test_sleep_of_what_is_recovering_is_refused_and_a_wake_waits(bench: Bench) -> None:
    """Ours: there is nothing that could sleep; it will be awake in a moment."""
    await bench.load(A)
    await _die(bench)
    assert isinstance(await outcome_of(bench.supervisor.sleep(A, 1, 0)), ConflictError)
    wake = bench.tasks.create_task(bench.wake(A))

    await bench.clock.advance(1)
    await wake

    assert bench.status(A) is ReplicaStatus.LOADED
