"""Every reason to refuse a reading leaves a line that a newcomer understands, and an example in health."""

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from edge_runtime.bundle.manifest import Channel
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.contract import Contract
from edge_runtime.stream.framing import CobsFramer, LineFramer
from edge_runtime.stream.rejections import Rejections, shortened
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from tests.support.tables import table

CHANNELS = ("temperature", "humidity")


class Rig:
    """The report of one source, with a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.counters = Counters()
        self.report = Rejections("climate", self.counters, clock=lambda: self.now, wall=lambda: 1764242344.0)

    def decode(self, *frames: bytes, kind: str = "json", **keys: Any) -> dict[str, dict[str, str]]:
        """What stands in health after some frames came to a topic."""
        make_decoder(kind, CHANNELS, **keys).decode(frames, self.counters)
        self.report.report(frames, lambda _: "sensors/office")
        return self.counters.last_rejected


@pytest.fixture
def rig() -> Rig:
    """A report."""
    return Rig()


def test_a_misnamed_member_is_named_with_the_one_that_came(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The line holds the source, the topic, what was expected, what was found, and what to do."""
    rig.decode(b'{"Temperature": 20, "Humidity": 50}')
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        'source "climate": sensors/office: no `temperature`, `humidity`, found `Temperature`, `Humidity`: '
        "rename it at the sender, send all channels together, or set `repair`"
    )


def test_health_holds_the_last_one_of_each_reason(rig: Rig) -> None:
    """Time, place, explanation and a sample of at most 200 characters."""
    found = rig.decode(b'{"a": 1}', b'{"b": "' + b"x" * 500 + b'"}', b"{")
    assert set(found) == {"missing_channel", "malformed"}
    last = found["missing_channel"]
    assert set(last) == {"time", "where", "why", "sample"}
    assert last["time"] == "2025-11-27T11:19:04Z"
    assert last["where"] == "sensors/office"
    assert last["why"] == "no `temperature`, `humidity`, found `b`"
    assert last["sample"].startswith('{"b": "xxx')
    assert len(last["sample"]) <= 200


def test_a_flood_of_one_reason_is_a_line_a_minute_with_its_count(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The first one at once; the next after a minute, with the number of those since."""
    for _ in range(500):
        rig.decode(b"{", b"}")
    assert len(caplog.records) == 1
    rig.decode(b'{"temperature": "warm"}')
    assert len(caplog.records) == 2, "another reason has a line of its own"
    rig.now += 60.0
    rig.decode(b"{")
    assert len(caplog.records) == 3
    counts = [record.__dict__["fields"]["count"] for record in caplog.records]
    assert counts == [2, 1, 999]
    assert rig.counters.rejected == {"malformed": 1001, "wrong_type": 1}


@pytest.mark.parametrize(
    ("kind", "frame", "keys", "reason", "why"),
    [
        ("json", b"{", {}, "malformed", "expected an object in JSON, found none (Input data was truncated)"),
        ("json", b"17", {}, "malformed", "expected an object of channels, found a number"),
        ("json", b"[]", {}, "malformed", "expected readings, found an empty array"),
        ("json", b"\xff\xfe", {}, "noise", "expected text, found bytes that are none"),
        ("json", b'{"temperature": NaN}', {}, "not_finite", "expected finite numbers, found NaN, Infinity"),
        ("json", b'{"temperature": 1e99}', {}, "not_finite", "expected finite numbers that float32 can hold"),
        ("json", b'{"temperature": "warm"}', {}, "wrong_type", "`temperature`: expected a number, found text"),
        (
            "json",
            b'{"temperature": 1, "room": "a/b"}',
            {"key_field": "room"},
            "bad_key",
            "level of a topic, found 'a/b'",
        ),
        ("json", b'{"temperature": 1, "time": "soon"}', {}, "bad_time", "expected a time such as 2026-"),
        ("csv", b"1,2,3", {}, "malformed", "expected 2 columns, found 3"),
        ("csv", b"1,warm", {}, "wrong_type", "expected a number, found 'warm'"),
        ("csv", b"1,inf", {}, "not_finite", "expected a finite number, found 'inf'"),
        ("csv", b"\x00\x01", {}, "noise", "expected text, found bytes that are none"),
        ("csv", b",", {}, "missing_channel", "no `temperature`, `humidity`"),
        ("raw", b"123", {"layout": ("int16", "int16")}, "malformed", "expected frames of 4 bytes, found one of 3"),
        ("msgpack", b"\xc1", {}, "malformed", "expected a map of channels in MessagePack, found 1 bytes"),
        ("msgpack", b"\x81\xa1t\x01", {}, "missing_channel", "no `temperature`, `humidity`, found `t`"),
    ],
)
def test_every_reason_says_what_was_expected_and_found(
    rig: Rig, kind: str, frame: bytes, keys: dict[str, Any], reason: str, why: str
) -> None:
    """Whatever the format, the explanation is more than the word that is counted."""
    assert why in rig.decode(frame, kind=kind, **keys)[reason]["why"]


def test_framing_explains_what_it_refuses() -> None:
    """Too long, no line end that is known, no checksum: each with a sample."""
    counters = Counters()
    report = Rejections("imu", counters)
    lines = LineFramer(16, counters)
    lines.feed(b"\n" + b"x" * 40 + b"\n")
    lines.feed(b"1,2\r3,4\r5,6\r")
    cobs = CobsFramer(64, counters)
    cobs.feed(b"\0\x02x\x01\0\x04ab\0")
    report.report((), lambda _: "/dev/ttyUSB0")
    found = counters.last_rejected
    assert found["too_long"]["why"].startswith("expected at most max_frame_bytes = 16 bytes")
    assert found["too_long"]["sample"] == "x" * 40
    assert found["wrong_line_end"]["why"].endswith('found a carriage return alone: set line_end = "cr" or "any"')
    assert found["wrong_line_end"]["sample"] == "1,2\\r3,4\\r5,6\\r"
    assert {"bad_checksum", "malformed"} <= set(found)
    assert all(last["where"] == "/dev/ttyUSB0" for last in found.values())


def test_a_contract_explains_what_a_model_refuses() -> None:
    """Out of range and partly missing: the channel, the range, the value."""
    import numpy as np  # noqa: PLC0415

    contract = Contract((Channel(name="temperature", range=(-40.0, 85.0)), Channel(name="humidity")))
    values = np.array([[850.0, 1.0], [1.0, np.nan], [1.0, 2.0], [900.0, 2.0]], np.float32)
    good = contract.check(values, [None] * 4)
    assert good is not None
    assert good.tolist() == [False, False, True, False]
    explained = {r: contract.explain(r, values[row]) for r, (row, _) in contract.refusals.items()}
    assert explained == {
        "out_of_range": "`temperature`: expected -40 to 85, found 900",
        "missing_channel": "no `humidity`",
    }
    assert contract.refusals["out_of_range"].number == 2


class _Line:
    """A connection that hands over what a test gives it."""

    ready, state = True, "connected"

    def subscribe(self, _filters: object, _qos: int, handler: Any, **_: object) -> None:
        """Keep the handler."""
        self.deliver = handler


def test_what_a_model_refuses_is_reported_with_its_topic_and_members(caplog: pytest.LogCaptureFixture) -> None:
    """A reading that lacks one of two channels comes to the model; the line still names topic, expected and found."""
    line, counters, batches = _Line(), Counters(), list[Batch]()
    config = table(MqttSourceTable, name="climate", topics=["s/{key}"])
    MqttSource(config, CHANNELS, None, connection=cast("Connection", line), sink=batches.append, counters=counters)
    payload = b'{"Temperature": 20, "humidity": 50}'
    line.deliver([Message(b"s/office", payload, Receipt(lambda: None))])
    (batch,) = batches
    assert batch.refuse is not None
    batch.refuse(0, "missing_channel", "no `temperature`", 1)
    assert "s/office: no `temperature`, found `Temperature`: rename it" in caplog.records[0].getMessage()
    assert counters.last_rejected["missing_channel"]["sample"] == payload.decode()


def test_no_reading_is_refused_by_a_bare_count() -> None:
    """No stage of the way in counts a rejection without a note of it, so that none can be silent."""
    stream = Path(__file__).resolve().parents[3] / "edge_runtime" / "stream"
    reporting = {"contract.py", "frame_contract.py", "replay.py", "pipeline.py"}
    bare = [
        f"{path.name}: {line.strip()}"
        for path in sorted(stream.rglob("*.py"))
        for line in path.read_text().splitlines()
        if "rejected[" in line and "+=" in line and path.name not in reporting
    ]
    assert bare == []


def test_the_first_frame_is_shown_as_every_other(rig: Rig) -> None:
    """And where a frame is not at hand any more, what was kept of it."""
    assert rig.decode(b"{")["malformed"]["sample"] == "{"
    rig.counters.reject("stale", frame=2, sample=b"kept")
    rig.report.report((b"one", b"two"), lambda _: "s/x")
    assert rig.counters.last_rejected["stale"]["sample"] == "kept"
    assert rig.counters.last_rejected["stale"]["where"] == "s/x"


def test_a_reason_without_an_explanation_is_its_own(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The word with blanks, and what to do; members of the frame are named only where a channel is missing."""
    rig.report.refuse("out_of_range", "", where="s/x", frame=b'{"t": 1}')
    assert caplog.records[-1].getMessage() == (
        'source "climate": s/x: out of range: look at the sensor, its unit and the range in the bundle, or set `repair`'
    )
    assert caplog.records[-1].__dict__["fields"]["count"] == 1
    rig.report.refuse("another_word", "", where="s/x", frame=b"")
    assert caplog.records[-1].getMessage() == 'source "climate": s/x: another word'


def test_a_message_that_says_what_to_set_needs_no_remedy(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Two would be one too many."""
    rig.report.refuse("bad_time", 'expected this, found that: set time_unit = "ms"', where="s", frame=b"")
    assert caplog.records[-1].getMessage().endswith('found that: set time_unit = "ms"')


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (b'{"a1": 1, "b2": 2}', ", found `a1`, `b2`"),
        (b'{"v": 1, "w": 1, "x": 1, "y": 1, "z": 1}', ", found `v`, `w`, `x`, `y`, `z`"),
        (b'{"u": 1, "v": 1, "w": 1, "x": 1, "y": 1, "z": 1}', ", found `u`, `v`, `w`, `x`, `y`, …"),
        (b'{"v": 1, "w": 1, "x": 1, "y": 1, "z": 1, "Humidity": 1}', ", found `Humidity`"),
        (b'{"temperature": 1, "v": 1}', ", found `temperature`, `v`"),
        (b'[{"v": 1}, {"w": 1}]', ", found `v`"),
        (b"{}", ""),
        (b"[]", ""),
        (b"[1]", ""),
        (b"17", ""),
        (b"\xc1", ""),
        (b"\x81\xa1v\x01", ", found `v`"),
        ('{"v": 1}', ""),
    ],
)
def test_the_members_of_a_frame_that_lacks_channels_are_named(rig: Rig, frame: Any, found: str) -> None:
    """The nearest to what is missing, else the first five; nothing where a frame has none, or is a line of text."""
    rig.report.refuse("missing_channel", "no `temperature`, `humidity`", where="s", frame=frame)
    why = rig.counters.last_rejected["missing_channel"]["why"]
    assert why == f"no `temperature`, `humidity`{found}"


def test_what_was_found_is_said_once(rig: Rig) -> None:
    """A codec that says it itself is left alone."""
    rig.report.refuse("missing_channel", "no `t`, found `u`", where="s", frame=b'{"v": 1}')
    assert rig.counters.last_rejected["missing_channel"]["why"] == "no `t`, found `u`"


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (b"x" * 200, "x" * 200),
        (b"x" * 201, "x" * 199 + "…"),
        ("y" * 201, "y" * 199 + "…"),
        (b"1,2\n\x00\xff", "1,2\\n\\x00\\xff"),
        ("grün\t".encode(), "grün\\t"),
        ("\U0001f321".encode() * 200, "\U0001f321" * 200),
        ("\U0001f321".encode() * 201, "\U0001f321" * 199 + "…"),
        ("\U0001f321".encode() * 500, "\U0001f321" * 199 + "…"),
    ],
)
def test_a_sample_is_text_of_at_most_200_characters(frame: bytes | str, shown: str) -> None:
    """What cannot be printed is written out, and what is cut off says so, however many bytes a character has."""
    assert shortened(frame) == shown
