"""How the gateway learns what its nodes hold, over real sockets."""

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.state import FleetState, NodeHealth
from cortex_core.fleet.views import model_list
from cortex_core.ids import ModelId, NodeName
from cortex_core.replica import ReplicaStatus
from cortex_gateway.clients.node import NodePatience
from cortex_gateway.control.store import FleetStore
from tests.fakes.neuron import FakeNeuron, black_hole, running
from tests.gateway.fleet import (
    HASTY,
    MODEL,
    NEVER,
    NODE,
    control_of,
    has_status,
    is_health,
    until,
    until_true,
)

SILENT_EVENTS = NodePatience(poll_s=4.0, events_s=0.3, load_s=60.0)


async def test_running_models_and_loads_under_way_are_adopted_at_start() -> None:
    """Ours: level-triggered; a restarted gateway asks nobody to load what is there."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")
    neuron.set_model("org/other", "loading")

    async with running(neuron), control_of({NODE: neuron.url}, pace=NEVER) as store:
        with store.demand(ModelId("org/other")):
            await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
            await until(store, has_status(NODE, "org/other", ReplicaStatus.LOADING))

    assert neuron.loads == []


async def test_events_change_the_snapshot_without_a_poll() -> None:
    """Ours: a node with an event stream is not asked again."""
    neuron = FakeNeuron()

    async with running(neuron), control_of({NODE: neuron.url}, pace=NEVER) as store:
        await until_true(lambda: neuron.has_subscriber)
        polls = neuron.requests["/models"]
        neuron.set_model(MODEL, "loading")
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADING))
        neuron.set_model(MODEL, "loaded")
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
        neuron.set_model(MODEL, "unloaded")
        await until(store, lambda state: not state.nodes[NODE].replicas)

    assert neuron.requests["/models"] == polls


async def test_health_events_bring_readings() -> None:
    """Ours: devices change without a change of any model."""
    neuron = FakeNeuron()

    async with running(neuron), control_of({NODE: neuron.url}, pace=NEVER) as store:
        state = await until(store, lambda state: bool(state.nodes[NODE].readings))
        reading = next(iter(state.nodes[NODE].readings.values()))

    assert reading.utilization_ratio == 0.5
    assert reading.vram_used_bytes == 1000 << 20


async def test_neuron_of_the_given_kind_is_polled() -> None:
    """The given system: no `/events` and no boot ids."""
    neuron = FakeNeuron(is_given_only=True)

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        await until(store, is_health(NODE, NodeHealth.UP))
        neuron.models[MODEL] = {"id": MODEL, "harness": "simulated", "status": "loaded"}
        state = await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))

    assert state.nodes[NODE].facts is not None
    assert neuron.requests["/events"] == 1


async def test_restart_of_a_given_neuron_is_told_by_its_uptime() -> None:
    """Ours: a rebuilt host is noticed although no boot id says so."""
    neuron = FakeNeuron(is_given_only=True)

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        await until(store, lambda state: state.nodes[NODE].facts is not None)
        neuron.devices = [{"index": 0, "name": "SIM-48", "vram_total_mb": 49152}]
        neuron.restart("")
        await until(store, lambda state: _device_name(state) == "SIM-48")


async def test_another_boot_id_asks_for_discovery_again() -> None:
    """Ours: what was discovered is true for one life of the neuron."""
    neuron = FakeNeuron()

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        await until(store, lambda state: _device_name(state) == "SIM-24")
        neuron.devices = [{"index": 0, "name": "SIM-48", "vram_total_mb": 49152}]
        neuron.restart("boot-2")
        state = await until(store, lambda state: _device_name(state) == "SIM-48")

    facts = state.nodes[NODE].facts
    assert facts is not None
    assert facts.boot_id == "boot-2"


async def test_a_node_is_not_up_before_it_is_known_what_it_is() -> None:
    """Issue: a request is held, never refused, because a node was only half asked."""
    neuron = FakeNeuron()

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        state = store.state
        while state.nodes[NODE].facts is None:
            assert not state.is_heard
            state = await store.changed(state.revision)
        neuron.restart("boot-2")
        boot_id = "boot-1"
        while boot_id != "boot-2":
            state = await store.changed(state.revision)
            facts = state.nodes[NODE].facts
            assert facts is not None
            boot_id = facts.boot_id or ""


async def test_node_is_down_after_three_misses_and_up_after_one_report() -> None:
    """Ours: suspect, down, up; its models stay listed all along but are not loaded."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")
    seen: list[NodeHealth] = []

    async with running(neuron), control_of({NODE: neuron.url}, patience=HASTY) as store:
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
        neuron.freeze()

        def note(state: FleetState) -> bool:
            seen.append(state.nodes[NODE].health)
            return seen[-1] is NodeHealth.DOWN

        down = await until(store, note)
        listed = model_list(down, Catalogue(), created=0)
        neuron.thaw()
        up = await until(store, is_health(NODE, NodeHealth.UP))

    assert seen.index(NodeHealth.SUSPECT) < seen.index(NodeHealth.DOWN)
    assert down.nodes[NODE].misses == 3
    assert [(entry.id, entry.loaded) for entry in listed.data] == [(MODEL, False)]
    assert listed.data[0].locations[0].status == "unknown"
    assert model_list(up, Catalogue(), created=0).data[0].loaded


async def test_black_hole_delays_nobody() -> None:
    """Ours: every node has its own task."""
    neuron = FakeNeuron()
    neuron.set_model(MODEL, "loaded")

    async with black_hole() as hole, running(neuron):
        endpoints = {"hole-1": hole, NODE: neuron.url, "hole-2": hole}
        async with control_of(endpoints, pace=NEVER) as store:
            state = await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))

    # Not one poll of the black hole has run into its limit yet.
    assert state.nodes[NodeName("hole-1")].misses == 0
    assert state.nodes[NodeName("hole-2")].misses == 0


async def test_silence_of_the_event_stream_is_a_miss() -> None:
    """Ours: a stream without even a comment is a node that may be gone."""
    neuron = FakeNeuron()

    async with (
        running(neuron),
        control_of({NODE: neuron.url}, pace=NEVER, patience=SILENT_EVENTS) as store,
    ):
        await until_true(lambda: neuron.has_subscriber)
        state = await until(store, is_health(NODE, NodeHealth.SUSPECT))

    assert state.nodes[NODE].last_error == "beast is silent"


async def test_refresh_polls_at_once() -> None:
    """Ours: a request that found the snapshot wrong need not wait for the next poll."""
    neuron = FakeNeuron(is_given_only=True)

    async with running(neuron), control_of({NODE: neuron.url}, pace=NEVER) as store:
        await until(store, lambda state: state.nodes[NODE].facts is not None)
        neuron.models[MODEL] = {"id": MODEL, "status": "loaded"}
        store.refresh(NODE)
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))


async def test_refreshes_that_fail_make_a_node_suspect_and_no_more() -> None:
    """Ours: a burst of failed requests must not take a node down that missed one beat."""
    neuron = FakeNeuron(is_given_only=True)

    async with (
        running(neuron),
        control_of({NODE: neuron.url}, pace=NEVER, patience=HASTY) as store,
    ):
        await until(store, lambda state: state.nodes[NODE].facts is not None)
        neuron.freeze()
        # When the fourth is asked, three have failed.
        for _ in range(4):
            await _refresh(neuron, store)
        state = store.state

    assert state.nodes[NODE].health is NodeHealth.SUSPECT


async def test_node_that_answers_nonsense_is_missed_not_believed() -> None:
    """Ours: an answer that cannot be read is no report, and the watcher lives on."""
    neuron = FakeNeuron()
    neuron.hidden_paths = {"/models", "/events"}

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        state = await until(store, is_health(NODE, NodeHealth.DOWN))
        neuron.hidden_paths = set()
        await until(store, is_health(NODE, NodeHealth.UP))

    assert state.nodes[NODE].last_error == "beast answers /models with status 500"


async def test_answer_that_is_older_than_an_event_changes_nothing() -> None:
    """Ours: what was asked later wins over what arrived later, else a stale answer would stay."""
    neuron = FakeNeuron()

    async with running(neuron), control_of({NODE: neuron.url}, pace=NEVER) as store:
        await until_true(lambda: neuron.has_subscriber)
        polls = neuron.requests["/models"]
        neuron.models_may_leave.clear()
        store.refresh(NODE)
        await until_true(lambda: neuron.requests["/models"] == polls + 1)
        neuron.set_model(MODEL, "loaded")
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))
        neuron.models_may_leave.set()
        # Refreshes are answered one after the other: when the second asks, the first is through.
        store.refresh(NODE)
        neuron.hidden_paths = {"/health"}
        health = neuron.requests["/health"]
        await until_true(lambda: neuron.requests["/health"] == health + 1)
        state = store.state

    assert has_status(NODE, MODEL, ReplicaStatus.LOADED)(state)


async def test_sparse_and_strange_reports_are_read() -> None:
    """Ours: lenient on the wire; what is not understood is unknown, not fatal."""
    neuron = FakeNeuron(is_given_only=True)
    neuron.models = {
        "sparse": {"id": "sparse", "status": "loaded"},
        "newer": {"id": "newer", "status": "hibernating", "vram_used_mb": 5.0, "extra": {"a": 1}},
    }

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        state = await until(store, lambda state: len(state.nodes[NODE].replicas) == 2)

    replicas = state.nodes[NODE].replicas
    assert replicas[ModelId("sparse")].is_servable
    assert replicas[ModelId("newer")].status is ReplicaStatus.UNKNOWN
    assert replicas[ModelId("newer")].vram_used_bytes == 5 << 20


async def test_broken_event_stream_falls_back_to_polls() -> None:
    """Ours: `/events` that fails for another reason than absence does not blind the gateway."""
    neuron = FakeNeuron()
    neuron.hidden_paths = {"/events"}

    async with running(neuron), control_of({NODE: neuron.url}) as store:
        await until(store, is_health(NODE, NodeHealth.UP))
        neuron.set_model(MODEL, "loaded")
        await until(store, has_status(NODE, MODEL, ReplicaStatus.LOADED))


async def _refresh(neuron: FakeNeuron, store: FleetStore) -> None:
    """Ask for a refresh and wait until the neuron is asked, when the one before is through."""
    asked = neuron.requests["/health"]
    store.refresh(NODE)
    await until_true(lambda: neuron.requests["/health"] > asked)


def _device_name(state: FleetState) -> str | None:
    facts = state.nodes[NODE].facts
    return None if facts is None else facts.devices[0].name
