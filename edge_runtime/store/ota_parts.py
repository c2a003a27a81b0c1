"""The work of a transfer over MQTT outside the loop: judges an offer, keeps the parts, and installs the whole file.

An offer is judged before a byte of its bundle is taken: by its signed release document (`bundle/release.py`), which
names digest, size, name, version, sequence and expiry, or without one by the bundle's own signature, which is checked
against the announced hash. Nothing is written for an offer or an order without a valid signature.

The folder `STORE/.incoming/` holds at most one part, named by its expected SHA-256, so that only the same content is
continued: after a pause, by another sender, or after a restart of the daemon. The store ignores this folder; only
`ModelStore.install` makes it a bundle, and verifies the signature before anything parses the file.

Guarantee: never more than the announced size is written, which is signed by a trusted key or bounded; a part is never
trusted, since the whole file is hashed from the disk. Weak points: a power cut may leave a part with a damaged end;
then the hash differs, the part is dropped, and the next try starts from the beginning. The name and version of a bundle
without a release document are known only after the transfer, and only Ed25519 keys can be checked before.
"""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.bundle.release import RELEASE_SUFFIX, read_release
from edge_runtime.bundle.signature import NAMESPACE, SUFFIXES, precheck, require_keys, require_usable_key, verify
from edge_runtime.errors import BundleError, CommandError, SignatureError
from edge_runtime.store.install import SPARE_BYTES, Policy
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.records import ListedBundle, Slot
from edge_runtime.store.store import ModelStore
from edge_runtime.system.durable import make_folder, remove, write_file

ROLLBACK_NAMESPACE = f"{NAMESPACE}-rollback"
_BESIDE = (*SUFFIXES, RELEASE_SUFFIX, *(RELEASE_SUFFIX + suffix for suffix in SUFFIXES))
_READ_BYTES = 1024 * 1024


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender announces. Unknown keys are ignored.

    Attributes:
        transfer: the sender's name for this transfer.
        size: of the bundle, in bytes.
        sha256: of the bundle, in hex.
        sha512: likewise: the hash that the signature covers. Not needed with a release document.
        signature: the content of `BUNDLE.sig`.
        signature2: the content of `BUNDLE.sig2`, where two keys have signed.
        release: the content of `BUNDLE.release`.
        release_signature: the content of `BUNDLE.release.sig`.
        release_signature2: the content of `BUNDLE.release.sig2`.
        token: the token of the device's greeting, which shows that the sender is online now.
        mode: the role after the install: the active bundle, a staged one, or the shadow of the active one.
    """

    transfer: str
    size: int
    sha256: str
    signature: str
    sha512: str = ""
    signature2: str = ""
    release: str = ""
    release_signature: str = ""
    release_signature2: str = ""
    token: str = ""
    mode: Literal["active", "stage", "shadow"] = "active"

    @property
    def signatures(self) -> list[str]:
        """The bundle's signatures that are present."""
        return [each for each in (self.signature, self.signature2) if each]

    def is_same_bundle(self, other: "Offer") -> bool:
        """Whether another offer has the same bundle and signatures, and so was judged with the first one."""
        names = {"transfer", "token", "mode"}
        return all(getattr(self, each) == getattr(other, each) for each in self.__struct_fields__ if each not in names)


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rollback"):
    """A signed order to go back. It names the bundle to leave, so that it has no effect when repeated.

    Attributes:
        device: the id of the device that it is for.
        model: the name of the model.
        digest: of the active bundle, which is to be left.
        token: of this start of the device.
        nonce: makes each order unique.
    """

    device: str
    model: str
    digest: str
    token: str
    nonce: str


class Incoming:
    """The parts of one device's store. Everything here may wait for the disk: never call it from the loop.

    Args:
        store: where the bundle goes.
        policy: the requirements of an install; its signers are trusted, and nothing unsigned is accepted.
    """

    def __init__(self, store: ModelStore, policy: Policy) -> None:
        self._store = store
        self._policy = policy
        self._folder = store.root / ".incoming"
        self._carried_out: set[str] = set()  # orders of this start; another start has another token

    def examine(self, offer: Offer) -> None:
        """Judge an offer by its signatures, before a byte of the bundle is received. Writes nothing.

        Raises:
            SignatureError: no trusted key has signed it.
            BundleError: an install would refuse it: too old, expired, replayed, for another class, failed before.
        """
        signers, count = self._policy.allowed_signers, self._policy.signatures
        if len(offer.signatures) < count:
            raise SignatureError(f"offer: expected {count} signatures, found {len(offer.signatures)}")
        if offer.release:
            texts = [each.encode() for each in (offer.release_signature, offer.release_signature2) if each]
            if len(texts) < count:
                raise SignatureError(f"offer: expected {count} signatures of the release document, found {len(texts)}")
            release, _ = read_release(offer.release.encode(), texts, signers, count=count, place="offer")
            if (release.digest, release.size) != (offer.sha256, offer.size):
                raise BundleError("offer: expected digest and size of its release document, found others")
            self._store.require_admissible(release, self._policy.device_class)
            return
        if self._policy.release == "require":
            raise BundleError("offer: expected a release document, found none: sign the bundle with edge-convert sign")
        digests = {"sha256": bytes.fromhex(offer.sha256), "sha512": bytes.fromhex(offer.sha512)}
        for text in offer.signatures[:count]:
            precheck(text.encode(), digests, signers, place="offer")
        # This starts a program, so only after the signature of a trusted key is verified.
        keys = {require_usable_key(text.encode(), signers, place="offer") for text in offer.signatures[:count]}
        require_keys(keys, count, "offer")

    def serving(self, offer: Offer) -> ListedBundle | None:
        """The bundle, if it is active already.

        Raises:
            CommandError: it failed here before, or the store cannot be read.
        """
        for entry in self._store.entries():
            if entry.digest != offer.sha256:
                continue
            if entry.state == "rejected":
                raise CommandError(f"expected a bundle that has not failed here, found one that has ({entry.why})")
            if entry.state in {"active", "probation"}:
                return entry
        return None

    def prepare(self, offer: Offer) -> int:
        """Make room, drop other parts, and return the bytes held of this one.

        Raises:
            CommandError: the disk is too full, or cannot be written.
        """
        try:
            StoreFolder(self._store.root).make()
            make_folder(self._folder)
            for path in self._folder.iterdir():
                if path.name != self._part(offer).name:
                    remove(path)
            held = self._held(offer)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written: {error.strerror}") from error
        needed = 2 * offer.size - held + SPARE_BYTES  # the part, and the copy that the store makes of it
        if free < needed:
            raise CommandError(f"{self._folder}: expected room for {needed} bytes, found {free} free: make room")
        return held

    def append(self, offer: Offer, offset: int, data: bytes) -> None:
        """Write one chunk at its offset.

        Raises:
            CommandError: the disk fails.
        """
        try:
            handle = os.open(self._part(offer), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                rest = memoryview(data)
                while rest:
                    written = os.pwrite(handle, rest, offset)
                    offset, rest = offset + written, rest[written:]
            finally:
                os.close(handle)
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written: {error.strerror}") from error

    def install(self, offer: Offer) -> Slot:
        """Hash the received file, and install it. The part is removed afterwards, whatever the result.

        Raises:
            BundleError: the store refuses it.
            CommandError: it differs from the offer, the store cannot be written, or another install is under way.
        """
        part = self._part(offer)
        bundle = part.with_name("bundle.onnx")
        try:
            if _sha256(part) != offer.sha256:
                raise CommandError("expected the bundle that was announced, found other bytes: send it again")
            part.replace(bundle)
            self._write_beside(bundle, offer)
            policy = replace(self._policy, activate=offer.mode == "active", shadow=offer.mode == "shadow")
            return self._store.install(bundle, policy).slot
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written: {error.strerror}") from error
        finally:
            for path in (part, bundle, *(bundle.with_name(bundle.name + suffix) for suffix in _BESIDE)):
                path.unlink(missing_ok=True)

    def _write_beside(self, bundle: Path, offer: Offer) -> None:
        texts = (
            offer.signature, offer.signature2, offer.release, offer.release_signature, offer.release_signature2,
        )  # fmt: skip
        for suffix, text in zip(_BESIDE, texts, strict=True):
            if text:
                write_file(bundle.with_name(bundle.name + suffix), text.encode())

    def rollback(self, text: str, signature: str, token: str) -> Slot:
        """Carry out a signed order to go back, once. Writes nothing before every check has passed.

        Raises:
            SignatureError: no trusted key has signed it.
            CommandError: it is for another device, start or bundle, or was carried out before.
        """
        order = read_order(text)
        for what, found, expected in (("device", order.device, self._policy.device), ("token", order.token, token)):
            _require_equal(what, found, expected)
        data, signed, place = text.encode(), signature.encode(), "order to go back"
        signers = self._policy.allowed_signers
        digests = {name: hashlib.new(name, data).digest() for name in ("sha256", "sha512")}
        precheck(signed, digests, signers, namespace=ROLLBACK_NAMESPACE, other_keys="pass", place=place)
        verify(data, signed, signers, namespace=ROLLBACK_NAMESPACE, place=place)
        _require_equal("digest", order.digest, self._store.slot(order.model).digest)
        if order.nonce in self._carried_out:
            raise CommandError("order to go back: expected a new one, found one that was carried out before")
        self._carried_out.add(order.nonce)
        return self._store.rollback(order.model)

    def _part(self, offer: Offer) -> Path:
        return self._folder / f"{offer.sha256}.part"

    def _held(self, offer: Offer) -> int:
        try:
            held = self._part(offer).stat().st_size
        except FileNotFoundError:
            return 0
        if held > offer.size:
            remove(self._part(offer))
            return 0
        return held


def read_order(text: str) -> Order:
    """Decode an order whose signature is not verified yet.

    Raises:
        CommandError: it is none.
    """
    try:
        return msgspec.json.decode(text, type=Order)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CommandError(f"order to go back: {error}") from error


def _require_equal(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise CommandError(f"order to go back: {what}: expected {expected[:16]}, found {found[:16]!r}")


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            found.update(block)
    return found.hexdigest()
