"""`edge-runtime rollback DEVICE...`: devices of the fleet go back to the model before the active one."""

import argparse
from pathlib import Path

from edge_runtime.fleet.cli import add_selection, carry_out, chosen
from edge_runtime.fleet.flash import rollback
from edge_runtime.fleet.inventory import RolloutTable, Target
from edge_runtime.fleet.rollout import Outcome, Watcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices, and the model where there are several."""
    add_selection(parser)
    parser.add_argument("--sign", type=Path, metavar="KEY", help="signs the order to devices that MQTT reaches")
    parser.add_argument("--model", metavar="NAME", help="which model, where a device has several")


def run(args: argparse.Namespace) -> int:
    """Roll back, show the table, and return how many devices failed.

    Raises:
        EdgeError: the inventory or the choice of devices is wrong; no device was touched.
    """
    _, targets, rollout = chosen(args)

    def step(target: Target, watcher: Watcher) -> Outcome:
        if target.transport == "ssh":
            return rollback(target, watcher, args.model)
        from edge_runtime.fleet import over_mqtt  # noqa: PLC0415 - only where it is asked for

        return over_mqtt.rollback(target, watcher, args.model, args.sign)

    return carry_out(
        args,
        targets,
        RolloutTable(limit=rollout.limit, canaries=0),  # whoever goes back is in a hurry
        step,
        about={"model": args.model},
    )
