"""Attacks on the way in over MQTT, by someone who may publish there: nothing unsigned is written, remembered or run."""

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.release import RELEASE_SUFFIX
from edge_runtime.errors import BundleError, EdgeError, SignatureError
from edge_runtime.store.install import Policy
from edge_runtime.store.ota import TAKE_OVER_S
from edge_runtime.store.ota_flood import MOST_PENDING
from edge_runtime.store.store import ModelStore
from edge_runtime.store.trust import Trust
from edge_runtime.system.memory import resident_bytes
from tests.support import builders
from tests.unit.store.test_ota import BundleFiles, Device, _again, _cargo, _finish, _order, _receive

BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> builders.Signer:
    """The key that the device trusts."""
    return builders.signer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def files(tmp_path: Path, signer: builders.Signer) -> BundleFiles:
    """A bundle that the operator signed."""
    return _cargo(tmp_path / "files", signer)


@pytest.fixture
def device(tmp_path: Path, signer: builders.Signer) -> Device:
    """The device under attack."""
    return Device(tmp_path, signer)


def _released(files: BundleFiles, signer: builders.Signer, **changes: Any) -> BundleFiles:
    """The same bundle with a signed release document beside it."""
    document = {
        "type": "release",
        "name": "comfort",
        "version": "1.1.0",
        "digest": files.offer["sha256"],
        "size": files.offer["size"],
        "sequence": 7,
        **changes,
    }
    path = files.path.with_name(files.path.name + RELEASE_SUFFIX)
    path.write_bytes(msgspec.json.encode(document))
    signature = signer.sign(path).read_text()
    offer = files.offer | {"release": path.read_text(), "release_signature": signature}
    return BundleFiles(files.path, files.content, offer)


@pytest.mark.parametrize(
    "signature",
    ["nonsense", BEGIN + "nonsense", f"{BEGIN}\nbm9uc2Vuc2U=\n{END}\n", BEGIN + "\n" + "A" * 40_000 + "\n" + END],
)
def test_an_offer_of_eight_mebibytes_without_a_good_signature_writes_nothing(
    device: Device, files: BundleFiles, signature: str
) -> None:
    """The place for a transfer stays free, the disk untouched, and the operator's bundle comes in meanwhile."""
    device.offer(_again(files, "evil"), size=8 * 1024 * 1024, signature=signature)
    device.wait(lambda: device.state == "refused", "the refusal")
    assert device.wants() == []
    assert not device.store.root.exists()
    _receive(device, files)
    _finish(device, files)
    assert device.state == "installed"


def test_a_recorded_signature_is_none_of_another_file(device: Device, files: BundleFiles) -> None:
    """The signature of a bundle, offered for other bytes, is refused by their hash."""
    other = b"x" * 4_000_000
    forged = {
        "sha256": hashlib.sha256(other).hexdigest(),
        "sha512": hashlib.sha512(other).hexdigest(),
        "size": len(other),
    }
    device.offer(files, **forged)
    device.wait(lambda: device.state == "refused", "the refusal")
    assert "another file" in device.last("status")["why"]
    assert not device.store.root.exists()


def test_four_thousand_orders_with_nonsense_signatures_cost_no_memory_and_no_disk(
    tmp_path: Path, signer: builders.Signer, files: BundleFiles
) -> None:
    """They are bounded in the queue, in answers and in log lines; a signed order is carried out behind them."""
    device = Device(tmp_path, signer)
    for version in ("1.0.0", "1.1.0"):
        path = _cargo(tmp_path / version, signer, version).path
        device.store.install(path, Policy(allowed_signers=signer.allowed))
    good = _order(device, signer, tmp_path)
    order = {"type": "rollback", "device": "room", "model": "comfort", "digest": "0" * 64}
    padding = "A" * 60_000

    def attack(first: int, count: int) -> None:
        for number in range(first, first + count):
            text = msgspec.json.encode({**order, "token": device.token, "nonce": str(number)}).decode()
            document = {"transfer": "x", "order": text, "signature": f"{BEGIN}\n{padding}{number:04d}\n{END}"}
            device.hear("rollback", document)

    attack(0, 500)
    answers = len(device.link.said)
    before = resident_bytes()
    attack(500, 4000)
    assert resident_bytes() - before < 8 * 1024 * 1024
    assert len(device.link.said) - answers < 100
    assert device.counters.counts["ota_dropped"] > 0
    assert not (device.store.root / ".incoming").exists()
    device.wait(lambda: device.ota.flood.pending["order"] == 0, "the queue is empty")
    device.loop.advance(60.0)
    device.hear("rollback", good)
    device.wait(lambda: device.state == "rolled back", "the way back")
    assert device.store.slot("comfort").version == "1.0.0"
    assert files.path.exists()


def test_a_flood_of_offers_does_not_keep_the_operator_out(
    device: Device, files: BundleFiles, signer: builders.Signer
) -> None:
    """Hundreds of forged offers in the right form, with our token, come before and between the operator's messages."""
    device.offer(files, signature="nonsense")  # learns the token, as anyone does who may read

    def flood() -> None:
        for number in range(200):
            digest = hashlib.sha512(str(number).encode()).hexdigest()
            offer = files.offer | {"transfer": f"f{number}", "token": device.token, "sha512": digest}
            device.hear("offer", offer)
            device.hear("offer", offer | {"token": "wrong"})

    flood()
    for _ in range(20):
        device.wait(lambda: device.ota.flood.pending["offer"] < MOST_PENDING, "a place in the queue")
        device.hear("offer", files.offer | {"token": device.token})
        device.wait(lambda: device.ota.flood.pending["offer"] == 0, "the queue is empty")
        if device.ota._transfer is not None:
            break
    device.wait(lambda: device.last("want"), "the first wish")
    flood()

    def is_over(last: dict[str, Any]) -> bool:
        """The next wish, or the end; what the flood is answered stands between them."""
        is_installed = any(each.get("state") == "installed" for _, each in device.link.said)
        return is_installed or device.last("want") != last

    for _ in range(len(files.content) // 1024):
        want = device.last("want")
        device.hear(f"chunk/t1/{want['offset']}", files.cut(want))
        device.wait(partial(is_over, want), "the next wish")
        if device.last("want") == want:
            break
    assert [entry.version for entry in device.store.entries()] == ["1.1.0"]
    assert len(device.link.said) < 200
    assert signer.key.exists()


def test_a_replayed_offer_does_not_steal_a_transfer_from_its_sender(device: Device, files: BundleFiles) -> None:
    """While the operator's chunks come, the same offer under another name is refused; once they stop, it goes on."""
    _receive(device, files, 1)
    thief = _again(files, "thief")
    device.hear("offer", thief.offer | {"token": device.token})
    assert device.last("status")["transfer"] == "thief"
    assert device.state == "refused"
    device.hear(f"chunk/thief/{device.last('want')['offset']}", b"x")
    assert device.last("want")["transfer"] == "t1"
    device.loop.advance(TAKE_OVER_S + 1.0)
    device.hear("offer", thief.offer | {"token": device.token})
    assert device.last("want")["transfer"] == "thief"


def test_a_release_document_is_judged_before_the_bundle_comes(
    device: Device, files: BundleFiles, tmp_path: Path, signer: builders.Signer
) -> None:
    """An older version, another size, an expired or forged document, and one for another class begin no transfer."""
    released = _released(files, signer)
    _receive(device, released)
    _finish(device, released)
    assert device.state == "installed"
    older = _cargo(tmp_path / "older", signer, "1.0.0", "t2")
    newer = _cargo(tmp_path / "newer", signer, "1.2.0", "t3")
    stranger = builders.signer(tmp_path / "stranger")
    cases = [
        (_released(older, signer, version="1.0.0", sequence=8), "above 1.1.0"),
        (_released(newer, signer, version="1.2.0", sequence=6), "sequence 7 or above"),
        (_released(newer, signer, version="1.2.0", sequence=8, expires=int(time.time()) - 60), "expired"),
        (_released(newer, signer, version="1.2.0", sequence=8, size=1), "digest and size"),
        (_released(newer, stranger, version="1.2.0", sequence=8), "stranger"),
    ]
    device.link.said.clear()
    for number, (attack, words) in enumerate(cases):
        device.offer(_again(attack, f"a{number}"))
        device.wait(lambda number=number: device.last("status").get("transfer") == f"a{number}", "an answer")  # type: ignore[misc]
        device.wait(lambda: device.state == "refused", "the refusal")
        assert words in device.last("status")["why"]
    assert device.wants() == []
    good = _released(newer, signer, version="1.2.0", sequence=8)
    _receive(device, good)
    _finish(device, good)
    assert device.last("status")["version"] == "1.2.0"


def test_a_release_document_that_does_not_belong_to_the_bundle_is_refused(
    tmp_path: Path, signer: builders.Signer
) -> None:
    """Mix and match: the signed document of one version beside the signed bundle of another, on every way in."""
    store = ModelStore(tmp_path / "store")
    files = _cargo(tmp_path / "files", signer)
    for changes in ({"version": "1.2.0"}, {"name": "other"}, {"digest": "0" * 64}, {"size": 3}):
        _released(files, signer, **changes)
        with pytest.raises(BundleError, match="the release document says"):
            store.install(files.path, Policy(allowed_signers=signer.allowed))
    assert store.names() == []


def test_one_stolen_key_of_two_installs_nothing(tmp_path: Path) -> None:
    """Where two keys are asked for, one key's signature, or the same key's twice, is refused on every way in."""
    first = builders.signer(tmp_path / "first", "first@example")
    second = builders.signer(tmp_path / "second", "second@example")
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(first.allowed.read_text() + second.allowed.read_text())
    path = builders.classification(name="comfort", version="1.0.0").save(tmp_path / "bundle.onnx")
    policy = Policy(allowed_signers=allowed, signatures=2)
    store = ModelStore(tmp_path / "store", trust=Trust(allowed, 2))
    first.sign(path)
    with pytest.raises(SignatureError, match=r"\.sig2"):
        store.install(path, policy)
    path.with_name("bundle.onnx.sig2").write_bytes(path.with_name("bundle.onnx.sig").read_bytes())
    with pytest.raises(SignatureError, match="expected 2 different keys, found 1"):
        store.install(path, policy)
    second.sign(path).rename(path.with_name("bundle.onnx.sig2"))
    first.sign(path)
    store.install(path, policy)
    assert store.open("comfort").manifest.version == "1.0.0"
    (tmp_path / "revoked_keys").write_bytes(second.key.with_suffix(".pub").read_bytes())
    with pytest.raises(SignatureError, match="revoked"):
        store.open("comfort")


def test_a_bundle_that_was_put_into_the_store_is_not_parsed_before_its_signature_holds(
    tmp_path: Path, signer: builders.Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that replaces the active bundle, and a state that was damaged to have it found, reach no parser."""
    trust = Trust(signer.allowed)
    store = ModelStore(tmp_path / "store", trust=trust)
    store.install(_cargo(tmp_path / "files", signer).path, Policy(allowed_signers=signer.allowed))
    slot = store.slot("comfort")
    evil = builders.classification(name="comfort", version="9.0.0").save(tmp_path / "evil.onnx").read_bytes()
    parsed: list[Path] = []

    def parse(path: Path, _data: bytes) -> None:
        parsed.append(path)
        pytest.fail(f"{path} is parsed")

    monkeypatch.setattr("edge_runtime.store.trust.check_bundle", parse)
    slot.path.write_bytes(evil)
    with pytest.raises(EdgeError, match="changed after it was signed"):
        store.open("comfort")
    digest = hashlib.sha256(evil).hexdigest()
    slot.path.with_name(f"{digest}.onnx").write_bytes(evil)
    slot.path.with_name("state.json").write_bytes(b"{")
    with pytest.raises(EdgeError, match="found comfort"):
        store.slot("comfort")
    assert parsed == []
