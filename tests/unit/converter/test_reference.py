"""The reference of a bundle: what it says of training, and that its limits give the false alarms asked for."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.blocks import cut, longest_runs, sessions_of
from converter.data import Dataset
from converter.load.source import Answer
from converter.plan import BundlePlan
from converter.reference import MONTH_S, BundleReference, make_reference, reference_of
from converter.spec import DriftSpec, parse_spec
from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output, Window, read_manifest, write_manifest
from edge_runtime.drift.baseline import MOST_SAMPLED, Baseline
from edge_runtime.drift.monitor import Monitor
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

MINUTE = 60.0


def walk(rng: np.random.Generator, count: int, keeps: float, columns: int = 2) -> Floats:
    """Readings each of which keeps a share of the one before, with a standard deviation of one."""
    steps = rng.normal(size=(count, columns)) * np.sqrt(1.0 - keeps**2)
    found = np.empty((count, columns))
    now = rng.normal(size=columns)
    for row in range(count):
        now = keeps * now + steps[row]
        found[row] = now
    return found.astype(np.float32)


def reference(
    readings: NDArray[np.floating], *, groups: NDArray[Any] | None = None, rate_hz: float | None = 1.0 / MINUTE,
    answer: Answer | None = None, **wanted: Any,
) -> tuple[BundleReference, Input]:  # fmt: skip
    """As a build makes it, of readings one by one."""
    names = tuple(Channel(name=f"c{column}") for column in range(readings.shape[1]))
    given = Input(channels=names, window=Window(1, 1, rate_hz))
    plan = SimpleNamespace(input=given, task="anomaly", labels=(), targets=())
    data = SimpleNamespace(readings=readings, reading_groups=groups, rate_hz=None)
    answer = answer or Answer(score=np.zeros(12, np.float32))
    collected: list[str] = []
    made = make_reference(
        cast("BundlePlan", plan), cast("Dataset", data), answer, DriftSpec(**wanted), say=collected.append
    )
    assert tuple(collected) == made.notes
    return made, given


def manifest(made: BundleReference, given: Input) -> Manifest:
    """A bundle's, as a device reads it."""
    found = Manifest(
        name="m", version="1.0.0", task="anomaly", input=given, output=Output(threshold=1.0),
        reference=made.channels, score_reference=made.scores, drift=made.drift,
    )  # fmt: skip
    return read_manifest(write_manifest(found), "m.onnx")


def alarms(made: Manifest, readings: Floats) -> int:
    """How many begin in a stream."""
    monitor, began = Monitor(made, is_recorded=True), []
    monitor.on_change.append(lambda _, state: began.append(state))
    for start in range(0, len(readings), 64):
        part = readings[start : start + 64]
        monitor.take(part, [None] * len(part), None, 0.0)
    return began.count("alarm")


def test_the_distribution_is_that_of_numpy() -> None:
    """Every reading counts once, on the side of an edge on which a device counts it."""
    rng = np.random.default_rng(1)
    values = np.column_stack([rng.normal(20.0, 1.0, 5000), rng.integers(0, 3, 5000) * 0.7]).astype(np.float32)
    values[::10, 0] = np.nan
    first, second = reference_of(values, ("a", "b"))
    known = values[np.isfinite(values[:, 0]), 0]
    assert (first.missing, sum(first.counts), second.missing) == (0.1, 4500, 0.0)
    assert first.mean == pytest.approx(known.mean(), rel=1e-5)
    edges = np.array(first.edges, np.float32)
    edges[0], edges[-1] = -np.inf, np.inf
    assert list(first.counts) == np.histogram(known, edges)[0].tolist()
    assert list(second.counts) == [int((values[:, 1] == 0.0).sum()), int((values[:, 1] > 0.0).sum())]


def test_a_block_says_what_a_device_finds_in_it() -> None:
    """The same figures from arrays and from a stream: the limits would otherwise be those of something else."""
    rng = np.random.default_rng(2)
    values = walk(rng, 6 * 128, 0.8)
    made, given = reference(walk(rng, 20_000, 0.8), block=128)
    monitor = Monitor(manifest(made, given), is_recorded=True)
    base = monitor.base
    assert base is not None
    blocks = cut(values, [np.arange(len(values))], 128, edges=base.edges, std=base.std)
    sampled = values.astype(np.float64).reshape(6, 128, 2)[:, :: 128 // MOST_SAMPLED]
    np.testing.assert_allclose(blocks.mean, sampled.mean(axis=1), rtol=1e-6)
    monitor.take(values, [None] * len(values), None, 0.0)
    columns = monitor.streams[None].input
    assert columns is not None
    for column, about in enumerate(made.channels):  # the sums by hand
        limits = about.limits
        assert limits is not None
        most = limits.slack + limits.limit / 2.0
        up = down = 0.0
        for mean in blocks.mean[:, column]:
            z = min(max((mean - limits.mean) / limits.sd, -most), most)
            up, down = max(up + z - limits.slack, 0.0), max(down - z - limits.slack, 0.0)
        sums = columns.columns[column].offsets
        assert (sums.up, sums.down) == pytest.approx((up, down), abs=1e-5)


def test_equal_values_among_those_that_are_looked_at_are_a_run_too() -> None:
    """A switch that changes with every other reading never rests, and looks as if it did to whoever looks seldom."""
    values = np.tile(np.array([[0.0], [1.0]], np.float32), (300, 1))
    rows = [np.arange(len(values))]
    assert longest_runs(values, rows) == [1]
    assert longest_runs(values, rows, every=4) == [597]


@pytest.mark.parametrize("keeps", [0.0, 0.9, 0.99])
def test_false_alarms_come_as_often_as_was_asked_for(keeps: float) -> None:
    """Over years of readings that depend on one another: not much more, and not never."""
    rng = np.random.default_rng(int(100 * keeps))
    made, given = reference(walk(rng, 30_000, keeps), false_alarms_per_month=4.0)
    months = 8
    found = alarms(manifest(made, given), walk(rng, int(months * MONTH_S / MINUTE), keeps))
    assert 1 <= found <= 2.0 * 4.0 * months


def lively(rng: np.random.Generator, count: int) -> Floats:
    """Five axes that rest and move together, for some hours each."""
    size = np.repeat(np.exp(rng.normal(0.0, 1.5, count // 200 + 1)), 200)[:count]
    found: Floats = (rng.normal(size=(count, 5)) * size[:, np.newaxis]).astype(np.float32)
    return found


def test_channels_that_move_together_are_judged_beside_one_another() -> None:
    """A scale of two, which the spread of one channel by itself does not show; at the false alarms asked for."""
    made, given = reference(lively(np.random.default_rng(11), 30_000), false_alarms_per_month=4.0)
    assert all(each.limits is not None and each.limits.beside is not None for each in made.channels)
    later = lively(np.random.default_rng(12), int(4 * MONTH_S / MINUTE))
    assert alarms(manifest(made, given), later) <= 2.0 * 4.0 * 4
    monitor = Monitor(manifest(made, given), is_recorded=True)
    broken = later[:20_000].copy()
    broken[:, 0] *= 2.0
    monitor.take(later[-20_000:], [None] * 20_000, None, 0.0)
    monitor.take(broken, [None] * 20_000, None, 0.0)
    document = monitor.document()
    assert (document["state"], {each["at"] for each in document["causes"]}) == ("alarm", {"c0"})


def test_channels_that_have_nothing_to_do_with_each_other_are_not() -> None:
    """Their limits are as before, and so is what they say."""
    made, _ = reference(walk(np.random.default_rng(13), 20_000, 0.5))
    assert [each.limits is not None and each.limits.beside is None for each in made.channels] == [True, True]


def test_fewer_false_alarms_mean_higher_limits_and_a_later_alarm() -> None:
    """The trade that the user makes."""
    readings = walk(np.random.default_rng(3), 20_000, 0.9)
    later = walk(np.random.default_rng(30), 20_000, 0.9) + np.float32(0.6)
    found = []
    for rate in (30.0, 0.1):
        made, given = reference(readings, false_alarms_per_month=rate, block=128)
        assert made.channels[0].limits is not None
        monitor, blocks = Monitor(manifest(made, given), is_recorded=True), 0
        while monitor.document()["state"] != "alarm":
            monitor.take(later[128 * blocks : 128 * (blocks + 1)], [None] * 128, None, 0.0)
            blocks += 1
        found.append((made.channels[0].limits.psi, blocks))
    (low, soon), (high, late) = found
    assert low < high
    assert soon < late


def test_a_stream_at_one_of_the_recorded_levels_raises_no_more_alarms_than_by_chance() -> None:
    """A recording of two levels has the shape of neither; that of each part of it counts as usual."""
    found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        readings = walk(rng, 16_000, 0.5)
        readings[6000:, 0] += 1.0
        made, given = reference(readings)
        for level in (0.0, 1.0):
            found += alarms(manifest(made, given), walk(rng, 2000, 0.5) + np.array([level, 0.0], np.float32))
    assert found <= 1  # 33 days in all, for one a month


def test_what_was_held_on_later_blocks_is_said() -> None:
    """A sentence with the figures; one that names the channel where the later recordings are another world."""
    rng = np.random.default_rng(4)
    readings = walk(rng, 20_000, 0.5)
    made, _ = reference(readings)
    assert made.drift is not None
    assert made.drift.checked > 0
    assert made.notes[0].startswith("drift: limits from ")
    assert made.notes[0].endswith("held")
    assert "not held" not in made.notes[0]
    readings[15_000:, 1] += 2.0
    other, _ = reference(readings)
    assert other.drift is not None
    assert other.drift.alarms >= 1
    assert "not held (c1: " in other.notes[0]
    assert "record longer, or say another `false_alarms_per_month`" in other.notes[0]


def test_recordings_too_short_give_a_reference_without_limits() -> None:
    """And a sentence; the bundle is made all the same."""
    made, _ = reference(walk(np.random.default_rng(5), 400, 0.0))
    assert made.channels[0].limits is None
    assert made.drift is None
    assert made.notes[0].startswith("drift: no limits: 280 readings are too few")


def test_without_data_there_is_no_reference() -> None:
    """Nothing to compare with, and nothing is reported here."""
    plan = cast("BundlePlan", SimpleNamespace())
    assert make_reference(plan, None, Answer(), DriftSpec(), say=print) == BundleReference()


def test_the_answers_have_limits_too() -> None:
    """A model that answers otherwise is found even where each channel looks as before."""
    rng = np.random.default_rng(6)
    readings = walk(rng, 20_000, 0.5)
    made, given = reference(readings, answer=Answer(score=walk(rng, 10_000, 0.5, 1)[:, 0]))
    assert made.drift is not None
    (score,) = made.scores
    assert score.name == "score"
    assert score.limits is not None
    assert Monitor(manifest(made, given)).score_base is not None


def test_later_answers_say_whether_their_limits_held() -> None:
    """By answers that calibration has not seen; they may change where no channel does."""
    rng = np.random.default_rng(16)
    readings, answers = walk(rng, 20_000, 0.5), walk(rng, 7_000, 0.5, 1)[:, 0]
    made, _ = reference(readings, answer=Answer(score=answers))
    assert made.drift is not None
    assert made.drift.score_checked >= 10
    assert made.notes[1].startswith("drift of answers: limits from ")
    assert made.notes[1].endswith("held")
    assert "not held" not in made.notes[1]
    answers[5600:] += 2.0
    other, _ = reference(readings, answer=Answer(score=answers))
    assert other.drift is not None
    assert (made.drift.score_alarms, other.drift.score_alarms >= 1, other.drift.alarms) == (0, True, made.drift.alarms)
    assert "not held (answer score: " in other.notes[1]


def test_a_rate_that_is_not_known_is_said() -> None:
    """A month needs one."""
    made, _ = reference(walk(np.random.default_rng(7), 20_000, 0.0), rate_hz=None)
    assert "of one reading a minute, since neither rate_hz nor times are known" in made.notes[0]


def test_equal_recordings_give_equal_references() -> None:
    """Bundles are compared byte by byte."""
    readings = walk(np.random.default_rng(8), 9_000, 0.9)
    assert reference(readings) == reference(readings.copy())


def test_no_block_goes_over_the_border_of_a_session() -> None:
    """Two keys whose readings alternate are two streams."""
    values = np.tile(np.array([[0.0], [100.0]], np.float32), (640, 1))
    groups = np.tile(["a", "b"], 640)
    sessions = sessions_of(groups, len(values))
    blocks = cut(values, sessions, 64, edges=np.zeros((1, 0), np.float32), std=np.ones(1))
    assert sorted(set(blocks.mean[:, 0].tolist())) == [0.0, 100.0]
    assert longest_runs(values, sessions) == [640]
    assert longest_runs(values, [np.arange(len(values))]) == [1]


def test_a_constant_and_an_absent_channel_break_nothing() -> None:
    """A constant has no spread to compare with; what is always missing has nothing at all."""
    readings = walk(np.random.default_rng(9), 9_000, 0.0, 3)
    readings[:, 1], readings[:, 2] = 7.0, np.nan
    made, given = reference(readings)
    assert [each.limits is None for each in made.channels] == [False, True, True]
    monitor = Monitor(manifest(made, given), is_recorded=True)
    monitor.take(readings[:1280], [None] * 1280, None, 0.0)
    assert monitor.document()["state"] == "ok"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"false_alarms_per_month": 0}, "drift.false_alarms_per_month: expected 0.001 to 1000, found 0"),
        ({"block": 3}, "drift.block: expected 8 to 1000000 readings, found 3"),
        ({"blocks": 3}, "block"),
    ],
)
def test_a_wrong_table_is_named_at_its_place(table: dict[str, Any], message: str) -> None:
    """With what was expected and found."""
    with pytest.raises(CommandError, match=message.replace(".", r"\.")):
        parse_spec({"drift": table}, "spec.toml")


def test_shares_of_bins_add_up_to_one() -> None:
    """Whatever counts a bundle brings."""
    made, _ = reference(walk(np.random.default_rng(10), 9_000, 0.0))
    base = Baseline(made.channels, None, 64)
    np.testing.assert_allclose(np.where(base.present, base.shares, 0.0).sum(axis=1), 1.0)
