"""The register of work in threads: the watchdog is fed only while no work is overdue.

One process has one watchdog, so there is one register. A thread enters what it begins and how long that may take; the
loop looks at the register before it feeds the watchdog. Guarantee: a thread that hangs in `working` starves
the watchdog, and systemd starts the service anew. Weak point: what a thread does outside of `working` is not seen.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

HANG_S = 60.0  # for what is done in milliseconds when all is well

_process_register: dict[object, tuple[str, float]] = {}


@contextmanager
def working(what: str, most_s: float | None = None) -> Iterator[None]:
    """While a thread is at `what`, which takes `most_s` seconds at the very most; `HANG_S` when left out."""
    token = object()
    _process_register[token] = (what, time.monotonic() + (HANG_S if most_s is None else most_s))
    try:
        yield
    finally:
        del _process_register[token]


def overdue() -> list[str]:
    """What has not come back in its time."""
    now = time.monotonic()
    return sorted({what for what, until in list(_process_register.values()) if now > until})
