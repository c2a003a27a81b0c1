"""The line that says where the time of a conversion went."""

import numpy as np

from converter.stopwatch import RowProgress, Stopwatch


def test_parts_are_named_in_their_order_with_their_seconds() -> None:
    """A part that runs twice counts together; what takes no time is left out."""
    moments = iter([0.0, 0.0, 1.0, 3.5, 3.51, 4.0, 6.0])
    watch = Stopwatch(lambda: next(moments))
    for part in ("loading", "searching", "resting", "loading", "writing"):
        watch.begin(part)
    assert watch.in_words() == "took 6.0 s: loading 1.5 s, searching 2.5 s, writing 2.0 s"


def test_progress_is_said_every_few_seconds_and_not_where_a_part_is_soon_done() -> None:
    """Lines between pieces; all rows come out, in order."""
    clock = iter([0.0, 1.0, 4.0, 6.0, 7.0, 12.5])
    collected: list[str] = []
    rows = np.arange(2500)
    progress = RowProgress(collected.append, "asking the model", lambda: next(clock))
    assert np.concatenate(list(progress.pieces(rows))).tolist() == rows.tolist()
    assert collected == ["asking the model: 1,024 of 2,500 rows", "asking the model: 2,048 of 2,500 rows"]
    quick: list[str] = []
    assert len(list(RowProgress(quick.append, "x", lambda: 0.0).pieces(rows))) == 5
    assert quick == []
