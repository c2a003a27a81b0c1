"""The memory of this process: now, at its peak, and its growth since a moment."""

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Resident memory now; 0 where /proc does not say."""
    return _field("VmRSS:")


def peak_bytes() -> int:
    """The high-water mark of this program; `getrusage` would count the parent's memory at the time of the fork."""
    return _field("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back() -> None:
    """Return what was freed to the system, where the C library does so when asked (glibc).

    A reload loads its models in a thread, and glibc keeps what it had for a thread: without this, each reload of a
    hundred small models left 12 MiB behind.
    """
    import ctypes  # noqa: PLC0415 - only where there is something to give back

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Growth:
    """The growth of memory since its creation. A peak in between counts, unless an earlier one was higher."""

    def __init__(self) -> None:
        self._resident, self._peak = resident_bytes(), peak_bytes()

    def bytes(self) -> int:
        """The difference; may be negative."""
        peak = peak_bytes()
        return (peak if peak > self._peak else resident_bytes()) - self._resident


def _field(name: str) -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0
