"""What holds for every simulation, whatever the fleet, the trace and the faults."""

import random

import pytest
from hypothesis import given, settings

from cortex_core.catalogue import Profile
from cortex_core.codec import encode_json
from cortex_core.fleet.feasibility import share_bytes
from cortex_core.simulation.machines import FleetFile
from cortex_core.simulation.optimum import find_optimum
from cortex_core.simulation.run import Run, simulate
from cortex_core.units import MIB
from tests.core.simulation.worlds import World, doubled, over_committed, worlds


def run(world: World) -> Run:
    return simulate(world.fleet, world.catalogue, world.arrivals, random.Random(1), world.strategy)


@given(worlds())
def test_no_device_is_over_committed_and_no_model_is_loaded_twice(world: World) -> None:
    """Issue: at no moment; and a node never has to refuse a load for want of room."""
    ran = run(world)

    assert over_committed(world.fleet, ran) == []
    assert doubled(ran) == []
    assert ran.result.refused_for_room == 0


@given(worlds())
def test_every_request_ends_once_and_none_is_cut_by_an_eviction(world: World) -> None:
    """Issue: no lost or duplicated request; what runs is let end before its model gives way."""
    ran = run(world)

    result = ran.result
    assert result.lost == 0
    assert result.served + sum(result.refused.values()) == len(world.arrivals)
    assert sum(caller.requests for caller in result.callers) == len(world.arrivals)
    assert result.cut == 0
    if not world.fleet.outages:
        assert "upstream_cut" not in result.refused


@given(worlds())
def test_nothing_goes_on_when_nobody_asks_any_more(world: World) -> None:
    """Issue: the plan converges; nobody gives way for nobody."""
    ran = run(world)

    assert ran.has_settled
    last = max((arrival.at for arrival in world.arrivals), default=0.0)
    late = [deed for deed in ran.deeds if deed.at > max(last, ran.result.ended_s) + 1e-6]
    # A model for which room was made already is loaded all the same, though its callers are gone.
    assert [deed for deed in late if deed.kind == "evict"] == []
    assert len([deed for deed in late if deed.kind == "load"]) <= len(world.catalogue.profiles)


@given(worlds())
def test_adapters_are_on_their_bases_and_no_more_than_these_take(world: World) -> None:
    """Ours: from when one is there until it has gone, whatever else happens to the two."""
    ran = run(world)

    for span in ran.spans:
        base = world.catalogue.profiles[span.model].base
        if base is None or span.begin == span.end:
            continue
        under = [one for one in ran.spans if (one.model, one.node) == (base, span.node)]
        covered = sum(max(0.0, min(a.end, span.end) - max(a.begin, span.begin)) for a in under)
        assert covered == pytest.approx(span.end - span.begin)
        beside = {
            one.model
            for one in ran.spans
            if one.node == span.node
            and world.catalogue.profiles[one.model].base == base
            and one.begin <= span.begin < one.end
        }
        assert len(beside) <= world.catalogue.profiles[base].adapter_places


def _fits(fleet: FleetFile, profile: Profile) -> bool:
    need = share_bytes(profile)
    able = (
        [device for device in node.devices if device.vram_total_mb * MIB >= need]
        for node in fleet.nodes
    )
    return any(len(devices) >= profile.min_devices for devices in able)


@given(worlds())
def test_who_is_pinned_stays(world: World) -> None:
    """Issue: never evicted, and nowhere else."""
    ran = run(world)

    for span in ran.spans:
        pinned_on = world.catalogue.profiles[span.model].pinned_on
        if pinned_on:
            assert span.node in pinned_on
            assert span.status != "unloading"


@given(worlds(is_plain=True))
def test_everybody_who_can_be_served_is_within_a_bounded_time(world: World) -> None:
    """Issue: at worst each request has a turn of its own, with a drain and a load before it."""
    ran = run(world)

    work_s = sum(
        arrival.prompt_tokens / 5000.0 + arrival.completion_tokens / 50.0
        for arrival in world.arrivals
    )
    load_s = max(
        node.load_s + node.unload_s + 30_000 / node.load_mb_per_s for node in world.fleet.nodes
    )
    # An adapter comes after its base, and each of the two has been there for a while then.
    turn_s = 2 * (world.fleet.eviction.min_residency_s + 2 * load_s)
    assert ran.result.longest_wait_s <= (len(world.arrivals) + 1) * turn_s + work_s
    unservable = {
        model
        for model, profile in world.catalogue.profiles.items()
        if not _fits(world.fleet, world.catalogue.host(profile))
    }
    refused = [
        arrival
        for arrival in world.arrivals
        if arrival.model in unservable or arrival.model not in world.catalogue.profiles
    ]
    assert sum(ran.result.refused.values()) == len(refused)


@given(worlds(is_plain=True))
def test_no_strategy_hits_more_often_than_is_possible(world: World) -> None:
    """Ours: the bound is one, for Belady's rule as for the gateway's."""
    ran = run(world)

    optimum = find_optimum(world.fleet, world.catalogue, world.arrivals)
    assert ran.result.hits <= optimum.bound_hits
    assert optimum.hits <= len(world.arrivals)


@given(worlds())
@settings(max_examples=20)
def test_the_same_numbers_give_the_same_run(world: World) -> None:
    """Issue: deterministic by seed."""
    assert encode_json(run(world)) == encode_json(run(world))
