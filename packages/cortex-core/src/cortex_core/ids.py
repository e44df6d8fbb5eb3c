"""Newtypes for the names that travel through cortex."""

from typing import NewType

import msgspec

ModelId = NewType("ModelId", str)
"""A model as its engine knows it, such as `Qwen/Qwen3-8B`; may contain `/`."""

NodeName = NewType("NodeName", str)
"""A machine that runs a neuron, as named under `[[neurons]]`."""

BootId = NewType("BootId", str)
"""One life of a neuron process; another value means that it was restarted."""

DeviceIndex = NewType("DeviceIndex", int)
"""Index of a device on its node, as the driver counts (NVML order)."""

RequestId = NewType("RequestId", str)
"""The `x-request-id` that follows one request through every process."""


class ReplicaId(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One model on one node, in whatever state it is there."""

    node: NodeName
    model: ModelId

    def __str__(self) -> str:
        """Return `model@node`, the form used in logs and explanations."""
        return f"{self.model}@{self.node}"
