"""The files of a flash: a checked bundle, the files beside it, and the options of the install."""

from pathlib import Path

import msgspec

from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.release import RELEASE_SUFFIX
from edge_runtime.bundle.signature import SUFFIXES
from edge_runtime.errors import CommandError
from edge_runtime.fleet.errors import RefusedError
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.listing import Listed

# Files sent with a bundle, if they exist: signatures, the release document, and a permission for an older version.
_BESIDE = (
    *SUFFIXES,
    *(RELEASE_SUFFIX + end for end in ("", *SUFFIXES)),
    ".allow-older",
    ".allow-older.sig",
)


class BundleFiles(msgspec.Struct, frozen=True):
    """A bundle and the files beside it.

    Attributes:
        path: the bundle's file.
        name: the model's name.
        version: its version.
        digest: the SHA-256 of the file.
        beside: signatures, release document and permission, as far as they exist.
        device_class: what kind of device it was made for; None for any.
    """

    path: Path
    name: str
    version: str
    digest: str
    beside: tuple[Path, ...]
    device_class: str | None = None


class InstallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `flash` for the device's `models install`."""

    unsigned: bool = False
    stage: bool = False
    shadow: bool = False
    retry_rejected: bool = False
    max_latency_ms: float | None = None
    max_memory_mib: int | None = None

    @property
    def stays_inactive(self) -> bool:
        """Whether the bundle shall not become active yet."""
        return self.stage or self.shadow

    def words(self) -> list[str]:
        """The options of the command."""
        found = ["--unsigned", "allow"] if self.unsigned else []
        found += ["--stage"] if self.stage else []
        found += ["--shadow"] if self.shadow else []
        found += ["--retry-rejected"] if self.retry_rejected else []
        found += [] if self.max_latency_ms is None else ["--max-latency", f"{self.max_latency_ms:g}"]
        return found + ([] if self.max_memory_mib is None else ["--max-memory", str(self.max_memory_mib)])


def load(path: Path, *, unsigned: bool) -> BundleFiles:
    """Check a bundle before it is sent.

    Raises:
        BundleError: it is no valid bundle.
        CommandError: it has no signature, and `unsigned` does not allow that.
    """
    bundle = open_bundle(path)
    beside = [path.with_name(path.name + suffix) for suffix in _BESIDE]
    found = tuple(each for each in beside if each.is_file())
    if beside[0] not in found and not unsigned:
        raise CommandError(
            f"{path}: expected its signature beside it, found no {beside[0].name}: "
            "`edge-convert sign` it, or use --unsigned for a device that allows that"
        )
    manifest = bundle.manifest
    return BundleFiles(path, manifest.name, manifest.version, bundle.digest, found, manifest.target_device)


def require_class(target: FleetDevice, files: BundleFiles) -> None:
    """Refuse a bundle for another class than the inventory gives this device; the device compares as well.

    Raises:
        RefusedError: the classes differ.
    """
    if target.kind is not None and files.device_class is not None and target.kind != files.device_class:
        raise RefusedError(
            f"expected a bundle for {target.kind}, found one for {files.device_class}: convert it for this device"
        )


def pinned(target: FleetDevice, model: str, version: str) -> str | None:
    """Why a device keeps its pinned version; None where it may get this one."""
    pin = next((each for each in target.pins if each.split()[0] == model), None)
    if pin is None or pin.split()[1] == version:
        return None
    return f"the inventory pins it to {pin}"


def kept_by_pin(target: FleetDevice, running: Listed) -> str | None:
    """Why a rollback skips a device: it runs the version that the inventory pins."""
    pin = f"{running['name']} {running['version']}"
    return f"the inventory pins it to {pin}" if pin in target.pins else None
