"""What the status page knows of the past, compared with plain lists of what happened in each minute."""

import random
import threading
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from edge_runtime.http.history import MINUTES, MOST_ALARMS, MOST_KEYS, History
from edge_runtime.readings import Prediction
from tests.support.waiting import patient

NAMES = ("ok", "worn")


class Minute:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        return self.now


def verdict(score: float, *, key: str | None = None, alarm: bool = False, time: float = 1.0) -> Prediction:
    """A prediction of two classes."""
    label = "worn" if score > 0.5 else "ok"
    scores = np.array([1 - score, score], dtype=np.float32)
    return Prediction(key, time, 1, None, label=label, score=score, scores=scores, alarm=alarm, can_alarm=True)


def only(history: History) -> dict[str, Any]:
    """The one key that there is."""
    keys = history.document()["keys"]
    assert len(keys) == 1
    return dict(keys[0])


def test_each_minute_has_mean_low_and_high_of_what_came_in_it() -> None:
    """Over three hours with pauses, the document equals what a list of all predictions gives."""
    minute, rng = Minute(), random.Random(17)
    history, seen = History(minute), []
    for _ in range(400):
        minute.now += rng.choice((0, 0, 0, 1, 1, 2, 7, 70 if rng.random() < 0.01 else 0))
        score, alarm = round(rng.random(), 3), rng.random() < 0.2
        history.add("vibration", NAMES, verdict(score, alarm=alarm))
        seen.append((minute.now, score, alarm))
    minute.now += 3
    found = only(history)
    for place in range(MINUTES):
        here = [(score, alarm) for when, score, alarm in seen if when == minute.now - MINUTES + 1 + place]
        assert found["counts"][place] == len(here)
        assert found["alarms"][place] == sum(alarm for _, alarm in here)
        worn = {name: values[place] for name, values in found["numbers"]["worn"].items() if name != "last"}
        if here:
            scores = [score for score, _ in here]
            assert worn["mean"] == pytest.approx(fmean(scores), rel=1e-3)
            assert (worn["low"], worn["high"]) == (pytest.approx(min(scores), rel=1e-3), pytest.approx(max(scores)))
        else:
            assert worn == {"mean": None, "low": None, "high": None}
    assert found["numbers"]["worn"]["last"] == pytest.approx(seen[-1][1], rel=1e-3)


def test_an_hour_without_predictions_is_empty_and_the_verdict_stays() -> None:
    """The latest verdict is shown with its time, however long ago it was."""
    minute = Minute()
    history = History(minute)
    history.add("vibration", NAMES, verdict(0.9, time=1_795_470_736.25))
    minute.now += 10 * MINUTES
    found = only(history)
    assert (found["label"], found["time"], sum(found["counts"])) == ("worn", "2026-11-23T21:52:16.250Z", 0)


def test_regressions_and_anomalies_are_kept_by_their_own_numbers() -> None:
    """Targets have a line each; an anomaly has its score."""
    history = History(Minute())
    values = np.array([21.5, 0.25], dtype=np.float32)
    history.add("room", ("temperature", "flow"), Prediction(None, 1.0, 1, None, values=values))
    values[:] = 0.0  # the model's memory, which the next window writes to
    history.add("pump", ("score",), Prediction(None, 1.0, 1, None, score=3.5, anomaly=True, alarm=True))
    room, pump = history.document()["keys"]
    assert {name: number["last"] for name, number in room["numbers"].items()} == {"temperature": 21.5, "flow": 0.25}
    assert (pump["numbers"]["score"]["last"], pump["anomaly"], pump["alarm"]) == (3.5, True, True)


def test_each_label_of_several_has_a_line_of_its_scores() -> None:
    """The scores of a multi-label model, which stand among its tensors."""
    history = History(Minute())
    tensors = {"labels": np.array([1, 0]), "scores": np.array([0.75, 0.25], np.float32)}
    history.add("alerts", ("hot", "wet"), Prediction(None, 1.0, 1, None, tensors=tensors))
    assert {name: each["last"] for name, each in only(history)["numbers"].items()} == {"hot": 0.75, "wet": 0.25}


def test_a_prediction_without_numbers_counts() -> None:
    """Detections and embeddings have a time, and no lines."""
    history = History(Minute())
    history.add("camera", (), Prediction(None, 1.0, 1, None, tensors={}))
    assert (only(history)["numbers"], sum(only(history)["counts"])) == ({}, 1)


def test_alarms_of_every_key_are_listed_until_they_are_over() -> None:
    """Also those of keys that have no card; an alarm keeps the time at which it began."""
    history = History(Minute())
    for number in range(MOST_KEYS + 10):
        history.add("vibration", NAMES, verdict(0.1, key=f"pump-{number}"))
    late = f"pump-{MOST_KEYS + 9}"
    history.add("vibration", NAMES, verdict(0.9, key=late, alarm=True, time=60.0))
    history.add("vibration", NAMES, verdict(0.9, key=late, alarm=True, time=120.0))
    document = history.document()
    assert (len(document["keys"]), document["more_keys"]) == (MOST_KEYS, 10)
    since = "1970-01-01T00:01:00.000Z"
    assert document["alarms"] == [{"model": "vibration", "key": late, "what": "worn", "since": since}]
    history.add("vibration", NAMES, verdict(0.1, key=late))
    assert history.document()["alarms"] == []


def test_memory_is_bounded_under_endless_keys_and_alarms() -> None:
    """100,000 keys in alarm: as many are kept as were promised, and the document says that there are more."""
    history = History(Minute())
    for number in range(100_000):
        history.add("vibration", NAMES, verdict(0.9, key=f"pump-{number}", alarm=True))
    document = history.document()
    assert len(document["keys"]) == MOST_KEYS
    assert len(document["alarms"]) == MOST_ALARMS
    assert document["alarms_are_all"] is False
    assert document["more_keys"] == 10_000


def test_a_key_that_was_silent_for_an_hour_makes_room() -> None:
    """A gateway whose sensors are exchanged shows those that speak."""
    minute = Minute()
    history = History(minute)
    for number in range(MOST_KEYS):
        history.add("vibration", NAMES, verdict(0.1, key=f"old-{number}"))
    minute.now += MINUTES
    history.add("vibration", NAMES, verdict(0.1, key="new"))
    assert "new" in [each["key"] for each in history.document()["keys"]]


def test_a_model_that_is_gone_and_labels_that_changed_leave_nothing_behind() -> None:
    """A reload or another bundle: no line of the old one is shown under the name of the new one."""
    history = History(Minute())
    history.add("vibration", NAMES, verdict(0.9, alarm=True))
    history.add("other", NAMES, verdict(0.9, alarm=True))
    history.keep({"vibration"})
    assert [each["model"] for each in history.document()["keys"]] == ["vibration"]
    assert [each["model"] for each in history.document()["alarms"]] == ["vibration"]
    history.add("vibration", ("good", "bad"), verdict(0.2))
    assert list(only(history)["numbers"]) == ["good", "bad"]
    assert sum(only(history)["counts"]) == 1


def test_a_bundle_with_the_same_labels_goes_on_with_the_hour() -> None:
    """A reload, or the next version of a model: the history is that of the name, key and labels."""
    history = History(Minute())
    history.add("vibration", NAMES, verdict(0.9))
    labels = ["ok", "worn"]
    history.add("vibration", tuple(labels), verdict(0.8))  # equal, and not the same object
    assert sum(only(history)["counts"]) == 2


def test_a_page_may_ask_while_predictions_come() -> None:
    """The document is made in another thread than predictions are noted in, without a lock."""
    history, ended = History(Minute()), threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            history.add("vibration", NAMES, verdict(0.9, key=f"pump-{number % 400}", alarm=number % 3 == 0))
            if number % 50 == 0:
                history.keep({"none"})

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    try:
        while seen < 300:  # the writer forgets all keys now and then
            for each in history.document()["keys"]:
                assert len(each["counts"]) == MINUTES
                seen += 1
    finally:
        ended.set()
        writer.join(patient(30))
