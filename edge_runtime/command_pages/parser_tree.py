"""A command line as a tree of commands with their options, read from its argparse parser. Pure."""

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec


class Option(msgspec.Struct, frozen=True):
    """One option.

    Attributes:
        flags: such as `-o`, `--output`.
        value: its metavar in the usage; empty for a flag without a value.
        choices: of the value.
        text: its help.
    """

    flags: tuple[str, ...]
    value: str = ""
    choices: tuple[str, ...] = ()
    text: str = ""


class Argument(msgspec.Struct, frozen=True):
    """One word that is no option."""

    name: str
    choices: tuple[str, ...] = ()
    text: str = ""


class Command(msgspec.Struct, frozen=True):
    """A program, or a command of it.

    Attributes:
        path: its words; empty for the program itself.
        text: its help in a few words.
        usage: on one line.
        epilog: the last paragraph.
        options: without those of its parents.
        arguments: without the name of a command below it.
        commands: below it.
    """

    path: tuple[str, ...]
    text: str
    usage: str
    epilog: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple["Command", ...]

    def walk(self) -> Iterator["Command"]:
        """Itself, and everything below."""
        yield self
        for each in self.commands:
            yield from each.walk()


def command_of(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), text: str = "") -> Command:
    """The tree of a parser."""
    options: list[Option] = []
    arguments: list[Argument] = []
    below: list[Command] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way; a test names it
        if action.help is argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            texts = {each.dest: each.help or "" for each in action._choices_actions}  # noqa: SLF001
            below += [command_of(each, (*path, name), texts.get(name, "")) for name, each in action.choices.items()]
        elif action.option_strings:
            options.append(_option(parser, action))
        else:
            name = action.metavar if isinstance(action.metavar, str) else action.dest
            arguments.append(Argument(name, _choices(action), _help(parser, action)))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    return Command(
        path=path,
        text=text or (parser.description or "").rstrip("."),
        usage=usage,
        epilog=parser.epilog or "",
        options=tuple(options),
        arguments=tuple(arguments),
        commands=tuple(below),
    )


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    value = ""
    if action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Option(tuple(action.option_strings), value, _choices(action), _help(parser, action))


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(str(each) for each in action.choices or ())


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    facts: dict[str, Any] = {**vars(action), "prog": parser.prog}
    return (action.help or "") % facts
