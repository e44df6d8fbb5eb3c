"""Conversions between the units of wire, TOML and the code.

Inside cortex sizes are bytes and durations are seconds. The given wire format and the
TOML files say `_mb` and mean MiB (`docs/reference/settings.md`).
"""

MIB = 1 << 20
"""Bytes in one mebibyte."""


def bytes_from_mib(mib: float) -> int:
    """Return `mib` mebibytes as whole bytes."""
    return int(mib * MIB)


def mib_from_bytes(size_bytes: int) -> int:
    """Return `size_bytes` as whole mebibytes, rounded down."""
    return size_bytes // MIB
