"""The standard streams of a command: none is closed, and a failed write of output is an error with its reason.

Guarantee: no file that a command opens gets the number of a closed standard stream (`>&-`); a full disk behind standard
output (`> /dev/full`) gives one line and exit code 1, also for text that was still in a buffer; a closed reader (`|
head`) ends the command quietly.
"""

import os
import sys
from collections.abc import Callable
from typing import IO

from edge_runtime.errors import EXIT_FAILED


def keep_open() -> None:
    """Open the null device in the place of each standard stream that is closed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def wants_colour(stream: IO[str]) -> bool:
    """Whether a terminal shows colours, and `NO_COLOR` is not set (see no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def guarded(command: Callable[[], int], gone: int) -> int:
    """Run a command and write its output to the end; its exit code.

    Args:
        command: its exceptions that are no fault of standard output are passed on.
        gone: the exit code where the reader of standard output went away.
    """
    keep_open()
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        return gone
    except OSError:
        fault = _fault_of_output()
        if fault is None:
            raise
        _discard()
        sys.stderr.write(f"standard output: cannot be written: {fault.strerror}\n")
        return EXIT_FAILED
    return code


def _fault_of_output() -> OSError | None:
    """The reason of a failed write to standard output, if that failed: the rest of the buffer is tried again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _discard() -> None:
    """Discard the buffer, so that the interpreter does not try to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
