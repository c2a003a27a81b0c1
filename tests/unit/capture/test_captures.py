"""The captures of a daemon: what is kept of the answers, on request too, without the loop ever waiting."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.capture import captures as module
from edge_runtime.capture import tap
from edge_runtime.capture.captures import Captures
from edge_runtime.capture.folder import FoundWindow, read_captures
from edge_runtime.capture.requests import LASTS_S, MOST_WINDOWS
from edge_runtime.capture.ring import CaptureRing, RingWrite
from edge_runtime.config.tables import CaptureTable, ModelTable, RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Handler, Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from tests.support import builders
from tests.support.stepped import SteppedLoop
from tests.support.waiting import patient, wait_until

WINDOW = [[1.0, 2.0]]


class _Link:
    """The upstream, as far as requests see it."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def subscribe(self, filters: list[str], _qos: int, handler: Handler, *, optional: bool) -> None:
        """As the connection's."""
        assert optional, "a broker that refuses requests for captures would keep the device offline"
        self.handlers.update(dict.fromkeys(filters, handler))

    def unsubscribe(self, handler: Handler) -> None:
        """As the connection's."""
        self.handlers = {name: each for name, each in self.handlers.items() if each != handler}


class _Bench:
    """A model with captures, and the ids that it published."""

    def __init__(self, folder: Path, *, draft: builders.Draft | None = None, chance: float = 0.5, **keys: Any) -> None:
        self.folder = folder / "captures"
        self.loop = SteppedLoop()
        self.link = _Link()
        self.counters = Counters()
        self.published: list[dict[str, Any]] = []
        table = msgspec.convert({"max_bytes": 100_000, **keys}, CaptureTable)
        self.captures = Captures(
            table,
            self.folder,
            device="d",
            start=7,
            connection=cast("AnyConnection", self.link),
            loop=self.loop.as_loop,
            clock=Clock(lambda: True),
            counters=self.counters,
            chance=lambda: chance,
        )
        model = Model(open_bundle((draft or builders.classification()).save(folder / "m.onnx")))
        self.digest = model.bundle.digest
        self.captures.begin(["m"])
        config = msgspec.convert({"name": "m", "bundle": "m.onnx", "source": "s", "run": "loop"}, ModelTable)
        payload = JsonPayload(device="d", model="m", source="s", start=7, manifest=model.manifest, threshold=None)
        self.pipeline = Pipeline(
            config,
            model,
            channels=model.manifest.channel_names,
            repair=RepairTable(),
            payload=payload,
            topic="t",
            outbox=self,
            loop=self.loop.as_loop,
            clock=Clock(lambda: True),
            counters=Counters(),
        )
        self.pipeline.taps = (self.captures.tap("m"),)
        self.until(lambda: not self.captures._is_writing)  # the folder is open, or refused

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """As `Outbox.offer`."""
        self.published.append(json.loads(payload))

    def push(self, rows: list[list[float]], keys: list[str | None] | None = None) -> None:
        """Readings of one wake-up."""
        count = len(rows)
        times = [1_700_000_000.5 + place for place in range(count)]
        self.pipeline.accept(
            Batch("s", np.array(rows, np.float32), keys or [None] * count, times, [None] * count, [None] * count)
        )

    def request(self, payload: bytes, model: str = "m", *, retained: bool = False) -> None:
        """A message on the topic of requests."""
        message = Message(f"edge/d/capture/{model}".encode(), payload, None, retained=retained)
        self.link.handlers["edge/d/capture/+"]([message])
        assert message.claimed

    def until(self, holds: Callable[[], bool]) -> None:
        """Serve the loop while the thread works."""

        def served() -> bool:
            self.loop.settle()
            return holds()

        wait_until(served, lambda: str(self.captures.document()))

    def end(self) -> list[FoundWindow]:
        """Stop, and read what was kept."""
        self.captures.end()
        self.loop.settle()
        return read_captures(self.folder).windows


def test_a_capture_says_all_that_is_known_of_its_window(tmp_path: Path) -> None:
    """Values to the bit, and the id by which its prediction went out."""
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    bench.push([[0.1, -2.5], [3.0, 4.0]], ["a", "b"])
    first, second = bench.end()
    assert [found.entry.id for found in (first, second)] == [each["id"] for each in bench.published]
    assert first.entry.window(first.facts).tobytes() == np.array([[0.1, -2.5]], np.float32).tobytes()
    assert (first.entry.key, second.entry.key) == ("a", "b")
    assert (first.entry.time, second.entry.time) == (1_700_000_000.5, 1_700_000_001.5)
    assert first.entry.label == bench.published[0]["label"]
    scores = [np.float32(bench.published[0]["scores"][label]) for label in ("low", "high")]
    assert [np.float32(each) for each in first.entry.answer["scores"]] == scores
    assert first.entry.reasons == ("random",)
    assert (first.facts.device, first.facts.model, first.facts.digest) == ("d", "m", bench.digest)
    assert [channel.name for channel in first.facts.channels] == ["temperature", "humidity"]
    assert first.facts.labels == ("low", "high")


def test_excluded_channels_are_left_out_of_every_byte(tmp_path: Path) -> None:
    """Neither the window nor the facts have them, and the facts say so."""
    bench = _Bench(tmp_path, draft=builders.classification(length=2), random=1.0, chance=0.0, exclude=["humidity"])
    bench.push([[1.0, 98765.0], [2.0, 98765.0]])
    (found,) = bench.end()
    assert found.entry.window(found.facts).tolist() == [[1.0], [2.0]]
    assert [channel.name for channel in found.facts.channels] == ["temperature"]
    assert found.facts.excluded == ("humidity",)
    data = b"".join(path.read_bytes() for path in bench.folder.iterdir())
    assert np.float32(98765.0).tobytes() not in data


def test_withheld_predictions_are_captured_under_ids_that_no_prediction_has(tmp_path: Path) -> None:
    """What is not published may be worth a label all the same."""
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    bench.pipeline.decider._publishes_all = False
    bench.pipeline.decider._publish = "change"
    bench.push([[1.0, 2.0]] * 3)
    windows = bench.end()
    assert len(bench.published) == 1
    assert [found.entry.published for found in windows] == [True, False, False]
    assert len({found.entry.id for found in windows}) == 3


def test_a_request_brings_the_next_windows_of_each_key(tmp_path: Path) -> None:
    """Also of keys that speak later; a later request begins anew, and 0 ends it."""
    bench = _Bench(tmp_path)
    bench.request(b'{"windows": 2}')
    assert bench.captures.document()["requested"] == {"m": {"windows": 2, "taken": 0}}
    bench.push(WINDOW * 5, ["a", "a", "b", "a", None])
    bench.push(WINDOW * 3, ["b", "b", "c"])
    assert bench.captures.document()["requested"] == {"m": {"windows": 2, "taken": 6}}
    bench.request(b'{"windows": 1}')
    bench.push(WINDOW * 2, ["a", "a"])
    bench.request(b'{"windows": 0}')
    bench.push(WINDOW, ["z"])
    assert bench.captures.document()["requested"] == {}
    bench.request(b'{"windows": 9}')
    bench.loop.advance(LASTS_S)
    bench.push(WINDOW, ["late"])
    windows = bench.end()
    assert [found.entry.key for found in windows] == ["a", "a", "b", None, "b", "c", "a"]
    assert {found.entry.reasons for found in windows} == {("request",)}


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"5",
        b'{"windows": -1}',
        b'{"windows": "5"}',
        b'{"windows": 1.5}',
        b'{"windows": 5, "key": "a"}',
        b"\xff",
        b'{"windows": %d}' % (MOST_WINDOWS + 1),
        b'{"windows": 1' + b" " * 2000 + b"}",
        b"[" * 900,
    ],
)
def test_a_request_that_cannot_be_read_is_refused_and_counted(payload: bytes, tmp_path: Path) -> None:
    """Nothing is kept of it, and the next one works."""
    bench = _Bench(tmp_path)
    bench.request(payload)
    bench.push(WINDOW)
    assert bench.counters.rejected == {"capture_request": 1}
    bench.request(b'{"windows": 1}')
    bench.push(WINDOW)
    assert len(bench.end()) == 1


def test_a_request_for_no_model_or_a_retained_one_is_refused(tmp_path: Path) -> None:
    """A retained one would ask again at each connection; an empty one clears it and is no request."""
    bench = _Bench(tmp_path)
    bench.request(b'{"windows": 1}', "nothing")
    bench.request(b'{"windows": 1}', retained=True)
    bench.request(b"")
    assert bench.counters.rejected == {"capture_request": 2}
    bench.captures.leave()
    assert bench.link.handlers == {}


def test_an_alarm_about_the_input_brings_the_next_windows(tmp_path: Path) -> None:
    """Of its key, or of each."""
    bench = _Bench(tmp_path)
    bench.captures.note_alarm("m", "a")
    bench.push(WINDOW * 40, ["a", "b"] * 20)
    bench.captures.note_alarm("m", every_key=True)
    bench.push(WINDOW * 2, ["a", "b"])
    windows = bench.end()
    assert [found.entry.key for found in windows] == ["a"] * 16 + ["a", "b"]
    assert {found.entry.reasons for found in windows} == {("alarm",)}


def test_a_label_that_comes_soon_enough_brings_its_window(tmp_path: Path) -> None:
    """Once, and the label stands beside it; one that comes too late is kept alone."""
    bench = _Bench(tmp_path)
    bench.captures.begin(["m"], labels_come=True)
    bench.push([[1.0, 2.0], [3.0, 4.0]])
    wanted = bench.published[1]["id"]
    bench.captures.label("m", wanted, "high")
    bench.captures.label("m", "d/m/-/7/999", "low")
    windows = bench.end()
    assert [(found.entry.id, found.entry.reasons) for found in windows] == [(wanted, ("truth",))]
    assert [(each.id, each.label) for each in read_captures(bench.folder).labels] == [
        (wanted, "high"),
        ("d/m/-/7/999", "low"),
    ]


def test_the_card_is_written_to_once_in_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that come meanwhile wait in memory."""
    writes: list[int] = []
    write = CaptureRing.write

    def watched(ring: CaptureRing, items: Any) -> Any:
        writes.append(len(items))
        return write(ring, items)

    monkeypatch.setattr(CaptureRing, "write", watched)
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    for expected in (10, 20):
        for _ in range(10):
            bench.push(WINDOW)
            assert bench.counters.counts["written"] == expected - 10
            bench.loop.advance(1.0)
        bench.until(lambda expected=expected: bench.counters.counts["written"] == expected)  # type: ignore[misc]
    assert [count for count in writes if count] == [10, 10]


def test_a_disk_that_hangs_costs_captures_and_never_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the queue does not hold is counted; it is bounded."""
    free = threading.Event()
    write = CaptureRing.write

    def hanging(ring: CaptureRing, items: Any) -> Any:
        if items:
            free.wait(patient(30))
        return write(ring, items)

    monkeypatch.setattr(CaptureRing, "write", hanging)
    monkeypatch.setattr(module, "MOST_WAITING_BYTES", 50_000)
    bench = _Bench(tmp_path, random=1.0, chance=0.0, max_bytes=1_000_000)
    for _ in range(30):
        bench.push(WINDOW * 10)
    assert len(bench.published) == 300
    lost = bench.captures.document()["lost"]["busy"]
    assert lost > 150
    free.set()
    bench.until(lambda: not bench.captures._is_writing)
    assert len(bench.end()) == 300 - lost


def test_a_disk_that_refuses_is_named_and_tried_again(tmp_path: Path) -> None:
    """A folder that cannot be made, and then can."""
    (tmp_path / "captures").write_text("a file in the way")
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    bench.until(lambda: bench.captures.document()["state"] != "ok")
    assert bench.captures.document()["state"] == f"{tmp_path}/captures: Not a directory"
    bench.push(WINDOW * 3)
    bench.loop.advance(module.WRITE_S)
    bench.until(lambda: bench.captures.document()["lost"].get("disk") == 3)
    assert bench.counters.errors["capture_disk"] == 2
    (tmp_path / "captures").unlink()
    bench.push(WINDOW * 2)
    bench.loop.advance(module.WRITE_S)
    bench.until(lambda: bench.captures.document()["state"] == "ok")
    assert bench.captures.document()["chosen"] == {"random": 5}
    assert len(bench.end()) == 2


def test_a_write_that_fails_at_the_stop_is_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop does not turn again after it, so that nothing would say so; each window counts once."""
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    bench.push(WINDOW * 3)

    def full(_ring: CaptureRing, items: Any) -> RingWrite:
        return RingWrite(0, 0, len(items), 0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(CaptureRing, "write", full)
    bench.captures.end()
    assert bench.captures.document()["lost"] == {"disk": 3}
    assert "captures are lost; predictions are not" in caplog.text
    bench.loop.settle()
    assert bench.captures.document()["lost"] == {"disk": 3}


def test_a_folder_that_is_taken_away_is_made_again(tmp_path: Path) -> None:
    """What came meanwhile is lost and counted."""
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    for round_ in range(3):
        bench.push(WINDOW)
        bench.loop.advance(module.WRITE_S)
        bench.until(lambda: not bench.captures._is_writing)
        assert (bench.captures.document()["state"] == "ok") is (round_ != 1)
        if round_ == 0:
            shutil.rmtree(bench.folder)
    assert bench.captures.document()["lost"] == {"disk": 1}
    assert len(bench.end()) == 1


def test_a_device_without_captures_imports_nothing_of_them() -> None:
    """What is not configured costs nothing."""
    code = "import sys, edge_runtime.daemon.process; print('edge_runtime.capture' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_numbers_that_were_right_stand_by_their_targets(tmp_path: Path) -> None:
    """Of a regression; its window is kept as well."""
    bench = _Bench(tmp_path, draft=builders.regression(targets=("power", "heat")))
    bench.captures.begin(["m"], labels_come=True)
    bench.push(WINDOW)
    identity = bench.published[0]["id"]
    bench.captures.label("m", identity, None, [1.5, 2.5])
    (found,) = bench.end()
    assert (found.entry.id, found.entry.reasons, found.facts.targets) == (identity, ("truth",), ("power", "heat"))
    (label,) = read_captures(bench.folder).labels
    assert (label.label, label.values) == (None, {"power": 1.5, "heat": 2.5})


def test_a_large_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of thousands of numbers would be many times its window; the bundle can compute it again."""
    monkeypatch.setattr(tap, "MOST_NUMBERS", 1)
    bench = _Bench(tmp_path, random=1.0, chance=0.0)
    bench.push(WINDOW)
    (found,) = bench.end()
    assert found.entry.answer.keys() == {"label"}
