"""Simulations whose outcome can be reckoned by hand."""

import random
from collections.abc import Sequence

import msgspec
import pytest

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.errors import SettingsError
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import Strategy
from cortex_core.simulation.machines import (
    EvictionTable,
    FleetFile,
    LoadFault,
    Outage,
    SimulatedNode,
    check_fleet,
    check_sizes,
)
from cortex_core.simulation.optimum import find_optimum
from cortex_core.simulation.plot import render_page
from cortex_core.simulation.run import Run, percentile, simulate
from cortex_core.simulation.trace import Arrival
from tests.core.simulation.worlds import asked, machine, models

A, B = ModelId("a"), ModelId("b")

STEADY = EvictionTable(min_residency_s=0.0)


def fleet(*nodes: SimulatedNode, eviction: EvictionTable = STEADY) -> FleetFile:
    return FleetFile(nodes=nodes, eviction=eviction)


def run(
    machines: FleetFile,
    catalogue: Catalogue,
    arrivals: Sequence[Arrival],
    strategy: Strategy | None = None,
) -> Run:
    return simulate(machines, catalogue, arrivals, random.Random(0), strategy)


NODE = machine("n", 24_000, load_s=2.0, load_mb_per_s=1000.0, unload_s=1.0)
"""Loads a model of 10,000 MiB in 12 s."""


def test_the_first_request_waits_for_the_load_and_the_next_does_not() -> None:
    """Ours: 12 s of loading, then 100 tokens at 5,000 a second."""
    result = run(fleet(NODE), models(a=10_000), [asked(0, "a"), asked(20, "a")]).result

    assert (result.served, result.hits, result.loads, result.swaps) == (2, 1, 1, 0)
    assert result.longest_wait_s == pytest.approx(12.0)
    assert result.ttft_p50_s == pytest.approx(0.02)
    assert result.ttft_p99_s == pytest.approx(12.02)
    assert result.load_device_s == pytest.approx(12.0)


def test_one_load_serves_all_who_wait() -> None:
    """Issue: the load is asked for once."""
    result = run(fleet(NODE), models(a=10_000), [asked(i / 100, "a") for i in range(100)]).result

    assert (result.served, result.loads, result.hits) == (100, 1, 0)


def test_who_gives_way_ends_its_requests_first() -> None:
    """Issue: drain, unload, and the load follows when the room is there."""
    # Loaded at 22 s; a request of 10 s runs from 22 s to 32 s; then 1 s to unload, 22 s to load.
    arrivals = [asked(0, "a", tokens=500), asked(23, "b")]
    ran = run(fleet(NODE), models(a=20_000, b=20_000), arrivals)

    assert ran.result.served == 2
    assert ran.result.cut == 0
    assert [(deed.kind, deed.model, deed.victims) for deed in ran.deeds] == [
        ("load", A, ()),
        ("evict", B, (A,)),
        ("load", B, ()),
    ]
    assert ran.deeds[2].at == pytest.approx(22.02 + 10 + 1)
    assert ran.result.longest_wait_s == pytest.approx(33.02 + 22 - 23)
    assert ran.result.drain_device_s == pytest.approx(33.02 - 23)


def test_what_runs_for_longer_than_the_drain_is_cut() -> None:
    """Contract: eviction.drain_s; told to its caller, and counted."""
    quick = EvictionTable(min_residency_s=0.0, drain_s=3.0)
    arrivals = [asked(0, "a", tokens=5000), asked(30, "b")]

    result = run(fleet(NODE, eviction=quick), models(a=20_000, b=20_000), arrivals).result

    assert (result.cut, result.served, result.refused) == (1, 1, {"upstream_cut": 1})


def test_weights_that_the_host_has_are_read_faster() -> None:
    """Ours: the page cache; the second load of a takes 2 + 20,000 / 10,000 s."""
    node = msgspec.structs.replace(NODE, page_cache_mb=64_000, warm_mb_per_s=10_000.0)
    arrivals = [asked(0, "a"), asked(30, "b"), asked(60, "a")]

    result = run(fleet(node), models(a=20_000, b=20_000), arrivals).result

    assert result.load_device_s == pytest.approx(22 + 22 + 4)


def test_a_load_that_fails_is_told_and_tried_again_later() -> None:
    """Contract: model_load_failed, and a cool-down of 5 s."""
    machines = msgspec.structs.replace(fleet(NODE), load_faults=(LoadFault(model=A, failures=1),))

    result = run(machines, models(a=10_000), [asked(0, "a"), asked(14, "a"), asked(20, "a")]).result

    assert result.refused == {"model_load_failed": 2}
    assert (result.served, result.loads, result.failed_loads) == (1, 2, 1)


def test_a_slow_load_is_slow_on_the_node_that_is_named() -> None:
    """Ours."""
    faults = (LoadFault(model=A, slow=2.0), LoadFault(model=A, node=NodeName("n"), slow=3.0))
    machines = msgspec.structs.replace(fleet(NODE), load_faults=faults)

    assert run(machines, models(a=10_000), [asked(0, "a")]).result.load_device_s == 36.0


def test_what_a_node_lost_is_unloaded_from_it_once() -> None:
    """Ours: it begins anew between two looks, and is shown as it was when the model is idle."""
    machines = FleetFile(
        nodes=(NODE,),
        eviction=EvictionTable(idle_unload_s=1.5),
        outages=(Outage(node=NodeName("n"), at_s=13.0, for_s=0.3),),
    )

    ran = run(machines, models(a=10_000), [asked(0, "a")])

    assert [deed.kind for deed in ran.deeds].count("retire") <= 1


def test_a_node_that_goes_takes_its_requests_along_and_others_take_over() -> None:
    """Issue: what had begun is told that it was cut; what comes later is loaded elsewhere."""
    away = Outage(node=NodeName("big"), at_s=15.0, for_s=1000.0)
    machines = FleetFile(
        nodes=(NODE, msgspec.structs.replace(NODE, name=NodeName("big"), devices=NODE.devices * 2)),
        eviction=STEADY,
        outages=(away,),
    )
    arrivals = [asked(0, "a", tokens=500), asked(16, "a"), asked(30, "a")]

    ran = run(machines, models(a=10_000), arrivals)

    assert ran.result.refused == {"upstream_cut": 1}
    assert ran.result.served == 2
    nodes = [deed.node for deed in ran.deeds if deed.kind == "load"]
    assert (nodes[0], nodes[-1]) == ("big", "n")


def test_a_model_that_fits_nowhere_is_refused_at_once() -> None:
    """Contract: model_does_not_fit; and one that nobody knows is model_not_found."""
    result = run(fleet(NODE), models(a=30_000), [asked(0, "a"), asked(1, "x")]).result

    assert result.refused == {"model_does_not_fit": 1, "model_not_found": 1}
    assert result.longest_wait_s == 0


def test_a_queue_that_is_full_turns_away_whoever_filled_it() -> None:
    """Issue: bounded per caller; the other one is not touched by it."""
    machines = fleet(NODE)
    queue = msgspec.structs.replace(machines.queue, max_waiting_per_caller=5)
    machines = msgspec.structs.replace(machines, queue=queue)
    arrivals = [asked(0, "a", "runaway") for _ in range(20)] + [asked(1, "a", "ann")]

    result = run(machines, models(a=10_000), arrivals).result

    assert result.refused == {"server_is_overloaded": 15}
    assert {caller.caller: caller.refused for caller in result.callers} == {"ann": 0, "runaway": 15}


def test_who_waits_for_too_long_is_refused() -> None:
    """Contract: hold_s, then model_loading; the load goes on."""
    machines = fleet(NODE)
    queue = msgspec.structs.replace(machines.queue, hold_s=5.0)
    machines = msgspec.structs.replace(machines, queue=queue, wait_bound_s=4.0)

    result = run(machines, models(a=10_000), [asked(0, "a"), asked(13, "a")]).result

    assert (result.refused, result.hits, result.loads) == ({"model_loading": 1}, 1, 1)
    assert (result.longest_wait_s, result.starved) == (5.0, 1)


def test_what_nobody_uses_is_unloaded() -> None:
    """Issue: idle_unload_s."""
    idle = EvictionTable(idle_unload_s=60.0)

    ran = run(fleet(NODE, eviction=idle), models(a=10_000), [asked(0, "a")])

    assert [deed.kind for deed in ran.deeds] == ["load", "retire"]
    assert ran.result.unloads == 1
    assert ran.result.swaps == 0


def test_strategies_differ() -> None:
    """Issue: each really different. The oldest gives way by lru, the least important by priority,
    and by cost the one that is never asked for."""
    catalogue = Catalogue(
        profiles={
            ModelId(name): Profile(
                id=ModelId(name), harness="s", vram_mb=10_000, residency_priority=priority
            )
            for name, priority in (("a", 100), ("b", 50), ("c", 100))
        }
    )
    arrivals = [asked(float(at), "a") for at in range(30)]
    arrivals += [asked(40, "b"), asked(41, "b"), asked(100, "c")]

    victims = {
        strategy: run(fleet(NODE), catalogue, arrivals, strategy).deeds[2].victims
        for strategy in Strategy
    }

    assert victims == {Strategy.LRU: (A,), Strategy.PRIORITY: (B,), Strategy.COST: (B,)}


def test_the_optimum_of_three_models_in_room_for_two() -> None:
    """Belady: a b c a b, with room for two: c takes b's place, since a is asked for earlier."""
    arrivals = [asked(100.0 * at, name) for at, name in enumerate("abcab")]

    optimum = find_optimum(fleet(NODE), models(a=12_000, b=12_000, c=12_000), arrivals)

    assert (optimum.hits, optimum.hit_ratio) == (1, 0.2)
    assert optimum.bound_hits == 2


def test_the_bound_knows_how_much_memory_there_is() -> None:
    """Ours: two models for the whole time in room for one; they take 14 s to come back."""
    node = machine("n", 12_000, load_s=2.0, load_mb_per_s=1000.0)
    arrivals = [asked(100.0 * at, name) for at in range(10) for name in "ab"]

    alone = find_optimum(fleet(node), models(a=12_000, b=1), arrivals)
    crowded = find_optimum(
        fleet(msgspec.structs.replace(node, load_s=100.0)), models(a=12_000, b=12_000), arrivals
    )

    assert alone.bound_hits == 18
    assert crowded.bound_hits == 9


@pytest.mark.parametrize(
    ("ordered", "ratio", "found"),
    [([], 0.5, None), ([1.0], 0.99, 1.0), ([1.0, 2.0], 0.5, 1.0), ([1.0, 2.0], 0.51, 2.0)],
)
def test_percentiles_are_numbers_that_were_there(
    ordered: list[float], ratio: float, found: float | None
) -> None:
    """Nearest rank."""
    assert percentile(ordered, ratio) == found


def test_names_in_a_fleet_are_checked() -> None:
    """Ours: with the place in the file."""
    twice = fleet(NODE, NODE)
    nobody = msgspec.structs.replace(
        fleet(NODE), outages=(Outage(node=NodeName("x"), at_s=0, for_s=1),)
    )

    with pytest.raises(SettingsError, match=r"f: nodes\[1\].name: 'n' is there twice"):
        check_fleet(twice, "f")
    with pytest.raises(SettingsError, match=r"f: outages\[0\].node: there is no node 'x'"):
        check_fleet(nobody, "f")
    with pytest.raises(SettingsError, match="f: 'a' has no vram_mb"):
        check_sizes(Catalogue(profiles={A: Profile(id=A, harness="s")}), "f")


def test_a_page_shows_every_run_without_anything_from_elsewhere() -> None:
    """Issue: one file; names in it are text and nothing else."""
    evil = "<script>x</script>"
    ran = run(fleet(NODE), models(**{evil: 10_000}), [asked(0, evil, caller=evil)])

    page = render_page([ran])

    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;: loading, 0 s to 12 s" in page
    assert "href" not in page
    assert "src=" not in page
    assert render_page([]).endswith("</html>\n")
