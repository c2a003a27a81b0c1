"""A signed rollout between a broker and devices that are lists in memory: order, repair, and what is left out."""

import argparse
import json
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from edge_runtime.cli import main
from edge_runtime.commands.rollout import _moment, left_out
from edge_runtime.fleet import conductor, wave_progress
from edge_runtime.fleet.broker_line import CAUGHT_UP, CONNECTED, Heard, Login
from edge_runtime.fleet.broker_view import Known
from edge_runtime.fleet.bundle_files import BundleFiles
from edge_runtime.fleet.conductor import Conductor, outcomes
from edge_runtime.fleet.rollout_file import DeviceRow, RolloutFile, RolloutPlan
from edge_runtime.store.desired_document import TAKEN_BACK, Desired, Envelope, Report
from tests.support.builders import signer
from tests.unit.fleet.test_rollout import targets

PLAN = RolloutPlan(model="comfort", version="1.1.0", digest="d" * 64, size=10, soak=0.0, canaries=1)


@dataclass
class Broker:
    """Keeps what is retained; a device answers a document with the states that are set for it.

    Attributes:
        retained: by topic below `edge/`.
        order: devices in the order in which a document came for them.
        answers: the states that a device goes through; one that is not named says nothing.
        lines: connections that hear what happens.
        on_publish: called with each topic before the broker has it; may raise, which is a crash.
        on_published: and after.
    """

    retained: dict[str, bytes] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lines: list["queue.SimpleQueue[Heard]"] = field(default_factory=list)
    on_publish: Callable[[str], None] = lambda _: None
    on_published: Callable[[str], None] = lambda _: None

    def put(self, topic: str, payload: bytes) -> None:
        """A retained message; an empty one clears."""
        if payload:
            self.retained[topic] = payload
        else:
            self.retained.pop(topic, None)
        for line in self.lines:
            line.put(Heard(topic, payload))

    def desired(self, device: str) -> Desired:
        """What it is to run."""
        envelope = msgspec.json.decode(self.retained[f"{device}/desired"], type=Envelope)
        return msgspec.json.decode(envelope.document, type=Desired)

    def line(self) -> type:
        """Stands for `BrokerLine`."""
        broker = self

        class Line:
            is_settled = True
            connections = 1

            def __init__(self, *_: object, qos: int) -> None:
                assert qos == 0
                self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
                self._heard.put(Heard(CONNECTED, b""))
                for topic, payload in broker.retained.items():
                    self._heard.put(Heard(topic, payload, retained=True))
                broker.lines.append(self._heard)

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                broker.lines.remove(self._heard)

            def hear(self, seconds: float) -> Heard | None:
                try:
                    return self._heard.get(timeout=min(seconds, 0.05))
                except queue.Empty:
                    return None

            def read_again(self, topics: list[str]) -> None:
                for topic in topics:
                    if topic in broker.retained:
                        self._heard.put(Heard(topic, broker.retained[topic], retained=True))
                self._heard.put(Heard(CAUGHT_UP, b""))

            def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
                assert retain
                broker.on_publish(topic)
                broker.put(topic, payload)
                device = topic.partition("/")[0]
                if payload:
                    broker.order.append(device)
                    broker.on_published(topic)
                    broker.answer(device)
                return True

        return Line

    def answer(self, device: str) -> None:
        """The device follows its document."""
        desired = self.desired(device)
        about = {key: getattr(desired, key) for key in ("rollout", "serial", "model", "version", "digest")}
        for each in self.answers.get(device, []):
            self.put(f"{device}/rollout", msgspec.json.encode(msgspec.convert(about | each, type=Report)))


@dataclass
class Host:
    """A laptop with a file of rollouts."""

    broker: Broker
    file: RolloutFile
    key: Path
    lines: list[str] = field(default_factory=list)

    def start(self, *rows: DeviceRow, rollout: str = "r1", **changes: Any) -> None:
        """Begin a rollout."""
        self.file.create(rollout, msgspec.structs.replace(PLAN, **changes), list(rows))

    def run(self, rollout: str = "r1", *, once: bool = False) -> dict[str, str]:
        """`resume`, in a process of its own; returns the results."""
        login = Login(url="mqtt://127.0.0.1:1")
        Conductor(self.file, login, self.key, self.lines.append, once=once).run(rollout, until_done=True)
        return self.results(rollout)

    def results(self, rollout: str = "r1") -> dict[str, str]:
        """Of the table."""
        return {each.device: each.result for each in outcomes(self.file.read(rollout), self.file.devices(rollout))}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Waits are short."""
    broker = Broker()
    monkeypatch.setattr(conductor, "BrokerLine", broker.line())
    monkeypatch.setattr(conductor, "SETTLE_S", 0.05)
    monkeypatch.setattr(wave_progress, "SILENT_S", 0.3)
    monkeypatch.setattr(wave_progress, "STALL_S", 0.6)
    monkeypatch.setattr(wave_progress, "STRAGGLER_S", 0.3)
    return Host(broker, RolloutFile(tmp_path / "rollouts.db"), signer(tmp_path / "keys").key)


GOOD = [{"state": "pending"}, {"state": "receiving"}, {"state": "confirmed"}]


def rows(names: str, *, first: int = 1, **more: Any) -> list[DeviceRow]:
    """One canary, the rest in the second wave."""
    return [DeviceRow(device=name, wave=1 if at < first else 2, **more) for at, name in enumerate(names)]


def test_a_canary_that_is_away_or_hangs_is_replaced_before_the_rest_gets_the_bundle(host: Host) -> None:
    """`a` never reports, `b` stops in the middle: `c` proves the bundle, and only then do `d` and `e` get it."""
    host.broker.answers = {"b": GOOD[:2], "c": GOOD, "d": GOOD, "e": GOOD}
    host.start(*rows("abcde"))
    assert host.run() == {"a": "away", "b": "busy", "c": "done", "d": "done", "e": "done"}
    assert host.broker.order == ["a", "b", "c", "d", "e"]
    assert "wave 1, in the place of canaries that are away: c" in host.lines


def test_a_bad_bundle_stops_at_the_canary_that_could_prove_it(host: Host) -> None:
    """The canary is away, the one in its place fails: no other device gets the bundle."""
    host.broker.answers = {"b": [*GOOD[:2], {"state": "failed", "why": "answers NaN"}], "c": GOOD}
    host.start(*rows("abc"))
    assert host.run() == {"a": "away", "b": "failed", "c": "not tried"}
    assert host.broker.order == ["a", "b"]
    assert host.file.read("r1").state == "stopped"


def test_where_no_device_is_online_all_get_their_document(host: Host) -> None:
    """None could prove the bundle now; each will when it wakes, and nothing is waited for."""
    host.start(*rows("abc", is_online=False))
    assert set(host.run().values()) == {"away"}
    assert set(host.broker.retained) == {"a/desired", "b/desired", "c/desired"}
    host.broker.answers = dict.fromkeys("abc", GOOD)
    for name in "abc":
        host.broker.answer(name)
    assert set(host.run().values()) == {"done"}
    assert host.file.read("r1").state == "finished"


@pytest.mark.parametrize(
    "payload", [b"\xff", b"[" * 60_000, b'{"later":' + b"[" * 60_000], ids=["text", "deep", "member"]
)
def test_what_is_no_report_and_no_document_ends_no_rollout(host: Host, payload: bytes) -> None:
    """Whoever may publish there can retain anything, also what nests deeper than a decoder goes."""
    host.broker.retained = {"a/rollout": payload, "a/desired": payload, "b/desired": payload}
    host.broker.answers = {"a": GOOD, "b": GOOD}
    host.start(*rows("ab"))
    assert host.run() == {"a": "done", "b": "done"}


def test_slow_and_hung_devices_do_not_hold_back_the_next_wave(host: Host) -> None:
    """Two of four are good, one hangs and one never reports: the third wave goes out all the same."""
    host.broker.answers = {"a": GOOD, "b": GOOD, "c": GOOD[:2], "e": GOOD}
    devices = [DeviceRow(device=name, wave=wave) for name, wave in (("a", 1), ("b", 2), ("c", 2), ("d", 2), ("e", 3))]
    host.start(*devices)
    assert host.run() == {"a": "done", "b": "done", "c": "busy", "d": "away", "e": "done"}


def test_a_wave_ends_in_the_middle_once_too_many_have_failed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents go out in batches, and reports are read in between."""
    monkeypatch.setattr(conductor, "BATCH", 2)
    bad = [{"state": "failed", "why": "answers NaN"}]
    host.broker.answers = {"a": GOOD} | dict.fromkeys("bcdefgh", bad)
    host.start(*rows("abcdefgh"))
    results = host.run()
    assert host.broker.order == ["a", "b", "c"]
    assert [results[name] for name in "abcd"] == ["done", "failed", "failed", "not tried"]


@pytest.mark.parametrize("crash", ["before", "after"])
def test_a_process_that_is_killed_while_it_publishes_is_repaired_by_the_next(host: Host, crash: str) -> None:
    """Whether the broker has the document or not, the next command finds out, and every device gets one."""
    host.broker.answers = dict.fromkeys("abc", GOOD)
    host.start(*rows("abc"))

    class KilledError(BaseException):
        pass

    def die(topic: str) -> None:
        if topic == "b/desired":
            raise KilledError

    if crash == "before":
        host.broker.on_publish = die
    else:
        host.broker.on_published = die
    # A process that is killed runs no `finally`.
    keeps = RolloutFile.release
    RolloutFile.release = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        with pytest.raises(KilledError):
            host.run()
    finally:
        RolloutFile.release = keeps  # type: ignore[method-assign]
    text = {each.device: each.text for each in outcomes(host.file.read("r1"), host.file.devices("r1"))}
    assert text["b"] == "interrupted while its document was published: `rollout resume` goes on"
    host.broker.on_publish = host.broker.on_published = lambda _: None
    if crash == "after":
        host.broker.answer("b")
    assert host.run() == {"a": "done", "b": "done", "c": "done"}
    assert sorted(host.broker.order) == ["a", "b", "c"], "none got two documents"


def test_a_broker_that_lost_its_retained_documents_gets_them_again(host: Host) -> None:
    """Of devices that have not begun; those that are done need none."""
    host.broker.answers = {"a": GOOD}
    host.start(*rows("ab"))
    assert host.run() == {"a": "done", "b": "away"}
    host.broker.retained.clear()
    host.broker.answers["b"] = GOOD
    assert host.run() == {"a": "done", "b": "done"}
    assert host.broker.order == ["a", "b", "b"]


def test_a_serial_is_above_what_devices_already_follow(host: Host, tmp_path: Path) -> None:
    """Another operator's clock was ahead by years, and the file of rollouts is another one: it follows all the same."""
    ahead = 4_000_000_000
    report = Report(rollout="other", serial=ahead, state="confirmed", model="comfort", version="1.0.0", digest="c" * 64)
    host.broker.put("a/rollout", msgspec.json.encode(report))
    host.broker.put("b/rollout", msgspec.json.encode(msgspec.structs.replace(report, serial=2**62)))
    host.broker.answers = dict.fromkeys("ab", GOOD)
    host.start(*rows("ab"))
    assert host.run() == {"a": "done", "b": "done"}
    assert ahead < host.broker.desired("a").serial < 2**53, "and a report that makes one up changes nothing"


def test_a_device_that_another_file_of_rollouts_took_over_is_named(host: Host) -> None:
    """Its newer document stands at the broker: this rollout neither waits for the device nor calls it away."""
    host.start(*rows("ab"))
    host.run()
    other = msgspec.structs.replace(
        host.broker.desired("b"), rollout="other", version="2.0.0", serial=host.broker.desired("b").serial + 1
    )
    envelope = Envelope(document=msgspec.json.encode(other).decode(), signature="s")
    host.broker.put("b/desired", msgspec.json.encode(envelope))
    assert host.run() == {"a": "away", "b": "refused"}
    found = {each.device: each.text for each in outcomes(host.file.read("r1"), host.file.devices("r1"))}
    assert found["b"] == "rollout other of comfort 2.0.0 has replaced it"


def test_devices_that_are_left_out_get_no_document_and_hold_nothing_up(host: Host) -> None:
    """A pinned one is where it should be, one of another class is refused."""
    host.broker.answers = {"a": GOOD}
    left_out = [
        DeviceRow(device="p", wave=0, state="pinned", why="the inventory pins it to comfort 1.0.0"),
        DeviceRow(device="z", wave=0, state="refused", why="expected a bundle for pi4, found one for zero2w"),
    ]
    host.start(*rows("a"), *left_out)
    assert host.run() == {"p": "unchanged", "z": "refused", "a": "done"}
    assert host.broker.order == ["a"]
    assert host.file.read("r1").state == "finished"


def test_what_a_device_says_after_an_abort_is_no_failure(host: Host) -> None:
    """A device that was waiting for its window reports that its document was taken back."""
    waiting = [{"state": "pending", "why": "waiting for the window of maintenance, 01:00-02:00 UTC"}]
    host.broker.answers = {"a": waiting}
    host.start(*rows("a"))
    assert host.run() == {"a": "busy"}
    row = host.file.change(host.file.read("r1"), "aborted", "aborted")
    Conductor(host.file, Login(url="mqtt://127.0.0.1:1"), None, host.lines.append).clear(row.id)
    assert "a/desired" not in host.broker.retained
    report = json.loads(host.broker.retained["a/rollout"]) | {"state": "failed", "why": TAKEN_BACK}
    host.broker.put("a/rollout", json.dumps(report).encode())
    Conductor(host.file, Login(url="mqtt://127.0.0.1:1"), None, host.lines.append).run("r1", until_done=False)
    assert host.results() == {"a": "not tried"}


def test_an_undo_takes_back_what_it_does_not_replace(host: Host) -> None:
    """`b` ran nothing before, and is away: without a document it stays as it is when it comes back."""
    host.start(*rows("ab"))
    assert set(host.run().values()) == {"away"}
    Conductor(host.file, Login(url="mqtt://127.0.0.1:1"), None, host.lines.append).clear("r1", keep=frozenset("a"))
    assert set(host.broker.retained) == {"a/desired"}


def test_a_rollout_leaves_out_another_class_twins_and_pins(tmp_path: Path) -> None:
    """The host compares too, before it signs anything: a device without a class of its own would take the bundle."""
    path = tmp_path / "m.onnx"
    files = BundleFiles(path, "m", "1.1.0", "d" * 64, (), "zero2w")
    device = targets("a")[0]
    one, two = Known(machines={"x"}), Known(machines={"x", "y"})
    assert left_out(device, one, files) is None
    assert left_out(msgspec.structs.replace(device, kind="zero2w"), one, files) is None
    found = left_out(msgspec.structs.replace(device, kind="pi4"), one, files)
    assert found == ("refused", "expected a bundle for pi4, found one for zero2w: convert it for this device")
    found = left_out(device, two, files)
    assert found is not None
    assert found[0] == "refused"
    assert found[1].startswith("two machines answer as a (x, y)")
    pinned = left_out(msgspec.structs.replace(device, pins=("m 1.0.0",)), two, files)
    assert pinned == ("pinned", "the inventory pins it to m 1.0.0")


def test_a_device_that_ran_the_bundle_before_is_unchanged(host: Host) -> None:
    """It confirms its document; the table says that nothing was to be done."""
    host.broker.answers = {"a": GOOD}
    host.start(DeviceRow(device="a", wave=1, before={"name": "comfort", "version": "1.1.0", "digest": PLAN.digest}))
    assert host.run() == {"a": "unchanged"}


def test_devices_wait_for_the_time_that_their_documents_name(host: Host) -> None:
    """A canary that waits holds no device up: all documents go out, and each device begins when it is time."""
    waiting = [{"state": "pending", "why": "waiting not before 2100-01-01 00:00 UTC"}]
    host.broker.answers = dict.fromkeys("abc", waiting)
    host.start(*rows("abc"), not_before=4_102_444_800)
    assert host.run() == dict.fromkeys("abc", "busy")
    assert {host.broker.desired(name).not_before for name in "abc"} == {4_102_444_800}


def test_a_rollout_that_failures_stopped_goes_on_once_more_may_fail(host: Host, tmp_path: Path) -> None:
    """`resume --max-failures` changes what the rollout began with, and its history says so."""
    host.broker.answers = {"a": [{"state": "failed", "why": "golden"}], **dict.fromkeys("bc", GOOD)}
    host.start(*rows("abc"), canaries=0)
    assert host.run()["a"] == "failed"
    assert host.file.read("r1").state == "stopped"
    inventory = tmp_path / "fleet.toml"
    inventory.write_text("".join(f'[[device]]\nname = "{name}"\naddress = "{name}"\n' for name in "abc"))
    given = ["rollout", "resume", "--inventory", str(inventory), "--sign", str(host.key), "--quiet"]
    given += ["--broker", "mqtt://127.0.0.1:1", "--state", str(host.file.path)]
    assert main([*given]) == 1, "it stops again: one has failed"
    assert host.file.read("r1").state == "stopped"
    assert main([*given, "--max-failures", "1"]) == 1
    assert host.results() == {"a": "failed", "b": "done", "c": "done"}
    assert host.file.read("r1").state == "finished"
    assert "resumed; 1 may fail, before 0" in [line["what"] for line in host.file.history("r1")]


@pytest.mark.parametrize(
    ("text", "found"), [("2100-01-01", 4_102_444_800), ("2100-01-01T06:30", 4_102_444_800 + 6 * 3600 + 30 * 60)]
)
def test_a_time_to_wait_for_is_read_as_utc(text: str, found: int) -> None:
    """4,102,444,800 s is the beginning of 2100: 130 years with 32 leap days."""
    assert _moment(text) == found


@pytest.mark.parametrize("text", ["2020-01-01", "tomorrow", "2100-01-01 06:30", "2100-13-01"])
def test_a_time_that_is_none_or_past_is_refused(text: str) -> None:
    """In words that name the form."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a time .* found"):
        _moment(text)
