"""`edge-runtime flash BUNDLE DEVICE...`: bring a bundle to devices of the fleet; see `fleet/transport.py`."""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_arguments import add_broker, given_broker
from edge_runtime.fleet.bundle_files import InstallOptions, load
from edge_runtime.fleet.cli import add_selection, add_waves, carry_out, chosen
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.transport import transport_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, the devices, the waves, and the options of the install."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .onnx bundle, its signature beside it")
    add_selection(parser)
    add_waves(parser)
    parser.add_argument("--unsigned", action="store_true", help="ask devices to take a bundle without a signature")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stage", action="store_true", help="bring it there, but do not make it active")
    how.add_argument("--shadow", action="store_true", help="run it beside the active model, to see how far they agree")
    parser.add_argument("--retry-rejected", action="store_true", help="try again where this bundle failed before")
    parser.add_argument("--max-latency", type=float, metavar="MS", help="devices refuse a slower model")
    parser.add_argument("--max-memory", type=int, metavar="MIB", help="devices refuse a model that needs more")
    parser.add_argument(
        "--over", choices=("ssh", "mqtt"), help="how devices are reached; default: as the inventory has it"
    )
    add_broker(parser)


def run(args: argparse.Namespace) -> int:
    """Flash, show the table, and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the bundle, the inventory or the choice of devices is wrong; no device was touched.
    """
    files = load(args.bundle, unsigned=args.unsigned)
    _, targets, rollout = chosen(args)
    options = InstallOptions(
        unsigned=args.unsigned,
        stage=args.stage,
        shadow=args.shadow,
        retry_rejected=args.retry_rejected,
        max_latency_ms=args.max_latency,
        max_memory_mib=args.max_memory,
    )
    targets = reached_as_asked(args, targets)
    about: dict[str, object] = {"model": files.name, "version": files.version, "digest": files.digest}

    return carry_out(
        args,
        targets,
        rollout,
        lambda target, watcher: transport_of(target).flash(target, watcher, files, options),
        confirm=None if options.stays_inactive else lambda target: transport_of(target).confirm(target, files),
        about=about,
    )


def reached_as_asked(args: argparse.Namespace, targets: list[FleetDevice]) -> list[FleetDevice]:
    """The devices with the transport and the broker of the command line, where it names them.

    Raises:
        CommandError: `--broker` is no address of one.
    """
    broker = given_broker(args)
    given: dict[str, Any] = {} if args.over is None else {"transport": args.over}
    given |= {} if broker is None else {"broker": broker}
    found = [msgspec.structs.replace(target, **given) for target in targets]
    if any(target.transport == "mqtt" and target.broker is None for target in found):
        raise CommandError(
            "over MQTT: expected the devices' broker in [broker] of the inventory or --broker, found none"
        )
    return found
