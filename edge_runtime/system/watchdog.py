"""The register of work in threads: the watchdog is fed only while no work is overdue.

One process has one watchdog, so there is one register. A thread registers its work with the longest time for it; the
loop checks the register before it notifies systemd. Guarantee: a thread that hangs in `working` stops the
notifications, and systemd restarts the service. Weak point: work outside of `working` is not covered.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

HANG_S = 60.0  # for work that normally takes milliseconds

_process_register: dict[object, tuple[str, float]] = {}


@contextmanager
def working(what: str, most_s: float | None = None) -> Iterator[None]:
    """Register `what` for the block, which takes at most `most_s` seconds; `HANG_S` by default."""
    token = object()
    _process_register[token] = (what, time.monotonic() + (HANG_S if most_s is None else most_s))
    try:
        yield
    finally:
        del _process_register[token]


def overdue() -> list[str]:
    """The overdue work."""
    now = time.monotonic()
    return sorted({what for what, until in list(_process_register.values()) if now > until})
