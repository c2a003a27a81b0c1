"""Exceptions of frameworks become one sentence that names the file and the stage of `build`."""

import contextlib
from collections.abc import Iterator

from edge_runtime.errors import CommandError, EdgeError

_LONGEST = 300


@contextlib.contextmanager
def stage(place: object, doing: str, remedy: str = "") -> Iterator[None]:
    """Turn errors of libraries in a stage into a `CommandError` with its cause.

    Args:
        place: the file, which begins the message.
        doing: the stage, as in "asking the model".
        remedy: advice for the user.

    Raises:
        CommandError: a library raised an error.
    """
    try:
        yield
    except (EdgeError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise CommandError(f"{place}: {doing} failed: {in_a_line(error)}{': ' if remedy else ''}{remedy}") from error


def in_a_line(error: BaseException) -> str:
    """The text of an error in one line, with its type where the text alone is too short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:_LONGEST] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
