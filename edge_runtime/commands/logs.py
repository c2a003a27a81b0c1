"""`edge-runtime logs DEVICE...`: the journal of the service on devices of the fleet, each line with its device."""

import argparse

from edge_runtime.fleet.cli import add_selection, chosen
from edge_runtime.fleet.journal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices, how many lines, and whether to follow."""
    add_selection(parser)
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="how many lines back; default: 50")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines until interrupted")
    parser.add_argument("--since", metavar="TIME", help='such as "1 hour ago" or "today"')


def run(args: argparse.Namespace) -> int:
    """Print the lines and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the inventory or the choice of devices is wrong.
    """
    _, targets, rollout = chosen(args)
    return show(targets, lines=args.lines, follow=args.follow, since=args.since, json=args.json, limit=rollout.limit)
