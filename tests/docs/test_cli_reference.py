"""The reference of commands has every command and option, with its default."""

import argparse

import click
import pytest

from cortex_cli.main import cortex
from cortex_gateway import __main__ as gateway_main
from neuron import __main__ as neuron_main
from tests.docs.tables import rows_of
from tests.repository.checkout import ROOT


def own_commands() -> dict[str, click.Command]:
    """Give our commands by their whole names; a group that does something by itself is one."""
    found: dict[str, click.Command] = {}
    for name, command in cortex.commands.items():
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[f"cortex {name}"] = command
        if isinstance(command, click.Group):
            found |= {f"cortex {name} {below}": one for below, one in command.commands.items()}
    return found


COMMANDS = {name: command for name, command in own_commands().items() if command.params}

WITHOUT_OPTIONS = {"cortex config check"}


def click_options(command: click.Command) -> dict[str, str]:
    """Give the long name of each option of ours and its default as the page writes it."""
    return {
        option.opts[0]: "false" if option.is_flag else default_of(option.default)
        for option in command.params
        if isinstance(option, click.Option)
    }


def argparse_options(parser: argparse.ArgumentParser) -> dict[str, str]:
    return {
        action.option_strings[-1]: default_of(action.default)
        for action in parser._actions
        if action.option_strings and action.dest != "help"
    }


def default_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    is_unset = value is None or value == () or type(value).__name__ == "Sentinel"
    return "none" if is_unset else str(value)


def documented(section: str) -> dict[str, str]:
    return {row[0]: row[1] for row in rows_of("cli", section) if row[0].startswith("--")}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_OPTIONS))
def test_options_of_our_commands_are_documented(name: str) -> None:
    """Ours: an option without a row is one that nobody finds."""
    assert documented(name) == click_options(COMMANDS[name])


def test_options_of_the_neuron_are_documented() -> None:
    """Ours: as above."""
    assert documented("neuron") == argparse_options(neuron_main._parser())


def test_options_of_the_gateway_are_documented() -> None:
    """Ours: as above; its version option has no default worth a word."""
    options = argparse_options(gateway_main._parser("0"))

    assert documented("cortex serve") == options | {"--version": ""}


def test_every_command_has_its_part() -> None:
    """Ours: `cortex --help` and the page list the same."""
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    brought = set(cortex.list_commands(click.Context(cortex))) - cortex.commands.keys()
    names = {*own_commands(), *(f"cortex {name}" for name in brought)}

    headings = [line[4:-1] for line in text.splitlines() if line.startswith("## `cortex ")]
    assert sorted(headings) == sorted(names)
