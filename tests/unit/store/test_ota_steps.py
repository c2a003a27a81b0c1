"""A transfer over MQTT, step by step: the loop, its clock, the disk's thread and the disk are moved by hand."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from edge_runtime.errors import BundleError, CommandError, SignatureError, TransientError
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store import ota as module
from edge_runtime.store.ota import (
    ASK_AGAIN_S,
    MOST_OFFER_BYTES,
    MOST_ORDER_BYTES,
    PATIENCE_S,
    PROGRESS_S,
    TAKE_OVER_S,
    Ota,
)
from edge_runtime.store.ota_parts import Incoming, Offer
from edge_runtime.store.ota_transfer import CHUNK_BYTES
from edge_runtime.store.records import ListedBundle, Slot
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop, SteppedThread

BASE = "edge/room/ota/"
DIGEST = "0f" * 32
SIZE = 2 * CHUNK_BYTES + 100
OFFER: dict[str, Any] = {
    "transfer": "t1", "size": SIZE, "sha256": DIGEST, "sha512": "a9" * 64,
    "signature": "-----BEGIN SSH SIGNATURE-----\nx",
}  # fmt: skip
SLOT = Slot("comfort", "1.1.0", DIGEST, Path("x.onnx"), "probation")


@dataclass
class Link:
    """The device's end of the wire."""

    connected: bool = True
    published: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    handler: Callable[[list[Message]], None] | None = None

    def subscribe(self, filters: list[str], qos: int, handler: Callable[[list[Message]], None]) -> None:
        """As `Connection.subscribe`."""
        assert qos == 1
        self.filters, self.handler = filters, handler

    def unsubscribe(self, handler: Callable[[list[Message]], None]) -> None:
        """As `Connection.unsubscribe`."""
        assert handler == self.handler
        self.handler = None

    def publish(self, topic: str, payload: bytes, *, qos: int, outcome: object) -> bool:
        """As `Connection.publish`."""
        assert (qos, outcome) == (1, None)
        self.published.append((topic.removeprefix(BASE), msgspec.json.decode(payload)))
        return True


@dataclass
class Disk:
    """Stands in for `Incoming`: notes what is asked of it, and fails where a test says so."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    held: int = 0
    active: ListedBundle | None = None
    content: bytearray = field(default_factory=bytearray)

    def _note(self, what: str, *values: Any) -> None:
        self.asked.append((what, *values))
        if what in self.faults:
            raise self.faults[what]

    def examine(self, offer: Offer) -> None:
        """As `Incoming.examine`."""
        self._note("examine", offer.transfer)

    def serving(self, offer: Offer) -> ListedBundle | None:
        """As `Incoming.serving`."""
        self._note("serving", offer.transfer)
        return self.active

    def prepare(self, offer: Offer) -> int:
        """As `Incoming.prepare`."""
        self._note("prepare", offer.transfer)
        return self.held

    def append(self, offer: Offer, offset: int, data: bytes) -> None:
        """As `Incoming.append`."""
        self._note("append", offset, len(data))
        self.content[offset : offset + len(data)] = data

    def install(self, offer: Offer) -> Slot:
        """As `Incoming.install`."""
        self._note("install", offer.transfer)
        return SLOT

    def rollback(self, text: str, signature: str, token: str) -> Slot:
        """As `Incoming.rollback`."""
        self._note("rollback", text, signature, token)
        return SLOT


class File:
    """A server's file."""

    def __init__(self, faults: list[bool]) -> None:
        self.faults = faults
        self.read_at: list[tuple[int, int]] = []
        self.closed = 0

    def read(self, offset: int, count: int) -> bytes:
        """As `HttpFile.read`."""
        self.read_at.append((offset, count))
        if self.faults and self.faults.pop(0):
            raise TransientError("the server\nhangs")
        return b"f" * count

    def close(self) -> None:
        """As `HttpFile.close`."""
        self.closed += 1


class Rests:
    """Stands in for the event of the end: notes how long the thread rests."""

    def __init__(self) -> None:
        self.rests: list[float] = []
        self.is_ended = False

    def wait(self, seconds: float) -> bool:
        """As `Event.wait`."""
        self.rests.append(round(seconds, 6))
        return self.is_ended

    def set(self) -> None:
        """As `Event.set`."""
        self.is_ended = True


class Device:
    """One start of a device."""

    def __init__(self, *, rate: float = float("inf"), takes_offers: bool = True, connected: bool = True) -> None:
        self.loop, self.link, self.disk, self.counters = SteppedLoop(), Link(connected), Disk(), Counters()
        self.asks: list[float] = []
        more: dict[str, bool] = {} if takes_offers else {"takes_offers": False}  # it takes them by default
        self.ota = Ota(
            "room",
            cast("Connection", self.link),
            self.loop.as_loop,
            incoming=cast("Incoming", self.disk),
            rate=rate,
            counters=self.counters,
            on_ask=lambda: self.asks.append(self.loop.now),
            **more,
        )
        self.thread = cast("SteppedThread", self.ota._thread)
        if connected:
            self.ota.link_changed()

    @property
    def token(self) -> str:
        """Of this start."""
        return self.ota._token

    def hear(self, what: str, payload: bytes | dict[str, Any] = b"") -> Message:
        """One message from the broker."""
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        message = Message(f"{BASE}{what}".encode(), data, None)
        assert self.link.handler is not None
        self.link.handler([message])
        self.loop.settle()
        return message

    def offer(self, **changes: Any) -> None:
        """A good offer, unless it is changed."""
        self.hear("offer", OFFER | {"token": self.token} | changes)

    def work(self) -> None:
        """Let the thread and the loop do what they have to do now."""
        while self.thread.work():
            self.loop.advance(0)

    def begin(self, **changes: Any) -> None:
        """An offer, accepted, up to the first wish."""
        self.offer(**changes)
        self.work()

    def chunk(self, offset: int, count: int = CHUNK_BYTES, transfer: str = "t1") -> None:
        """Bytes from a sender, and what follows from them now."""
        self.hear(f"chunk/{transfer}/{offset}", b"c" * count)
        self.work()

    def heard(self) -> list[tuple[str, dict[str, Any]]]:
        """What it has reported since the last look."""
        answered, self.link.published[:] = [*self.link.published], []
        return answered

    def states(self) -> list[str]:
        """As `heard`: the states, and the offsets of wishes."""
        return [str(each.get("state", f"want {each.get('offset')}")) for _, each in self.heard()]

    def why(self) -> str:
        """Of the newest status."""
        return next(str(each.get("why")) for topic, each in reversed(self.link.published) if topic == "status")


@pytest.fixture(autouse=True)
def _stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BackgroundThread", SteppedThread)


@pytest.fixture
def device() -> Device:
    """Connected, with an empty disk."""
    return Device()


# -- messages ------------------------------------------------------------------------------------------------------


def test_it_subscribes_to_what_it_takes(device: Device) -> None:
    """A device that only follows its desired state takes no offers and no orders."""
    assert device.link.filters == [f"{BASE}{each}" for each in ("offer", "chunk/+/+", "rollback", "ask")]
    assert Device(takes_offers=False).link.filters == [f"{BASE}{each}" for each in ("chunk/+/+", "ask")]


def test_messages_of_others_are_left_to_them(device: Device) -> None:
    """Those below another topic, and unknown words below its own; each is only passed over, not the rest."""
    others = [b"edge/room/otter/offer", b"edge/hall/ota/ask", BASE.encode() + b"status", BASE.encode() + b"want"]
    messages = [Message(topic, b"", None) for topic in [*others, BASE.encode() + b"ask", BASE.encode() + b"ask"]]
    assert device.link.handler is not None
    device.link.handler(messages)
    assert [message.claimed for message in messages] == [False] * 4 + [True] * 2
    assert len(device.asks) == 2
    assert device.link.published == []


def test_after_its_end_messages_are_claimed_and_nothing_is_done(device: Device) -> None:
    """A broker that has them already sends them on; they begin nothing."""
    device.ota.end()
    assert device.thread.stopped
    assert device.hear("ask").claimed
    assert device.hear("offer", OFFER | {"token": device.token}).claimed
    assert (device.asks, device.link.published, device.thread.asked) == ([], [], type(device.thread.asked)())


def test_leaving_unsubscribes_and_ends(device: Device) -> None:
    """So that the broker keeps nothing for it."""
    device.ota.leave()
    assert device.link.handler is None
    assert device.thread.stopped


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"[]", b"\xff", b"[" * 60_000, b"{}", b"x" * (MOST_OFFER_BYTES + 1),
        msgspec.json.encode(OFFER | {"transfer": ""}), msgspec.json.encode(OFFER | {"transfer": "t" * 65}),
        msgspec.json.encode(OFFER | {"transfer": "a/b"}), msgspec.json.encode(OFFER | {"transfer": "ä"}),
        msgspec.json.encode(OFFER | {"transfer": "t\n"}), msgspec.json.encode(OFFER | {"mode": "root"}),
        b" " * (MOST_OFFER_BYTES + 1 - len(msgspec.json.encode(OFFER))) + msgspec.json.encode(OFFER),
    ],
)  # fmt: skip
def test_an_offer_that_is_none_is_counted_and_not_answered(device: Device, payload: bytes) -> None:
    """The name of a transfer is part of a topic, so it is letters and digits."""
    device.hear("offer", payload)
    assert device.counters.rejected["ota_malformed"] == 1
    assert device.link.published == []
    assert device.disk.asked == []


@pytest.mark.parametrize("transfer", ["t", "t" * 64])
def test_an_offer_of_the_longest_kind_is_one(device: Device, transfer: str) -> None:
    """A name of 1 to 64 characters, and 64 KiB in all."""
    padding = MOST_OFFER_BYTES - len(msgspec.json.encode(OFFER | {"transfer": transfer}))
    device.hear("offer", b" " * padding + msgspec.json.encode(OFFER | {"transfer": transfer}))
    assert device.heard() == [("status", {"transfer": transfer, "state": "greeting", "token": device.token})]
    device.work()
    assert device.disk.asked == []  # without the token of this start it begins nothing
    assert (MOST_OFFER_BYTES, MOST_ORDER_BYTES) == (65_536, 4096)
    assert device.counters.counts["ota_greeted"] == 1


def test_the_token_is_of_this_start() -> None:
    """Sixteen hex digits, never the same."""
    tokens = {Device().token for _ in range(8)}
    assert len(tokens) == 8
    assert {len(token) for token in tokens} == {16}


def test_greetings_are_bounded_and_counted(device: Device) -> None:
    """Twenty at once; the others are only counted, as greeted and as unanswered."""
    for _ in range(23):
        device.hear("offer", OFFER)
    assert len(device.heard()) == 20
    assert (device.counters.counts["ota_greeted"], device.counters.counts["ota_unanswered"]) == (23, 3)


# -- an offer ------------------------------------------------------------------------------------------------------


def test_a_good_offer_is_judged_and_then_asked_for(device: Device) -> None:
    """First its signatures, then the store, then the disk, and only then the first chunk."""
    device.offer()
    assert (device.heard(), device.disk.asked) == ([], [])
    device.work()
    assert [what for what, *_ in device.disk.asked] == ["examine", "serving", "prepare"]
    assert device.heard() == [
        ("status", {"transfer": "t1", "state": "receiving", "received": 0, "size": SIZE, "sha256": DIGEST,
                    "why": None}),
        ("want", {"transfer": "t1", "offset": 0, "bytes": CHUNK_BYTES, "sha256": DIGEST}),
    ]  # fmt: skip
    assert device.ota.flood.pending == {"offer": 0, "order": 0}


def test_a_bad_offer_is_refused_at_once(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Without the disk; the refusal is counted, and logged where it is answered."""
    device.offer(size=0)
    assert device.states() == ["refused"]
    assert [(each.levelname, each.message) for each in caplog.records] == [("WARNING", "bundle refused")]
    assert device.disk.asked == []
    assert device.counters.counts["ota_refused"] == 1
    while device.ota.flood.may_reply(device.loop.now):
        pass
    device.offer(size=0)
    assert (device.states(), len(caplog.records)) == ([], 1)


@pytest.mark.parametrize("place", ["examine", "serving"])
def test_an_offer_that_fails_its_checks_is_refused_and_remembered(device: Device, place: str) -> None:
    """The very same bytes are not checked again; others are."""
    device.disk.faults[place] = SignatureError("no key\nsigned it")
    device.begin()
    assert device.heard() == [("status", {"transfer": "t1", "state": "refused", "why": "no key; signed it"})]
    device.disk.asked.clear()
    device.begin()
    assert (device.disk.asked, device.counters.counts["ota_dropped"], device.heard()) == ([], 1, [])
    device.disk.faults.clear()
    device.begin(transfer="t2")
    assert device.states() == ["receiving", "want 0"]


def test_waiting_checks_are_bounded(device: Device) -> None:
    """Four offers; the fifth is dropped and counted, and after the checks there is room again."""
    device.disk.faults["examine"] = SignatureError("no")
    for number in range(5):
        device.offer(transfer=f"t{number}")
    assert len(device.thread.asked) == 4
    assert device.counters.counts["ota_dropped"] == 1
    device.work()
    assert device.states() == ["refused"] * 4
    device.offer(transfer="t9")
    assert len(device.thread.asked) == 1


def test_the_thread_rests_as_long_as_a_check_took(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a flood of checks takes half of one core; also after one that fails."""
    rests, ticks = Rests(), iter([10.0, 10.25, 20.0, 20.5])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    device.ota._ended = cast("threading.Event", rests)
    device.begin()
    assert rests.rests == [0.25]
    device.disk.faults["rollback"] = KeyError("a bug")
    device.hear("rollback", {"transfer": "r", "order": "o", "signature": "s"})
    device.work()
    assert rests.rests == [0.25, 0.5]
    device.ota.end()
    assert rests.is_ended


def test_what_runs_already_is_answered(device: Device) -> None:
    """With its name and version; asked for again by the same transfer, the answer is repeated without a check."""
    device.disk.active = ListedBundle("comfort", "1.1.0", DIGEST, "active")
    device.begin()
    expected = {
        "transfer": "t1", "state": "installed", "received": SIZE, "size": SIZE, "sha256": DIGEST,
        "why": "it is active already", "model": "comfort", "version": "1.1.0", "digest": DIGEST,
    }  # fmt: skip
    assert device.heard() == [("status", expected)]
    assert device.ota.flood.pending["offer"] == 0
    device.disk.asked.clear()
    device.begin()
    assert device.heard() == [("status", expected)]
    assert device.disk.asked == []
    device.begin(transfer="t2")
    assert [what for what, *_ in device.disk.asked] == ["examine", "serving"]


def test_what_runs_already_does_not_hide_the_status_of_a_transfer(device: Device) -> None:
    """Two offers were judged together: one began, the other one is active; a reconnection repeats the first."""
    device.offer()
    device.offer(transfer="t2", sha256="1e" * 32)
    device.thread.work(1)
    device.disk.active = ListedBundle("comfort", "1.1.0", "1e" * 32, "active")
    device.work()
    device.heard()
    device.link.connected = False
    device.ota.link_changed()
    device.link.connected = True
    device.ota.link_changed()
    assert device.heard()[0][1]["transfer"] == "t1"


def test_an_offer_whose_check_ends_after_another_began_is_told_to_wait(device: Device) -> None:
    """`busy` says that the reason passes."""
    device.offer()
    device.offer(transfer="t2", sha256="1e" * 32)
    device.work()
    refused = [each for _, each in device.heard() if each.get("state") == "refused"]
    assert refused == [
        {"transfer": "t2", "state": "refused", "why": "another transfer has begun: wait for it to end", "busy": True}
    ]


def test_an_offer_whose_check_ends_after_the_stop_begins_nothing(device: Device) -> None:
    """The thread ends its work; nothing is prepared."""
    device.offer()
    device.ota.end()
    device.work()
    assert [what for what, *_ in device.disk.asked] == ["examine", "serving"]


def test_another_bundle_waits_for_the_one_under_way(device: Device) -> None:
    """It hears how far that one is."""
    device.begin()
    device.chunk(0)
    device.heard()
    device.offer(transfer="t2", sha256="1e" * 32)
    percent = 100 * CHUNK_BYTES // SIZE
    assert percent == 49
    assert "49 % of it are here" in device.why()
    assert device.link.published[-1][1]["busy"] is True
    assert device.counters.counts["ota_refused"] == 1


def test_the_same_sender_asks_how_far_it_is(device: Device) -> None:
    """Its offer again is answered with the progress, and begins nothing."""
    device.begin()
    device.chunk(0)
    device.heard()
    device.offer()
    assert [each["received"] for _, each in device.heard()] == [CHUNK_BYTES]


def test_another_sender_of_the_same_bundle_takes_over_a_silent_one(device: Device) -> None:
    """After ten seconds without a chunk, not before; while the disk works it is asked to wait."""
    assert TAKE_OVER_S == 10.0
    device.begin()
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)  # not yet written
    device.offer(transfer="t2")
    assert "being written" in device.why()
    assert device.link.published[-1][1]["busy"] is True
    device.work()
    device.loop.advance(9.9)
    device.offer(transfer="t2")
    assert "another sender is bringing this very bundle" in device.why()
    assert device.link.published[-1][1]["busy"] is True
    device.loop.advance(0.1)
    device.heard()
    device.offer(transfer="t2")
    assert device.heard() == [("want", {"transfer": "t2", "offset": CHUNK_BYTES, "bytes": CHUNK_BYTES,
                                        "sha256": DIGEST})]  # fmt: skip
    device.chunk(CHUNK_BYTES, transfer="t1")
    assert device.counters.counts["ota_unasked"] == 1
    device.chunk(CHUNK_BYTES, transfer="t2")
    assert device.states() == ["receiving", "want 65536"]


def test_a_sender_that_has_sent_nothing_is_replaced_at_once(device: Device) -> None:
    """Anyone can replay an offer; only a chunk shows a sender."""
    device.begin()
    device.heard()
    device.offer(transfer="t2")
    assert device.states() == ["want 0"]


# -- chunks --------------------------------------------------------------------------------------------------------


def test_the_whole_file_is_written_in_order_and_installed(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Each chunk is asked for once; the last one is what is left; then the result, and nothing is under way."""
    caplog.set_level("INFO")
    device.begin()
    for offset, count in ((0, CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES), (2 * CHUNK_BYTES, 100)):
        device.chunk(offset, count)
    assert [each for each in device.disk.asked if each[0] in {"append", "install"}] == [
        ("append", 0, CHUNK_BYTES), ("append", CHUNK_BYTES, CHUNK_BYTES), ("append", 2 * CHUNK_BYTES, 100),
        ("install", "t1"),
    ]  # fmt: skip
    last = device.heard()[-1]
    assert last == ("status", {
        "transfer": "t1", "state": "installed", "received": SIZE, "size": SIZE, "sha256": DIGEST,
        "why": "it is active, on probation", "model": "comfort", "version": "1.1.0", "digest": DIGEST,
    })  # fmt: skip
    assert device.counters.counts["ota_installed"] == 1
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("INFO", "bundle offered"), ("INFO", "bundle installed"),
    ]  # fmt: skip
    device.loop.advance(1000.0)
    assert device.heard() == []
    device.chunk(0)
    assert device.counters.counts["ota_unasked"] == 1
    device.begin(transfer="t2")
    assert device.states() == ["receiving", "want 0"]


def test_what_was_not_asked_for_is_counted_and_not_written(device: Device) -> None:
    """Without a transfer, twice, at another place, too short, too long, of another transfer."""
    device.chunk(0)
    device.begin()
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)  # the first is being written
    device.work()
    for topic, count in (
        ("t1/0", CHUNK_BYTES), (f"t1/{CHUNK_BYTES}", CHUNK_BYTES - 1), (f"t1/{CHUNK_BYTES}", CHUNK_BYTES + 1),
        (f"t2/{CHUNK_BYTES}", CHUNK_BYTES), (f"t1/{CHUNK_BYTES}/x", CHUNK_BYTES), ("t1", CHUNK_BYTES),
    ):  # fmt: skip
        device.hear(f"chunk/{topic}", b"c" * count)
    device.work()
    assert device.counters.counts["ota_unasked"] == 8
    assert [each for each in device.disk.asked if each[0] == "append"] == [("append", 0, CHUNK_BYTES)]


def test_a_part_that_is_here_is_continued(device: Device) -> None:
    """And one that is whole is installed without a question."""
    device.disk.held = CHUNK_BYTES
    device.begin()
    assert device.states() == ["receiving", f"want {CHUNK_BYTES}"]
    whole = Device()
    whole.disk.held = SIZE
    whole.begin()
    assert whole.states() == ["receiving", "installing", "installed"]


def test_the_rate_bounds_the_next_question(device: Device) -> None:
    """At half a chunk a second the next is asked for two seconds after the last one came."""
    device = Device(rate=CHUNK_BYTES / 2)
    device.begin()
    device.loop.advance(1.0)
    device.heard()
    device.chunk(0)
    assert device.states() == []
    device.loop.advance(1.9)
    assert device.states() == []
    device.loop.advance(0.2)
    assert device.states() == [f"want {CHUNK_BYTES}"]


def test_progress_is_published_every_two_seconds(device: Device) -> None:
    """Not with each chunk: a fast transfer would be as much again."""
    assert PROGRESS_S == 2.0
    device.begin()
    device.loop.advance(1.9)
    device.heard()
    device.chunk(0)
    assert device.states() == [f"want {CHUNK_BYTES}"]
    device.loop.advance(0.1)
    device.chunk(CHUNK_BYTES)
    assert device.states() == ["receiving", f"want {2 * CHUNK_BYTES}"]


def test_a_lost_chunk_is_asked_for_every_five_seconds(device: Device) -> None:
    """Until the sender has been silent for two minutes; then the transfer is given up, and another may begin."""
    assert (ASK_AGAIN_S, PATIENCE_S) == (5.0, 120.0)
    device.begin()
    device.heard()
    device.loop.advance(4.9)
    assert device.states() == []
    device.loop.advance(0.2)
    assert device.states() == ["want 0"]
    device.loop.advance(114.9)
    assert device.states() == ["want 0"] * 23
    device.loop.advance(5.0)
    assert "silent for 120 s" in device.why()
    assert device.states() == ["failed"]
    assert device.counters.counts["ota_failed"] == 1
    device.loop.advance(1000.0)
    assert device.states() == []
    device.begin(transfer="t2")
    assert device.states() == ["receiving", "want 0"]


def test_a_chunk_ends_the_wait_for_it(device: Device) -> None:
    """While it is written nothing is asked for, and the patience counts from it."""
    device.begin()
    device.loop.advance(4.0)
    device.heard()
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)
    device.loop.advance(60.0)
    assert device.states() == []
    device.work()
    assert device.states() == ["receiving", f"want {CHUNK_BYTES}"]
    device.loop.advance(60.0)
    assert "failed" not in device.states()


def test_a_reconnection_repeats_the_status_and_the_question(device: Device) -> None:
    """Once for each connection; a connection that was there, and one that is gone, repeat nothing."""
    device.ota.link_changed()
    device.begin()
    device.heard()
    device.ota.link_changed()
    assert device.states() == []
    device.link.connected = False
    for _ in range(2):
        device.ota.link_changed()
    assert device.states() == []
    device.link.connected = True
    device.ota.link_changed()
    assert device.states() == ["receiving", "want 0"]
    device.loop.advance(4.9)
    assert device.states() == []  # one timer
    device.loop.advance(0.2)
    assert device.states() == ["want 0"]


def test_a_reconnection_while_the_disk_works_repeats_only_the_status(device: Device) -> None:
    """There is no question to repeat; without any transfer there is nothing at all."""
    device.begin()
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)
    device.heard()
    for each in (device, Device()):
        each.link.connected = False
        each.ota.link_changed()
        each.link.connected = True
        each.ota.link_changed()
    assert device.states() == ["receiving"]
    device.ota.end()
    device.link.connected = False
    device.ota.link_changed()
    device.link.connected = True
    device.ota.link_changed()
    assert device.states() == []


def test_what_was_asked_before_the_first_connection_is_asked_again() -> None:
    """A start goes on with its desired state before the link is up."""
    device = Device(connected=False)
    assert device.ota.fetch(Offer(**OFFER))
    device.work()
    device.heard()
    device.link.connected = True
    device.ota.link_changed()
    assert device.states() == ["receiving", "want 0"]


def test_a_bug_in_a_check_does_not_let_a_transfer_go_on_that_it_ended(device: Device) -> None:
    """A chunk of the ended one was being written: nothing is asked for after it."""
    device.begin()
    device.disk.faults["rollback"] = KeyError("a bug")
    device.hear("rollback", ORDER)
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)
    device.heard()
    device.work()
    assert device.states() == ["failed"]
    whole = Device()
    whole.disk.held = SIZE - 100
    whole.begin()
    whole.disk.faults["rollback"] = KeyError("a bug")
    whole.hear("rollback", ORDER)
    whole.hear(f"chunk/t1/{SIZE - 100}", b"c" * 100)
    whole.work()
    assert ("install", "t1") not in whole.disk.asked  # it was reported as failed


def test_a_stop_ends_every_timer(device: Device) -> None:
    """Neither a question nor a pause goes on."""
    device.begin()
    device.heard()
    device.ota.end()
    device.loop.advance(1000.0)
    assert device.states() == []
    slow = Device(rate=1.0)
    slow.begin()
    slow.chunk(0)
    slow.heard()
    slow.ota.end()
    slow.loop.advance(1e6)
    assert slow.states() == []


def test_what_the_disk_finishes_after_the_stop_asks_for_nothing(device: Device) -> None:
    """Neither the next chunk nor the install."""
    device.offer()
    device.thread.work(1)
    device.loop.settle()
    device.ota.end()
    device.work()
    assert "want 0" not in device.states()


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["prepare", "append", "install"])
def test_a_failure_ends_the_transfer_with_its_reason(
    device: Device, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """On one line; the next transfer may begin. An order that waits meanwhile keeps its place in the queue."""
    device.ota.flood.pending["order"] = 3
    device.disk.held = SIZE - 100
    device.disk.faults[place] = CommandError("the disk\nis full")
    device.begin()
    device.chunk(SIZE - 100, 100)
    found = [each for _, each in device.heard() if each.get("state") == "failed"]
    assert [each["why"] for each in found] == ["the disk; is full"]
    assert [(each.levelname, each.message, each.exc_info) for each in caplog.records if each.levelname == "ERROR"] == [
        ("ERROR", "bundle failed", None)
    ]
    assert device.ota.flood.pending["order"] == 3
    device.disk.faults.clear()
    device.disk.held = 0
    device.begin(transfer="t2")
    assert device.states() == ["receiving", "want 0"]


def test_a_bug_ends_the_transfer_and_not_the_daemon(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Its traceback is in the log, and the places of the flood guard are free again."""
    device.disk.faults["prepare"] = KeyError("a bug")
    device.ota.flood.pending["order"] = 3
    device.begin()
    assert device.heard()[-1][1]["why"] == "a fault of the runtime, which its log describes"
    assert any(each.exc_info for each in caplog.records)
    assert device.ota.flood.pending == {"offer": 0, "order": 0}


def test_a_bug_in_a_check_without_a_transfer_ends_nothing(device: Device) -> None:
    """There is no status to publish; the next offer is judged."""
    device.disk.faults["examine"] = KeyError("a bug")
    device.begin()
    assert device.heard() == []
    device.disk.faults.clear()
    device.begin()
    assert device.states() == ["receiving", "want 0"]


def test_a_failure_after_the_stop_is_not_published(device: Device) -> None:
    """The part stays, and the next start goes on with it: that is no failed transfer."""
    device.begin()
    device.hear("chunk/t1/0", b"c" * CHUNK_BYTES)
    device.heard()
    device.disk.faults["append"] = CommandError("full")
    device.ota.end()
    device.work()
    assert (device.states(), device.counters.counts["ota_failed"]) == ([], 0)


def test_the_work_has_a_bound(device: Device) -> None:
    """Ten minutes, since an install tries the bundle in a child."""
    device.begin()
    assert {most for _, most in device.thread.bounds} == {600.0}


# -- orders --------------------------------------------------------------------------------------------------------

ORDER = {"transfer": "r", "order": "text", "signature": "sig"}


def test_a_question_for_the_token_is_greeted(device: Device) -> None:
    """An order needs it; at most 64 characters of the sender's name come back."""
    device.hear("rollback", {"transfer": "r" * 100})
    device.work()
    assert device.heard() == [("status", {"transfer": "r" * 64, "state": "greeting", "token": device.token})]
    assert device.disk.asked == []


def test_an_order_is_carried_out_in_the_thread(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """With the token of this start; the answer names the bundle, and is counted and logged."""
    caplog.set_level("INFO")
    device.hear("rollback", ORDER)
    assert device.disk.asked == []
    device.work()
    assert device.disk.asked == [("rollback", "text", "sig", device.token)]
    assert device.heard() == [("status", {
        "transfer": "r", "state": "rolled back", "why": "it is active, on probation", "model": "comfort",
        "version": "1.1.0", "digest": DIGEST,
    })]  # fmt: skip
    assert device.counters.counts["ota_rolled_back"] == 1
    assert [(each.levelname, each.message) for each in caplog.records] == [("INFO", "order to go back")]
    assert device.ota.flood.pending["order"] == 0


def test_an_order_that_is_refused_is_answered(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """With the reason on one line; where the answers are bounded, the log lines are too."""
    device.disk.faults["rollback"] = SignatureError("no\nkey")
    device.hear("rollback", ORDER)
    device.work()
    assert device.heard() == [("status", {"transfer": "r", "state": "refused", "why": "no; key"})]
    assert (device.counters.counts["ota_refused"], device.counters.counts["ota_rolled_back"]) == (1, 0)
    assert [(each.levelname, each.message) for each in caplog.records] == [("WARNING", "order to go back")]
    while device.ota.flood.may_reply(device.loop.now):
        pass
    device.hear("rollback", ORDER | {"order": "other"})
    device.work()
    assert len(caplog.records) == 1


def test_a_done_order_is_answered_also_with_an_empty_budget(device: Device) -> None:
    """A sender has to know that the model has changed; a refusal may go unanswered."""
    while device.ota.flood.may_reply(device.loop.now):
        pass
    device.hear("rollback", ORDER)
    device.work()
    assert device.states() == ["rolled back"]
    device.disk.faults["rollback"] = SignatureError("no")
    device.hear("rollback", ORDER | {"order": "other"})
    device.work()
    assert device.states() == []
    assert device.counters.counts["ota_unanswered"] == 1


def test_orders_that_wait_are_bounded(device: Device) -> None:
    """Four; the fifth is dropped and counted."""
    for number in range(5):
        device.hear("rollback", ORDER | {"order": str(number)})
    assert len(device.thread.asked) == 4
    assert device.counters.counts["ota_dropped"] == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"[]", b"{}", b"\xff", json.dumps(ORDER | {"order": "x" * 4097}).encode(),
        json.dumps(ORDER).encode() + b" " * 65_536 + b"x", json.dumps(ORDER | {"pad": "x" * 65_536}).encode(),
    ],
)  # fmt: skip
def test_an_order_that_is_none_is_counted(device: Device, payload: bytes) -> None:
    """Unreadable, or longer than an order can be."""
    if payload.endswith(b" x"):
        payload = payload[:-1]
    device.hear("rollback", payload)
    device.work()
    assert device.disk.asked == [] or payload.endswith(b" ")
    assert device.counters.rejected["ota_malformed"] == (0 if payload.endswith(b" ") else 1)


def test_the_longest_order_is_one(device: Device) -> None:
    """4096 characters."""
    device.hear("rollback", ORDER | {"order": "x" * 4096})
    assert len(device.thread.asked) == 1


# -- from a server -------------------------------------------------------------------------------------------------


def _fetched(device: Device, monkeypatch: pytest.MonkeyPatch, *faults: bool, size: int = SIZE) -> File:
    file = File([*faults])
    monkeypatch.setattr(module, "http_file", lambda url, _size: file if url == "http://x/y" else None)
    assert device.ota.fetch(Offer(**(OFFER | {"size": size})), "http://x/y")
    for _ in range(20):
        device.work()
        device.loop.advance(0.01)
    return file


def test_a_bundle_is_read_from_a_server(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk after chunk, and the file is closed at its end; nothing is asked of a sender."""
    file = _fetched(device, monkeypatch)
    assert file.read_at == [(0, CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES), (2 * CHUNK_BYTES, 100)]
    assert file.closed == 1
    assert device.states() == ["receiving", "installing", "installed"]
    assert bytes(device.disk.content) == b"f" * SIZE


def test_a_server_that_fails_once_is_read_on(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where it broke; a failure after more bytes is a first one again."""
    file = _fetched(device, monkeypatch, True, False, True, False, True)
    assert [offset for offset, _ in file.read_at] == [0, 0, CHUNK_BYTES, CHUNK_BYTES, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert device.counters.counts["ota_http_failed"] == 3
    assert device.states() == ["receiving", "installing", "installed"]


def test_a_server_that_fails_twice_at_one_place_is_left(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is asked of a depot, whose patience begins then."""
    _fetched(device, monkeypatch, False, True, True)
    assert device.states() == ["receiving", f"want {CHUNK_BYTES}"]
    assert device.counters.counts["ota_http_failed"] == 2
    device.chunk(CHUNK_BYTES)
    device.chunk(2 * CHUNK_BYTES, 100)
    assert device.states()[-1] == "installed"


def test_a_long_attempt_of_a_server_does_not_count_for_the_depot(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours with a slow server the depot has its two minutes."""
    file = File([True, True])
    monkeypatch.setattr(module, "http_file", lambda _url, _size: file)
    device.ota.fetch(Offer(**OFFER), "http://x/y")
    for _ in range(3):
        device.loop.advance(500.0)
        device.thread.work(1)
        device.loop.advance(0)
    device.work()
    assert device.states() == ["receiving", "want 0"]


def test_only_one_transfer_is_fetched(device: Device) -> None:
    """False while another is in progress, and after the stop; without a URL it is asked of a depot."""
    assert device.ota.fetch(Offer(**OFFER))
    device.work()
    assert device.states() == ["receiving", "want 0"]
    assert not device.ota.fetch(Offer(**OFFER))
    other = Device()
    other.ota.end()
    assert not other.ota.fetch(Offer(**OFFER))


def test_a_listener_gets_every_state(device: Device) -> None:
    """With what is held; a failure is final where it is the bundle's own."""
    heard: list[tuple[str, int, str | None, bool]] = []

    def listen(offer: Offer, state: str, held: int, why: str | None, *, is_final: bool) -> None:
        assert offer.sha256 == DIGEST
        heard.append((state, held, why, is_final))

    device.ota.on_transfer = listen
    device.disk.held = SIZE
    device.begin()
    assert heard == [
        ("receiving", SIZE, None, False), ("installing", SIZE, None, False),
        ("installed", SIZE, "it is active, on probation", False),
    ]  # fmt: skip
    for error, is_final in ((BundleError("bad"), True), (CommandError("full"), False)):
        heard.clear()
        device.disk.faults["install"] = error
        device.begin(transfer=f"t{is_final}")
        assert heard[-1] == ("failed", SIZE, str(error), is_final)
