"""`edge-runtime doctor [DEVICE.toml]`: what keeps the daemon from working here, and what to do."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `doctor` takes."""
    parser.add_argument(
        "device", nargs="?", type=Path, metavar="DEVICE.toml", help="the device file; only the machine when left out"
    )
    parser.add_argument("--json", action="store_true", help="an array of objects: check, state, found, remedy")


def run(args: argparse.Namespace) -> int:
    """A line a check; 1 when one is a failure."""
    import msgspec  # noqa: PLC0415 - as light as `--help` can be

    from edge_runtime.bringup.diagnosis import diagnose  # noqa: PLC0415 - brings onnxruntime's bundles
    from edge_runtime.errors import EXIT_FAILED, EXIT_OK  # noqa: PLC0415
    from edge_runtime.system.log import setup  # noqa: PLC0415
    from edge_runtime.system.standard_streams import wants_colour  # noqa: PLC0415

    setup("critical")  # the findings below replace the log
    colour = wants_colour(sys.stdout)
    found = []
    for each in diagnose(args.device):
        found.append(each)
        if not args.json:
            print(each.as_line(colour=colour), flush=True)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    failed = sum(each.state == "failure" for each in found)
    if not args.json:
        warned = sum(each.state == "warning" for each in found)
        print(f"{failed} failures, {warned} warnings, {len(found) - failed - warned} ok")
    return EXIT_FAILED if failed else EXIT_OK
