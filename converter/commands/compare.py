"""`edge-convert compare A B --data DATA`: two bundles on the same rows, side by side, and what of that may be chance.

It refuses only with `--max-drop`, which compares the metrics themselves: how much worse a model may be is for
its user to say, and the interval beside it says whether the data can tell at all.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.commands.inspect import manifest_of
from converter.spec import DataSpec, Spec, load_spec
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.errors import EXIT_OK, CommandError

if TYPE_CHECKING:
    from converter.data import Dataset
    from converter.evaluate import Truth
    from converter.load.source import Answer
    from converter.paired import PairedDifference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("a", type=Path, metavar="A", help="the bundle to compare with")
    parser.add_argument("b", type=Path, metavar="B", help="the bundle to compare")
    parser.add_argument("--data", type=Path, required=True, help=".npz (x, y), .csv or .parquet")
    parser.add_argument("--spec", type=Path, metavar="SPEC.toml", help="whose [data] table says how to read the data")
    parser.add_argument("--label", metavar="COLUMN", help="the column of the truth, where there is no --spec")
    parser.add_argument(
        "--max-drop", type=float, metavar="DROP", help="refuse B (exit 1) where its metric is lower by more than this"
    )


def check(options: argparse.Namespace) -> None:
    """Check the options without reading the bundles.

    Raises:
        CommandError: an option is out of its range.
    """
    if options.max_drop is not None and not 0 <= options.max_drop < math.inf:
        raise CommandError(f"--max-drop: expected 0 or more, found {options.max_drop}")


def run(options: argparse.Namespace) -> int:
    """Compare them."""
    from converter.data import read_data  # noqa: PLC0415 - heavy
    from converter.evaluate import judge, metric_name, truth_of  # noqa: PLC0415
    from converter.paired import in_words  # noqa: PLC0415
    from converter.report import FormRow, table  # noqa: PLC0415
    from converter.session import run, session_of, speed_of, start_of  # noqa: PLC0415

    check(options)
    first, second = manifest_of(options.a), manifest_of(options.b)
    for place, one, other in (
        ("task", first.task, second.task),
        ("input", first.input.tensor_shape, second.input.tensor_shape),
        ("labels", first.output.labels, second.output.labels),
    ):
        if one != other:
            raise CommandError(f"{options.b}: {place}: expected {one} as in {options.a}, found {other}")
    spec = load_spec(options.spec) if options.spec else Spec(data=DataSpec(label=options.label))
    data = read_data(options.data, spec, first.input)
    truth = truth_of(data.truth, first.task, first.output.labels, _classes_of(first, second), place=data.place)
    sessions = [session_of(path.read_bytes()) for path in (options.a, options.b)]
    states = start_of(first.state)
    answers = [run(session, data.windows, states=states) for session in sessions]
    rows = []
    for path, session, manifest, answer in zip((options.a, options.b), sessions, (first, second), answers, strict=True):
        expected = answers[0]
        judgement = judge(answer, expected, truth, first.task, threshold=manifest.output.threshold)
        speed = speed_of(session, data.windows[:1], states)
        rows.append(FormRow(path.name, path.stat().st_size, judgement, speed=speed))
    print(f"{len(data)} rows of {data.place}; differences are from {options.a.name}")
    name = metric_name(first.task, truth)
    print(table(rows, name))
    difference = _difference(answers, (first, second), truth, data)
    if difference is not None:
        print("\n".join(in_words(name, difference)))
    before, after = (row.judgement.metric for row in rows)
    if options.max_drop is not None and not after >= before - options.max_drop:
        chance = ", though that may be chance" if difference is not None and difference.may_be_chance else ""
        raise CommandError(
            f"{options.b}: {name}: expected at least {before:.4f} as of {options.a.name}, less {options.max_drop:g}, "
            f"found {after:.4f}: this model is worse on {data.place}{chance}"
        )
    return EXIT_OK


def _difference(
    answers: Sequence["Answer"], manifests: Sequence[Manifest], truth: "Truth", data: "Dataset"
) -> "PairedDifference | None":
    """What B's metric is less A's, with its interval; None where the data has no truth."""
    from converter.evaluate import metrics_on, right_rows  # noqa: PLC0415 - heavy
    from converter.paired import paired_difference  # noqa: PLC0415

    task = manifests[0].task
    one, other = (metrics_on(answer, truth, task) for answer in answers)
    if one is None or other is None:
        return None
    right = [
        right_rows(answer, truth, task, manifest.output.threshold)
        for answer, manifest in zip(answers, manifests, strict=True)
    ]
    return paired_difference(
        lambda rows: (one(rows), other(rows)),
        len(data),
        groups=data.groups,
        overlapping=data.overlapping,
        right=None if right[0] is None or right[1] is None else (right[0], right[1]),
    )


def _classes_of(first: Manifest, second: Manifest) -> tuple[str, ...]:
    """The models' names for their labels; empty for a bundle of an older release."""
    return first.output.classes or second.output.classes or first.output.labels
