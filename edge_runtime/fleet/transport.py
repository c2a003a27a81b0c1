"""How a device is reached: the one list of ways, and what every way can do.

The device decides: signature, structure, version and self-test are checked there, by its own runtime, before the one
rename that makes a bundle active. Whatever goes wrong on the way, the device keeps serving what it served. Flashing
what is active already changes nothing, so a rollout that broke off is resumed by the same command.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, assert_never

from edge_runtime.fleet.bundle_files import BundleFiles, InstallOptions
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.listing import Unwanted
from edge_runtime.fleet.rollout import Outcome, Watcher


class Transport(Protocol):
    """Does the work of the fleet's commands on one device. Every method may raise an EdgeError of `fleet/errors.py`."""

    def flash(self, target: FleetDevice, watcher: Watcher, files: BundleFiles, options: InstallOptions) -> Outcome:
        """Bring a bundle there and make it active."""

    def confirm(self, target: FleetDevice, files: BundleFiles) -> str | None:
        """What is wrong with a device after it has run the bundle for a while; None when nothing is."""

    def rollback(
        self, target: FleetDevice, watcher: Watcher, *, model: str | None, unwanted: Unwanted, key: Path | None
    ) -> Outcome:
        """Take it back to the bundle before the active one, where that is the unwanted one."""

    def look(self, target: FleetDevice, watcher: Watcher) -> Outcome:
        """What it does now, as a `Row` in the outcome's details. Never raises: out of reach is an answer too."""


def transport_of(target: FleetDevice) -> Transport:
    """The way to a device; its module is imported only when a device needs it."""
    match target.transport:
        case "ssh":
            from edge_runtime.fleet.over_ssh import SshTransport  # noqa: PLC0415 - see above

            return SshTransport()
        case "mqtt":
            from edge_runtime.fleet.over_mqtt import MqttTransport  # noqa: PLC0415 - see above

            return MqttTransport()
        case _:
            assert_never(target.transport)


def all_over_mqtt(targets: Sequence[FleetDevice]) -> bool:
    """No device of these needs ssh."""
    return all(each.transport == "mqtt" for each in targets)
