"""Attacks on the way in over MQTT, by someone who may publish there: nothing unsigned is written, remembered or run."""

import hashlib
import json
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.release import RELEASE_SUFFIX, read_release
from edge_runtime.errors import BundleError, CommandError, EdgeError, SignatureError
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store.desired import DesiredFile, DesiredState
from edge_runtime.store.desired_document import DESIRED_NAMESPACE
from edge_runtime.store.install import Policy
from edge_runtime.store.ota import TAKE_OVER_S
from edge_runtime.store.ota_flood import MOST_PENDING
from edge_runtime.store.store import ModelStore
from edge_runtime.store.trust import Trust
from edge_runtime.system.memory import resident_bytes
from tests.support import builders
from tests.unit.store.test_ota import BundleFiles, Device, Link, _again, _cargo, _finish, _order, _receive

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
    answers = len(device.link.published)
    before = resident_bytes()
    attack(500, 4000)
    assert resident_bytes() - before < 8 * 1024 * 1024
    assert len(device.link.published) - answers < 100
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
        is_installed = any(each.get("state") == "installed" for _, each in device.link.published)
        return is_installed or device.last("want") != last

    for _ in range(len(files.content) // 1024):
        want = device.last("want")
        device.hear(f"chunk/t1/{want['offset']}", files.cut(want))
        device.wait(partial(is_over, want), "the next wish")
        if device.last("want") == want:
            break
    assert [entry.version for entry in device.store.entries()] == ["1.1.0"]
    assert len(device.link.published) < 200
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
    device.link.published.clear()
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


def _allow(device: Device, text: str) -> None:
    """Other trusted keys from now on."""
    device.ota._incoming._policy.allowed_signers.write_text(text)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("expired", "a key that has expired"),
        ("not yet valid", "a key that is not valid yet"),
        ("taken out by a comment", "stranger"),
        ("for another purpose", "may not sign bundles"),
        ("for all but bundles", "may not sign bundles"),
        ("revoked by name", "a revoked key"),
        ("revoked by a list", "a revoked key"),
    ],
)
def test_a_key_that_may_not_sign_has_no_byte_of_its_bundle_stored(way: str, words: str, tmp_path: Path) -> None:
    """Each rule for keys counts before the transfer, although the signature itself is a good one."""
    own = builders.signer(tmp_path / "keys")
    files = _cargo(tmp_path / "files", own)
    device = Device(tmp_path, own)
    principal, _, key = own.allowed.read_text().strip().partition(" ")
    key = key[key.index("ssh-ed25519") :]
    public, revoked = own.key.with_suffix(".pub"), own.allowed.with_name("revoked_keys")
    lines = {
        "expired": f'{principal} valid-before="20200101" {key}',
        "not yet valid": f'{principal} valid-after="21000101" {key}',
        "taken out by a comment": f"# {principal} {key}\nother@example ssh-ed25519 AAAA",
        "for another purpose": f'{principal} namespaces="file,git*" {key}',
        "for all but bundles": f'{principal} namespaces="*,!edge-bundle" {key}',
    }
    if way in lines:
        _allow(device, lines[way] + "\n")
    elif way == "revoked by name":
        revoked.write_bytes(public.read_bytes())
    else:
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(revoked), str(public)], check=True)
    device.offer(files)
    device.wait(lambda: device.state not in {"", "greeting"}, "an answer")
    assert device.state == "refused"
    assert words in device.last("status")["why"]
    assert device.wants() == []
    assert not device.store.root.exists()
    device.end()


def test_a_key_for_these_purposes_brings_its_bundle(tmp_path: Path) -> None:
    """The same rules let a good key pass: patterns that hold, times that hold, and a list that revokes another key."""
    own, other = builders.signer(tmp_path / "keys"), builders.signer(tmp_path / "other")
    files = _cargo(tmp_path / "files", own)
    device = Device(tmp_path, own)
    principal, _, key = own.allowed.read_text().strip().partition(" ")
    key = key[key.index("ssh-ed25519") :]
    _allow(device, f'{principal} namespaces="git,edge-*",valid-after="20200101",valid-before="21000101" {key}\n')
    revoked = own.allowed.with_name("revoked_keys")
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(revoked), str(other.key.with_suffix(".pub"))], check=True)
    _receive(device, files)
    _finish(device, files)
    assert device.state == "installed"
    device.end()


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": -(10**30)}, {"expires": 10**30}, {"expires": -1}, {"sequence": -1}, {"sequence": 2**63},
        {"sequence": 10**400}, {"size": -1}, {"size": 10**30}, {"digest": "../../etc/passwd"}, {"digest": "A" * 64},
        {"digest": "a" * 64 + "\n"}, {"name": 3}, {"version": None}, {"expires": 1.5}, {"sequence": True},
        {"class": ["pi4"]},
    ],
)  # fmt: skip
def test_a_signed_release_document_with_odd_values_is_refused_in_words(
    changes: dict[str, Any], files: BundleFiles, tmp_path: Path, signer: builders.Signer
) -> None:
    """A key that was stolen, or a tool that fails, signs anything: numbers beyond any date, paths for digests."""
    document = {"type": "release", "name": "comfort", "version": "1.1.0", "digest": files.offer["sha256"],
                "size": files.offer["size"], "sequence": 7, **changes}  # fmt: skip
    path = tmp_path / "odd.release"
    path.write_text(json.dumps(document))
    signature = signer.sign(path).read_bytes()
    with pytest.raises(BundleError, match="expected a release document"):
        read_release(path.read_bytes(), [signature], signer.allowed, count=1, place="offer")


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "../../../tmp/x"}, {"digest": ""}, {"digest": "a" * 64 + "/"}, {"size": -1}, {"size": 2**62},
        {"serial": -1}, {"serial": 10**400}, {"expires": -(10**30)}, {"expires": 10**30}, {"not_before": 10**18},
        {"window": ["aa:bb", "1"]}, {"files": {".sig": 3}},
    ],
)  # fmt: skip
def test_a_signed_desired_state_with_odd_values_is_refused_in_words(
    changes: dict[str, Any], tmp_path: Path, signer: builders.Signer
) -> None:
    """Its digest becomes the name of a file, and its numbers become dates: neither is taken as it comes."""
    document = {"type": "desired", "device": "room", "rollout": "r", "serial": 1, "model": "m", "version": "1.0.0",
                "digest": "a" * 64, "size": 10, **changes}  # fmt: skip
    path = tmp_path / "desired"
    path.write_text(json.dumps(document))
    signature = signer.sign(path, namespace=DESIRED_NAMESPACE).read_text()
    store = ModelStore(tmp_path / "store")
    judge = DesiredFile(store, Policy(allowed_signers=signer.allowed, device="room"))
    with pytest.raises(CommandError, match="desired state: "):
        judge.judge(json.dumps({"document": path.read_text(), "signature": signature}).encode())
    assert not store.root.exists()


def test_a_bundle_that_is_not_the_checked_one_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and a child that loads it, the file may be exchanged: its digest is compared first."""
    path = builders.classification(name="comfort", version="1.0.0").save(tmp_path / "bundle.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_bundle(path, digest=digest).digest == digest
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr("edge_runtime.bundle.open.read_onnx", lambda *_: pytest.fail("it is parsed"))
    with pytest.raises(BundleError, match="expected the file that was checked"):
        open_bundle(path, digest=digest)


def test_the_active_bundle_is_not_parsed_for_a_shadow_before_its_signature_holds(
    tmp_path: Path, signer: builders.Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow is compared with the active bundle, whose file another program may have exchanged."""
    store = ModelStore(tmp_path / "store")
    policy = Policy(allowed_signers=signer.allowed)
    store.install(_cargo(tmp_path / "files", signer).path, policy)
    evil = builders.classification(name="comfort", version="9.0.0").save(tmp_path / "evil.onnx").read_bytes()
    store.slot("comfort").path.write_bytes(evil)
    monkeypatch.setattr("edge_runtime.store.trust.check_bundle", lambda *_: pytest.fail("it is parsed"))
    newer = _cargo(tmp_path / "newer", signer, "1.2.0")
    with pytest.raises(SignatureError, match="changed after it was signed"):
        store.install(newer.path, Policy(allowed_signers=signer.allowed, shadow=True))


def test_a_flood_of_forged_desired_states_is_logged_a_few_times_and_leaves_half_a_core(
    tmp_path: Path, signer: builders.Signer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is judged or replaced by a newer one, and counted; the thread rests for as long as it has worked."""
    rests: list[float] = []
    device = Device(tmp_path, signer)
    link = Link()
    state = DesiredState(
        "room",
        cast("Connection", link),
        device.loop.as_loop,
        ota=device.ota,
        file=DesiredFile(device.store, Policy(allowed_signers=signer.allowed, device="room")),
        counters=device.counters,
    )
    state._ended.wait = rests.append  # type: ignore[method-assign, assignment]
    for number in range(60):
        link.handler([Message(b"edge/room/desired", b'{"document": "%d", "signature": "x"}' % number, None)])
        device.wait(lambda number=number: device.counters.counts["desired_refused"] > number, "a refusal")  # type: ignore[misc]
    assert len(rests) == 60
    assert 1 <= caplog.text.count("desired state refused") <= 21
    assert not device.store.root.exists()
    state.end()
    device.end()
