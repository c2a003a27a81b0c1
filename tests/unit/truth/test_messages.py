"""A truth as it is sent: what is understood, and the one sentence for what is not."""

from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.truth.messages import TruthError, read_truth, shortened
from tests.support import builders

LABELS = msgspec.convert(builders.classification(labels=("low", "high")).manifest, Manifest)
CLASSES = msgspec.structs.replace(LABELS, output=msgspec.structs.replace(LABELS.output, classes=("0", "1")))
VALUES = msgspec.convert(builders.regression(targets=("x", "y")).manifest, Manifest)
SEVERAL = msgspec.convert(builders.multilabel(labels=("hot", "wet", "loud")).manifest, Manifest)
MANY = msgspec.convert(builders.multilabel(labels=[f"label-{number}" for number in range(500)]).manifest, Manifest)
ANOMALY = msgspec.convert(builders.anomaly().manifest, Manifest)


@pytest.mark.parametrize(
    ("manifest", "document", "expected"),
    [
        (LABELS, {"id": "d/m/k/1", "label": "high"}, ("d/m/k/1", None, "high")),
        (LABELS, {"key": "k", "time": 5.5, "label": "low", "by": "Ada"}, (None, "k", "low")),
        (LABELS, {"time": "1970-01-01T00:00:05.5Z", "label": "low"}, (None, None, "low")),
        (LABELS, {"key": "-", "time": "5.5", "label": " low "}, (None, None, "low")),
        (LABELS, {"key": 7, "time": 5.5, "label": "low"}, (None, "7", "low")),
        (CLASSES, {"id": "i", "label": 1}, ("i", None, "high")),
        (CLASSES, {"id": "i", "label": 1.0}, ("i", None, "high")),
        (CLASSES, {"id": "i", "label": "high"}, ("i", None, "high")),
        (ANOMALY, {"id": "i", "label": True}, ("i", None, True)),
        (ANOMALY, {"id": "i", "label": "normal"}, ("i", None, False)),
        (ANOMALY, {"id": "i", "label": 0}, ("i", None, False)),
        (VALUES, {"id": "i", "values": {"y": 2, "x": 1.5}}, ("i", None, [1.5, 2.0])),
        (VALUES, {"id": "i", "values": {"y": -3.4028234e38, "x": 0}}, ("i", None, [0.0, -3.4028234e38])),
        (SEVERAL, {"id": "i", "labels": ["loud", "hot"]}, ("i", None, [True, False, True])),
        (SEVERAL, {"id": "i", "labels": []}, ("i", None, [False, False, False])),
        (SEVERAL, {"id": "i", "labels": {"wet": True, "hot": 0, "loud": False}}, ("i", None, [False, True, False])),
    ],
)
def test_what_is_understood(manifest: Manifest, document: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """An id, or key and time; a label, a class, a word for an anomaly, or values."""
    found = read_truth(msgspec.json.encode(document), manifest)
    assert (found.id, found.key, found.answer) == expected
    assert found.id is not None or found.time == 5.5


@pytest.mark.parametrize(
    ("manifest", "body", "reason", "sentence"),
    [
        (LABELS, b"", "malformed", "expected a JSON object, found none"),
        (LABELS, b"\xff", "malformed", "expected a JSON object, found none"),
        (LABELS, b"[" * 50_000, "malformed", "expected a JSON object, found none"),
        (LABELS, b" " * 70_000, "malformed", "at most 65536 bytes"),
        (LABELS, b'["low"]', "malformed", "expected a JSON object, found ['low']"),
        (LABELS, b'{"label": "low"}', "malformed", "expected an id, or key and time, found ['label']"),
        (LABELS, b'{"id": 4, "label": "low"}', "malformed", "expected id to be text, found 4"),
        (LABELS, b'{"id": "i"}', "malformed", "expected a label, found ['id']"),
        (LABELS, b'{"id": "i", "label": null}', "malformed", "expected a label as text, found None"),
        (LABELS, b'{"id": "i", "label": ["low"]}', "malformed", "expected a label as text, found ['low']"),
        (LABELS, b'{"id": "i", "label": "lo"}', "unknown_label", "expected one of low, high, found 'lo'"),
        (LABELS, b'{"id": "i", "values": {"x": 1}}', "malformed", "expected a label, found ['id', 'values']"),
        (LABELS, b'{"key": {}, "time": 1, "label": "low"}', "malformed", "expected key to be text"),
        (LABELS, b'{"key": "k", "time": "soon", "label": "low"}', "malformed", "time: expected a time"),
        (LABELS, b'{"key": "k", "time": null, "label": "low"}', "malformed", "expected a time, found None"),
        (LABELS, b'{"key": "k", "time": true, "label": "low"}', "malformed", "time: expected a number or a text"),
        (
            SEVERAL,
            b'{"id": "i", "label": "hot"}',
            "malformed",
            "expected labels, an array of those that are there, found",
        ),
        (SEVERAL, b'{"id": "i", "labels": "hot"}', "malformed", "an array of those that are there, found 'hot'"),
        (SEVERAL, b'{"id": "i", "labels": null}', "malformed", "an array of those that are there, found None"),
        (
            SEVERAL,
            b'{"id": "i", "labels": ["hot", "hot"]}',
            "malformed",
            "expected each label once, found ['hot', 'hot']",
        ),
        (SEVERAL, b'{"id": "i", "labels": [["hot"]]}', "malformed", "expected labels as text, found ['hot']"),
        (SEVERAL, b'{"id": "i", "labels": [null]}', "malformed", "expected labels as text, found None"),
        (SEVERAL, b'{"id": "i", "labels": ["Hot"]}', "unknown_label", "expected one of hot, wet, loud, found 'Hot'"),
        (
            SEVERAL,
            b'{"id": "i", "labels": {"hot": true}}',
            "malformed",
            "of every label, found none of ['wet', 'loud']",
        ),
        (SEVERAL, b'{"id": "i", "labels": {"hot": 0.7}}', "malformed", "labels.hot: expected true or false, found 0.7"),
        (
            SEVERAL,
            b'{"id": "i", "labels": {"hot": "yes"}}',
            "malformed",
            "labels.hot: expected true or false, found 'yes'",
        ),
        (MANY, b'{"id": "i", "labels": ["x"]}', "unknown_label", "label-10, label-11, ..., found 'x'"),
        (MANY, b'{"id": "i", "labels": {}}', "malformed", "expected true or false of every label"),
        (
            VALUES,
            b'{"id": "i", "values": {"x": 1, "y": 3.5e38}}',
            "malformed",
            "values.y: expected a number of at most",
        ),
        (ANOMALY, b'{"id": "i", "label": "maybe"}', "unknown_label", "anomaly or normal, found 'maybe'"),
        (VALUES, b'{"id": "i", "label": 3}', "malformed", "values: expected an object of x, y, found None"),
        (VALUES, b'{"id": "i", "values": {"x": 1}}', "malformed", "values: expected an object of x, y, found ['x']"),
        (VALUES, b'{"id": "i", "values": {"x": 1, "y": "2"}}', "malformed", "values.y: expected a number, found '2'"),
        (VALUES, b'{"id": "i", "values": {"x": 1, "y": true}}', "malformed", "values.y: expected a number, found True"),
    ],
)
def test_what_is_refused(manifest: Manifest, body: bytes, reason: str, sentence: str) -> None:
    """With one line that says what was expected and what was found."""
    with pytest.raises(TruthError) as caught:
        read_truth(body, manifest)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_message_may_have_65536_bytes() -> None:
    """One more is too many, whatever it says."""
    document = b'{"id": "i", "label": "low"}'
    assert read_truth(document.ljust(65_536), LABELS).answer == "low"
    with pytest.raises(TruthError, match="expected at most 65536 bytes, found 65537"):
        read_truth(document.ljust(65_537), LABELS)


@pytest.mark.parametrize(("count", "more"), [(12, ", found"), (13, ", ..., found")])
def test_twelve_labels_are_named(count: int, more: str) -> None:
    """Of more the first twelve, each of at most sixty characters."""
    manifest = msgspec.convert(
        builders.multilabel(labels=[f"l{number:02}" for number in range(count)]).manifest, Manifest
    )
    with pytest.raises(TruthError) as caught:
        read_truth(b'{"id": "i", "labels": ["x"]}', manifest)
    assert f"l10, l11{more} 'x'" in str(caught.value)
    assert "l12" not in str(caught.value)
    assert (shortened("x" * 60), shortened("x" * 61)) == ("x" * 60, "x" * 60 + "...")


def test_a_number_may_be_the_largest_of_float32() -> None:
    """To either side, and not beyond; the sentence is the message of the error."""
    largest = 3.4028234663852886e38
    body = msgspec.json.encode({"id": "i", "values": {"x": largest, "y": -largest}})
    assert read_truth(body, VALUES).answer == [largest, -largest]
    with pytest.raises(TruthError) as caught:
        read_truth(b'{"id": "i", "values": {"x": 3.4028235e38, "y": 0}}', VALUES)
    assert str(caught.value) == "values.x: expected a number of at most 3.4e+38, found 3.4028235e+38"
