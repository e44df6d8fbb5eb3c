"""Whether the kernel has killed processes because memory was short."""

import pathlib

_VMSTAT = pathlib.Path("/proc/vmstat")
_FIELD = "oom_kill "
"""Processes killed so far, in whatever group of the machine (Linux 4.13 and later)."""


class OomCount:
    """Counts kills from its making on."""

    def __init__(self) -> None:
        self._before = _killed()

    def has_grown(self) -> bool:
        """Return whether a process was killed since; false where the kernel does not say."""
        now = _killed()
        return now is not None and self._before is not None and now > self._before


def _killed() -> int | None:
    try:
        text = _VMSTAT.read_text()
    except OSError:
        return None
    found = [line for line in text.splitlines() if line.startswith(_FIELD)]
    return int(found[0].removeprefix(_FIELD)) if found else None
