"""Installs a bundle into the store: copy, signature, structure, class, version, self-test, and one rename.

Guarantee: the checks apply to the staged copy, which its sender cannot change any more, and nothing parses it before
its signature is verified. A kill or a power cut at any moment leaves the old decision or the new one, with its bundle
on the disk, and the same install then succeeds. Weak point: a bundle admitted unsigned (`unsigned = "allow"`) is parsed
with only the bounds of `bundle/onnx_file.py`.
"""

import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.measured import Measured
from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS, Limits
from edge_runtime.bundle.open import Bundle, check_bundle, read_file
from edge_runtime.bundle.release import MAX_RELEASE_BYTES, RELEASE_SUFFIX, Release, read_release
from edge_runtime.bundle.selftest import DEFAULT_BUDGET, Budget, run_selftest
from edge_runtime.bundle.signature import MAX_SIGNATURE_BYTES, SUFFIX, SUFFIXES, Verified, require_signatures
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.store.floors import Floors, VersionFloor
from edge_runtime.store.layout import StoreFolder, is_valid_name
from edge_runtime.store.permission import allows_older
from edge_runtime.store.pruning import BundleFolder
from edge_runtime.store.records import BundleRecord, Slot, SlotState, StateFiles
from edge_runtime.store.trust import Trust, open_trusted
from edge_runtime.system.durable import locked, make_folder, remove, write_file

DEFAULT_SIGNERS = Path("/etc/edge-runtime/allowed_signers")
SPARE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """The requirements of an install.

    Attributes:
        allowed_signers: the file of trusted keys.
        unsigned: `allow` takes a bundle without `.sig`; one with a signature must still have a valid one.
        budget: the limits of the model's cost in the self-test.
        limits: the limits of the file.
        device: this device's id, for permissions that are bound to it.
        device_class: refuse a bundle that was made for another class; None accepts all.
        rejected: `retry` accepts a digest that failed here before.
        activate: False only stages the bundle.
        shadow: stages it, and runs it beside the active one.
        allow_older: a signed permission; None looks for `BUNDLE.allow-older`.
        signatures: how many different keys must have signed.
        release: `require` refuses a bundle without `BUNDLE.release`; an existing one is always checked.
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
    signatures: int = 1
    release: str = "accept"


@dataclass(frozen=True, slots=True)
class Installed:
    """The result of an install; `measured` is None if the bundle was already active."""

    slot: Slot
    changed: bool
    measured: Measured | None = None


SelfTest = Callable[[Bundle, Budget, str], Measured]


def default_selftest(bundle: Bundle, budget: Budget, place: str) -> Measured:
    """The golden answers, in a child process."""
    return run_selftest(bundle, budget, place=place)


class Installer:
    """Installs into one store.

    Args:
        folder: of the store.
        states: its decisions.
        floors: its version floors.
        bundles: its files.
        selftest: the self-test of a staged bundle.
    """

    def __init__(
        self, folder: StoreFolder, states: StateFiles, floors: Floors, bundles: BundleFolder, *, selftest: SelfTest
    ) -> None:
        self._folder = folder
        self._states = states
        self._floors = floors
        self._bundles = bundles
        self._selftest = selftest

    def install(self, source: Path, policy: Policy) -> Installed:
        """As `ModelStore.install`."""
        with self._folder.writing():
            self._folder.make()
            busy = f"{self._folder.root}: another install is under way: wait for it to end"
            with locked(self._folder.root / ".install.lock", busy, 0.0):
                staging = self._folder.staging
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
        verified = _require_signatures(source, staged, data, policy)
        release = _read_release(source, policy)
        bundle = check_bundle(staged, data, place=place, limits=policy.limits)
        name, digest = bundle.manifest.name, bundle.digest
        if release is not None:
            _require_match(release, bundle, place)
            self._require_sequence(release, place)
        _require_name(name, place)
        _require_class(bundle.manifest.target_device, policy.device_class, place)
        _require_class(bundle.manifest.target_device, self._folder.device_class(), place)
        state = self._states.load(name)
        if state is not None:
            self._floors.settle_permissions(name, state.active.digest)  # after a power cut in between
        if state is not None and state.active.digest == digest and self._bundles.damage(name, state.active) is None:
            self._bundles.renew_signature(name, digest, staged)
            return Installed(self._states.slot(name, state.active), changed=False)
        permission = self._require_admitted(bundle, state, policy, source)
        if policy.shadow:
            self._require_comparable(bundle, state, policy, place)
        measured = self._selftest(bundle, policy.budget, place)
        record = BundleRecord(
            version=bundle.manifest.version,
            digest=digest,
            size=bundle.size,
            admitted=max((each.at for each in verified), default=time.time()),
            signers=[each.principal for each in verified],
        )
        with self._folder.changing(name):
            state = self._states.load(name)  # the daemon may have rolled back meanwhile
            self._require_admitted(bundle, state, policy, source)
            self._bundles.keep(name, digest, staged)
            if permission is not None:
                self._floors.use_permission(name, permission, digest)
            slot = self._decide(name, state, record, policy)
            if release is not None:
                self._floors.raise_sequence(name, release.sequence)
        self._floors.settle_permissions(name, digest)
        return Installed(slot, changed=True, measured=measured)

    def _decide(self, name: str, state: SlotState | None, record: BundleRecord, policy: Policy) -> Slot:
        """Do the one rename; the bundle is already on the disk."""
        if state is not None and (policy.shadow or not policy.activate):
            if policy.shadow:
                state.shadow = record.digest
            state.stage(record)
            self._states.save(name, state)
            self._bundles.prune(name, state)
            return self._states.slot(name, record, "staged")
        self._floors.raise_to(name, record)
        if state is None:
            state = SlotState(active=record)
        else:
            state.switch_to(record)
        self._states.save(name, state)
        self._bundles.prune(name, state)
        return self._states.slot(name, record)

    def _stage(self, source: Path, staged: Path, policy: Policy) -> bytes:
        """Copy bundle and signature; all further checks use the copy, which its sender cannot change."""
        data = read_file(source, policy.limits.max_bytes)
        free = shutil.disk_usage(self._folder.root).free
        if free < len(data) + SPARE_BYTES:
            raise CommandError(
                f"{self._folder.root}: expected room for {len(data)} bytes and 1 MiB to spare, found {free} free: "
                "remove something, then install again"
            )
        write_file(staged, data)
        for suffix in SUFFIXES:
            signature = source.with_name(source.name + suffix)
            if signature.exists():
                write_file(staged.with_name(staged.name + suffix), read_file(signature, MAX_SIGNATURE_BYTES))
        return data

    def require_admissible(self, release: Release, device_class: str | None) -> None:
        """As `ModelStore.require_admissible`."""
        place = f"{release.name} {release.version}"
        _require_name(release.name, place)
        _require_class(release.device_class, device_class, place)
        _require_class(release.device_class, self._folder.device_class(), place)
        state = self._states.load(release.name)
        _require_not_rejected(state, release.digest, place)
        floor = self._floors.known(release.name, state)
        self._require_sequence(release, place)
        if not floor.admits(release.version, release.digest):
            raise BundleError(_below_floor(place, release.name, release.version, floor))

    def _require_sequence(self, release: Release, place: str) -> None:
        floor = self._floors.read(release.name)
        if release.sequence < floor.sequence:
            raise BundleError(
                f"{place}: expected a release of sequence {floor.sequence} or above, found {release.sequence}: "
                "it was replayed; sign it anew"
            )

    def _require_comparable(self, bundle: Bundle, state: SlotState | None, policy: Policy, place: str) -> None:
        """Check that a shadow has an active bundle to run beside, with the same windows."""
        if state is None:
            raise BundleError(
                f"{place}: expected an active {bundle.manifest.name} to run beside, found none: install it without "
                "--shadow"
            )
        active = self._states.slot(bundle.manifest.name, state.active)
        trust = Trust(policy.allowed_signers) if state.active.signers else None
        beside = open_trusted(active.path, trust, at=active.admitted, digest=active.digest).manifest
        problem = shadow_misfit(beside, bundle.manifest)
        if problem is not None:
            raise BundleError(f"{place}: cannot run beside {beside.version}: {problem}: install it without --shadow")

    def _require_admitted(self, bundle: Bundle, state: SlotState | None, policy: Policy, source: Path) -> str | None:
        """Refuse a bundle that failed here before or is older; returns the permission of an older one, if any."""
        manifest, digest, place = bundle.manifest, bundle.digest, str(source)
        if policy.rejected != "retry":
            _require_not_rejected(state, digest, place)
        floor = self._floors.known(manifest.name, state)
        if floor.admits(manifest.version, digest):
            return None
        permission = policy.allow_older or source.with_name(source.name + ".allow-older")
        if permission.exists():
            found = allows_older(permission, policy.allowed_signers, manifest, digest, device=policy.device)
            used = [each for each in floor.used if each.permission == found]
            if used and (used[0].settled or used[0].digest != digest):
                raise BundleError(
                    f"{permission}: expected a permission for this one use, found one that was used before"
                )
            return found
        raise BundleError(_below_floor(place, manifest.name, manifest.version, floor))


def _below_floor(place: str, name: str, version: str, floor: VersionFloor) -> str:
    return (
        f"{place}: expected a version of {name} above {floor.version}, found {version}"
        f"{' of other content' if version == floor.version else ''}: "
        "raise the version, roll back, or sign a permission for the older one"
    )


def _require_not_rejected(state: SlotState | None, digest: str, place: str) -> None:
    for record in state.rejected if state is not None else []:
        if record.digest == digest:
            raise BundleError(
                f"{place}: expected a bundle that has not failed here, found one that has ({record.why}): "
                "install another, or say --retry-rejected"
            )


def _require_signatures(source: Path, staged: Path, data: bytes, policy: Policy) -> list[Verified]:
    is_signed = staged.with_name(staged.name + SUFFIX).exists()
    if policy.unsigned == "allow" and not is_signed:
        return []
    beside = staged if is_signed else source  # absent: the message names the missing file
    return require_signatures(
        staged, policy.allowed_signers, data=data, beside=beside, count=policy.signatures, place=str(source)
    )


def _read_release(source: Path, policy: Policy) -> Release | None:
    """The signed release document beside a bundle, if there is one or one is required."""
    path = source.with_name(source.name + RELEASE_SUFFIX)
    if not path.exists():
        if policy.release == "require":
            raise BundleError(f"{source}: expected {path.name} beside it, found none: sign it with edge-convert sign")
        return None
    signatures = [
        read_file(path.with_name(path.name + suffix), MAX_SIGNATURE_BYTES) for suffix in SUFFIXES[: policy.signatures]
    ]
    text = read_file(path, MAX_RELEASE_BYTES)
    return read_release(text, signatures, policy.allowed_signers, count=policy.signatures, place=str(path))[0]


def _require_match(release: Release, bundle: Bundle, place: str) -> None:
    manifest = bundle.manifest
    for what, expected, found in (
        ("name", release.name, manifest.name),
        ("version", release.version, manifest.version),
        ("digest", release.digest, bundle.digest),
        ("size", str(release.size), str(bundle.size)),
    ):
        if expected != found:
            raise BundleError(f"{place}: {what}: the release document says {expected[:80]}, found {found[:80]}")


def _require_name(name: str, place: str) -> None:
    if not is_valid_name(name):
        raise BundleError(f"{place}: manifest: name: expected at most 230 printable bytes, found {name[:64]!r}")


def _require_class(wanted: str | None, device_class: str | None, place: str) -> None:
    if device_class is not None and wanted is not None and wanted != device_class:
        raise BundleError(
            f"{place}: expected a bundle for {device_class}, found one for {wanted}: convert it for this device"
        )


def shadow_misfit(beside: Manifest, candidate: Manifest) -> str | None:
    """Why a bundle cannot be run on the windows of another and compared with it; None when it can."""
    for what, wanted, found in (
        ("a task", beside.task, candidate.task),
        ("channels", beside.channel_names, candidate.channel_names),
        ("a window", beside.input.tensor_shape, candidate.input.tensor_shape),
        ("labels", beside.output.labels, candidate.output.labels),
        ("targets", _target_names(beside), _target_names(candidate)),
        ("tensors", beside.output.tensors, candidate.output.tensors),
        ("detections", beside.output.detections, candidate.output.detections),
    ):
        if wanted != found:
            return f"expected {what} of {_plain(wanted)}, found {_plain(found)}"
    return None


def _target_names(manifest: Manifest) -> tuple[str, ...]:
    return tuple(target.name for target in manifest.output.targets)


def _plain(value: object) -> str:
    return (", ".join(map(str, value)) if isinstance(value, tuple) else str(value))[:100] or "none"
