"""A tutorial as a list of steps: its code blocks, told apart by the comments before them."""

import re
from pathlib import Path

import msgspec

_STEP = re.compile(
    r"^<!-- (?P<kind>run|shows|start|file|append|stop)(?:: (?P<argument>[^>]*?))? -->\n"
    r"(?:```\w+\n(?P<block>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One marked block of a page."""

    kind: str
    """`run` a command; `shows` what the command before it prints; `start` or `stop` a daemon;
    write a `file`, or `append` to one."""
    argument: str
    block: str
    """Empty for `stop`."""


def steps_of(page: Path) -> list[Step]:
    """Return the steps of a page, in order; at least one."""
    steps = [
        Step(kind=match["kind"], argument=match["argument"] or "", block=match["block"] or "")
        for match in _STEP.finditer(page.read_text())
    ]
    assert steps, f"{page.name} has no steps"
    assert all(step.block for step in steps if step.kind != "stop"), "a comment without its block"
    return steps


def missing_lines(shown: str, output: str) -> list[str]:
    """Return the lines of a `shows` block that `output` does not have.

    Blanks count as one, `…` stands for anything within a line.
    """
    lines = [" ".join(line.split()) for line in output.splitlines()]
    return [
        wanted
        for wanted in shown.splitlines()
        if not any(_pattern(wanted).search(line) for line in lines)
    ]


def _pattern(wanted: str) -> re.Pattern[str]:
    parts = [re.escape(" ".join(part.split())) for part in wanted.split("…")]
    return re.compile(".*".join(parts))
