"""Where the parts of one copy of a model are that several nodes hold together."""

import msgspec

from cortex_core.ids import DeviceIndex


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another node that holds a part of the same copy of a model."""

    endpoint: str
    """Base URL of its neuron."""
    devices: tuple[DeviceIndex, ...] = ()
    """Devices to use there; empty lets its neuron choose."""


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """The place of one node among those that hold one copy of a model together."""

    group: str
    """Tells this group from every other one, earlier ones of the same model included."""
    rank: int
    """0 is the head, which alone takes requests."""
    nodes: int
    address: str
    """Of the head, where the engine's processes find each other."""
    port: int
    """There."""
    host: str = ""
    """Address under which this node is reached by the others."""
    head: str = ""
    """How the head calls itself, for people."""
