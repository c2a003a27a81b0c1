"""The truth of one model by itself: how long it waits, and what it estimates, says and keeps; clocks are given."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import TruthTable
from edge_runtime.truth.model_truth import ModelTruth, SavedFigures, TruthOutcome
from tests.support import builders

PREFIX = "d/m/"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A classification without calibrated confidence."""
    return Model(open_bundle(builders.classification().save(tmp_path / "m.onnx")))


@pytest.fixture
def sure(tmp_path: Path) -> Model:
    """One whose scores of 0.5 are right half of the time, and those of 1 always."""
    draft = builders.classification(version="2.0.0")
    draft.manifest["uncertainty"] = {"confidence": {"scores": [0.5, 1.0], "shares": [0.5, 1.0]}}
    return Model(open_bundle(draft.save(tmp_path / "sure.onnx")))


@pytest.fixture
def several(tmp_path: Path) -> Model:
    """A model of several labels."""
    return Model(open_bundle(builders.multilabel().save(tmp_path / "several.onnx")))


def _truth_of(model: Model, *, remember: int = 50) -> ModelTruth:
    return ModelTruth(TruthTable(remember=remember, tolerance=1.0), 7, model, PREFIX)


def _note(truth: ModelTruth, number: int, *, answer: Any = "low", time: float | None = None) -> None:
    truth.memory.noted.append(("k", float(number) if time is None else time, number, None, answer))


def _take(truth: ModelTruth, now: float = 0.0, **document: Any) -> TruthOutcome:
    """One truth of the label `low`, unless it has another answer."""
    answer = {} if "labels" in document else {"label": "low"}
    return truth.take(json.dumps({**answer, **document}).encode(), now).outcome


def _ended(truth: ModelTruth, now: float) -> list[str]:
    return [each.outcome.result for each in truth.take_early(now)]


# --- truth that arrives before its prediction -----------------------------------------------------------------------


def test_truth_without_any_prediction_near_it_waits_for_ten_seconds(model: Model) -> None:
    """Not longer, and then it is unknown."""
    truth = _truth_of(model)
    assert _take(truth, 100.0, key="k", time=5.0).result == "waiting"
    assert _ended(truth, 109.999) == []
    assert truth.is_waited_for
    assert _ended(truth, 110.0) == ["unknown"]
    assert not truth.is_waited_for


def test_truth_just_behind_a_prediction_waits_for_two_seconds(model: Model) -> None:
    """The next prediction may be the nearer one; without it, the truth is that of the one before."""
    truth = _truth_of(model)
    _note(truth, 1, time=5.0)
    assert _take(truth, 100.0, key="k", time=5.5).result == "waiting"
    assert _ended(truth, 101.999) == []
    assert _ended(truth, 102.0) == ["joined"]


def test_a_thousand_truths_wait_and_no_more(model: Model) -> None:
    """The next one is unknown at once."""
    truth = _truth_of(model)
    for number in range(1000):
        assert _take(truth, id=f"d/m/k/7/{number + 1}").result == "waiting"
    assert _take(truth, id="d/m/k/7/1001").result == "unknown"
    assert _ended(truth, 10.0) == ["unknown"] * 1000


@pytest.mark.parametrize(("characters", "result"), [(512, "waiting"), (513, "unknown")])
def test_the_names_of_waiting_truths_are_bounded(model: Model, characters: int, result: str) -> None:
    """512 characters behind the prefix of an id, and as many more than the prefix has of a key."""
    tail = "k/7/1"
    truth = _truth_of(model)
    assert _take(truth, id=PREFIX + "k" * (characters - len(tail)) + tail).result == result
    assert _take(truth, key="k" * (characters + len(PREFIX)), time=5.0).result == result


def test_an_id_of_another_model_does_not_wait(model: Model) -> None:
    """Even if its end looks like an id of this one that is still to come."""
    truth = _truth_of(model)
    assert _take(truth, id="k/7/1").result == "unknown"
    assert not truth.is_waited_for


def test_an_id_that_is_known_does_not_wait(model: Model) -> None:
    """It is joined at once, also where the readings bring their own identities."""
    truth = _truth_of(model)
    truth.memory.noted.append(("k", 5.0, 1, "own-1", "low"))
    assert _take(truth, id="d/m/k/own-1") == TruthOutcome("joined", id="d/m/k/own-1", right=True)
    assert _take(truth, id="d/m/k/own-1").result == "twice"


# --- another bundle -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noted", "withheld", "joined"])
def test_truth_for_a_prediction_of_the_last_bundle_is_late(model: Model, sure: Model, kind: str) -> None:
    """Whether it was published or withheld, and whether truth had come before."""
    truth = _truth_of(model)
    if kind == "joined":
        _note(truth, 1, time=5.0)
        assert _take(truth, id="d/m/k/7/99").result == "waiting"
    else:
        getattr(truth.memory, kind).append(("k", 5.0, 1, "own-1", "low"))
    truth.exchange(sure)
    assert _take(truth, key="k", time=5.0).result == "late"


def test_the_same_bundle_keeps_predictions_and_figures(model: Model) -> None:
    """A reload opens the same file again."""
    truth = _truth_of(model)
    _note(truth, 1)
    _note(truth, 2)
    assert _take(truth, id="d/m/k/7/1").result == "joined"
    truth.exchange(model)
    assert _take(truth, id="d/m/k/7/2").result == "joined"
    assert truth.document()["n"] == 2


# --- estimates ------------------------------------------------------------------------------------------------------


def test_the_accuracy_is_estimated_from_thirty_windows_on(sure: Model) -> None:
    """The mean of the chances that the labels are right, worked on paper."""
    truth = _truth_of(sure)
    scores = truth.memory.scores
    assert scores is not None
    for _ in range(29):
        scores.add(0.75)
    assert (truth.estimate(), truth.is_silent) == (None, True)
    scores.add(1.0)
    assert (truth.estimate(), truth.is_silent) == (0.7583, False)
    document = truth.document()
    assert (document["estimated"], document["estimated_over"], document["accuracy"]) == (0.7583, 30, None)


def test_without_calibrated_confidence_there_is_no_estimate(model: Model, sure: Model) -> None:
    """Nor are scores remembered; each bundle begins with none."""
    truth = _truth_of(model)
    assert (truth.memory.scores, truth.estimate()) == (None, None)
    assert (truth.document()["estimated"], truth.document()["estimated_over"]) == (None, 0)
    assert truth.is_silent
    truth.exchange(sure)
    scores = truth.memory.scores
    assert scores is not None
    for _ in range(60):
        scores.add(0.5)
    assert (truth.estimate(), len(scores)) == (0.5, 50)
    truth.exchange(model)
    assert (truth.memory.scores, truth.estimate()) == (None, None)


# --- sentences ------------------------------------------------------------------------------------------------------


def test_a_contradiction_names_both_answers(model: Model) -> None:
    """The first one stands, and a repetition names it."""
    truth = _truth_of(model)
    _note(truth, 1)
    assert _take(truth, id="d/m/k/7/1").right is True
    assert _take(truth, id="d/m/k/7/1").why == "the truth for 'd/m/k/7/1' is known already: 'low'"
    assert _take(truth, key="k", time=1.0, label="high").why == (
        "the truth for key 'k' at 1.000000 is known already as 'low', and now 'high': the first one stands"
    )
    assert truth.document()["unmatched"] == {"unknown": 0, "late": 0, "twice": 1, "conflict": 1}


def test_several_labels_are_named(several: Model) -> None:
    """Those that are present, not a truth value for each."""
    truth = _truth_of(several)
    _note(truth, 1, answer=[True, False, True])
    assert _take(truth, id="d/m/k/7/1", labels=["hot", "loud"]).right is True
    assert _take(truth, id="d/m/k/7/1", labels=["wet"]).why == (
        "the truth for 'd/m/k/7/1' is known already as ['hot', 'loud'], and now ['wet']: the first one stands"
    )


@pytest.mark.parametrize(
    ("time", "hint"),
    [(1002.5, "the nearest is 2.5 s earlier: compare the clocks"), (902.5, "the nearest is 97.5 s later: compare")],
)
def test_a_truth_whose_clock_is_off_hears_by_how_much(model: Model, time: float, hint: str) -> None:
    """And to which side."""
    truth = _truth_of(model)
    _note(truth, 1, time=1000.0)
    _note(truth, 2, time=800.0)
    outcome = _take(truth, key="k", time=time)
    if outcome.result == "waiting":
        (taken,) = truth.take_early(10.0)
        outcome = taken.outcome
    assert outcome.result == "unknown"
    assert hint in outcome.why


# --- over a stop ----------------------------------------------------------------------------------------------------


def test_without_any_truth_nothing_is_saved(model: Model) -> None:
    """Predictions alone are not worth a file."""
    truth = _truth_of(model)
    _note(truth, 1)
    assert truth.save(whole=True) is None


def test_only_a_clean_stop_saves_predictions(model: Model) -> None:
    """A truth that was refused, or waits, is enough for a file."""
    truth = _truth_of(model)
    _note(truth, 1)
    assert truth.take(b"{", 0.0).outcome.result == "malformed"
    saved = [truth.save(whole=whole) for whole in (False, True)]
    assert [each and len(each.remembered) for each in saved] == [0, 1]
    waiting = _truth_of(model)
    assert _take(waiting, id="d/m/k/7/1").result == "waiting"
    assert waiting.save(whole=False) is not None
    again = _truth_of(model)
    assert saved[1] is not None
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(saved[1]), type=SavedFigures))
    assert again.document()["refused"] == {"malformed": 1}
    assert _take(again, id="d/m/k/7/1").result == "joined"


def test_what_another_bundle_has_saved_is_not_taken_up(model: Model, sure: Model) -> None:
    """Its figures say nothing of this one."""
    truth = _truth_of(model)
    _note(truth, 1)
    assert _take(truth, id="d/m/k/7/1").result == "joined"
    saved = truth.save(whole=True)
    assert saved is not None
    other = _truth_of(sure)
    other.restore(saved)
    assert other.is_silent
    assert _take(other, id="d/m/k/7/1").result == "waiting"
