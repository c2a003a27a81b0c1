"""A prediction as JSON: what is read back is what the model predicted, whatever the names hold."""

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.manifest import Input, Manifest, Output, Target
from edge_runtime.delivery import json_payload
from edge_runtime.delivery.json_payload import JsonPayload, mark_delayed
from edge_runtime.readings import Prediction

# What TOML and JSON text can hold: no lone surrogates; configuration and codecs let none pass.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NASTY = ['a"b', "a\\b", "50%", "%s", "%(x)s %d", "{}", "Grüße", "日本", "\x7f\x01\n", "💧", "</script>"]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _read(payload: bytes) -> Any:
    return json.loads(payload, parse_constant=_refuse)


def _payload(manifest: Manifest, *, device: str = "press-07", model: str = "m", source: str = "s") -> JsonPayload:
    return JsonPayload(
        device=device,
        model=model,
        source=source,
        start=1763896744,
        manifest=manifest,
        threshold=manifest.output.threshold,
    )


def _classifier(*labels: str) -> Manifest:
    return Manifest(name="m", version="1.4.0", task="classification", input=Input(), output=Output(labels=labels))


def _prediction(time: float = 1763896744.123456, **fields: Any) -> Prediction:
    return Prediction(**({"key": None, "time": time, "seq": 1234, "identity": None} | fields))


def _anomaly(**fields: Any) -> dict[str, Any]:
    manifest = Manifest(name="m", version="1", task="anomaly", input=Input(), output=Output(threshold=0.1))
    prediction = _prediction(score=np.float32(0.25), anomaly=True, **fields)
    found: dict[str, Any] = _read(_payload(manifest).encode(prediction))
    return found


def test_a_classification_reads_as_documented() -> None:
    """Every field of the documentation, and no other."""
    scores = np.array([0.027, 0.973], np.float32)
    prediction = _prediction(label="worn", score=scores[1], scores=scores)
    assert _read(_payload(_classifier("ok", "worn")).encode(prediction)) == {
        "id": "press-07/m/-/1763896744/1234",
        "seq": 1234,
        "device": "press-07",
        "model": "m",
        "version": "1.4.0",
        "source": "s",
        "key": None,
        "time": "2025-11-23T11:19:04.123456Z",
        "label": "worn",
        "score": 0.973,
        "scores": {"ok": 0.027, "worn": 0.973},
    }


def test_the_text_of_a_second_is_made_once_for_all_models() -> None:
    """With a hundred models each has few predictions of one second."""
    json_payload._second.cache_clear()
    payloads = [_payload(_classifier("a"), model=f"m{number}") for number in range(100)]
    scores = np.array([1.0], np.float32)
    for fraction in (0.0, 0.5, 0.999999):
        for payload in payloads:
            encoded = payload.encode(_prediction(time=1763896744 + fraction, label="a", score=scores[0], scores=scores))
            assert _read(encoded)["time"] == f"2025-11-23T11:19:04.{round(1e6 * fraction):06d}Z"
    assert json_payload._second.cache_info().misses == 1


class _Asked(np.ndarray[Any, np.dtype[np.float32]]):
    """Scores that count how often they are asked for one."""

    times = 0

    def __getitem__(self, place: Any) -> Any:
        _Asked.times += 1
        return super().__getitem__(place)


def test_each_number_of_an_answer_is_asked_for_once() -> None:
    """Not once more to find the end: numpy would raise and format an `IndexError` for each prediction."""
    scores = np.array([0.25, 0.5, 0.25], np.float32)
    prediction = _prediction(label="b", score=scores[1], scores=scores.view(_Asked))
    _Asked.times = 0
    found = _read(_payload(_classifier("a", "b", "c")).encode(prediction))
    assert found["scores"] == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert _Asked.times == 3


def test_an_anomaly_carries_its_threshold() -> None:
    """`score`, `threshold` and `anomaly` stand beside one another."""
    found = _anomaly()
    assert (found["score"], found["threshold"], found["anomaly"]) == (0.25, 0.1, True)


@settings(max_examples=300)
@given(st.lists(FLOATS, min_size=2, max_size=2))
def test_every_number_reads_back_to_the_same_float32(values: list[float]) -> None:
    """The text of a number is short, and loses no bit."""
    manifest = Manifest(
        name="m",
        version="1",
        task="regression",
        input=Input(),
        output=Output(targets=(Target("50%"), Target("%s"))),
    )
    sent = np.array(values, np.float32)
    found = _read(_payload(manifest).encode(_prediction(values=sent)))["values"]
    back = np.array([found["50%"], found["%s"]], np.float32)
    assert back.tobytes() == sent.tobytes()


@settings(max_examples=200)
@given(device=TEXT, model=TEXT, source=TEXT, key=st.none() | TEXT, labels=st.lists(TEXT, min_size=2, unique=True))
def test_any_name_survives(device: str, model: str, source: str, key: str | None, labels: list[str]) -> None:
    """Quotes, percent signs, braces and every script come back as they were written."""
    payload = _payload(_classifier(*labels), device=device, model=model, source=source)
    scores = np.arange(len(labels), dtype=np.float32)
    found = _read(payload.encode(_prediction(key=key, label=labels[1], score=scores[1], scores=scores)))
    assert (found["device"], found["model"], found["source"], found["key"]) == (device, model, source, key)
    assert found["label"] == labels[1]
    assert list(found["scores"]) == labels
    assert found["id"] == f"{device}/{model}/{'-' if key is None else key}/1763896744/1234"


@pytest.mark.parametrize("identity", [*NASTY, "1763896744", ""])
def test_the_reading_s_own_identity_stands_in_the_id(identity: str) -> None:
    """A reading that is delivered twice gives the same `id` twice."""
    assert _anomaly(identity=identity, key="k")["id"] == f"press-07/m/k/{identity}"


@settings(max_examples=300)
@given(st.integers(0, 7_289_654_399_999_999))
def test_time_is_kept_to_the_microsecond(micros: int) -> None:
    """Between 1970 and 2200 the time of a reading is published to the microsecond."""
    text = _anomaly(time=micros / 1e6)["time"]
    found = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert found == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(micros / 1e6 * 1e6))


def test_a_time_that_rounds_up_carries_into_the_next_second() -> None:
    """There is no microsecond number 1000000."""
    assert _anomaly(time=59.9999996)["time"] == "1970-01-01T00:01:00.000000Z"


def test_the_second_is_not_remembered_wrongly() -> None:
    """Times that go back and forth are each their own."""
    manifest = Manifest(name="m", version="1", task="anomaly", input=Input(), output=Output(threshold=0.1))
    payload = _payload(manifest)
    seconds = [10.5, 11.5, 10.25, 3600.0]
    found = [_read(payload.encode(_prediction(t, score=np.float32(0), anomaly=False)))["time"] for t in seconds]
    assert [text[14:22] for text in found] == ["00:10.50", "00:11.50", "00:10.25", "00:00.00"]


def test_marks_are_added_behind_and_together() -> None:
    """A late prediction of a device whose clock was not set says both."""
    manifest = Manifest(name="m", version="1", task="anomaly", input=Input(), output=Output(threshold=0.1))
    prediction = _prediction(score=np.float32(1), anomaly=True)
    plain = _payload(manifest).encode(prediction)
    both = mark_delayed(_payload(manifest).encode(prediction, synchronised=False))
    assert both is not None
    assert _read(both) == _read(plain) | {"clock": "unsynchronised", "delayed": True}


def test_very_many_keys_are_all_their_own() -> None:
    """What is remembered of keys is bounded, and never mixed up."""
    manifest = Manifest(name="m", version="1", task="anomaly", input=Input(), output=Output(threshold=0.1))
    payload = _payload(manifest)
    for number in range(10_050):
        prediction = _prediction(key=f"k{number}", score=np.float32(1), anomaly=False)
        assert f'"key":"k{number}"'.encode() in payload.encode(prediction)
    assert b'"key":null' in payload.encode(_prediction(score=np.float32(1), anomaly=False))


@pytest.mark.parametrize("alarm", [True, False])
def test_an_alarm_stands_where_one_can_be_raised(alarm: bool) -> None:
    """`alarm` is true or false for a model that can raise one, and absent for all others."""
    scores = np.array([0.25, 0.75], np.float32)
    fields = {"label": "worn", "score": scores[1], "scores": scores}
    payload = _payload(_classifier("ok", "worn"))
    assert _read(payload.encode(_prediction(**fields, can_alarm=True, alarm=alarm)))["alarm"] is alarm
    assert "alarm" not in _read(payload.encode(_prediction(**fields)))


def _manifest(task: Any, **output: Any) -> Manifest:
    return Manifest(name="m", version="1", task=task, input=Input(), output=Output(**output))


def _tail(manifest: Manifest, **fields: Any) -> dict[str, Any]:
    """What a payload has behind its time."""
    found: dict[str, Any] = _read(_payload(manifest).encode(_prediction(**fields)))
    return dict(list(found.items())[list(found).index("time") + 1 :])


def test_the_score_of_a_label_is_that_of_its_place() -> None:
    """Also of the first label; where a model abstains, the score is the prediction's own."""
    manifest = _classifier("ok", "worn")
    scores = np.array([0.75, 0.25], np.float32)
    expected = {"scores": {"ok": 0.75, "worn": 0.25}}
    for label, score in (("ok", 0.75), ("worn", 0.25)):
        assert _tail(manifest, label=label, scores=scores) == {"label": label, "score": score} | expected
    found = _tail(manifest, label="unsure", score=np.float32(0.5), scores=scores)
    assert found == {"label": "unsure", "score": 0.5} | expected


def test_a_set_of_labels_and_intervals_are_there_where_the_bundle_has_them() -> None:
    """Labels in the order of the prediction; each interval as its two ends, by the name of its target."""
    scores = np.array([0.5, 0.5], np.float32)
    for label_set in ((), ("worn",), ("worn", "o%k")):
        found = _tail(_classifier("o%k", "worn"), label="worn", scores=scores, label_set=label_set)
        assert found["set"] == list(label_set)
    manifest = _manifest("regression", targets=(Target("50%"), Target("t")))
    ends = (np.array([1.5, -2.5], np.float32), np.array([3.5, 0.25], np.float32))
    assert _tail(manifest, values=np.array([2.0, 0.0], np.float32), interval=ends) == {
        "values": {"50%": 2.0, "t": 0.0},
        "interval": {"50%": [1.5, 3.5], "t": [-2.5, 0.25]},
    }


def test_several_labels_are_scores_and_those_that_are_present() -> None:
    """Every label with its score, and the names of those whose place holds 1."""
    tensors = {"scores": np.array([0.9, 0.1, 0.6], np.float32), "labels": np.array([1, 0, 1])}
    assert _tail(_manifest("multilabel", labels=("a", 'b"', "c")), tensors=tensors) == {
        "labels": {"a": 0.9, 'b"': 0.1, "c": 0.6},
        "present": ["a", "c"],
    }


def test_an_embedding_is_its_numbers() -> None:
    """In their order."""
    tensors = {"embedding": np.array([0.1, -2.0, 3.5], np.float32)}
    assert _tail(_manifest("embedding"), tensors=tensors) == {"embedding": [0.1, -2.0, 3.5]}


def test_detections_are_objects_and_places_without_one_are_left_out() -> None:
    """The label -1 marks a place without a detection; 0 is the first label."""
    tensors = {
        "label": np.array([1, -1, 0]),
        "scores": np.array([0.9, 0.0, 0.25], np.float32),
        "boxes": np.array([[1, 2, 3, 4], [0, 0, 0, 0], [0.5, 0, 1, 1]], np.float32),
    }
    assert _tail(_manifest("detection", labels=("cat", "dog"), detections=3), tensors=tensors) == {
        "detections": [
            {"label": "dog", "score": 0.9, "box": [1.0, 2.0, 3.0, 4.0]},
            {"label": "cat", "score": 0.25, "box": [0.5, 0.0, 1.0, 1.0]},
        ]
    }


def test_other_tensors_are_their_bytes_in_base64() -> None:
    """Little-endian float32 or int64, with their shape: read back by the standard library alone."""
    heat, peak = np.array([[1.5, -2.0], [0.25, 8.0]], np.float32), np.array([3, -1], np.int32)
    found = _tail(_manifest("tensor"), tensors={"heat": heat, "peak": peak})["tensors"]
    assert (found["heat"]["shape"], found["heat"]["datatype"]) == ([2, 2], "FP32")
    assert struct.unpack("<4f", base64.b64decode(found["heat"]["data"])) == (1.5, -2.0, 0.25, 8.0)
    assert (found["peak"]["shape"], found["peak"]["datatype"]) == ([2], "INT64")
    assert struct.unpack("<2q", base64.b64decode(found["peak"]["data"])) == (3, -1)


@pytest.mark.parametrize(
    ("task", "output", "fields"),
    [
        ("multilabel", {"labels": ("a", "b")}, {"tensors": {"scores": np.zeros(1), "labels": np.zeros(2)}}),
        ("multilabel", {"labels": ("a", "b")}, {"tensors": {"scores": np.zeros(2), "labels": np.zeros(1)}}),
        (
            "detection",
            {"labels": ("a",), "detections": 2},
            {"tensors": {"label": np.zeros(2, int), "scores": np.zeros(1), "boxes": np.zeros((2, 4))}},
        ),
        (
            "regression",
            {"targets": (Target("t"),)},
            {"values": np.zeros(1, np.float32), "interval": (np.zeros(1), np.zeros(2))},
        ),
    ],
)
def test_an_answer_that_does_not_fit_its_names_is_an_error(task: Any, output: Any, fields: dict[str, Any]) -> None:
    """It is never published with numbers at the wrong names, or with some of them missing."""
    with pytest.raises(ValueError, match="argument"):
        _payload(_manifest(task, **output)).encode(_prediction(**fields))


def test_no_more_keys_are_remembered_than_ten_thousand() -> None:
    """A source whose keys never come back takes no memory for them."""
    payload = _payload(_manifest("anomaly", threshold=0.1))
    sizes = []
    for number in range(20_010):
        payload.encode(_prediction(key=str(number), score=np.float32(1), anomaly=False))
        sizes.append(len(payload._keys))
    assert max(sizes) == 10_001  # with None, which is a stream without a key


def test_the_first_second_of_1970_has_a_date() -> None:
    """A device whose clock was never set begins there; the second before it has one as well."""
    assert _anomaly(time=0.25)["time"] == "1970-01-01T00:00:00.250000Z"
    assert _anomaly(time=-0.5)["time"] == "1969-12-31T23:59:59.500000Z"


@pytest.mark.parametrize("payload", [b"", b"{}", b"}", b'{"', b'{"a":1', b'"a":1}', b"[1]", b"{x}", b"0.5"])
def test_only_an_object_with_members_is_marked_as_late(payload: bytes) -> None:
    """The bytes of another convention are left to it."""
    assert mark_delayed(payload) is None
