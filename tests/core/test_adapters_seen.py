"""Adapters as callers and operators see them, and what a node is given of theirs at once."""

import msgspec

from cortex_core.fleet.known import Known
from cortex_core.fleet.overview import fleet_overview
from cortex_core.fleet.views import model_object
from cortex_core.harness import Capabilities, Limit
from cortex_core.ids import ModelId
from cortex_core.placement.drain import Draining, departures
from cortex_core.routing.choose import places_left
from cortex_core.routing.explain import Outcome, explain
from tests.core.test_adapters import (
    BASE,
    NOW,
    ONE,
    POLICY,
    TWO,
    A,
    B,
    adapter,
    catalogue,
    node,
    there,
)
from tests.core.test_placement import fleet


def test_a_base_and_its_adapters_share_the_places_of_one_engine() -> None:
    """Ours: `max_in_flight` of the base is that of all together."""
    known = catalogue(2, adapter(A, max_in_flight=2), adapter(B), max_in_flight=4)
    here = node(ONE, there(BASE), there(A), there(B))

    def is_free(model: ModelId, **counts: int) -> bool:
        in_flight = {there(ModelId(name)).id: count for name, count in counts.items()}
        replica = here.replicas[model]
        left = places_left(known, here, replica, in_flight=in_flight, default=64, now=NOW)
        return left > 0

    assert is_free(B, base=2, a=1)
    assert not is_free(B, base=2, a=2)
    assert not is_free(BASE, base=1, a=1, b=2)
    assert not is_free(A, a=2)


def test_callers_see_what_the_base_can_do_and_whose_adapter_it_is() -> None:
    """Ours: also while neither is loaded."""
    known = catalogue()
    files = Known(capabilities=Capabilities(chat=True, tools=True), limit=Limit(context=2048))
    state = msgspec.structs.replace(fleet(node(ONE)), known={BASE: files})

    entry = model_object(state, known, A, 0)
    (view,) = [one for one in fleet_overview(state, known).unloaded if one.id == A]

    assert (entry.parent, entry.max_model_len, entry.loaded) == (BASE, 2048, False)
    assert entry.capabilities == Capabilities(chat=True, tools=True)
    assert entry.feasible_on == view.feasible_on == (ONE,)
    assert (view.base, model_object(state, known, BASE, 0).parent) == (BASE, None)
    stranger = fleet(node(ONE, there(BASE), there(ModelId("stranger"))))
    assert model_object(stranger, known, ModelId("stranger"), 0).parent == BASE


def test_an_explanation_says_what_becomes_of_the_base() -> None:
    """Ours: node by node."""
    known = catalogue()
    state = fleet(node(ONE, there(BASE), there(B)), node(TWO))
    empty = fleet(node(ONE))

    found = explain(state, known, A, policy=POLICY, rates={}, now=NOW)
    cold = explain(empty, known, A, policy=POLICY, rates={}, now=NOW)

    assert (found.outcome, found.node, found.victims) == (Outcome.EVICT, ONE, (B,))
    assert [one.outcome for one in found.nodes] == [Outcome.EVICT, Outcome.LOAD]
    assert (cold.outcome, cold.node) == (Outcome.LOAD, ONE)
    assert cold.summary.startswith("a on one: its base base: it fits")


def test_an_adapter_in_use_follows_its_base_from_a_node_that_is_drained() -> None:
    """Ours: and keeps the base from being taken for unused."""
    known = catalogue()
    state = fleet(node(ONE, there(BASE), there(A, in_flight=1), there(B)), node(TWO))
    draining = Draining(catalogue=known, policy=POLICY, rates={}, demanded=frozenset(), now=NOW)

    found = {one.model: one for one in departures(state, ONE, draining)}

    assert {model: one.outcome for model, one in found.items()} == {
        A: "moved",
        B: "unloaded",
        BASE: "moved",
    }
    assert (found[A].to, found[BASE].to) == (TWO, TWO)
