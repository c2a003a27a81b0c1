"""`edge-runtime rollback DEVICE...`: devices of the fleet go back to the model before the active one."""

import argparse
from pathlib import Path

from edge_runtime.fleet.cli import add_selection, at_once, carry_out, chosen
from edge_runtime.fleet.listing import unwanted
from edge_runtime.fleet.transport import transport_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices, the bundle that they leave, and the model where there are several."""
    add_selection(parser)
    parser.add_argument(
        "--from",
        dest="unwanted",
        metavar="VERSION|BUNDLE",
        help="only devices that run this version, or this very bundle; others stay as they are",
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="signs the order to devices that MQTT reaches")
    parser.add_argument("--model", metavar="NAME", help="which model, where a device has several")


def run(args: argparse.Namespace) -> int:
    """Roll back, show the table, and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the inventory, the choice of devices or the bundle is wrong; no device was touched.
    """
    leave = unwanted(args.unwanted)
    _, targets, rollout = chosen(args)
    return carry_out(
        args,
        targets,
        at_once(rollout),  # a rollback is urgent
        lambda target, watcher: transport_of(target).rollback(
            target, watcher, model=args.model, unwanted=leave, key=args.sign
        ),
        about={"model": args.model, "from": args.unwanted},
    )
