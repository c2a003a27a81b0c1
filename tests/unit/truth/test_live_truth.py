"""Truth in a daemon, without a broker: what people may send, counted to the last one, and predictions that are late."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable, RepairTable, TruthTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Handler, Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.truth.live import Joined, LiveTruth
from edge_runtime.truth.model_truth import MOST_EARLY, NEAR_WAIT_S, WAIT_S
from tests.support import builders
from tests.support.stepped import SteppedLoop

START = 7
TIME = 1_700_000_000.0


class _Link:
    """The upstream, as far as truth sees it."""

    connected = True

    def __init__(self) -> None:
        self.handlers: list[Handler] = []
        self.published: list[tuple[str, dict[str, Any]]] = []

    def subscribe(self, _filters: list[str], _qos: int, handler: Handler, *, optional: bool) -> None:
        """As the connection's."""
        assert optional
        self.handlers.append(handler)

    def publish(self, topic: str, payload: bytes, **_settings: Any) -> bool:
        """As the connection's."""
        self.published.append((topic, json.loads(payload)))
        return True


class _Bench:
    """A model of a daemon with its truth, and what was published of both."""

    def __init__(
        self,
        folder: Path,
        *,
        draft: builders.Draft | None = None,
        kept: bytes | None = None,
        truth: dict[str, str] | None = None,
        **model: Any,
    ) -> None:
        self.loop, self.link, self.counters = SteppedLoop(), _Link(), Counters()
        self.kept = kept
        self.published: list[dict[str, Any]] = []
        self.joined: list[Joined] = []
        self.truth = LiveTruth(
            msgspec.convert({"remember": 50, **(truth or {})}, TruthTable),
            device="d",
            start=START,
            connection=cast("AnyConnection", self.link),
            loop=self.loop.as_loop,
            counters=self.counters,
            retain=True,
            listens=True,
            below="edge/d",
            read=lambda: self.kept,
            write=self._keep,
        )
        self.truth.on_joined.append(self.joined.append)
        self.model = Model(open_bundle((draft or builders.classification()).save(folder / "m.onnx")))
        self.table = msgspec.convert(
            {"name": "m", "bundle": "m.onnx", "source": "s", "run": "loop", **model}, ModelTable
        )
        self.truth.begin([(self.table, self.model)])
        manifest = self.model.manifest
        self.pipeline = Pipeline(
            self.table,
            self.model,
            channels=manifest.channel_names,
            repair=RepairTable(),
            payload=JsonPayload(device="d", model="m", source="s", start=START, manifest=manifest, threshold=None),
            topic="t",
            outbox=self,
            loop=self.loop.as_loop,
            clock=Clock(lambda: True),
            counters=Counters(),
        )
        memory = self.truth.memory("m")
        assert memory is not None
        self.pipeline.taps = (memory,)
        self._pushed = 0

    def _keep(self, data: bytes) -> None:
        self.kept = data

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""
        self.published.append(json.loads(payload))

    def push(self, *rows: list[float], key: str | None = "k", identity: str | None = None) -> None:
        """Readings, one after each other at a second's distance."""
        for row in rows:
            time = TIME + self._pushed
            self._pushed += 1
            values = np.array([row], np.float32)
            self.pipeline.accept(Batch("s", values, [key], [time], [identity], [None]))

    def send(self, *documents: Any, topic: str = "edge/d/truth/m", retained: bool = False) -> None:
        """Messages on the topic of truth."""
        for document in documents:
            payload = document if isinstance(document, bytes) else json.dumps(document).encode()
            message = Message(topic.encode(), payload, None, retained=retained)
            self.link.handlers[0]([message])
            assert message.claimed
        self.loop.settle()

    @property
    def document(self) -> dict[str, Any]:
        """The document of the model."""
        return self.truth.documents()["m"]


def test_truth_may_come_before_its_prediction(tmp_path: Path) -> None:
    """By key and time it waits for it, and is joined as if it had come later; one that waits in vain is unknown."""
    bench = _Bench(tmp_path)
    bench.send({"key": "k", "time": TIME + 1, "label": "low"}, {"key": "k", "time": TIME + 500, "label": "low"})
    assert bench.counters.counts["waiting"] == 2
    assert (bench.joined, bench.counters.errors) == ([], {})
    bench.push([1.0, 1.0], [2.0, 2.0])
    bench.loop.advance(1.0)
    assert [each.id for each in bench.joined] == [bench.published[1]["id"]]
    bench.loop.advance(WAIT_S)
    assert bench.document["n"] == 1
    assert bench.document["unmatched"] == {"unknown": 1, "late": 0, "twice": 0, "conflict": 0}
    assert bench.counters.errors == {"truth_unknown": 1}
    assert bench.link.published[-1] == ("edge/d/accuracy/m", {"device": "d", "model": "m", **bench.document})


@pytest.mark.parametrize("identity", [None, "own"])
def test_truth_by_id_may_come_before_its_prediction(tmp_path: Path, identity: str | None) -> None:
    """An id with a number of this start that is not yet given, or with a reading's own identity, waits for it."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0], identity=identity and "own-1")
    tails = ["own-2", "own-9"] if identity else [f"{START}/2", f"{START}/9"]
    bench.send(*({"id": f"d/m/k/{tail}", "label": "low"} for tail in tails))
    assert bench.counters.counts["waiting"] == 2
    bench.push([2.0, 2.0], identity=identity and "own-2")
    bench.loop.advance(1.0)
    assert [each.id for each in bench.joined] == [f"d/m/k/{tails[0]}"]
    bench.loop.advance(WAIT_S)
    assert bench.document["n"] == 1
    assert bench.document["unmatched"] == {"unknown": 1, "late": 0, "twice": 0, "conflict": 0}


@pytest.mark.parametrize(
    "identity",
    [
        f"d/m/k/{START}/1.x",  # the ids here have numbers
        f"d/m/k/{START + 1}/1",  # of a start to come
        "d/m/k/own",
        f"d/other/k/{START}/5",
        f"d/m/k/{START}/5" + "0" * 600,
        "d/m/" + "k" * 600 + f"/{START}/5",
    ],
)
def test_an_id_that_no_prediction_will_have_does_not_wait(tmp_path: Path, identity: str) -> None:
    """It is unknown at once, so that its sender hears it."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0])
    bench.send({"id": identity, "label": "low"})
    assert (bench.counters.counts["waiting"], bench.counters.errors) == (0, {"truth_unknown": 1})


def test_truth_that_comes_just_before_its_prediction_is_not_joined_to_the_one_before(tmp_path: Path) -> None:
    """Predictions closer together than `tolerance`: the truth waits for a later one, and the nearest gets it."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0])
    bench.send({"key": "k", "time": TIME + 0.9, "label": "low"})
    assert bench.joined == []
    bench.push([2.0, 2.0])
    bench.loop.advance(1.0)
    assert [each.id for each in bench.joined] == [bench.published[1]["id"]]
    bench.send({"key": "k", "time": TIME + 1.4, "label": "low"}, {"key": "k", "time": TIME, "label": "low"})
    assert len(bench.joined) == 2, "only the one that is older than a prediction is joined at once"
    bench.loop.advance(NEAR_WAIT_S + 1.0)
    assert bench.document["unmatched"]["twice"] == 1, "no later prediction came: it is the nearest one's"


def test_a_reload_ends_no_wait_of_an_unchanged_model(tmp_path: Path) -> None:
    """A truth that waits for its prediction is joined as without the reload."""
    bench = _Bench(tmp_path)
    bench.send({"key": "k", "time": TIME, "label": "low"}, {"id": f"d/m/k/{START}/2", "label": "low"})
    bench.truth.begin([(bench.table, bench.model)])
    bench.truth.exchange(bench.table, bench.model)
    assert bench.counters.errors == {}
    bench.push([1.0, 1.0], [2.0, 2.0])
    bench.loop.advance(1.0)
    assert bench.document["n"] == 2
    bench.send({"id": f"d/m/k/{START}/3", "label": "low"})
    bench.truth.begin([])
    assert bench.counters.errors == {"truth_unknown": 1}, "that of a model that is gone is counted"


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"time_unit": "ms"}, TIME * 1000),
        ({"time_unit": "us"}, str(int(TIME * 1_000_000))),
        ({"time_zone": "Europe/Berlin"}, "2023-11-14T23:13:20"),
        ({"time_zone": "Europe/Berlin"}, "2023-11-14T22:13:20Z"),
    ],
)
def test_times_of_truth_may_have_the_unit_and_zone_of_the_sender(
    tmp_path: Path, settings: dict[str, str], sent: Any
) -> None:
    """As those of a source: `[truth] time_unit` and `time_zone`."""
    bench = _Bench(tmp_path, truth=settings)
    bench.push([1.0, 1.0])
    bench.send({"key": "k", "time": sent, "label": "low"})
    assert bench.document["n"] == 1


def test_what_waits_for_its_prediction_is_counted_at_a_stop_and_at_an_exchange(tmp_path: Path) -> None:
    """Nothing vanishes; and no more wait than the bound allows."""
    bench = _Bench(tmp_path)
    bench.send(*({"key": "k", "time": TIME + 100 + number, "label": "low"} for number in range(MOST_EARLY + 3)))
    assert bench.counters.errors == {"truth_unknown": 3}
    other = Model(open_bundle(builders.classification(version="2.0.0").save(tmp_path / "other.onnx")))
    bench.truth.exchange(bench.table, other)
    assert bench.counters.errors == {"truth_unknown": MOST_EARLY + 3}
    bench.send({"key": "k", "time": TIME + 100, "label": "low"})
    bench.truth.end()
    assert bench.counters.errors == {"truth_unknown": MOST_EARLY + 4}
    again = _Bench(tmp_path, draft=builders.classification(version="2.0.0"), kept=bench.kept)
    assert again.document["unmatched"]["unknown"] == 1, "the figures of the other bundle began with it"


@pytest.mark.parametrize("identity", [None, "own"])
def test_predictions_that_were_withheld_are_judged_too(tmp_path: Path, identity: str | None) -> None:
    """By key and time, and by the id that sinks and captures know; the document says how many were withheld."""
    bench = _Bench(tmp_path, publish="change")
    bench.push([-9.0, 0.0], identity=identity and "own-0")
    for number in range(1, 4):
        bench.push([-9.0, 0.0], identity=identity and f"own-{number}")
    assert len(bench.published) == 1
    answered = bench.published[0]["label"]
    other = "low" if answered == "high" else "high"
    bench.send({"key": "k", "time": TIME, "label": answered}, {"key": "k", "time": TIME + 1, "label": other})
    tail = f"{START}/1.2" if identity is None else "own-2"
    bench.send({"id": f"d/m/k/{tail}", "label": answered}, {"id": f"d/m/k/{tail}", "label": other})
    document = bench.document
    assert (document["n"], document["withheld"], document["accuracy"]) == (3, 2, pytest.approx(2 / 3, abs=1e-6))
    assert document["confusion"] == {answered: {answered: 2}, other: {answered: 1}}
    assert document["unmatched"]["conflict"] == 1
    assert [each.id for each in bench.joined][2] == f"d/m/k/{tail}"


def test_withheld_predictions_push_out_none_that_was_published(tmp_path: Path) -> None:
    """Each kind has a bound of its own, and what is forgotten of either is late."""
    bench = _Bench(tmp_path, publish="change")
    bench.push([-9.0, 0.0])
    bench.push(*([-9.0, 0.0] for _ in range(60)))
    first = bench.published[0]
    bench.send({"id": first["id"], "label": first["label"]})
    assert bench.document["n"] == 1
    bench.send({"id": f"d/m/k/{START}/1.10", "label": "low"}, {"id": f"d/m/k/{START}/1.11", "label": "low"})
    bench.send({"id": f"d/m/k/{START}/1.61", "label": "low"})
    bench.loop.advance(WAIT_S + 1.0)
    assert bench.document["n"] == 2
    assert bench.document["unmatched"] == {"unknown": 1, "late": 1, "twice": 0, "conflict": 0}


def test_several_labels_are_judged_each_and_together(tmp_path: Path) -> None:
    """A list names those that are there, an object says it of each; captures get a number for each label."""
    bench = _Bench(tmp_path, draft=builders.multilabel())
    bench.push([1.0, -1.0, 0.5], [-2.0, 3.0, 0.1], [0.0, 0.0, 0.0])
    present = [each["present"] for each in bench.published]
    bench.send({"id": bench.published[0]["id"], "labels": present[0]})
    wrong = {label: label not in present[1] for label in ("hot", "wet", "loud")}
    bench.send({"key": "k", "time": TIME + 1, "labels": wrong})
    bench.send({"id": bench.published[0]["id"], "labels": ["hot", "wet", "loud", "hot"]})
    bench.send({"id": bench.published[0]["id"], "labels": [each for each in wrong if each not in present[0]]})
    document = bench.document
    assert (document["n"], document["accuracy"], document["right"], document["hamming"]) == (2, 0.5, 1, 0.5)
    assert document["confusion"] == {}
    for label in ("hot", "wet", "loud"):
        row = dict.fromkeys(("hit", "missed", "false", "rest"), 0)
        row["hit" if label in present[0] else "rest"] += 1
        row["false" if label in present[1] else "missed"] += 1
        assert document["labels"][label] == row
    assert bench.joined[0].values == tuple(float(label in present[0]) for label in ("hot", "wet", "loud"))
    assert (document["refused"], document["unmatched"]["conflict"]) == ({"malformed": 1}, 1)
    bench.truth.end()
    again = _Bench(tmp_path, draft=builders.multilabel(), kept=bench.kept)
    again.send({"id": bench.published[0]["id"], "labels": present[0]})
    again.send({"id": bench.published[2]["id"], "labels": present[2]})
    assert (again.document["n"], again.document["right"], again.document["unmatched"]["twice"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("sent", "result", "sentence"),
    [
        ({"id": "other/m/k/7/1", "label": "low"}, "unknown", "ids of this model begin with 'd/m/'"),
        ({"id": "d/other/k/7/1", "label": "low"}, "unknown", "ids of this model begin with 'd/m/'"),
        (
            {"id": "d/m/k/7/1" + "x" * 60_000, "label": "low"},
            "unknown",
            "no prediction is remembered for 'd/m/k/7/1xxx",
        ),
        ({"id": "", "label": "low"}, "unknown", "ids of this model begin with 'd/m/'"),
        ({"id": "d/m/k/7/1", "label": "LOW"}, "unknown_label", "expected one of low, high, found 'LOW'"),
        ({"id": "d/m/k/7/1", "label": 1}, "unknown_label", "expected one of low, high, found 1"),
        ({"id": "d/m/k/7/1", "label": ["low"]}, "malformed", "expected a label as text, found ['low']"),
        ({"id": "d/m/k/7/1", "label": None}, "malformed", "expected a label as text, found None"),
        ({"id": "d/m/k/7/1", "label": "x" * 60_000}, "unknown_label", "expected one of low, high, found 'xxx"),
        ({"id": None, "label": "low"}, "malformed", "expected an id, or key and time"),
        ({"key": None, "time": TIME - 3600, "label": "low"}, "unknown", "no prediction of this key is remembered"),
        ({"key": "k", "time": TIME + 3600, "label": "low"}, "unknown", "the nearest is 3600.0 s earlier: compare"),
        ({"key": "k", "time": TIME * 1000, "label": "low"}, "malformed", "milliseconds taken for seconds"),
        ({"key": "k", "time": "yesterday", "label": "low"}, "malformed", "time: expected a time"),
        ({"key": "k" * 60_000, "time": TIME, "label": "low"}, "unknown", "no prediction of this key is remembered"),
        (b'{"id": "d/m/k/7/1", "label": ' + b"1" * 4000 + b"}", "unknown_label", "expected one of low, high"),
        (b'{"id": "d/m/k/7/1", "label": 1e999}', "malformed", "expected a JSON object, found none"),
        (b'\xef\xbb\xbf{"id": "d/m/k/7/1", "label": "low"}', "malformed", "expected a JSON object, found none"),
        (b"{" * 70_000, "malformed", "expected at most 65536 bytes, found 70000"),
    ],
)
def test_what_people_may_send_is_answered_in_one_sentence_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: Any, result: str, sentence: str
) -> None:
    """Of another device or model, in another case, endless, empty, with a wrong clock: the log has a bounded line."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0])
    bench.send(sent)
    bench.loop.advance(2 * WAIT_S)
    assert bench.counters.errors == {f"truth_{result}": 1}
    (line,) = [record for record in caplog.records if "a truth was not joined" in record.getMessage()]
    why = str(line.__dict__["fields"]["why"])
    assert sentence in why
    assert "\n" not in why
    assert len(why) < 300
    counted = {**bench.document["unmatched"], **bench.document["refused"]}
    assert {reason: count for reason, count in counted.items() if count} == {result: 1}
    assert bench.document["n"] == 0


def test_a_retained_truth_is_joined_once_and_clearing_it_is_no_fault(tmp_path: Path) -> None:
    """A broker sends it at each connection; the empty message that takes it back is counted by itself."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0])
    truth = {"id": bench.published[0]["id"], "label": "low"}
    for _ in range(3):
        bench.send(truth, retained=True)
    bench.send(b"")
    assert bench.document["n"] == 1
    assert bench.document["unmatched"]["twice"] == 2
    assert bench.document["refused"] == {}
    assert bench.counters.skipped == {"truth_twice": 2, "truth_empty": 1}


DRAFTS: dict[str, Callable[[], builders.Draft]] = {
    "classification": builders.classification,
    "regression": builders.regression,
    "anomaly": builders.anomaly,
    "multilabel": builders.multilabel,
}


@pytest.mark.parametrize("task", sorted(DRAFTS))
def test_whatever_is_sent_is_counted_once(tmp_path: Path, task: str) -> None:
    """Three thousand messages put together at random: joined, or by the reason why not; and no exception."""
    bench, chance = _Bench(tmp_path, draft=DRAFTS[task]()), random.Random(task)
    channels = len(bench.model.manifest.channel_names)
    bench.push(*([chance.uniform(-3, 3) for _ in range(channels)] for _ in range(40)))
    output = bench.model.manifest.output
    ids = [each["id"] for each in bench.published]
    odd: list[Any] = [None, True, 0, -1, 1.5, 1e300, 10**400, "", "x", "nan", "é\x00", [], {}, [[]], {"a": None}]
    values = {target.name: 1.0 for target in output.targets}
    labels = [*output.labels, "anomaly", "normal", True, 0]
    sent = 0
    for _ in range(3000):
        document: dict[str, Any] = {}
        if chance.random() < 0.7:
            document["id"] = chance.choice([*ids, *odd])
        if chance.random() < 0.5:
            document["key"] = chance.choice(["k", *odd])
            document["time"] = chance.choice([TIME + chance.uniform(-5, 60), *odd])
        if chance.random() < 0.7:
            document["label"] = chance.choice([*labels, *odd])
        if chance.random() < 0.5:
            document["labels"] = chance.choice([chance.sample(labels, 2), dict.fromkeys(map(str, labels), 1), *odd])
        if chance.random() < 0.5:
            document["values"] = chance.choice([values, {name: chance.choice(odd) for name in values or "v"}, *odd])
        body = json.dumps(document).encode()
        if chance.random() < 0.1:
            body = body[: chance.randrange(1, len(body) + 1)]
        bench.send(body)
        sent += 1
    bench.loop.advance(2 * WAIT_S)
    figures = bench.document
    assert figures["n"] + sum(figures["unmatched"].values()) + sum(figures["refused"].values()) == sent
    assert figures["n"] > 10
    msgspec.json.encode(figures)


def test_a_truth_of_an_absurd_size_spoils_no_figure(tmp_path: Path) -> None:
    """Beyond float32 no value of a model can be right, and its square would make every later error infinite."""
    bench = _Bench(tmp_path, draft=builders.regression(targets=("power",)))
    bench.push([1.0, 1.0], [1.0, 1.0])
    bench.send({"id": bench.published[0]["id"], "values": {"power": 1e300}})
    bench.send({"id": bench.published[0]["id"], "values": {"power": 10**400}})
    bench.send({"id": bench.published[1]["id"], "values": {"power": 2.0}})
    assert bench.document["refused"] == {"malformed": 2}
    assert bench.document["n"] == 1


def test_figures_and_predictions_are_kept_over_a_stop_for_their_bundle_and_for_no_other(tmp_path: Path) -> None:
    """The same bundle goes on where it was; another one begins anew, and truth for the last one's is late."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0], [2.0, 2.0])
    first, second = (document["id"] for document in bench.published)
    bench.send({"id": first, "label": "low"})
    bench.truth.end()
    again = _Bench(tmp_path, kept=bench.kept)
    assert again.document["n"] == 1
    again.send({"id": second, "label": "low"})
    assert again.document["n"] == 2
    other = _Bench(tmp_path, draft=builders.classification(version="2.0.0"), kept=bench.kept)
    assert other.truth.documents() == {}
    other.send({"id": second, "label": "low"})
    other.loop.advance(WAIT_S + 1.0)
    assert other.document["n"] == 0
    assert sum(other.document["unmatched"].values()) == 1


def test_figures_begin_anew_with_another_bundle(tmp_path: Path) -> None:
    """What was known of the last one says nothing of the next; a truth that comes late is judged for neither."""
    bench = _Bench(tmp_path)
    bench.push([1.0, 1.0], [2.0, 2.0])
    first, second = (document["id"] for document in bench.published)
    bench.send({"id": first, "label": "low"})
    draft = builders.classification(version="2.0.0")
    bench.truth.exchange(bench.table, Model(open_bundle(draft.save(tmp_path / "next.onnx"))))
    assert bench.truth.documents() == {}
    bench.send({"id": second, "label": "low"})
    assert (bench.document["n"], bench.document["version"]) == (0, "2.0.0")
    assert bench.document["unmatched"] == {"unknown": 0, "late": 1, "twice": 0, "conflict": 0}
