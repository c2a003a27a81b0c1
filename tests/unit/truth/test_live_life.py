"""The life of a device's truth: links that go and come, exchanges, and what is kept over a stop."""

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable, TruthTable
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Handler, Message
from edge_runtime.system.counters import Counters
from edge_runtime.truth.live import FORMAT, SOON_S, Joined, LiveTruth
from edge_runtime.truth.model_truth import WAIT_S, ModelTruth
from tests.support import builders
from tests.support.stepped import SteppedLoop


class _Link:
    """The upstream, which may be down."""

    def __init__(self) -> None:
        self.connected = True
        self.subscribed: list[tuple[list[str], int, Handler]] = []
        self.published: list[tuple[str, dict[str, Any], bool]] = []

    def subscribe(self, filters: list[str], qos: int, handler: Handler, *, optional: bool) -> None:
        """As the connection's."""
        assert optional
        self.subscribed.append((filters, qos, handler))

    def unsubscribe(self, handler: Handler) -> None:
        """As the connection's."""
        self.subscribed = [each for each in self.subscribed if each[2] != handler]

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, outcome: Any) -> bool:
        """As the connection's."""
        assert (qos, outcome) == (1, None)
        self.published.append((topic, json.loads(payload), retain))
        return True


class _Bench:
    """The truth of a device with one model."""

    def __init__(self, folder: Path, *, kept: bytes | None = None, **given: Any) -> None:
        self.loop, self.link, self.counters = SteppedLoop(), _Link(), Counters()
        self.kept, self.writes = kept, 0
        self.fault: OSError | None = None
        self.joined: list[Joined] = []
        settings: dict[str, Any] = {"retain": True, "listens": True, "below": "edge/d"} | given
        self.truth = LiveTruth(
            msgspec.convert({"remember": 50}, TruthTable),
            device="d",
            start=7,
            connection=cast("AnyConnection", self.link),
            loop=self.loop.as_loop,
            counters=self.counters,
            read=lambda: self.kept,
            write=self._keep,
            **settings,
        )
        self.truth.on_joined.append(self.joined.append)
        self.folder = folder
        self.model = self.bundle(builders.classification())
        self.table = ModelTable(name="m", bundle="m.onnx", source="s")
        self.truth.begin([(self.table, self.model)])

    def bundle(self, draft: builders.Draft) -> Model:
        return Model(open_bundle(draft.save(self.folder / "m.onnx")))

    def _keep(self, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.kept, self.writes = data, self.writes + 1

    def predict(self, identity: str, label: str = "low") -> None:
        memory = self.truth.memory("m")
        assert memory is not None
        memory.noted.append(("k", 5.0, 1, identity, label))

    def answer(self, identity: str, label: str = "low") -> str:
        """Truth for a prediction, and its result."""
        body = json.dumps({"id": f"d/m/k/{identity}", "label": label}).encode()
        return self.truth.take("m", body).result

    def published(self) -> list[dict[str, Any]]:
        """The documents since the last call."""
        self.loop.advance(SOON_S)
        found, self.link.published = self.link.published, []
        for topic, document, retain in found:
            assert (topic, document["device"], document["model"], retain) == ("edge/d/accuracy/m", "d", "m", True)
        return [document for _, document, _ in found]


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    """One that listens."""
    return _Bench(tmp_path)


def test_several_truths_are_published_together_and_soon(bench: _Bench) -> None:
    """A second after the first; a model of which nothing is known says nothing."""
    assert bench.published() == []
    for number in range(3):
        bench.predict(f"a{number}")
        assert bench.answer(f"a{number}") == "joined"
    bench.loop.settle()
    assert bench.link.published == []
    assert [document["n"] for document in bench.published()] == [3]
    assert bench.published() == []
    assert bench.joined[0] == Joined("m", "d/m/k/a0", "low", ())


def test_a_document_is_published_again_when_the_link_is_up_again(bench: _Bench) -> None:
    """And not while it is down, nor where it was up all the time."""
    bench.truth.link_changed()
    bench.predict("a")
    bench.answer("a")
    assert len(bench.published()) == 1
    bench.truth.link_changed()
    assert bench.published() == []
    bench.link.connected = False
    bench.truth.link_changed()
    bench.predict("b")
    bench.answer("b")
    assert bench.published() == []
    bench.link.connected = True
    bench.truth.link_changed()
    assert [document["n"] for document in bench.published()] == [2]


def test_without_a_prefix_nothing_is_published(tmp_path: Path) -> None:
    """Health has the documents."""
    bench = _Bench(tmp_path, below="")
    bench.predict("a")
    bench.answer("a")
    assert bench.published() == []
    assert bench.truth.documents()["m"]["n"] == 1


@pytest.mark.parametrize("listens", [True, False])
def test_truth_is_subscribed_where_it_is_wanted_and_until_the_end(tmp_path: Path, *, listens: bool) -> None:
    """When it leaves for good, so that the broker queues none for this device."""
    bench = _Bench(tmp_path, listens=listens)
    assert [(filters, qos) for filters, qos, _ in bench.link.subscribed] == (
        [(["edge/d/truth/+"], 1)] if listens else []
    )
    bench.predict("a")
    bench.answer("a")
    bench.truth.leave()
    assert (bench.link.subscribed, bench.writes) == ([], 1)


def test_a_message_of_another_topic_is_not_claimed(bench: _Bench) -> None:
    """It belongs to a source that reads everything; an empty one clears a retained truth."""
    (_, _, handler) = bench.link.subscribed[0]
    other, empty = Message(b"edge/e/truth/m", b"x", None), Message(b"edge/d/truth/m", b"", None)
    handler([other, empty, Message(b"edge/d/truth/\xff", b"{}", None)])
    assert (other.claimed, empty.claimed) == (False, True)
    assert bench.counters.skipped == {"truth_empty": 1}
    assert bench.counters.errors == {"truth_unknown_model": 1}


def test_truth_for_a_model_that_is_not_there_names_those_that_are(bench: _Bench) -> None:
    """And changes nothing."""
    found = bench.truth.take("x" * 100, b"{}")
    assert (found.result, found.why) == ("unknown_model", f"expected one of the models m, found {'x' * 64!r}")
    bench.truth.begin([])
    assert "one of the models none" in str(bench.truth.take("m", b"{}").why)
    assert bench.truth.memory("m") is None
    bench.truth.housekeeping()
    assert bench.writes == 0


def test_a_truth_that_comes_again_is_logged_once(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """For each model, and counted each time; one that cannot be joined is a warning."""
    caplog.set_level("INFO")
    bench.predict("a")
    for _ in range(3):
        bench.answer("a")
    bench.answer("z")
    bench.loop.advance(WAIT_S + 1.0)
    assert bench.counters.skipped == {"truth_twice": 2}
    assert bench.counters.errors == {"truth_unknown": 1}
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "a truth came again; others that do are counted"),
        ("WARNING", "a truth was not joined (unknown)"),
    ]


def test_figures_are_saved_when_they_changed(bench: _Bench) -> None:
    """And only then."""
    bench.truth.housekeeping()
    assert bench.writes == 0
    bench.predict("a")
    bench.answer("a")
    for _ in range(2):
        bench.truth.housekeeping()
        assert bench.writes == 1
    bench.answer("unknown")
    bench.truth.housekeeping()
    assert bench.writes == 2


def test_a_stop_keeps_figures_and_predictions_without_truth(bench: _Bench) -> None:
    """Their truth is joined after the start."""
    bench.predict("a")
    bench.predict("b")
    bench.answer("a")
    bench.loop.settle()
    bench.truth.end()
    assert len(bench.link.published) == 1  # what was due soon
    again = _Bench(bench.folder, kept=bench.kept)
    assert again.truth.documents()["m"]["n"] == 1
    assert len(again.published()) == 1
    assert again.answer("b") == "joined"
    assert again.answer("a") == "twice"


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (b"\xc1", "kept truth could not be read, and begins anew"),
        (msgspec.msgpack.encode({"format": FORMAT + 1, "models": {}}), None),
        (None, None),
    ],
)
def test_a_file_that_cannot_be_read_begins_anew(
    tmp_path: Path, kept: bytes | None, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged one is logged; one of another format is left alone."""
    bench = _Bench(tmp_path, kept=kept)
    assert bench.truth.documents() == {}
    assert [record.message for record in caplog.records] == ([] if words is None else [words])


def test_a_disk_that_is_full_is_logged(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The figures in memory go on."""
    bench.fault = OSError(28, "No space left on device")
    bench.predict("a")
    bench.answer("a")
    bench.truth.housekeeping()
    (record,) = caplog.records
    assert (record.message, record.__dict__["fields"]) == (
        "what is known of truth is not kept",
        {"why": "No space left on device"},
    )
    assert bench.truth.documents()["m"]["n"] == 1


def test_a_reload_keeps_the_figures_of_a_model_that_stays(bench: _Bench) -> None:
    """A model whose task has no truth has none."""
    bench.predict("a")
    bench.answer("a")
    bench.published()
    memory = bench.truth.memory("m")
    tensors = bench.bundle(builders.tensors())
    other = ModelTable(name="t", bundle="t.onnx", source="s")
    bench.truth.begin([(bench.table, bench.model), (other, tensors)])
    assert bench.truth.memory("m") is memory
    assert bench.truth.memory("t") is None
    assert [document["n"] for document in bench.published()] == [1]
    bench.truth.exchange(other, tensors)
    assert bench.published() == []


def test_an_exchange_begins_the_figures_anew_and_says_so(bench: _Bench) -> None:
    """They are those of one bundle; a model of which nothing was known has nothing to say."""
    draft = builders.classification(version="2.0.0")
    bench.truth.exchange(bench.table, bench.bundle(draft))
    assert bench.published() == []
    bench.predict("a")
    bench.answer("a")
    bench.published()
    bench.truth.exchange(bench.table, bench.bundle(builders.classification(version="3.0.0")))
    (document,) = bench.published()
    assert (document["version"], document["n"]) == ("3.0.0", 0)
    bench.truth.housekeeping()
    assert bench.writes == 1


def test_a_changed_estimate_is_published_with_health(bench: _Bench) -> None:
    """Once for each change."""
    bench.predict("a")
    bench.answer("a")
    bench.published()
    known = bench.truth._models["m"]
    found: dict[str, Any] = {"estimate": None}
    known.estimate = lambda: found["estimate"]  # type: ignore[method-assign]
    assert list(bench.truth.report()) == ["m"]
    assert bench.published() == []
    found["estimate"] = 0.75
    bench.truth.report()
    assert [document["estimated"] for document in bench.published()] == [0.75]
    bench.truth.report()
    assert bench.published() == []


def test_a_document_follows_its_truth_within_half_a_second(bench: _Bench) -> None:
    """Not at once, so that truths which arrive together are published together."""
    bench.predict("a")
    bench.answer("a")
    bench.loop.advance(0.49)
    assert bench.link.published == []
    bench.loop.advance(0.02)
    assert len(bench.link.published) == 1


def test_figures_of_an_earlier_start_are_published_with_the_first_connection(bench: _Bench) -> None:
    """A broker that was not reachable at the start has none of them."""
    bench.predict("a")
    bench.answer("a")
    bench.truth.end()
    again = _Bench(bench.folder, kept=bench.kept)
    again.link.connected = False
    assert again.published() == []
    again.link.connected = True
    again.truth.link_changed()
    assert [document["n"] for document in again.published()] == [1]


def test_a_file_of_this_format_stays_readable(bench: _Bench) -> None:
    """As a release has written it: format 1, by name."""
    figures = {"n": 3, "right": 2, "confusion": {"low": {"low": 2, "high": 1}}}
    saved = {"format": 1, "models": {"m": {"digest": bench.model.bundle.digest, "figures": figures}}}
    again = _Bench(bench.folder, kept=msgspec.msgpack.encode(saved))
    (document,) = again.published()
    assert (document["n"], document["accuracy"]) == (3, 0.666667)
    again.truth.housekeeping()
    assert again.writes == 0


def test_figures_that_cannot_be_read_begin_anew(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Those of one model; the log names it."""
    saved = {"format": 1, "models": {"m": {"digest": bench.model.bundle.digest, "figures": {"n": "many"}}}}
    again = _Bench(bench.folder, kept=msgspec.msgpack.encode(saved))
    assert again.truth.documents() == {}
    (record,) = caplog.records
    assert (record.message, record.__dict__["fields"]["model"]) == ("kept truth could not be read", "m")
    again.predict("a")
    assert again.answer("a") == "joined"


def test_a_reload_with_another_bundle_ends_the_wait_for_predictions_of_the_last_one(bench: _Bench) -> None:
    """The truth is counted, and the figures are those of the new bundle."""
    assert bench.answer("7/1") == "waiting"
    other = bench.bundle(builders.classification(version="2.0.0"))
    bench.truth.begin([(bench.table, other)])
    assert bench.counters.errors == {"truth_unknown": 1}
    assert bench.truth.documents() == {}
    bench.predict("a")
    assert bench.answer("a") == "joined"
    assert [document["version"] for document in bench.published()] == ["2.0.0"]


def test_a_model_that_goes_before_its_document_is_published_has_none(bench: _Bench) -> None:
    """The others have theirs."""
    other = ModelTable(name="other", bundle="m.onnx", source="s")
    bench.truth.begin([(bench.table, bench.model), (other, bench.model)])
    bench.predict("a")
    bench.answer("a")
    assert bench.truth.take("other", b"{").result == "malformed"
    bench.loop.settle()
    bench.truth.begin([(other, bench.model)])
    bench.loop.advance(SOON_S)
    assert [topic for topic, _, _ in bench.link.published] == ["edge/d/accuracy/other"]


def test_an_exchange_and_the_end_of_a_wait_are_saved(bench: _Bench) -> None:
    """Each changes the figures; the predictions themselves are saved by a clean stop only."""
    bench.predict("a")
    bench.predict("b")
    bench.answer("a")
    bench.truth.housekeeping()
    assert bench.kept is not None
    assert b"k/b" not in bench.kept
    assert bench.answer("7/1", label="high") == "waiting"
    bench.truth.housekeeping()
    assert bench.writes == 2
    bench.loop.advance(WAIT_S + 1.0)
    bench.truth.housekeeping()
    assert bench.writes == 3
    bench.truth.exchange(bench.table, bench.bundle(builders.classification(version="2.0.0")))
    bench.truth.housekeeping()
    assert bench.writes == 4


def test_truth_waits_again_after_a_wait_has_ended(bench: _Bench) -> None:
    """Each is looked for by itself; while it waits, nothing is published."""
    for number in (1, 2):
        assert bench.answer(f"7/{number}") == "waiting"
        assert len(bench.published()) == 0
        bench.loop.advance(WAIT_S + 1.0)
        assert bench.counters.errors == {"truth_unknown": number}
        assert len(bench.published()) == 1


def test_after_the_end_nothing_is_left_to_do(bench: _Bench) -> None:
    """No timer of a truth that waited, nor of a document that was due."""
    bench.predict("a")
    bench.answer("a")
    assert bench.answer("7/1") == "waiting"
    bench.loop.settle()
    bench.truth.end()
    assert len(bench.link.published) == 1
    served = bench.loop.served
    bench.loop.advance(2 * WAIT_S)
    assert (bench.loop.served, len(bench.link.published)) == (served, 1)


def test_a_stop_without_any_truth_writes_nothing(bench: _Bench) -> None:
    """A device that receives none needs no file."""
    bench.predict("a")
    bench.truth.end()
    assert bench.writes == 0


def test_the_name_of_an_unknown_model_is_shortened_in_the_log(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It comes from a topic, which may be long."""
    bench.truth.take("x" * 100, b"{}")
    (record,) = caplog.records
    assert record.__dict__["fields"]["model"] == "x" * 64


class _NotedLock:
    """A lock that knows whether it is held."""

    def __init__(self) -> None:
        self.is_held = False

    def __enter__(self) -> None:
        assert not self.is_held
        self.is_held = True

    def __exit__(self, *_: object) -> None:
        self.is_held = False


def test_a_model_is_read_and_changed_only_under_the_lock(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth arrives in another thread, beside the loop, which reloads, publishes and saves."""
    lock, called = _NotedLock(), set()
    bench.truth._lock = cast("Any", lock)
    for name in ("take", "take_early", "exchange", "document", "save"):
        sound = getattr(ModelTruth, name)

        def checked(*given: Any, name: str = name, sound: Any = sound, **named: Any) -> Any:
            assert lock.is_held, name
            called.add(name)
            return sound(*given, **named)

        monkeypatch.setattr(ModelTruth, name, checked)
    bench.predict("a")
    bench.answer("a")
    bench.answer("7/1")
    bench.loop.advance(WAIT_S + 1.0)
    bench.truth.report()
    bench.truth.housekeeping()
    bench.truth.begin([(bench.table, bench.model)])
    bench.truth.exchange(bench.table, bench.bundle(builders.classification(version="2.0.0")))
    bench.truth.end()
    assert called == {"take", "take_early", "exchange", "document", "save"}
