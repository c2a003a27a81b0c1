"""A transfer over MQTT, chunk by chunk: what a bad link, a bad sender and a restart do to it, and what they cannot."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.measured import Measured
from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import Bundle
from edge_runtime.bundle.selftest import Budget
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store.install import Policy
from edge_runtime.store.ota import ASK_AGAIN_S, PATIENCE_S, Ota
from edge_runtime.store.ota_parts import Incoming
from edge_runtime.store.ota_transfer import CHUNK_BYTES
from edge_runtime.store.store import ModelStore
from edge_runtime.system.counters import Counters
from tests.support import builders
from tests.support.stepped import SteppedLoop
from tests.support.waiting import wait_until

BASE = "edge/room/ota"


def _believed(bundle: Bundle, _budget: Budget, _place: str) -> Measured:
    manifest = bundle.manifest
    return Measured(manifest.name, manifest.version, bundle.digest, 4, 1.0, 1.0, 1.0, 1, 1, "", "")


@dataclass
class Link:
    """The device's end of the wire: what it subscribed to and what it reported."""

    connected: bool = True
    published: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    handler: Callable[[list[Message]], None] = print

    def subscribe(self, _filters: list[str], _qos: int, handler: Callable[[list[Message]], None], **_: int) -> None:
        """As `Connection.subscribe`."""
        self.handler = handler

    def publish(self, topic: str, payload: bytes, *, qos: int, outcome: object) -> bool:
        """As `Connection.publish`."""
        assert (qos, outcome) == (1, None)
        self.published.append((topic.removeprefix(f"{BASE}/"), msgspec.json.decode(payload)))
        return True


class Device:
    """One start of a device, spoken to by hand."""

    def __init__(self, folder: Path, signer: builders.Signer, *, rate: float = 1e9) -> None:
        self.loop = SteppedLoop()
        self.link = Link()
        self.counters = Counters()
        self.store = ModelStore(folder / "store", _believed)
        policy = Policy(allowed_signers=signer.allowed, device="room")
        self.ota = Ota(
            "room",
            cast("Connection", self.link),
            self.loop.as_loop,
            incoming=Incoming(self.store, policy),
            rate=rate,
            counters=self.counters,
        )
        self.token = ""

    def hear(self, what: str, payload: bytes | dict[str, Any]) -> None:
        """One message from the broker."""
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        message = Message(f"{BASE}/{what}".encode(), data, None)
        self.link.handler([message])
        assert message.claimed
        self.loop.settle()

    def last(self, what: str) -> dict[str, Any]:
        """The newest word on a topic."""
        return next((document for topic, document in reversed(self.link.published) if topic == what), {})

    def wants(self) -> list[int]:
        """The offsets that it has asked for."""
        return [document["offset"] for topic, document in self.link.published if topic == "want"]

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Serve the loop until something holds; the disk's thread is a real one."""

        def served() -> object:
            self.loop.advance(1e-4)
            return condition()

        wait_until(served, lambda: f"{what}; it published {self.link.published[-3:]}")

    def offer(self, files: "BundleFiles", **changes: Any) -> None:
        """Offer with the token that it asks for."""
        self.hear("offer", files.offer | changes)
        self.token = self.last("status").get("token", self.token)
        self.hear("offer", files.offer | {"token": self.token} | changes)

    def feed(self, files: "BundleFiles", most: int = 10_000) -> None:
        """Answer what it asks for, until it asks no more or `most` chunks are sent."""
        for _ in range(most):
            count = len(self.link.published)
            want = self.last("want")
            self.hear(f"chunk/{files.offer['transfer']}/{want['offset']}", files.cut(want))
            self.wait(lambda count=count: len(self.link.published) > count, "the next word")  # type: ignore[misc]
            self.wait(lambda: self.link.published[-1][0] == "want" or self.state != "receiving", "the next wish")
            if self.state != "receiving":
                return

    @property
    def state(self) -> str:
        """What it reported last of the transfer."""
        return str(self.last("status").get("state", ""))

    def end(self) -> None:
        """A stop."""
        self.ota.end()


@dataclass
class BundleFiles:
    """A bundle to send."""

    path: Path
    content: bytes
    offer: dict[str, Any]

    def cut(self, want: dict[str, Any]) -> bytes:
        """The bytes that were asked for."""
        return self.content[want["offset"] : want["offset"] + want["bytes"]]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """A signer that the device trusts."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


def _cargo(folder: Path, signer: builders.Signer, version: str = "1.1.0", transfer: str = "t1") -> BundleFiles:
    """A signed bundle of some chunks."""
    folder.mkdir(exist_ok=True)
    channels = [f"c{number}" for number in range(20)]
    draft = builders.classification(name="comfort", version=version, channels=channels, length=400, labels=("a", "b"))
    path = draft.save(folder / "bundle.onnx")
    content = path.read_bytes()
    assert len(content) > 4 * CHUNK_BYTES
    offer = {
        "transfer": transfer,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sha512": hashlib.sha512(content).hexdigest(),
        "signature": signer.sign(path).read_text(),
    }
    return BundleFiles(path, content, offer)


@pytest.fixture
def files(tmp_path: Path, signer: builders.Signer) -> BundleFiles:
    """What is sent."""
    return _cargo(tmp_path / "files", signer)


@pytest.fixture
def device(tmp_path: Path, signer: builders.Signer) -> Device:
    """Who it is sent to."""
    return Device(tmp_path, signer)


def _receive(device: Device, files: BundleFiles, chunks: int = 0) -> None:
    device.offer(files)
    device.wait(lambda: device.last("want"), "the first wish")
    if chunks:
        device.feed(files, chunks)


def _finish(device: Device, files: BundleFiles) -> None:
    device.feed(files)
    device.wait(lambda: device.state in {"installed", "failed"}, "the end")


def test_a_signed_bundle_arrives_and_is_installed(device: Device, files: BundleFiles) -> None:
    """The device asks for chunk after chunk, in order, and in the end tells name, version and digest."""
    _receive(device, files)
    _finish(device, files)
    status = device.last("status")
    assert (status["state"], status["version"], status["digest"]) == (
        "installed",
        "1.1.0",
        files.offer["sha256"],
    )
    assert device.wants() == list(range(0, len(files.content), CHUNK_BYTES))
    assert device.store.active("comfort").read_bytes() == files.content
    assert list((device.store.root / ".incoming").iterdir()) == []


def test_an_offer_without_the_token_of_this_start_begins_nothing(device: Device, files: BundleFiles) -> None:
    """An offer that the broker kept, from whatever day, is answered with the token and forgotten."""
    device.hear("offer", files.offer | {"token": "0123456789abcdef"})
    assert [topic for topic, _ in device.link.published] == ["status"]
    assert device.state == "greeting"
    assert not device.store.root.exists()


def test_what_was_not_asked_for_is_ignored(device: Device, files: BundleFiles) -> None:
    """Doubled, misplaced, short, long and foreign chunks change nothing, and are counted."""
    _receive(device, files, 1)
    want = device.last("want")
    good = files.cut(want)
    for topic, data in [
        ("chunk/t1/0", files.content[:CHUNK_BYTES]),
        (f"chunk/t1/{want['offset'] + CHUNK_BYTES}", good),
        (f"chunk/t1/{want['offset']}", good[:-1]),
        (f"chunk/t1/{want['offset']}", good + b"x"),
        (f"chunk/t2/{want['offset']}", good),
        ("chunk/t1/-1", good),
        ("chunk/t1/x/y", good),
    ]:
        device.hear(topic, data)
    assert device.counters.counts["ota_unasked"] == 7
    _finish(device, files)
    assert device.state == "installed"


def test_a_chunk_that_is_lost_is_asked_for_again(device: Device, files: BundleFiles) -> None:
    """A chunk that does not come is asked for every few seconds; a reconnection asks at once."""
    _receive(device, files)
    device.loop.advance(ASK_AGAIN_S + 0.1)
    assert device.wants() == [0, 0]
    for is_up in (False, True, True):
        device.link.connected = is_up
        device.ota.link_changed()
    assert device.wants() == [0, 0, 0]
    _finish(device, files)
    assert device.state == "installed"


def test_a_sender_that_falls_silent_is_given_up(device: Device, files: BundleFiles, tmp_path: Path) -> None:
    """After a while another transfer may begin; the part stays, and the same bundle goes on from there."""
    _receive(device, files, 2)
    device.loop.advance(PATIENCE_S + 2 * ASK_AGAIN_S)
    assert "silent" in device.last("status")["why"]
    _receive(device, _again(files, "t2"))
    assert device.last("want")["offset"] == 2 * CHUNK_BYTES
    assert tmp_path.exists()


def _again(files: BundleFiles, transfer: str) -> BundleFiles:
    return BundleFiles(files.path, files.content, files.offer | {"transfer": transfer})


def test_a_restart_goes_on_where_it_was(tmp_path: Path, signer: builders.Signer, files: BundleFiles) -> None:
    """What arrived before the daemon ended is not sent again; the old token is worth nothing."""
    before = Device(tmp_path, signer)
    _receive(before, files, 3)
    before.end()
    after = Device(tmp_path, signer)
    after.hear("offer", files.offer | {"token": before.token})
    assert after.state == "greeting"
    _receive(after, files)
    assert after.wants() == [3 * CHUNK_BYTES]
    _finish(after, files)
    assert after.state == "installed"


def test_a_second_transfer_is_refused_in_words(
    device: Device, files: BundleFiles, tmp_path: Path, signer: builders.Signer
) -> None:
    """While one bundle arrives another one is refused, and the first goes on."""
    _receive(device, files, 1)
    device.offer(_cargo(tmp_path / "other", signer, "1.2.0", "t2"))
    status = device.last("status")
    assert (status["transfer"], status["state"]) == ("t2", "refused")
    assert "another transfer is under way" in status["why"]
    device.ota.link_changed()
    _finish(device, files)
    assert device.last("status")["version"] == "1.1.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": DEFAULT_LIMITS.max_bytes + 1}, "at most"),
        ({"size": 0}, "at most"),
        ({"size": -1}, "at most"),
        ({"signature": ""}, "only signed bundles"),
        ({"sha256": "../../etc/passwd"}, "SHA-256"),
        ({"sha256": "A" * 64}, "SHA-256"),
    ],
)
def test_a_bad_offer_is_refused_before_a_byte_comes(
    device: Device, files: BundleFiles, changes: dict[str, Any], words: str
) -> None:
    """Too large, unsigned or no digest: refused in words, and nothing is written."""
    device.offer(files, **changes)
    assert device.state == "refused"
    assert words in device.last("status")["why"]
    assert not device.store.root.exists()


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b"[" * 60_000, b"{" * 70_000, b'{"transfer": "a/b"}'])
def test_an_offer_that_is_none_is_counted(device: Device, payload: bytes) -> None:
    """Whatever is published there, the daemon goes on and answers nothing."""
    device.hear("offer", payload)
    assert device.link.published == []
    assert device.counters.rejected["ota_malformed"] == 1


def test_a_tampered_bundle_gets_nowhere(device: Device, files: BundleFiles) -> None:
    """One changed byte on the way is found by the digest; changed with its digest, by the signature."""
    spoiled = bytearray(files.content)
    spoiled[-1] ^= 1
    _receive(device, files)
    _finish(device, BundleFiles(files.path, bytes(spoiled), files.offer))
    assert "found other bytes" in device.last("status")["why"]
    renamed = files.offer | {"transfer": "t2", "sha256": hashlib.sha256(spoiled).hexdigest()}
    again = BundleFiles(files.path, bytes(spoiled), renamed)
    _receive(device, again)
    _finish(device, again)
    assert device.state == "failed"
    assert "signature" in device.last("status")["why"]
    assert device.store.names() == []
    assert list((device.store.root / ".incoming").iterdir()) == []


def test_a_stranger_cannot_sign(device: Device, files: BundleFiles, tmp_path: Path) -> None:
    """A signature of a key that is not in `allowed_signers` is refused before a byte comes, and the old model stays."""
    stranger = builders.signer(tmp_path / "stranger")
    forged = BundleFiles(
        files.path,
        files.content,
        files.offer | {"signature": stranger.sign(files.path).read_text()},
    )
    device.offer(forged)
    device.wait(lambda: device.state == "refused", "the refusal")
    assert "stranger" in device.last("status")["why"]
    assert device.wants() == []
    assert not device.store.root.exists()
    assert device.store.names() == []


def test_an_older_bundle_is_refused(
    device: Device, files: BundleFiles, tmp_path: Path, signer: builders.Signer
) -> None:
    """A recorded transfer of an older bundle, sent anew, does not bring it back."""
    _receive(device, files)
    _finish(device, files)
    older = _cargo(tmp_path / "older", signer, "1.0.0", "t2")
    _receive(device, older)
    _finish(device, older)
    assert "above 1.1.0" in device.last("status")["why"]
    assert device.store.slot("comfort").version == "1.1.0"


def test_a_part_that_the_disk_damaged_is_begun_anew(
    tmp_path: Path, signer: builders.Signer, files: BundleFiles
) -> None:
    """A damaged part fails once, is dropped, and the next offer brings the whole bundle."""
    before = Device(tmp_path, signer)
    _receive(before, files, 2)
    before.end()
    part = next((before.store.root / ".incoming").glob("*.part"))
    part.write_bytes(bytes(part.stat().st_size))
    device = Device(tmp_path, signer)
    _receive(device, files)
    _finish(device, files)
    assert device.state == "failed"
    again = _again(files, "t2")
    device.link.published.clear()
    _receive(device, again)
    assert device.wants() == [0]
    _finish(device, again)
    assert device.state == "installed"


def test_what_runs_already_is_not_sent_again(device: Device, files: BundleFiles) -> None:
    """An offer of the active bundle is answered at once; so is the question how a transfer ended."""
    _receive(device, files)
    _finish(device, files)
    device.link.published.clear()
    device.hear("offer", files.offer | {"token": device.token})
    assert device.state == "installed"
    device.link.published.clear()
    device.offer(_again(files, "t2"))
    device.wait(lambda: device.state == "installed", "the answer")
    assert device.wants() == []


def test_the_device_sets_the_pace(tmp_path: Path, signer: builders.Signer, files: BundleFiles) -> None:
    """The next chunk is asked for only when the rate allows it, and never two at a time."""
    device = Device(tmp_path, signer, rate=CHUNK_BYTES)  # a chunk a second
    _receive(device, files)
    device.hear("chunk/t1/0", files.content[:CHUNK_BYTES])
    part = device.store.root / ".incoming" / f"{files.offer['sha256']}.part"
    device.wait(lambda: part.exists() and part.stat().st_size == CHUNK_BYTES, "the first chunk on the disk")
    device.wait(lambda: device.ota._pace is not None, "the pause")
    device.loop.advance(0.9)
    assert device.wants() == [0]
    device.loop.advance(0.2)
    assert device.wants() == [0, CHUNK_BYTES]


def test_a_full_disk_is_told(device: Device, files: BundleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for the part and the store's copy of it, the transfer fails before it begins."""
    usage = np.array([0, 0, len(files.content)])
    monkeypatch.setattr(
        "edge_runtime.store.ota_parts.shutil.disk_usage", lambda _: type("U", (), {"free": int(usage[2])})
    )
    device.offer(files)
    device.wait(lambda: device.state == "failed", "the refusal")
    assert "make room" in device.last("status")["why"]
    assert device.wants() == []


def _order(to: Device, signer: builders.Signer, folder: Path, changes: dict[str, str] | None = None) -> dict[str, str]:
    """A signed order to go back from what is active; the changes are made before it is signed."""
    to.hear("rollback", {"transfer": "r"})
    assert to.state == "greeting"
    order = {
        "type": "rollback",
        "device": "room",
        "model": "comfort",
        "digest": to.store.slot("comfort").digest,
        "token": to.last("status")["token"],
        "nonce": "1",
    } | (changes or {})
    text = folder / "order"
    text.write_bytes(msgspec.json.encode(order))
    namespace = "edge-bundle-rollback"
    return {"transfer": "r", "order": text.read_text(), "signature": signer.sign(text, namespace).read_text()}


@pytest.fixture
def upgraded(tmp_path: Path, signer: builders.Signer) -> Device:
    """Version 1.1.0 runs, and 1.0.0 ran before."""
    device = Device(tmp_path, signer)
    for version in ("1.0.0", "1.1.0"):
        files = _cargo(tmp_path / version, signer, version, f"t{version[2]}")
        device.store.install(files.path, Policy(allowed_signers=signer.allowed))
    return device


def test_a_signed_order_takes_a_device_back_once(upgraded: Device, tmp_path: Path, signer: builders.Signer) -> None:
    """Whoever records the order and plays it back changes nothing: not now, and not at the next start."""
    order = _order(upgraded, signer, tmp_path)
    upgraded.hear("rollback", order)
    upgraded.wait(lambda: upgraded.state == "rolled back", "the way back")
    assert upgraded.last("status")["version"] == "1.0.0"
    upgraded.link.published.clear()
    upgraded.store.activate("comfort", "1.1.0")
    upgraded.hear("rollback", order)
    upgraded.wait(lambda: upgraded.state == "refused", "the refusal")
    assert "carried out before" in upgraded.last("status")["why"]
    upgraded.end()
    again = Device(tmp_path, signer)
    again.hear("rollback", order)
    again.wait(lambda: again.state == "refused", "the refusal of the next start")
    assert "token: expected" in again.last("status")["why"]
    assert again.store.slot("comfort").version == "1.1.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "attic"}, "device: expected room, found 'attic'"),
        ({"digest": "0" * 64}, "digest: expected"),
        ({"token": "0" * 16}, "token: expected"),
        ({"type": "allow-older"}, "order to go back: "),
        ({"model": "nothing"}, "found nothing"),
    ],
)
def test_an_order_for_something_else_is_refused(
    upgraded: Device, tmp_path: Path, signer: builders.Signer, changes: dict[str, str], words: str
) -> None:
    """It names one device, one start and the bundle that it leaves."""
    upgraded.hear("rollback", _order(upgraded, signer, tmp_path, changes))
    upgraded.wait(lambda: upgraded.state == "refused", "the refusal")
    assert words in upgraded.last("status")["why"]
    assert upgraded.store.slot("comfort").version == "1.1.0"


def test_an_order_that_nobody_trusted_signed_is_refused(
    upgraded: Device, tmp_path: Path, signer: builders.Signer
) -> None:
    """A stranger's key, no signature at all, and a bundle's signature."""
    stranger = _order(upgraded, builders.signer(tmp_path / "stranger"), tmp_path)
    good = _order(upgraded, signer, tmp_path)
    bundles = signer.sign(tmp_path / "order").read_text()
    for order in (stranger, good | {"signature": "none"}, good | {"signature": bundles}):
        upgraded.link.published.clear()
        upgraded.hear("rollback", order)
        upgraded.wait(lambda: upgraded.state == "refused", "the refusal")
    assert upgraded.store.slot("comfort").version == "1.1.0"


def test_a_bundle_is_sent_as_a_shadow(
    device: Device, files: BundleFiles, tmp_path: Path, signer: builders.Signer
) -> None:
    """The offer says what becomes of it; as a shadow it stands beside the active one."""
    _receive(device, files)
    _finish(device, files)
    candidate = _cargo(tmp_path / "candidate", signer, "1.2.0", "t2")
    candidate.offer["mode"] = "shadow"
    _receive(device, candidate)
    _finish(device, candidate)
    assert device.last("status")["why"] == "it is staged"
    assert [(each.version, each.state, each.shadow) for each in device.store.entries()] == [
        ("1.1.0", "probation", False),
        ("1.2.0", "staged", True),
    ]
