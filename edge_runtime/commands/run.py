"""`edge-runtime run DEVICE.toml`: the daemon, in the foreground, as systemd wants it."""

import argparse
from pathlib import Path

from edge_runtime.notify import Notifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument("device", type=Path, metavar="DEVICE.toml", help="the device file")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM. 78 when the configuration is wrong, 1 when predictions were lost at the stop."""
    from edge_runtime.daemon import Daemon  # noqa: PLC0415 - numpy and paho, which `--help` does not need

    return Daemon(args.device, Notifier()).run()
