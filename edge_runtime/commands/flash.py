"""`edge-runtime flash BUNDLE DEVICE...`: a bundle to devices of the fleet, as `fleet/flash.py` promises."""

import argparse
from pathlib import Path

from edge_runtime.fleet.cli import add_selection, add_waves, carry_out, chosen
from edge_runtime.fleet.flash import Wishes, confirm, flash, load

HELP = "bring a model to devices of the fleet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, the devices, the waves, and what is asked of the install."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .onnx bundle, its signature beside it")
    add_selection(parser)
    add_waves(parser)
    parser.add_argument("--unsigned", action="store_true", help="ask devices to take a bundle that nobody signed")
    parser.add_argument("--stage", action="store_true", help="bring it there, but do not make it active")
    parser.add_argument("--retry-rejected", action="store_true", help="try again where this bundle failed before")
    parser.add_argument("--max-latency", type=float, metavar="MS", help="devices refuse a slower model")
    parser.add_argument("--max-memory", type=int, metavar="MIB", help="devices refuse a model that needs more")


def run(args: argparse.Namespace) -> int:
    """Flash, show the table, and return how many devices failed.

    Raises:
        EdgeError: the bundle, the inventory or the choice of devices is wrong; no device was touched.
    """
    cargo = load(args.bundle, unsigned=args.unsigned)
    _, targets, rollout = chosen(args)
    wishes = Wishes(
        unsigned=args.unsigned,
        stage=args.stage,
        retry_rejected=args.retry_rejected,
        max_latency_ms=args.max_latency,
        max_memory_mib=args.max_memory,
    )
    about: dict[str, object] = {"model": cargo.name, "version": cargo.version, "digest": cargo.digest}
    return carry_out(
        args,
        targets,
        rollout,
        lambda target, watcher: flash(target, watcher, cargo, wishes),
        confirm=None if args.stage else lambda target: confirm(target, cargo),
        about=about,
    )
