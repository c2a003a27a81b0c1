"""`edge-runtime rollback DEVICE...`: devices of the fleet go back to the model before the active one."""

import argparse

from edge_runtime.fleet.cli import add_selection, carry_out, chosen
from edge_runtime.fleet.flash import rollback
from edge_runtime.fleet.inventory import Rollout

HELP = "take devices of the fleet back to the model before"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices, and the model where there are several."""
    add_selection(parser)
    parser.add_argument("--model", metavar="NAME", help="which model, where a device has several")


def run(args: argparse.Namespace) -> int:
    """Roll back, show the table, and return how many devices failed.

    Raises:
        EdgeError: the inventory or the choice of devices is wrong; no device was touched.
    """
    _, targets, rollout = chosen(args)
    return carry_out(
        args,
        targets,
        Rollout(limit=rollout.limit, canaries=0),  # whoever goes back is in a hurry
        lambda target, watcher: rollback(target, watcher, args.model),
        about={"model": args.model},
    )
