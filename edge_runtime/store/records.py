"""`NAME/state.json`: the active, earlier, staged and rejected bundles of a name.

Guarantee: only `state.json` determines what is active, and it is replaced atomically, by one rename. The changes of a
state are pure functions here; `StateFiles` reads and writes it. Weak point: a damaged file (a disk that ignores syncs)
is rebuilt from the remaining bundles, which loses the list of rejected ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_runtime.bundle.open import version_key
from edge_runtime.bundle.signature import SUFFIX
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.trust import Trust, open_trusted
from edge_runtime.system.durable import replace_file

_MAX_REJECTED = 100
_MAX_STAGED = 2
MAX_WHY = 300


class BundleRecord(msgspec.Struct, kw_only=True):
    """One bundle of a name.

    Attributes:
        version: of its manifest.
        digest: the SHA-256 of its file, in hex.
        size: of its file.
        proven: set by `confirm`.
        starts: of the daemon on probation.
        why: the reason of its state.
        admitted: when its signatures were verified, in seconds since 1970; 0 if unknown.
        signers: the principals whose signatures were verified then.
    """

    version: str
    digest: str
    size: int = 0
    proven: bool = False
    starts: int = 0
    why: str = ""
    admitted: float = 0.0
    signers: list[str] = []

    @property
    def word(self) -> str:
        """The state of an active bundle, in one word."""
        return "active" if self.proven else "probation"


class SlotState(msgspec.Struct, kw_only=True):
    """The content of `state.json`. `history` is newest first: the previous bundle, and the last proven one.

    `shadow` is the digest of the staged bundle that runs beside the active one; empty if there is none.
    """

    format: int = 1
    active: BundleRecord
    history: list[BundleRecord] = []
    staged: list[BundleRecord] = []
    rejected: list[BundleRecord] = []
    shadow: str = ""

    def is_shadow(self, record: BundleRecord) -> bool:
        """Whether a staged bundle is the shadow."""
        return bool(self.shadow) and record.digest == self.shadow

    def shadow_record(self) -> BundleRecord | None:
        """The record of the shadow; None if there is none."""
        return next((record for record in self.staged if self.is_shadow(record)), None)

    def kept(self) -> set[str]:
        """The digests of the files to keep."""
        return {record.digest for record in (self.active, *self.history, *self.staged)}

    def stage(self, record: BundleRecord) -> None:
        """Add a staged bundle; if there are too many, the oldest except the shadow is removed."""
        found = [record, *(each for each in self.staged if each.digest != record.digest)]
        others = [each for each in found if each is not record and not self.is_shadow(each)]
        while len(found) > _MAX_STAGED and others:
            found.remove(others.pop())
        self.staged = found

    def switch_to(self, record: BundleRecord) -> None:
        """Make another bundle active."""
        history = [each for each in (self.active, *self.history) if each.digest != record.digest]
        # A bundle that was never started on probation is trusted too: no daemon supervises the store then, and a
        # rollback means the bundle that the operator ran.
        trusted = [each for each in history if each.proven or not each.starts]
        proven = [each for each in history if each.proven]
        self.history = [*(trusted or history)[:1], *(each for each in proven[:1] if each is not trusted[0])]
        self.staged = [each for each in self.staged if each.digest != record.digest]
        self.rejected = [each for each in self.rejected if each.digest != record.digest]
        self.active = record

    def return_to_previous(self, why: str) -> None:
        """Manual rollback: the previous bundle becomes active, and the present one becomes staged."""
        left, self.active, self.history = self.active, self.history[0], self.history[1:]
        left.why = why
        self.stage(left)

    def fail_active(self, reason: str) -> None:
        """Return to the newest proven bundle, else to the previous one, and note the reason."""
        failed = self.active
        failed.why = reason[:MAX_WHY]
        back = next((record for record in self.history if record.proven), self.history[0])
        self.history = [record for record in self.history if record is not back]
        self.active = back
        back.starts = 0
        back.why = f"went back from {failed.version}: {reason}"[:MAX_WHY]  # every start publishes it
        self._reject(failed)

    def fail_staged(self, record: BundleRecord, why: str) -> None:
        """Reject a staged bundle that failed as a shadow."""
        record.why = why[:MAX_WHY]
        self.staged = [each for each in self.staged if each is not record]
        self._reject(record)

    def _reject(self, record: BundleRecord) -> None:
        self.rejected = [record, *(each for each in self.rejected if each.digest != record.digest)]


@dataclass(frozen=True, slots=True)
class ListedBundle:
    """One line of `models list`; `shadow` marks the staged bundle that runs beside the active one."""

    name: str
    version: str
    digest: str
    state: str
    why: str = ""
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """The present bundle of a name; `admitted` as in `BundleRecord`, None if it is unknown."""

    name: str
    version: str
    digest: str
    path: Path
    state: str
    why: str = ""
    admitted: float | None = None

    @property
    def standing(self) -> str:
        """The state in words, for a sentence with "is"."""
        return "active, on probation" if self.state == "probation" else self.state


class StateFiles:
    """Reads and replaces the states of one store.

    Args:
        folder: of the store.
        preferred: the digest that a rebuilt state prefers for a name, which is that of its version floor.
        trust: the signers whose bundles a rebuilt state may contain; None requires no signatures.
    """

    def __init__(self, folder: StoreFolder, preferred: Callable[[str], str], trust: Trust | None) -> None:
        self._folder = folder
        self._preferred = preferred
        self._trust = trust

    def load(self, name: str) -> SlotState | None:
        """The state of a name; None if nothing is installed under it.

        Raises:
            CommandError: it cannot be read.
        """
        path = self._folder.state(name)
        try:
            return msgspec.json.decode(path.read_bytes(), type=SlotState)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._rebuild(name)
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}: check the disk") from error

    def require(self, name: str) -> SlotState:
        """Like `load`, for a name that must exist.

        Raises:
            CommandError: nothing is installed under this name.
        """
        state = self.load(name)
        if state is None:
            known = ", ".join(self._folder.names()) or "none"
            raise CommandError(
                f"{self._folder.root}: expected a model that is installed ({known}), found {name}: install it first"
            )
        return state

    def save(self, name: str, state: SlotState) -> None:
        """Replace `state.json` by one atomic rename."""
        state.rejected = state.rejected[:_MAX_REJECTED]
        if state.shadow_record() is None:
            state.shadow = ""  # the shadow became active, or failed
        replace_file(self._folder.state(name), msgspec.json.encode(state))

    def stamp(self, name: str) -> tuple[int, int, int]:
        """A cheap token (one `stat`) that changes whenever the state of a name changes; zeros without a state."""
        try:
            found = self._folder.state(name).stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def slot(self, name: str, record: BundleRecord, word: str | None = None) -> Slot:
        """A record with the path of its file."""
        path = self._folder.bundle(name, record.digest)
        word = word or record.word
        return Slot(name, record.version, record.digest, path, word, record.why, _admitted(record, path))

    def _rebuild(self, name: str) -> SlotState | None:
        """Rebuild a damaged state: the bundle of the floor if it is intact, else the newest; the others are history."""
        found: list[BundleRecord] = []
        for file in self._folder.of(name).glob("*.onnx"):
            admitted = _signed_at(file)
            try:
                bundle = open_trusted(file, self._trust, at=admitted)
            except BundleError:
                continue
            if bundle.digest == file.stem and bundle.manifest.name == name:
                version = bundle.manifest.version
                found.append(
                    BundleRecord(version=version, digest=bundle.digest, size=bundle.size, admitted=admitted or 0.0)
                )
        preferred = self._preferred(name)
        found.sort(key=lambda record: (record.digest == preferred, version_key(record.version) or ()), reverse=True)
        if not found:
            return None
        found[0].why = "its state was damaged and rebuilt"
        return SlotState(active=found[0], history=found[1:3])


def _admitted(record: BundleRecord, path: Path) -> float | None:
    """When a bundle was admitted; stores of earlier releases lack it, and the time of the signature file is used."""
    return record.admitted or _signed_at(path)


def _signed_at(path: Path) -> float | None:
    try:
        return path.with_name(path.name + SUFFIX).stat().st_mtime
    except OSError:
        return None
