"""Following a desired state, step by step: documents, the disk, the transfer and the clock are moved by hand."""

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from edge_runtime.errors import BundleError, CommandError, EdgeError, SignatureError
from edge_runtime.fleet.over_mqtt import sign
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store import desired as module
from edge_runtime.store.desired import CHECK_S, LOOK_S, RETRY_S, DesiredFile, DesiredState
from edge_runtime.store.desired_document import (
    DESIRED_NAMESPACE,
    MOST_BYTES,
    TAKEN_BACK,
    Desired,
    Envelope,
    Report,
    report,
)
from edge_runtime.store.install import Policy
from edge_runtime.store.ota import Ota
from edge_runtime.store.ota_parts import Offer
from edge_runtime.store.store import ModelStore
from edge_runtime.system.counters import Counters
from tests.support import builders
from tests.support.stepped import SteppedLoop, SteppedThread

Make = Callable[..., Path]
DAY = 86_400
NOON = 20_000 * DAY + 12 * 3600
DIGEST = "0f" * 32


def _desired(serial: int = 5, **changes: Any) -> Desired:
    found: dict[str, Any] = {
        "device": "room", "rollout": f"r{serial}", "serial": serial, "model": "comfort", "version": "1.1.0",
        "digest": DIGEST, "size": 1000, "files": {".sig": "s"},
    }  # fmt: skip
    return Desired(**(found | changes))


# -- the disk's side -----------------------------------------------------------------------------------------------


class _Store:
    """A device's store and its file, with one key."""

    def __init__(self, store: ModelStore, keys: builders.Signer, **policy: Any) -> None:
        self.store, self.keys = store, keys
        self.now = float(NOON)
        settled: dict[str, Any] = {"allowed_signers": keys.allowed, "device": "room"}
        self.policy = Policy(**(settled | policy))
        self.file = DesiredFile(store, self.policy, lambda: self.now)

    def payload(
        self, *keys: builders.Signer, namespace: str = DESIRED_NAMESPACE, text: str = "", **changes: Any
    ) -> bytes:
        """A signed document."""
        data = text.encode() or msgspec.json.encode(_desired(**changes))
        signed = [sign(each.key, data, namespace=namespace) for each in keys or (self.keys,)]
        return msgspec.json.encode(
            Envelope(document=data.decode(), signature=signed[0], signature2=signed[1] if len(signed) > 1 else "")
        )


@pytest.fixture
def disk(store: ModelStore, keys: builders.Signer) -> _Store:
    """Of an empty store."""
    return _Store(store, keys)


def test_a_signed_document_is_kept_before_it_is_followed(disk: _Store) -> None:
    """On the disk with its report, also where there is no store yet; read back it is the same."""
    found = disk.file.judge(disk.payload(window=("10:00", "11:00")))
    desired = _desired(window=("10:00", "11:00"))
    assert found == (desired, report(desired, "pending"))
    assert disk.file.kept() == found
    assert DesiredFile(disk.store, disk.policy).kept() == found


def test_the_report_has_what_ran_before(disk: _Store, make: Make) -> None:
    """Version and digest of the bundle in service, on probation or proven; a staged one does not count."""
    first = disk.store.install(make("1.0.0", "comfort"), disk.policy).slot
    found = disk.file.judge(disk.payload())
    assert found is not None
    assert found[1].before == {"version": "1.0.0", "digest": first.digest}
    disk.store.confirm("comfort", first.digest)
    found = disk.file.judge(disk.payload(serial=6))
    assert found is not None
    assert found[1].before == {"version": "1.0.0", "digest": first.digest}
    found = disk.file.judge(disk.payload(serial=7, model="other"))
    assert found is not None
    assert found[1].before is None


def test_a_document_is_kept_below_folders_that_are_not_there(
    tmp_path: Path, keys: builders.Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new device's first document: its serial survives a power cut, so the folder's name is on the disk too."""
    synced: list[Path] = []
    monkeypatch.setattr("edge_runtime.system.durable.sync_folder", synced.append)
    disk = _Store(ModelStore(tmp_path / "a" / "b"), keys)
    found = disk.file.judge(disk.payload())
    assert disk.file.kept() == found
    assert synced[0] == tmp_path / "a"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 3000, b'{"document":"{}","report":{}}'])
def test_a_damaged_file_is_as_none(disk: _Store, content: bytes) -> None:
    """The broker still has the document, which is judged anew."""
    assert disk.file.kept() is None
    disk.file.judge(disk.payload())
    (disk.store.root / ".desired.json").write_bytes(content)
    assert disk.file.kept() is None


def test_a_kept_window_that_is_none_is_a_damaged_file(disk: _Store) -> None:
    """An error of the loop would end the daemon at each of its starts."""
    disk.file.keep(_desired(window=("25:00", "11:00")), report(_desired(), "pending"))
    assert disk.file.kept() is None


def test_documents_go_up_by_their_serial(disk: _Store) -> None:
    """An older one, and another one of the same serial, have no effect; the very same is what is kept."""
    found = disk.file.judge(disk.payload(serial=5))
    disk.file.keep(_desired(5), report(_desired(5), "receiving"))
    assert disk.file.judge(disk.payload(serial=4)) is None
    assert disk.file.judge(disk.payload(serial=5, version="1.2.0")) is None
    assert disk.file.judge(disk.payload(serial=5)) == (_desired(5), report(_desired(5), "receiving"))
    assert found is not None
    newer = disk.file.judge(disk.payload(serial=6))
    assert newer is not None
    assert newer[0].serial == 6


def test_an_expired_document_is_kept_as_failed(disk: _Store) -> None:
    """Its serial counts; at the very second it is still good. The day is named in UTC."""
    disk.now = NOON + 0.0
    good = disk.file.judge(disk.payload(serial=5, expires=NOON))
    assert good is not None
    assert good[1].state == "pending"
    disk.now = NOON + 1.0
    found = disk.file.judge(disk.payload(serial=6, expires=NOON))
    assert found is not None
    assert (found[1].state, found[1].why) == (
        "failed", "the document expired at 2024-10-04 12:00 UTC: start the rollout again",
    )  # fmt: skip
    assert disk.file.kept() == found


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"device": "attic"}, CommandError, "expected one for room, found 'attic'"),
        ({"window": ("25:00", "11:00")}, CommandError, "window: expected HH:MM, found '25:00'"),
        ({"window": ("10:00", "1100")}, CommandError, "window: expected HH:MM, found '1100'"),
        ({"text": "{}"}, CommandError, "desired state: "),
        ({"text": '{"type":"desired","later":[' + "[" * 3000}, CommandError, "desired state: "),
        ({"namespace": "edge-bundle"}, SignatureError, "for another purpose"),
    ],
)
def test_a_document_that_is_not_for_this_is_refused(
    disk: _Store, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Nothing is written for it."""
    with pytest.raises(error, match=words):
        disk.file.judge(disk.payload(**changes))
    assert disk.file.kept() is None
    assert not disk.store.root.exists()


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b"{" * 3000])
def test_an_envelope_that_is_none_is_refused(disk: _Store, payload: bytes) -> None:
    """Whoever sends it."""
    with pytest.raises(CommandError, match="desired state: "):
        disk.file.judge(payload)


def test_a_document_of_a_stranger_or_that_was_changed_is_refused(
    disk: _Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program is started for it, and it is not decoded."""
    started: list[object] = []
    monkeypatch.setattr(module, "verify", lambda *_, **__: started.append(1))
    stranger = builders.signer(tmp_path / "stranger", "stranger@example")
    with pytest.raises(SignatureError, match="stranger"):
        disk.file.judge(disk.payload(stranger))
    changed = msgspec.json.decode(disk.payload(), type=Envelope)
    changed = msgspec.structs.replace(changed, document=changed.document.replace("1.1.0", "1.2.0"))
    with pytest.raises(SignatureError, match="another file"):
        disk.file.judge(msgspec.json.encode(changed))
    assert started == []


def test_a_revoked_key_signs_no_document(disk: _Store) -> None:
    """Its signature is good; OpenSSH's own check of the key decides."""
    payload = disk.payload()
    content = disk.keys.allowed.read_text()
    principal, kind, text = content.split()
    try:
        disk.keys.allowed.write_text(f'{principal} namespaces="edge-bundle" {kind} {text}\n')
        with pytest.raises(SignatureError):
            disk.file.judge(payload)
    finally:
        disk.keys.allowed.write_text(content)
    assert disk.file.judge(payload) is not None


def test_two_signatures_of_two_keys_where_two_are_required(
    store: ModelStore, keys: builders.Signer, tmp_path: Path
) -> None:
    """One alone, or one twice, is refused; a second one that is not required is not judged."""
    second = builders.signer(tmp_path / "second", "second@example")
    allowed = tmp_path / "both"
    allowed.write_text(keys.allowed.read_text() + second.allowed.read_text())
    disk = _Store(store, builders.Signer(keys.key, allowed), signatures=2)
    with pytest.raises(SignatureError, match="expected 2 signatures, found 1"):
        disk.file.judge(disk.payload())
    with pytest.raises(SignatureError, match="expected 2 different keys"):
        disk.file.judge(disk.payload(keys, keys))
    one = _Store(store, keys)
    assert one.file.judge(disk.payload(keys, second, serial=3)) is not None
    assert disk.file.judge(disk.payload(keys, second)) is not None


def test_a_disk_that_cannot_be_written_is_reported(tmp_path: Path, keys: builders.Signer) -> None:
    """The serial has to be kept before anything is done."""
    (tmp_path / "models").write_text("")
    disk = _Store(ModelStore(tmp_path / "models"), keys)
    with pytest.raises(CommandError, match="cannot be written"):
        disk.file.judge(disk.payload())


def _standing(disk: _Store, path: Path, *, was_active: bool = False, **changes: Any) -> tuple[str, str | None] | None:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return disk.file.standing(_desired(**({"digest": digest} | changes)), was_active=was_active)


def test_the_state_of_a_bundle_is_that_of_the_store(disk: _Store, make: Make) -> None:
    """To be fetched, on probation, confirmed, or failed with the reason."""
    old, new = make("1.0.0", "comfort"), make("1.1.0", "comfort")
    assert _standing(disk, old) is None
    slot = disk.store.install(old, disk.policy).slot
    assert _standing(disk, old) == ("probation", None)
    disk.store.fail("comfort", slot.digest, "slow")
    assert _standing(disk, old) == ("probation", "slow")
    disk.store.confirm("comfort", slot.digest)
    assert _standing(disk, old) == ("confirmed", None)
    assert _standing(disk, new) is None
    failed = disk.store.install(new, disk.policy).slot
    disk.store.fail("comfort", failed.digest, "too slow")
    assert _standing(disk, new) == ("failed", "too slow")
    state = msgspec.json.decode((disk.store.root / "comfort" / "state.json").read_bytes())
    state["rejected"][0]["why"] = ""
    (disk.store.root / "comfort" / "state.json").write_bytes(msgspec.json.encode(state))
    assert _standing(disk, new) == ("failed", "it failed here before")


@pytest.mark.parametrize("proven", [True, False])
def test_a_bundle_that_is_here_is_made_active_again(disk: _Store, make: Make, *, proven: bool) -> None:
    """A way back needs no transfer: a proven one is confirmed at once, another one is on probation."""
    old = make("1.0.0", "comfort")
    slot = disk.store.install(old, disk.policy).slot
    if proven:
        disk.store.confirm("comfort", slot.digest)
    disk.store.install(make("1.1.0", "comfort"), disk.policy)
    assert _standing(disk, old) == ("confirmed" if proven else "probation", None)
    assert disk.store.slot("comfort").digest == slot.digest


def test_a_bundle_that_a_person_replaced_is_not_made_active_again(disk: _Store, make: Make) -> None:
    """The reason stands in the report: that of the store, else that it was by hand."""
    old = make("1.0.0", "comfort")
    disk.store.install(old, disk.policy)
    new = disk.store.install(make("1.1.0", "comfort"), disk.policy).slot
    assert _standing(disk, old, was_active=True) == (
        "failed", "another bundle was made active here afterwards: by hand",
    )  # fmt: skip
    disk.store.rollback("comfort")
    found = disk.file.standing(_desired(digest=new.digest), was_active=True)
    assert found == ("failed", "another bundle was made active here afterwards: rolled back by hand")
    assert disk.store.slot("comfort").version == "1.0.0"


@pytest.mark.parametrize(
    ("own", "wanted", "is_refused"),
    [(None, None, False), (None, "pi5", False), ("pi5", None, False), ("pi5", "pi5", False), ("pi5", "zero2w", True)],
)
def test_a_document_for_another_class_is_refused(
    store: ModelStore, keys: builders.Signer, make: Make, own: str | None, wanted: str | None, *, is_refused: bool
) -> None:
    """Only where both name one."""
    disk = _Store(store, keys, device_class=own)
    path = make("1.0.0", "comfort")
    if is_refused:
        with pytest.raises(BundleError, match="expected a bundle for pi5, found one for zero2w"):
            _standing(disk, path, device_class=wanted)
    else:
        assert _standing(disk, path, device_class=wanted) is None


def test_two_bundles_of_one_version_are_not_guessed_between(disk: _Store, make: Make, monkeypatch: Any) -> None:
    """`activate` goes by the version: another digest than the document's is an error, not a success."""
    old = make("1.0.0", "comfort")
    disk.store.install(old, disk.policy)
    other = disk.store.install(make("1.1.0", "comfort"), disk.policy).slot
    monkeypatch.setattr(disk.store, "activate", lambda _name, _version: other)
    with pytest.raises(BundleError, match=r"expected one bundle of version 1\.0\.0 here, found two"):
        _standing(disk, old)


# -- the loop's side -----------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """Stands in for `DesiredFile`."""

    first: tuple[Desired, Report] | None = None
    judged: dict[bytes, Any] = field(default_factory=dict)
    now: Any = None  # what `standing` answers, or raises
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    fault: Exception | None = None

    def kept(self) -> tuple[Desired, Report] | None:
        """As `DesiredFile.kept`."""
        return self.first

    def judge(self, payload: bytes) -> tuple[Desired, Report] | None:
        """As `DesiredFile.judge`."""
        self.asked.append(("judge", payload))
        found = self.judged[payload]
        if isinstance(found, Exception):
            raise found
        return cast("tuple[Desired, Report] | None", found)

    def keep(self, desired: Desired, latest: Report) -> None:
        """As `DesiredFile.keep`."""
        self.asked.append(("keep", latest.state, latest.why))
        if self.fault is not None:
            raise self.fault

    def standing(self, desired: Desired, *, was_active: bool = False) -> Any:
        """As `DesiredFile.standing`."""
        self.asked.append(("standing", was_active))
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


@dataclass
class Link:
    """The device's end of the wire."""

    connected: bool = True
    published: list[dict[str, Any]] = field(default_factory=list)
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

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, outcome: object) -> bool:
        """As `Connection.publish`: a report is retained."""
        assert (topic, qos, retain, outcome) == ("edge/room/rollout", 1, True, None)
        self.published.append(msgspec.json.decode(payload))
        return True


class Fetcher:
    """Stands in for `Ota`."""

    def __init__(self) -> None:
        self.is_free = True
        self.fetched: list[tuple[Offer, str | None]] = []
        self.on_transfer: Any = None

    def fetch(self, offer: Offer, url: str | None = None) -> bool:
        """As `Ota.fetch`."""
        if self.is_free:
            self.fetched.append((offer, url))
        return self.is_free

    def tell(
        self, state: str, held: int = 0, why: str | None = None, *, final: bool = False, sha256: str = DIGEST
    ) -> None:
        """A new state of the transfer."""
        offer = Offer(transfer="t", size=1000, sha256=sha256, signature="s")
        self.on_transfer(offer, state, held, why, is_final=final)


class Device:
    """One start of a device at noon."""

    def __init__(self, first: tuple[Desired, Report] | None = None) -> None:
        self.loop, self.link, self.disk, self.ota = SteppedLoop(), Link(), Disk(first), Fetcher()
        self.counters = Counters()
        self.now = float(NOON)
        self.state = DesiredState(
            "room",
            cast("Connection", self.link),
            self.loop.as_loop,
            ota=cast("Ota", self.ota),
            file=cast("DesiredFile", self.disk),
            counters=self.counters,
            now=lambda: self.now,
        )
        self.thread = cast("SteppedThread", self.state._thread)

    def work(self) -> None:
        """Let the thread and the loop do what they have to do now."""
        while self.thread.work():
            self.loop.settle()

    def hear(self, payload: bytes, topic: bytes = b"edge/room/desired") -> Message:
        """A message from the broker."""
        message = Message(topic, payload, None)
        assert self.link.handler is not None
        self.link.handler([message])
        return message

    def send(self, payload: bytes = b"d5", desired: Desired | None = None, **changes: Any) -> None:
        """A document that is judged to be good, and what follows from it now."""
        desired = desired or _desired(**changes)
        self.disk.judged[payload] = (desired, report(desired, "pending"))
        self.hear(payload)
        self.work()

    def wait(self, seconds: float) -> None:
        """Let time pass on both clocks, in steps, with the thread at work."""
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            self.loop.advance(0.5)
            self.work()

    def reports(self) -> list[tuple[str, str | None]]:
        """States and reasons since the last look."""
        answered, self.link.published = self.link.published, []
        return [(each["state"], each["why"]) for each in answered]

    def looks(self) -> int:
        """How often the store was asked since the last look."""
        count: int = sum(each[0] == "standing" for each in self.disk.asked)
        self.disk.asked.clear()
        return count


@pytest.fixture(autouse=True)
def _stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BackgroundThread", SteppedThread)


@pytest.fixture
def device() -> Device:
    """Without a document."""
    made = Device()
    made.work()
    return made


def test_the_numbers_are_those_of_the_page() -> None:
    """A look every two seconds, another try after a minute, and two minutes for a piece of work."""
    assert (LOOK_S, RETRY_S, CHECK_S, MOST_BYTES) == (2.0, 60.0, 120.0, 65_536)


def test_a_document_is_followed_to_its_end(device: Device) -> None:
    """Judged, looked up, fetched, received, on probation, confirmed; each state is kept and published once."""
    assert device.link.filters == ["edge/room/desired"]
    device.send(url="http://x/y", files={".sig": "a", ".sig2": "b", ".release": "c", ".release.sig": "d",
                                         ".release.sig2": "e"})  # fmt: skip
    offer, url = device.ota.fetched[0]
    assert (offer, url) == (
        Offer(transfer=f"depot{DIGEST[:40]}", size=1000, sha256=DIGEST, signature="a", signature2="b", release="c",
              release_signature="d", release_signature2="e"),
        "http://x/y",
    )  # fmt: skip
    assert device.reports() == [("pending", None)]
    device.ota.tell("receiving", 100)
    device.ota.tell("receiving", 200)
    device.ota.tell("installing", 1000)
    device.work()
    assert [each["received"] for each in device.link.published] == [100, 200, 1000]
    assert device.reports() == [("receiving", None)] * 3
    assert [each for each in device.disk.asked if each[0] == "keep"] == [("keep", "receiving", None)]
    device.wait(100)
    assert (device.looks(), device.reports()) == (1, [])  # the one before it was fetched: now the transfer is awaited
    device.ota.tell("installed", 1000)
    device.work()
    assert [each["received"] for each in device.link.published] == [0]
    assert device.reports() == [("probation", None)]
    device.disk.now = ("probation", None)
    device.wait(10)
    assert device.looks() == 5
    assert device.reports() == []
    device.disk.now = ("confirmed", None)
    device.wait(2)
    assert device.reports() == [("confirmed", None)]
    assert ("keep", "confirmed", None) in device.disk.asked
    device.looks()
    device.hear(b"d5")
    device.wait(200)
    assert (device.looks(), device.reports(), len(device.ota.fetched)) == (0, [], 1)


def test_what_a_document_leaves_out_is_empty_in_the_offer(device: Device) -> None:
    """Without files: the transfer refuses it, in words."""
    device.send(files={})
    offer, url = device.ota.fetched[0]
    assert offer.signatures == []
    assert (offer.release, offer.release_signature, offer.release_signature2, url) == ("", "", "", None)


def test_messages_of_others_are_left_to_them(device: Device) -> None:
    """Only that topic is claimed."""
    device.send()
    assert not device.hear(b"d6", b"edge/room/other").claimed
    assert device.hear(b"d5").claimed
    assert device.thread.work() <= 1


def test_the_same_document_again_is_not_judged_again(device: Device) -> None:
    """A broker repeats it at each connection; it only shows that the document is still there."""
    device.send(window=("13:00", "14:00"))
    device.disk.asked.clear()
    for _ in range(3):
        device.hear(b"d5")
        device.work()
    assert not any(each[0] == "judge" for each in device.disk.asked)


def test_an_update_waits_for_its_time_and_its_window(device: Device) -> None:
    """`not_before` first, then the window, each with its reason; at the minute it begins."""
    device.send(not_before=NOON + 10, window=("12:01", "12:02"))
    assert device.reports() == [("pending", None), ("pending", "waiting not before 2024-10-04 12:00 UTC")]
    assert device.looks() == 0
    device.wait(10)
    assert device.reports() == [("pending", "waiting for the window of maintenance, 12:01-12:02 UTC")]
    device.wait(49)
    assert (device.looks(), device.ota.fetched) == (0, [])
    device.wait(2)
    assert len(device.ota.fetched) == 1


def test_a_window_of_a_later_hour_is_counted_in_minutes_of_the_day(device: Device) -> None:
    """At 12:00 one that begins at 12:00 is open, and one that ended at 12:00 is not."""
    device.send(window=("11:00", "12:00"))
    assert device.ota.fetched == []
    device.send(b"d6", _desired(6, window=("12:00", "12:01")))
    assert len(device.ota.fetched) == 1


def test_at_the_second_of_not_before_it_begins(device: Device) -> None:
    """It is the first second, not the last one before."""
    device.send(not_before=NOON)
    assert len(device.ota.fetched) == 1


def test_another_document_takes_the_place_of_one_that_waits(device: Device) -> None:
    """Its own conditions hold."""
    device.send(window=("13:00", "14:00"))
    device.reports()
    device.send(b"d6", _desired(6))
    assert len(device.ota.fetched) == 1
    assert device.link.published[-1]["serial"] == 6


def test_a_document_that_was_taken_back_before_it_began_is_dropped(device: Device) -> None:
    """Also while it is judged; one that has begun goes on."""
    device.send(window=("13:00", "14:00"))
    device.reports()
    device.hear(b"")
    device.work()
    assert device.reports() == [("failed", TAKEN_BACK)]
    device.disk.judged[b"d6"] = (_desired(6), report(_desired(6), "pending"))
    device.hear(b"d6")
    device.hear(b"")
    device.work()
    assert device.reports() == [("pending", None), ("failed", TAKEN_BACK)]
    assert device.ota.fetched == []
    device.send(b"d7", _desired(7))
    device.ota.tell("receiving", 1)
    device.work()
    device.reports()
    device.hear(b"")
    device.work()
    device.ota.tell("installed", 1000)
    assert device.reports() == [("probation", None)]


def test_an_update_that_was_taken_back_while_the_store_was_asked_is_not_tried_again(device: Device) -> None:
    """It had begun by then; what follows is its last attempt."""
    device.disk.judged[b"d5"] = (_desired(), report(_desired(), "pending"))
    device.hear(b"d5")
    device.thread.work(1)
    device.loop.settle()
    device.hear(b"")
    device.ota.is_free = False
    device.work()
    assert device.reports() == [("pending", None), ("pending", "another transfer is under way; trying again")]
    device.looks()
    device.wait(200)
    assert (device.looks(), device.reports()) == (0, [])


@pytest.mark.parametrize("state", ["receiving", "probation", "confirmed"])
def test_a_document_that_has_begun_is_not_taken_back_while_it_is_judged_again(device: Device, state: Any) -> None:
    """After a restart the broker repeats it; its state is that of the disk."""
    device.disk.judged[b"d5"] = (_desired(), report(_desired(), state))
    device.disk.now = ("probation", None)
    device.hear(b"d5")
    device.hear(b"")
    device.work()
    assert "failed" not in [each for each, _ in device.reports()]


def test_a_document_that_is_repeated_while_it_is_judged_is_followed_once(device: Device) -> None:
    """Before its verdict, and while the store is asked."""
    device.disk.judged[b"d5"] = (_desired(), report(_desired(), "pending"))
    device.hear(b"d5")
    device.hear(b"d5")
    device.thread.work(1)
    device.loop.settle()
    device.hear(b"d5")
    device.work()
    assert (device.looks(), len(device.ota.fetched)) == (1, 1)


def test_a_document_that_was_taken_back_may_be_sent_again(device: Device) -> None:
    """The very same bytes are judged again then; its serial decides."""
    device.send(window=("13:00", "14:00"))
    device.hear(b"")
    device.work()
    device.disk.asked.clear()
    device.disk.judged[b"d5"] = None
    device.hear(b"d5")
    device.work()
    assert ("judge", b"d5") in device.disk.asked
    assert device.counters.counts["desired_old"] == 1


def test_a_document_that_another_one_overtook_while_it_was_judged_is_not_begun(device: Device) -> None:
    """Three came while the thread was busy: the newest is judged, and the one in the middle never."""
    for number in (5, 6, 7):
        desired = _desired(number)
        device.disk.judged[b"d%d" % number] = (desired, report(desired, "pending"))
        device.hear(b"d%d" % number)
    device.work()
    assert [each[1] for each in device.disk.asked if each[0] == "judge"] == [b"d5", b"d7"]
    assert [each["serial"] for each in device.link.published if each["state"] == "failed"] == [5]
    assert [offer.transfer for offer, _ in device.ota.fetched] == [f"depot{DIGEST[:40]}"]


def test_several_documents_of_one_wake_up_are_one(device: Device) -> None:
    """The last one counts; an unreadable topic among them changes nothing."""
    for number in (5, 6):
        device.disk.judged[b"d%d" % number] = (_desired(number), report(_desired(number), "pending"))
    assert device.link.handler is not None
    topic = b"edge/room/desired"
    device.link.handler([Message(topic, b"d5", None), Message(b"x", b"", None), Message(topic, b"d6", None)])
    device.work()
    assert [each[1] for each in device.disk.asked if each[0] == "judge"] == [b"d6"]
    again = Device()
    again.work()
    again.disk.judged[b"d6"] = (_desired(6), report(_desired(6), "pending"))
    big = Message(topic, b"x" * (MOST_BYTES + 1), None)
    assert again.link.handler is not None
    again.link.handler([big, Message(topic, b"", None), Message(topic, b"d6", None)])
    again.work()
    assert [each[1] for each in again.disk.asked if each[0] == "judge"] == [b"d6"]
    assert again.counters.counts["desired_refused"] == 1


def test_a_document_of_64_kib_is_judged_and_a_longer_one_is_only_counted(device: Device) -> None:
    """The broker may send 256 MB."""
    device.hear(b"x" * (MOST_BYTES + 1))
    device.work()
    assert (device.disk.asked, device.counters.counts["desired_refused"]) == ([], 1)
    device.send(b"x" * MOST_BYTES)
    assert len(device.ota.fetched) == 1


def test_a_refused_document_is_counted_and_the_thread_rests(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as the check took, so that a flood gets half of one core; log lines are bounded."""
    rests: list[float] = []
    ticks = iter(range(0, 1000, 2))
    monkeypatch.setattr("edge_runtime.store.desired.time.monotonic", lambda: float(next(ticks)))
    device.state._ended = cast("threading.Event", SimpleNamespace(wait=rests.append, set=lambda: None))
    caplog.set_level(logging.WARNING)
    for number in range(25):
        payload = b"bad%d" % number
        device.disk.judged[payload] = SignatureError("no\nkey")
        device.hear(payload)
        device.work()
    assert rests == [2.0] * 25
    assert device.counters.counts["desired_refused"] == 25
    assert len([each for each in caplog.records if each.message == "desired state refused"]) == 20
    assert device.link.published == []


def test_an_error_that_is_no_error_of_ours_is_logged_and_the_next_document_is_judged(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug must not end the daemon, nor its obedience."""
    device.disk.judged[b"bug"] = KeyError("a bug")
    device.hear(b"bug")
    device.disk.judged[b"d5"] = (_desired(), report(_desired(), "pending"))
    device.hear(b"d5")
    device.work()
    assert any(each.exc_info for each in caplog.records)
    assert len(device.ota.fetched) == 1


def test_a_disk_that_fails_is_tried_again_after_a_minute(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """An error of ours has no traceback."""
    device.disk.fault = CommandError("full\ndisk")
    device.disk.now = ("probation", None)
    device.send()
    assert device.reports()[-1] == ("pending", "full; disk; trying again")
    assert not any(each.exc_info for each in caplog.records)
    device.disk.fault = None
    device.disk.asked.clear()
    device.wait(59)
    assert device.looks() == 0
    device.wait(2)
    assert device.looks() >= 1
    assert device.reports() == [("probation", None)]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BundleError("bad\nbundle"), ("failed", "bad; bundle")),
        (CommandError("busy"), ("pending", "busy; trying again")),
    ],
)
def test_what_the_store_refuses_is_final_and_what_it_cannot_do_is_not(
    device: Device, error: EdgeError, state: tuple[str, str]
) -> None:
    """The second is tried again after a minute."""
    device.disk.now = error
    device.send()
    assert device.reports() == [("pending", None), state]
    device.looks()
    device.wait(59)
    assert device.looks() == 0
    device.wait(2)
    assert device.looks() == (1 if state[0] == "pending" else 0)


def test_a_return_to_a_bundle_that_is_gone_fails(device: Device) -> None:
    """A document of size 0 is never fetched."""
    device.send(size=0)
    assert device.reports()[-1] == ("failed", "1.1.0 is not here any more: start a rollout of it")
    assert device.ota.fetched == []
    device.disk.now = ("confirmed", None)
    device.send(b"d6", _desired(6, size=0))
    assert device.reports()[-1] == ("confirmed", None)


def test_another_transfer_is_waited_for(device: Device) -> None:
    """A minute each time."""
    device.ota.is_free = False
    device.send()
    assert device.reports()[-1] == ("pending", "another transfer is under way; trying again")
    device.ota.is_free = True
    device.wait(59)
    assert device.ota.fetched == []
    device.wait(2)
    assert len(device.ota.fetched) == 1


def test_a_transfer_that_failed_is_tried_again_unless_that_is_final(device: Device) -> None:
    """A bundle that is refused is not sent again; a sender that fell silent is asked again."""
    device.send()
    device.ota.tell("failed", 10, "silent")
    assert device.reports()[-1] == ("pending", "silent; trying again")
    device.wait(61)
    assert len(device.ota.fetched) == 2
    device.ota.tell("failed", 10)
    assert device.reports()[-1] == ("pending", "the transfer failed; trying again")
    device.ota.tell("failed", 10, "no key", final=True)
    assert device.reports()[-1] == ("failed", "no key")
    device.ota.tell("installed", 1000)
    assert device.reports() == []  # final


def test_the_states_of_other_transfers_are_not_reported(device: Device) -> None:
    """Nor any before a document."""
    device.ota.tell("receiving", 10)
    assert device.reports() == []
    device.send()
    device.reports()
    device.ota.tell("receiving", 10, sha256="1e" * 32)
    assert device.reports() == []


def test_a_start_goes_on_where_it_was() -> None:
    """A document that has begun is followed without the broker; one that had not waits for its repetition."""
    begun = Device((_desired(), report(_desired(), "receiving", received=10)))
    begun.work()
    assert (len(begun.ota.fetched), begun.reports()) == (1, [("receiving", None)])
    waiting = Device((_desired(), report(_desired(), "pending")))
    waiting.work()
    waiting.wait(100)
    assert (waiting.ota.fetched, waiting.reports()) == ([], [("pending", None)])
    waiting.disk.judged[b"d5"] = (_desired(), report(_desired(), "pending"))
    waiting.hear(b"d5")
    waiting.work()
    assert len(waiting.ota.fetched) == 1
    done = Device((_desired(), report(_desired(), "confirmed")))
    done.work()
    done.wait(10)
    assert (done.looks(), done.reports()) == (0, [("confirmed", None)])


@pytest.mark.parametrize("state", ["receiving", "probation", "pending"])
def test_the_store_is_told_whether_this_document_has_made_it_active(device: Device, state: Any) -> None:
    """Only on probation: what is gone then was replaced by a person."""
    again = Device((_desired(), report(_desired(), state)))
    again.disk.now = ("probation", None)
    again.work()
    if state == "pending":
        again.disk.judged[b"d5"] = (_desired(), report(_desired(), state))
        again.hear(b"d5")
        again.work()
    assert again.disk.asked[0 if state != "pending" else 1] == ("standing", state == "probation")


def test_a_connection_repeats_the_report_and_waits_for_the_document(device: Device) -> None:
    """The broker may have lost both; an update that has not begun waits for its document."""
    device.state.link_changed()
    assert device.reports() == []
    device.send(not_before=NOON + 10)
    device.reports()
    device.link.connected = False
    device.state.link_changed()
    assert device.reports() == []
    device.link.connected = True
    device.state.link_changed()
    assert len(device.reports()) == 1
    device.wait(100)
    assert device.ota.fetched == []
    device.hear(b"d5")
    device.work()
    assert len(device.ota.fetched) == 1


def test_the_report_keeps_what_ran_before(device: Device) -> None:
    """Through all states, so that a rollout can be taken back by the reports."""
    before = {"version": "1.0.0", "digest": "aa" * 32}
    desired = _desired()
    device.disk.judged[b"d5"] = (desired, report(desired, "pending", before=before))
    device.hear(b"d5")
    device.work()
    device.ota.tell("receiving", 1)
    device.ota.tell("installed", 1000)
    assert [each["before"] for each in device.link.published] == [before] * 3


def test_a_failure_is_logged_as_an_error_and_progress_is_not(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Each state once, and the document when it is another one."""
    caplog.set_level(logging.INFO)
    device.send()
    for held in (1, 2, 3):
        device.ota.tell("receiving", held)
    device.work()
    device.ota.tell("failed", 10, "bad", final=True)
    device.work()
    lines = [each.levelno for each in caplog.records if each.message == "desired state"]
    assert lines == [logging.INFO, logging.INFO, logging.ERROR]


def test_a_document_is_logged_when_it_is_another_one(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """The same one in other bytes, as after another signature, is not logged again."""
    caplog.set_level(logging.INFO)
    desired = _desired(window=("13:00", "14:00"))
    for payload in (b"d5", b"d5 signed anew"):
        device.send(payload, desired)
    device.send(b"d6", _desired(6, window=("13:00", "14:00")))
    found = [getattr(each, "fields", {}) for each in caplog.records if each.message == "desired state"]
    assert [each["rollout"] for each in found if "rollout" in each] == ["r5", "r6"]


def test_a_refused_document_that_is_repeated_does_nothing(device: Device) -> None:
    """There is no step to take."""
    device.disk.judged[b"bad"] = SignatureError("no key")
    for _ in range(2):
        device.hear(b"bad")
        device.work()
    assert (device.counters.counts["desired_refused"], device.link.published) == (1, [])


def test_a_stop_ends_everything(device: Device) -> None:
    """Neither a timer nor a message nor the thread's answer goes on."""
    device.send(window=("12:01", "14:00"))
    device.reports()
    device.state.end()
    assert device.thread.stopped
    device.loop.advance(1000.0)
    assert (device.reports(), device.looks()) == ([], 0)
    assert device.hear(b"d6").claimed
    assert device.hear(b"").claimed
    assert (device.reports(), len(device.thread.asked)) == ([], 0)
    assert device.state._ended.is_set()


def test_what_the_thread_finishes_after_the_stop_does_nothing(device: Device) -> None:
    """Neither a fetch nor a report."""
    device.disk.judged[b"d5"] = (_desired(), report(_desired(), "pending"))
    device.hear(b"d5")
    device.state.end()
    device.work()
    assert device.ota.fetched == []
    other = Device()
    other.work()
    other.disk.now = ("confirmed", None)
    other.disk.judged[b"d5"] = (_desired(), report(_desired(), "pending"))
    other.hear(b"d5")
    other.thread.work(1)
    other.loop.settle()
    other.reports()
    other.state.end()
    other.work()
    assert other.reports() == []


def test_leaving_unsubscribes(device: Device) -> None:
    """The link stays, for the other parts."""
    device.state.leave()
    assert device.link.handler is None
    assert device.thread.stopped


def test_each_piece_of_work_has_a_bound(device: Device) -> None:
    """Two minutes; after that the watchdog ends the daemon."""
    device.send()
    assert {bound for _, bound in device.thread.bounds} == {120.0}


def test_one_timer_at_a_time(device: Device) -> None:
    """Many repetitions by the broker make no more looks."""
    device.disk.now = ("probation", None)
    device.send()
    for _ in range(10):
        device.hear(b"d5")
        device.work()
    device.looks()
    device.wait(10)
    assert device.looks() == 5
