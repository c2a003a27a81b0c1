"""`edge-runtime captures DEVICE... -o DIR`: bring in the windows that devices keep to be labelled, over ssh."""

import argparse
import sys
from pathlib import Path

from edge_runtime.fleet.cli import add_selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices, and where to."""
    add_selection(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="a folder for each device is made in it")
    parser.add_argument(
        "--config", metavar="FILE", help="the device file on the device; default: /etc/edge-runtime/SERVICE.toml"
    )
    parser.add_argument(
        "--here", type=Path, metavar="DEVICE.toml", help="on the device: send what a workstation asks for on stdin"
    )


def run(args: argparse.Namespace) -> int:
    """Bring them in, and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the inventory or the choice of devices is wrong.
    """
    from edge_runtime.errors import EXIT_USAGE  # noqa: PLC0415 - as light as `--help` can be

    if args.here is not None:
        return _send(args.here)
    if args.output is None:
        print("captures: expected -o DIR, found none", file=sys.stderr)
        return EXIT_USAGE
    from edge_runtime.fleet.cli import at_once, carry_out, chosen  # noqa: PLC0415
    from edge_runtime.fleet.fetch_captures import fetch  # noqa: PLC0415

    if args.output.exists() and not args.output.is_dir():
        print(f"{args.output}: expected a folder, found a file", file=sys.stderr)
        return EXIT_USAGE
    _, targets, rollout = chosen(args)
    return carry_out(
        args,
        targets,
        at_once(rollout),
        lambda target, watcher: fetch(target, watcher, args.output, args.config),
        about={"folder": str(args.output)},
    )


def _send(config_path: Path) -> int:
    """The device's half."""
    import msgspec  # noqa: PLC0415

    from edge_runtime.capture.sending import MOST_ASKED_BYTES, HaveList, send  # noqa: PLC0415
    from edge_runtime.config.load import load_config  # noqa: PLC0415
    from edge_runtime.daemon.plan import capture_folder  # noqa: PLC0415
    from edge_runtime.errors import EXIT_OK, CommandError  # noqa: PLC0415

    config = load_config(config_path, needs_models=False)
    folder = capture_folder(config)
    if folder is None:
        raise CommandError(f"{config_path}: expected [capture] with a folder, found none: no captures are kept here")
    try:
        have = msgspec.json.decode(sys.stdin.buffer.read(MOST_ASKED_BYTES) or b"{}", type=HaveList)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"stdin: expected what the other side has: {error}") from error
    send(folder, have, sys.stdout.buffer)
    return EXIT_OK
