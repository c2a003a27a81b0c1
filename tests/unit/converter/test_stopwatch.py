"""The line that says where the time of a conversion went."""

from converter.stopwatch import Stopwatch


def test_parts_are_named_in_their_order_with_their_seconds() -> None:
    """A part that runs twice counts together; what takes no time is left out."""
    moments = iter([0.0, 0.0, 1.0, 3.5, 3.51, 4.0, 6.0])
    watch = Stopwatch(lambda: next(moments))
    for part in ("loading", "searching", "resting", "loading", "writing"):
        watch.begin(part)
    assert watch.in_words() == "took 6.0 s: loading 1.5 s, searching 2.5 s, writing 2.0 s"
