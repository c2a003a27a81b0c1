"""Man pages in roff: one for the program, and one for each of its commands. Pure; equal commands give equal bytes."""

import re
from collections.abc import Sequence

from edge_runtime.command_pages.parser_tree import Argument, Command, Option


def pages(program: Command, *, name: str, version: str, date: str) -> dict[str, str]:
    """The pages by their file names, such as `edge-runtime-flash.1`."""
    found = {f"{name}.1": _page(program, program, name=name, version=version, date=date)}
    for each in program.commands:
        full = "-".join((name, *each.path))
        found[f"{full}.1"] = _page(each, program, name=name, version=version, date=date)
    return found


def _page(command: Command, program: Command, *, name: str, version: str, date: str) -> str:
    full, words = "-".join((name, *command.path)), " ".join((name, *command.path))
    lines = [
        f'.TH "{_escaped(full.upper())}" "1" "{date}" "{_escaped(name)} {_escaped(version)}" "Commands"',
        ".SH NAME",
        f"{_escaped(full)} \\- {_escaped(_lower(command.text))}",
        ".SH SYNOPSIS",
        ".nh",
        f".B {_escaped(words)}",
        _escaped(command.usage.removeprefix(words).strip()),
        ".hy",
        ".SH DESCRIPTION",
        _text(command.text[:1].upper() + command.text[1:] + "."),
    ]
    if command is program:
        lines += [".SH COMMANDS"]
        for each in command.commands:
            lines += [".TP", f"\\fB{_escaped(' '.join((name, *each.path)))}\\fR", _text(each.text)]
    else:
        lines += _entries("ARGUMENTS", command.arguments)
    lines += _entries("OPTIONS", command.options)
    if command is not program:
        for each in list(command.walk())[1:]:
            lines += [f'.SH "{_escaped(" ".join(each.path[1:]).upper())}"', f"\\fB{_escaped(each.usage)}\\fR", ".PP"]
            lines += [_text(each.text[:1].upper() + each.text[1:] + ".")]
            parts: list[Option | Argument] = [*each.arguments, *each.options]
            lines += [line for part in parts for line in _entry(part)]
    lines += _exit_status(command.epilog or program.epilog)
    others = [
        f"\\fB{_escaped('-'.join((name, *each.path)))}\\fR(1)" for each in program.commands if each is not command
    ]
    if command is not program:
        others = [f"\\fB{_escaped(name)}\\fR(1)"]
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(others), ""])


def _entries(title: str, parts: Sequence[Option | Argument]) -> list[str]:
    return [f".SH {title}", *(line for part in parts for line in _entry(part))] if parts else []


def _entry(part: Option | Argument) -> list[str]:
    if isinstance(part, Argument):
        head = f"\\fI{_escaped(part.name)}\\fR"
    else:
        head = ", ".join(f"\\fB{_escaped(flag)}\\fR" for flag in part.flags)
        if part.value or part.choices:
            head += f" \\fI{_escaped('|'.join(part.choices) or part.value)}\\fR"
    return [".TP", head, _text(part.text) or "\\&"]


def _exit_status(epilog: str) -> list[str]:
    """The last line of every parser's help, as the table of exit codes of man pages."""
    found = re.findall(r"(\d+) ([^,]+)", epilog.removeprefix("exit codes:")) if "exit codes" in epilog else []
    if not found:
        return []
    return [".SH EXIT STATUS", *(line for code, text in found for line in (".TP", f"\\fB{code}\\fR", _text(text)))]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _text(text: str) -> str:
    """A paragraph; a line that begins with a control character is none."""
    escaped = _escaped(text)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
