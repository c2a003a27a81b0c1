"""`edge-runtime predict BUNDLE FILES... -o OUT`: recorded files in, a row of predictions for each window out."""

import argparse
import codecs
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.batch.run import Engine, PredictOptions, PredictSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `predict` takes."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="the .onnx file, or its URL")
    add("files", nargs="+", metavar="FILES", help="CSV, JSON Lines, Parquet or NumPy; patterns and folders too")
    add("-o", "--output", metavar="OUT", help=".csv, .tsv, .jsonl, .parquet, .npz or .npy; a file, or a URL")
    add("--key", metavar="COLUMN", help="tells one stream from another; each has windows of its own")
    add("--time", metavar="COLUMN", help="the time of measurement, so that a gap begins a new window")
    add("--time-unit", choices=("s", "ms", "us", "ns"), default="s", help="of times that are numbers; default: s")
    add("--keep", nargs="+", default=[], metavar="COLUMN", help="columns to write beside the predictions")
    add("--label", action="append", default=[], metavar="COLUMN", help="what is right: print metrics and confusion")
    add("--stride", type=_count, metavar="N", help="a new window every so many readings")
    add("--max-gap", type=float, metavar="SECONDS", help="a longer pause, by --time, begins a new window")
    ways = ("warn", "resample", "reject")
    add("--on-rate", choices=ways, default="warn", help="where --time shows another rate than the bundle's")
    add("--one-recording", action="store_true", help="windows run on from one file into the next")
    add("--format", choices=("auto", "csv", "jsonl", "parquet", "numpy"), default="auto", help="default: by suffix")
    add(
        "--delimiter",
        metavar="CHAR",
        help="of CSV files: a character, or space for runs of blanks; default: a comma, in .tsv a tab",
    )
    add("--index-column", action="store_true", help="CSV rows begin with a column that the header does not name")
    add("--trailing-delimiter", action="store_true", help="CSV rows end with a delimiter that the header lacks")
    add("--decimal", choices=(".", ","), default=".", help="of numbers in CSV files; default: a point")
    add("--encoding", type=_encoding, default="utf-8", metavar="NAME", help="of text files; default: utf-8")
    add(
        "--on-reject",
        choices=("skip", "fail"),
        default="skip",
        help="fail: exit 1 if a reading cannot be used",
    )
    add("--workers", type=_count, metavar="N", help="processes; default: one a core")
    add("--threads", type=_count, metavar="N", help="threads of each process; default: the cores without a part")
    add("--engine", choices=("local", "dask"), default="local", help="where the work is done")
    add("--scheduler", metavar="URL", help="of a Dask cluster, such as tcp://host:8786")


def run(args: argparse.Namespace) -> int:
    """Predict and print a summary; 1 after an error, or when no reading could be used."""
    from edge_runtime.batch.run import PredictOptions, predict  # noqa: PLC0415 - numpy, which `--help` does not need
    from edge_runtime.errors import CommandError  # noqa: PLC0415
    from edge_runtime.recordings.locations import place  # noqa: PLC0415

    if args.scheduler is not None and args.engine != "dask":
        raise CommandError("--scheduler: it is a Dask cluster's: add --engine dask")
    if args.engine == "dask":  # workers may have been started anywhere
        if "://" in args.bundle:
            raise CommandError(f"{args.bundle}: expected a path that every Dask worker has, found a URL: copy it there")
        args.bundle = os.path.abspath(args.bundle)  # noqa: PTH100 - as the files below
        args.files = [name if "://" in name else os.path.abspath(name) for name in args.files]  # noqa: PTH100
    if args.output is None and not args.label:
        raise CommandError("expected an output (-o OUT), or a column of truth (--label COLUMN) to evaluate by")
    _ask_recording(args)
    request = PredictOptions(
        place(args.bundle),
        args.files,
        None if args.output is None else place(args.output),
        key=args.key,
        time=args.time,
        keep=tuple(args.keep),
        truth=tuple(args.label),
        stride=args.stride,
        max_gap=args.max_gap,
        on_rate=args.on_rate,
        format=args.format,
        delimiter=args.delimiter,
        time_unit=args.time_unit,
        decimal=args.decimal,
        encoding=args.encoding,
        on_reject=args.on_reject,
        index_column=args.index_column,
        trailing_delimiter=args.trailing_delimiter,
        one_recording=args.one_recording,
        workers=args.workers,
        threads=args.threads,
    )
    outcome = predict(request, _dask(args.scheduler, args.workers) if args.engine == "dask" else None)
    return _report(outcome, request)


def _ask_recording(args: argparse.Namespace) -> None:
    """Take key and time, and whether the parts are one recording, from a folder of `edge-runtime record`.

    Raises:
        CommandError: its description cannot be read.
    """
    from edge_runtime.recordings.folder import TIME, is_recording, read_about  # noqa: PLC0415 - as light as `--help` can be

    if len(args.files) != 1 or "://" in args.files[0] or not is_recording(Path(args.files[0])):
        return
    about = read_about(Path(args.files[0]))
    args.key, args.time = args.key or about.key, args.time or TIME
    args.one_recording = args.one_recording or len(about.sessions) == 1


def _dask(scheduler: str | None, workers: int | None) -> "Engine":
    from edge_runtime.batch import dask_engine  # noqa: PLC0415 - an extra

    count = workers or len(os.sched_getaffinity(0))
    return lambda job, parts, show: dask_engine.run_parts(job, parts, show, scheduler=scheduler, workers=count)


def _report(outcome: "PredictSummary", request: "PredictOptions") -> int:
    from edge_runtime.batch.run import reasons_in_words  # noqa: PLC0415

    rejected = sum(outcome.rejected.values())
    where = f", listed in {outcome.rejected_file}" if outcome.rejected_file else ""
    target = f" to {request.output}" if request.output is not None else ""
    resumed = f"; {outcome.resumed_parts} parts were complete already" if outcome.resumed_parts else ""
    print(
        f"{outcome.windows} predictions of {outcome.readings} readings in {outcome.files} files{target}{resumed}",
        file=sys.stderr,
    )
    if rejected:
        print(f"{rejected} readings were not used: {reasons_in_words(outcome)}{where}", file=sys.stderr)
    for reason, (count, first) in sorted(outcome.passed_over.items()):
        print(f"{count} files were not read: {reason}, such as {first}", file=sys.stderr)
    if outcome.gaps:
        print(f"{outcome.gaps} gaps began a window anew", file=sys.stderr)
    if outcome.unsorted:
        print(
            f"{outcome.unsorted} readings are earlier than the one before them, and began a window anew: sort each "
            f"recording by {request.time}",
            file=sys.stderr,
        )
    for line in _rate(outcome, request):
        print(line, file=sys.stderr)
    for line in outcome.evaluation:
        print(line)
    return 0


def _rate(outcome: "PredictSummary", request: "PredictOptions") -> list[str]:
    """A sentence about readings with another rate than the model's."""
    from edge_runtime.stream.rate import is_off, rates_in_words  # noqa: PLC0415

    window = outcome.manifest.input.window
    if outcome.rate_hz is None or window.rate_hz is None or not is_off(outcome.rate_hz, window.rate_hz):
        return []
    ways = {"warn": "--on-rate resample brings them to it", "resample": "resampled", "reject": "refused as wrong_rate"}
    return [f"{rates_in_words(window.rate_hz, outcome.rate_hz, window.length)}: {ways[request.on_rate]}"]


def _encoding(text: str) -> str:
    """The encoding's own name; that of UTF-8 for all its names without a mark."""
    try:
        return codecs.lookup(text).name
    except LookupError:
        raise argparse.ArgumentTypeError(f"expected an encoding, such as latin-1 or utf-16, found {text!r}") from None


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value
