# ruff: noqa: N999 - the module is named as its command
"""`edge-runtime try DEVICE.toml`: shows readings, refusals and predictions live.

It publishes and stores nothing, and runs beside the daemon.
"""

import argparse
import contextlib
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.bringup.trial import Trial
    from edge_runtime.bringup.trial_screen import Screen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `try` takes."""
    parser.add_argument("device", type=Path, metavar="DEVICE.toml", help="the device file")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long; until Ctrl-C when left out")
    parser.add_argument("--frames", action="store_true", help="show each frame as it came, too")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Show the events; 1 when no source brought a good reading."""
    from edge_runtime.bringup.trial import Event, Trial  # noqa: PLC0415 - as in `run`
    from edge_runtime.bringup.trial_report import Throttle, as_json, as_line, summary  # noqa: PLC0415
    from edge_runtime.config.load import load_config  # noqa: PLC0415
    from edge_runtime.daemon.plan import make_plan  # noqa: PLC0415
    from edge_runtime.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE  # noqa: PLC0415
    from edge_runtime.system.log import setup  # noqa: PLC0415
    from edge_runtime.system.loop import Loop  # noqa: PLC0415

    if args.seconds is not None and not args.seconds > 0:
        print(f"--seconds: expected more than 0, found {args.seconds:g}", file=sys.stderr)
        return EXIT_USAGE
    plan = make_plan(load_config(args.device))
    setup("critical")  # each event is shown below, so a log line would repeat it
    show = as_json if args.json else as_line
    throttle = Throttle(_write)

    def listen(event: Event) -> None:
        if event["event"] == "frame" and not args.frames:
            return
        if screen is not None:
            screen.show(event)
        elif sys.stdout.isatty() and not args.json:
            throttle.show(event)
        else:
            _write(show(event))

    loop = Loop()
    loop.wake_on_signals()
    trial = Trial(plan, listen, loop)
    screen = None if args.json or not sys.stdout.isatty() else _screen(trial)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        trial.stop()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    began = time.monotonic()
    with screen or contextlib.nullcontext():
        trial.run(args.seconds)
    if not args.json:
        for line in summary(trial.sources, time.monotonic() - began):
            _write(line)
    return EXIT_OK if any(each.readings for each in trial.sources) else EXIT_FAILED


def _screen(trial: "Trial") -> "Screen | None":
    """The changing table; None where the extra `rich` is not installed."""
    try:
        from edge_runtime.bringup.trial_screen import Screen  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return Screen(trial.sources)


def _write(line: str) -> None:
    print(line, flush=True)
