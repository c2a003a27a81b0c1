"""`edge-runtime provision DEVICE...`: runtime, service and configuration onto devices of the fleet."""

import argparse
from pathlib import Path

from edge_runtime.errors import CommandError
from edge_runtime.fleet.cli import add_selection, add_waves, carry_out, chosen, existing
from edge_runtime.fleet.provision import Supply, provision
from edge_runtime.fleet.wheels import newest_wheel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices, the waves, and what is brought."""
    add_selection(parser)
    add_waves(parser)
    parser.add_argument("--dry-run", action="store_true", help="look, say what would be done, and change nothing")
    parser.add_argument("--wheelhouse", type=Path, metavar="DIR", help="install without network, from these wheels")
    parser.add_argument("--wheel", type=existing, metavar="FILE", help="the runtime; default: the newest in dist/")
    parser.add_argument("--allowed-signers", type=existing, metavar="FILE", help="whose bundles devices trust")
    parser.add_argument(
        "--with",
        dest="beside",
        type=existing,
        action="append",
        default=[],
        metavar="FILE",
        help="a file that goes beside the device file, such as a password; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Provision, show the table, and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the inventory, the choice of devices or the wheels are wrong; no device was touched.
    """
    if args.wheelhouse is not None and not args.wheelhouse.is_dir():
        raise CommandError(f"{args.wheelhouse}: expected a folder of wheels, found none: `make wheelhouse`")
    wheel = args.wheel
    if wheel is None and args.wheelhouse is None:
        wheel = newest_wheel(Path("dist"))
    supply = Supply(
        wheelhouse=args.wheelhouse, wheel=wheel, allowed_signers=args.allowed_signers, beside=tuple(args.beside)
    )
    _, targets, rollout = chosen(args)
    return carry_out(
        args,
        targets,
        rollout,
        lambda target, watcher: provision(target, watcher, supply, dry_run=args.dry_run),
        about={"dry_run": args.dry_run},
    )
