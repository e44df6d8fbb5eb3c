"""In what a load that is asked for differs from what is there."""

from collections.abc import Mapping

from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex


def difference(asked: ModelSpec, held: ModelSpec, devices: tuple[DeviceIndex, ...]) -> str | None:
    """Say in what `asked` differs from what is loaded, or `None` when it would be the same.

    Devices and peers count only when they are named, parallelism only when it is stated, and the
    estimate of memory never.
    """
    if asked.seat != held.seat:
        return _seat_difference(held)
    if asked.peers and asked.peers != held.peers:
        return f"peers are {_endpoints(held)} and {_endpoints(asked)} were asked for"
    for name in ("harness", "base", "adapter", "quant"):
        mine, theirs = getattr(asked, name), getattr(held, name)
        if mine != theirs:
            return f"{name} is {theirs!r} and {mine!r} was asked for"
    if asked.devices and devices and asked.devices != devices:
        return f"devices are {list(devices)} and {list(asked.devices)} were asked for"
    parallel = {
        "tensor_parallel": held.tensor_parallel_on(len(devices)),
        "pipeline_parallel": held.pipeline_parallel or 1,
    }
    for name, theirs in parallel.items():
        mine = getattr(asked, name)
        if mine not in (None, theirs):
            return f"{name} is {theirs} and {mine} was asked for"
    return _engine_difference(asked.engine, held.engine)


def _endpoints(spec: ModelSpec) -> list[str]:
    return [peer.endpoint for peer in spec.peers]


def _seat_difference(held: ModelSpec) -> str:
    if held.seat is None:
        return "it does not follow another node"
    return f"it is a part of a copy whose head is {held.seat.head}"


def _engine_difference(asked: Mapping[str, object], held: Mapping[str, object]) -> str | None:
    for option in sorted({*asked, *held}):
        if asked.get(option) != held.get(option):
            return (
                f"engine.{option} is {held.get(option)!r} and {asked.get(option)!r} was asked for"
            )
    return None
