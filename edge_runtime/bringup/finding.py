"""What a check of `edge-runtime doctor` found: one line for people, one object for programs."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

State = Literal["ok", "warning", "failure"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the diagnosis.

    Attributes:
        check: what was looked at, such as `port /dev/ttyUSB0`.
        state: `failure` keeps the device from working, `warning` may.
        found: what is the case.
        remedy: what to do; empty where nothing is to be done.
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
    """What a check finds; one that cannot be made is a warning, and keeps no other from being made."""
    try:
        yield from check()
    except OSError as error:
        yield Finding(name, "warning", f"could not be looked at: {error}")
