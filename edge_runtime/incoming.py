"""The disk side of a transfer: a bundle that arrives in parts, below the store, and is installed once it is whole.

The folder `STORE/.incoming/` holds at most one part, under the SHA-256 that it shall have, so that only the very same
content is ever continued: after a pause, another sender, or a restart of the daemon. Nothing in it counts for the
store; what makes a bundle count is `Store.install`, which checks the signature before anything parses the file.

Guarantee: never more than the announced size is written, and that is bounded; a part is never trusted, since what is
whole is hashed from the disk. Weak point: a power cut may leave a part whose end is damaged. Then the hash tells, the
part is dropped, and the next try begins anew.
"""

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from edge_runtime.durable import make_folder, remove, write_file
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.signature import SUFFIX
from edge_runtime.slots import Listed, Policy, Slot, Store

SPARE_BYTES = 1024 * 1024
_READ_BYTES = 1024 * 1024


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender announces. Unknown keys are ignored.

    Attributes:
        transfer: a name that the sender gives this transfer.
        size: of the bundle, in bytes.
        sha256: of the bundle, in hex.
        signature: the content of `BUNDLE.sig`.
        token: what the device said in its greeting, which shows that the sender is here now.
    """

    transfer: str
    size: int
    sha256: str
    signature: str
    token: str = ""


class Incoming:
    """The parts of one device's store. Everything here may wait for the disk: never call it from the loop.

    Args:
        store: where the bundle goes.
        policy: what an install asks for; its signers are trusted, and nothing unsigned is taken.
    """

    def __init__(self, store: Store, policy: Policy) -> None:
        self._store = store
        self._policy = policy
        self._folder = store.root / ".incoming"

    def serving(self, offer: Offer) -> Listed | None:
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
            return self._store.install(bundle, self._policy).slot
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written: {error.strerror}") from error
        finally:
            for path in (part, bundle, bundle.with_name(bundle.name + SUFFIX)):
                path.unlink(missing_ok=True)

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
