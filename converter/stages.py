"""One way out of `build`: whatever a framework raises becomes one sentence that names the file and the stage."""

import contextlib
from collections.abc import Iterator

from edge_runtime.errors import CommandError, EdgeError

_LONGEST = 300


@contextlib.contextmanager
def stage(place: object, doing: str, remedy: str = "") -> Iterator[None]:
    """Turn foreign errors of a stage into ours, with the cause kept.

    Args:
        place: the file, which begins the message.
        doing: what is done, as in "asking the model".
        remedy: what the user may do about it.

    Raises:
        CommandError: something else than an error of ours was raised.
    """
    try:
        yield
    except (EdgeError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise CommandError(f"{place}: {doing} failed: {in_a_line(error)}{': ' if remedy else ''}{remedy}") from error


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line, with its kind where the text alone says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:_LONGEST] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
