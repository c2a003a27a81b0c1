"""The device's model store: which bundle of a name is active, which came before, and how a new one gets in.

The folder::

    models/
      .install.lock  .lock        one install at a time; one change of state at a time (milliseconds)
      .staging/                   what an install is looking at; nothing in it counts, the next install empties it
      .floors/NAME.json           the highest version that NAME was ever given, and the permissions used up
      NAME/state.json             THE decision: active, history, staged, rejected. Replaced by one rename
      NAME/DIGEST.onnx (.sig)     the bundles that state.json speaks of; never changed, only added and pruned
      NAME/DIGEST.measured.json   what such a bundle cost here, where `selftest --measure` was asked for
      NAME/DIGEST.onnx.optimised  what onnxruntime made of it (`bundle/optimised_copy.py`); goes with the bundle

Guarantee: `state.json` alone says what is active, and it is replaced whole. A kill or a power cut anywhere leaves the
old decision or the new one, with its bundle on the disk, and the same install then succeeds. A bundle enters only after
signature, structure, version, and a self-test in a child process. Versions only go up; a signed permission
(`permission.py`) lets one older version in, once. The clock decides nothing. Weak points: who may write to this
folder may do anything; a damaged `state.json` or floor (a lying disk) is rebuilt from what is left.

A new bundle is on probation until the daemon that runs it says otherwise: `begin` at every start, then
`confirm`, or `fail`, which goes back to the last good one and remembers the digest; `pause` on a clean stop. More than
`MAX_STARTS` starts without any of these is a crash loop, and counts as failed.

At most one staged bundle a name is the shadow: the daemon runs it beside the active one and compares (`shadow.py`).
It came in by the same checks, and is active only once somebody says `activate`.
"""

import errno
import hashlib
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import msgspec

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.measured import Measured, read_measured
from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS, Limits
from edge_runtime.bundle.open import Bundle, check_bundle, open_bundle, read_file, version_key
from edge_runtime.bundle.selftest import DEFAULT_BUDGET, Budget, run_selftest
from edge_runtime.bundle.signature import SUFFIX, require_signature
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store.permission import allows_older
from edge_runtime.system.durable import locked, make_folder, remove, replace_file, sync_folder, write_file

DEFAULT_STORE = Path("/var/lib/edge-runtime/models")
DEFAULT_SIGNERS = Path("/etc/edge-runtime/allowed_signers")
MAX_STARTS = 3
_MAX_REJECTED = 100
_MAX_STAGED = 2
_STATE_WAIT_S = 10.0


class Entry(msgspec.Struct, kw_only=True):
    """One bundle of a name. `proven` is set by `confirm`; `starts` counts the daemon's starts on probation."""

    version: str
    digest: str
    size: int = 0
    proven: bool = False
    starts: int = 0
    why: str = ""


class SlotState(msgspec.Struct, kw_only=True):
    """What `state.json` holds. `history` is newest first: the one before the active, and the last proven one.

    `shadow` is the digest of the staged bundle that runs beside the active one; empty without.
    """

    format: int = 1
    active: Entry
    history: list[Entry] = []
    staged: list[Entry] = []
    rejected: list[Entry] = []
    shadow: str = ""


class Permission(msgspec.Struct, kw_only=True):
    """A signed permission that was used, by its own digest; `settled` when the bundle that it let in was active."""

    permission: str
    digest: str
    settled: bool = False


class Floor(msgspec.Struct, kw_only=True):
    """What `.floors/NAME.json` holds."""

    version: str = ""
    digest: str = ""
    used: list[Permission] = []


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of `models list`; `shadow` marks the staged bundle that runs beside the active one."""

    name: str
    version: str
    digest: str
    state: str
    why: str = ""
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """The bundle that a name stands for now."""

    name: str
    version: str
    digest: str
    path: Path
    state: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an install asks for.

    Attributes:
        allowed_signers: whom we trust.
        unsigned: `allow` takes a bundle without `.sig`; one that has a signature must still be signed well.
        budget: what the model may cost in the self-test.
        limits: what is too much for the file.
        device: this device's id, for permissions that are bound to it.
        device_class: refuse a bundle that was made for another class; None accepts all.
        rejected: `retry` takes a digest again that failed here before.
        activate: False only stages the bundle.
        shadow: stages it, and lets it run beside the active one.
        allow_older: a signed permission; None looks for `BUNDLE.allow-older`.
    """

    allowed_signers: Path = DEFAULT_SIGNERS
    unsigned: str = "refuse"
    budget: Budget = DEFAULT_BUDGET
    limits: Limits = DEFAULT_LIMITS
    device: str = field(default_factory=socket.gethostname)
    device_class: str | None = None
    rejected: str = "refuse"
    activate: bool = True
    shadow: bool = False
    allow_older: Path | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """What an install did; `measured` is None where the bundle was active already."""

    slot: Slot
    changed: bool
    measured: Measured | None = None


SelfTest = Callable[[Bundle, Budget, str], Measured]


def _selftest(bundle: Bundle, budget: Budget, place: str) -> Measured:
    return run_selftest(bundle, budget, place=place)


class ModelStore:
    """The model store of one device.

    Args:
        root: its folder; made when the first bundle is installed.
        selftest: how a staged bundle proves itself.
    """

    def __init__(self, root: Path = DEFAULT_STORE, selftest: SelfTest = _selftest) -> None:
        self.root = root
        self._run_selftest = selftest

    # -- looking -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names that have an active bundle, in order."""
        try:
            folders = sorted(path for path in self.root.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CommandError(f"{self.root}: cannot be read: {error.strerror}") from error
        return [_unquote(folder.name) for folder in folders if (folder / "state.json").exists()]

    def entries(self, name: str | None = None) -> list[Listed]:
        """Every bundle of one name, or of all: the active one first, then previous, staged and rejected ones."""
        listed: list[Listed] = []
        for each in [name] if name is not None else self.names():
            state = self._state(each)
            if state is None:
                continue
            groups = [(_word(state.active), [state.active]), ("previous", state.history)]
            groups += [("staged", state.staged), ("rejected", state.rejected)]
            for word, entries in groups:
                listed += [
                    Listed(
                        each,
                        entry.version,
                        entry.digest,
                        word,
                        entry.why,
                        word == "staged" and _is_shadow(state, entry),
                    )
                    for entry in entries
                ]
        return listed

    def measured(self, name: str, digest: str) -> Measured | None:
        """What a bundle cost on this device; None where nobody has measured it."""
        return read_measured(self._file(name, digest), digest)

    def active(self, name: str) -> Path:
        """The file that a name stands for now.

        Raises:
            CommandError: nothing is installed under this name.
        """
        return self.slot(name).path

    def slot(self, name: str) -> Slot:
        """As `active`, with version, digest and state."""
        return self._slot(name, self._required(name).active)

    def shadow(self, name: str) -> Slot | None:
        """The staged bundle that runs beside the active one; None without."""
        state = self._required(name)
        found = _shadow(state)
        return None if found is None else self._slot(name, found, "staged")

    def stamp(self, name: str) -> tuple[int, int, int]:
        """A cheap token (one `stat`) that differs once the decision for a name has changed; zeros without one."""
        try:
            found = (self._folder(name) / "state.json").stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    # -- probation: what the daemon says ------------------------------------------------------------------------------

    def begin(self, name: str) -> Slot:
        """Called when the daemon loads the bundle of a name: the slot to run, which is on the disk and undamaged.

        On probation it counts the start; after `MAX_STARTS` of them the bundle has failed, and the slot is the one
        before it. A bundle that a bad disk damaged is left for the one before it too.

        Raises:
            CommandError: nothing is installed under this name, or the disk does not let us count.
            BundleError: the bundle is damaged, and there is none before it.
        """
        with self._changing(name):
            state = self._required(name)
            while not state.active.proven:
                if state.active.starts < MAX_STARTS or not state.history:
                    state.active.starts += 1
                    self._save(name, state)
                    break
                _fail(state, f"started {MAX_STARTS} times on probation without ever being confirmed")
                self._save(name, state)
            while (damage := self._damage(name, state.active)) is not None:
                if not state.history:
                    raise BundleError(damage)
                _fail(state, damage)
                self._save(name, state)
            return self._slot(name, state.active)

    def confirm(self, name: str, digest: str) -> Slot:
        """The bundle has proved itself in service; a digest that is not active any more changes nothing."""
        with self._changing(name):
            state = self._required(name)
            if state.active.digest == digest and not state.active.proven:
                state.active.proven = True
                state.active.starts = 0
                self._save(name, state)
                self._prune(name, state)
            return self._slot(name, state.active)

    def pause(self, name: str, digest: str) -> None:
        """The daemon stops in good order: this start is no part of a crash loop."""
        with self._changing(name):
            state = self._required(name)
            if state.active.digest == digest and not state.active.proven and state.active.starts:
                state.active.starts -= 1
                self._save(name, state)

    def fail(self, name: str, digest: str, reason: str) -> Slot:
        """The bundle failed on probation: go back, remember the digest, and return the slot to run instead.

        Without one before it the bundle stays, since a doubtful model is all there is; the reason is kept with it.
        """
        with self._changing(name):
            state = self._required(name)
            if state.active.digest == digest:
                if state.history:
                    _fail(state, reason)
                else:
                    state.active.why = reason[:300]
                self._save(name, state)
                self._prune(name, state)
            return self._slot(name, state.active)

    def fail_shadow(self, name: str, digest: str, reason: str) -> None:
        """The shadow crashed, hangs or cannot be loaded: it ends, and its digest is remembered. The rest stays."""
        with self._changing(name):
            state = self._required(name)
            entry = _shadow(state)
            if entry is None or entry.digest != digest:
                return
            entry.why = f"as a shadow: {reason}"[:300]
            state.staged = [each for each in state.staged if each is not entry]
            state.rejected = [entry, *(each for each in state.rejected if each.digest != digest)]
            self._save(name, state)
            self._prune(name, state)

    # -- changing by hand ------------------------------------------------------------------------------------------

    def rollback(self, name: str) -> Slot:
        """Go back to the bundle before the active one, which stays staged.

        Raises:
            CommandError: there is none.
        """
        with self._changing(name):
            state = self._required(name)
            if not state.history:
                raise CommandError(
                    f"{name}: expected a previous bundle to go back to, found only {state.active.version}: "
                    "install another version"
                )
            self._require_sound(name, state.history[0])
            left, state.active, state.history = state.active, state.history[0], state.history[1:]
            left.why = "rolled back by hand"
            state.staged = _newest(left, state)
            self._save(name, state)
            self._prune(name, state)
            return self._slot(name, state.active)

    def activate(self, name: str, version: str) -> Slot:
        """Make a staged or previous bundle the active one. What is active already stays so.

        Raises:
            CommandError: there is no such version here, or it is below the floor and was never active.
        """
        with self._changing(name):
            state = self._required(name)
            if state.active.version == version:
                return self._slot(name, state.active)
            here = [*state.history, *state.staged]
            chosen = next((entry for entry in here if entry.version == version), None)
            if chosen is None:
                known = ", ".join(entry.version for entry in [state.active, *here])
                raise CommandError(
                    f"{name}: expected a version that is here ({known}), found {version}: install it first"
                )
            self._require_sound(name, chosen)
            if chosen in state.staged:
                self._require_not_older(name, chosen.version, chosen.digest, state)
                self._raise_floor(name, chosen)
            self._switch(name, state, chosen)
            return self._slot(name, state.active)

    def promote(self, name: str) -> Slot:
        """Make the shadow the active bundle, on probation.

        Raises:
            CommandError: there is none, or it was overtaken meanwhile.
        """
        return self.activate(name, self._required_shadow(name).version)

    def withdraw(self, name: str) -> Slot:
        """End the shadow; its bundle stays staged.

        Raises:
            CommandError: there is none.
        """
        with self._changing(name):
            entry = self._required_shadow(name)
            state = self._required(name)
            state.shadow = ""
            self._save(name, state)
            return self._slot(name, entry, "staged")

    def open(self, name: str) -> Bundle:
        """Open the active bundle, and make sure that it is the file that was installed."""
        slot = self.slot(name)
        bundle = open_bundle(slot.path)
        if bundle.digest != slot.digest:
            raise BundleError(
                f"{slot.path}: expected digest {slot.digest[:12]}, found {bundle.digest[:12]}: install again"
            )
        return bundle

    # -- installing ------------------------------------------------------------------------------------------------

    def install(self, source: Path, policy: Policy) -> Installed:
        """Bring a bundle in: copy, signature, structure, version, self-test, and one rename.

        Installing the bundle that is active already succeeds and changes nothing.

        Raises:
            SignatureError: nobody we trust has signed it.
            BundleError: it is no sound bundle, is older, failed here before, or fails its self-test.
            CommandError: the store cannot be written, or another install is under way.
        """
        with self._writing():
            self._make_root()
            busy = f"{self.root}: another install is under way: wait for it to end"
            with locked(self.root / ".install.lock", busy, 0.0):
                staging = self.root / ".staging"
                remove(staging)
                make_folder(staging)
                try:
                    return self._install(source, policy, staging)
                finally:
                    with suppress(OSError):  # the next install empties it too
                        remove(staging)

    def _install(self, source: Path, policy: Policy, staging: Path) -> Installed:
        place = str(source)
        staged = staging / "bundle.onnx"
        data = self._stage(source, staged, policy)
        signature = staged.with_name(staged.name + SUFFIX)
        if not signature.exists():
            signature = source.with_name(source.name + SUFFIX)  # not there: let the message name what is missing
        if policy.unsigned != "allow" or signature.exists():
            require_signature(staged, policy.allowed_signers, data=data, signature=signature, place=place)
        bundle = check_bundle(staged, data, place=place, limits=policy.limits)
        name, digest = bundle.manifest.name, bundle.digest
        self._require_name(name, place)
        self._require_class(bundle.manifest, policy, place)
        state = self._state(name)
        if state is not None:
            self._settle_permissions(name, state.active.digest)  # where a power cut came between
        if state is not None and state.active.digest == digest and self._damage(name, state.active) is None:
            self._renew_signature(name, digest, staged)
            return Installed(self._slot(name, state.active), changed=False)
        permission = self._admit(bundle, state, policy, source)
        if policy.shadow:
            self._require_company(bundle, state, place)
        measured = self._run_selftest(bundle, policy.budget, place)

        entry = Entry(version=bundle.manifest.version, digest=digest, size=bundle.size)
        with self._changing(name):
            state = self._state(name)  # the daemon may have gone back meanwhile
            self._admit(bundle, state, policy, source)
            self._keep(name, digest, staged)
            if permission is not None:
                self._use_permission(name, permission, digest)
            is_staged = state is not None and (policy.shadow or not policy.activate)
            if state is not None and is_staged:
                if policy.shadow:
                    state.shadow = digest
                state.staged = _newest(entry, state)
                self._save(name, state)
                self._prune(name, state)
            else:
                self._raise_floor(name, entry)
                self._switch(name, state, entry)
        self._settle_permissions(name, digest)
        listed = self._slot(name, entry, "staged") if is_staged else self.slot(name)
        return Installed(listed, changed=True, measured=measured)

    def _require_company(self, bundle: Bundle, state: SlotState | None, place: str) -> None:
        """A shadow needs an active bundle to stand beside, and takes its windows as they are."""
        if state is None:
            raise BundleError(
                f"{place}: expected an active {bundle.manifest.name} to run beside, found none: install it without "
                "--shadow"
            )
        beside = open_bundle(self._file(bundle.manifest.name, state.active.digest)).manifest
        problem = misfit(beside, bundle.manifest)
        if problem is not None:
            raise BundleError(f"{place}: cannot run beside {beside.version}: {problem}: install it without --shadow")

    def _stage(self, source: Path, staged: Path, policy: Policy) -> bytes:
        """Copy bundle and signature; what is checked from here on is the copy, which no stranger can change."""
        data = read_file(source, policy.limits.max_bytes)
        free = shutil.disk_usage(self.root).free
        if free < len(data) + 1024 * 1024:
            raise CommandError(
                f"{self.root}: expected room for {len(data)} bytes and 1 MiB to spare, found {free} free: "
                "remove something, then install again"
            )
        write_file(staged, data)
        signature = source.with_name(source.name + SUFFIX)
        if signature.exists():
            write_file(staged.with_name(staged.name + SUFFIX), read_file(signature, 64 * 1024))
        return data

    def _admit(self, bundle: Bundle, state: SlotState | None, policy: Policy, source: Path) -> str | None:
        """Refuse what failed here before and what is older; the permission that an older one came with, if any."""
        manifest, digest, place = bundle.manifest, bundle.digest, str(source)
        for entry in state.rejected if state is not None else []:
            if entry.digest == digest and policy.rejected != "retry":
                raise BundleError(
                    f"{place}: expected a bundle that has not failed here, found one that has ({entry.why}): "
                    "install another, or say --retry-rejected"
                )
        floor = self._floor(manifest.name, state)
        if _is_admitted(manifest.version, digest, floor):
            return None
        permission = policy.allow_older or source.with_name(source.name + ".allow-older")
        if permission.exists():
            found = allows_older(permission, policy.allowed_signers, manifest, digest, policy.device)
            used = [each for each in floor.used if each.permission == found]
            if used and (used[0].settled or used[0].digest != digest):
                raise BundleError(
                    f"{permission}: expected a permission for this one use, found one that was used before"
                )
            return found
        raise BundleError(
            f"{place}: expected a version of {manifest.name} above {floor.version}, found {manifest.version}"
            f"{' of other content' if manifest.version == floor.version else ''}: "
            "raise the version, roll back, or sign a permission for the older one"
        )

    # -- the disk --------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Put what a disk may refuse into words."""
        try:
            yield
        except OSError as error:
            words = {
                errno.ENOSPC: "the disk is full: remove something, then try again",
                errno.EDQUOT: "the quota is used up: remove something, then try again",
                errno.EROFS: "the file system is read-only: mount it writable, then try again",
                errno.EACCES: "permission denied: run this as the owner of the store, or as root",
                errno.EPERM: "permission denied: run this as the owner of the store, or as root",
                errno.EIO: "the disk reports an error: check it, then try again",
            }.get(error.errno or 0, f"{error.strerror or error}")
            raise CommandError(f"{self.root}: cannot be written: {words}") from error

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Hold the lock of state, which is never held for long."""
        with self._writing():
            if not self.root.is_dir():
                raise CommandError(f"{self.root}: expected a model named {name}, found no store: install it first")
            with locked(
                self.root / ".lock", f"{self.root}: expected its lock to be free, found it held", _STATE_WAIT_S
            ):
                yield

    def _make_root(self) -> None:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self.root)
        make_folder(self.root / ".floors")

    def _folder(self, name: str) -> Path:
        return self.root / _quoted(name)

    def _file(self, name: str, digest: str) -> Path:
        return self._folder(name) / f"{digest}.onnx"

    def _slot(self, name: str, entry: Entry, word: str | None = None) -> Slot:
        path = self._file(name, entry.digest)
        return Slot(name, entry.version, entry.digest, path, word or _word(entry), entry.why)

    def _required(self, name: str) -> SlotState:
        state = self._state(name)
        if state is None:
            known = ", ".join(self.names()) or "none"
            raise CommandError(
                f"{self.root}: expected a model that is installed ({known}), found {name}: install it first"
            )
        return state

    def _required_shadow(self, name: str) -> Entry:
        entry = _shadow(self._required(name))
        if entry is None:
            raise CommandError(f"{name}: expected a shadow, found none: install one with --shadow")
        return entry

    def _state(self, name: str) -> SlotState | None:
        path = self._folder(name) / "state.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=SlotState)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._rebuild(name, path)
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}: check the disk") from error

    def _rebuild(self, name: str, path: Path) -> SlotState | None:
        """After damage: the bundle of the floor if it is here and sound, else the newest; the rest is history."""
        found: list[Entry] = []
        for file in path.parent.glob("*.onnx"):
            try:
                bundle = open_bundle(file)
            except BundleError:
                continue
            if bundle.digest == file.stem and bundle.manifest.name == name:
                found.append(Entry(version=bundle.manifest.version, digest=bundle.digest, size=bundle.size))
        floor = self._read_floor(name)
        found.sort(key=lambda entry: (entry.digest == floor.digest, version_key(entry.version) or ()), reverse=True)
        if not found:
            return None
        found[0].why = "its state was damaged and rebuilt"
        return SlotState(active=found[0], history=found[1:3])

    def _save(self, name: str, state: SlotState) -> None:
        state.rejected = state.rejected[:_MAX_REJECTED]
        if _shadow(state) is None:
            state.shadow = ""  # it was made active, or failed
        replace_file(self._folder(name) / "state.json", msgspec.json.encode(state))

    def _switch(self, name: str, state: SlotState | None, entry: Entry) -> None:
        """Make `entry` the active one: the one rename that decides."""
        entry.starts, entry.why = 0, ""
        if state is None:
            state = SlotState(active=entry)
        else:
            history = [each for each in (state.active, *state.history) if each.digest != entry.digest]
            # Never started on probation: nobody watches here, and what the operator ran is what a rollback means.
            trusted = [each for each in history if each.proven or not each.starts]
            proven = [each for each in history if each.proven]
            state.history = [*(trusted or history)[:1], *(each for each in proven[:1] if each is not trusted[0])]
            state.staged = [each for each in state.staged if each.digest != entry.digest]
            state.rejected = [each for each in state.rejected if each.digest != entry.digest]
            state.active = entry
        self._save(name, state)
        self._prune(name, state)

    def _keep(self, name: str, digest: str, staged: Path) -> None:
        """Move the staged bundle to where it stays; the signature first, so that a bundle never stands without it."""
        folder = self._folder(name)
        make_folder(folder)
        target = self._file(name, digest)
        signature = staged.with_name(staged.name + SUFFIX)
        if signature.exists():
            signature.replace(target.with_name(target.name + SUFFIX))
        staged.replace(target)
        sync_folder(folder)

    def _renew_signature(self, name: str, digest: str, staged: Path) -> None:
        """The same bundle with another good signature: keep that, since the key of the first may be on its way out."""
        found = staged.with_name(staged.name + SUFFIX)
        if found.exists():
            target = self._file(name, digest)
            found.replace(target.with_name(target.name + SUFFIX))
            sync_folder(target.parent)

    def _prune(self, name: str, state: SlotState) -> None:
        """Remove the files that the state speaks of no more. A failure costs space until the next change."""
        kept = {entry.digest for entry in (state.active, *state.history, *state.staged)}
        for path in self._folder(name).iterdir():
            if path.name != "state.json" and path.name.partition(".")[0] not in kept:
                try:
                    remove(path)
                except OSError:
                    continue

    def _damage(self, name: str, entry: Entry) -> str | None:
        """Why the file of an entry is not what was installed; None when it is."""
        path = self._file(name, entry.digest)
        try:
            data = read_file(path, DEFAULT_LIMITS.max_bytes)
        except BundleError as error:
            return str(error)
        if hashlib.sha256(data).hexdigest() != entry.digest:
            return f"{path}: expected the bundle that was installed, found it damaged: install it again"
        return None

    def _require_sound(self, name: str, entry: Entry) -> None:
        damage = self._damage(name, entry)
        if damage is not None:
            raise CommandError(damage)

    # -- versions --------------------------------------------------------------------------------------------------

    def _read_floor(self, name: str) -> Floor:
        try:
            return msgspec.json.decode((self.root / ".floors" / f"{_quoted(name)}.json").read_bytes(), type=Floor)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return Floor()

    def _floor(self, name: str, state: SlotState | None) -> Floor:
        """The floor, or where its file is lost or damaged the best that the state knows."""
        floor = self._read_floor(name)
        if version_key(floor.version) is None and state is not None:
            known = max((state.active, *state.history), key=lambda entry: version_key(entry.version) or ())
            floor.version, floor.digest = known.version, known.digest
        return floor

    def _save_floor(self, name: str, floor: Floor) -> None:
        replace_file(self.root / ".floors" / f"{_quoted(name)}.json", msgspec.json.encode(floor))

    def _raise_floor(self, name: str, entry: Entry) -> None:
        floor = self._read_floor(name)
        known, new = version_key(floor.version), version_key(entry.version)
        if known is None or (new is not None and new > known):
            floor.version, floor.digest = entry.version, entry.digest
            self._save_floor(name, floor)

    def _require_not_older(self, name: str, version: str, digest: str, state: SlotState) -> None:
        floor = self._floor(name, state)
        if not _is_admitted(version, digest, floor):
            raise CommandError(
                f"{name}: expected a version of {floor.version} or above, found {version}: install a newer one"
            )

    def _use_permission(self, name: str, permission: str, digest: str) -> None:
        floor = self._read_floor(name)
        if all(each.permission != permission for each in floor.used):
            floor.used.append(Permission(permission=permission, digest=digest))
            self._save_floor(name, floor)

    def _settle_permissions(self, name: str, digest: str) -> None:
        """A permission is used up once its bundle is in; until then a cut may let the same install try again."""
        floor = self._read_floor(name)
        waiting = [each for each in floor.used if each.digest == digest and not each.settled]
        for each in waiting:
            each.settled = True
        if waiting:
            self._save_floor(name, floor)

    def _require_name(self, name: str, place: str) -> None:
        if len(_quoted(name)) > 230 or not name.isprintable():
            raise BundleError(f"{place}: manifest: name: expected at most 230 printable bytes, found {name[:64]!r}")

    def _require_class(self, manifest: Manifest, policy: Policy, place: str) -> None:
        wanted = manifest.target_device
        if policy.device_class is not None and wanted is not None and wanted != policy.device_class:
            raise BundleError(
                f"{place}: expected a bundle for {policy.device_class}, found one for {wanted}: "
                "convert it for this device"
            )


def _is_admitted(version: str, digest: str, floor: Floor) -> bool:
    """Above the floor, or the very bundle that made it."""
    known, new = version_key(floor.version), version_key(version)
    if known is None:
        return True
    return new is not None and (new > known or (new == known and digest == floor.digest))


def _fail(state: SlotState, reason: str) -> None:
    """Go back to the newest proven bundle, else to the one before, and remember why."""
    failed = state.active
    failed.why = reason[:300]
    back = next((entry for entry in state.history if entry.proven), state.history[0])
    state.history = [entry for entry in state.history if entry is not back]
    state.active = back
    state.active.starts = 0
    state.active.why = f"went back from {failed.version}: {reason}"[:300]  # so that every start can say it upstream
    state.rejected = [failed, *(entry for entry in state.rejected if entry.digest != failed.digest)]


def _newest(entry: Entry, state: SlotState) -> list[Entry]:
    """The staged ones with another; the oldest goes, but never the shadow."""
    found = [entry, *(each for each in state.staged if each.digest != entry.digest)]
    others = [each for each in found if each is not entry and not _is_shadow(state, each)]
    while len(found) > _MAX_STAGED and others:
        found.remove(others.pop())
    return found


def _is_shadow(state: SlotState, entry: Entry) -> bool:
    return bool(state.shadow) and entry.digest == state.shadow


def _shadow(state: SlotState) -> Entry | None:
    return next((entry for entry in state.staged if _is_shadow(state, entry)), None)


def misfit(beside: Manifest, candidate: Manifest) -> str | None:
    """Why a bundle cannot be run on the windows of another and compared with it; None when it can."""
    for what, wanted, found in (
        ("a task", beside.task, candidate.task),
        ("channels", beside.channel_names, candidate.channel_names),
        ("a window", beside.input.tensor_shape, candidate.input.tensor_shape),
        ("labels", beside.output.labels, candidate.output.labels),
        ("targets", _names(beside), _names(candidate)),
    ):
        if wanted != found:
            return f"expected {what} of {_plain(wanted)}, found {_plain(found)}"
    return None


def _names(manifest: Manifest) -> tuple[str, ...]:
    return tuple(target.name for target in manifest.output.targets)


def _plain(value: object) -> str:
    return (", ".join(map(str, value)) if isinstance(value, tuple) else str(value))[:100] or "none"


def _word(entry: Entry) -> str:
    return "active" if entry.proven else "probation"


def _quoted(name: str) -> str:
    """A name as a name of a folder: itself where that is plain, else with %XX for whatever is not."""
    text = quote(name, safe="")
    return "%2E" + text[1:] if text.startswith(".") else text


def _unquote(folder: str) -> str:
    from urllib.parse import unquote  # noqa: PLC0415 - beside its opposite

    return unquote(folder)
