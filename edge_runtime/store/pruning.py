"""The files of a name's bundles: moved in atomically, checked before they serve, removed when no record names them."""

from pathlib import Path

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import read_file
from edge_runtime.bundle.signature import SUFFIXES
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store.layout import STATE_FILE, StoreFolder
from edge_runtime.store.records import BundleRecord, SlotState
from edge_runtime.system.durable import make_folder, remove, sync_folder
from edge_runtime.system.hashing import sha256


class BundleFolder:
    """The bundles of one store.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder

    def keep(self, name: str, digest: str, staged: Path) -> None:
        """Move the staged bundle to its final path; the signature first, so that a bundle is never without it."""
        make_folder(self._folder.of(name))
        self._move_signature(name, digest, staged)
        staged.replace(self._folder.bundle(name, digest))
        sync_folder(self._folder.of(name))

    def renew_signature(self, name: str, digest: str, staged: Path) -> None:
        """Keep another valid signature of the same bundle, since the first key may soon be retired."""
        if self._move_signature(name, digest, staged):
            sync_folder(self._folder.of(name))

    def prune(self, name: str, state: SlotState) -> None:
        """Remove files that the state no longer names. A failure costs space until the next change."""
        kept = state.kept()
        for path in self._folder.of(name).iterdir():
            if path.name != STATE_FILE and path.name.partition(".")[0] not in kept:
                try:
                    remove(path)
                except OSError:
                    continue

    def damage(self, name: str, record: BundleRecord) -> str | None:
        """How the file of a record differs from the installed one; None if it does not."""
        path = self._folder.bundle(name, record.digest)
        try:
            data = read_file(path, DEFAULT_LIMITS.max_bytes)
        except BundleError as error:
            return str(error)
        if sha256(data) != record.digest:
            return f"{path}: expected the bundle that was installed, found it damaged: install it again"
        return None

    def require_sound(self, name: str, record: BundleRecord) -> None:
        """Refuse a file that differs from the installed one.

        Raises:
            CommandError: it is missing or damaged.
        """
        damage = self.damage(name, record)
        if damage is not None:
            raise CommandError(damage)

    def _move_signature(self, name: str, digest: str, staged: Path) -> bool:
        target = self._folder.bundle(name, digest)
        moved = False
        for suffix in SUFFIXES:
            found = staged.with_name(staged.name + suffix)
            if found.exists():
                found.replace(target.with_name(target.name + suffix))
                moved = True
        return moved
