"""Memory of the machine itself."""

import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")


def available_bytes(meminfo: pathlib.Path = _MEMINFO) -> int:
    """Return the host memory that can be had without swapping; 0 when nobody says.

    Source: `MemAvailable` of proc(5), in kB of 1024 bytes.
    """
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return 0
