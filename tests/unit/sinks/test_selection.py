"""Which predictions a sink takes, whatever its model publishes."""

from typing import Any

import numpy as np

from edge_runtime.readings import Prediction
from edge_runtime.sinks.selection import Selection, When


def predictions(*answers: dict[str, Any]) -> list[Prediction]:
    """Predictions of one key, or of the key that an answer names."""
    return [Prediction(time=0.0, seq=1, identity=None, **({"key": "k"} | answer)) for answer in answers]


def taken(when: When, found: list[Prediction], hysteresis: float = 0.0) -> list[bool]:
    """What a sink does with each."""
    selection = Selection(when, hysteresis)
    return [selection.wants(each) for each in found]


def test_always_takes_everything_and_alarm_only_alarms() -> None:
    """An alarm that goes on is taken again and again."""
    found = predictions({"label": "a"}, {"label": "a", "alarm": True}, {"label": "a", "alarm": True})
    assert taken("always", found) == [True, True, True]
    assert taken("alarm", found) == [False, True, True]


def test_a_change_is_another_label_of_the_same_key() -> None:
    """The first of each key is new, and keys do not disturb each other."""
    found = predictions(
        {"label": "a"}, {"label": "a"}, {"label": "a", "key": "other"}, {"label": "b"}, {"label": "b"}, {"label": "a"}
    )
    assert taken("change", found) == [True, False, True, True, False, True]


def test_a_change_of_an_anomaly_is_its_alarm_and_not_its_score() -> None:
    """As for `publish`: scores always differ."""
    answers = ((0.1, False), (0.2, False), (0.9, True), (0.8, True), (0.1, False))
    found = predictions(
        *({"score": score, "anomaly": alarm, "alarm": alarm, "can_alarm": True} for score, alarm in answers)
    )
    assert taken("change", found) == [True, False, True, False, True]


def test_a_change_of_values_is_one_by_more_than_the_hysteresis_since_the_last_that_was_taken() -> None:
    """A slow drift is noticed, because it is compared with what was taken and not with the last one seen."""
    found = predictions(*({"values": np.array([value], np.float32)} for value in (1.0, 1.5, 2.0, 2.5, 2.5)))
    assert taken("change", found, hysteresis=1.2) == [True, False, False, True, False]


def test_a_change_of_detections_is_another_set_of_labels() -> None:
    """Where the boxes are does not count."""
    places = iter(range(4))

    def tensors(*labels: int) -> dict[str, Any]:
        return {"tensors": {"boxes": np.full((2, 4), next(places)), "label": np.array(labels)}}

    found = predictions(tensors(0, -1), tensors(-1, 0), tensors(0, 1), tensors(1, 0))
    assert taken("change", found) == [True, False, True, False]


def test_the_memory_of_keys_is_bounded() -> None:
    """Beyond it the key whose verdict changed longest ago is forgotten, and its next prediction is new."""
    selection = Selection("change", 0.0)
    for number in range(10_001):
        (one,) = predictions({"label": "a", "key": str(number)})
        assert selection.wants(one)
    (last,), (first,) = predictions({"label": "a", "key": "10000"}), predictions({"label": "a", "key": "0"})
    assert not selection.wants(last)
    assert selection.wants(first)
