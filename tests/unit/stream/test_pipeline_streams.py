"""What a model's path does with its streams: gaps, rates, refusals, keys that come and go, and its own figures."""

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.config.tables import RepairTable
from edge_runtime.readings import Batch
from edge_runtime.stream.pipeline import DriftListener
from tests.support import builders
from tests.support.model_bench import POISON, ModelBench, NumberedReceipts, batch_of
from tests.support.stepped import SteppedLoop


def _windows(bench: ModelBench) -> list[list[float]]:
    return [list(document["values"].values()) for document in bench.taken.documents]


def _numbers(*numbers: float) -> list[list[float]]:
    return [[number, 0.0] for number in numbers]


def _timed(rows: list[list[float]], times: list[float], receipts: NumberedReceipts | None = None) -> Batch:
    batch = batch_of(rows, receipts)
    batch.times, batch.own_times = times, True
    return batch


def _rated(*, rate_hz: float = 10.0, length: int = 8, stride: int | None = None) -> builders.Draft:
    draft = builders.echo(length=length, stride=stride)
    draft.manifest["input"]["window"]["rate_hz"] = rate_hz
    return draft


class _Refusals:
    """What a source hears of the readings that a model refuses."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, str, str, int]] = []

    def __call__(self, row: int, reason: str, why: str, count: int) -> None:
        self.heard.append((row, reason, why, count))


# --- gaps ---------------------------------------------------------------------------------------------------------


def test_a_gap_is_judged_by_the_readings_own_times(tmp_path: Path) -> None:
    """A late reading within `max_gap` is none, and one that is further back is."""
    bench = ModelBench(builders.echo(), tmp_path, max_gap=10.0)
    bench.pipeline.accept(_timed(_numbers(1, 2, 3), [100.0, 105.0, 96.0]))
    bench.pipeline.accept(_timed(_numbers(4, 5), [106.0, 107.0]))
    bench.pipeline.accept(_timed(_numbers(6, 7, 8), [96.0, 97.0, 98.0]))
    bench.pipeline.accept(_timed(_numbers(9, 10), [99.0, 109.0]))
    assert _windows(bench) == [[1.0, 2.0, 3.0], [6.0, 7.0, 8.0]]
    bench.pipeline.accept(_timed(_numbers(11), [119.0]))
    assert _windows(bench)[2:] == [[9.0, 10.0, 11.0]]


def test_a_gap_is_judged_by_the_arrival_of_readings_without_times(tmp_path: Path) -> None:
    """Their times are those of the wall clock, which may be set."""
    loop = SteppedLoop()
    bench = ModelBench(builders.echo(), tmp_path, loop=loop.as_loop, max_gap=10.0)
    batch = batch_of(_numbers(1, 2))
    batch.times = [0.0, 1e9]
    bench.pipeline.accept(batch)
    loop.now += 11.0
    bench.pipeline.accept(batch_of(_numbers(3, 4)))
    loop.now += 9.0
    bench.pipeline.accept(batch_of(_numbers(5)))
    assert _windows(bench) == [[3.0, 4.0, 5.0]]


@pytest.mark.parametrize(("on_gap", "windows"), [("keep", [[1.0, 2.0, 3.0]]), ("reset", [])])
def test_a_window_may_be_kept_over_a_gap(on_gap: str, windows: list[list[float]], tmp_path: Path) -> None:
    """Where the table says so."""
    bench = ModelBench(builders.echo(), tmp_path, max_gap=10.0, on_gap=on_gap)
    bench.pipeline.accept(_timed(_numbers(1, 2, 3), [0.0, 1.0, 100.0]))
    assert _windows(bench) == windows


def test_without_a_limit_a_step_back_is_no_gap(tmp_path: Path) -> None:
    """`max_gap` left out: there are none."""
    bench = ModelBench(builders.echo(), tmp_path)
    bench.pipeline.accept(_timed(_numbers(1, 2, 3), [100.0, 0.0, 1e6]))
    assert _windows(bench) == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("own_times", [True, False])
def test_the_last_value_repairs_for_its_age_only(tmp_path: Path, *, own_times: bool) -> None:
    """By the readings' own times, or by their arrival where they have none."""
    loop = SteppedLoop()
    repair = RepairTable(missing="last", max_age=10.0)
    bench = ModelBench(builders.echo(length=1), tmp_path, loop=loop.as_loop, repair=repair)
    for number, moment in ((1.0, 0.0), (np.nan, 9.0), (np.nan, 11.0)):
        loop.now = 1000.0 + (moment if not own_times else 500.0 * moment)
        batch = batch_of(_numbers(number))
        batch.times, batch.own_times = [moment if own_times else 500.0 * moment], own_times
        bench.pipeline.accept(batch)
    assert _windows(bench) == [[1.0], [1.0]]
    assert bench.counters.rejected == {"missing_channel": 1}


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_source_hears_what_was_refused_and_why(tmp_path: Path) -> None:
    """The last reading of each reason, and how many; of good ones it hears nothing."""
    bench, heard = ModelBench(builders.echo(length=1), tmp_path), _Refusals()
    for rows in ([[1.0, 2.0], [9e9, 0.0], [np.nan, 0.0], [-9e9, 0.0]], [[1.0, 2.0]], [[8e8, 0.0]]):
        batch = batch_of(rows)
        batch.refuse = heard
        bench.pipeline.accept(batch)
    assert sorted(heard.heard) == [
        (0, "out_of_range", "`number`: expected -1000000 to 1000000, found 800000000", 1),
        (2, "missing_channel", "no `number`", 1),
        (3, "out_of_range", "`number`: expected -1000000 to 1000000, found -9e+09", 2),
    ]
    bench.pipeline.accept(batch_of([[9e9, 0.0]]))  # a source that reports nothing
    assert bench.counters.rejected == {"out_of_range": 4, "missing_channel": 1}


def test_windows_of_what_is_left_have_their_own_origin(tmp_path: Path) -> None:
    """Key, time, identity and receipt are those of the reading that completed the window."""
    bench, receipts = ModelBench(builders.echo(length=2), tmp_path), NumberedReceipts(6)
    rows = _numbers(1, np.nan, 2, np.nan, 3, 4)
    bench.pipeline.accept(batch_of(rows, receipts, keys=["a", "a", "a", "b", "b", "b"]))
    assert _windows(bench) == [[1.0, 2.0], [3.0, 4.0]]
    assert [document["id"] for document in bench.taken.documents] == ["d/m/a/2", "d/m/b/5"]
    assert [document["time"][-10:] for document in bench.taken.documents] == ["22.000000Z", "25.000000Z"]
    assert bench.taken.receipts == [receipts.all[2], receipts.all[5]]


def test_a_frame_is_a_window(tmp_path: Path) -> None:
    """A stride of the table says nothing about whole frames, whose values have no names to pick columns by."""
    bench = ModelBench(builders.frame(), tmp_path, stride=5, acknowledge="window", channels=("frame",))
    values = np.random.default_rng(1).integers(0, 256, (3, 4, 6, 3)).astype(np.float32)
    bench.pipeline.accept(Batch("s", values, [None] * 3, [0.0] * 3, ["0", "1", "2"], [None] * 3))
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/0", "d/m/-/1", "d/m/-/2"]
    assert bench.pipeline.holding is None
    assert bench.pipeline.needed == 1
    bench.pipeline.config = type(bench.pipeline.config)(name="m", bundle="m.onnx", source="s", key_expiry=1.0)
    cast("Any", bench.loop).now += 5.0
    bench.pipeline.expire()
    assert len(bench.pipeline.windows) == 0


# --- receipts by windows ------------------------------------------------------------------------------------------


def test_readings_of_refused_neighbours_are_owed_with_their_own_receipts(tmp_path: Path) -> None:
    """A refused reading is in no window: it is acknowledged at once, the others with theirs."""
    bench, receipts = ModelBench(builders.echo(length=2), tmp_path, acknowledge="window"), NumberedReceipts(4)
    bench.pipeline.accept(batch_of(_numbers(np.nan, 1, np.nan, 2), receipts))
    receipts.hand_over()
    assert receipts.acknowledged == [0, 2]
    (owed,) = bench.taken.receipts
    assert owed is not None
    owed.release()
    assert receipts.acknowledged == [0, 2, 1, 3]


@pytest.mark.parametrize(("length", "stride", "holds"), [(1, 1, False), (1, 2, True), (2, 1, True)])
def test_receipts_are_kept_by_windows_where_a_window_is_more_than_its_reading(
    length: int, stride: int, tmp_path: Path, *, holds: bool
) -> None:
    """A window of one reading holds what the prediction holds anyway."""
    bench = ModelBench(builders.echo(length=length, stride=stride), tmp_path, acknowledge="window")
    assert (bench.pipeline.holding is not None) == holds


def test_a_key_that_makes_room_gives_its_readings_back(tmp_path: Path) -> None:
    """It is silent longest; one that expires does too."""
    loop = SteppedLoop()
    bench = ModelBench(builders.echo(), tmp_path, loop=loop.as_loop, acknowledge="window", max_keys=2, key_expiry=100.0)
    receipts = NumberedReceipts(3)
    for number, key in enumerate(("a", "b", "c")):
        batch = batch_of(_numbers(number), NumberedReceipts(1), keys=[key])
        batch.receipts = [receipts.all[number]]
        bench.pipeline.accept(batch)
        loop.now += 1.0
    receipts.hand_over()
    assert receipts.acknowledged == [0]
    assert bench.counters.dropped == {"keys": 1}
    loop.now += 97.0  # "b" came 99 s ago
    bench.pipeline.expire()
    assert receipts.acknowledged == [0]
    loop.now += 1.5
    bench.pipeline.expire()
    assert receipts.acknowledged == [0, 1]
    assert bench.counters.dropped == {"keys": 1}  # silent keys are no loss


def test_nothing_is_kept_of_a_key_that_expired(tmp_path: Path) -> None:
    """Its last values, its rate, its topic and its verdicts go; a key that is in use keeps all of them."""
    loop = SteppedLoop()
    bench = ModelBench(
        _rated(length=2), tmp_path, loop=loop.as_loop, key_expiry=100.0, repair=RepairTable(missing="last")
    )
    assert bench.pipeline.pace is not None
    for key in ("old", "new"):
        bench.pipeline.accept(batch_of(_numbers(1, 2), keys=[key] * 2))
        loop.now += 60.0
    loop.now -= 10.0
    bench.pipeline.expire()
    assert set(bench.pipeline._addresses) == set(bench.pipeline.decider.keys) == {"new"}
    assert list(bench.pipeline.pace._streams) == ["new"]
    bench.pipeline.accept(batch_of(_numbers(np.nan), keys=["new"]))
    assert bench.counters.rejected == {}
    bench.pipeline.accept(batch_of(_numbers(np.nan), keys=["old"]))
    assert bench.counters.rejected == {"missing_channel": 1}


def test_a_key_that_expired_while_its_window_was_in_the_model_is_forgotten_afterwards(tmp_path: Path) -> None:
    """Its verdict is noted behind the expiry; the next expiry takes it away, and nothing else."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    bench.pipeline.accept(batch_of(_numbers(1, 2), keys=["here", "stray"]))
    bench.pipeline.windows._streams.pop("stray")  # as it is when the answer of its window comes
    bench.pipeline.expire()
    assert set(bench.pipeline.decider.keys) == {"here"}


def test_keys_that_come_and_go_in_one_batch_are_forgotten_beyond_twice_as_many_as_may_have_windows(
    tmp_path: Path,
) -> None:
    """Their verdicts are noted behind their eviction. All are looked through only then, since that takes time."""
    bench = ModelBench(builders.echo(length=1), tmp_path, max_keys=2)
    sizes = []
    for first in range(0, 90, 3):
        bench.pipeline.accept(batch_of(_numbers(1, 2, 3), keys=[f"k{first + step}" for step in range(3)]))
        sizes.append(len(bench.pipeline.decider.keys))
    assert len(bench.taken.documents) == 90
    assert max(sizes) == 2 * 2 + 3  # those of the last batch come on top


# --- rates --------------------------------------------------------------------------------------------------------


def _even(rate_hz: float, count: int) -> list[float]:
    return [1.7e9 + number / rate_hz for number in range(count)]


def test_a_stream_at_a_wrong_rate_is_refused_where_the_table_says_so(tmp_path: Path) -> None:
    """Counted under its reason, and its source hears both rates."""
    bench, heard = ModelBench(_rated(), tmp_path, on_rate="reject"), _Refusals()
    times = _even(20.0, 40)
    for number, moment in enumerate(times):
        batch = _timed([[np.nan, 0.0], [float(number), 0.0]] if number == 30 else _numbers(number), [moment] * 1)
        if number == 30:
            batch.times = [moment, moment]
        batch.refuse = heard
        bench.pipeline.accept(batch)
    wrong = [each for each in heard.heard if each[1] == "wrong_rate"]
    assert bench.counters.rejected["wrong_rate"] == sum(count for *_, count in wrong) == len(wrong)
    assert "expected readings at 10 Hz (rate_hz of the bundle), found 20 Hz" in wrong[0][2]
    assert {row for row, *_ in wrong} == {0, 1}  # 1 in the batch whose first reading was out of the contract
    assert bench.counters.rejected["wrong_rate"] >= 30
    assert _windows(bench) == []


def test_a_resampled_stream_gives_windows_of_the_seconds_that_the_model_wants(tmp_path: Path) -> None:
    """At 20 Hz every window of 8 spans 0.8 s; it has the key and the time, and no identity of a single reading."""
    bench = ModelBench(_rated(), tmp_path, on_rate="resample", acknowledge="window")
    assert bench.pipeline.needed == 1
    receipts = NumberedReceipts(84)
    for number, moment in enumerate(_even(20.0, 84)):
        batch = _timed([[np.nan, 0.0], [moment - 1.7e9, 0.0]], [moment, moment])
        batch.keys, batch.receipts = ["a", "a"], [None, receipts.all[number]]
        bench.pipeline.accept(batch)
    receipts.hand_over()
    assert len(bench.taken.documents) == 5  # four seconds are 40 readings at 10 Hz
    for number, document in enumerate(bench.taken.documents):
        values = list(document["values"].values())
        assert number == 0 or values[-1] - values[0] == pytest.approx(0.7, abs=0.06)
        assert document["id"].startswith("d/m/a/1/")
    assert set(bench.taken.topics) == {"edge/d/m/a"}
    before = len(receipts.acknowledged)
    for receipt in bench.taken.receipts:
        if receipt is not None:
            receipt.release()
    assert before < len(receipts.acknowledged) == 82  # the open window has two readings


def test_no_window_has_readings_of_before_and_after_a_wrong_rate(tmp_path: Path) -> None:
    """Where such readings are refused: the open window begins anew, so that each spans the seconds that it is for."""
    bench = ModelBench(_rated(), tmp_path, on_rate="reject")
    moments = _even(10.0, 21)
    moments += [moments[-1] + (number + 1) / 20.0 for number in range(60)]
    moments += [moments[-1] + (number + 1) / 10.0 for number in range(60)]
    for moment in moments:
        bench.pipeline.accept(_timed([[moment - 1.7e9, 0.0]], [moment]))
    spans = [max(window.values()) - min(window.values()) for window in (d["values"] for d in bench.taken.documents)]
    assert bench.counters.rejected["wrong_rate"] > 30
    assert len(spans) > 5
    assert max(spans) == pytest.approx(0.7, abs=0.06)


@pytest.mark.parametrize("on_rate", ["warn", "resample"])
def test_a_stream_at_the_right_rate_goes_on_unchanged(on_rate: str, tmp_path: Path) -> None:
    """With its identities and receipts."""
    bench = ModelBench(_rated(), tmp_path, on_rate=on_rate)
    assert bench.pipeline.needed == (8 if on_rate == "warn" else 1)
    assert ModelBench(builders.echo(), tmp_path, on_rate=on_rate).pipeline.needed == 3  # without a rate
    receipts = NumberedReceipts(16)
    for number, moment in enumerate(_even(10.0, 16)):
        batch = _timed(_numbers(number), [moment])
        batch.receipts, batch.identities = [receipts.all[number]], [f"n{number}"]
        bench.pipeline.accept(batch)
    assert _windows(bench) == [[float(number) for number in range(8)], [float(number) for number in range(8, 16)]]
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/n7", "d/m/-/n15"]
    assert bench.taken.receipts == [receipts.all[7], receipts.all[15]]


def test_readings_without_times_are_measured_by_their_arrival(tmp_path: Path) -> None:
    """`Batch.arrived` is when the bytes were read; their times come from a clock that may be set."""
    bench = ModelBench(_rated(), tmp_path)
    for number in range(40):
        batch = batch_of(_numbers(number))
        batch.times, batch.arrived = [1.7e9 + number / 10.0], 50.0 + number / 20.0
        bench.pipeline.accept(batch)
    assert bench.pipeline.pace is not None
    assert bench.pipeline.pace.rate_hz == pytest.approx(20.0)


# --- what becomes of an answer ------------------------------------------------------------------------------------


def test_an_alarm_goes_before_routine(tmp_path: Path) -> None:
    """The outbox drops the others first."""
    bench = ModelBench(builders.anomaly(), tmp_path)
    bench.pipeline.accept(batch_of([[0, 0, 0], [9, 9, 9]]))
    assert bench.taken.priorities == [1, 0]


def test_a_prediction_that_cannot_be_written_costs_no_neighbour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours: counted, logged, and its reading is acknowledged, since it would fail again."""
    bench, receipts = ModelBench(builders.echo(length=1), tmp_path), NumberedReceipts(3)
    offer = bench.taken.offer

    def fail(stream: str, topic: str, payload: bytes, **given: Any) -> None:
        if b'/1"' in payload:
            raise ValueError("a fault")
        offer(stream, topic, payload, **given)

    bench.taken.offer = fail  # type: ignore[method-assign]
    bench.pipeline.accept(batch_of(_numbers(1, 2, 3), receipts))
    receipts.hand_over()
    assert _windows(bench) == [[1.0], [3.0]]
    assert receipts.acknowledged == [1]
    assert bench.counters.errors == {"prediction_failed": 1}
    assert [record.message for record in caplog.records] == ["a prediction could not be made"]


def test_of_two_windows_the_one_that_fails_is_set_aside(tmp_path: Path) -> None:
    """Each is tried by itself, and counted for its bundle."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    bench.poison()
    bench.pipeline.accept(batch_of(_numbers(1, POISON)))
    assert _windows(bench) == [[1.0]]
    assert bench.counters.errors == {"model_failed": 1}
    assert (bench.pipeline.loaded.answered, bench.pipeline.loaded.failed) == (1, 1)


def test_predictions_and_their_latencies_are_counted(tmp_path: Path) -> None:
    """From the bytes to the payload; an answer that is withheld is a prediction too."""
    bench = ModelBench(builders.echo(length=1), tmp_path, publish="change")
    began = time.perf_counter()
    batch = batch_of(_numbers(1, 1, 2))
    batch.arrived = began - 5.0
    bench.pipeline.accept(batch)
    assert bench.counters.counts["predictions"] == bench.pipeline.loaded.answered == 3
    assert bench.counters.counts["withheld"] == 1
    took = 1000.0 * (5.0 + time.perf_counter() - began)
    assert set(bench.pipeline.latencies.quantiles_ms()) == {"p50", "p99"}
    assert all(5000.0 <= found <= took for found in bench.pipeline.latencies.quantiles_ms().values())


def test_a_fault_in_a_listener_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And counted every time."""

    class _Broken:
        def take(self, *_: Any) -> None:
            raise ValueError("a fault")

        def take_scores(self, *_: Any) -> None:
            """Nothing is wrong with this part."""

    bench = ModelBench(builders.echo(length=1), tmp_path)
    bench.pipeline.drift = cast("DriftListener", _Broken())
    bench.pipeline.taps = (cast("Any", _Broken()),)
    for times in (1, 2, 3):
        bench.pipeline.accept(batch_of(_numbers(1)))
        assert bench.counters.errors == {"drift_failed": times, "tap_failed": times}
        assert sorted(record.message for record in caplog.records) == [
            "an answer could not be looked at",
            "drift could not be watched",
        ]


def test_drift_is_shown_the_times_that_readings_brought(tmp_path: Path) -> None:
    """And none where they brought none."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    shown: list[tuple[list[str | None], list[float] | None, float]] = []

    class _Watch:
        def take(self, values: Any, keys: Any, times: Any, arrived: float) -> None:
            shown.append((keys, times, arrived))

        def take_scores(self, *_: Any) -> None:
            """Not looked at here."""

    bench.pipeline.drift = cast("DriftListener", _Watch())
    for own_times in (True, False):
        batch = _timed(_numbers(1), [5.0])
        batch.own_times, batch.arrived, batch.keys = own_times, 7.0, ["a"]
        bench.pipeline.accept(batch)
    assert shown == [(["a"], [5.0], 7.0), (["a"], None, 7.0)]
