"""The disk's side of a transfer: which offers and orders are admitted, and what is on the disk meanwhile."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.bundle.release import RELEASE_SUFFIX
from edge_runtime.bundle.signature import verify
from edge_runtime.errors import BundleError, CommandError, EdgeError, SignatureError
from edge_runtime.fleet.over_mqtt import sign
from edge_runtime.store import ota_parts as module
from edge_runtime.store.install import SPARE_BYTES, Policy
from edge_runtime.store.ota_parts import ROLLBACK_NAMESPACE, Incoming, Offer, read_order
from edge_runtime.store.store import ModelStore
from tests.support import builders

Make = Callable[..., Path]
NAME, DEVICE, TOKEN = "activity", "press-07", "0123456789abcdef"


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, keys: builders.Signer) -> builders.Signer:
    """Another trusted key."""
    made = builders.signer(tmp_path_factory.mktemp("second"), "second@example")
    with keys.allowed.open("a") as file:
        file.write(made.allowed.read_text())
    return builders.Signer(made.key, keys.allowed)


@pytest.fixture
def incoming(store: ModelStore, policy: Policy) -> Incoming:
    """Of an empty store."""
    return Incoming(store, policy)


def _offer(path: Path, **changes: Any) -> Offer:
    """An offer of a signed bundle."""
    content = path.read_bytes()
    found: dict[str, Any] = {
        "transfer": "t1", "size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "sha512": hashlib.sha512(content).hexdigest(),
        "signature": path.with_name(path.name + ".sig").read_text(),
    }  # fmt: skip
    return Offer(**(found | changes))


def _release(path: Path, keys: builders.Signer, *others: builders.Signer, **changes: Any) -> dict[str, str]:
    """A signed release document of a bundle, as members of an offer."""
    content = path.read_bytes()
    document = {
        "type": "release", "name": NAME, "version": "1.0.0", "digest": hashlib.sha256(content).hexdigest(),
        "size": len(content), "sequence": 1,
    } | changes  # fmt: skip
    text = msgspec.json.encode(document)
    made = {"release": text.decode(), "release_signature": sign(keys.key, text, namespace="edge-bundle")}
    for other in others:
        made["release_signature2"] = sign(other.key, text, namespace="edge-bundle")
    return made


def _bring(incoming: Incoming, offer: Offer, path: Path) -> None:
    """All of it, in one chunk."""
    held = incoming.prepare(offer)
    incoming.append(offer, held, path.read_bytes()[held:])


# -- offers --------------------------------------------------------------------------------------------------------


def test_which_members_are_the_signatures_and_which_the_bundle() -> None:
    """Another sender's name, token and wish are no other bundle; every other difference is one."""
    offer = Offer(transfer="a", size=1, sha256="s", signature="x", signature2="")
    assert offer.signatures == ["x"]
    assert msgspec.structs.replace(offer, signature2="y").signatures == ["x", "y"]
    others: dict[str, Any] = {"transfer": "b", "token": "t", "mode": "stage"}
    assert offer.is_same_bundle(msgspec.structs.replace(offer, **others))
    for name in set(offer.__struct_fields__) - set(others):
        other = msgspec.structs.replace(offer, **{name: 2 if name == "size" else "other"})
        assert not offer.is_same_bundle(other), name


def test_a_signed_bundle_is_admitted_by_its_hash(incoming: Incoming, make: Make, store: ModelStore) -> None:
    """Before a byte of it is here, and nothing is written for it."""
    incoming.examine(_offer(make("1.0.0")))
    assert not store.root.exists()


@pytest.mark.parametrize("member", ["sha256", "sha512"])
def test_the_signature_is_of_the_announced_hashes(incoming: Incoming, make: Make, member: str) -> None:
    """OpenSSH signs one of the two hashes; that one decides, and another file's is refused."""
    offer = _offer(make("1.0.0"))
    wrong = "ab" * (len(getattr(offer, member)) // 2)
    changed = msgspec.structs.replace(offer, **{member: wrong})
    if member == "sha512":  # the hash that ssh-keygen uses
        with pytest.raises(SignatureError, match="another file"):
            incoming.examine(changed)
    else:
        incoming.examine(changed)  # the whole file is compared with it at the end


def test_a_key_that_may_not_sign_this_now_is_refused(make: Make, store: ModelStore, tmp_path: Path) -> None:
    """A key with another purpose in `allowed_signers`: its signature is good, and admits nothing."""
    other = builders.signer(tmp_path / "other", "other@example", 'namespaces="edge-desired"')
    path = make("1.0.0")
    other.sign(path)
    with pytest.raises(SignatureError):
        Incoming(store, Policy(allowed_signers=other.allowed, device=DEVICE)).examine(_offer(path))


def test_two_keys_are_two(make: Make, store: ModelStore, keys: builders.Signer, second: builders.Signer) -> None:
    """With `signatures = 2`: two different ones; one alone, or one twice, is refused."""
    incoming = Incoming(store, Policy(allowed_signers=keys.allowed, device=DEVICE, signatures=2))
    path = make("1.0.0")
    offer = _offer(path)
    with pytest.raises(SignatureError, match="expected 2 signatures, found 1"):
        incoming.examine(offer)
    with pytest.raises(SignatureError, match="expected 2 different keys, found 1"):
        incoming.examine(msgspec.structs.replace(offer, signature2=offer.signature))
    text = sign(second.key, path.read_bytes(), namespace="edge-bundle")
    incoming.examine(msgspec.structs.replace(offer, signature2=text))
    stranger = sign(second.key, b"another file", namespace="edge-bundle")
    with pytest.raises(SignatureError, match="another file"):
        incoming.examine(msgspec.structs.replace(offer, signature2=stranger))


def test_a_second_signature_that_is_not_asked_for_is_not_judged(incoming: Incoming, make: Make) -> None:
    """A fleet that goes over to two keys sends both to devices that ask for one."""
    incoming.examine(_offer(make("1.0.0"), signature2="nonsense"))


def test_a_release_document_is_judged_instead_of_the_hash(
    make: Make, store: ModelStore, keys: builders.Signer, second: builders.Signer
) -> None:
    """It names digest and size; both have to be those of the offer. The SHA-512 is not needed then."""
    path = make("1.0.0")
    incoming = Incoming(store, Policy(allowed_signers=keys.allowed, device=DEVICE, release="require"))
    with pytest.raises(BundleError, match="expected a release document, found none"):
        incoming.examine(_offer(path))
    incoming.examine(_offer(path, sha512="", **_release(path, keys)))
    for changes in ({"digest": "ab" * 32}, {"size": 1}):
        with pytest.raises(BundleError, match="expected digest and size of its release document"):
            incoming.examine(_offer(path, **_release(path, keys, **changes)))
    unsigned = _release(path, keys) | {"release_signature": ""}
    with pytest.raises(SignatureError, match="expected 1 signatures of the release document, found 0"):
        incoming.examine(_offer(path, **unsigned))
    both = Incoming(store, Policy(allowed_signers=keys.allowed, device=DEVICE, signatures=2))
    two = {"signature2": sign(second.key, path.read_bytes(), namespace="edge-bundle")}
    with pytest.raises(SignatureError, match="expected 2 signatures of the release document, found 1"):
        both.examine(_offer(path, **two, **_release(path, keys)))
    both.examine(_offer(path, **two, **_release(path, keys, second)))


def test_a_release_that_an_install_would_refuse_is_refused_before(
    make: Make, store: ModelStore, policy: Policy, keys: builders.Signer
) -> None:
    """For another class of device, and older than what runs."""
    path = make("1.0.0")
    offer = _offer(path, **_release(path, keys, **{"class": "pi5"}))
    Incoming(store, policy).examine(offer)
    zero = Policy(allowed_signers=keys.allowed, device=DEVICE, device_class="zero2w")
    with pytest.raises(BundleError, match="zero2w"):
        Incoming(store, zero).examine(offer)
    store.install(make("1.1.0"), policy)
    with pytest.raises(BundleError, match=r"above 1\.1\.0"):
        Incoming(store, policy).examine(offer)


def test_what_serves_already_is_found(incoming: Incoming, make: Make, store: ModelStore, policy: Policy) -> None:
    """On probation or proven; a staged or earlier one has to be sent, and one that failed is refused."""
    old, new = make("1.0.0"), make("1.1.0")
    assert incoming.serving(_offer(old)) is None
    store.install(old, policy)
    found = incoming.serving(_offer(old))
    assert found is not None
    assert (found.version, found.state) == ("1.0.0", "probation")
    store.confirm(NAME, found.digest)
    assert incoming.serving(_offer(new)) is None
    store.install(new, policy)
    assert incoming.serving(_offer(old)) is None
    store.fail(NAME, _offer(new).sha256, "too slow")
    with pytest.raises(CommandError, match=r"found one that has \(too slow\)"):
        incoming.serving(_offer(new))
    served = incoming.serving(_offer(old))
    assert served is not None
    assert served.state == "active"


# -- parts ---------------------------------------------------------------------------------------------------------


def test_a_part_is_continued_and_others_are_dropped(incoming: Incoming, make: Make, store: ModelStore) -> None:
    """At most one part is here, by its digest; the folder is made with the first, also above the store."""
    path = make("1.0.0")
    offer, content = _offer(path), path.read_bytes()
    folder = store.root / ".incoming"
    assert incoming.prepare(offer) == 0
    incoming.append(offer, 0, content[:100])
    (folder / "older.part").write_bytes(b"x")
    (folder / "a folder").mkdir()
    assert incoming.prepare(offer) == 100
    assert [each.name for each in folder.iterdir()] == [f"{offer.sha256}.part"]
    incoming.append(offer, 100, content[100:])
    assert incoming.prepare(offer) == len(content)
    assert (folder / f"{offer.sha256}.part").read_bytes() == content
    assert (folder / f"{offer.sha256}.part").stat().st_mode & 0o777 == 0o600


def test_a_part_that_is_too_long_is_dropped(incoming: Incoming, make: Make, store: ModelStore) -> None:
    """It cannot be the beginning of this file; one that is whole is kept."""
    offer = _offer(make("1.0.0"))
    incoming.prepare(offer)
    part = store.root / ".incoming" / f"{offer.sha256}.part"
    part.write_bytes(b"x" * offer.size)
    assert incoming.prepare(offer) == offer.size
    part.write_bytes(b"x" * (offer.size + 1))
    assert incoming.prepare(offer) == 0
    assert not part.exists()


def test_a_store_below_folders_that_are_not_there_is_made(tmp_path: Path, make: Make, policy: Policy) -> None:
    """The first bundle of a new device comes over MQTT; a second transfer finds the folders."""
    store = ModelStore(tmp_path / "a" / "b" / "models")
    for _ in range(2):
        assert Incoming(store, policy).prepare(_offer(make("1.0.0"))) == 0


@pytest.mark.parametrize("held", [0, 1000])
def test_there_has_to_be_room_for_the_part_and_for_its_copy(
    incoming: Incoming, make: Make, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Twice the size, less what is here, and the spare bytes of an install: exactly as much is enough."""
    path = make("1.0.0")
    offer = _offer(path, size=10_000)
    incoming.prepare(offer)
    incoming.append(offer, 0, b"x" * held)
    needed = 20_000 - held + SPARE_BYTES
    free = [needed]
    monkeypatch.setattr(
        "edge_runtime.store.ota_parts.shutil.disk_usage", lambda _: type("Usage", (), {"free": free[0]})
    )
    assert incoming.prepare(offer) == held
    free[0] = needed - 1
    with pytest.raises(CommandError, match=f"room for {needed} bytes, found {needed - 1} free"):
        incoming.prepare(offer)


def test_a_write_of_which_the_disk_takes_a_part_is_continued(
    incoming: Incoming, make: Make, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte stands at its place, though each call writes seven of them."""
    offer = _offer(make("1.0.0"))
    incoming.prepare(offer)
    write = os.pwrite
    monkeypatch.setattr(
        "edge_runtime.store.ota_parts.os.pwrite", lambda handle, data, at: write(handle, bytes(data)[:7], at)
    )
    text = bytes(range(100))
    incoming.append(offer, 0, text)
    incoming.append(offer, 100, text)
    assert (store.root / ".incoming" / f"{offer.sha256}.part").read_bytes() == text * 2


def test_every_write_closes_its_file(incoming: Incoming, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer of a gigabyte is thirty thousand writes; a failed one closes its file as well."""
    offer = _offer(make("1.0.0"))
    incoming.prepare(offer)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        incoming.append(offer, number, b"x")

    def full(_handle: int, _data: object, _at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("edge_runtime.store.ota_parts.os.pwrite", full)
    with pytest.raises(CommandError, match="cannot be written: No space left"):
        incoming.append(offer, 0, b"x")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_in_the_place_of_the_part_is_not_followed(
    incoming: Incoming, make: Make, store: ModelStore, tmp_path: Path
) -> None:
    """Whoever may write into the folder cannot have another file written."""
    offer = _offer(make("1.0.0"))
    incoming.prepare(offer)
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    (store.root / ".incoming" / f"{offer.sha256}.part").symlink_to(other)
    with pytest.raises(CommandError, match="cannot be written"):
        incoming.append(offer, 0, b"x")
    assert other.read_bytes() == b"kept"


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, make: Make, policy: Policy) -> None:
    """A file stands in its place."""
    (tmp_path / "models").write_text("")
    with pytest.raises(CommandError, match="cannot be written"):
        Incoming(ModelStore(tmp_path / "models"), policy).prepare(_offer(make("1.0.0")))


# -- the whole file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "word", "shadow"),
    [("active", "probation", False), ("stage", "staged", False), ("shadow", "staged", True)],
)
def test_a_whole_file_is_installed_as_the_offer_says(
    incoming: Incoming, make: Make, store: ModelStore, policy: Policy, mode: Any, word: str, *, shadow: bool
) -> None:
    """As the active bundle, staged, or as the shadow of the active one; nothing of it stays in the folder."""
    store.install(make("1.0.0"), policy)
    path = make("1.1.0")
    offer = _offer(path, mode=mode)
    _bring(incoming, offer, path)
    slot = incoming.install(offer)
    assert (slot.version, slot.state) == ("1.1.0", word)
    assert slot.path.read_bytes() == path.read_bytes()
    assert (store.shadow(NAME) is not None) == shadow
    assert list((store.root / ".incoming").iterdir()) == []


def test_every_file_beside_the_bundle_is_installed_with_it(
    make: Make, store: ModelStore, keys: builders.Signer, second: builders.Signer
) -> None:
    """Two signatures of the bundle, and two of its release document: a device that requires all of them takes it."""
    path = make("1.0.0")
    release = _release(path, keys, second)
    offer = _offer(path, signature2=sign(second.key, path.read_bytes(), namespace="edge-bundle"), **release)
    incoming = Incoming(store, Policy(allowed_signers=keys.allowed, device=DEVICE, signatures=2, release="require"))
    _bring(incoming, offer, path)
    assert incoming.install(offer).version == "1.0.0"
    names = {each.name.split(".onnx")[1]: each.read_text() for each in (store.root / NAME).glob("*.onnx.*")}
    assert names[".sig"] == offer.signature
    assert names[".sig2"] == offer.signature2
    assert list((store.root / ".incoming").iterdir()) == []


def test_other_bytes_than_were_announced_are_not_installed(incoming: Incoming, make: Make, store: ModelStore) -> None:
    """The whole file is hashed from the disk; the part is dropped, so that the next try begins anew."""
    path = make("1.0.0")
    offer = _offer(path)
    _bring(incoming, offer, path)
    incoming.append(offer, 200, b"\0")
    with pytest.raises(CommandError, match="expected the bundle that was announced, found other bytes"):
        incoming.install(offer)
    assert incoming.prepare(offer) == 0
    assert store.names() == []


def test_what_the_store_refuses_leaves_nothing_behind(
    incoming: Incoming, make: Make, store: ModelStore, policy: Policy, keys: builders.Signer
) -> None:
    """Also the files beside the bundle; the reason is the store's."""
    store.install(make("1.1.0"), policy)
    path = make("1.0.0")
    offer = _offer(path, **_release(path, keys))
    _bring(incoming, offer, path)
    with pytest.raises(BundleError, match=r"above 1\.1\.0"):
        incoming.install(offer)
    assert list((store.root / ".incoming").iterdir()) == []


def test_a_part_that_is_gone_is_reported(incoming: Incoming, make: Make) -> None:
    """The disk was cleaned up meanwhile."""
    offer = _offer(make("1.0.0"))
    incoming.prepare(offer)
    with pytest.raises(CommandError, match="cannot be written: No such file"):
        incoming.install(offer)


# -- orders --------------------------------------------------------------------------------------------------------


def _order(store: ModelStore, **changes: str) -> str:
    order = {
        "type": "rollback", "device": DEVICE, "model": NAME, "digest": store.slot(NAME).digest, "token": TOKEN,
        "nonce": "1",
    } | changes  # fmt: skip
    return msgspec.json.encode(order).decode()


@pytest.fixture
def upgraded(store: ModelStore, make: Make, policy: Policy) -> ModelStore:
    """Version 1.1.0 runs, and 1.0.0 ran before."""
    for version in ("1.0.0", "1.1.0"):
        store.install(make(version), policy)
    return store


def test_a_signed_order_is_carried_out_once(upgraded: ModelStore, policy: Policy, keys: builders.Signer) -> None:
    """With another nonce the same way back may be ordered again, by another signature."""
    incoming = Incoming(upgraded, policy)
    text = _order(upgraded)
    signature = sign(keys.key, text.encode(), namespace=ROLLBACK_NAMESPACE)
    assert incoming.rollback(text, signature, TOKEN).version == "1.0.0"
    upgraded.activate(NAME, "1.1.0")
    with pytest.raises(CommandError, match="found one that was carried out before"):
        incoming.rollback(text, signature, TOKEN)
    assert upgraded.slot(NAME).version == "1.1.0"
    again = _order(upgraded, nonce="2")
    assert incoming.rollback(again, sign(keys.key, again.encode(), namespace=ROLLBACK_NAMESPACE), TOKEN).version == (
        "1.0.0"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "attic"}, f"device: expected {DEVICE}, found 'attic'"),
        ({"token": "f" * 16}, f"token: expected {TOKEN}, found '{'f' * 16}'"),
        ({"digest": "ab" * 32}, ", found 'abababababababab'"),
    ],
)
def test_an_order_for_something_else_changes_nothing(
    upgraded: ModelStore, policy: Policy, keys: builders.Signer, changes: dict[str, str], words: str
) -> None:
    """It names one device, one start and the bundle to leave; a wrong one does not use its nonce up."""
    incoming = Incoming(upgraded, policy)
    text = _order(upgraded, **changes)
    with pytest.raises(CommandError) as caught:
        incoming.rollback(text, sign(keys.key, text.encode(), namespace=ROLLBACK_NAMESPACE), TOKEN)
    assert words in str(caught.value)
    assert upgraded.slot(NAME).version == "1.1.0"
    good = _order(upgraded)
    assert incoming.rollback(good, sign(keys.key, good.encode(), namespace=ROLLBACK_NAMESPACE), TOKEN).version == (
        "1.0.0"
    )


@pytest.mark.parametrize("by", ["no signature", "stranger", "bundle", "another text"])
def test_an_order_without_a_good_signature_changes_nothing(
    upgraded: ModelStore, policy: Policy, keys: builders.Signer, tmp_path: Path, by: str
) -> None:
    """A stranger's, one for bundles, one of another order, or none."""
    text = _order(upgraded)
    made: dict[str, Callable[[], str]] = {
        "no signature": lambda: "",
        "stranger": lambda: sign(builders.signer(tmp_path / "x").key, text.encode(), namespace=ROLLBACK_NAMESPACE),
        "bundle": lambda: sign(keys.key, text.encode(), namespace="edge-bundle"),
        "another text": lambda: sign(keys.key, text.encode() + b" ", namespace=ROLLBACK_NAMESPACE),
    }
    with pytest.raises(SignatureError):
        Incoming(upgraded, policy).rollback(text, made[by](), TOKEN)
    assert upgraded.slot(NAME).version == "1.1.0"


def test_an_order_of_another_kind_of_key_is_verified_with_its_text(upgraded: ModelStore, tmp_path: Path) -> None:
    """An RSA key passes the first check unread, and is judged by OpenSSH: a wrong text is refused, a good one not."""
    key = tmp_path / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(key)], check=True)
    kind, text, *_ = key.with_suffix(".pub").read_text().split()
    allowed = tmp_path / "allowed"
    allowed.write_text(f"rsa@example {kind} {text}\n")
    incoming = Incoming(upgraded, Policy(allowed_signers=allowed, device=DEVICE))
    order = _order(upgraded)
    wrong = sign(key, b"another text", namespace=ROLLBACK_NAMESPACE)
    with pytest.raises(SignatureError):
        incoming.rollback(order, wrong, TOKEN)
    assert incoming.rollback(order, sign(key, order.encode(), namespace=ROLLBACK_NAMESPACE), TOKEN).version == "1.0.0"


def test_a_signature_that_cannot_be_good_starts_no_program(
    upgraded: ModelStore, policy: Policy, keys: builders.Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH is started for a signature of these bytes by a trusted key, so that a flood of others costs little."""
    verified: list[bytes] = []

    def noted(data: bytes, *args: Any, **more: Any) -> object:
        verified.append(data)
        return verify(data, *args, **more)

    monkeypatch.setattr(module, "verify", noted)
    text = _order(upgraded)
    incoming = Incoming(upgraded, policy)
    with pytest.raises(SignatureError):
        incoming.rollback(text, sign(keys.key, b"another text", namespace=ROLLBACK_NAMESPACE), TOKEN)
    assert verified == []
    incoming.rollback(text, sign(keys.key, text.encode(), namespace=ROLLBACK_NAMESPACE), TOKEN)
    assert verified == [text.encode()]


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff", "[" * 3000, '{"type":"allow-older"}'])
def test_an_order_that_is_none_is_named(text: str) -> None:
    """With what is wrong with it."""
    with pytest.raises(EdgeError, match="order to go back: "):
        read_order(text)


def test_an_order_with_more_than_its_members_is_none(upgraded: ModelStore) -> None:
    """What a later release would mean by it is not guessed."""
    with pytest.raises(CommandError, match="order to go back: "):
        read_order(_order(upgraded, later="x"))


def test_a_release_has_its_suffixes() -> None:
    """The files beside a bundle, in the order of the members of an offer."""
    assert (".sig", ".sig2", RELEASE_SUFFIX, f"{RELEASE_SUFFIX}.sig", f"{RELEASE_SUFFIX}.sig2") == module._BESIDE
