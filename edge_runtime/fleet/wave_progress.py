"""When the next wave of a signed rollout may begin, and which devices are in it. Pure, but for a clock.

Guarantee: no wave begins before the canaries have proven the bundle, as long as a device that can prove it is online;
one that is away or hangs is replaced by the next. No device that is silent, stalls or is slow holds back the healthy
ones: a silent one is waited for `SILENT_S`, a transfer that does not move `STALL_S`, and once half of the devices are
where they should be, the rest for `STRAGGLER_S`. Time is that of this process and not of the file, since the clocks of
two operators may differ; only a command that returns at once (`by_clock`) has to go by the file.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_runtime.fleet.rollout_file import LEFT_OUT, DeviceRow, RolloutPlan

SILENT_S = 30.0  # without a report after its document was published, a device is away for now
STALL_S = 30.0  # without another byte
STRAGGLER_S = 30.0
_SETTLED = frozenset({"confirmed", "failed", *LEFT_OUT})


class WaveProgress:
    """How long each device is in its state.

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
        """A report; one that says nothing new is no progress."""
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
        if row.state == "pending":  # at first without a reason, until it has looked at its store
            return bool(row.why) or age >= SILENT_S
        if row.state == "receiving":
            return age >= STALL_S
        return age >= SILENT_S or not row.is_online

    def is_at_rest(self, devices: Sequence[DeviceRow], soak: float) -> bool:
        """Of none of them anything more is to be expected soon."""
        return all(self.is_past(each, soak) for each in devices if each.serial)

    def is_proven(self, row: DeviceRow, soak: float) -> bool:
        """It runs the bundle, and has for long enough."""
        return row.state == "confirmed" or (row.state == "probation" and self.is_past(row, soak))

    def may_go_on(self, devices: Sequence[DeviceRow], soak: float) -> bool:
        """The next wave need not wait for these any longer."""
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
        devices: none while others are waited for.
        are_canaries: they take the place of canaries that are away.
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
