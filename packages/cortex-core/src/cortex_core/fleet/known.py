"""What is known of what a model can do."""

from collections.abc import Iterable, Sequence

import msgspec

from cortex_core.harness import Capabilities, Limit
from cortex_core.replica import Replica


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a model, by its files or by its replicas; `None` is nothing."""

    capabilities: Capabilities | None = None
    """What at least one replica can do."""
    limit: Limit | None = None
    """What holds wherever a request lands."""


def told_by(replicas: Sequence[Replica]) -> Known:
    """Return what `replicas` of one model say together."""
    return Known(
        capabilities=_together([one.capabilities for one in replicas if one.capabilities]),
        limit=_narrowest([one.limit for one in replicas if one.limit]),
    )


def _together(told: Sequence[Capabilities]) -> Capabilities | None:
    if not told:
        return None
    names = Capabilities.__struct_fields__
    return Capabilities(**{name: any(getattr(one, name) for one in told) for name in names})


def _narrowest(told: Sequence[Limit]) -> Limit | None:
    if not told:
        return None
    return Limit(
        context=_smallest(limit.context for limit in told),
        output=_smallest(limit.output for limit in told),
    )


def _smallest(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
