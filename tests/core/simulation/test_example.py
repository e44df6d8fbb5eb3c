"""The example: three machines, twelve models, eight callers, and one of them a runaway."""

import random

import pytest

from cortex_core.catalogue import Catalogue, load_catalogue
from cortex_core.config import load_toml, to_settings
from cortex_core.placement.policy import Strategy
from cortex_core.simulation.generate import TraceFile, generate
from cortex_core.simulation.machines import FleetFile, check_sizes, load_fleet
from cortex_core.simulation.optimum import find_optimum
from cortex_core.simulation.run import Run, simulate
from cortex_core.simulation.trace import Arrival
from tests.core.simulation.worlds import doubled, over_committed
from tests.repository.checkout import ROOT

EXAMPLE = ROOT / "examples" / "simulate"

RUNAWAY = "runaway"


def example(seed: int) -> tuple[FleetFile, Catalogue, tuple[Arrival, ...]]:
    fleet = load_fleet(EXAMPLE / "fleet.toml")
    catalogue = load_catalogue(EXAMPLE / "models.toml")
    check_sizes(catalogue, "models.toml")
    file = to_settings(load_toml(EXAMPLE / "trace.toml"), TraceFile, "trace.toml")
    return fleet, catalogue, generate(file, tuple(catalogue.profiles), random.Random(seed))


@pytest.fixture(scope="module", params=[0, 1, 2])
def ran(request: pytest.FixtureRequest) -> tuple[FleetFile, list[Run]]:
    """Runs the example with each strategy."""
    fleet, catalogue, arrivals = example(request.param)
    return fleet, [
        simulate(fleet, catalogue, arrivals, random.Random(0), strategy) for strategy in Strategy
    ]


def test_the_example_is_what_it_is_said_to_be() -> None:
    """Issue: 24, 24 and 48 GB, twelve models of 6 to 40 GB, eight callers."""
    fleet, catalogue, arrivals = example(0)

    sizes = [device.vram_total_mb for node in fleet.nodes for device in node.devices]
    models = [profile.vram_mb or 0 for profile in catalogue.profiles.values()]
    assert sizes == [24576, 24576, 49152]
    assert (len(models), min(models), max(models)) == (12, 6000, 40000)
    assert len({one.caller for one in arrivals}) == 8


def test_no_request_is_lost_and_nobody_is_turned_away_but_the_runaway(
    ran: tuple[FleetFile, list[Run]],
) -> None:
    """Issue: zero lost requests; a full queue is the trouble of whoever filled it."""
    for run in ran[1]:
        result = run.result
        assert result.lost == 0
        assert result.cut == 0
        assert result.served + sum(result.refused.values()) == result.requests
        assert set(result.refused) == {"server_is_overloaded"}
        assert [one.caller for one in result.callers if one.refused] == [RUNAWAY]


def test_nobody_waits_beyond_the_bound_but_the_runaway(ran: tuple[FleetFile, list[Run]]) -> None:
    """Issue: the fairness bound, which the fleet's file states."""
    fleet, runs = ran
    for run in runs:
        waits = {one.caller: one.longest_wait_s for one in run.result.callers}
        del waits[RUNAWAY]
        assert len(waits) == 7
        assert max(waits.values()) <= fleet.wait_bound_s


def test_thrash_is_bounded(ran: tuple[FleetFile, list[Run]]) -> None:
    """Issue: who comes stays for a turn, and the devices work for callers most of the time."""
    fleet, runs = ran
    for run in runs:
        stays = [span for span in run.spans if span.status == "loaded" and span.end < 3600]
        assert stays
        assert min(s.end - s.begin for s in stays) >= fleet.eviction.min_residency_s - 1e-6
        lost_s = run.result.load_device_s + run.result.drain_device_s
        assert lost_s <= 0.15 * 3600 * 3


def test_nothing_is_over_committed(ran: tuple[FleetFile, list[Run]]) -> None:
    """Issue."""
    fleet, runs = ran
    for run in runs:
        assert over_committed(fleet, run) == []
        assert doubled(run) == []
        assert run.result.refused_for_room == 0


def test_no_strategy_is_better_than_who_knows_the_future() -> None:
    """Issue: the gap to the offline optimum."""
    fleet, catalogue, arrivals = example(0)

    optimum = find_optimum(fleet, catalogue, arrivals)

    for strategy in Strategy:
        run = simulate(fleet, catalogue, arrivals, random.Random(0), strategy)
        assert run.result.hit_ratio < optimum.hit_ratio <= optimum.bound_ratio
