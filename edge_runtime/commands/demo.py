"""`edge-runtime demo`: the whole path on any machine, without a broker and without hardware."""

import argparse
import signal
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("demo-output"),
        help="where the model, the bundle, the device file and the log are written (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the recordings BasicMotions_TRAIN.ts and BasicMotions_TEST.ts; default: fetch them once",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run it to its end; after Ctrl-C or SIGTERM no process is left."""
    from edge_runtime.demo import demonstrate  # noqa: PLC0415 - imports what only the demonstration needs

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        demonstrate(arguments.folder, arguments.data, _say)
    except KeyboardInterrupt:
        sys.stderr.write("demo: stopped\n")
        return 130  # what a shell reports for a program that ended by Ctrl-C
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # into a pipe too, so that progress is shown at once
