"""The disk side of a transfer: a bundle that arrives in parts, below the store, and is installed once it is whole.

The folder `STORE/.incoming/` holds at most one part, under the SHA-256 that it shall have, so that only the very same
content is ever continued: after a pause, another sender, or a restart of the daemon. Nothing in it counts for the
store; what makes a bundle count is `ModelStore.install`, which checks the signature before anything parses the file.

Guarantee: never more than the announced size is written, and that is bounded; a part is never trusted, since what is
whole is hashed from the disk. Weak point: a power cut may leave a part whose end is damaged. Then the hash tells, the
part is dropped, and the next try begins anew.
"""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.bundle.signature import NAMESPACE, SUFFIX, require_signature
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store.install import SPARE_BYTES, Policy
from edge_runtime.store.records import ListedBundle, Slot
from edge_runtime.store.store import ModelStore
from edge_runtime.system.durable import make_folder, remove, write_file

ROLLBACK_NAMESPACE = f"{NAMESPACE}-rollback"
_READ_BYTES = 1024 * 1024


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender announces. Unknown keys are ignored.

    Attributes:
        transfer: a name that the sender gives this transfer.
        size: of the bundle, in bytes.
        sha256: of the bundle, in hex.
        signature: the content of `BUNDLE.sig`.
        token: what the device said in its greeting, which shows that the sender is here now.
        mode: what becomes of it: the active bundle, a staged one, or the shadow of the active one.
    """

    transfer: str
    size: int
    sha256: str
    signature: str
    token: str = ""
    mode: Literal["active", "stage", "shadow"] = "active"


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rollback"):
    """A signed word to go back. It names what it leaves, so that it does nothing once that is done.

    Attributes:
        device: whom it is for.
        model: the name of the model.
        digest: of the bundle that is active now, and shall not be.
        token: of this start of the device.
        nonce: makes each order another one.
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
        policy: what an install asks for; its signers are trusted, and nothing unsigned is taken.
    """

    def __init__(self, store: ModelStore, policy: Policy) -> None:
        self._store = store
        self._policy = policy
        self._folder = store.root / ".incoming"
        self._carried_out: set[str] = set()  # by this start; another start has another token

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
        """Make room, drop other parts, and say how much of this one is here.

        Raises:
            CommandError: the disk is too full, or cannot be written.
        """
        try:
            self._store.root.mkdir(parents=True, exist_ok=True)
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
        """Write one chunk where it belongs.

        Raises:
            CommandError: the disk does not take it.
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
        """Hash what arrived, and install it. The part is gone afterwards, whatever came of it.

        Raises:
            BundleError: it is not what was announced, or the store refuses it.
            CommandError: the store cannot be written, or another install is under way.
        """
        part = self._part(offer)
        bundle = part.with_name("bundle.onnx")
        try:
            if _sha256(part) != offer.sha256:
                raise BundleError("expected the bundle that was announced, found other bytes: send it again")
            part.replace(bundle)
            write_file(bundle.with_name(bundle.name + SUFFIX), offer.signature.encode())
            policy = replace(self._policy, activate=offer.mode == "active", shadow=offer.mode == "shadow")
            return self._store.install(bundle, policy).slot
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written: {error.strerror}") from error
        finally:
            for path in (part, bundle, bundle.with_name(bundle.name + SUFFIX)):
                path.unlink(missing_ok=True)

    def rollback(self, text: str, signature: str, token: str) -> Slot:
        """Carry out a signed order to go back, once.

        Raises:
            SignatureError: nobody we trust has signed it.
            CommandError: it is for another device, start or bundle, or was carried out before.
        """
        order = self._read_order(text, signature)
        active = self._store.slot(order.model)
        wanted = (("device", order.device, self._policy.device), ("token", order.token, token))
        for what, found, expected in (*wanted, ("digest", order.digest, active.digest)):
            if found != expected:
                raise CommandError(f"order to go back: {what}: expected {expected[:16]}, found {found[:16]!r}")
        if order.nonce in self._carried_out:
            raise CommandError("order to go back: expected a new one, found one that was carried out before")
        self._carried_out.add(order.nonce)
        return self._store.rollback(order.model)

    def _read_order(self, text: str, signature: str) -> Order:
        try:
            self._store.root.mkdir(parents=True, exist_ok=True)
            make_folder(self._folder)
            written = self._folder / f"order{SUFFIX}"
            write_file(written, signature.encode())
            try:
                require_signature(
                    written.with_suffix(""), self._policy.allowed_signers, data=text.encode(), signature=written,
                    namespace=ROLLBACK_NAMESPACE, place="order to go back",
                )  # fmt: skip
            finally:
                written.unlink(missing_ok=True)
            return msgspec.json.decode(text, type=Order)
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written: {error.strerror}") from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CommandError(f"order to go back: {error}") from error

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


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            found.update(block)
    return found.hexdigest()
