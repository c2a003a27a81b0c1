"""When the next wave of a signed rollout may begin, and which devices are in it. Pure, but for a clock.

Guarantee: no wave begins before the canaries have proven the bundle, as long as a possible canary is online; an offline
or hanging one is replaced by the next. Silent, stalled or slow devices do not hold back healthy ones: the wait is
`SILENT_S` for a silent device, `STALL_S` for a transfer without progress, and `STRAGGLER_S` for the rest once half of
the devices are done. Time is this process's own, since the clocks of two operators may differ; only a command that
returns at once (`by_clock`) uses the times in the file.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_runtime.fleet.rollout_file import LEFT_OUT, DeviceRow, RolloutPlan

SILENT_S = 30.0  # a device without a report for so long after its document was published counts as offline
STALL_S = 30.0  # without another byte
STRAGGLER_S = 30.0
_SETTLED = frozenset({"confirmed", "failed", *LEFT_OUT})


class WaveProgress:
    """The time of each device in its state.

    Args:
        by_clock: go by the times in the file.
        monotonic: the clock of this process.
    """

    def __init__(self, *, by_clock: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._by_clock = by_clock
        self._monotonic = monotonic
        self._latest: dict[str, tuple[str, int]] = {}
        self._since: dict[str, float] = {}
        self._published: dict[str, float] = {}
        self.has_moved = False  # some device has received something

    def published(self, device: str) -> None:
        """Its document is at the broker."""
        self._published[device] = self._since[device] = self._monotonic()

    def heard(self, device: str, state: str, received: int) -> None:
        """Note a report; a repeated one is no progress."""
        self.has_moved = self.has_moved or received > 0 or state in {"probation", "confirmed"}
        if self._latest.get(device) != (state, received):
            self._latest[device] = state, received
            self._since[device] = self._monotonic()

    def is_past(self, row: DeviceRow, soak: float) -> bool:
        """Nothing more is waited for: it is good, failed, waits for its time, hangs or is away."""
        if row.state in _SETTLED:
            return True
        age = self._age(row)
        if row.state == "probation":
            return age >= soak
        if row.state == "pending":  # at first without a reason, until the device has read its store
            return bool(row.why) or age >= SILENT_S
        if row.state == "receiving":
            return age >= STALL_S
        return age >= SILENT_S or not row.is_online

    def is_at_rest(self, devices: Sequence[DeviceRow], soak: float) -> bool:
        """Whether none of them will make progress soon."""
        return all(self.is_past(each, soak) for each in devices if each.serial)

    def is_proven(self, row: DeviceRow, soak: float) -> bool:
        """Whether it has run the bundle for long enough."""
        return row.state == "confirmed" or (row.state == "probation" and self.is_past(row, soak))

    def may_go_on(self, devices: Sequence[DeviceRow], soak: float) -> bool:
        """Whether the next wave need not wait for these."""
        published = [each for each in devices if each.serial]
        open_ones = [each for each in published if not self.is_past(each, soak)]
        if any(each.state == "probation" for each in open_ones):
            return False
        proven = sum(1 for each in published if self.is_proven(each, soak))
        return not open_ones or (
            2 * proven >= len(published) and all(self._since_published(each) >= STRAGGLER_S for each in open_ones)
        )

    def _age(self, row: DeviceRow) -> float:
        if self._by_clock:
            return time.time() - (row.updated or row.published)
        return self._monotonic() - self._since.setdefault(row.device, self._monotonic())

    def _since_published(self, row: DeviceRow) -> float:
        if self._by_clock:
            return time.time() - row.published
        return self._monotonic() - self._published.setdefault(row.device, self._monotonic())


class Due(NamedTuple):
    """The devices that are due now.

    Attributes:
        devices: empty while others are waited for.
        are_canaries: they replace offline canaries.
    """

    devices: list[DeviceRow]
    are_canaries: bool = False


def next_wave(devices: Sequence[DeviceRow], plan: RolloutPlan, progress: WaveProgress) -> Due:
    """Which devices are due now."""
    waiting = [each for each in devices if each.is_waiting]
    if not waiting or not progress.may_go_on(devices, plan.soak):
        return Due([])
    canaries = [each for each in devices if each.serial and each.wave == 1]
    missing = plan.canaries - sum(1 for each in canaries if progress.is_proven(each, plan.soak))
    wave = waiting[0].wave
    if canaries and wave > 1 and missing > 0 and not any(_waits_for_its_time(each) for each in canaries):
        spare = [each for each in waiting if each.is_online][:missing]
        if spare:
            return Due(spare, are_canaries=True)
    return Due([each for each in waiting if each.wave == wave])


def _waits_for_its_time(row: DeviceRow) -> bool:
    """For its window or its day, which a replacement would do too."""
    return row.state == "pending" and row.why.startswith("waiting ")
