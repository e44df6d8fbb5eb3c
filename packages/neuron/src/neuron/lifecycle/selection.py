"""Which devices a model gets."""

from collections.abc import Iterator, Mapping, Sequence

from cortex_core.device import Device
from cortex_core.errors import InsufficientVramError, InvalidRequestError
from cortex_core.harness import ModelSpec
from cortex_core.ids import DeviceIndex
from cortex_core.units import mib_from_bytes
from cortex_core.wire.neuron import Link
from neuron.lifecycle.budget import Budget, share_bytes

_ALIKE_RATIO = 1.1
"""How much more memory a device may have than another with which it shares a model: products of
one name differ by a few per cent, neighbouring ones by a third or more."""

_WORTH_TELLING_BYTES = 256 << 20
"""Less than that in use by others is what the driver itself takes."""

Links = Mapping[DeviceIndex, tuple[Link, ...]]
"""Direct connections of each device, as far as they are known."""

_NO_LINKS: Links = {}


def select_devices(
    spec: ModelSpec, devices: Sequence[Device], budget: Budget, links: Links = _NO_LINKS
) -> tuple[DeviceIndex, ...]:
    """Return the devices for `spec`, in rank order; empty on a node without devices.

    Named devices are taken as they are. Otherwise the fullest devices that still have room are
    chosen, so that the emptiest stay free for larger models; the lower index wins a tie. Several
    that share one model are alike, and those with the most fast links between each other go
    first. A spec without an estimate needs nothing, and a device of unknown size has room.

    Raises:
        InvalidRequestError: the devices do not exist, or are not as many as are needed.
        InsufficientVramError: there is not enough memory now.
    """
    check_devices(spec, devices)
    if spec.devices:
        return _checked(spec, spec.devices, budget)
    if not devices:
        return ()
    count = spec.ranks
    share = share_bytes(spec.vram_bytes or 0, count)
    free = {device.index: _rank(budget.free_bytes(device.index)) for device in devices}
    teams = [team for team in _teams(devices, count) if len(team) >= count]
    found = [
        _picked(seed, roomy, count, free, links)
        for team in teams
        for roomy in ([index for index in team if free[index] >= share],)
        if len(roomy) >= count
        for seed in roomy
    ]
    if found:
        return min(found, key=lambda group: (-_joined(group, links), _sum(group, free), group))
    freest = [sorted(team, key=lambda index: (-free[index], index))[:count] for team in teams]
    nearest = max(freest, key=lambda group: free[group[-1]])
    return _checked(spec, tuple(sorted(nearest)), budget)


def check_devices(spec: ModelSpec, devices: Sequence[Device]) -> None:
    """Check that a node with `devices` could be meant by `spec` at all.

    Raises:
        InvalidRequestError: the devices do not exist, or are not as many as are needed.
    """
    known = {device.index for device in devices}
    missing = [index for index in spec.devices if index not in known]
    if missing:
        has = f"devices {sorted(known)}" if known else "no devices"
        raise InvalidRequestError(
            f"there is no device {missing[0]} here; this node has {has}", param="devices"
        )
    if len(set(spec.devices)) != len(spec.devices):
        raise InvalidRequestError("a device is named twice; name each once", param="devices")
    _check_parallel(spec)
    wanted = spec.ranks
    if known and wanted > len(known):
        raise InvalidRequestError(
            f"it needs {wanted} devices and this node has {len(known)}", param="tensor_parallel"
        )
    if known and not spec.devices and max(map(len, _teams(devices, wanted))) < wanted:
        raise InvalidRequestError(
            f"it needs {wanted} devices that are alike, and those of this node differ in memory, "
            "capability or slices; name `devices` to mix them",
            param="tensor_parallel",
        )


def _check_parallel(spec: ModelSpec) -> None:
    """Check that devices, stages and nodes go together.

    Raises:
        InvalidRequestError: they do not.
    """
    nodes, stages, named = spec.nodes, spec.pipeline_parallel or 1, len(spec.devices)
    wanted = named * nodes if spec.tensor_parallel is None and named else None
    wanted = (spec.tensor_parallel or 1) * stages if wanted is None else wanted
    if wanted % nodes:
        raise InvalidRequestError(
            f"tensor_parallel x pipeline_parallel is {wanted}, which {nodes} nodes cannot share "
            "evenly",
            param="tensor_parallel",
        )
    if named and wanted != named * nodes:
        raise InvalidRequestError(
            f"tensor_parallel x pipeline_parallel is {wanted} but {named} devices are named"
            f"{f' on each of {nodes} nodes' if nodes > 1 else ''}; make them equal",
            param="tensor_parallel",
        )
    if wanted % stages:
        raise InvalidRequestError(
            f"{wanted} devices are named, which {stages} stages cannot share evenly",
            param="pipeline_parallel",
        )


def _teams(devices: Sequence[Device], count: int) -> Iterator[list[DeviceIndex]]:
    """Yield sets of devices that may share a model: of one kind and about one size.

    One that stands alone may be any; a slice never shares with a whole device.
    """
    if count == 1:
        yield [device.index for device in devices]
        return
    for least in devices:
        yield [
            device.index
            for device in devices
            if (device.mig, device.compute_capability) == (least.mig, least.compute_capability)
            and least.vram_total_bytes
            <= device.vram_total_bytes
            <= _ALIKE_RATIO * least.vram_total_bytes
        ]


def _picked(
    seed: DeviceIndex,
    team: Sequence[DeviceIndex],
    count: int,
    free: Mapping[DeviceIndex, float],
    links: Links,
) -> tuple[DeviceIndex, ...]:
    """Return `count` of `team` around `seed`: each next one has the most links to those before.

    Where none has any, the one with the most links to the rest begins another island.
    """
    group = [seed]
    while len(group) < count:
        rest = [index for index in team if index not in group]
        ranked = (
            (-_links_to(index, group, links), -_links_to(index, rest, links), free[index], index)
            for index in rest
        )
        group.append(min(ranked)[-1])
    return tuple(sorted(group))


def _joined(group: Sequence[DeviceIndex], links: Links) -> int:
    """Count the fast links within `group`."""
    return sum(_links_to(index, group[:place], links) for place, index in enumerate(group))


def _links_to(index: DeviceIndex, others: Sequence[DeviceIndex], links: Links) -> int:
    return sum(link.kind == "nvlink" and link.peer in others for link in links.get(index, ()))


def _sum(group: Sequence[DeviceIndex], free: Mapping[DeviceIndex, float]) -> float:
    return sum(free[index] for index in group)


def _checked(
    spec: ModelSpec, chosen: tuple[DeviceIndex, ...], budget: Budget
) -> tuple[DeviceIndex, ...]:
    share = share_bytes(spec.vram_bytes or 0, len(chosen))
    frees = [budget.free_bytes(index) for index in chosen]
    if all(_rank(free) >= share for free in frees):
        return chosen
    needed = share * len(chosen)
    free_bytes = sum(free or 0 for free in frees)
    tightest = min(free for free in frees if free is not None)
    raise InsufficientVramError(
        f"{spec.model!r} needs {needed} bytes ({_mib(share)} on each of {len(chosen)}); "
        f"devices {list(chosen)} have {free_bytes} bytes free, {_mib(tightest)} on the fullest"
        f"{_others(chosen, budget)}",
        needed_bytes=needed,
        free_bytes=free_bytes,
    )


def _others(chosen: tuple[DeviceIndex, ...], budget: Budget) -> str:
    """Return a word about memory that nobody here can give back, where there is much of it."""
    sizes = [budget.unheld.get(index, 0) - budget.leaked.get(index, 0) for index in chosen]
    most = max(sizes, default=0)
    return f"; other processes use {_mib(most)} of one" if most >= _WORTH_TELLING_BYTES else ""


def _rank(free_bytes: int | None) -> float:
    # Unknown sizes count as endless: first choice only when nothing else has room.
    return float("inf") if free_bytes is None else free_bytes


def _mib(size_bytes: int) -> str:
    return f"{mib_from_bytes(size_bytes)} MiB"
