"""Whether the wall clock is set: a Raspberry Pi has no battery-backed one, and starts in the past.

The kernel reports whether a time service controls the clock (adjtimex(2): STA_UNSYNC is cleared then), and whether it
was set from a battery-backed one at boot (`hctosys`). Until one of them holds, predictions have `"clock":
"unsynchronised"`. Weak point: in a container the state may be unknown, and then counts as unsynchronised.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

RTC_FOLDER = Path("/sys/class/rtc")
STA_UNSYNC = 0x0040  # linux/timex.h
RECHECK_S = 30.0


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), as far as `status`; the rest is padding for the kernel to write into."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("padding", ctypes.c_byte * 256),
    )


def kernel_says_set() -> bool:
    """What the kernel reports; True where it cannot be read."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return True
    found = _Timex()
    if adjtimex(ctypes.byref(found)) < 0:
        return True
    return not found.status & STA_UNSYNC or _was_set_from_hardware()


def _was_set_from_hardware() -> bool:
    for flag in RTC_FOLDER.glob("rtc*/hctosys"):
        try:
            if flag.read_text().strip() == "1":
                return True
        except OSError:
            continue  # unreadable: treated as not set
    return False


class Clock:
    """Whether the wall clock is set; checked every `RECHECK_S` until it is, and never again."""

    def __init__(self, ask: Callable[[], bool] = kernel_says_set) -> None:
        self._ask = ask
        self._next = 0.0
        self._synchronised = False

    @property
    def is_synchronised(self) -> bool:
        """True once the clock has been set by a time service."""
        if not self._synchronised and time.monotonic() >= self._next:
            self._next = time.monotonic() + RECHECK_S
            self._synchronised = self._ask()
        return self._synchronised
