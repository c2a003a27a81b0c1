"""Devices that hung in an earlier command, in a file beside the inventory: they go last in the next one.

A device counts as hung when it answered and then fell silent, or kept its place longer than others may wait for it; a
device that is switched off does not count. It is removed from the file when it has succeeded. Guarantee: without such a
device no file is written; a file that cannot be read or written affects only the order.
"""

import contextlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from edge_runtime.fleet.inventory import FleetDevice

NAME = "hung-devices.json"


class HungDevices:
    """The names.

    Args:
        folder: of the inventory, or of the file of rollouts.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def names(self) -> set[str]:
        """Those that hung last time."""
        try:
            return set(msgspec.json.decode(self._path.read_bytes(), type=list[str]))
        except (OSError, msgspec.MsgspecError, ValueError):
            return set()

    def last(self, targets: Sequence[FleetDevice]) -> list[FleetDevice]:
        """The devices in their order, those that hung last time at the end."""
        hung = self.names()
        return sorted(targets, key=lambda each: each.name in hung)

    def note(self, hung: Collection[str], succeeded: Collection[str]) -> None:
        """Add the devices that hung, and remove those that succeeded."""
        before = self.names()
        after = (before | set(hung)) - set(succeeded)
        if after == before:
            return
        part = self._path.with_name(f"{NAME}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a read-only folder: the order is that of the inventory
            part.write_bytes(msgspec.json.encode(sorted(after)))
            part.replace(self._path)
