"""Documents of transfers and manifests with odd values, as a thief of a key or a failing tool would sign them.

`OtaMachine` speaks to `Ota` and `DesiredState` as a broker does. In half of its courses every signature is good, so
that what reads a signed document is reached; in the others the real checks stand. `ManifestMachine` puts manifests into
a sound file. What must hold: only errors of ours, in words; nothing is written outside the store, and no more than was
announced.
"""

import atexit
import base64
import hashlib
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import msgspec

from edge_runtime.bundle import open as opening
from edge_runtime.bundle.manifest import METADATA_KEY
from edge_runtime.bundle.measured import Measured
from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS, read_onnx
from edge_runtime.bundle.open import Bundle
from edge_runtime.bundle.selftest import Budget
from edge_runtime.bundle.signature import Verified
from edge_runtime.errors import BundleError, EdgeError
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store.desired import DesiredFile, DesiredState
from edge_runtime.store.install import Policy
from edge_runtime.store.ota import Ota
from edge_runtime.store.ota_parts import Incoming
from edge_runtime.store.store import ModelStore
from edge_runtime.system.counters import Counters
from tests.fuzz.odd import as_json, odd_document
from tests.support import builders
from tests.support.stepped import SteppedLoop

_HEX = re.compile(r"[0-9a-f]{64}")
_ANSWERS = {"greeting", "refused", "receiving", "installing", "installed", "failed", "rolled back"}


def _trusting(bundle: Bundle, _budget: Budget, _place: str) -> Measured:
    """A self-test that is always passed."""
    return Measured(bundle.manifest.name, bundle.manifest.version, bundle.digest, 4, 1.0, 1.0, 1.0, 1, 1, "", "")


class _AtOnce:
    """Stands for the thread: what is asked for is done at once. An error that is none of ours is a finding."""

    def submit(
        self, work: Callable[[], Any], done: Callable[[Any], Any], failed: Callable[[Exception], Any], **_: Any
    ) -> None:
        """Do it."""
        try:
            result = work()
        except EdgeError as error:
            failed(error)
        else:
            done(result)

    def stop(self, _deadline: float = 0.0) -> bool:
        """Nothing to stop."""
        return True


class _Link:
    """The device's end of the wire."""

    connected = True

    def __init__(self) -> None:
        self.handlers: list[Callable[[list[Message]], None]] = []
        self.published: list[tuple[str, dict[str, Any]]] = []

    def subscribe(self, _filters: list[str], _qos: int, handler: Callable[[list[Message]], None], **_: Any) -> None:
        """As `Connection.subscribe`."""
        self.handlers.append(handler)

    def publish(self, topic: str, payload: bytes, **_: Any) -> bool:
        """As `Connection.publish`."""
        self.published.append((topic, msgspec.json.decode(payload)))
        return True


def _believe(data: bytes, signature: bytes, *_: Any, **__: Any) -> Verified:
    return Verified("thief@example", base64.b64encode(hashlib.sha256(signature).digest()).decode(), 1.8e9)


def _pass(signature: bytes, *_: Any, **__: Any) -> str:
    return signature.decode(errors="replace")


class OtaMachine:
    """A device whose store is empty, spoken to by a broker."""

    name = "OTA documents"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="edge-fuzz-"))
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self._signer = builders.signer(self._folder / "keys")
        path = builders.classification(name="comfort", version="1.1.0").save(self._folder / "b.onnx")
        self._content = path.read_bytes()
        digest = hashlib.sha256(self._content).hexdigest()
        self._served = self._folder / "served"
        policy = Policy(allowed_signers=self._signer.allowed, device="room")
        older = builders.classification(name="comfort", version="1.0.0").save(self._folder / "older.onnx")
        for each in (older, path):
            self._signer.sign(each)
            ModelStore(self._served / "store", _trusting).install(each, policy)
        release = {"type": "release", "name": "comfort", "version": "1.1.0", "digest": digest,
                   "size": len(self._content), "sequence": 7, "expires": 4_000_000_000, "class": "pi4"}  # fmt: skip
        self._offer = {
            "transfer": "t1", "size": len(self._content), "sha256": digest,
            "sha512": hashlib.sha512(self._content).hexdigest(), "signature": self._signer.sign(path).read_text(),
            "token": "TOKEN", "mode": "active", "release": release, "release_signature": "RELEASE",
        }  # fmt: skip
        self._order = {"type": "rollback", "device": "room", "model": "comfort", "digest": digest, "token": "TOKEN",
                       "nonce": "1"}  # fmt: skip
        self._desired = {
            "type": "desired", "device": "room", "rollout": "r1", "serial": 1, "model": "comfort", "version": "1.1.0",
            "digest": digest, "size": len(self._content), "class": "pi4", "not_before": 1_700_000_000,
            "expires": 4_000_000_000, "window": ["00:00", "23:59"], "files": {".sig": "x", ".release": "y"},
        }  # fmt: skip

    def run(self, seed: int) -> tuple[int, set[str]]:
        """One course: how many documents it held, and what it has reached."""
        rng = random.Random(seed)
        place = self._folder / "device"
        shutil.rmtree(place, ignore_errors=True)
        if rng.random() < 0.3:
            shutil.copytree(self._served, place)
        else:
            place.mkdir()
        if rng.random() < 0.5:
            return self._course(rng, place)
        parts, desired = "edge_runtime.store.ota_parts", "edge_runtime.store.desired"
        with (
            mock.patch.multiple(parts, verify=_believe, precheck=_pass, require_usable_key=_pass),
            mock.patch("edge_runtime.bundle.release.verify", _believe),
            mock.patch.multiple(desired, verify=_believe, precheck=_pass),
        ):
            return self._course(rng, place)

    def _course(self, rng: random.Random, place: Path) -> tuple[int, set[str]]:
        loop, link, counters = SteppedLoop(), _Link(), Counters()
        store = ModelStore(place / "store", _trusting)
        policy = Policy(allowed_signers=self._signer.allowed, device="room", device_class=rng.choice((None, "pi4")))
        connection = cast("Connection", link)
        ota = Ota("room", connection, loop.as_loop, incoming=Incoming(store, policy), rate=1e9, counters=counters)
        ota._thread = cast("Any", _AtOnce())
        ota._ended.set()  # no rests
        with mock.patch("edge_runtime.store.desired.BackgroundThread", return_value=_AtOnce()):
            desired = DesiredState(
                "room", connection, loop.as_loop, ota=ota, file=DesiredFile(store, policy), counters=counters
            )
        desired._ended.set()
        count = rng.randrange(1, 12)
        for _ in range(count):
            topic, payload = self.message(rng, ota._token)
            message = Message(f"edge/room/{topic}".encode(), payload, None)
            for handler in link.handlers:
                handler([message])
            loop.advance(rng.choice((0.0, 1.0, 30.0)))
            self._check(place)
            transfer = ota._transfer
            assert transfer is None or _HEX.fullmatch(transfer.offer.sha256), "it becomes the name of a file"
            assert transfer is None or 0 < transfer.offer.size <= DEFAULT_LIMITS.max_bytes
        loop.advance(300.0)
        reached = {f"{topic.rpartition('/')[2]} {answered.get('state')}" for topic, answered in link.published}
        assert {answered["state"] for topic, answered in link.published if topic.endswith("ota/status")} <= _ANSWERS
        assert len(link.published) <= 60 + 20 * count
        return count, reached | set(counters.counts) | set(counters.rejected)

    def message(self, rng: random.Random, token: str) -> tuple[str, bytes]:
        """One message below `edge/room/`: its topic and payload."""
        kind = rng.randrange(6)
        if kind <= 1:
            offer = self._offer | {"token": token if rng.random() < 0.9 else "x"}
            release = self._offer["release"]
            release = odd_document(release, rng) if rng.random() < 0.6 else release
            offer |= {"release": as_json(release).decode() if rng.random() < 0.8 else ""}
            return "ota/offer", as_json(odd_document(offer, rng) if rng.random() < 0.6 else offer)[:70_000]
        if kind == 2:
            order = self._order | {"token": token}
            text = as_json(odd_document(order, rng)).decode()
            request = {"transfer": "c", "order": text, "signature": "x"}
            return "ota/rollback", as_json(odd_document(request, rng) if rng.random() < 0.4 else request)
        if kind == 3:
            text = as_json(odd_document(self._desired | {"serial": rng.randrange(1, 9)}, rng)).decode()
            envelope = {"document": text, "signature": "x"}
            return "desired", as_json(odd_document(envelope, rng) if rng.random() < 0.3 else envelope)
        if kind == 4:
            at = rng.choice((0, 0, 32_768, -1, 10**30))
            name = rng.choice(("t1", "depot" + self._offer["sha256"][:40], "../x", ""))  # type: ignore[index]
            return f"ota/chunk/{name}/{at}", self._content[: rng.choice((0, 1, 32_768, len(self._content)))]
        data = bytearray(as_json(self._offer))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return rng.choice(("ota/offer", "ota/rollback", "desired", "ota/ask", "ota/x", "ota/chunk")), bytes(data)

    def _check(self, place: Path) -> None:
        """Nothing but the store, and in it at most one part, no longer than a bundle may be."""
        assert [path.name for path in place.iterdir()] in ([], ["store"])
        parts = list((place / "store" / ".incoming").glob("*")) if (place / "store" / ".incoming").is_dir() else []
        assert len(parts) <= 1
        assert all(path.stat().st_size <= len(self._content) for path in parts)


class ManifestMachine:
    """Manifests in a file that is sound but for them."""

    name = "manifests"

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            drafts = [
                builders.classification(name="a", version="1.0.0", length=10),
                builders.classification(name="b", version="1.0.0", channels=["x", "y", "z"], labels=("p", "q", "r")),
            ]
            paths = [draft.save(Path(folder) / f"{number}.onnx") for number, draft in enumerate(drafts)]
            self._facts = [read_onnx(path.read_bytes(), "a.onnx", DEFAULT_LIMITS) for path in paths]

    def run(self, seed: int) -> tuple[int, set[str]]:
        """Some manifests: how many, and what they came to."""
        rng, reached = random.Random(seed), set()
        for _ in range(10):
            facts = rng.choice(self._facts)
            metadata = dict(facts.metadata)
            document = msgspec.json.decode(metadata[METADATA_KEY])
            metadata[METADATA_KEY] = as_json(odd_document(document, rng))
            try:
                _judge(msgspec.structs.replace(facts, metadata=metadata))
                reached.add("sound")
            except BundleError as error:
                text = str(error)
                assert text.startswith("a.onnx: ")
                reached.add("refused: " + "".join(each for each in text[8:] if each.isalpha() or each in ": ")[:24])
        return 10, reached


def _judge(facts: Any) -> None:
    """As `check_bundle` behind the reading of the file."""
    manifest = opening._manifest(facts, "a.onnx")
    opening._check_requirements(manifest, "a.onnx")
    opening._check_normal_form(manifest, facts, "a.onnx")
    opening._check_golden(manifest, "a.onnx")
