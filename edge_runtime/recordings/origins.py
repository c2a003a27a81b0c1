"""The columns that identify the readings of a columnar file."""

from collections.abc import Sequence

from edge_runtime.stream.origin import Origin, RejectedError, read_identity


def identities(origins: Sequence[Origin], reasons: dict[int, str]) -> list[str | None]:
    """The identity of each reading; an unreadable one rejects the reading."""
    found: list[str | None] = []
    for index, origin in enumerate(origins):
        try:
            found.append(read_identity(origin))
        except RejectedError as error:
            found.append(None)
            reasons.setdefault(index, error.reason)
    return found
