"""`edge-runtime devices`: what every device of the fleet is doing, as a table or as JSON."""

import argparse
import sys
import time

from edge_runtime.fleet.cli import add_selection, chosen
from edge_runtime.fleet.inventory import RolloutTable, Target
from edge_runtime.fleet.overview import HEADER, Row, cells, look, to_json
from edge_runtime.fleet.progress import shown
from edge_runtime.fleet.rollout import Outcome, Watcher, failures, roll_out
from edge_runtime.fleet.table import render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices; all of them when none is named."""
    add_selection(parser)


def run(args: argparse.Namespace) -> int:
    """Ask every device, show the table, and return how many did not answer as they should.

    Raises:
        EdgeError: the inventory or the choice of devices is wrong.
    """
    _, targets, rollout = chosen(args, everything=True)
    with shown(quiet=args.quiet or not sys.stderr.isatty()) as watcher:
        outcomes = roll_out(targets, _look, RolloutTable(limit=rollout.limit, canaries=0), watcher)
    rows = [row for outcome in outcomes if isinstance(row := outcome.details.get("row"), Row)]
    if args.json:
        sys.stdout.write(to_json(rows) + "\n")
    else:
        now = time.time()
        sys.stdout.write(render(HEADER, [line for row in rows for line in cells(row, now)]) + "\n")
    return failures(outcomes)


def _look(target: Target, watcher: Watcher) -> Outcome:
    if target.transport == "ssh":
        return look(target, watcher)
    from edge_runtime.fleet import over_mqtt  # noqa: PLC0415 - only where it is asked for

    return over_mqtt.look(target, watcher)
