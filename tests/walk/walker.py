"""Commands in random order to one neuron, and what must hold whatever their order was."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import httpx
import msgspec

from cortex_core.sse import SseDecoder
from cortex_core.wire.neuron import ModelReport, Snapshot

ANSWER_S = 120.0
"""A bound on one command, on a machine that is busy."""

SETTLE_S = 150.0
"""A bound on what a command may leave to be done after its answer."""

MOVING = frozenset({"loading", "unloading", "recovering", "reloading"})

STORY = [{"role": "user", "content": "Tell me a long story"}]

FINE: Mapping[str, frozenset[int]] = {
    "load": frozenset({200, 409, 507}),
    "load-later": frozenset({200, 202, 409, 507}),
    "unload": frozenset({200, 404}),
    "cut": frozenset({200, 404}),
    "cancel": frozenset({200, 404}),
    "chat": frozenset({200, 404, 500, 503}),
    "stream": frozenset({200, 404, 500, 503}),
    "hang-up": frozenset({200, 404, 500, 503}),
    "sleep": frozenset({200, 404, 409, 507}),
    "wake": frozenset({200, 404, 409, 507}),
    "kill": frozenset({0}),
}
"""Statuses with which a command may be answered. A 500 is an answer that was cut, never a bug of
ours, which has a code of its own."""

WEIGHTS: Mapping[str, int] = {
    "load": 20,
    "load-later": 6,
    "unload": 8,
    "cut": 5,
    "cancel": 5,
    "chat": 30,
    "stream": 15,
    "hang-up": 15,
    "sleep": 4,
    "wake": 4,
}
"""How often each command is drawn; most of what callers do is ask."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A neuron to walk through."""

    url: str
    harness: str
    models: Mapping[str, bool]
    """Whether each can chat, by id; the others make vectors."""
    engines: Callable[[], int] | None = None
    """Counts the engine processes; `None` where engines are none."""
    kill: Callable[[], None] = lambda: None
    """Ends an engine process, if there is one, for the command `kill`."""
    commands: Mapping[str, int] = msgspec.field(default_factory=lambda: WEIGHTS)


class Walk:
    """A walk through one neuron.

    Args:
        case: the neuron.
        seed: of the random order.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._random = random.Random(seed)
        self._threads: list[threading.Thread] = []
        self._faults: list[str] = []
        self._history: list[str] = []
        self.answers: Counter[tuple[str, int]] = Counter()
        """How often each command was answered with each status."""

    def go(self, steps: int) -> None:
        """Send so many commands and check the books after each.

        Raises:
            AssertionError: something does not hold; with the latest commands.
        """
        names, weights = zip(*self._case.commands.items(), strict=True)
        try:
            with httpx.Client(base_url=self._case.url, timeout=ANSWER_S) as http:
                for step in range(steps):
                    model = self._random.choice(list(self._case.models))
                    (command,) = self._random.choices(names, weights)
                    self._history.append(f"{command} {model}")
                    self._perform(http, command, model)
                    self._check_books(self._snapshot(http))
                    if step % 10 == 9:
                        self._settle(http)
                self._settle(http)
        except AssertionError as error:
            raise AssertionError(f"{error}; after {', '.join(self._history[-12:])}") from error
        finally:
            self._join()

    def _perform(self, http: httpx.Client, command: str, model: str) -> None:
        if command in ("chat", "stream", "hang-up"):
            self._ask(http, command, model)
            return
        load = {"model_id": model, "harness": self._case.harness}
        match command:
            case "load":
                self._post(http, command, "/models/load", load)
            case "load-later":
                self._post(http, command, "/models/load?wait=false", load)
            case "unload" | "cut":
                body = {"model_id": model, "force": command == "cut"}
                self._post(http, command, "/models/unload", body)
            case "cancel":
                self._post(http, "load-later", "/models/load?wait=false", load)
                self._post(http, command, "/models/unload", {"model_id": model})
            case "sleep" | "wake":
                self._post(http, command, f"/models/{command}", {"model_id": model})
            case "kill":
                self._case.kill()
                self._count(command, 0, "")
            case _:
                raise AssertionError(f"there is no command {command}")

    def _ask(self, http: httpx.Client, command: str, model: str) -> None:
        is_chat = self._case.models[model]
        body: dict[str, object] = {"model": model, "input": "a cat"}
        if is_chat:
            tokens = self._random.randint(1, 60)
            body = {"model": model, "messages": STORY, "max_tokens": tokens}
        path = "/v1/chat/completions" if is_chat else "/v1/embeddings"
        if command == "chat":
            self._post(http, command, path, body)
        elif command == "stream":
            self._in_background(path, {**body, "stream": is_chat})
        else:
            self._hang_up(http, path, {**body, "stream": is_chat})

    def _post(self, http: httpx.Client, command: str, path: str, body: object) -> None:
        answer = http.post(path, json=body)
        self._count(command, answer.status_code, answer.text)

    def _in_background(self, path: str, body: object) -> None:
        """Ask, and go on while it is answered."""

        def ask() -> None:
            with httpx.Client(base_url=self._case.url, timeout=ANSWER_S) as http:
                try:
                    self._post(http, "stream", path, body)
                except (httpx.HTTPError, AssertionError) as error:
                    self._faults.append(f"a stream failed: {error!r}")

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) < 8:
            self._threads.append(threading.Thread(target=ask))
            self._threads[-1].start()

    def _hang_up(self, http: httpx.Client, path: str, body: object) -> None:
        """Ask, and leave with the first piece of the answer, if there is one."""
        with http.stream("POST", path, json=body) as answer:
            first = next(answer.iter_bytes(), b"")
            text = first.decode(errors="replace") if answer.status_code != 200 else ""
            self._count("hang-up", answer.status_code, text)

    def _count(self, command: str, status: int, text: str) -> None:
        self.answers[command, status] += 1
        if status not in FINE[command] or "internal_error" in text:
            raise AssertionError(f"{command} was answered with {status}: {text[:300]}")

    def _snapshot(self, http: httpx.Client) -> Snapshot:
        """Return everything that the neuron says of itself at one moment."""
        decoder = SseDecoder()
        with http.stream("GET", "/events") as answer:
            for chunk in answer.iter_bytes():
                for event in decoder.feed(chunk):
                    return msgspec.json.decode(event.data, type=Snapshot)
        raise AssertionError("the event stream ended before it began")

    def _check_books(self, now: Snapshot) -> None:
        """Compare the models, how busy they are, and the memory of every device."""
        told = {model.id: model for model in now.models}
        busy = {load.id: load for load in now.health.models}
        assert {name: model.status for name, model in told.items()} == {
            name: load.status for name, load in busy.items()
        }, "models and health differ"
        totals = {device.index: device.vram_total_mb for device in now.discovery.devices}
        for device in now.health.devices:
            held = sum(_held_mb(model) for model in now.models if device.index in model.devices)
            used, total = device.vram_used_mb or 0, totals[device.index] or 0
            assert used <= total, f"{used} MiB of {total} are given out"
            # What has its memory and has not told its devices yet is in the ledger alone.
            is_moving = any(model.status in MOVING for model in now.models)
            is_right = used >= held if is_moving else abs(used - held) <= len(told)
            assert is_right, f"the ledger holds {used} MiB, the models {held}: {_text(now)}"
        assert not self._faults, self._faults

    def _settle(self, http: httpx.Client) -> None:
        """Wait until nothing is under way, and compare what is left with the processes."""
        self._join()
        deadline = time.monotonic() + SETTLE_S
        while True:
            now = self._snapshot(http)
            self._check_books(now)
            if (wrong := self._unsettled(now)) is None:
                return
            assert time.monotonic() < deadline, f"{wrong}: {_text(now)}"
            time.sleep(0.02)

    def _unsettled(self, now: Snapshot) -> str | None:
        """Return what is still under way, or was not cleared away."""
        if any(model.status in MOVING for model in now.models):
            return "something is still under way"
        if any(load.in_flight or load.queued for load in now.health.models):
            return "requests are counted that are not there"
        up = sum(model.status in ("loaded", "sleeping") for model in now.models)
        running = up if self._case.engines is None else self._case.engines()
        if running != up:
            return f"{running} engines run and {up} are told of"
        return None

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(ANSWER_S)
            if thread.is_alive():
                self._faults.append("a stream does not end")
        self._threads = []


def _held_mb(model: ModelReport) -> int:
    return (model.vram_used_mb or 0) // max(1, len(model.devices))


def _text(now: Snapshot) -> str:
    return json.dumps([(model.id, model.status, model.vram_used_mb) for model in now.models])
