"""What somebody could do who knew the trace beforehand: how far from it a strategy is.

Two numbers, because the best plan for models of unlike sizes is too hard to find (it is a knapsack
at every moment), and because of what each of them leaves out.

- The *optimum* is Belady's rule: whoever is asked for the farthest in the future gives way. It is
  played on all devices as if they were one, with loads, drains and turns that take no time. For
  models of one size nothing hits more often; for unlike ones it is a very good plan rather than
  the best.
- The *bound* is what no plan can exceed, on these machines with this trace. Between two requests
  for a model it must have held its memory for the whole time, or for as long as it takes at least to
  bring it back; the memory of the fleet is enough for so many of these stays and no more. (The area
  argument of Berger, Beckmann and Harchol-Balter, 2018, with loads that take time.)
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from cortex_core.catalogue import Catalogue
from cortex_core.fleet.feasibility import share_bytes
from cortex_core.ids import ModelId
from cortex_core.simulation.machines import FleetFile, SimulatedNode
from cortex_core.simulation.trace import Arrival
from cortex_core.units import MIB, bytes_from_mib


class Optimum(msgspec.Struct, frozen=True, kw_only=True):
    """How often models could be there when they are asked for."""

    hits: int
    """By Belady's rule."""
    hit_ratio: float
    bound_hits: int
    """More than these is impossible."""
    bound_ratio: float


def find_optimum(fleet: FleetFile, catalogue: Catalogue, arrivals: Sequence[Arrival]) -> Optimum:
    """Return what a plan that knows the trace comes to.

    Args:
        fleet: the machines.
        catalogue: the models, each with its size.
        arrivals: in order.
    """
    names = [_hosting(catalogue, catalogue.aliases.get(one.model, one.model)) for one in arrivals]
    sizes = _sizes(fleet, catalogue)
    uses: dict[ModelId, list[int]] = {model: [] for model in sizes}
    for position, model in enumerate(names):
        if model in uses:
            uses[model].append(position)
    total = sum(bytes_from_mib(d.vram_total_mb) for node in fleet.nodes for d in node.devices)
    hits = _belady(names, uses, sizes, total)
    bound = _bound(fleet, catalogue, arrivals, uses, sizes, total)
    requests = max(1, len(arrivals))
    return Optimum(
        hits=hits, hit_ratio=hits / requests, bound_hits=bound, bound_ratio=bound / requests
    )


def _hosting(catalogue: Catalogue, model: ModelId) -> ModelId:
    """Return the model whose memory serves `model`: of an adapter, its base."""
    profile = catalogue.profiles.get(model)
    return model if profile is None else catalogue.host(profile).id


def _sizes(fleet: FleetFile, catalogue: Catalogue) -> dict[ModelId, int]:
    """Return the bytes of every model that some node can hold."""
    sizes = {}
    for model, profile in catalogue.profiles.items():
        least_mb = max(share_bytes(profile) / MIB, profile.min_device_vram_mb)
        for node in fleet.nodes:
            able = [device for device in node.devices if device.vram_total_mb >= least_mb]
            is_allowed = not profile.pinned_on or node.name in profile.pinned_on
            if is_allowed and len(able) >= profile.min_devices:
                sizes[model] = share_bytes(profile) * profile.min_devices
    return sizes


def _belady(
    names: Sequence[ModelId],
    uses: Mapping[ModelId, list[int]],
    sizes: Mapping[ModelId, int],
    total: int,
) -> int:
    hits, free = 0, total
    there: dict[ModelId, None] = {}
    for position, model in enumerate(names):
        if model not in sizes:
            continue
        if model in there:
            hits += 1
            continue
        while free < sizes[model] and there:
            # Of those that are never asked for again, the one that came first.
            farthest = max(there, key=lambda one: _next_use(uses[one], position))
            del there[farthest]
            free += sizes[farthest]
        there[model] = None
        free -= sizes[model]
    return hits


def _next_use(uses: Sequence[int], position: int) -> float:
    after = bisect_right(uses, position)
    return uses[after] if after < len(uses) else math.inf


def _bound(
    fleet: FleetFile,
    catalogue: Catalogue,
    arrivals: Sequence[Arrival],
    uses: Mapping[ModelId, list[int]],
    sizes: Mapping[ModelId, int],
    total: int,
) -> int:
    kept = {catalogue.host(profile).id for profile in catalogue.kept}
    areas: list[float] = []
    for model, positions in uses.items():
        size = sizes[model]
        back_s = min(_back_s(node, size) for node in fleet.nodes)
        times = [arrivals[position].at for position in positions]
        if times and model in kept:
            # Loaded before anybody asks, so that its first request may find it there.
            areas.append(0.0)
        areas += [size * min(b - a, back_s) for a, b in pairwise(times)]
    left = total * (arrivals[-1].at - arrivals[0].at) if arrivals else 0.0
    hits = 0
    for area in sorted(areas):
        left -= area
        if left < 0:
            break
        hits += 1
    return hits


def _back_s(node: SimulatedNode, size: int) -> float:
    """Return for how long a model holds memory on a node at least before it serves again."""
    size_mb = size / MIB
    fastest = max(node.load_mb_per_s, node.warm_mb_per_s or 0.0)
    load_s = node.load_s + size_mb / fastest
    wake_s = node.wake_s + size_mb / max(node.wake_mb_per_s, fastest)
    return min(load_s, wake_s) if node.sleep_mb else load_s
