"""What simulating costs: `python -m benchmarks.simulate`, an hour of 20 nodes and 100 models.

At 50 requests a second that is 180,000 requests, one run for each strategy; the models have nearly
twice the size of the memory, so that there are swaps all the time. About a minute.
"""

import random
import time

import msgspec

from cortex_core.catalogue import Catalogue, Profile, Replicas
from cortex_core.ids import ModelId, NodeName
from cortex_core.placement.policy import Strategy
from cortex_core.simulation.generate import Source, TraceFile, generate
from cortex_core.simulation.machines import FleetFile, SimulatedDevice, SimulatedNode
from cortex_core.simulation.run import simulate

NODES = 20
MODELS = 100
PER_SECOND = 50.0
HOUR_S = 3600.0
ZIPF = 1.5
POPULAR = 10
"""Models that may have several copies; one would not be enough for the first of them."""
SIZES_MB = (6_000, 9_000, 14_000, 18_000, 30_000, 40_000)
DEVICES_MB = (49_152, 81_920)


def main() -> None:
    """Print a line for each strategy."""
    fleet, catalogue, trace = world()
    arrivals = generate(trace, tuple(catalogue.profiles), random.Random(1))
    for strategy in Strategy:
        begin = time.perf_counter()
        run = simulate(fleet, catalogue, arrivals, random.Random(1), strategy)
        took_s, result = time.perf_counter() - begin, run.result
        print(
            f"simulate {strategy:8} {took_s:6.1f} s for {result.requests} requests,"
            f" {result.loads} loads, {result.swaps} swaps;"
            f" {run.events / took_s / 1000:.0f} thousand events/s"
        )


def world() -> tuple[FleetFile, Catalogue, TraceFile]:
    """Return machines, models and who asks for them."""
    nodes = tuple(
        SimulatedNode(
            name=NodeName(f"node-{number}"),
            devices=(SimulatedDevice(vram_total_mb=DEVICES_MB[number % len(DEVICES_MB)]),),
            load_mb_per_s=2000.0,
            prefill_tok_per_s=10_000.0,
            max_in_flight=64,
        )
        for number in range(NODES)
    )
    profiles = {}
    for number in range(MODELS):
        model = ModelId(f"org/model-{number}")
        size_mb = SIZES_MB[number * 7 % len(SIZES_MB)]
        profiles[model] = Profile(
            id=model,
            harness="vllm",
            vram_mb=size_mb,
            replicas=Replicas(max=4 if number < POPULAR else 1),
        )
    return (
        FleetFile(nodes=nodes),
        Catalogue(profiles=profiles),
        TraceFile(duration_s=HOUR_S, sources=_who_asks()),
    )


def _who_asks() -> tuple[Source, ...]:
    """Return callers of whom most come evenly and the others in bursts."""
    even = Source(
        callers=tuple(f"caller-{number}" for number in range(40)),
        per_second=PER_SECOND * 0.6,
        zipf=ZIPF,
        prompt_tokens=300,
        completion_tokens=60,
    )
    return (even, msgspec.structs.replace(even, pattern="bursts", per_second=PER_SECOND * 0.4))


if __name__ == "__main__":
    main()
