"""Who goes from the disk."""

from hypothesis import given, strategies as st

from neuron.lifecycle.cleaning import Stored, plan_cleaning

MODELS = st.lists(
    st.builds(
        Stored,
        id=st.text("abcdef", min_size=1, max_size=3),
        size_bytes=st.integers(0, 100),
        last_used=st.floats(0, 10),
        is_kept=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda model: model.id,
)


@given(MODELS, st.integers(0, 300), st.integers(0, 500), st.integers(0, 500) | st.none())
def test_as_many_go_as_must_and_no_more(
    stored: list[Stored], needed: int, budget: int, free: int | None
) -> None:
    """Ours: never what is kept, the oldest first, nobody in vain."""
    plan = plan_cleaning(stored, needed_bytes=needed, budget_bytes=budget, free_bytes=free)

    by_id = {model.id: model for model in stored}
    victims = [by_id[name] for name in plan.victims]
    gained = sum(model.size_bytes for model in victims)
    used = sum(model.size_bytes for model in stored)
    wanted = max(used + needed - budget, needed - free if free is not None else 0, 0)
    assert not any(model.is_kept for model in victims)
    assert victims == sorted(victims, key=lambda model: (model.last_used, model.id))
    assert all(gained - model.size_bytes < wanted for model in victims)
    if plan.lacking_bytes:
        assert wanted > sum(model.size_bytes for model in stored if not model.is_kept)
        assert not (victims and needed)
    else:
        assert gained >= wanted


@given(MODELS, st.integers(0, 300), st.integers(0, 500))
def test_nobody_goes_without_a_budget(stored: list[Stored], needed: int, free: int) -> None:
    """Ours: what is on the disk of a node without a budget is its operator's."""
    plan = plan_cleaning(stored, needed_bytes=needed, budget_bytes=None, free_bytes=free)

    assert plan.victims == ()
    assert plan.lacking_bytes == max(0, needed - free)


def test_the_one_that_was_not_used_for_longest_goes() -> None:
    """Ours: least recently used."""
    stored = [
        Stored(id="old", size_bytes=10, last_used=1),
        Stored(id="loaded", size_bytes=10, last_used=0, is_kept=True),
        Stored(id="new", size_bytes=10, last_used=2),
    ]

    plan = plan_cleaning(stored, needed_bytes=5, budget_bytes=30, free_bytes=100)

    assert plan.victims == ("old",)
