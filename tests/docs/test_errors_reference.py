"""The table of errors is the one that the code has."""

from collections.abc import Iterator

from cortex_core import errors
from cortex_core.errors import RequestError
from tests.docs.tables import rows_of


def classes_below(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
        yield from classes_below(below)


def row_of(kind: type[RequestError]) -> tuple[str, ...]:
    """Give the cells that the table must have for a class."""
    retry_s = kind.default_retry_after_s
    return (
        kind.__name__,
        str(kind.status),
        kind.openai_type,
        kind.code or "none",
        str(kind.anthropic_status),
        kind.anthropic_type,
        "none" if retry_s is None else f"{retry_s:g} s",
    )


def test_table_has_every_error_with_both_faces() -> None:
    """Ours: clients are written against this table."""
    documented = [row[:7] for row in rows_of("errors")]

    assert sorted(documented) == sorted({row_of(kind) for kind in classes_below(RequestError)})


def test_errors_that_forbid_a_retry_are_the_ones_that_the_page_names() -> None:
    """Ours: `x-should-retry` is mentioned for one error alone."""
    forbidding = {k.code for k in classes_below(RequestError) if k.should_retry is not None}

    assert forbidding == {"model_does_not_fit"}
