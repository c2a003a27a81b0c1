"""The list of predictions that can never be sent: bounded, with the newest kept and the first of each stream logged."""

import logging

import pytest

from edge_runtime.delivery.quarantine import MOST_SHOWN, SHOWN_CHARACTERS, Quarantine


def _logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if "set aside" in each.message]


def test_the_latest_ones_are_shown_with_time_topic_size_and_reason() -> None:
    """Eight of them, the oldest first; `count` is of all."""
    times = iter(1700000000.12345 + number for number in range(100))
    quarantine = Quarantine(lambda: next(times))
    for number in range(MOST_SHOWN + 2):
        quarantine.note("m/k", f"edge/d/m/{number}", 100 + number, "the broker refused it")
    assert MOST_SHOWN == 8
    assert quarantine.count == 10
    assert quarantine.last == [
        {"time": 1700000000.123 + number, "topic": f"edge/d/m/{number}", "bytes": 100 + number,
         "why": "the broker refused it"}
        for number in range(2, 10)
    ]  # fmt: skip


def test_long_topics_and_reasons_are_cut() -> None:
    """What a broker answers has no bound, and health carries the list."""
    quarantine = Quarantine()
    quarantine.note("m/k", "t" * 300, 1, "w" * 300)
    assert SHOWN_CHARACTERS == 200
    assert (quarantine.last[0]["topic"], quarantine.last[0]["why"]) == ("t" * 200, "w" * 200)


def test_the_first_of_each_stream_is_logged_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A stream whose topic is forbidden does not fill the journal."""
    quarantine = Quarantine()
    for _ in range(3):
        for stream in ("a/k", "b/k"):
            quarantine.note(stream, f"edge/d/{stream}", 5, "refused")
    assert len(_logged(caplog)) == 2
    assert quarantine.count == 6


def test_so_many_streams_are_logged_and_further_ones_are_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand lines at most, however many keys there are."""
    quarantine = Quarantine()
    for number in range(1001):
        quarantine.note(f"m/{number}", "t", 1, "refused")
    assert len(_logged(caplog)) == 1000
    assert quarantine.count == 1001
    assert len(quarantine._logged) == 1000  # nor does memory grow with them


def test_the_list_that_is_handed_out_is_a_copy() -> None:
    """A health document that is kept does not change afterwards."""
    quarantine = Quarantine()
    quarantine.note("m", "t", 1, "refused")
    before = quarantine.last
    quarantine.note("m", "t", 2, "refused")
    assert [each["bytes"] for each in before] == [1]
