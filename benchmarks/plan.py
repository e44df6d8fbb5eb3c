"""What deciding costs: `python -m benchmarks plan`, about a minute.

A fleet of nodes whose devices are full, each model of the catalogue loaded or asleep somewhere
or nowhere. For each size of fleet it prints what one decision costs, and what it costs beside
that of a fleet of a quarter of the nodes: 4.0 is as the nodes grow, 1.0 is not at all.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from cortex_core.catalogue import Catalogue, Profile
from cortex_core.device import Device, DeviceReading
from cortex_core.fleet.reducers import from_endpoints, with_facts, with_report, with_use
from cortex_core.fleet.state import FleetState
from cortex_core.harness import Capabilities
from cortex_core.ids import DeviceIndex, ModelId, NodeName, ReplicaId
from cortex_core.node import NodeFacts, NodeReport
from cortex_core.placement.plan import plan
from cortex_core.placement.policy import EvictionPolicy, Strategy
from cortex_core.placement.steps import Step
from cortex_core.replica import Replica, ReplicaStatus
from cortex_core.units import MIB

SIZES = ((62, 312), (250, 1250), (1000, 5000))
"""Nodes and models."""

PER_NODE = 2
"""Models that are loaded on a node; as many sleep there, and none is on two nodes."""

TURNS = 15
"""The best of them counts: whatever else runs makes a turn slower, never faster."""

NOW = 10_000.0


def main() -> None:
    """Print a line for each decision and size of fleet."""
    before: dict[str, float] = {}
    for nodes, models in SIZES:
        print(f"{nodes} nodes, {models} models, {2 * PER_NODE * nodes} replicas")
        for name, cost_s in costs(nodes, models):
            grown = f", {cost_s / before[name]:.1f} times" if name in before else ""
            print(f"  {name:42} {cost_s * 1e6:10.1f} us{grown}")
            before[name] = cost_s


def costs(nodes: int, models: int) -> Iterator[tuple[str, float]]:
    """Yield what is measured and its seconds."""
    state = fleet(nodes)
    # A gateway has known for long where its models are; reports carry that over.
    _ = state.homes, state.spread
    names = [node(i) for i in range(nodes)]
    news = cycle(names, partial(report, nodes))
    told = report(nodes, names[1])
    held = ReplicaId(node=names[0], model=model(0))

    def fresh() -> FleetState:
        """Return the fleet after one report, as it is before each plan."""
        name, told = next(news)
        return with_report(state, name, told, NOW)

    yield "one report", best(fresh, lambda s: with_report(s, names[1], told, NOW))
    yield "one use noted", best(fresh, lambda s: with_use(s, held, NOW + 1))
    yield "where a model is", best(fresh, lambda s: list(s.replicas_of(model(3))))
    for name, work in plans(nodes, models):
        yield f"plan: {name}", best(fresh, work)


def plans(
    nodes: int, models: int
) -> Iterator[tuple[str, Callable[[FleetState], tuple[Step, ...]]]]:
    """Yield what is planned, and that plan."""
    profiles = [Profile(id=model(i), harness="simulated", vram_mb=10_000) for i in range(models)]
    decide = partial(plan, catalogue=Catalogue(profiles={one.id: one for one in profiles}), now=NOW)
    absent, asleep = model(models - 1), model(PER_NODE * nodes)
    rates = {one.id: 0.001 for one in profiles}
    yield "nobody waits", partial(decide, demand=[])
    yield "one waits and is served", partial(decide, demand=[model(3)])
    yield "a wake, others give way", partial(decide, demand=[asleep])
    for strategy in Strategy:
        policy = EvictionPolicy(strategy=strategy)
        name = f"a load, others give way ({strategy})"
        yield name, partial(decide, demand=[absent], policy=policy, rates=rates)
    turn = EvictionPolicy(min_residency_s=2 * NOW)
    yield "a load that must wait", partial(decide, demand=[absent], policy=turn)


def best(make: Callable[[], FleetState], work: Callable[[FleetState], object]) -> float:
    """Return the best time of `work` on a state that was just made, in seconds."""
    seconds = float("inf")
    for _ in range(TURNS):
        state = make()
        begin = time.perf_counter()
        work(state)
        seconds = min(seconds, time.perf_counter() - begin)
    return seconds


def cycle(
    names: list[NodeName], make: Callable[[NodeName], NodeReport]
) -> Iterator[tuple[NodeName, NodeReport]]:
    while True:
        for name in names:
            yield name, make(name)


def model(index: int) -> ModelId:
    return ModelId(f"org/model-{index:05}")


def node(index: int) -> NodeName:
    return NodeName(f"node-{index:04}")


def fleet(nodes: int) -> FleetState:
    """Return nodes that were seen a while ago and have been used since, each at its own time."""
    state = from_endpoints({node(i): f"http://{node(i)}" for i in range(nodes)})
    device = Device(index=DeviceIndex(0), name="SIM-24", vram_total_bytes=24_000 * MIB)
    facts = NodeFacts(hostname="host", devices=(device,), harnesses=("simulated",))
    for index, name in enumerate(state.nodes):
        at = float(index)
        state = with_facts(state, name, facts)
        state = with_report(state, name, report(nodes, name), at)
        used = ReplicaId(node=name, model=model(index * PER_NODE))
        state = with_use(state, used, at + 1.0)
    return state


def report(nodes: int, name: NodeName) -> NodeReport:
    """Return what a node says that is full of models."""
    index = int(name.rsplit("-", 1)[1])
    loaded = [model(index * PER_NODE + i) for i in range(PER_NODE)]
    asleep = [model((nodes + index) * PER_NODE + i) for i in range(PER_NODE)]
    reading = DeviceReading(index=DeviceIndex(0), vram_free_bytes=500 * MIB)
    there = {m: _replica(name, m, ReplicaStatus.SLEEPING) for m in asleep}
    there |= {m: _replica(name, m, ReplicaStatus.LOADED) for m in loaded}
    return NodeReport(
        replicas=tuple(there.values()),
        devices=(reading,),
        sleep_budget_bytes=24_000 * MIB,
    )


def _replica(name: NodeName, which: ModelId, status: ReplicaStatus) -> Replica:
    replica = Replica(
        id=ReplicaId(node=name, model=which),
        status=status,
        devices=(DeviceIndex(0),),
        capabilities=Capabilities(sleep=True),
        load_s=20.0,
        wake_s=1.0,
    )
    size = 11_500 * MIB
    if status is ReplicaStatus.LOADED:
        return msgspec.structs.replace(replica, vram_used_bytes=size)
    return msgspec.structs.replace(replica, sleep_level=1, host_used_bytes=size)


if __name__ == "__main__":
    main()
