"""The result of a check of `edge-runtime doctor`: one line for people, one object for programs."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

State = Literal["ok", "warning", "failure"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the diagnosis.

    Attributes:
        check: its subject, such as `port /dev/ttyUSB0`.
        state: `failure` keeps the device from working, `warning` may.
        found: the fact.
        remedy: what to do; empty for `ok`.
    """

    check: str
    state: State
    found: str
    remedy: str = ""

    def as_line(self, *, colour: bool = False) -> str:
        """For people."""
        mark = _MARKS[self.state]
        shown = f"\033[{_COLOURS[self.state]}m{mark}\033[0m" if colour else mark
        return f"{shown} {self.check}: {self.found}" + (f": {self.remedy}" if self.remedy else "")


_MARKS: dict[State, str] = {"ok": "ok     ", "warning": "warning", "failure": "FAILURE"}
_COLOURS: dict[State, str] = {"ok": "32", "warning": "33", "failure": "31"}

Check = Callable[[], Iterable[Finding]]


def findings(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; a check that fails itself is a warning, and the others still run."""
    try:
        yield from check()
    except OSError as error:
        yield Finding(name, "warning", f"could not be looked at: {error}")
