"""Which models go from the disk so that another one fits."""

from collections.abc import Iterable

import msgspec


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the hub cache."""

    id: str
    size_bytes: int
    last_used: float
    """Epoch seconds."""
    is_kept: bool = False
    """It is not to go: it is used, or somebody wants it to stay."""


class Cleaning(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done."""

    victims: tuple[str, ...] = ()
    """Who goes, the one that was not used for longest first."""
    lacking_bytes: int = 0
    """What would be missing all the same; above 0 nobody goes for a download."""


def plan_cleaning(
    stored: Iterable[Stored],
    *,
    needed_bytes: int,
    budget_bytes: int | None,
    free_bytes: int | None,
) -> Cleaning:
    """Decide who goes.

    Args:
        stored: everything in the hub cache, each id once.
        needed_bytes: what is to be downloaded yet; 0 only keeps to the budget.
        budget_bytes: what the hub cache may hold; `None` is no limit, and nobody goes then.
        free_bytes: what the disk has; `None` is not known, and taken to be enough.

    Returns:
        Those who were not used for longest, as many as are needed and none that can be spared.
    """
    models = sorted(stored, key=lambda model: (model.last_used, model.id))
    lacking = max(0, needed_bytes - free_bytes) if free_bytes is not None else 0
    if budget_bytes is None:
        return Cleaning(lacking_bytes=lacking)
    used = sum(model.size_bytes for model in models)
    lacking = max(lacking, used + needed_bytes - budget_bytes, 0)
    chosen: list[Stored] = []
    gained = 0
    for model in models:
        if gained >= lacking:
            break
        if not model.is_kept and model.size_bytes > 0:
            chosen.append(model)
            gained += model.size_bytes
    if gained < lacking and needed_bytes:
        return Cleaning(lacking_bytes=lacking - gained)
    for model in reversed(tuple(chosen)):
        if gained - model.size_bytes >= lacking:
            chosen.remove(model)
            gained -= model.size_bytes
    return Cleaning(
        victims=tuple(model.id for model in chosen), lacking_bytes=max(0, lacking - gained)
    )
