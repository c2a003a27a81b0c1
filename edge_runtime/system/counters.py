"""The counters of every stage, from which the health document is made.

Only its own stage writes to a `Counters`. Reasons are words of the glossary.
"""

import contextlib
import hashlib
from array import array
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_MACHINE_ID = Path("/etc/machine-id")
_BOARD_SERIAL = Path("/proc/device-tree/serial-number")
_UPTIME = Path("/proc/uptime")
_TEMPERATURE = Path("/sys/class/thermal/thermal_zone0/temp")


class Note(NamedTuple):
    """The last reading that was refused for one reason, until its source has reported it.

    Attributes:
        frame: its index among the frames that were decoded together; -1 where `sample` holds its beginning.
        why: what was expected and found.
        sample: the beginning of a frame that did not reach a decoder.
    """

    frame: int
    why: str
    sample: bytes


class Tally(Counter[str]):
    """Counts by reason, assigned to as a plain `dict`.

    `Counter` has a `__delitem__` in Python, and for such a class the interpreter calls every assignment by its name.
    """

    __setitem__ = dict.__setitem__
    __delitem__ = dict.__delitem__  # type: ignore[assignment]  # of any key in the stubs of `Counter`


class Counters:
    """What happened at one stage since the start: plain counts, and counts by reason.

    Attributes:
        counts: successes, such as `readings` or `published`.
        rejected: readings out of the contract, by reason.
        dropped: losses by lack of space or time, by reason.
        skipped: repeated readings, by reason.
        errors: faults of the outside world, by reason, such as `disconnected` or `disk_full`.
        notes: the last rejection of each reason since the source's last report.
        last_rejected: for health, by reason: time, place, explanation and a sample of the last one.
    """

    __slots__ = ("counts", "dropped", "errors", "last_rejected", "notes", "rejected", "skipped")

    def __init__(self) -> None:
        self.counts = Tally()
        self.rejected = Tally()
        self.dropped = Tally()
        self.skipped = Tally()
        self.errors = Tally()
        self.notes: dict[str, Note] = {}
        self.last_rejected: dict[str, dict[str, str]] = {}

    def document(self) -> dict[str, Any]:
        """As health shows them: the plain counts, and those by reason where there are any."""
        parts: dict[str, Any] = dict(self.counts)
        for name in ("rejected", "skipped", "dropped", "errors"):
            found = {reason: count for reason, count in getattr(self, name).items() if count}
            if found:
                parts[name] = found
        return parts

    def reject(self, reason: str, why: str = "", *, frame: int = -1, sample: bytes = b"", count: int = 1) -> None:
        """Count refused readings, and note the last of them for the source's report."""
        self.rejected[reason] += count
        self.notes[reason] = Note(frame, why, sample)


class Latencies:
    """The last thousand latencies from bytes to payload, in seconds, for their quantiles."""

    SIZE = 1024

    def __init__(self) -> None:
        self._ring = array("d", bytes(8 * self.SIZE))
        self._count = 0

    def add(self, seconds: float) -> None:
        """Note one."""
        self._ring[self._count % self.SIZE] = seconds
        self._count += 1

    def quantiles_ms(self) -> dict[str, float]:
        """The median and the 99th percentile in milliseconds; empty before the first."""
        known = sorted(self._ring[: min(self._count, self.SIZE)])
        if not known:
            return {}
        at = {"p50": 0.5, "p99": 0.99}
        return {name: round(1000 * known[min(len(known) - 1, int(q * len(known)))], 3) for name, q in at.items()}


def machine_state() -> dict[str, float | str | None]:
    """Id, boot time and processor temperature of this machine; None where the kernel does not report them.

    `id` distinguishes two machines with the same device id. It is a hash of `/etc/machine-id`, which must not be
    published.
    """
    uptime, millidegrees = _first_number(_UPTIME), _first_number(_TEMPERATURE)
    return {
        "id": machine_id(),
        "uptime_s": uptime,
        "temperature_c": None if millidegrees is None else millidegrees / 1000,
    }


@cache
def machine_id() -> str | None:
    """Sixteen hex digits that stay the same on this machine; None where it has no id.

    A card that was copied has the same `/etc/machine-id`, so the board's serial number counts too.
    """
    parts = []
    for path in (_MACHINE_ID, _BOARD_SERIAL):
        with contextlib.suppress(OSError):
            parts.append(path.read_bytes().strip(b"\0 \n"))
    return hashlib.sha256(b"edge-runtime:" + b"/".join(parts)).hexdigest()[:16] if any(parts) else None


def _first_number(path: Path) -> float | None:
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
