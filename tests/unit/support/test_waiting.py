"""What the tests wait with: deadlines that grow on a busy machine only, and ports that no other test process draws."""

from pathlib import Path

import pytest

from tests.support.ports import share_of_ports
from tests.support.waiting import BUSY_FACTOR, Deadline, patient, stalled_s, wait_until

PRESSURE = "some avg10={share} avg60=1.00 avg300=0.50 total={total}\nfull avg10=9.00 avg60=9.00 avg300=9.00 total=9\n"


def test_a_deadline_is_what_it_says_while_a_processor_is_free() -> None:
    """Nothing is added where nothing has waited for a processor."""
    now = 100.0
    deadline = Deadline(10.0, clock=lambda: now, stalled=lambda: 7.0)
    now = 109.5
    assert deadline.left == 0.5
    assert not deadline.over
    now = 110.0
    assert deadline.over


@pytest.mark.parametrize(("stalled", "at"), [(10.0, 17.5), (30.0, 32.5), (999.0, 40.0)])
def test_time_in_which_processes_waited_for_a_processor_counts_a_quarter(stalled: float, at: float) -> None:
    """10 s are over after 17.5 s of which 10 were busy; no more can be busy than has passed, which makes 40 s."""
    assert BUSY_FACTOR == 4.0
    now, waited = 0.0, 0.0
    deadline = Deadline(10.0, clock=lambda: now, stalled=lambda: waited)
    waited = stalled
    now = at - 0.001
    assert not deadline.over
    now = at
    assert deadline.over


def test_counters_that_went_back_add_nothing() -> None:
    """A count below the one at the beginning is taken as no waiting."""
    now, waited = 0.0, 50.0
    deadline = Deadline(10.0, clock=lambda: now, stalled=lambda: waited)
    now, waited = 10.0, 3.0
    assert deadline.over


def test_the_pressure_is_read_from_the_line_of_some_process(tmp_path: Path) -> None:
    """The first line of the kernel's file counts, in microseconds; without the file nothing has waited."""
    path = tmp_path / "cpu"
    assert stalled_s(path) == 0.0
    assert patient(20.0, path) == 20.0
    path.write_text(PRESSURE.format(share="50.00", total=2_500_000))
    assert stalled_s(path) == 2.5
    assert patient(20.0, path) == 50.0
    path.write_text(PRESSURE.format(share="0.00", total=2_500_000))
    assert patient(20.0, path) == 20.0


def test_a_wait_in_vain_names_what_never_came() -> None:
    """The text is asked for at the end only."""
    with pytest.raises(AssertionError, match=r"waited 0.01 s in vain for: the moon"):
        wait_until(lambda: False, lambda: "the moon", deadline=0.01)


def test_test_processes_share_no_port() -> None:
    """Each of them has as many; one process has all, and one that replaces a crashed one has some."""
    shares = [set(share_of_ports(f"gw{number}", 4)) for number in range(4)]
    assert [len(each) for each in shares] == [3000] * 4
    assert len(set().union(*shares)) == 12_000
    assert set(share_of_ports("", 1)) == set().union(*shares)
    assert set(share_of_ports("gw5", 4)) == shares[1]
