"""When the next wave of a signed rollout begins: by a clock that the test turns, and rows that it writes."""

import pytest

from edge_runtime.fleet.rollout_file import DeviceRow, RolloutPlan
from edge_runtime.fleet.wave_progress import SILENT_S, STALL_S, STRAGGLER_S, WaveProgress, next_wave

SOAK_S = 60.0
PLAN = RolloutPlan(model="comfort", version="1.1.0", digest="d" * 64, size=10, soak=SOAK_S, canaries=1)


class _Fleet:
    """A rollout over devices; the documents of a wave are at the broker once it was due."""

    def __init__(self, *waves: str) -> None:
        self.now = 1000.0
        self.progress = WaveProgress(by_clock=False, monotonic=lambda: self.now)
        self.rows = [
            DeviceRow(device=name, wave=number) for number, names in enumerate(waves, start=1) for name in names
        ]

    def row(self, name: str) -> DeviceRow:
        (found,) = (row for row in self.rows if row.device == name)
        return found

    def due(self, plan: RolloutPlan = PLAN) -> str:
        """The devices that are due now; they get their documents."""
        found = next_wave(self.rows, plan, self.progress)
        for row in found.devices:
            row.serial = 7
            self.progress.published(row.device)
        names = "".join(row.device for row in found.devices)
        return f"canaries {names}" if found.are_canaries else names

    def report(self, names: str, state: str, received: int = 0, why: str = "") -> None:
        for name in names:
            row = self.row(name)
            row.state, row.why = state, why
            self.progress.heard(name, state, received)


@pytest.fixture
def fleet() -> _Fleet:
    """A canary that has its document, and a wave of three."""
    made = _Fleet("a", "bcd")
    assert made.due() == "a"
    return made


def test_a_canary_proves_a_bundle_by_running_it_for_the_soak(fleet: _Fleet) -> None:
    """Not by its first report of a probation; not a moment sooner."""
    fleet.report("a", "probation")
    assert not fleet.progress.is_proven(fleet.row("a"), SOAK_S)
    fleet.now += SOAK_S - 0.1
    fleet.report("a", "probation")  # reported again: that is no new probation
    assert fleet.due() == ""
    fleet.now += 0.1
    assert fleet.progress.is_proven(fleet.row("a"), SOAK_S)
    assert fleet.due() == "bcd"


def test_a_canary_that_confirms_needs_no_soak(fleet: _Fleet) -> None:
    """It has judged by itself."""
    fleet.report("a", "confirmed")
    assert fleet.due() == "bcd"


@pytest.mark.parametrize("how", ["failed", "silent", "stalled"])
def test_a_canary_that_proves_nothing_is_replaced_by_one_of_the_next_wave(fleet: _Fleet, how: str) -> None:
    """One that is online; and the wave waits for it."""
    fleet.row("b").is_online = False
    if how == "failed":
        fleet.report("a", "failed", why="answers NaN")
    elif how == "stalled":
        fleet.report("a", "receiving", 5)
        for _ in range(2):
            fleet.now += STALL_S - 0.1
            assert fleet.due() == ""
            fleet.report("a", "receiving", 6)  # another byte is progress, the same one is none
        fleet.now += 0.1
    else:
        fleet.now += SILENT_S - 0.1
        assert fleet.due() == ""
        fleet.now += 0.1
    assert fleet.due() == "canaries c"
    assert fleet.due() == ""
    fleet.row("c").wave = 1  # as the conductor moves it
    fleet.report("c", "confirmed")
    assert fleet.due() == "bd"


def test_half_of_a_wave_and_half_a_minute_are_enough_for_the_next_one() -> None:
    """A device that is slow holds up no other for longer; one on probation does, for its soak at the most."""
    fleet = _Fleet("abcd", "e")
    assert fleet.due() == "abcd"
    fleet.report("a", "confirmed")
    fleet.report("bcd", "receiving", 1)
    fleet.now += STRAGGLER_S - 1.0
    fleet.report("bcd", "receiving", 2)
    fleet.now += 2.0
    assert fleet.due() == "", "one of four"
    fleet.report("b", "confirmed")
    fleet.report("c", "probation")
    assert fleet.due() == "", "two are good, but the third is on probation"
    for received in range(3, 8):
        fleet.now += SOAK_S / 5
        fleet.report("d", "receiving", received)
    assert fleet.due() == "e"


def test_half_of_a_wave_is_not_enough_before_the_others_had_their_time() -> None:
    """Both counted from their documents."""
    fleet = _Fleet("ab", "c")
    assert fleet.due() == "ab"
    fleet.report("a", "confirmed")
    fleet.now += STRAGGLER_S - 0.1
    fleet.report("b", "receiving", 1)
    assert fleet.due() == ""
    fleet.now += 0.1
    fleet.report("b", "receiving", 2)
    assert fleet.due() == "c"
