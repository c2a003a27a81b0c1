"""Scores into verdicts, and which of them are published."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.manifest import Input, Manifest, Output, Target, Uncertainty
from edge_runtime.bundle.model import ModelError, Scores
from edge_runtime.config.tables import ModelTable, SmoothingTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.readings import Prediction
from edge_runtime.stream.decide import Decider, Sequences
from tests.support import builders

LABELS = ("ok", "worn", "broken")


def _decider(task: Any, sequences: Sequences | None = None, **table: Any) -> Decider:
    output = {
        "classification": Output(labels=LABELS),
        "regression": Output(targets=(Target("power"),)),
        "anomaly": Output(threshold=2.0),
    }[task]
    manifest = Manifest(name="m", version="1.0.0", task=task, input=Input(), output=output)
    config = msgspec.convert({"name": "m", "bundle": "m.onnx", "source": "s"} | table, ModelTable)
    return Decider(manifest, config, sequences)


def _anomalies(decider: Decider, *scores: float, key: str | None = None) -> list[Prediction | None]:
    found = Scores(score=np.array(scores, np.float32))
    return [decider.decide(found, row, key, float(row)) for row in range(len(scores))]


def _labels(decider: Decider, *labels: int, score: float = 0.9, step: float = 1.0) -> list[Prediction | None]:
    table = np.full((len(labels), len(LABELS)), (1 - score) / 2, np.float32)
    table[np.arange(len(labels)), labels] = score
    found = Scores(label=np.array(labels, np.int64), scores=table)
    return [decider.decide(found, row, None, row * step) for row in range(len(labels))]


def _values(decider: Decider, *values: float, step: float = 1.0) -> list[Prediction | None]:
    found = Scores(value=np.array(values, np.float32)[:, None])
    return [decider.decide(found, row, None, row * step) for row in range(len(values))]


def test_an_anomaly_is_above_the_threshold_and_not_at_it() -> None:
    """The manifest's threshold decides, unless the configuration names another."""
    found = _anomalies(_decider("anomaly"), 2.0, 2.01)
    assert [p.anomaly for p in found if p] == [False, True]
    assert [p.alarm for p in found if p] == [False, True]
    (low,) = _anomalies(_decider("anomaly", threshold=1.0), 1.5)
    assert low is not None
    assert low.anomaly is True


def test_hysteresis_keeps_an_anomaly_until_the_score_has_fallen_far_enough() -> None:
    """The way back is lower by the hysteresis."""
    found = _anomalies(_decider("anomaly", hysteresis=0.5), 1.9, 2.1, 1.9, 1.6, 1.5, 1.9)
    assert [p.anomaly for p in found if p] == [False, True, True, True, False, False]


def test_an_anomaly_needs_n_of_the_last_m_windows_also_at_the_start() -> None:
    """With `{n = 2, m = 3}` no single window raises or ends an alarm, the first one neither."""
    found = _anomalies(_decider("anomaly", smoothing={"n": 2, "m": 3}), 9, 0, 0, 9, 9, 0, 9, 0, 0)
    assert [p.anomaly for p in found if p] == [False, False, False, False, True, True, True, False, False]
    assert [p.score for p in found if p][:2] == [9.0, 0.0]


def test_a_label_changes_when_n_of_the_last_m_windows_agree() -> None:
    """The first window's label counts at once; `score` is that of the smoothed label in this window."""
    found = _labels(_decider("classification", smoothing={"n": 2, "m": 3}), 0, 1, 0, 1, 1, 2, 2)
    assert [p.label for p in found if p] == ["ok", "ok", "ok", "worn", "worn", "worn", "broken"]
    second = found[1]
    assert second is not None
    assert second.score == pytest.approx(0.05)


def test_an_alarm_label_is_an_alarm_from_its_threshold_on() -> None:
    """Below the threshold the label is published all the same, without being an alarm."""
    decider = _decider("classification", alarm_labels=["broken"], threshold=0.8)
    (low,) = _labels(decider, 2, score=0.7)
    (high,) = _labels(decider, 2, score=0.9)
    (other,) = _labels(decider, 1, score=0.99)
    assert low is not None
    assert high is not None
    assert other is not None
    assert (low.label, low.alarm) == ("broken", False)
    assert (high.alarm, other.alarm) == (True, False)


def test_an_alarm_label_at_its_threshold_is_an_alarm_and_needs_none() -> None:
    """From the threshold on, that itself included; without a threshold every score will do."""
    (at,) = _labels(_decider("classification", alarm_labels=["broken"], threshold=0.75), 2, score=0.75)
    (unlimited,) = _labels(_decider("classification", alarm_labels=["broken"]), 2, score=0.4)
    assert at is not None
    assert unlimited is not None
    assert (at.alarm, unlimited.alarm) == (True, True)


def test_hysteresis_keeps_the_alarm_of_a_label_until_its_score_has_fallen_far_enough() -> None:
    """The way back is lower by the hysteresis, also down to its very edge; the way up is not."""
    decider = _decider("classification", alarm_labels=["broken"], threshold=0.75, hysteresis=0.25)
    scores = [0.625, 0.875, 0.625, 0.5, 0.4375, 0.625, 0.75]
    found = [_labels(decider, 2, score=score)[0] for score in scores]
    assert [p.alarm for p in found if p] == [False, True, True, True, False, False, True]


def test_hysteresis_keeps_the_alarm_of_a_value_until_it_has_fallen_far_enough() -> None:
    """The way back is lower by the hysteresis; a first value between the two is no alarm."""
    found = _values(_decider("regression", threshold=5.0, hysteresis=1.0), 4.5, 5.5, 4.5, 4.0, 4.5, 5.5, 4.25)
    assert [p.alarm for p in found if p] == [False, True, True, False, False, True, True]


def test_the_verdict_of_a_value_is_published_when_it_changes() -> None:
    """With a threshold, `publish = "change"` watches the alarm and no longer the value."""
    found = _values(_decider("regression", publish="change", threshold=5.0), 1.0, 3.0, 6.0, 9.0, 2.0)
    assert [p is not None for p in found] == [True, False, True, False, True]


def test_two_of_two_windows_have_to_agree_after_the_first() -> None:
    """The first window's own label counts at once, whichever it is; then `m = 2` remembers two."""
    found = _labels(_decider("classification", smoothing={"n": 2, "m": 2}), 1, 0, 1, 0, 0)
    assert [p.label for p in found if p] == ["worn", "worn", "worn", "worn", "ok"]


def test_a_value_above_the_threshold_is_an_alarm() -> None:
    """A regression has alarms only where the configuration sets a threshold."""
    assert [p.alarm for p in _values(_decider("regression"), 1e6) if p] == [False]
    assert [p.alarm for p in _values(_decider("regression", threshold=5.0), 5.0, 5.1) if p] == [False, True]


def test_change_publishes_a_verdict_once() -> None:
    """With `publish = "change"` the same verdict is not reported again."""
    found = _labels(_decider("classification", publish="change"), 0, 0, 1, 1, 0)
    assert [p.label if p else None for p in found] == ["ok", None, "worn", None, "ok"]
    assert [p.seq for p in found if p] == [1, 2, 3]


def test_change_of_a_value_is_a_step_beyond_the_hysteresis() -> None:
    """A regression without threshold is published when it moved far enough from what was published last."""
    found = _values(_decider("regression", publish="change", hysteresis=1.0), 0.0, 0.6, 1.2, 1.9, 2.3)
    assert [p is not None for p in found] == [True, False, True, False, True]


def test_alarm_publishes_alarms_only() -> None:
    """With `publish = "alarm"` everything else is withheld."""
    found = _anomalies(_decider("anomaly", publish="alarm"), 1, 3, 4, 1)
    assert [p is not None for p in found] == [False, True, True, False]


def test_min_interval_spares_repeats_but_not_a_new_verdict() -> None:
    """Equal verdicts keep the interval; another one goes out at once."""
    found = _labels(_decider("classification", min_interval=10.0), 0, 0, 0, 1, 1, 0, step=4.0)
    assert [p is not None for p in found] == [True, False, False, True, False, True]


@pytest.mark.parametrize(
    ("step", "published"), [(0.0, [True, False, False]), (0.25, [True, False, True]), (0.5, [True, True, True])]
)
def test_min_interval_counts_from_the_last_published_one_and_ends_at_its_very_end(
    step: float, published: list[bool]
) -> None:
    """Windows of one and the same time keep the interval as well, and so does an interval below a second."""
    found = _labels(_decider("classification", min_interval=0.5), 0, 0, 0, step=step)
    assert [p is not None for p in found] == published


def test_min_interval_holds_for_values() -> None:
    """A regression's values always differ a little, and keep the interval nevertheless."""
    found = _values(_decider("regression", min_interval=10.0), 0.0, 0.1, 0.2, 0.3, step=4.0)
    assert [p is not None for p in found] == [True, False, False, True]


def test_a_clock_that_is_set_back_does_not_silence_a_key() -> None:
    """`min_interval` counts forward: a time before the last published one is not soon after it."""
    decider = _decider("anomaly", min_interval=10.0)
    scores = Scores(score=np.zeros(1, np.float32))
    assert decider.decide(scores, 0, None, 1e9) is not None
    assert decider.decide(scores, 0, None, 5.0) is not None


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), max_size=60))
def test_a_sequence_number_is_never_used_twice_for_a_key(steps: list[tuple[str | None, bool]]) -> None:
    """Also when a key was forgotten in between, its numbers only rise."""
    decider = _decider("anomaly")
    scores = Scores(score=np.zeros(1, np.float32))
    used: dict[str | None, int] = {}
    for key, forget in steps:
        if forget:
            decider.forget([key, "never seen"])
        else:
            found = decider.decide(scores, 0, key, 0.0)
            assert found is not None
            assert found.seq > used.get(key, 0)
            used[key] = found.seq


def test_a_step_of_just_the_hysteresis_is_no_change() -> None:
    """It has to be larger."""
    found = _values(_decider("regression", publish="change", hysteresis=1.0), 0.0, 1.0, 1.5)
    assert [p is not None for p in found] == [True, False, True]


def test_a_key_that_was_forgotten_begins_anew_and_leaves_nothing_behind() -> None:
    """Its alarm is forgotten; a key that was never there costs no number; without smoothing a key keeps no verdicts."""
    sequences = Sequences()
    decider = _decider("anomaly", sequences, hysteresis=0.5)
    assert [p.anomaly for p in _anomalies(decider, 3.0, 1.9, key="a") if p] == [True, True]
    decider.forget(["a", "never seen"])
    assert (decider._streams, sequences._last) == ({}, {})
    assert [(p.anomaly, p.seq) for p in _anomalies(decider, 1.9, key="a") if p] == [(False, 3)]
    assert decider._streams["a"].recent.maxlen == 0
    fresh = _decider("anomaly")
    fresh.forget(["never seen"])
    assert [p.seq for p in _anomalies(fresh, 1.0, key="a") if p] == [1]


def test_the_numbers_go_on_when_the_bundle_is_exchanged() -> None:
    """Two deciders of one model share their sequences, so that no `id` comes twice."""
    sequences = Sequences()
    first, second = (_anomalies(_decider("anomaly", sequences), 1.0, 1.0) for _ in range(2))
    assert [p.seq for p in (*first, *second) if p] == [1, 2, 3, 4]


def test_keys_do_not_share_their_verdicts() -> None:
    """Each key has its own hysteresis, memory and sequence."""
    decider = _decider("anomaly", hysteresis=0.5)
    assert [p.anomaly for p in _anomalies(decider, 3.0, key="a") if p] == [True]
    assert [(p.anomaly, p.seq) for p in _anomalies(decider, 1.9, key="b") if p] == [(False, 1)]


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_that_the_manifest_does_not_have_is_an_error_of_the_model(label: int) -> None:
    """It is never mapped to some other label."""
    scores = Scores(label=np.array([label], np.int64), scores=np.full((1, 3), 0.3, np.float32))
    with pytest.raises(ModelError, match=f"expected a label from 0 to 2, found {label}"):
        _decider("classification").decide(scores, 0, None, 0.0)


def test_label_and_alarm_of_one_prediction_belong_together_under_smoothing() -> None:
    """A smoothed label that is an alarm keeps its alarm while it stands, whatever the window in between says."""
    decider = _decider("classification", alarm_labels=["broken"], threshold=0.8, smoothing={"n": 2, "m": 3})
    found = [p for p in _labels(decider, 0, 2, 2, 0, 2, 0, 0, score=0.9) if p]
    assert [p.label for p in found] == ["ok", "ok", "broken", "broken", "broken", "ok", "ok"]
    assert [p.alarm for p in found] == [False, False, True, True, True, False, False]
    assert all(p.can_alarm for p in found)
    for prediction in found:
        assert prediction.scores is not None
        place = ("ok", "worn", "broken").index(prediction.label or "")
        assert prediction.score == prediction.scores[place]


def test_windows_of_two_alarm_labels_raise_no_alarm_beside_another_label() -> None:
    """Two windows of different alarm labels make no alarm while the smoothed label is still a quiet one."""
    decider = _decider("classification", alarm_labels=["worn", "broken"], threshold=0.5, smoothing={"n": 2, "m": 3})
    found = [(p.label, p.alarm) for p in _labels(decider, 0, 0, 1, 2, 2, score=0.9) if p]
    assert found == [("ok", False), ("ok", False), ("ok", False), ("ok", False), ("broken", True)]


def test_windows_below_the_threshold_raise_no_alarm_under_smoothing() -> None:
    """The label may stand long before; the alarm needs as many windows of its own."""
    decider = _decider("classification", alarm_labels=["broken"], threshold=0.8, smoothing={"n": 2, "m": 3})
    below = [p.alarm for p in _labels(decider, 0, 2, 2, 2, score=0.7) if p]
    above = [p.alarm for p in _labels(decider, 2, 2, 2, score=0.9) if p]
    assert below == [False, False, False, False]
    assert above == [False, True, True]


def test_only_models_that_can_raise_an_alarm_speak_of_one() -> None:
    """A classification with `alarm_labels`, a regression with `threshold`, every anomaly."""
    made = {
        "plain labels": _labels(_decider("classification"), 0),
        "alarm labels": _labels(_decider("classification", alarm_labels=["broken"]), 0),
        "plain values": _values(_decider("regression"), 1.0),
        "values with a threshold": _values(_decider("regression", threshold=5.0), 1.0),
        "anomaly": _anomalies(_decider("anomaly"), 1.0),
    }
    can = {name: [p.can_alarm for p in found if p] for name, found in made.items()}
    assert can == {
        "plain labels": [False],
        "alarm labels": [True],
        "plain values": [False],
        "values with a threshold": [True],
        "anomaly": [True],
    }


def _alarms(m: int, *windows: tuple[int, float]) -> list[tuple[str | None, bool | None]]:
    """Label and alarm of windows with these labels and scores, where 2 of `m` have to agree."""
    decider = _decider("classification", alarm_labels=["broken"], threshold=0.75, smoothing={"n": 2, "m": m})
    found = [_labels(decider, label, score=score)[0] for label, score in windows]
    return [(p.label, p.alarm) for p in found if p]


def test_the_alarm_of_a_label_is_smoothed_as_the_label_is() -> None:
    """The first window's counts at once; a good label between two bad ones is a vote against the alarm."""
    assert _alarms(3, (2, 0.9), (0, 0.9), (2, 0.5)) == [("broken", True), ("broken", True), ("broken", False)]
    assert _alarms(2, (2, 0.9), (2, 0.5), (2, 0.5)) == [("broken", True), ("broken", True), ("broken", False)]


def found_by(*labels: int, score: float = 0.9) -> Scores:
    """One window of a detector with three rows."""
    padded = [*labels, *[-1] * (3 - len(labels))]
    return Scores(
        tensors={
            "boxes": np.zeros((1, 3, 4), np.float32),
            "scores": np.array([[score if label >= 0 else 0.0 for label in padded]], np.float32),
            "label": np.array([padded], np.int64),
        }
    )


def detector(**config: Any) -> Decider:
    """A decider of cats and dogs."""
    manifest = msgspec.convert(builders.detection().manifest, Manifest)
    return Decider(manifest, ModelTable(name="m", bundle="b", source="s", **config))


def test_a_detector_raises_an_alarm_for_a_label_that_is_one() -> None:
    """With a score of at least the threshold; n of m windows as for every other alarm."""
    decider = detector(alarm_labels=["dog"], threshold=0.8)
    verdicts = [(found_by(0), False), (found_by(0, 1), True), (found_by(1, score=0.7), False), (found_by(), False)]
    for time, (scores, wanted) in enumerate(verdicts):
        prediction = decider.decide(scores, 0, None, float(time))
        assert prediction is not None
        assert (prediction.alarm, prediction.can_alarm) == (wanted, True)


def test_a_detector_that_publishes_changes_speaks_when_other_things_are_there() -> None:
    """The same labels in another order, or at other places, are no change."""
    decider = detector(publish="change")
    answered = [
        decider.decide(scores, 0, None, float(time)) is not None
        for time, scores in enumerate(
            [found_by(0, 1), found_by(1, 0), found_by(1), found_by(1), found_by(), found_by()]
        )
    ]
    assert answered == [True, False, True, False, True, False]


def test_tensors_that_publish_changes_speak_when_a_number_moves() -> None:
    """By more than the hysteresis, as the values of a regression."""
    manifest = msgspec.convert(builders.tensors(task="embedding").manifest, Manifest)
    decider = Decider(manifest, ModelTable(name="m", bundle="b", source="s", publish="change", hysteresis=0.5))
    answered = []
    for time, value in enumerate((0.0, 0.25, 0.75, 0.5)):
        scores = Scores(tensors={"embedding": np.full((1, 6), value, np.float32)})
        answered.append(decider.decide(scores, 0, None, float(time)) is not None)
    assert answered == [True, False, True, False]


def several(*labels: int, score: float = 0.9) -> Scores:
    """One window of a multi-label model: which labels are there."""
    there = np.array([[int(place in labels) for place in range(3)]], np.int64)
    return Scores(tensors={"labels": there, "scores": np.where(there, score, 0.1).astype(np.float32)})


def multilabel(**config: Any) -> Decider:
    """A decider of hot, wet and loud."""
    manifest = msgspec.convert(builders.multilabel().manifest, Manifest)
    return Decider(manifest, ModelTable(name="m", bundle="b", source="s", **config))


def test_a_multi_label_model_raises_an_alarm_for_each_label_that_is_one() -> None:
    """The label has to be there, and with a score of at least the threshold."""
    decider = multilabel(alarm_labels=["wet"], threshold=0.8)
    verdicts = [(several(0), False), (several(0, 1), True), (several(1, score=0.7), False), (several(), False)]
    for time, (scores, wanted) in enumerate(verdicts):
        prediction = decider.decide(scores, 0, None, float(time))
        assert prediction is not None
        assert (prediction.alarm, prediction.can_alarm) == (wanted, True)


def test_a_multi_label_model_that_publishes_changes_speaks_when_other_labels_are_there() -> None:
    """Other scores of the same labels are no change."""
    decider = multilabel(publish="change")
    answered = [
        decider.decide(scores, 0, None, float(time)) is not None
        for time, scores in enumerate([several(), several(0), several(0, score=0.7), several(0, 2), several()])
    ]
    assert answered == [True, True, False, True, True]


def _alarms_of(decider: Decider, *windows: Scores) -> list[bool]:
    found = [decider.decide(scores, 0, None, float(time)) for time, scores in enumerate(windows)]
    return [prediction.alarm for prediction in found if prediction is not None]


@pytest.mark.parametrize(("make", "one"), [(detector, found_by), (multilabel, several)])
def test_the_alarm_of_something_that_is_there_has_the_threshold_and_hysteresis_of_every_other(
    make: Callable[..., Decider], one: Callable[..., Scores]
) -> None:
    """Up from the threshold on, that itself included, down below it by more than the hysteresis; without one any."""
    name = "cat" if make is detector else "hot"  # the first of the labels
    scores = [0.625, 0.75, 0.625, 0.5, 0.4375, 0.625, 0.875, 0.625]
    decider = make(alarm_labels=[name], threshold=0.75, hysteresis=0.25)
    expected = [False, True, True, True, False, False, True, True]
    assert _alarms_of(decider, *(one(0, score=score) for score in scores)) == expected
    unlimited = make(alarm_labels=[name])
    assert _alarms_of(unlimited, one(0, score=0.125), one(1), one()) == [True, False, False]


@pytest.mark.parametrize(("make", "one"), [(detector, found_by), (multilabel, several)])
def test_what_is_not_there_raises_no_alarm(make: Callable[..., Decider], one: Callable[..., Scores]) -> None:
    """Not the padding of a detector, and no label that a multi-label model leaves out, whichever is an alarm."""
    for name in ("cat", "dog") if make is detector else ("hot", "wet", "loud"):
        assert _alarms_of(make(alarm_labels=[name]), one()) == [False]


@pytest.mark.parametrize(("make", "one"), [(detector, found_by), (multilabel, several)])
def test_n_of_m_windows_have_to_hold_it(make: Callable[..., Decider], one: Callable[..., Scores]) -> None:
    """No single window raises or ends an alarm, the first one neither."""
    decider = make(alarm_labels=["dog" if make is detector else "wet"], smoothing=SmoothingTable(n=2, m=3))
    windows = [one(1), one(0), one(1), one(1), one(), one(1), one(), one()]
    assert _alarms_of(decider, *windows) == [False, False, True, True, True, True, False, False]


def test_the_first_label_counts_as_much_as_the_others_for_a_change() -> None:
    """Its index is 0, which is no empty place."""
    for decider, windows in (
        (detector(publish="change"), [found_by(), found_by(0), found_by(0, 0), found_by()]),
        (multilabel(publish="change"), [several(), several(0), several(0, 1), several(1)]),
    ):
        assert [decider.decide(scores, 0, None, 0.0) is not None for scores in windows] == [True] * 4


def test_only_models_of_several_things_with_an_alarm_label_speak_of_an_alarm() -> None:
    """Without one there is no verdict, and a change is one of the labels."""
    for make, one in ((detector, found_by), (multilabel, several)):
        prediction = make().decide(one(1), 0, None, 0.0)
        assert prediction is not None
        assert (prediction.can_alarm, prediction.alarm) == (False, False)
        assert prediction.tensors is not None
        assert prediction.tensors["scores"].max() == np.float32(0.9)
    decider = detector(alarm_labels=["dog"], publish="change")
    windows = [found_by(), found_by(0), found_by(0, 1), found_by(1), found_by(0)]
    answered = [decider.decide(scores, 0, None, 0.0) is not None for scores in windows]
    assert answered == [True, False, True, False, True], "with one it is a change of the alarm"
    spared = detector(min_interval=10.0)
    answered = [spared.decide(found_by(0), 0, None, time) is not None for time in (0.0, 9.0, 10.0)]
    assert answered == [True, False, True]


def test_an_interval_stands_on_both_sides_of_each_value() -> None:
    """Where the bundle says how sure it is; another model says nothing of that."""
    manifest = msgspec.convert(builders.regression().manifest, Manifest)
    sure = msgspec.structs.replace(manifest, uncertainty=Uncertainty(coverage=0.9, half=(0.5,)))
    for found, expected in ((sure, ([1.5], [2.5])), (manifest, None)):
        decider = Decider(found, ModelTable(name="m", bundle="m", source="s"))
        prediction = decider.decide(Scores(value=np.array([[2.0]], np.float32)), 0, None, 0.0)
        assert prediction is not None
        ends = None if prediction.interval is None else tuple(end.tolist() for end in prediction.interval)
        assert ends == expected


def test_without_a_label_for_it_a_model_is_sure_of_the_most_likely_one() -> None:
    """Its set is shown beside it, whatever stands in it."""
    rows = np.array([[0.45, 0.1, 0.45]], np.float32)
    decider = Decider(SURE, ModelTable(name="m", bundle="m", source="s"))
    found = decider.decide(Scores(label=np.array([0]), scores=rows), 0, None, 0.0)
    assert found is not None
    assert (found.label, found.label_set) == ("a", ("a", "c"))
    assert found.score == np.float32(0.45)


def test_what_is_withheld_has_an_identity_of_its_own_which_it_keeps() -> None:
    """Of its reading, else the number of the published one before it and a further one that no other has."""
    decider = _decider("anomaly", publish="alarm")
    assert decider.identify_withheld(None, 5) is None
    numbers: list[tuple[str | None, int]] = []
    for key, score in (("a", 3.0), ("a", 1.0), ("b", 1.0), ("a", 1.0), ("a", 3.0), ("a", 1.0)):
        (found,) = _anomalies(decider, score, key=key)
        if found is None:
            withheld = decider.identify_withheld(None, 5)
            assert withheld is not None
            assert withheld.score == score
            assert decider.identify_withheld("of another reading", 6) is withheld
            numbers.append((withheld.identity, withheld.seq))
        else:
            numbers.append(("published", found.seq))
    assert numbers == [("published", 1), ("5/1.1", 1), ("5/0.2", 0), ("5/1.3", 1), ("published", 2), ("5/2.4", 2)]
    assert _anomalies(decider, 1.0, key="a") == [None]
    withheld = decider.identify_withheld("reading-7", 5)
    assert withheld is not None
    assert (withheld.identity, withheld.seq) == ("reading-7", 2)
    assert set(decider.keys) == {"a", "b"}


def test_a_key_that_comes_back_goes_on_above_the_highest_of_all() -> None:
    """Whichever was forgotten last."""
    sequences = Sequences()
    for _ in range(5):
        sequences.next("long")
    sequences.next("short")
    for key in ("long", "short", "long"):
        sequences.forget(key)
    assert [sequences.next("new"), sequences.next("new"), sequences.next("short")] == [6, 7, 6]
    assert sequences.beside("never") == (5, "5.1")


SURE = msgspec.convert(builders.classification(labels=("a", "b", "c")).manifest, Manifest)
SURE = msgspec.structs.replace(SURE, uncertainty=Uncertainty(coverage=0.9, least=0.4))


@pytest.mark.parametrize(
    ("scores", "label", "score", "alarm", "expected_set"),
    [
        ([0.5, 0.3, 0.2], "a", 0.5, False, ("a",)),
        ([0.45, 0.1, 0.45], "unsure", 0.45, True, ("a", "c")),
        ([0.3, 0.35, 0.35], "unsure", 0.35, True, ()),
        ([0.1, 0.2, 0.7], "c", 0.7, True, ("c",)),
    ],
)
def test_a_model_abstains_where_its_set_does_not_hold_one_label(
    scores: list[float], label: str, score: float, alarm: bool, expected_set: tuple[str, ...]
) -> None:
    """With a label of its own, which may be an alarm; the score is that of the model's label, which is most likely."""
    config = ModelTable(name="m", bundle="m", source="s", abstain="unsure", alarm_labels=("c", "unsure"))
    rows = np.array([scores], np.float32)
    found = Decider(SURE, config).decide(Scores(label=rows.argmax(axis=1), scores=rows), 0, None, 0.0)
    assert found is not None
    assert (found.label, found.alarm, found.label_set) == (label, alarm, expected_set)
    assert found.score == np.float32(score)
    encoded = JsonPayload(device="d", model="m", source="s", start=1, manifest=SURE, threshold=None).encode(found)
    document = msgspec.json.decode(encoded)
    assert (document["label"], document["set"]) == (label, list(expected_set))
    assert document["score"] == pytest.approx(score)


def test_abstention_is_smoothed_like_a_label() -> None:
    """Two of three windows have to be unsure; a single one changes nothing."""
    config = ModelTable(name="m", bundle="m", source="s", abstain="unsure", smoothing=SmoothingTable(n=2, m=3))
    decider = Decider(SURE, config)
    answered = []
    for row in (
        [0.8, 0.1, 0.1],
        [0.4, 0.4, 0.2],
        [0.8, 0.1, 0.1],
        [0.4, 0.4, 0.2],
        [0.34, 0.33, 0.33],
        [0.2, 0.2, 0.6],
    ):
        scores = np.array([row], np.float32)
        found = decider.decide(Scores(label=scores.argmax(axis=1), scores=scores), 0, None, 0.0)
        assert found is not None
        answered.append(found.label)
    assert answered == ["a", "a", "a", "unsure", "unsure", "unsure"]
