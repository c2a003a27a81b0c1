"""`edge-runtime check DEVICE.toml`: everything that `run` checks before it opens a port, and nothing more."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes."""
    parser.add_argument("device", type=Path, metavar="DEVICE.toml", help="the device file")


def run(args: argparse.Namespace) -> int:
    """Print what would run; 78 and every mistake when something is wrong."""
    from edge_runtime.config.load import load_config  # noqa: PLC0415 - as in `run`
    from edge_runtime.daemon.plan import describe_plan, make_plan, plan_warnings  # noqa: PLC0415

    plan = make_plan(load_config(args.device))
    for line in describe_plan(plan):
        print(line)
    for line in plan_warnings(plan):
        print(f"warning: {line}")
    print(f"{args.device}: good")
    return 0
