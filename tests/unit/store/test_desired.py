"""What a device does with its desired state: what is taken back, what a person decides, where the file is from."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from edge_runtime.bundle.measured import Measured
from edge_runtime.bundle.open import Bundle
from edge_runtime.bundle.selftest import Budget
from edge_runtime.errors import TransientError
from edge_runtime.fleet.over_mqtt import sign
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store.desired import DesiredFile, DesiredState
from edge_runtime.store.desired_document import DESIRED_NAMESPACE, TAKEN_BACK, Desired, Envelope
from edge_runtime.store.http_file import HttpFile
from edge_runtime.store.install import Policy
from edge_runtime.store.ota import Ota
from edge_runtime.store.ota_parts import Incoming
from edge_runtime.store.store import ModelStore
from edge_runtime.system.counters import Counters
from tests.support import builders
from tests.support.stepped import SteppedLoop
from tests.support.waiting import wait_until

NOON = 1_800_000_000 // 86_400 * 86_400 + 12 * 3600


def _believed(bundle: Bundle, _budget: Budget, _place: str) -> Measured:
    manifest = bundle.manifest
    return Measured(manifest.name, manifest.version, bundle.digest, 4, 1.0, 1.0, 1.0, 1, 1, "", "")


class Link:
    """The device's end of the wire."""

    def __init__(self) -> None:
        self.connected = True
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.handlers: list[Callable[[list[Message]], None]] = []

    def subscribe(self, _filters: list[str], _qos: int, handler: Callable[[list[Message]], None], **_: int) -> None:
        """As `Connection.subscribe`."""
        self.handlers.append(handler)

    def publish(self, topic: str, payload: bytes, **_: object) -> bool:
        """As `Connection.publish`."""
        self.published.append((topic, msgspec.json.decode(payload)))
        return True


class Device:
    """One start of a device that runs 1.0.0 and follows its desired state; it is noon."""

    def __init__(self, folder: Path, keys: builders.Signer) -> None:
        self.loop = SteppedLoop()
        self.link = Link()
        self.counters = Counters()
        self.store = ModelStore(folder / "store", _believed)
        self.keys = keys
        policy = Policy(allowed_signers=keys.allowed, device="room")
        if not (folder / "store").exists():
            self.store.install(bundle(folder, keys, "1.0.0"), policy)
        link = cast("Connection", self.link)
        incoming = Incoming(self.store, policy)
        self.ota = Ota("room", link, self.loop.as_loop, incoming=incoming, rate=1e9, counters=self.counters)
        self.now = NOON
        file = DesiredFile(self.store, policy, lambda: self.now)
        self.state = DesiredState(
            "room", link, self.loop.as_loop, ota=self.ota, file=file, counters=self.counters, now=lambda: self.now
        )

    def hear(self, payload: bytes) -> None:
        """A message on `desired`."""
        for each in self.link.handlers:
            each([Message(b"edge/room/desired", payload, None)])
        self.loop.settle()

    def reported(self) -> dict[str, Any]:
        """The newest report."""
        return next((found for topic, found in reversed(self.link.published) if topic == "edge/room/rollout"), {})

    def wait(self, state: str, why: str = "") -> None:
        """Serve the loop until a report says this."""

        def output_of() -> bool:
            self.loop.advance(0.05)
            found = self.reported()
            return found.get("state") == state and why in (found.get("why") or "")

        wait_until(output_of, lambda: f"{state} {why}; it published {self.link.published[-3:]}", 20.0)

    def serve(self, passes: int = 40) -> None:
        """Let time pass."""
        for _ in range(passes):
            self.loop.advance(0.5)

    def version(self) -> str:
        """What it runs."""
        return self.store.slot("comfort").version

    def end(self) -> None:
        """A stop."""
        self.state.end()
        self.ota.end()


def bundle(folder: Path, keys: builders.Signer, version: str) -> Path:
    """A signed bundle of some chunks."""
    channels = [f"c{number}" for number in range(20)]
    draft = builders.classification(name="comfort", version=version, channels=channels, length=400, labels=("a", "b"))
    path = draft.save(folder / f"{version}.onnx")
    keys.sign(path)
    return path


def document(path: Path, keys: builders.Signer, serial: int, **changes: Any) -> bytes:
    """A signed document for `room`."""
    content = path.read_bytes()
    desired = Desired(
        device="room", rollout=f"r{serial}", serial=serial, model="comfort", version=path.stem,
        digest=hashlib.sha256(content).hexdigest(), size=len(content),
        files={".sig": path.with_name(path.name + ".sig").read_text()},
    )  # fmt: skip
    text = msgspec.json.encode(msgspec.structs.replace(desired, **changes))
    return msgspec.json.encode(
        Envelope(document=text.decode(), signature=sign(keys.key, text, namespace=DESIRED_NAMESPACE))
    )


class Server(ThreadingHTTPServer):
    """A web server with one file, which it may cut, refuse, or send whole where a part was asked for."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.fault = ""
        self.asked: list[str | None] = []
        threading.Thread(target=self.serve_forever, name="web server", daemon=True).start()

    @property
    def url(self) -> str:
        """Of the file."""
        return f"http://127.0.0.1:{self.server_port}/bundles/comfort.onnx"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        content, status = self.server.content, 200
        if self.server.fault in {"404", "302"}:
            self.send_response(int(self.server.fault))
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            return
        begin = 0
        if wanted and self.server.fault != "no ranges":
            begin, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        cut = content[begin:] if self.server.fault != "cut" else content[begin : begin + 40_000]
        if self.server.fault == "cut":
            self.server.fault = ""
        self.wfile.write(cut)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """Trusted."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def device(tmp_path: Path, keys: builders.Signer) -> Iterator[Device]:
    """Ended at the end."""
    made = Device(tmp_path, keys)
    yield made
    made.end()


@pytest.fixture
def server() -> Iterator[Server]:
    """On loopback."""
    made = Server(b"")
    yield made
    made.shutdown()
    made.server_close()


def test_a_document_that_is_taken_back_before_it_began_is_not_followed(
    device: Device, tmp_path: Path, keys: builders.Signer
) -> None:
    """The device waits for its window; `abort` clears the topic: it says so, and the window changes nothing."""
    newer = bundle(tmp_path, keys, "1.1.0")
    device.hear(document(newer, keys, 5, window=("13:00", "14:00")))
    device.wait("pending", "waiting for the window")
    device.hear(b"")
    device.wait("failed", TAKEN_BACK)
    device.serve()
    assert not any(topic.endswith("/ota/want") for topic, _ in device.link.published)


def test_what_was_taken_back_while_the_device_was_off_is_not_followed(
    device: Device, tmp_path: Path, keys: builders.Signer
) -> None:
    """It has the document on its disk, but the broker keeps none any more; once it does again, the device follows."""
    newer = bundle(tmp_path, keys, "1.1.0")
    closed = document(newer, keys, 5, window=("13:00", "14:00"))
    device.hear(closed)
    device.wait("pending", "waiting for the window")
    device.end()
    again = Device(tmp_path, keys)
    again.now = NOON + 5400  # the window is open by now
    try:
        again.wait("pending")
        again.serve()
        assert not any(topic.endswith("/ota/want") for topic, _ in again.link.published)
        again.hear(closed)
        again.wait("receiving")
    finally:
        again.end()


def test_a_bundle_that_a_person_left_by_hand_is_not_brought_back(
    device: Device, tmp_path: Path, keys: builders.Signer, server: Server
) -> None:
    """`rollback` on the device while the document's bundle is on probation: it stays as the person wants it."""
    newer = bundle(tmp_path, keys, "1.1.0")
    server.content = newer.read_bytes()
    device.hear(document(newer, keys, 5, url=server.url))
    device.wait("probation")
    assert device.version() == "1.1.0"
    device.store.rollback("comfort")
    device.wait("failed", "another bundle was made active here afterwards: rolled back by hand")
    device.serve()
    assert device.version() == "1.0.0"


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("serial", [3, 5])
def test_a_document_of_a_serial_that_was_used_is_counted_and_does_nothing(
    device: Device, tmp_path: Path, keys: builders.Signer, server: Server, serial: int, *, restarted: bool
) -> None:
    """A signed document under a serial that was used, or under an older one, changes nothing, also after a restart."""
    newer, newest = bundle(tmp_path, keys, "1.1.0"), bundle(tmp_path, keys, "1.2.0")
    server.content = newer.read_bytes()
    device.hear(document(newer, keys, 5, url=server.url))
    device.wait("probation")
    if restarted:
        device.end()
        device = Device(tmp_path, keys)
    server.content = newest.read_bytes()
    device.hear(document(newest, keys, serial, url=server.url))

    def counted() -> bool:
        device.serve(1)
        return device.counters.counts["desired_old"] == 1

    wait_until(counted, "the count", 20.0)
    device.serve()
    assert device.version() == "1.1.0"
    if restarted:
        device.end()


@pytest.mark.parametrize("fault", ["", "cut", "no ranges"])
def test_a_bundle_comes_by_http_without_a_depot(
    device: Device, tmp_path: Path, keys: builders.Signer, server: Server, fault: str
) -> None:
    """In one stream; from where the last attempt ended, also where the server knows no ranges."""
    newer = bundle(tmp_path, keys, "1.1.0")
    server.content = newer.read_bytes()
    assert len(server.content) > 2 * 40_000
    server.fault = fault
    if fault == "no ranges":  # something is here from an earlier attempt
        part = tmp_path / "store" / ".incoming" / f"{hashlib.sha256(server.content).hexdigest()}.part"
        part.parent.mkdir()
        part.write_bytes(server.content[:50_000])
    device.hear(document(newer, keys, 5, url=server.url))
    device.wait("probation")
    assert device.version() == "1.1.0"
    assert server.asked == {"": [None], "cut": [None, "bytes=32768-"], "no ranges": ["bytes=50000-"]}[fault]
    assert not any(topic.endswith("/ota/want") for topic, _ in device.link.published)


def test_a_server_that_fails_twice_in_a_row_is_left_for_a_depot(
    device: Device, tmp_path: Path, keys: builders.Signer, server: Server
) -> None:
    """The transfer goes on over MQTT; the failures are counted and logged."""
    newer = bundle(tmp_path, keys, "1.1.0")
    server.fault = "404"
    device.hear(document(newer, keys, 5, url=server.url))

    def wanted() -> bool:
        device.loop.advance(0.01)
        return any(topic.endswith("/ota/want") for topic, _ in device.link.published)

    wait_until(wanted, "a question to a depot", 20.0)
    assert (device.counters.counts["ota_http_failed"], len(server.asked)) == (2, 2)


@pytest.mark.parametrize(
    ("fault", "why"),
    [("404", "the server answers 404"), ("302", "the server answers 302"), ("size", "expected 100 bytes, found 99")],
)
def test_a_server_that_has_no_such_file_is_named(server: Server, fault: str, why: str) -> None:
    """No redirection is followed: only the address that was signed is asked."""
    server.content = b"x" * 99
    server.fault = fault
    with pytest.raises(TransientError, match=why):
        HttpFile(server.url, 100).read(0, 10)
    with pytest.raises(TransientError, match="ftp"):
        HttpFile("ftp://127.0.0.1/x", 100).read(0, 10)


def test_reading_goes_on_where_the_connection_broke(server: Server) -> None:
    """The next piece is asked for by its place."""
    server.content = bytes(range(256)) * 400
    server.fault = "cut"
    file = HttpFile(server.url, len(server.content))
    assert file.read(0, 30_000) == server.content[:30_000]
    with pytest.raises(TransientError, match="found the end after 40000"):
        file.read(30_000, 30_000)
    assert file.read(30_000, 30_000) == server.content[30_000:60_000]
    assert server.asked == [None, "bytes=30000-"]
    file.close()
