"""Machines with cards, as `nvidia-smi -q` shows such ones, `[N/A]` included."""

from collections.abc import Callable

import msgspec

from tests.fakes.nvml import GIB, FakeCard


def l4(number: int = 0) -> FakeCard:
    """An inference card: everything but NVLink."""
    return FakeCard(
        "NVIDIA L4",
        uuid=f"GPU-l4-{number}",
        total=24 * GIB,
        power_mw=31_000,
        power_limit_mw=72_000,
        clocks_mhz=(2040, 6251),
        clock_reasons=0,
        ecc=(0, 0),
        rows=(0, 0, 0, 0),
        pcie=(4, 8, 4, 16),
        recovery_action=0,
        processes={},
    )


def h100(number: int = 0) -> FakeCard:
    """A card of a server with NVLink."""
    return FakeCard(
        "NVIDIA H100 80GB HBM3",
        uuid=f"GPU-h100-{number}",
        total=80 * GIB,
        capability=(9, 0),
        numa_node=number // 4,
        power_mw=71_000,
        power_limit_mw=700_000,
        clocks_mhz=(1980, 2619),
        clock_reasons=0x001,
        ecc=(0, 0),
        rows=(0, 0, 0, 0),
        recovery_action=0,
        pcie=(5, 16, 5, 16),
        nvlinks=(1,) * 18,
        processes={},
    )


def gtx1060() -> FakeCard:
    """An old desktop card: no ECC, no NVLink, retired pages and utilization not supported."""
    return FakeCard(
        "NVIDIA GeForce GTX 1060 6GB",
        uuid="GPU-gtx-0",
        total=6 * GIB,
        capability=(6, 1),
        power_mw=9_000,
        power_limit_mw=120_000,
        clocks_mhz=(139, 405),
        clock_reasons=0x001,
        pcie=(1, 16, 3, 16),
        processes={},
    )


def gb10() -> FakeCard:
    """Memory that it shares with the host: `[N/A]` for all of it."""
    return FakeCard(
        "NVIDIA GB10", uuid="GPU-gb10-0", total=None, capability=(12, 1), power_mw=4_000
    )


def a100_in_slices() -> FakeCard:
    """A card in MIG mode: slices say their memory and little else."""
    slices = {
        number: FakeCard(
            f"NVIDIA A100 MIG {size}g",
            uuid=f"MIG-{number}",
            total=size * 10 * GIB,
            busy=None,
            temp_c=None,
            capability=None,
        )
        for number, size in {1: 3, 2: 3, 6: 1}.items()
    }
    return FakeCard(
        "NVIDIA A100", uuid="GPU-a100-0", total=80 * GIB, capability=(8, 0), instances=slices,
        power_mw=60_000, ecc=(0, 0),
    )  # fmt: skip


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, and what is to be seen of it."""

    cards: Callable[[], list[FakeCard]]
    sizes_gib: tuple[int | None, ...]
    """Of the devices, by index."""
    alike: int = 1
    """Devices that may share a model."""
    has_nvlink: bool = False


SHAPES = {
    "one card": Shape(cards=lambda: [l4()], sizes_gib=(24,)),
    "one old card": Shape(cards=lambda: [gtx1060()], sizes_gib=(6,)),
    "two cards": Shape(cards=lambda: [l4(0), l4(1)], sizes_gib=(24, 24), alike=2),
    "two unlike cards": Shape(cards=lambda: [h100(), gtx1060()], sizes_gib=(80, 6)),
    "eight cards": Shape(
        cards=lambda: [h100(number) for number in range(8)],
        sizes_gib=(80,) * 8,
        alike=8,
        has_nvlink=True,
    ),
    "shared memory": Shape(cards=lambda: [gb10()], sizes_gib=(None,)),
    "slices": Shape(cards=lambda: [a100_in_slices()], sizes_gib=(30, 30, 10), alike=2),
    "a card and slices": Shape(
        cards=lambda: [l4(), a100_in_slices()], sizes_gib=(24, 30, 30, 10), alike=2
    ),
}


def card_of(cards: list[FakeCard], device: int) -> FakeCard:
    """Return the card or slice with this index."""
    whole = [
        part
        for card in cards
        for part in ([card] if card.instances is None else card.instances.values())
    ]
    return whole[device]
