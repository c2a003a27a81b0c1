"""The device's model store: which bundle of a name is active, which was before, and how the daemon judges a new one.

`ModelStore` is the interface for the rest of the runtime. Its folder is described in `layout.py`, the decisions in
`records.py`, the version floors in `floors.py`, an install in `install.py`, the files in `pruning.py`.

Guarantee: only `state.json` determines what is active, and it is replaced atomically. A kill or a power cut at any
moment leaves the old decision or the new one, with its bundle on the disk. Versions only go up; a signed permission
(`permission.py`) admits one older version, once. No decision depends on the clock. Weak point: anyone who may write to
this folder can change everything.

A new bundle is on probation until the daemon calls `confirm`, or `fail`, which goes back to the last good one and
records the digest. The daemon calls `begin` at every start and `pause` on a clean stop. More than `MAX_STARTS` starts
without any of these is a crash loop, and counts as failed.

At most one staged bundle a name is the shadow: the daemon runs it beside the active one and compares (`shadow.py`).
It passed the same checks, and becomes active only by `activate` or `promote`.
"""

from pathlib import Path

from edge_runtime.bundle.measured import Measured, read_measured
from edge_runtime.bundle.open import Bundle
from edge_runtime.bundle.release import Release
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store.floors import Floors
from edge_runtime.store.install import Installed, Installer, Policy, SelfTest, default_selftest
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.pruning import BundleFolder
from edge_runtime.store.records import MAX_WHY, BundleRecord, ListedBundle, Slot, SlotState, StateFiles
from edge_runtime.store.trust import Trust, open_trusted

DEFAULT_STORE = Path("/var/lib/edge-runtime/models")
MAX_STARTS = 3


class ModelStore:
    """The model store of one device.

    Args:
        root: its folder; made when the first bundle is installed.
        selftest: the self-test of a staged bundle.
        trust: the trusted signers of bundles; None requires no signatures.
    """

    def __init__(
        self, root: Path = DEFAULT_STORE, selftest: SelfTest = default_selftest, *, trust: Trust | None = None
    ) -> None:
        self.root = root
        self._trust = trust
        self._folder = StoreFolder(root)
        self._floors = Floors(self._folder)
        self._states = StateFiles(self._folder, lambda name: self._floors.read(name).digest, trust)
        self._bundles = BundleFolder(self._folder)
        self._installer = Installer(self._folder, self._states, self._floors, self._bundles, selftest=selftest)

    # -- reading -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names that have an active bundle, in order."""
        return self._folder.names()

    def entries(self, name: str | None = None) -> list[ListedBundle]:
        """Every bundle of one name, or of all: the active one first, then previous, staged and rejected ones."""
        listed: list[ListedBundle] = []
        for each in [name] if name is not None else self.names():
            state = self._states.load(each)
            if state is None:
                continue
            groups = [(state.active.word, [state.active]), ("previous", state.history)]
            groups += [("staged", state.staged), ("rejected", state.rejected)]
            for word, records in groups:
                listed += [
                    ListedBundle(
                        each,
                        record.version,
                        record.digest,
                        word,
                        record.why,
                        word == "staged" and state.is_shadow(record),
                    )
                    for record in records
                ]
        return listed

    def measured(self, name: str, digest: str) -> Measured | None:
        """The measured cost of a bundle on this device; None if not measured."""
        return read_measured(self._folder.bundle(name, digest), digest)

    def active(self, name: str) -> Path:
        """The file of the active bundle of a name.

        Raises:
            CommandError: nothing is installed under this name.
        """
        return self.slot(name).path

    def slot(self, name: str) -> Slot:
        """As `active`, with version, digest and state."""
        return self._states.slot(name, self._states.require(name).active)

    def shadow(self, name: str) -> Slot | None:
        """The staged bundle that runs beside the active one; None without."""
        record = self._states.require(name).shadow_record()
        return None if record is None else self._states.slot(name, record, "staged")

    def stamp(self, name: str) -> tuple[int, int, int]:
        """A cheap token (one `stat`) that differs once the decision for a name has changed; zeros without one."""
        return self._states.stamp(name)

    def note_device_class(self, device_class: str | None) -> None:
        """Keep the class of this device, so that every install checks it."""
        self._folder.note_device_class(device_class)

    # -- probation: called by the daemon ------------------------------------------------------------------------------

    def begin(self, name: str) -> Slot:
        """Called when the daemon loads the bundle of a name: the slot to run, which is on the disk and undamaged.

        On probation it counts the start; after `MAX_STARTS` of them the bundle has failed, and the slot is the previous
        one. A bundle damaged by the disk is replaced by the previous one too.

        Raises:
            CommandError: nothing is installed under this name, or the count cannot be written.
            BundleError: the bundle is damaged, and there is none before it.
        """
        with self._folder.changing(name):
            state = self._states.require(name)
            while not state.active.proven:
                if state.active.starts < MAX_STARTS or not state.history:
                    state.active.starts += 1
                    self._states.save(name, state)
                    break
                state.fail_active(f"started {MAX_STARTS} times on probation without ever being confirmed")
                self._states.save(name, state)
            while (damage := self._bundles.damage(name, state.active)) is not None:
                if not state.history:
                    raise BundleError(damage)
                state.fail_active(damage)
                self._states.save(name, state)
            return self._states.slot(name, state.active)

    def confirm(self, name: str, digest: str) -> Slot:
        """Mark the active bundle as proven in service; a digest that is no longer active changes nothing."""
        with self._folder.changing(name):
            state = self._states.require(name)
            if state.active.digest == digest and not state.active.proven:
                state.active.proven = True
                state.active.starts = 0
                self._save(name, state)
            return self._states.slot(name, state.active)

    def pause(self, name: str, digest: str) -> None:
        """Record a clean stop, so that this start does not count for a crash loop."""
        with self._folder.changing(name):
            state = self._states.require(name)
            if state.active.digest == digest and not state.active.proven and state.active.starts:
                state.active.starts -= 1
                self._states.save(name, state)

    def fail(self, name: str, digest: str, reason: str) -> Slot:
        """Go back after a failed probation, record the digest, and return the slot to run instead.

        Without a previous one the bundle stays, since there is no other; the reason is kept with it.
        """
        with self._folder.changing(name):
            state = self._states.require(name)
            if state.active.digest == digest:
                if state.history:
                    state.fail_active(reason)
                else:
                    state.active.why = reason[:MAX_WHY]
                self._save(name, state)
            return self._states.slot(name, state.active)

    def fail_shadow(self, name: str, digest: str, reason: str) -> None:
        """End a shadow that crashed, hangs or cannot be loaded, and record its digest. Nothing else changes."""
        with self._folder.changing(name):
            state = self._states.require(name)
            record = state.shadow_record()
            if record is None or record.digest != digest:
                return
            state.fail_staged(record, f"as a shadow: {reason}")
            self._save(name, state)

    # -- changing by hand ------------------------------------------------------------------------------------------

    def install(self, source: Path, policy: Policy) -> Installed:
        """Install a bundle: copy, signature, structure, version, self-test, and one rename.

        Installing the bundle that is active already succeeds and changes nothing.

        Raises:
            SignatureError: no trusted key has signed it.
            BundleError: it is no valid bundle, is older, failed here before, or fails its self-test.
            CommandError: the store cannot be written, or another install is under way.
        """
        return self._installer.install(source, policy)

    def require_admissible(self, release: Release, device_class: str | None) -> None:
        """Judge a bundle by its signed release document, before its bytes are received.

        Raises:
            BundleError: an install would refuse it.
        """
        self._installer.require_admissible(release, device_class)

    def rollback(self, name: str) -> Slot:
        """Go back to the bundle before the active one, which stays staged.

        Raises:
            CommandError: there is none.
        """
        with self._folder.changing(name):
            state = self._states.require(name)
            if not state.history:
                raise CommandError(
                    f"{name}: expected a previous bundle to go back to, found only {state.active.version}: "
                    "install another version"
                )
            self._bundles.require_sound(name, state.history[0])
            state.return_to_previous("rolled back by hand")
            self._save(name, state)
            return self._states.slot(name, state.active)

    def activate(self, name: str, version: str) -> Slot:
        """Make a staged or previous bundle the active one; without effect if it is already active.

        Raises:
            CommandError: there is no such version here, or it is below the floor and was never active.
        """
        with self._folder.changing(name):
            state = self._states.require(name)
            if state.active.version == version:
                return self._states.slot(name, state.active)
            here = [*state.history, *state.staged]
            chosen = next((record for record in here if record.version == version), None)
            if chosen is None:
                known = ", ".join(record.version for record in [state.active, *here])
                raise CommandError(
                    f"{name}: expected a version that is here ({known}), found {version}: install it first"
                )
            self._bundles.require_sound(name, chosen)
            if chosen in state.staged:
                self._floors.require_admitted(name, chosen, state)
                self._floors.raise_to(name, chosen)
            chosen.starts, chosen.why = 0, ""
            state.switch_to(chosen)
            self._save(name, state)
            return self._states.slot(name, state.active)

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
        with self._folder.changing(name):
            record = self._required_shadow(name)
            state = self._states.require(name)
            state.shadow = ""
            self._states.save(name, state)
            return self._states.slot(name, record, "staged")

    def open(self, name: str) -> Bundle:
        """As `open_slot`, for the active bundle."""
        return self.open_slot(self.slot(name))

    def open_slot(self, slot: Slot) -> Bundle:
        """Open a bundle of the store: its signatures first, as of its admission; its digest must be the installed one.

        Raises:
            SignatureError: its key was revoked or removed.
            BundleError: it is damaged, or another file.
        """
        return open_trusted(slot.path, self._trust, at=slot.admitted, digest=slot.digest)

    def _save(self, name: str, state: SlotState) -> None:
        self._states.save(name, state)
        self._bundles.prune(name, state)

    def _required_shadow(self, name: str) -> BundleRecord:
        record = self._states.require(name).shadow_record()
        if record is None:
            raise CommandError(f"{name}: expected a shadow, found none: install one with --shadow")
        return record
