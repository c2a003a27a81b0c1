"""`edge-runtime record DEVICE.toml -o DIR`: the readings of a source, before any model exists."""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.bringup.recorder import Recorder
    from edge_runtime.config.tables import Config, SourceTable

_LINE_EVERY_S = 10  # where no terminal watches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `record` takes."""
    parser.add_argument("device", type=Path, metavar="DEVICE.toml", help="the device file; its models are not needed")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the recording: a folder")
    parser.add_argument("--label", metavar="NAME", help="what happens meanwhile: the column `label` of every reading")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long; until Ctrl-C when left out")
    parser.add_argument("--source", metavar="NAME", help="which source, where the file has several")
    parser.add_argument("--channels", metavar="a,b", help="what to record; all numbers that come when left out")


def run(args: argparse.Namespace) -> int:
    """Record; 1 when nothing came."""
    from edge_runtime.bringup.recorder import Recorder  # noqa: PLC0415 - as in `run`
    from edge_runtime.config.load import load_config  # noqa: PLC0415
    from edge_runtime.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE  # noqa: PLC0415
    from edge_runtime.system.log import setup  # noqa: PLC0415
    from edge_runtime.system.loop import Loop  # noqa: PLC0415

    if args.seconds is not None and not args.seconds > 0:
        print(f"--seconds: expected more than 0, found {args.seconds:g}", file=sys.stderr)
        return EXIT_USAGE
    if args.label is not None and not (args.label.strip() and args.label.isprintable()):
        print(f"--label: expected a text on one line, found {args.label!r}", file=sys.stderr)
        return EXIT_USAGE
    config = load_config(args.device, needs_models=False)
    setup("warning")
    channels = None if args.channels is None else tuple(each.strip() for each in args.channels.split(","))
    if channels is not None and (not all(channels) or len(set(channels)) < len(channels)):
        print(f"--channels: expected names such as a,b, each once, found {args.channels!r}", file=sys.stderr)
        return EXIT_USAGE
    loop = Loop()
    loop.wake_on_signals()
    recorder = Recorder(
        config, _source(config, args.source), args.output, label=args.label, channels=channels, loop=loop
    )

    def stop(_signal: int, _frame: FrameType | None) -> None:
        recorder.stop()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    passed = 0

    def each_second() -> None:
        nonlocal passed
        passed += 1
        if sys.stderr.isatty():
            print(f"\r\033[K{_progress(recorder)}", end="", file=sys.stderr, flush=True)
        elif passed % _LINE_EVERY_S == 0:
            print(_progress(recorder), file=sys.stderr, flush=True)

    recorder.run(args.seconds, each_second)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    about = recorder.about
    if about is None:
        print(f"nothing was recorded: {recorder.state}", file=sys.stderr)
        for reason, last in recorder.counters.last_rejected.items():
            print(f"{reason}: {last['where']}: {last['why']}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{args.output}: {_progress(recorder)}")
    if about.clock != "synchronised":
        print("the clock of this machine is not set: times are right among themselves only", file=sys.stderr)
    return EXIT_OK


def _source(config: "Config", name: str | None) -> "SourceTable":
    from edge_runtime.errors import CommandError  # noqa: PLC0415 - as light as `--help` can be

    names = [each.name for each in config.source]
    if name is None and len(names) == 1:
        return config.source[0]
    if name not in names:
        found = "no --source" if name is None else name
        raise CommandError(f"expected one of the sources {', '.join(names)}, found {found}: name it with --source")
    return config.source[names.index(name)]


def _progress(recorder: "Recorder") -> str:
    from edge_runtime.stream.rejections import shortened  # noqa: PLC0415 - brings the codecs

    rejected = sum(recorder.counters.rejected.values())
    rate = recorder.rate_hz()
    about = recorder.about
    here = sum(recorder.streams.values())
    channels = [name if count >= here else f"{name} ({count} values)" for name, count in recorder.values.items()]
    parts = [
        f"{0 if about is None else about.readings} readings of {', '.join(channels) or 'no channel yet'}",
        f"{rate:g} a second" if rate is not None else "rate not known yet",
    ]
    if len(recorder.streams) > 1:
        busiest = recorder.streams.most_common(5)
        shown = [
            f"{'-' if key is None else shortened(key)} {count}"
            + (f" at {rate:g} a second" if (rate := recorder.rate_of(key)) is not None else "")
            for key, count in busiest
        ]
        parts.append(f"{len(recorder.streams)} keys ({', '.join(shown)})")
    if left_out := recorder.counters.counts["unknown_member"]:
        parts.append(f"{left_out} readings with members that are no channel")
    if rejected:
        parts.append(f"{rejected} rejected")
    return "; ".join(parts)
