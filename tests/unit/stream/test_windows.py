"""Windows against a list: whatever the length, the stride, the keys and the cutting into batches."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.readings import Floats
from edge_runtime.stream.windows import SavedStream, Windows

CHANNELS = 2


@dataclass
class _Naive:
    """The definition, written down without a thought for speed: a list of readings for each key."""

    length: int
    stride: int
    max_gap: float | None = None
    lists: dict[str | None, list[tuple[float, Floats]]] = field(default_factory=dict)
    skip: dict[str | None, int] = field(default_factory=dict)

    def push(self, value: Floats, key: str | None, time: float) -> Floats | None:
        kept = self.lists.setdefault(key, [])
        if kept and self.max_gap is not None and not 0 <= time - kept[-1][0] <= self.max_gap:
            kept.clear()
            self.skip[key] = 0
        kept.append((time, value))
        left = self.skip.get(key, 0)
        if len(kept) < self.length + left:
            return None
        window = np.stack([value for _, value in kept[-self.length :]])
        # the next window starts `stride` readings after this one did
        start = len(kept) - self.length + self.stride
        self.lists[key] = kept[min(start, len(kept) - 1) :]
        self.skip[key] = 0
        if start < len(kept):
            return window
        # everything so far lies before the next window; the last one is kept for its time only
        self.skip[key] = 1 + start - len(kept)
        return window


def _values(count: int, start: int = 0) -> Floats:
    return np.arange(start * CHANNELS, (start + count) * CHANNELS, dtype=np.float32).reshape(count, CHANNELS)


def _push_all(windows: Windows, values: Floats, keys: list[str | None], times: list[float]) -> list[Floats]:
    return [window.copy() for window in windows.push(values, keys, times, 0.0).windows]


@settings(max_examples=300)
@given(
    length=st.integers(1, 7),
    stride=st.integers(1, 9),
    max_gap=st.sampled_from([None, 1.0, 2.5]),
    readings=st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from([0, 1, 2, 3, -1])), max_size=60),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_windows_are_those_of_a_plain_list(
    length: int,
    stride: int,
    max_gap: float | None,
    readings: list[tuple[str | None, int]],
    cuts: list[int],
) -> None:
    """A window is the last `length` readings of its key, every `stride` readings, and starts anew at a gap."""
    windows = Windows((length, CHANNELS), length=length, stride=stride, max_gap=max_gap)
    naive = _Naive(length, stride, max_gap)
    keys = [key for key, _ in readings]
    times = np.cumsum([step for _, step in readings], dtype=float).tolist()
    values = _values(len(readings))
    expected = []
    for index, key in enumerate(keys):
        window = naive.push(values[index], key, times[index])
        if window is not None:
            expected.append((index, window))
    found: list[tuple[int, Floats]] = []
    at = turn = 0
    while at < len(keys):
        stop = min(len(keys), at + cuts[turn % len(cuts)])
        done = windows.push(values[at:stop], keys[at:stop], times[at:stop], 0.0)
        assert len(done.windows) == len(done.rows) == len(done.carries)
        found += [(at + row, window.copy()) for row, window in zip(done.rows, done.windows, strict=True)]
        at, turn = stop, turn + 1
    assert [index for index, _ in found] == [index for index, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 4), (5, 3), (7, 2), (3, 8), (8, 9)])
@pytest.mark.parametrize("most", [1, 3, 7, 40])
def test_windows_are_slices_of_all_that_a_key_has_brought(length: int, stride: int, most: int) -> None:
    """The k-th one begins `k * stride` readings after the first, however many of a key come together."""
    random = np.random.default_rng(length * 1000 + stride * 10 + most)
    windows = Windows((length, 1), length=length, stride=stride)
    brought: dict[str | None, list[float]] = {"a": [], "b": []}
    found: dict[str | None, list[list[float]]] = {"a": [], "b": []}
    for number in range(40):
        keys: list[str | None] = []
        while len(keys) < most:
            keys += [str(random.choice(["a", "b"]))] * int(random.integers(1, most + 1))
        values = np.arange(len(keys), dtype=np.float32)[:, None] + 1000 * number
        done = windows.push(values, keys, None, 0.0)
        for row, window in zip(done.rows, done.windows, strict=True):
            found[keys[row]].append(window[:, 0].tolist())
            assert window[-1, 0] == values[row, 0], "the row is that of the last reading"
        for key, value in zip(keys, values[:, 0].tolist(), strict=True):
            brought[key].append(value)
    for key, readings in brought.items():
        begins = range(0, len(readings) - length + 1, stride)
        assert found[key] == [readings[begin : begin + length] for begin in begins]


def test_a_stride_beyond_the_length_leaves_readings_out() -> None:
    """With length 2 and stride 5, readings 0-1 and 5-6 are windows, and 2-4 are in none."""
    windows = Windows((2, CHANNELS), length=2, stride=5)
    found = windows.push(_values(8), [None] * 8, [float(i) for i in range(8)], 0.0)
    assert found.rows == [1, 6]


def test_a_window_of_one_reading_has_a_stride_too() -> None:
    """With length 1 and stride 3 every third reading is a window, beginning with the first."""
    windows = Windows((1, CHANNELS), length=1, stride=3)
    assert windows.push(_values(4), [None] * 4, [0.0] * 4, 0.0).rows == [0, 3]
    assert windows.push(_values(4), [None] * 4, [0.0] * 4, 0.0).rows == [2]


def test_a_frame_is_a_window_by_itself() -> None:
    """A model of whole frames gets each of them in its own shape."""
    windows = Windows((4, 6, 3), length=1, stride=1)
    frames = np.arange(2 * 72, dtype=np.float32).reshape(2, 4, 6, 3)
    found = windows.push(frames, ["a", "b"], [0.0, 0.0], 0.0)
    assert found.windows.shape == (2, 4, 6, 3)
    assert np.array_equal(found.windows, frames)


@pytest.mark.parametrize("step", [3.0, -0.5])
def test_a_jump_of_time_starts_the_window_anew_and_is_counted(step: float) -> None:
    """Forward by more than `max_gap`, or backward at all: what was collected is given up."""
    windows = Windows((3, CHANNELS), length=3, stride=3, max_gap=2.0)
    times = [0.0, 1.0, 1.0 + step, 2.0 + step, 3.0 + step]
    found = windows.push(_values(5), [None] * 5, times, 0.0)
    assert found.rows == [4]
    assert np.array_equal(found.windows[0], _values(3, start=2))
    assert windows.gaps == 1


def test_a_gap_can_be_kept() -> None:
    """With `on_gap = "keep"` a window runs on over a gap."""
    windows = Windows((3, CHANNELS), length=3, stride=3, max_gap=2.0, keep=True)
    windows.watch_gaps(2.0)
    assert windows.push(_values(3), [None] * 3, [0.0, 100.0, 50.0], 0.0).rows == [2]
    assert windows.gaps == 0


def test_a_gap_gives_a_recurrent_model_a_new_state() -> None:
    """What is still being computed for the time before a gap cannot write into the time after it."""
    windows = Windows((1, CHANNELS), length=1, stride=1, max_gap=2.0)
    found = windows.push(_values(3), [None] * 3, [0.0, 1.0, 9.0], 0.0)
    assert found.carries[0] is found.carries[1]
    assert found.carries[2] is not found.carries[1]


def test_the_key_that_was_silent_longest_makes_room() -> None:
    """At `max_keys` the oldest key goes, is counted, and is named once to whoever remembers it too."""
    windows = Windows((2, CHANNELS), length=2, stride=2, max_keys=2)
    for now, key in enumerate(["a", "b", "a", "c"]):
        windows.push(_values(1), [key], [float(now)], float(now))
    assert windows.evicted == 1
    assert len(windows) == 2
    assert windows.expire(-1.0) == ["b"]
    assert windows.expire(-1.0) == []


def test_a_key_that_comes_back_is_not_named_as_gone() -> None:
    """A key that was evicted and has a stream again must not be forgotten by the others."""
    windows = Windows((2, CHANNELS), length=2, stride=2, max_keys=1)
    for now, key in enumerate(["a", "b", "a"]):
        windows.push(_values(1), [key], [float(now)], float(now))
    assert windows.expire(-1.0) == ["b"]


def test_silent_keys_expire() -> None:
    """A key that reported nothing since the given time is forgotten; others stay."""
    windows = Windows((2, CHANNELS), length=2, stride=2)
    windows.push(_values(1), ["old"], [0.0], 10.0)
    windows.push(_values(1), ["new"], [0.0], 20.0)
    assert windows.expire(15.0) == ["old"]
    assert len(windows) == 1


@settings(max_examples=60)
@given(length=st.integers(1, 5), stride=st.integers(1, 7), before=st.integers(0, 12), after=st.integers(0, 12))
def test_a_clean_stop_does_not_show_in_the_windows(length: int, stride: int, before: int, after: int) -> None:
    """Saved and restored in between, the windows are those of a run without a stop."""
    straight = Windows((length, CHANNELS), length=length, stride=stride)
    first = Windows((length, CHANNELS), length=length, stride=stride)
    second = Windows((length, CHANNELS), length=length, stride=stride)
    one, two = _values(before), _values(after, start=before)
    _push_all(straight, one, ["k"] * before, [0.0] * before)
    _push_all(first, one, ["k"] * before, [0.0] * before)
    second.restore(first.save(), [], 0.0)
    expected = _push_all(straight, two, ["k"] * after, [0.0] * after)
    found = _push_all(second, two, ["k"] * after, [0.0] * after)
    assert np.array_equal(np.array(expected), np.array(found))


@pytest.mark.parametrize(
    ("stop_s", "time", "gaps"),
    [
        (60.0, 101.5, 0),  # held by the broker during a long stop: the times of its own are close
        (0.5, 120.0, 1),  # a short stop, and a sensor that was off
        (0.5, None, 0),
        (60.0, None, 1),
    ],
)
def test_a_gap_over_a_stop_is_judged_as_one_without_a_stop(stop_s: float, time: float | None, gaps: int) -> None:
    """By the readings' own times where they have them, else by their arrival; the stop itself is no gap."""
    before, after = (Windows((3, CHANNELS), length=3, stride=3, max_gap=2.0) for _ in range(2))
    own = time is not None
    before.push(_values(2), ["a", "a"], [100.0, 101.0] if own else None, 50.0)
    assert after.restore(before.save(), [], 1000.0 - stop_s) == 1
    done = after.push(_values(1, 2), ["a"], None if time is None else [time], 1000.0)
    assert after.gaps == gaps
    assert len(done.rows) == 1 - gaps


def test_the_state_of_a_recurrent_model_is_kept_over_a_stop() -> None:
    """`save` takes the carried state along, and `restore` gives it back in its shape."""
    windows = Windows((1, CHANNELS), length=1, stride=1)
    (carry,) = windows.push(_values(1), ["k"], [0.0], 0.0).carries
    carry.parts = [np.arange(6, dtype=np.float32).reshape(2, 3)]
    again = Windows((1, CHANNELS), length=1, stride=1)
    assert again.restore(windows.save(), [(2, 3)], 0.0) == 1
    (restored,) = again.push(_values(1), ["k"], [1.0], 0.0).carries
    assert restored.parts is not None
    assert np.array_equal(restored.parts[0], carry.parts[0])


@pytest.mark.parametrize(
    "spoilt",
    [
        {"ring": b"short"},
        {"position": 9},
        {"position": -1},
        {"until": 0},
        {"until": -3},
        {"until": 99},
        {"filled": -1},
        {"filled": 77},
        {"until": 2},  # one too many
        {"filled": 1},  # and one too few: a window would hold what stood in the ring before
        {"filled": 3, "until": 4},
        {"filled": 3, "until": 0},
    ],
)
def test_a_saved_window_that_does_not_fit_is_left_out(spoilt: dict[str, object]) -> None:
    """A state file of another model, or a damaged one, never makes a window that hangs or lies."""
    good: dict[str, object] = {
        "key": "k",
        "ring": _values(3).tobytes(),
        "filled": 2,
        "position": 2,
        "until": 1,
        "last_time": 0.0,
        "state": None,
    }
    windows = Windows((3, CHANNELS), length=3, stride=3)
    assert windows.restore([SavedStream(**good)], [], 0.0) == 1  # type: ignore[arg-type]
    windows = Windows((3, CHANNELS), length=3, stride=3)
    assert windows.restore([SavedStream(**(good | spoilt))], [], 0.0) == 0  # type: ignore[arg-type]


def test_many_windows_of_one_batch_are_all_given() -> None:
    """The buffer of windows grows with what a batch completes."""
    windows = Windows((4, CHANNELS), length=4, stride=1)
    found = windows.push(_values(100), [None] * 100, [float(i) for i in range(100)], 0.0)
    assert len(found.windows) == 97
    for number, window in enumerate(found.windows):
        assert np.array_equal(window, _values(4, start=number))


@pytest.mark.parametrize(("length", "stride"), [(1, 1), (5, 2), (4, 9)])
def test_no_window_is_complete_before_the_readings_that_it_needs(length: int, stride: int) -> None:
    """`needed` is never more than what really comes before the next window, over keys and gaps."""
    windows = Windows((length, 1), length=length, stride=stride, max_gap=1.5)
    random = np.random.default_rng(4)
    time, due = 0.0, windows.needed
    for _ in range(400):
        time += 10.0 if random.random() < 0.05 else 1.0
        key = None if random.random() < 0.7 else "other"
        done = windows.push(np.zeros((1, 1), np.float32), [key], [time], 0.0)
        due -= 1
        assert not done.rows or due <= 0
        due = windows.needed


def test_readings_without_times_are_judged_by_their_arrival() -> None:
    """The caller's monotonic clock says when there was a pause; the times of predictions are nothing to it."""
    windows = Windows((3, CHANNELS), length=3, stride=3, max_gap=2.0)
    for now in (0.0, 1.9):
        windows.push(_values(1), [None], None, now)
    found = windows.push(_values(1), [None], None, 3.8)
    assert (len(found.rows), windows.gaps) == (1, 0)
    windows.push(_values(1), [None], None, 10.0)
    assert windows.gaps == 1
    assert windows.push(_values(2), [None] * 2, None, 11.0).rows == [1]


def test_a_stream_whose_readings_begin_to_bring_times_has_no_gap_by_that() -> None:
    """A time of its own is never compared with an arrival."""
    windows = Windows((4, CHANNELS), length=4, stride=4, max_gap=2.0)
    windows.push(_values(1), [None], None, 0.0)
    windows.push(_values(1), [None], [1795432744.0], 1.0)
    windows.push(_values(1), [None], None, 2.0)
    assert windows.push(_values(1), [None], [1795432747.0], 3.0).rows == [0]
    assert windows.gaps == 0


@pytest.mark.parametrize(("step", "gaps"), [(-1.9, 0), (-2.1, 1)])
def test_a_late_reading_is_no_gap_within_the_bound(step: float, gaps: int) -> None:
    """What follows a late reading is compared with the newest time, not with the late one."""
    windows = Windows((3, CHANNELS), length=3, stride=3, max_gap=2.0, max_back=2.0)
    for time in (10.0, 10.0 + step):
        windows.push(_values(1), [None], [time], 0.0)
    found = windows.push(_values(1), [None], [11.9 if not gaps else 11.9 + step], 0.0)
    assert windows.gaps == gaps
    assert len(found.rows) == (0 if gaps else 1)


def _push(
    windows: Windows, *values: float, key: str | None = None, now: float = 0.0
) -> tuple[list[list[float]], list[int]]:
    """The windows that these readings of one channel complete, and which of them began one anew."""
    found = windows.push(np.array(values, np.float32)[:, None], [key] * len(values), None, now)
    return found.windows[:, :, 0].tolist(), list(found.anew)


def test_an_interruption_begins_every_window_that_holds_something_anew_and_counts_it() -> None:
    """No window holds readings from before and from after; a key without any is no gap."""
    windows = Windows((3, 1), length=3, stride=3)
    _push(windows, 1.0, 2.0, key="a")
    _push(windows, 1.0, 2.0, 3.0, key="b")
    windows.restart("b")
    windows.interrupt()
    assert windows.gaps == 1
    assert _push(windows, 3.0, key="a") == ([], [0])
    assert _push(windows, 4.0, 5.0, key="a") == ([[3.0, 4.0, 5.0]], [])


def test_an_interruption_gives_up_the_state_of_a_model_as_well() -> None:
    """Between two windows a recurrent model holds its state and the ring nothing: that is a gap too."""
    windows = Windows((1, 1), length=1, stride=1)
    first = windows.push(np.zeros((1, 1), np.float32), ["a"], None, 0.0)
    windows.interrupt()
    assert windows.gaps == 0, "nothing is held"
    first.carries[0].parts = [np.ones(1, np.float32)]
    windows.interrupt()
    assert windows.gaps == 1
    assert windows.push(np.zeros((1, 1), np.float32), ["a"], None, 0.0).carries[0].parts is None


def test_a_window_of_its_own_stride_is_full_again_after_an_interruption() -> None:
    """Also one whose readings so far have all been given: its ring is not taken for the new one's."""
    windows = Windows((2, 1), length=2, stride=1)
    assert _push(windows, 1.0, 2.0)[0] == [[1.0, 2.0]]
    windows.interrupt()
    assert windows.gaps == 1
    assert _push(windows, 3.0)[0] == []
    assert _push(windows, 4.0)[0] == [[3.0, 4.0]]


def test_an_interruption_changes_nothing_where_gaps_are_kept() -> None:
    """`on_gap = "keep"` holds for it too."""
    windows = Windows((2, 1), length=2, stride=2, keep=True)
    _push(windows, 1.0)
    windows.interrupt()
    assert windows.gaps == 0
    assert _push(windows, 2.0)[0] == [[1.0, 2.0]]


def test_a_key_begins_anew_by_itself() -> None:
    """The others go on, and a key that is not there is no fault."""
    windows = Windows((2, 1), length=2, stride=2)
    _push(windows, 1.0, key="a")
    _push(windows, 1.0, key="b")
    windows.restart("a")
    windows.restart("never seen")
    assert _push(windows, 2.0, key="a") == ([], [0])
    assert _push(windows, 2.0, key="b") == ([[1.0, 2.0]], [])
    assert len(windows) == 2


def test_windows_that_take_others_over_go_on_with_them_within_their_own_bound() -> None:
    """A reload loses no reading and no count; with room for fewer keys the one that was silent longest goes."""
    old = Windows((2, 1), length=2, stride=2)
    for now, key in enumerate(("a", "b", "c")):
        _push(old, 1.0, key=key, now=float(now))
    _push(old, 2.0, 1.0, key="a", now=9.0)
    old.gaps = 7
    new = Windows((2, 1), length=2, stride=2, max_keys=2)
    new.take_over(old)
    assert (len(new), new.gaps, new.evicted) == (2, 7, 1)
    assert new.expire(0.0) == ["b"]
    assert _push(new, 2.0, key="a")[0] == [[1.0, 2.0]]
    assert _push(new, 2.0, key="c")[0] == [[1.0, 2.0]]
    same = Windows((2, 1), length=2, stride=2, max_keys=2)
    same.take_over(new)
    assert (len(same), same.evicted) == (2, 0)


def test_gaps_are_watched_from_the_moment_that_they_are_asked_for() -> None:
    """A rate that was learnt later sets the bound; where gaps are kept nothing is watched."""
    for keep, gaps in ((False, 1), (True, 0)):
        windows = Windows((2, 1), length=2, stride=2, keep=keep)
        _push(windows, 1.0, now=0.0)
        windows.watch_gaps(5.0)
        _push(windows, 2.0, now=100.0)
        assert windows.gaps == gaps


def test_the_first_reading_of_a_key_begins_its_window_anew_once() -> None:
    """A key that was not known has no reading before; one that is, and one that was kept over a stop, has."""
    windows = Windows((2, 1), length=2, stride=2)
    assert _push(windows, 1.0, key="a") == ([], [0])
    assert _push(windows, 2.0, 3.0, key="a") == ([[1.0, 2.0]], [])
    after = Windows((2, 1), length=2, stride=2)
    assert after.restore(windows.save(), [], 0.0) == 1
    assert _push(after, 4.0, key="a") == ([[3.0, 4.0]], [])


def test_a_gap_of_single_readings_is_counted_once_and_their_keys_do_not_expire() -> None:
    """What is a window by itself has its gaps and its time of arrival as well."""
    windows = Windows((1, 1), length=1, stride=1, max_gap=5.0)
    for now in (0.0, 5.0, 11.0):
        windows.push(np.zeros((1, 1), np.float32), ["a"], None, now)
    assert windows.gaps == 1, "five seconds are no gap, six are"
    assert windows.expire(11.0) == []
    assert windows.expire(11.5) == ["a"]


@pytest.mark.parametrize(
    ("times", "gaps"),
    [([10.0, 10.0], 0), ([10.0, 15.0], 0), ([10.0, 15.5], 1), ([10.0, 8.0], 0), ([10.0, 7.5], 1),
     ([10.0, 8.0, 14.9], 0), ([10.0, 8.0, 15.5], 1), ([10.0, 10.9, 15.5], 0), ([10.0, 10.5, 11.0, 16.5], 1)],
)  # fmt: skip
def test_a_gap_begins_beyond_its_bounds_and_not_at_them(times: list[float], gaps: int) -> None:
    """Forward by more than `max_gap`, back by more than `max_back`; a late one does not move what is compared with."""
    windows = Windows((9, 1), length=9, stride=9, max_gap=5.0, max_back=2.0)
    windows.push(np.zeros((len(times), 1), np.float32), ["a"] * len(times), times, 0.0)
    assert windows.gaps == gaps


def test_the_last_time_before_gaps_are_watched_is_remembered() -> None:
    """The first reading of the watch is compared with the one before it."""
    windows = Windows((9, 1), length=9, stride=9)
    windows.push(np.zeros((2, 1), np.float32), ["a", "a"], [10.0, 20.0], 0.0)
    windows.watch_gaps(5.0)
    windows.push(np.zeros((1, 1), np.float32), ["a"], [24.0], 0.0)
    assert windows.gaps == 0
    windows.push(np.zeros((1, 1), np.float32), ["a"], [30.0], 0.0)
    assert windows.gaps == 1
    windows.watch_gaps(None)
    windows.push(np.zeros((2, 1), np.float32), ["a", "a"], [100.0, 200.0], 0.0)
    windows.watch_gaps(5.0)
    windows.push(np.zeros((1, 1), np.float32), ["a"], [204.0], 0.0)
    assert windows.gaps == 1


def test_how_many_readings_are_needed_is_asked_of_few_keys_only() -> None:
    """Sixteen keys are looked through, and of more one is taken to be close; single readings need no more than one."""
    windows = Windows((5, 1), length=5, stride=5)
    assert windows.needed == 5
    for number in range(17):
        assert windows.needed == (5 if number == 0 else 4)
        _push(windows, 1.0, key=str(number))
    assert windows.needed == 1
    assert Windows((1, 1), length=1, stride=1).needed == 1


def test_saved_positions_outside_of_the_ring_and_states_of_another_model_are_left_out() -> None:
    """A position of just the length lies outside; a state with a part too many is none of this model."""
    ring = memoryview(np.zeros(2, np.float32).tobytes())
    part = np.ones(1, np.float32).tobytes()
    windows = Windows((2, 1), length=2, stride=2)
    assert windows.restore([SavedStream("a", ring, 1, 2, 1, 0.0, None)], [], 0.0) == 0
    assert windows.restore([SavedStream("a", ring, 1, 1, 1, 0.0, [part, part])], [(1,)], 0.0) == 1
    found = windows.push(np.ones((1, 1), np.float32), ["a"], None, 0.0)
    assert found.carries[0].parts is None


@pytest.mark.parametrize(
    "state",
    [[b"abc"], [b"abcd"], [b"abcdefgh" * 2], [b""], [], [b"abcdefgh", b"abcdefgh"]],
)
def test_a_saved_state_of_another_size_is_left_out(state: list[bytes]) -> None:
    """Also one that holds no whole number of values: the model begins with a new state, and the daemon starts."""
    saved = SavedStream("a", memoryview(b""), 0, 0, 1, 0.0, state)
    windows = Windows((1, 1), length=1, stride=1)
    assert windows.restore([saved], [(1, 2)], 0.0) == 1
    assert windows.push(np.ones((1, 1), np.float32), ["a"], None, 0.0).carries[0].parts is None


def test_a_state_that_was_restored_may_be_written() -> None:
    """A model leaves its next state where it found the last one, in the shape that it has."""
    saved = SavedStream("a", memoryview(b""), 0, 0, 1, 0.0, [np.array([1.0, 2.0], np.float32).tobytes(), bytes(4)])
    windows = Windows((1, 1), length=1, stride=1)
    assert windows.restore([saved], [(1, 2), (1,)], 0.0) == 1
    parts = windows.push(np.ones((1, 1), np.float32), ["a"], None, 0.0).carries[0].parts
    assert parts is not None
    assert [part.tolist() for part in parts] == [[[1.0, 2.0]], [0.0]]
    parts[0] += 1.0
    (again,) = windows.save()
    assert again.state == [np.array([2.0, 3.0], np.float32).tobytes(), bytes(4)]


@pytest.mark.parametrize("how", ["interrupt", "gap", "restart"])
def test_a_state_that_began_anew_is_kept_over_the_next_stop(how: str) -> None:
    """After a gap as before it: the next stop saves what fits the same model."""
    windows = Windows((1, 1), length=1, stride=1, max_gap=5.0)
    one = np.ones((1, 1), np.float32)
    windows.push(one, ["a"], None, 0.0).carries[0].parts = [one]
    if how == "interrupt":
        windows.interrupt()
    elif how == "restart":
        windows.restart("a")
    carry = windows.push(one, ["a"], None, 10.0 if how == "gap" else 1.0).carries[0]
    assert carry.parts is None
    carry.parts = [2 * one]
    after = Windows((1, 1), length=1, stride=1)
    assert after.restore(windows.save(), [(1, 1)], 0.0) == 1
    assert after.push(one, ["a"], None, 0.0).carries[0].parts == [2 * one]


def test_what_is_saved_says_how_many_readings_the_window_has_and_lacks() -> None:
    """For each key by itself, whatever else came with it."""
    windows = Windows((5, 1), length=5, stride=3)
    windows.push(np.zeros((5, 1), np.float32), ["a", "a", "b", "b", "b"], None, 0.0)
    assert {saved.key: (saved.filled, saved.until) for saved in windows.save()} == {"a": (2, 3), "b": (3, 2)}
    windows.push(np.zeros((3, 1), np.float32), ["c", "b", "b"], None, 0.0)
    windows.push(np.zeros((1, 1), np.float32), ["b"], None, 0.0)
    found = {saved.key: (saved.filled, saved.until) for saved in windows.save()}
    assert found == {"a": (2, 3), "b": (5, 2), "c": (1, 4)}
    assert dict(windows.open()) == {"a": 3, "b": 2, "c": 4}


def test_the_first_reading_of_a_key_comes_after_no_gap() -> None:
    """However late on the clock it is: there is nothing before it."""
    for length in (1, 2):
        windows = Windows((length, 1), length=length, stride=1, max_gap=2.0)
        windows.push(np.zeros((1, 1), np.float32), ["a"], None, 1000.0)
        windows.push(np.zeros((1, 1), np.float32), ["b"], [1e9], 1000.0)
        assert windows.gaps == 0


def test_a_stream_that_was_saved_without_times_has_no_gap_by_its_first_time() -> None:
    """Files of the release before say minus infinity."""
    ring = memoryview(np.zeros(2, np.float32).tobytes())
    windows = Windows((2, 1), length=2, stride=2, max_gap=5.0)
    assert windows.restore([SavedStream("a", ring, 1, 1, 1, float("-inf"), None)], [], 10.0) == 1
    assert windows.push(np.zeros((1, 1), np.float32), ["a"], [1e9], 11.0).rows == [0]
    assert windows.gaps == 0


def test_where_a_window_begins_anew_is_named_once() -> None:
    """The reading after each gap, whether it is the first of what came together or stands in its middle."""
    windows = Windows((3, 1), length=3, stride=3, max_gap=5.0)

    def anew(*times: float) -> list[int]:
        return list(windows.push(np.zeros((len(times), 1), np.float32), ["a"] * len(times), list(times), 0.0).anew)

    assert anew(0.0, 1.0) == [0]
    assert anew(10.0, 11.0) == [0]
    assert anew(12.0, 20.0, 21.0, 30.0) == [1, 3]
    assert anew(31.0, 32.0) == []
    assert windows.gaps == 3


def test_ten_thousand_keys_have_a_window_by_default() -> None:
    """One more makes room for itself."""
    windows = Windows((2, 1), length=2, stride=2)
    keys: list[str | None] = [str(number) for number in range(10_001)]
    windows.push(np.zeros((len(keys), 1), np.float32), keys, None, 0.0)
    assert (len(windows), windows.evicted) == (10_000, 1)
    assert windows.holds("10000")
    assert not windows.holds("0")


def test_no_more_streams_are_taken_back_than_there_may_be_keys() -> None:
    """A bound that was made lower since holds at once."""
    ring = memoryview(np.zeros(2, np.float32).tobytes())
    windows = Windows((2, 1), length=2, stride=2, max_keys=2)
    saved = [SavedStream(key, ring, 1, 1, 1, 0.0, None) for key in ("a", "b", "c")]
    assert windows.restore(saved, [], 0.0) == 2
    assert len(windows) == 2


def test_a_late_reading_is_a_gap_unless_a_bound_is_given() -> None:
    """Without `max_back` time that goes back by anything begins the window anew."""
    windows = Windows((9, 1), length=9, stride=9, max_gap=5.0)
    windows.push(np.zeros((2, 1), np.float32), ["a", "a"], [10.0, 9.9], 0.0)
    assert windows.gaps == 1


@pytest.mark.parametrize("max_keys", [1, 2, 17, 33, 64])
def test_the_keys_that_are_kept_are_those_that_spoke_last(max_keys: int) -> None:
    """Against a list in the order in which keys spoke, with keys that expire in between; each that goes is named."""
    random = np.random.default_rng(max_keys)
    windows = Windows((2, 1), length=2, stride=2, max_keys=max_keys)
    order: list[str | None] = []
    spoke: dict[str | None, float] = {}
    evicted = 0
    for step in range(1500):
        now = float(step)
        key, gone = str(random.integers(0, max_keys * 4 // 3 + 2)), []
        if key in order:
            order.remove(key)
        elif len(order) == max_keys:
            gone = [order.pop(0)]
            evicted += 1
        order.append(key)
        spoke[key] = now
        windows.push(np.zeros((1, 1), np.float32), [key], None, now)
        if random.random() < 0.05:
            before = now - max_keys * int(random.integers(1, 5))
            silent = [key for key in order if spoke[key] < before]
            order = [key for key in order if key not in silent]
            assert sorted(map(str, windows.expire(before))) == sorted(map(str, gone + silent))
        else:
            assert windows.take_evicted() == gone
        assert {key for key, _ in windows.open()} == set(order)
    assert windows.evicted == evicted > 20


def test_keys_that_were_taken_back_after_a_stop_make_room_first() -> None:
    """They are as old as the stop, whatever was known of the others."""
    windows = Windows((2, 1), length=2, stride=2, max_keys=40)
    for number in range(41):
        _push(windows, 1.0, key=str(number), now=100.0 + number)
    assert windows.take_evicted() == ["0"]
    ring = memoryview(np.zeros(2, np.float32).tobytes())
    assert windows.restore([SavedStream("old", ring, 1, 1, 1, 0.0, None)], [], 50.0) == 1
    _push(windows, 1.0, key="new", now=200.0)
    assert windows.take_evicted() == ["old"]


def test_a_key_in_more_than_one_batch_names_what_made_room_once() -> None:
    """`take_evicted` as `expire`: what came back meanwhile is not gone."""
    windows = Windows((2, 1), length=2, stride=2, max_keys=1)
    for now, key in enumerate(("a", "b", "a", "c")):
        _push(windows, 1.0, key=key, now=float(now))
    assert sorted(map(str, windows.take_evicted())) == ["a", "b"]
    assert windows.take_evicted() == []
