"""What a monitor shows and counts: bounds, causes, several keys and answers, and bundles with half of the parts."""

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.manifest import DriftReference, Manifest, Window
from edge_runtime.bundle.model import Scores
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats
from tests.support import drifting
from tests.support.drifting import BLOCK, readings

NAMES = ("temperature", "pressure")
NOW = 1_700_000_000.0


@pytest.fixture
def rng() -> np.random.Generator:
    """Of this test."""
    return np.random.default_rng(11)


@pytest.fixture
def manifest(rng: np.random.Generator) -> Manifest:
    """A bundle that was trained on four thousand readings."""
    return drifting.manifest(readings(rng, 4000), NAMES)


@pytest.fixture
def scored(manifest: Manifest, rng: np.random.Generator) -> Manifest:
    """One with a reference of two answers."""
    return drifting.with_scores(manifest, _answers(rng, 4000), ("good", "worn"))


def _answers(rng: np.random.Generator, count: int) -> Floats:
    worn = rng.beta(2.0, 5.0, (count, 1)).astype(np.float32)
    return np.hstack([1.0 - worn, worn]).astype(np.float32)


def _take(monitor: Monitor, values: Floats, key: str | None = None, times: list[float] | None = None) -> None:
    monitor.take(values, [key] * len(values), times, 0.0)


def _lost(values: Floats, every: int) -> Floats:
    """Without each so many-th temperature: of 4 it is an alarm, of 16 to watch."""
    found = values.copy()
    found[::every, 0] = np.nan
    return found


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_256_keys_are_watched_and_as_many_more_are_counted(manifest: Manifest, rng: np.random.Generator) -> None:
    """A key that is gone is counted no longer, and makes room for the next one."""
    monitor = Monitor(manifest)
    row = readings(rng, 1)
    for number in range(256 + 300):
        _take(monitor, row, f"k{number}")
    document = monitor.document()
    assert (document["watched"], document["unwatched"]) == (256, 256)
    monitor.forget(["k0", "k300"])
    document = monitor.document()
    assert (document["watched"], document["unwatched"]) == (255, 255)
    _take(monitor, row, "k900")
    assert monitor.document()["watched"] == 256


def test_at_most_32_keys_are_named_the_worst_first(manifest: Manifest, rng: np.random.Generator) -> None:
    """A document has a bounded length; the key that is shown for a channel is the worst one."""
    monitor = Monitor(manifest)
    values = readings(rng, 2 * BLOCK)
    for number in range(40):
        _take(monitor, _lost(values, 4 if number == 17 else 16), f"k{number}")
    _take(monitor, values, "fine")
    document = monitor.document()
    assert (document["state"], len(document["keys"])) == ("alarm", 32)
    assert next(iter(document["keys"].items())) == ("k17", "alarm")
    assert set(document["keys"].values()) == {"alarm", "watch"}
    assert document["channels"]["temperature"]["key"] == "k17"
    assert (monitor.state_of("k17"), monitor.state_of("k1"), monitor.state_of("fine")) == ("alarm", "watch", "ok")


def test_a_document_is_made_again_after_a_change_only(manifest: Manifest, rng: np.random.Generator) -> None:
    """It is read every second. A key that is gone is a change, even if the state stays and another key has come."""
    monitor = Monitor(manifest)
    values = _lost(readings(rng, 2 * BLOCK), 4)
    for key in ("a", "b"):
        _take(monitor, values, key)
    document = monitor.document()
    assert document["keys"] == {"b": "alarm", "a": "alarm"}
    assert monitor.document() is document
    monitor.forget(["a"])
    _take(monitor, values[:1], "c")
    assert monitor.document()["keys"] == {"b": "alarm"}
    monitor.forget(["never seen"])
    assert monitor.document()["state"] == "alarm"
    monitor.forget(["b"])
    assert monitor.document()["state"] == "ok"


# --- causes ---------------------------------------------------------------------------------------------------------


def test_causes_are_listed_the_worst_first(manifest: Manifest, rng: np.random.Generator) -> None:
    """With their place; the summary has the same without the figures."""
    values = _lost(readings(rng, 2 * BLOCK), 16)
    values[::4, 1] = np.nan
    monitor = Monitor(manifest)
    _take(monitor, values)
    document = monitor.document()
    assert document["causes"] == [
        {"at": "pressure", "cause": "missing", "state": "alarm"},
        {"at": "temperature", "cause": "missing", "state": "watch"},
    ]
    assert document["why"] == f"pressure: {document['channels']['pressure']['why']}"
    assert monitor.summary() == {name: document[name] for name in ("state", "why", "since", "causes")}
    assert "key" not in document["channels"]["pressure"]
    assert document["blocks"] == 2


@pytest.mark.parametrize(("hz", "cause"), [(0.5, "slow"), (2.0, "fast")])
def test_another_rate_is_the_cause_by_itself(
    manifest: Manifest, rng: np.random.Generator, hz: float, cause: str
) -> None:
    """Without a channel's name before it; the key is the one whose rate is off."""
    monitor = Monitor(manifest, wall=lambda: None)
    for key, each in (("sound", 1.0), ("off", hz), ("other", 1.0)):
        _take(monitor, readings(rng, 2 * BLOCK), key, [row / each for row in range(2 * BLOCK)])
    document = monitor.document()
    rate = document["rate"]
    assert (rate["state"], rate["hz"], rate["expected_hz"], rate["key"]) == ("alarm", hz, 1.0, "off")
    assert document["why"] == rate["why"] == f"readings come at {hz:g} Hz, in training at 1 Hz"
    assert document["causes"] == [{"at": "rate", "cause": cause, "state": "alarm"}]
    assert document["keys"] == {"off": "alarm"}


@pytest.mark.parametrize(("behind", "cause"), [(3600.0, "behind"), (-3600.0, "ahead")])
def test_another_time_is_the_cause_by_itself(
    manifest: Manifest, rng: np.random.Generator, behind: float, cause: str
) -> None:
    """Of several keys the one that is off most."""
    monitor = Monitor(manifest, wall=lambda: NOW)
    for key, off in (("sound", 0.0), ("near", behind / 2), ("off", behind), ("last", behind / 4)):
        _take(monitor, readings(rng, 2 * BLOCK), key, [NOW - off] * (2 * BLOCK))
    document = monitor.document()
    clock = document["clock"]
    assert (clock["state"], clock["offset_s"], clock["key"]) == ("alarm", behind, "off")
    assert document["why"] == clock["why"]
    assert document["causes"] == [{"at": "clock", "cause": cause, "state": "alarm"}]


def test_a_rate_and_a_time_that_are_as_expected_have_no_cause(manifest: Manifest, rng: np.random.Generator) -> None:
    """They are shown, with four digits."""
    monitor = Monitor(manifest, wall=lambda: NOW)
    times = [NOW - 127.0 * 1.01 - 0.123456 + 1.01 * row for row in range(2 * BLOCK)]
    _take(monitor, readings(rng, 2 * BLOCK), None, times)
    document = monitor.document()
    assert document["rate"] == {"state": "ok", "why": None, "hz": 0.9901, "expected_hz": 1.0}
    assert document["clock"] == {"state": "ok", "why": None, "offset_s": 0.1235}
    assert (document["why"], document["causes"], document["keys"]) == (None, [], {})


def test_before_the_first_block_nothing_is_known(manifest: Manifest, rng: np.random.Generator) -> None:
    """No figure of any column, nor of the rate and the clock."""
    monitor = Monitor(manifest)
    _take(monitor, readings(rng, BLOCK - 1))
    document = monitor.document()
    nothing = dict.fromkeys(("why", "psi", "offset_sd", "missing", "out_of_range"))
    assert document["channels"]["temperature"] == {"state": "ok", "stuck": False, **nothing}
    assert document["rate"] == {"state": "ok", "why": None, "hz": None, "expected_hz": 1.0}
    assert document["clock"] == {"state": "ok", "why": None, "offset_s": None}
    assert document["scores"] == {"state": "ok", "why": None, "output": None, "psi": None, "offset_sd": None}
    assert (document["blocks"], document["watched"], document["state"]) == (0, 1, "ok")
    _take(monitor, readings(rng, 1))
    assert monitor.document()["blocks"] == 1


# --- bundles with half of the parts ---------------------------------------------------------------------------------


def test_a_bundle_without_channels_has_its_answers_watched(scored: Manifest, rng: np.random.Generator) -> None:
    """As one that takes tensors; its readings are not."""
    made = msgspec.structs.replace(scored, input=msgspec.structs.replace(scored.input, channels=()), reference=())
    monitor = Monitor(made)
    assert monitor.is_calibrated
    _take(monitor, readings(rng, 2 * BLOCK))
    monitor.take(readings(rng, 1), [None], None, 0.0)
    answers = _answers(rng, 2 * BLOCK)
    monitor.take_scores(Scores(scores=answers), [None] * len(answers))
    document = monitor.document()
    assert (document["channels"], document["block"], document["blocks"]) == ({}, None, 2)
    assert document["scores"]["state"] == "ok"


def test_a_bundle_without_answers_has_its_channels_watched(manifest: Manifest, rng: np.random.Generator) -> None:
    """Answers are ignored."""
    monitor = Monitor(manifest)
    answers = _answers(rng, 2 * BLOCK)
    monitor.take_scores(Scores(scores=answers), [None] * len(answers))
    monitor.take_scores(Scores(scores=answers[:1]), [None])
    assert monitor.streams == {}
    _take(monitor, readings(rng, BLOCK))
    monitor.take_scores(Scores(scores=answers[:1]), [None])
    assert monitor.document()["blocks"] == 1


@pytest.mark.parametrize(
    ("drift", "blocks"),
    [
        (None, (128, 128)),
        (DriftReference(block=2, score_block=2), (2, 2)),
        (DriftReference(block=1, score_block=1), (2, 2)),
    ],
)
def test_blocks_have_the_size_of_the_bundle(
    scored: Manifest, drift: DriftReference | None, blocks: tuple[int, int]
) -> None:
    """At least two readings; 128 if it has none."""
    monitor = Monitor(msgspec.structs.replace(scored, drift=drift))
    assert monitor.base is not None
    assert monitor.score_base is not None
    assert (monitor.base.block, monitor.score_base.block) == blocks
    assert monitor.document()["block"] == blocks[0]
    assert monitor.document()["rate"]["expected_hz"] is None


def test_answers_come_as_seldom_as_windows(scored: Manifest) -> None:
    """A thousand readings a second with a window of every hundred: the readings are a fast stream, the answers none."""
    monitor = Monitor(drifting.with_window(scored, Window(100, 100, 1000.0)))
    assert monitor.base is not None
    assert monitor.score_base is not None
    assert (monitor.base.together, monitor.score_base.together) == (3, 1)


# --- answers --------------------------------------------------------------------------------------------------------


def test_the_worst_answer_is_shown_with_its_name(scored: Manifest, rng: np.random.Generator) -> None:
    """Of two that drift alike, the one with the larger index; each key's answers are judged by themselves."""
    monitor = Monitor(scored)
    sound = _answers(rng, 8 * BLOCK)
    off = sound.copy()
    off[:, 1] = np.float32(0.9)
    values, keys = np.empty((2 * len(sound), 2), np.float32), ["a", "b"] * len(sound)
    values[::2], values[1::2] = sound, off
    monitor.take_scores(Scores(scores=values), list(keys))
    document = monitor.document()
    assert document["keys"] == {"b": "alarm"}
    scores = document["scores"]
    assert (scores["output"], scores["state"], scores["key"]) == ("worn", "alarm", "b")
    assert document["why"] == f"answer worn: {scores['why']}"
    assert set(scores) == {"output", "state", "why", "psi", "offset_sd", "key"}
    assert document["blocks"] == 16


def test_the_answer_with_the_larger_index_comes_first(scored: Manifest, rng: np.random.Generator) -> None:
    """While all are ok, or equally bad."""
    monitor = Monitor(scored)
    values = _answers(rng, 8 * BLOCK)
    values[:, 1] = values[:, 1] * np.float32(1.1)
    monitor.take_scores(Scores(scores=values), [None] * len(values))
    stream = monitor.streams[None]
    assert stream.scores is not None
    good, worn = (column.psi for column in stream.scores.columns)
    assert worn > good
    assert monitor.document()["scores"]["output"] == "worn"
    assert monitor.document()["scores"]["psi"] == pytest.approx(worn, rel=1e-3)


def test_answers_that_are_not_those_of_the_reference_are_ignored(scored: Manifest, rng: np.random.Generator) -> None:
    """Tensors, and another number of them, one by one as many at once."""
    monitor = Monitor(scored)
    answers = _answers(rng, BLOCK)
    monitor.take_scores(Scores(scores=answers), [None] * BLOCK)
    odd = [
        Scores(scores=answers[:, :1]),
        Scores(value=np.hstack([answers, answers])),
        Scores(score=answers[:, 0]),
        Scores(tensors={"scores": answers}),
    ]
    for each in odd:
        monitor.take_scores(each, [None] * BLOCK)
        monitor.take_scores(each.rows(slice(1)), [None])
    monitor.take_scores(Scores(scores=answers[:0]), [])
    stream = monitor.streams[None]
    assert stream.scores is not None
    assert (monitor.blocks, stream.scores.room) == (1, BLOCK)


def test_one_score_for_a_window_is_one_column(manifest: Manifest, rng: np.random.Generator) -> None:
    """That of an anomaly model."""
    score = rng.beta(2.0, 5.0, 4000).astype(np.float32)
    monitor = Monitor(drifting.with_scores(manifest, score[:, np.newaxis], ("score",)))
    monitor.take_scores(Scores(score=score[:BLOCK]), [None] * BLOCK)
    for row in range(BLOCK):
        monitor.take_scores(Scores(score=score[row : row + 1]), [None])
    assert monitor.blocks == 2


# --- times ----------------------------------------------------------------------------------------------------------


def test_the_wall_clock_is_read_at_some_arrivals(manifest: Manifest, rng: np.random.Generator) -> None:
    """At one of sixteen until the moments of the block are known, and always with its last reading."""
    reads: list[int] = []
    made, values, row = drifting.with_block(manifest, 128), readings(rng, 128), 0

    def wall() -> float:
        reads.append(row)
        return NOW

    monitor, recorded = Monitor(made, wall=wall), Monitor(made, is_recorded=True, wall=wall)
    for row in range(128):
        monitor.take(values[row : row + 1], [None], [NOW + row / 1000], float(row))
    assert reads[0] == 15
    assert reads[-1] == 127
    assert 3 <= len(reads) <= 12
    assert monitor.document()["clock"]["offset_s"] is not None
    known = len(reads)
    for row in range(128):
        recorded.take(values[row : row + 1], [None], [NOW + row / 1000], float(row))
    assert len(reads) == known
    assert recorded.document()["clock"]["offset_s"] is None


def test_readings_without_times_are_timed_by_their_arrival(manifest: Manifest, rng: np.random.Generator) -> None:
    """Except recorded ones; two seconds for each reading is half of the rate of training."""
    live, recorded = Monitor(manifest), Monitor(manifest, is_recorded=True)
    values = readings(rng, 3 * BLOCK)
    for monitor in (live, recorded):
        for row in range(3 * BLOCK):
            monitor.take(values[row : row + 1], [None], None, 2.0 * row)
    assert live.document()["rate"]["hz"] == 0.5
    assert live.state == "alarm"
    assert (recorded.document()["rate"]["hz"], recorded.state) == (None, "ok")


def test_no_readings_change_nothing(manifest: Manifest) -> None:
    """A wake-up without any."""
    monitor = Monitor(manifest)
    monitor.take(np.empty((0, 2), np.float32), [], None, 0.0)
    assert monitor.streams == {}
