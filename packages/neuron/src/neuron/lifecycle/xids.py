"""What NVIDIA's numbered reports of faults, Xids, call for.

Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog",
https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, column "Resolution Bucket
(Immediate Action)", as of October 2025. What is left to a workflow there is decided here:

- 48 (an ECC error that could not be corrected) calls for a reset, as NVIDIA's "Health
  Validation", https://docs.nvidia.com/health-validation/reference/checks/xid.md, has it.
- 45 (clean-up after another fault) and 43 (a program's fault) call for nothing: the program
  that they hit ends, and whoever watches it sees that.
- 74 and 144 to 150 (NVLink) depend on numbers that only the kernel's log has.
"""

import enum


class XidAction(enum.StrEnum):
    """What is to be done."""

    NOTHING = "nothing"
    RESTART_APP = "restart_app"
    """The programs that used the device may be broken; the device is well."""
    LOOK = "look"
    """Somebody has to look at the machine; the device may go on."""
    RESET = "reset"
    """Nothing runs on the device before it is reset."""
    GONE = "gone"
    """The device is off the bus until the machine is started anew."""


_RESTART_APP = frozenset(
    {8, 11, 13, 25, 31, 32, 39, 40, 41, 60}
    | {68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94, 96, 97, 98, 99}
    | {100, 101, 102, 103, 104, 105, *range(126, 136), 139}
)

_RESET = frozenset({46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158})

_LOOK = frozenset({54, 74, 78, *range(144, 151), 151})

_GONE = frozenset({79})


def action_of(xid: int) -> XidAction:
    """Return what an Xid calls for; one that is not known calls for nothing."""
    if xid in _GONE:
        return XidAction.GONE
    if xid in _RESET:
        return XidAction.RESET
    if xid in _RESTART_APP:
        return XidAction.RESTART_APP
    return XidAction.LOOK if xid in _LOOK else XidAction.NOTHING
