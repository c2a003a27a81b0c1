"""Versions only go up: the highest version that a name ever had, and the used signed permissions.

Guarantee: a version below the floor is not admitted, independent of the device's clock; a permission (`permission.py`)
admits one older bundle, once. A permission is recorded before the decision and settled after it, so that after a power
cut between the two only the same install may try again. Weak point: a damaged floor file falls back to the newest
version in the state.
"""

import msgspec

from edge_runtime.bundle.open import version_key
from edge_runtime.errors import CommandError
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.records import BundleRecord, SlotState
from edge_runtime.system.durable import replace_file


class UsedPermission(msgspec.Struct, kw_only=True):
    """A signed permission that was used, by its own digest; `settled` once the bundle that it admitted was active."""

    permission: str
    digest: str
    settled: bool = False


class VersionFloor(msgspec.Struct, kw_only=True):
    """What `.floors/NAME.json` holds."""

    version: str = ""
    digest: str = ""
    sequence: int = 0
    used: list[UsedPermission] = []

    def admits(self, version: str, digest: str) -> bool:
        """Whether a version is above the floor, or is the bundle that set it."""
        known, new = version_key(self.version), version_key(version)
        if known is None:
            return True
        return new is not None and (new > known or (new == known and digest == self.digest))


class Floors:
    """The floors of one store.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder

    def read(self, name: str) -> VersionFloor:
        """The floor of a name as it stands on the disk; an empty one if it is missing or damaged."""
        try:
            return msgspec.json.decode(self._folder.floor(name).read_bytes(), type=VersionFloor)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return VersionFloor()

    def known(self, name: str, state: SlotState | None) -> VersionFloor:
        """The floor, or the highest version in the state if its file is lost or damaged."""
        floor = self.read(name)
        if version_key(floor.version) is None and state is not None:
            newest = max((state.active, *state.history), key=lambda record: version_key(record.version) or ())
            floor.version, floor.digest = newest.version, newest.digest
        return floor

    def raise_to(self, name: str, record: BundleRecord) -> None:
        """Admit nothing below this bundle from now on."""
        floor = self.read(name)
        known, new = version_key(floor.version), version_key(record.version)
        if known is None or (new is not None and new > known):
            floor.version, floor.digest = record.version, record.digest
            self._save(name, floor)

    def raise_sequence(self, name: str, sequence: int) -> None:
        """Admit no release document with a lower number from now on."""
        floor = self.read(name)
        if sequence > floor.sequence:
            floor.sequence = sequence
            self._save(name, floor)

    def require_admitted(self, name: str, record: BundleRecord, state: SlotState) -> None:
        """Refuse a bundle below the floor.

        Raises:
            CommandError: it is below.
        """
        floor = self.known(name, state)
        if not floor.admits(record.version, record.digest):
            raise CommandError(
                f"{name}: expected a version of {floor.version} or above, found {record.version}: install a newer one"
            )

    def use_permission(self, name: str, permission: str, digest: str) -> None:
        """Record that a permission admitted this bundle."""
        floor = self.read(name)
        if all(each.permission != permission for each in floor.used):
            floor.used.append(UsedPermission(permission=permission, digest=digest))
            self._save(name, floor)

    def settle_permissions(self, name: str, digest: str) -> None:
        """Mark permissions as used once their bundle is active; until then the same install may be repeated."""
        floor = self.read(name)
        open_ones = [each for each in floor.used if each.digest == digest and not each.settled]
        for each in open_ones:
            each.settled = True
        if open_ones:
            self._save(name, floor)

    def _save(self, name: str, floor: VersionFloor) -> None:
        replace_file(self._folder.floor(name), msgspec.json.encode(floor))
