"""The outbox: nothing overtakes within a stream, no more than the window is in flight, and what was away says so."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.outbox_bench import OutboxBench


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "outbox.db"


def test_a_prediction_does_not_overtake_one_that_is_being_written(path: Path) -> None:
    """The link comes back in the middle of a commit: of the same stream the newer one waits, of another it need not."""
    bench = OutboxBench(path, commit_interval=1.0)
    first = bench.offer("m/a")
    bench.loop.advance(1.5)  # the commit begins, and the disk takes its time
    second, other = bench.offer("m/a"), bench.offer("m/b")
    bench.link.connected = True
    bench.outbox.link_changed()
    bench.loop.settle()
    assert bench.on_wire == [other]
    bench.work()
    bench.acknowledge_all()
    assert [name for name in bench.arrived if name.startswith("m/a")] == [first, second]


def test_a_prediction_does_not_overtake_one_that_the_link_did_not_take(path: Path) -> None:
    """A queue that is full for a moment: the next of the stream waits for the one before it, others do not."""
    bench = OutboxBench(path)
    first, second, other = bench.offer("m/a"), bench.offer("m/a"), bench.offer("m/b")
    publish = bench.link.publish
    answers = iter([False])

    def publish_but_once(*args: Any, **options: Any) -> bool:
        return next(answers, True) and publish(*args, **options)

    bench.link.publish = publish_but_once  # type: ignore[method-assign]
    bench.link_up()
    assert bench.on_wire == [other, first, second]


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("where", ["live", "waiting", "on disk", "written first"])
def test_no_more_than_the_window_is_in_flight(where: str, window: int, path: Path) -> None:
    """Whether predictions come while the link is up, have waited in memory or on the disk, or go there first."""
    bench = OutboxBench(path, window=window, commit_interval=0.0 if where == "written first" else 1.0)
    if where in ("live", "written first"):
        bench.link_up()
    names = [bench.offer(f"m/{number}") for number in range(8)]
    if where == "on disk":
        bench.wait(2.0)
        assert bench.outbox.stored_rows == 8
    if where in ("waiting", "on disk"):
        bench.link_up()
    bench.work()
    for _ in range(20):
        assert len(bench.on_wire) <= window
        bench.link.acknowledge()
        bench.work()
    assert bench.link.most_in_flight <= window
    assert bench.arrived == names


def test_what_was_in_flight_when_the_link_ended_says_that_it_is_late(path: Path) -> None:
    """From memory as from the disk; what is made after the link has come back does not."""
    bench = OutboxBench(path, commit_interval=1.0)
    bench.link_up()
    stored = bench.offer()
    bench.wait(2.0)
    live = bench.offer()
    bench.link_down()
    bench.link_up()
    bench.acknowledge_all()
    fresh = bench.offer()
    bench.acknowledge_all()
    late = {document["id"]: document.get("delayed", False) for document in bench.link.arrived}
    assert late == {stored: True, live: True, fresh: False}
    assert bench.arrived == [stored, live, fresh]
