"""How a device is reached: the one list of ways, and what every way can do.

The device decides: its own runtime checks signature, structure, version and self-test before the one rename that makes
a bundle active. After any fault on the way the device keeps serving the previous bundle. Flashing the active bundle
changes nothing, so the same command resumes a broken rollout.
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
        """Take it back to the previous bundle, if the active one is the unwanted one."""

    def look(self, target: FleetDevice, watcher: Watcher) -> Outcome:
        """Its state, as a `Row` in the outcome's details. Never raises: an unreachable device has a row too."""


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
