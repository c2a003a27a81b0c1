"""`edge-runtime depot BUNDLE...`: serves bundles by their digest to devices that follow their desired state."""

import argparse
import sys
from pathlib import Path

from edge_runtime.errors import EXIT_OK
from edge_runtime.fleet.broker_arguments import add_broker, fleet_broker
from edge_runtime.fleet.broker_view import broker_login
from edge_runtime.fleet.depot import Depot
from edge_runtime.fleet.inventory import find_inventory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The bundles, and the broker."""
    parser.add_argument("bundle", nargs="+", type=Path, metavar="BUNDLE|DIR", help="what is served")
    parser.add_argument(
        "--inventory", metavar="FILE", help="whose [broker] is used; default: as for the commands of the fleet"
    )
    add_broker(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        EdgeError: there is no bundle, or the broker cannot be reached or refuses.
    """
    depot = Depot(args.bundle)
    login = broker_login(fleet_broker(args, find_inventory(args.inventory)))
    try:
        depot.serve(login, lambda text: print(text, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(f"{depot.sent} chunks sent, {depot.unknown.total()} requests for other files", file=sys.stderr)
    return EXIT_OK
