"""Payload conventions: each is found by its name, and a late prediction is marked by the convention that wrote it."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.manifest import Input, Manifest, Output, Target
from edge_runtime.config.tables import ModelTable
from edge_runtime.delivery.further_payloads import encoders_of
from edge_runtime.delivery.payloads import (
    CONVENTIONS,
    Encoders,
    can_alarm,
    convention,
    first_of,
    flat_convention,
    mark_delayed,
    prediction_id,
)
from edge_runtime.readings import Prediction, Receipt

READERS: dict[str, Any] = {"json": json.loads, "msgpack": msgspec.msgpack.decode}
OUTPUTS: dict[str, tuple[Output, dict[str, Any]]] = {
    "classification": (Output(labels=("a", "b")), {"label": "b", "scores": np.array([0.027, 0.973], np.float32)}),
    "regression": (Output(targets=(Target(name="t"),)), {"values": np.array([0.1], np.float32)}),
    "anomaly": (Output(threshold=0.5), {"score": np.float32(0.7), "anomaly": True}),
}


@pytest.mark.parametrize("task", list(OUTPUTS))
@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize("synchronised", [True, False])
def test_every_convention_says_the_same(name: str, task: Any, synchronised: bool) -> None:
    """The members, their values and the mark of a late one are the same, whatever the bytes look like."""
    output, fields = OUTPUTS[task]
    manifest = Manifest(name="m", version="1.0.0", task=task, input=Input(), output=output)
    facts: dict[str, Any] = {"device": "d", "model": "m", "source": "s", "start": 7, "manifest": manifest}
    prediction = Prediction(key="k", time=1763896744.25, seq=3, identity=None, **fields)
    encode = convention(name).make(**facts, threshold=0.5).encode
    reference = json.loads(
        convention("json").make(**facts, threshold=0.5).encode(prediction, synchronised=synchronised)
    )
    payload = encode(prediction, synchronised=synchronised)
    assert READERS[name](payload) == reference
    assert READERS[name](mark_delayed(payload)) == reference | {"delayed": True}


def test_each_convention_is_one_of_one_message_or_of_several() -> None:
    """What the tests here compare is all that there is."""
    assert {name for name in CONVENTIONS if flat_convention(name) is None} == set(READERS)


def _facts(task: Any) -> dict[str, Any]:
    manifest = Manifest(name="m", version="1.0.0", task=task, input=Input(), output=OUTPUTS[task][0])
    return {"device": "d", "model": "m", "source": "s", "start": 7, "manifest": manifest, "threshold": 0.5}


class _Taken:
    """Stands in for the outbox."""

    def __init__(self) -> None:
        self.messages: dict[str, bytes] = {}
        self.streams: set[str] = set()
        self.receipts: list[Receipt | None] = []

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""
        assert priority == 1
        self.messages[topic] = payload
        self.streams.add(stream)
        self.receipts.append(receipt)


def _offered(names: tuple[str, ...], task: str, receipt: Receipt | None = None) -> tuple[_Taken, Encoders, Prediction]:
    encoders, taken = encoders_of(names, _facts(task)), _Taken()
    prediction = Prediction(key="k", time=1763896744.25, seq=3, identity=None, **OUTPUTS[task][1])
    assert encoders.further is not None
    encoders.further.offer(taken, prediction, ("m/k", "edge/d/m/k"), priority=1, receipt=receipt, synchronised=True)
    return taken, encoders, prediction


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("classification", {"label": b"b", "score": b"0.973", "scores/a": b"0.027", "scores/b": b"0.973"}),
        ("regression", {"values/t": b"0.1"}),
        ("anomaly", {"score": b"0.7", "anomaly": b"true"}),
    ],
)
def test_flat_values_are_bare_values_on_topics_below_the_prediction(task: str, expected: dict[str, bytes]) -> None:
    """With the id and the time of the prediction, and nothing on its own topic."""
    taken, encoders, _ = _offered(("values",), task)
    head = {"id": b"d/m/k/7/3", "time": b"2025-11-23T11:19:04.250000Z"}
    assert taken.messages == {f"edge/d/m/k/{level}": payload for level, payload in (head | expected).items()}
    assert encoders.first is None


def test_several_conventions_have_topics_and_streams_of_their_own() -> None:
    """The first of one message has the prediction's topic, whatever its place in the list."""
    taken, encoders, prediction = _offered(("values", "json", "msgpack"), "anomaly")
    assert encoders.first is not None
    document = json.loads(encoders.first.encode(prediction))
    assert msgspec.msgpack.decode(taken.messages["edge/d/m/k/msgpack"]) == document
    assert "edge/d/m/k" not in taken.messages
    assert taken.streams == {"msgpack:m/k", "values:m/k"}


def test_a_reading_is_acknowledged_when_every_message_of_its_prediction_is_safe() -> None:
    """Each takes a hold; the caller's own is for the message on the prediction's topic."""
    acknowledged: list[int] = []
    receipt = Receipt(lambda: acknowledged.append(1))
    taken, _, _ = _offered(("json", "values"), "anomaly", receipt)
    assert len(taken.receipts) == 4
    for each in taken.receipts:
        assert not acknowledged
        assert each is receipt
        each.release()
    assert not acknowledged
    receipt.release()
    assert acknowledged == [1]


def test_a_label_that_is_no_topic_level_is_written_so_that_none_becomes_another() -> None:
    """Slashes, wildcards, percent signs and control characters; other text stays."""
    labels = ("a/b", "a%2Fb", "+", "#", "\n", "ä b", "")
    manifest = Manifest(name="m", version="1", task="classification", input=Input(), output=Output(labels=labels))
    flat = flat_convention("values")
    assert flat is not None
    encoder = flat.make(**_facts("classification") | {"manifest": manifest})
    scores = np.linspace(0, 1, len(labels), dtype=np.float32)
    prediction = Prediction(key=None, time=0.0, seq=1, identity=None, label="a/b", scores=scores)
    levels = [level for level, _ in encoder.encode_parts(prediction) if level.startswith("scores/")]
    names = ["a%2Fb", "a%252Fb", "%2B", "%23", "%0A", "ä b", "%"]
    assert levels == [f"scores/{name}" for name in names]


@pytest.mark.parametrize("payload", [b"", b"text", b"\xff\x00", b"[1]", b"{", b"{curly}", b"0.25", b"true"])
def test_what_no_convention_knows_stays_as_it_is(payload: bytes) -> None:
    """A row of an outbox whose convention is gone is delivered without the mark, and not changed."""
    assert mark_delayed(payload) == payload


# -- marks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(READERS))
def test_a_prediction_of_a_set_clock_is_not_marked_unless_it_is_asked_for(name: str) -> None:
    """`clock` is there only where the device's clock was not set, whichever convention writes it."""
    encode = convention(name).make(**_facts("anomaly")).encode
    prediction = Prediction(key=None, time=0.0, seq=1, identity=None, **OUTPUTS["anomaly"][1])
    assert "clock" not in READERS[name](encode(prediction))
    assert READERS[name](encode(prediction, synchronised=False))["clock"] == "unsynchronised"


def test_flat_values_have_no_mark() -> None:
    """They are the same with a clock that was not set."""
    flat = flat_convention("values")
    assert flat is not None
    encoder = flat.make(**_facts("anomaly"))
    prediction = Prediction(key=None, time=0.0, seq=1, identity=None, **OUTPUTS["anomaly"][1])
    assert list(encoder.encode_parts(prediction)) == list(encoder.encode_parts(prediction, synchronised=False))


@pytest.mark.parametrize("members", [0, 1, 14, 15, 16])
def test_a_map_of_messagepack_is_marked_up_to_its_fifteenth_member(members: int) -> None:
    """A map of more members has another first byte; a prediction has fourteen at most."""
    document = {f"m{number}": number for number in range(members)}
    payload = msgspec.msgpack.encode(document)
    marked = msgspec.msgpack.decode(mark_delayed(payload))
    assert marked == (document | {"delayed": True} if members in {1, 14} else document)


# -- which convention writes what ----------------------------------------------------------------------------------


class _Watcher:
    """Gets the predictions that no convention writes as one message."""

    def encode_parts(self, _prediction: Prediction, *, synchronised: bool = True) -> Any:
        """As `FlatPayload.encode_parts`."""
        assert synchronised
        yield "seen", b"x"


@pytest.mark.parametrize(
    ("names", "first", "levels"),
    [
        (("json",), True, None),
        (("values",), False, {"seen", "id"}),
        ((), False, {"seen"}),
        (("json", "values"), True, {"id"}),
        (("json", "msgpack"), True, {"msgpack"}),
        (("msgpack", "json"), True, {"json"}),
    ],
)
def test_a_watcher_sees_what_no_convention_writes_as_one_message(
    names: tuple[str, ...], *, first: bool, levels: set[str] | None
) -> None:
    """Where one does, the pipeline shows that message; further conventions exist only where more than one is named."""
    encoders = encoders_of(names, _facts("anomaly"), _Watcher())
    assert (encoders.first is not None) == first
    assert (encoders.further is None) == (levels is None)
    if encoders.further is not None:
        taken = _Taken()
        prediction = Prediction(key=None, time=0.0, seq=3, identity=None, **OUTPUTS["anomaly"][1])
        encoders.further.offer(taken, prediction, ("m", "t"), priority=1, receipt=None, synchronised=True)
        assert {topic.removeprefix("t/") for topic in taken.messages} & {"seen", "id", "json", "msgpack"} == levels


def test_without_conventions_there_is_nothing_to_write() -> None:
    """Nor with a list that is empty."""
    assert encoders_of((), _facts("anomaly")) == Encoders(None, None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("json",), "json"), (("values", "msgpack", "json"), "msgpack"), (("values",), None), ((), None)],
)
def test_the_first_convention_of_one_message_has_the_prediction_s_topic(
    names: tuple[str, ...], expected: str | None
) -> None:
    """Flat ones have topics below it, wherever they stand in the list."""
    assert first_of(names) == expected


# -- ids and alarms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "k/1"])
@pytest.mark.parametrize("identity", [None, "", "4711"])
def test_an_id_as_plain_text_is_that_of_the_payload(key: str | None, identity: str | None) -> None:
    """Captures are found by it: the reading's own identity, else the number of the start and a sequence number."""
    prediction = Prediction(key=key, time=0.0, seq=3, identity=identity, **OUTPUTS["anomaly"][1])
    payload = json.loads(convention("json").make(**_facts("anomaly")).encode(prediction))
    found = prediction_id("d", "m", 7, prediction)
    assert found == payload["id"]
    assert found == f"d/m/{key or '-'}/{'7/3' if identity is None else identity}"


@pytest.mark.parametrize(
    ("task", "table", "output", "expected"),
    [
        ("regression", {}, {}, False),
        ("regression", {"threshold": 0.0}, {}, True),
        ("regression", {}, {"threshold": 0.0}, True),
        ("regression", {"alarm_labels": ("a",)}, {}, False),
        ("anomaly", {}, {"threshold": 0.5}, True),
        ("classification", {}, {"labels": ("a", "b")}, False),
        ("classification", {"alarm_labels": ("a",)}, {"labels": ("a", "b")}, True),
        ("multilabel", {"alarm_labels": ("a",)}, {"labels": ("a", "b")}, True),
        ("multilabel", {}, {"labels": ("a", "b")}, False),
        ("tensor", {"alarm_labels": ("a",)}, {}, False),
        ("embedding", {"threshold": 1.0}, {}, False),
    ],
)
def test_a_model_can_alarm_with_a_threshold_or_with_labels(
    task: Any, table: dict[str, Any], output: dict[str, Any], *, expected: bool
) -> None:
    """A limit of 0 is one; labels count only for tasks that answer labels."""
    config = ModelTable(name="m", source="s", bundle="b", **table)
    manifest = Manifest(name="m", version="1", task=task, input=Input(), output=Output(**output))
    assert can_alarm(config, manifest) == expected
