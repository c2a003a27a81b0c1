import io

from edge_runtime.batch.progress import Bar, describe


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_line_has_share_rate_and_time_left() -> None:
    """The bar knows what a former run has done, and reckons the time left by the pace of this one."""
    line = describe(total=1000, before=200, weight=300, readings=6000, seconds=30.0)
    assert line == "[############............]  50%  6,000 readings  200/s  0:50 left"
    assert describe(1000, 0, 0, 0, seconds=0.0).endswith("0 readings  0/s  -:-- left")


def test_nothing_is_shown_where_nobody_watches() -> None:
    """In a pipe or a log the bar is silent."""
    quiet, seen = io.StringIO(), Terminal()
    for stream in (quiet, seen):
        bar = Bar(100, stream=stream, clock=lambda: 1.0)
        bar.show(50, 10)
        bar.clear()
    assert quiet.getvalue() == ""
    assert "50%" in seen.getvalue()
    assert seen.getvalue().endswith("\r")


def test_the_line_is_not_written_more_often_than_a_person_can_read() -> None:
    """Ten times a second is enough."""
    now = [0.0]
    terminal = Terminal()
    bar = Bar(1000, stream=terminal, clock=lambda: now[0])
    for step in range(1000):
        now[0] = step / 1000
        bar.show(step, step)
    assert 5 <= terminal.getvalue().count("\r") <= 11
