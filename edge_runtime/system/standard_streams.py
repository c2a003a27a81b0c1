"""The standard streams of a command: none is closed, and output that cannot be written is a failure with its reason.

Guarantee: no file that a command opens takes the place of a standard stream that was closed (`>&-`); a full disk behind
standard output (`> /dev/full`) is one line and exit code 1, also where the text was still in a buffer at the end; a
reader that has gone away (`| head`) ends the command quietly.
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
    """A terminal that shows colours, and whose user did not ask for none (`NO_COLOR`, see no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def guarded(command: Callable[[], int], gone: int) -> int:
    """Run a command and write its output to the end; its exit code.

    Args:
        command: may raise whatever it wants; what is no fault of standard output passes through.
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
    """Why standard output cannot be written, where that is what happened: what it holds is tried again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _discard() -> None:
    """What is still in the buffer goes nowhere, so that it is not tried once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
