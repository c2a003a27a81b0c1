"""Readings and answers against the reference of a bundle: what is an alarm, what is not, and what it says."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import ChannelReference, Manifest, Window
from edge_runtime.bundle.model import Scores
from edge_runtime.drift.column import CALM
from edge_runtime.drift.monitor import MOST_STREAMS, Monitor
from edge_runtime.readings import Floats
from tests.support import drifting
from tests.support.drifting import BLOCK, readings

NAMES = ("temperature", "pressure")
Fault = Callable[[Floats, np.random.Generator], NDArray[np.floating]]


@pytest.fixture
def rng() -> np.random.Generator:
    """Of this test."""
    return np.random.default_rng(7)


@pytest.fixture
def manifest(rng: np.random.Generator) -> Manifest:
    """A bundle that was trained on four thousand readings."""
    return drifting.manifest(readings(rng, 4000), NAMES)


def take(monitor: Monitor, values: NDArray[np.floating], *, at_once: int = 16) -> None:
    """Readings without times, all of one wake-up."""
    for start in range(0, len(values), at_once):
        part = values[start : start + at_once].astype(np.float32)
        monitor.take(part, [None] * len(part), None, 0.0)


def _stuck(values: Floats, _: np.random.Generator) -> Floats:
    return np.column_stack([np.full(len(values), 20.25), values[:, 1]])


def _missing(values: Floats, rng: np.random.Generator) -> Floats:
    lost = rng.random(len(values)) < 0.3
    return np.column_stack([np.where(lost, np.nan, values[:, 0]), values[:, 1]])


FAULTS: dict[str, tuple[Fault, str, int]] = {
    "stuck": (_stuck, "stuck: 20.25 in", 2),
    "missing": (_missing, "missing in", 2),
    "out of range": (lambda values, _: values + np.array([70.0, 0.0]), "out of the range -40 to 85 in", 2),
    "offset": (lambda values, _: values + np.array([0.6, 0.0]), "above its mean in training (20", 8),
    "offset down": (lambda values, _: values - [0.6, 0.0], "below its mean in training (20", 8),
    "scale": (lambda values, _: (values - [20.0, 0.0]) * [2.0, 1.0] + np.array([20.0, 0.0]), "times as wide", 8),
    "steadier": (lambda values, _: (values - [20.0, 0.0]) * [0.5, 1.0] + np.array([20.0, 0.0]), "times as wide", 8),
    "noise": (lambda values, rng: values + rng.normal(0, [0.9, 0.01], values.shape), "moves more", 16),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_of_one_channel_is_an_alarm_that_names_it(
    name: str, manifest: Manifest, rng: np.random.Generator
) -> None:
    """Within some blocks, and the other channel stays ok."""
    fault, words, blocks = FAULTS[name]
    monitor = Monitor(manifest)
    take(monitor, readings(rng, 20 * BLOCK))
    assert monitor.document()["state"] == "ok"
    take(monitor, fault(readings(rng, blocks * BLOCK), rng))
    document = monitor.document()
    assert document["state"] == monitor.state == "alarm"
    assert words in document["channels"]["temperature"]["why"]
    assert document["why"] == f"temperature: {document['channels']['temperature']['why']}"
    assert document["channels"]["temperature"]["stuck"] is (name == "stuck")
    assert document["channels"]["pressure"]["state"] == "ok"


def test_two_exchanged_channels_name_each_other(rng: np.random.Generator) -> None:
    """Each looks like the other one's training."""
    values = rng.normal((20.0, 40.0), (1.0, 3.0), (4000, 2)).astype(np.float32)
    made = drifting.manifest(values, NAMES)
    monitor = Monitor(made)
    take(monitor, values[: 10 * BLOCK])
    assert monitor.state == "ok"
    take(monitor, values[: 2 * BLOCK, ::-1])
    channels = monitor.document()["channels"]
    assert channels["temperature"]["why"] == "looks like the training of pressure: the two may be swapped"
    assert channels["pressure"]["why"] == "looks like the training of temperature: the two may be swapped"


def test_a_channel_that_carries_another_one_is_named(rng: np.random.Generator) -> None:
    """A wire on the wrong terminal: both columns hold the same quantity."""
    values = rng.normal((20.0, 40.0), (1.0, 3.0), (4000, 2)).astype(np.float32)
    monitor = Monitor(drifting.manifest(values, NAMES))
    take(monitor, values[: 10 * BLOCK])
    take(monitor, values[: 30 * BLOCK, [1, 1]])
    channels = monitor.document()["channels"]
    assert "looks like the training of pressure" in channels["temperature"]["why"]
    assert channels["pressure"]["state"] == "ok"


def test_a_channel_far_off_that_is_no_other_one_is_not_called_swapped(
    manifest: Manifest, rng: np.random.Generator
) -> None:
    """A thousand degrees are not near a thousand hectopascals if they do not vary like them."""
    monitor = Monitor(manifest)
    take(monitor, readings(rng, 20 * BLOCK) + np.array([20.0, 0.0]))
    assert "above its mean" in monitor.document()["channels"]["temperature"]["why"]


def test_a_state_falls_after_calm_blocks_and_not_before(manifest: Manifest, rng: np.random.Generator) -> None:
    """Hysteresis: one good block is no recovery."""
    monitor = Monitor(manifest)
    changes: list[str] = []
    monitor.on_change.append(lambda key, state: changes.append(f"{key} {state}"))
    take(monitor, readings(rng, 4 * BLOCK))
    take(monitor, _missing(readings(rng, BLOCK), rng))
    take(monitor, readings(rng, (CALM - 1) * BLOCK))
    assert monitor.state == "alarm"
    take(monitor, readings(rng, BLOCK))
    assert monitor.document()["state"] == "ok"
    assert changes == ["None alarm", "None ok"]


def test_half_the_reason_is_to_watch(manifest: Manifest, rng: np.random.Generator) -> None:
    """Between ok and alarm there is a state that raises no alarm."""
    monitor = Monitor(manifest)
    values = readings(rng, 4 * BLOCK)
    values[:: BLOCK // 4, 0] = np.nan  # four of 64
    take(monitor, values)
    document = monitor.document()
    assert (document["state"], document["channels"]["temperature"]["state"]) == ("watch", "watch")
    assert document["channels"]["temperature"]["missing"] == 0.0625


def test_each_key_is_judged_by_itself(manifest: Manifest, rng: np.random.Generator) -> None:
    """A fault of one is not diluted by the others, even where they arrive together."""
    monitor = Monitor(manifest)
    for _ in range(4 * BLOCK):
        rows = readings(rng, 3)
        rows[1, 0] = 21.0
        monitor.take(rows, ["a", "b", "c"], None, 0.0)
    document = monitor.document()
    assert document["keys"] == {"b": "alarm"}
    assert (monitor.state_of("a"), monitor.state_of("b"), monitor.state_of("never seen")) == ("ok", "alarm", "ok")
    assert document["channels"]["temperature"]["key"] == "b"
    monitor.forget(["b"])
    assert monitor.document()["state"] == "ok"


def test_more_keys_than_are_watched_are_counted(manifest: Manifest, rng: np.random.Generator) -> None:
    """Memory is bounded, and the document says what is left out."""
    monitor = Monitor(manifest)
    for number in range(MOST_STREAMS + 3):
        monitor.take(readings(rng, 1), [f"k{number}"], None, 0.0)
    document = monitor.document()
    assert (document["watched"], document["unwatched"]) == (MOST_STREAMS, 3)


@pytest.mark.parametrize("at_once", [1, 7, 64, 1000])
def test_it_does_not_matter_how_readings_arrive(at_once: int, manifest: Manifest, rng: np.random.Generator) -> None:
    """One by one or a thousand at once: the same figures."""
    values = readings(rng, 3000) + np.array([0.2, 0.0])
    whole, other = Monitor(manifest), Monitor(manifest)
    take(whole, values, at_once=3000)
    take(other, values, at_once=at_once)
    one, two = whole.document(), other.document()
    assert [one[member] for member in ("state", "why", "blocks", "channels")] == [
        two[member] for member in ("state", "why", "blocks", "channels")
    ]


def test_psi_and_offset_are_those_of_scipy_and_numpy(manifest: Manifest, rng: np.random.Generator) -> None:
    """The index is the symmetric relative entropy of the weighted shares; the offset is a weighted mean."""
    values = readings(rng, 12 * BLOCK) * np.float32(1.01)
    monitor = Monitor(manifest)
    take(monitor, values)
    weights = np.repeat((1 - 1 / 8) ** np.arange(11, -1, -1), BLOCK)
    before = 8 * BLOCK * (1 - 1 / 8) ** 12  # the weight of what came before: blocks as in training
    for column, name in enumerate(NAMES):
        reference = manifest.reference[column]
        edges = np.array(reference.edges, np.float32)
        edges[0], edges[-1] = -np.inf, np.inf
        training = np.array(reference.counts) + 0.5
        training /= training.sum()
        late = np.histogram(values[:, column], edges, weights=weights)[0] + before * training + 0.5
        late /= late.sum()
        index = scipy.stats.entropy(late, training) + scipy.stats.entropy(training, late)
        found = monitor.document()["channels"][name]
        assert found["psi"] == pytest.approx(index, rel=1e-3)
        offset = (np.average(values[:, column], weights=weights) - reference.mean) / reference.std
        assert found["offset_sd"] == pytest.approx(offset, rel=1e-3, abs=1e-4)


def test_the_scores_are_watched_as_the_channels_are(rng: np.random.Generator) -> None:
    """A model that suddenly answers otherwise is drift too."""
    values = readings(rng, 4000)
    made = drifting.manifest(values, NAMES)
    answers = rng.beta(2.0, 5.0, (4000, 1)).astype(np.float32)
    both = np.hstack([1.0 - answers, answers]).astype(np.float32)
    scored = drifting.with_scores(made, both, ("ok", "worn"))
    monitor = Monitor(scored)
    keys: list[str | None] = [None] * 1024
    monitor.take_scores(Scores(label=np.zeros(1024, np.int64), scores=both[:1024]), keys)
    assert monitor.document()["scores"]["state"] == "ok"
    monitor.take_scores(Scores(label=np.zeros(1024, np.int64), scores=both[:1024] ** 2), keys)
    document = monitor.document()
    assert document["scores"]["state"] == "alarm"
    assert document["scores"]["output"] in {"ok", "worn"}
    assert document["why"].startswith("answer ")


def test_a_rate_that_is_halved_is_named_with_both(manifest: Manifest, rng: np.random.Generator) -> None:
    """By the readings' own times, in two blocks one after another."""
    monitor = Monitor(manifest, wall=lambda: None)
    values = readings(rng, 6 * BLOCK)
    moments = (np.arange(len(values)) / drifting.RATE_HZ).tolist()
    monitor.take(values, [None] * len(values), moments, 0.0)
    assert monitor.document()["rate"] == {"state": "ok", "why": None, "hz": 1.0, "expected_hz": 1.0}
    late = [moments[-1] + 2.0 * (row + 1) for row in range(2 * BLOCK)]
    monitor.take(values[: 2 * BLOCK], [None] * len(late), late, 0.0)
    rate = monitor.document()["rate"]
    assert (rate["state"], rate["hz"]) == ("alarm", 0.5)
    assert rate["why"] == "readings come at 0.5 Hz, in training at 1 Hz"


def test_pauses_and_lost_readings_are_no_other_rate(manifest: Manifest, rng: np.random.Generator) -> None:
    """A night without readings, and every fifth one lost."""
    monitor = Monitor(manifest, wall=lambda: None)
    moments = [float(second) for second in range(6000) if second % 5 and not 2000 < second < 4000]
    values = readings(rng, len(moments))
    monitor.take(values, [None] * len(values), moments, 0.0)
    assert monitor.document()["rate"]["state"] == "ok"


@pytest.mark.parametrize(("behind", "words"), [(3600.0, "behind"), (-3600.0, "ahead of")])
def test_times_that_are_not_of_now_are_named(
    behind: float, words: str, manifest: Manifest, rng: np.random.Generator
) -> None:
    """A sensor in another time zone; where our own clock is not set, nothing is reported."""
    now = 1_700_000_000.0
    moments = [now - behind + 0.01 * row for row in range(2 * BLOCK)]
    values = readings(rng, len(moments))
    keys: list[str | None] = [None] * len(moments)
    monitor, without, recorded = (
        Monitor(manifest, wall=lambda: now),
        Monitor(manifest, wall=lambda: None),
        Monitor(manifest, wall=lambda: now, is_recorded=True),
    )
    for each in (monitor, without, recorded):
        each.take(values, keys, moments, 0.0)
    clock = monitor.document()["clock"]
    assert clock["state"] == "alarm"
    assert f"s {words} the clock of this device" in clock["why"]
    assert without.document()["clock"]["state"] == recorded.document()["clock"]["state"] == "ok"


def test_one_late_reading_is_no_wrong_clock(manifest: Manifest, rng: np.random.Generator) -> None:
    """Nor are many: every reading of a block has to be late."""
    now = 1_700_000_000.0
    moments = [now - (3600.0 if row % 3 else 0.5) for row in range(4 * BLOCK)]
    monitor = Monitor(manifest, wall=lambda: now)
    monitor.take(readings(rng, len(moments)), [None] * len(moments), moments, 0.0)
    assert monitor.document()["clock"] == {"state": "ok", "why": None, "offset_s": 0.5}


def test_a_reference_of_an_older_converter_gives_the_alarms_that_need_no_limits(rng: np.random.Generator) -> None:
    """What is stuck is an alarm; an offset is shown, and is none."""
    values = readings(rng, 4000)
    monitor = Monitor(drifting.manifest(values, NAMES, calibrated=False))
    assert not monitor.is_calibrated
    take(monitor, values[:1024] + np.array([1.5, 0.0]))
    found = monitor.document()["channels"]["temperature"]
    assert (found["state"], found["offset_sd"] > 1.0, found["psi"] > 0.25) == ("ok", True, True)
    take(monitor, _stuck(values[:1024], rng))
    assert monitor.document()["channels"]["temperature"]["stuck"]


def test_a_bundle_without_any_reference_can_be_watched(rng: np.random.Generator) -> None:
    """Missing and out of range need none."""
    made = drifting.manifest(readings(rng, 400), NAMES, calibrated=False)
    plain = drifting.without_reference(made)
    monitor = Monitor(plain)
    take(monitor, _missing(readings(rng, 512), rng))
    found = monitor.document()["channels"]["temperature"]
    assert (found["state"], found["psi"], found["offset_sd"]) == ("alarm", None, None)


def test_a_reference_that_contradicts_itself_is_not_compared_with(rng: np.random.Generator) -> None:
    """Bundles come from elsewhere: fewer counts than bins, no spread, a single edge."""
    made = drifting.manifest(readings(rng, 400), NAMES)
    odd = (
        ChannelReference("temperature", 20.0, 0.0, 20.0, 20.0, (20.0,), (400,)),
        ChannelReference("pressure", 1000.0, 8.0, 980.0, 1020.0, (980.0, 1000.0, 1010.0, 1020.0), (1, 2)),
    )
    monitor = Monitor(drifting.with_reference(made, odd))
    take(monitor, readings(rng, 1024))
    document = monitor.document()
    assert document["channels"]["temperature"]["psi"] is None
    assert document["channels"]["pressure"]["psi"] is None


@pytest.mark.parametrize("rate_hz", [1.0, 1e6])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_channel_takes_at_most_two_kilobytes(columns: int, rate_hz: float, rng: np.random.Generator) -> None:
    """With everything that belongs to its key, and all readings that wait to be judged, with times."""
    made = drifting.manifest(readings(rng, 4000), NAMES)
    made = drifting.with_rate(drifting.first_channels(made, columns), rate_hz)
    values = readings(rng, 6 * 3 * BLOCK - 1)[:, :columns].copy()
    moments = [row / rate_hz for row in range(len(values))]
    monitor = Monitor(made, wall=lambda: None)
    names = [f"k{number}" for number in range(101)]
    monitor.take(values, [names[-1]] * len(values), moments, 0.0)  # what is made once
    tracemalloc.start()
    try:
        for name in names[:-1]:
            monitor.take(values, [name] * len(values), moments, 0.0)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / 100 / columns <= 2048


def test_a_thousand_channels_that_all_move_take_little_memory(rng: np.random.Generator) -> None:
    """Each far from its training, so that each may be another one: not all are compared with all."""
    names = [f"c{number}" for number in range(1000)]
    values = (rng.normal(size=(400, 1000)) + np.arange(1000)).astype(np.float32)
    monitor = Monitor(drifting.manifest(values, names))
    later = np.ascontiguousarray(np.roll(values[:BLOCK], 7, axis=1))
    take(monitor, later)
    tracemalloc.start()
    try:
        take(monitor, later)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4_000_000  # 8 MB for each table of all with all
    assert monitor.document()["channels"]["c10"]["why"] == "looks like the training of c3: the two may be swapped"


def test_what_is_out_of_range_is_counted_beside_what_is_missing(manifest: Manifest, rng: np.random.Generator) -> None:
    """A sensor that sends a wild value or nothing; one that is infinite is none at all, and spoils no figure."""
    values = readings(rng, 2 * BLOCK)
    values[::8, 0], values[1::8, 0], values[2::8, 0] = 500.0, np.nan, np.inf
    monitor = Monitor(manifest)
    take(monitor, values)
    found = monitor.document()["channels"]["temperature"]
    assert (found["state"], found["missing"]) == ("alarm", 0.25)
    assert found["out_of_range"] == pytest.approx(1 / 6, rel=1e-3)  # of what is there
    assert np.isfinite([found["psi"] or 0.0, found["offset_sd"]]).all()


def test_a_long_block_is_sampled(rng: np.random.Generator) -> None:
    """Every so many readings of a fast stream are enough; the block is as long as it was asked for."""
    made = drifting.with_block(drifting.manifest(readings(rng, 4000), NAMES), 4096)
    monitor = Monitor(made)
    take(monitor, readings(rng, 3 * 4096 - 1), at_once=100)
    assert monitor.blocks == 2
    take(monitor, readings(rng, 1))
    assert monitor.blocks == 3
    found = monitor.document()["channels"]["temperature"]
    assert (found["missing"], found["offset_sd"]) == (0.0, pytest.approx(0.0, abs=0.2))


def test_the_rate_of_the_window_counts_before_that_of_the_recordings(rng: np.random.Generator) -> None:
    """What the specification says is what the model was trained for."""
    made = drifting.with_window(drifting.manifest(readings(rng, 400), NAMES), Window(1, 1, 5.0))
    assert Monitor(made).document()["rate"]["expected_hz"] == 5.0
