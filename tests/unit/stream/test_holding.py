"""Receipts by windows: nothing that a window may need again is acknowledged, and nothing else waits."""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.holding import Holding, OwedReceipts
from edge_runtime.stream.windows import Windows
from tests.support.stepped import SteppedLoop
from tests.support.way_in import LENGTH, OutboxDoor, make_pipeline


class _Stream:
    """Windows with their receipts; what is acknowledged, by the number of the reading."""

    def __init__(self, length: int, stride: int, **given: Any) -> None:
        self.windows = Windows((length, 1), length=length, stride=stride, **given)
        self.holding = Holding(length, stride)
        self.acknowledged: list[int] = []
        self.predictions: list[tuple[list[float], Receipt | None]] = []
        self.count = 0

    def push(self, keys: list[str | None], times: list[float] | None = None, *, with_receipts: bool = True) -> None:
        """Readings whose values are their numbers, from 0 on; the hold of the source is given back behind them."""
        numbers = range(self.count, self.count + len(keys))
        self.count += len(keys)
        receipts = [Receipt(lambda n=n: self.acknowledged.append(n)) if with_receipts else None for n in numbers]  # type: ignore[misc]
        values = np.array(list(numbers), np.float32).reshape(-1, 1)
        done = self.windows.push(values, keys, times, 0.0)
        owed = self.holding.take(keys, receipts, done)
        for window, receipt in zip(done.windows, owed, strict=True):
            self.predictions.append((window[:, 0].tolist(), receipt))
        for receipt in receipts:
            if receipt is not None:
                receipt.release()

    def safe(self, count: int = 1) -> None:
        """The oldest predictions are safe."""
        for _ in range(count):
            _, receipt = self.predictions.pop(0)
            if receipt is not None:
                receipt.release()


def test_a_reading_is_acknowledged_when_no_window_needs_it_and_its_prediction_is_safe() -> None:
    """Length 3, stride 1: the first reading goes with the first prediction, the second with the second."""
    stream = _Stream(3, 1)
    stream.push([None] * 4)
    assert stream.acknowledged == []
    stream.safe()
    assert stream.acknowledged == [0]
    stream.safe()
    assert stream.acknowledged == [0, 1]
    assert len(stream.holding) == 2


def test_a_prediction_that_is_safe_before_an_older_one_gives_nothing_back() -> None:
    """What the older one was made of would be lost with a kill."""
    stream = _Stream(2, 1)
    stream.push([None] * 3)
    stream.predictions[1][1].release()  # type: ignore[union-attr]
    assert stream.acknowledged == []
    stream.safe()
    assert stream.acknowledged == [0, 1]


def test_readings_between_two_windows_do_not_wait() -> None:
    """With a stride over the length, some readings are in no window."""
    stream = _Stream(2, 5)
    stream.push([None] * 7)
    stream.safe()
    assert stream.acknowledged == [0, 1, 2, 3, 4]
    assert [window for window, _ in stream.predictions] == [[5.0, 6.0]]


def test_a_gap_gives_the_readings_of_the_window_back() -> None:
    """They are in no window any more."""
    stream = _Stream(3, 3, max_gap=1.0)
    stream.push([None] * 2, [0.0, 1.0])
    stream.push([None], [9.0])
    assert stream.acknowledged == [0, 1]


def test_a_key_that_is_forgotten_or_evicted_gives_its_readings_back() -> None:
    """One that comes back begins anew, in the same wake-up too."""
    stream = _Stream(3, 3, max_keys=1)
    stream.push(["a", "b", "a", "a", "a"])
    assert 0 in stream.acknowledged
    stream.holding.forget(["b"])
    assert sorted(stream.acknowledged) == [0, 1]
    stream.safe()
    assert sorted(stream.acknowledged) == [0, 1, 2, 3, 4]


def test_readings_without_receipts_owe_nothing() -> None:
    """A prediction of readings that cannot come again may be dropped by the outbox where it has to."""
    stream = _Stream(2, 1)
    stream.push([None] * 5, with_receipts=False)
    assert [receipt for _, receipt in stream.predictions] == [None] * 4
    assert len(stream.holding) <= 2


@given(
    length=st.integers(1, 4),
    stride=st.integers(1, 6),
    keys=st.lists(st.sampled_from(["a", "b"]), max_size=40),
    safe=st.lists(st.integers(0, 3), max_size=40),
    gaps=st.sets(st.integers(0, 40)),
)
def test_what_is_acknowledged_is_never_needed_and_what_is_not_always(
    length: int, stride: int, keys: list[str | None], safe: list[int], gaps: set[int]
) -> None:
    """Against a plain account: never while a window that is open or not safe has it, and all others in the end."""
    stream = _Stream(length, stride, max_gap=10.0)
    clock = Counter[str | None]()
    history: dict[str | None, list[int]] = {"a": [], "b": []}  # since the last gap of the key
    begins: dict[str | None, int] = {"a": 0, "b": 0}  # where the open window of the key begins in it
    unsafe: list[set[int]] = []
    for number, key in enumerate(keys):
        clock[key] += 100 if number in gaps else 1
        if number in gaps and history[key]:
            history[key], begins[key] = [], 0
        history[key].append(number)
        stream.push([key], [float(clock[key])])
        if len(history[key]) == begins[key] + length:
            unsafe.append(set(history[key][begins[key] :]))
            begins[key] += stride
        count = min(safe[number] if number < len(safe) else 0, len(unsafe))
        stream.safe(count)
        del unsafe[:count]
        still_open = {number for each in history for number in history[each][begins[each] :]}
        assert not set(stream.acknowledged) & still_open.union(*unsafe)
    stream.safe(len(unsafe))
    still_open = {number for each in history for number in history[each][begins[each] :]}
    assert sorted(stream.acknowledged) == sorted(set(range(len(keys))) - still_open)


def test_what_a_window_holds_is_known_over_a_stop() -> None:
    """After the start a message that comes again is acknowledged with the window that held it before."""
    before = _Stream(3, 1)
    before.push([None] * 2)
    owed = OwedReceipts()
    numbers = [owed.number(receipt) for receipt in before.holding.receipts(None) or []]
    assert numbers == [0, 1]
    after, back = _Stream(3, 1), OwedReceipts()
    after.windows.restore(before.windows.save(), [], 0.0)
    after.holding.restore(None, [back.hold(number) for number in numbers], before.windows.save()[0].until)
    again = Receipt(lambda: after.acknowledged.append(100))
    waiting = back.held(0)
    assert waiting is not None
    waiting.pass_on(again)
    again.release()
    after.push([None])
    assert after.acknowledged == []
    after.safe()
    assert after.acknowledged == [100]


def test_a_window_that_is_not_safe_is_not_kept() -> None:
    """Its readings come again, and it is built anew."""
    stream = _Stream(2, 1)
    stream.push([None] * 2)
    assert stream.holding.receipts(None) is None
    stream.safe()
    assert stream.holding.receipts(None) is not None


def test_windows_that_are_given_up_hold_nothing() -> None:
    """Another bundle wants another window."""
    stream = _Stream(3, 1)
    stream.push(["a", "b", "a"])
    stream.holding.release_all()
    assert sorted(stream.acknowledged) == [0, 1, 2]


def test_a_reading_between_two_windows_is_given_back_when_it_comes() -> None:
    """The last of them too, and not with the next one."""
    stream = _Stream(2, 5)
    stream.push([None] * 2)
    stream.safe()
    for number in range(2, 5):
        stream.push([None])
        assert stream.acknowledged == list(range(number + 1))


def test_a_message_of_several_windows_is_acknowledged_with_the_last_of_them() -> None:
    """After a start as before the stop: each window that held it holds it again."""
    back = OwedReceipts()
    acknowledged: list[str] = []
    first, second = back.hold(7), back.hold(7)
    assert first is second
    assert first is not None
    again = Receipt(lambda: acknowledged.append("again"))
    first.pass_on(again)
    again.release()
    first.release()
    assert acknowledged == []
    first.release()
    assert acknowledged == ["again"]


def test_what_is_owed_nothing_has_no_number() -> None:
    """No receipt, and one that is released already; each other one keeps the number that it was given."""
    owed = OwedReceipts()
    gone = Receipt(lambda: None)
    gone.release()
    one, two = Receipt(lambda: None), Receipt(lambda: None)
    assert [owed.number(each) for each in (None, gone, one, two, one)] == [-1, -1, 0, 1, 0]
    assert [owed.known(each) for each in (gone, one, two)] == [None, 0, 1]
    assert owed.hold(-1) is None
    assert owed.held(0) is None


def test_a_key_that_is_refused_for_its_rate_gives_everything_back_and_takes_nothing_of_another() -> None:
    """With `on_rate = "reject"`: what was in its window before the verdict, too; the other key fills its windows."""
    acknowledged: list[str] = []
    loop, door = SteppedLoop(), OutboxDoor()
    pipeline = make_pipeline(
        loop.as_loop, door, stride=LENGTH, acknowledge="window", start=1, sequences=Sequences(), on_rate="reject"
    )
    for second in range(20):
        names = [f"fast {second}", f"fast {second}.5", f"right {second}"]
        keys: list[str | None] = ["fast", "fast", "right"]
        if not second:  # so that the verdict comes in the middle of a window
            del names[0], keys[0]
        receipts = [Receipt(lambda name=name: acknowledged.append(name)) for name in names]  # type: ignore[misc]
        values = np.array([[-1.0], [-1.0], [second]], np.float32)[-len(keys) :]
        times = [second, second + 0.5, float(second)][-len(keys) :]
        pipeline.accept(Batch("s", values, keys, times, [None] * len(keys), [*receipts], own_times=True))
        for receipt in receipts:
            receipt.release()
    assert pipeline.counters.rejected["wrong_rate"] > 20
    made = [window for key, window, _ in door.made if key == "right"]
    assert made == [tuple(float(begin + at) for at in range(LENGTH)) for begin in range(0, 18, LENGTH)]
    assert not any(name.startswith("right") for name in acknowledged)
    door.safe(100)
    assert sorted(set(map(str, range(20))) - {name[6:] for name in acknowledged if name.startswith("right")}) == [
        "18",
        "19",
    ]
    assert sum(name.startswith("fast") for name in acknowledged) == 39


def test_a_kept_receipt_that_no_window_needs_is_given_back_at_the_start() -> None:
    """Three are kept, and the open window waits for two of its three readings: it has one."""
    stream = _Stream(3, 3)
    receipts = [Receipt(lambda n=n: stream.acknowledged.append(n)) for n in range(3)]  # type: ignore[misc]
    stream.holding.restore("a", receipts, 2)
    assert stream.acknowledged == [0, 1]
    assert len(stream.holding) == 1
