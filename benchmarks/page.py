"""Pages that show the tables of runs."""


def with_table(page: str, name: str, table: str) -> str:
    """Return a page with another table between the two comments that have its name.

    Raises:
        ValueError: it has not both.
    """
    marks = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    head, begin, rest = page.partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"the page has no {marks[0]} and {marks[1]}")
    return f"{head}{begin}\n\n{table}\n{end}{tail}"
