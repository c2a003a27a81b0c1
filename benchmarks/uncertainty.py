"""What sets, intervals and estimates hold on recordings: `python -m benchmarks.uncertainty DATA [--peers PYTHON]`.

Each recording is cut into blocks, and the blocks are dealt out at random, again and again, into those that train, those
that calibrate and those that check. The figures are means over these draws, and the 5 % and 95 % quantiles of them;
`within` is the share of draws in which the estimate was at most three points from what was right. Then the world
changes in the blocks that check, and the same bundle's promises are compared again with what is right.

`--peers` names the Python of an environment with mapie, crepes and nannyml: the same scores, calibrated by them.

DATA is a folder with the recordings (occupancy, machine temperature, BasicMotions, key words).
"""

import argparse
import contextlib
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main as convert
from converter.evaluate import Truth
from converter.load.source import Answer
from converter.spec import UncertaintySpec
from converter.uncertainty import is_inside, uncertainty_of
from edge_runtime.bundle.manifest import Confidence
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.uncertainty import chance_right

DRAWS = 100
COVERAGES = (0.8, 0.9, 0.95)
CLOSE = 0.03
PEERS = Path(__file__).parent / "peers" / "sure.py"

Rows = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One data set.

    Attributes:
        name: for the table.
        x: the rows.
        y: what is right.
        block: to which block each row belongs.
        fit: makes the function that answers, from the rows that train.
        change: what happens to the rows, and in words.
    """

    name: str
    x: Rows
    y: Rows
    block: Rows
    fit: Callable[[Rows, Rows], Callable[[Rows], Answer]]
    change: tuple[str, Callable[[Rows], Rows]]

    @property
    def is_classification(self) -> bool:
        """Whether it has labels."""
        return self.y.dtype.kind == "i"


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One way to deal the blocks out: the answers to the rows that calibrate and that check, before and after.

    `blocks` are those of the rows that calibrate.
    """

    blocks: Rows
    calibration: tuple[Answer, Truth]
    before: tuple[Answer, Truth]
    after: tuple[Answer, Truth]


def occupancy(data: Path) -> Subject:
    """A room without a light sensor, in blocks of an hour."""
    rows = []
    for name in ("datatraining.txt", "datatest.txt", "datatest2.txt"):
        with (data / "uci-occupancy" / name).open(newline="") as file:
            rows += [[float(value) for value in row[2:8]] for row in list(csv.reader(file))[1:]]
    table = np.array(rows)
    x = table[:, [0, 1, 3, 4]].astype(np.float32)

    def fit(x: Rows, y: Rows) -> Callable[[Rows], Answer]:
        return _probabilities(HistGradientBoostingClassifier(max_iter=40, max_depth=3, random_state=0).fit(x, y))

    return Subject(
        "occupancy", x, table[:, 5].astype(int), np.arange(len(x)) // 60, fit,
        ("Temperature + 2", lambda rows: rows + np.array([2, 0, 0, 0], np.float32)),
    )  # fmt: skip


def motions(data: Path) -> Subject:
    """Four motions in windows of a second; a block is a recording."""
    windows, labels, blocks = [], [], []
    number = 0
    names: dict[str, int] = {}
    for part in ("TRAIN", "TEST"):
        for label, recording in _motions(data / "basic-motions" / f"BasicMotions_{part}.ts"):
            for start in range(0, len(recording), 10):
                windows.append(recording[start : start + 10])
                labels.append(names.setdefault(label, len(names)))
                blocks.append(number)
            number += 1

    def features(x: Rows) -> Rows:
        return np.concatenate([x.mean(axis=1), x.std(axis=1)], axis=1)

    def fit(x: Rows, y: Rows) -> Callable[[Rows], Answer]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(features(x), y)
        answer = _probabilities(model)
        return lambda rows: answer(features(rows))

    return Subject(
        "BasicMotions", np.array(windows, np.float32), np.array(labels), np.array(blocks), fit,
        ("half the amplitude", lambda rows: rows * np.float32(0.5)),
    )  # fmt: skip


def key_words(data: Path) -> Subject:
    """The twelve words of MLPerf Tiny, by the reference network of 2021, converted by `edge-convert`."""
    folder = data / "mlperf-tiny-kws"
    samples = np.load(folder / "samples_int8.npy")
    with (folder / "labels.csv").open(newline="") as file:
        labels = np.array([int(row["label"]) for row in csv.DictReader(file)])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        names = ", ".join(f'"{index}"' for index in range(12))
        (work / "m.toml").write_text(
            f'name = "kws"\ntask = "classification"\nlabels = [{names}]\n[frame]\nshape = [49, 10, 1]\n'
        )
        source = folder / "kws_ref_model_float32.tflite"
        words = ["build", source, "--spec", work / "m.toml", "--quantize", "none", "-o", work / "m.onnx"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert convert([str(word) for word in words]) == 0
        model = Model(open_bundle(work / "m.onnx"))

    def answer(rows: Rows) -> Answer:
        found = model.run(np.ascontiguousarray(rows, np.float32))
        return Answer(label=found.label, scores=found.scores)

    x = ((samples.astype(np.float32) - 83) * np.float32(0.5847029089927673)).astype(np.float32)
    rng = np.random.default_rng(0)
    return Subject(
        "key words", x, labels, np.arange(len(x)), lambda _x, _y: answer,
        ("noise of 5 units", lambda rows: rows + rng.normal(0, 5, rows.shape).astype(np.float32)),
    )  # fmt: skip


def temperature(data: Path) -> Subject:
    """A machine's temperature in an hour, from the last hour; a block is a day."""
    with (data / "nab-machine-temperature" / "machine_temperature_system_failure.csv").open(newline="") as file:
        values = np.array([float(row["value"]) for row in csv.DictReader(file)], np.float32)
    ends = np.arange(12, len(values) - 12)
    x = values[ends[:, np.newaxis] - np.arange(12)]

    def fit(x: Rows, y: Rows) -> Callable[[Rows], Answer]:
        model = LinearRegression().fit(x, y)
        return lambda rows: Answer(value=model.predict(rows).astype(np.float32))

    noise = np.random.default_rng(0).normal(0, 3, x.shape).astype(np.float32)
    return Subject(
        "machine temperature", x, values[ends + 12][:, np.newaxis].astype(float), ends // 288, fit,
        ("noise of 3 degrees", lambda rows: rows + noise[: len(rows)]),
    )  # fmt: skip


def _probabilities(model: Any) -> Callable[[Rows], Answer]:
    def answer(rows: Rows) -> Answer:
        scores = model.predict_proba(rows).astype(np.float32)
        return Answer(label=scores.argmax(axis=1), scores=scores)

    return answer


def _motions(path: Path) -> Iterator[tuple[str, Rows]]:
    """Each recording with its label: one line, channels apart by colons, values by commas, the label last."""
    for line in path.read_text().split("@data\n", 1)[1].splitlines():
        *channels, label = line.strip().split(":")
        yield label, np.array([[float(value) for value in each.split(",")] for each in channels], np.float32).T


def draws(subject: Subject, count: int) -> Iterator[Draw]:
    """The blocks, dealt out at random: two fifths train, as many calibrate or check, half of each."""
    rng = np.random.default_rng(0)
    blocks = np.unique(subject.block)
    changed = subject.change[1]
    for _ in range(count):
        dealt = rng.permutation(blocks)
        first, second = int(0.3 * len(dealt)), int(0.65 * len(dealt))
        train, middle, last = (
            np.isin(subject.block, part) for part in (dealt[:first], dealt[first:second], dealt[second:])
        )
        answer = subject.fit(
            subject.x[train], subject.y[train].ravel() if subject.is_classification else subject.y[train]
        )
        yield Draw(
            subject.block[middle],
            (answer(subject.x[middle]), _truth(subject, middle)),
            (answer(subject.x[last]), _truth(subject, last)),
            (answer(changed(subject.x[last])), _truth(subject, last)),
        )


def _truth(subject: Subject, rows: Rows) -> Truth:
    return Truth(label=subject.y[rows]) if subject.is_classification else Truth(value=subject.y[rows])


def coverage_row(subject: Subject, found: list[Draw], coverage: float, peers: Any) -> str:
    """What was asked for, and what was held, before and after the change."""
    before, after, sizes = [], [], []
    for draw in found:
        made = uncertainty_of(UncertaintySpec(coverage=coverage), draw.calibration, draw.before)
        inside, outside = is_inside(made, *draw.before), is_inside(made, *draw.after)
        assert inside is not None
        assert outside is not None
        before.append(inside.mean())
        after.append(outside.mean())
        scores = draw.before[0].scores
        if made.least is not None and scores is not None:
            sizes.append(float((scores >= np.float32(made.least)).sum(axis=1).mean()))
        else:
            sizes.append(2 * made.half[0])
    low, high = np.quantile(before, [0.05, 0.95])
    what = f"{np.mean(sizes):.2f} labels" if subject.is_classification else f"{np.mean(sizes):.1f} wide"
    theirs = "" if peers is None else f" {peers[str(coverage)]:.3f} |"
    return (
        f"| {subject.name} | {coverage:g} | {np.mean(before):.3f} ({low:.3f} to {high:.3f}) | {what} | "
        f"{np.mean(after):.3f} ({subject.change[0]}) |{theirs}"
    )


def pooled_row(subject: Subject, found: list[Draw], coverage: float) -> str:
    """What would be held where blocks, and not rows, were taken for exchangeable.

    Each block weighs the same, and one more lies at infinity (Dunn, Wasserman and Ramdas, JASA 118, 2023).
    """
    held = []
    for draw in found:
        strange, blocks = _strangeness(*draw.calibration), draw.blocks
        _, places, counts = np.unique(blocks, return_inverse=True, return_counts=True)
        order = np.argsort(strange)
        weight = np.cumsum((1 / (counts[places] * (len(counts) + 1)))[order])
        place = int(np.searchsorted(weight, coverage - 1e-12))
        limit = strange[order][place] if place < len(order) else np.inf
        held.append(float((_strangeness(*draw.before) <= limit).mean()))
    return f"| {subject.name} | {coverage:g} | {np.mean(held):.3f} |"


def _strangeness(answer: Answer, truth: Truth) -> NDArray[np.float64]:
    """How little an answer goes with what is right: a score, or an error."""
    if truth.label is not None:
        assert answer.scores is not None
        return 1.0 - answer.scores[np.arange(len(truth.label)), truth.label].astype(np.float64)
    assert answer.value is not None
    assert truth.value is not None
    return np.asarray(np.abs(answer.value[:, 0] - truth.value[:, 0]), np.float64)


def estimate_row(subject: Subject, found: list[Draw], peers: Any) -> str:
    """What scores promise, and what was right."""
    lines = []
    for part in ("before", "after"):
        promised, right, plain = [], [], []
        for draw in found:
            made = uncertainty_of(UncertaintySpec(), draw.calibration, draw.before).confidence
            assert made is not None
            answer, truth = getattr(draw, part)
            promised.append(_promise(made, answer))
            right.append(float((answer.label == truth.label).mean()))
            plain.append(float(answer.scores.max(axis=1).mean()))
        error = np.array(promised) - np.array(right)
        lines.append(
            f"{np.mean(right):.3f} | {np.mean(promised):.3f} | {100 * np.abs(error).mean():.1f} | "
            f"{np.mean(np.abs(error) <= CLOSE):.2f} | {np.mean(plain):.3f}"
        )
    theirs = "" if peers is None else f" {peers['estimated']} |"
    changed = f"| {subject.name}, {subject.change[0]} | {lines[1]} |{' |' if theirs else ''}"
    return f"| {subject.name} | {lines[0]} |{theirs}\n{changed}"


def _promise(made: Confidence, answer: Answer) -> float:
    assert answer.scores is not None
    assert answer.label is not None
    score = answer.scores[np.arange(len(answer.label)), answer.label].astype(float)
    return float(chance_right(made, score).mean())


def ask_peers(python: str, subject: Subject, found: list[Draw]) -> Any:
    """The same scores and values, calibrated by other libraries in an environment of their own."""
    with tempfile.TemporaryDirectory() as name:
        arrays: dict[str, Any] = {"coverages": np.array(COVERAGES)}
        for place, draw in enumerate(found):
            for part, (answer, truth) in (("c", draw.calibration), ("t", draw.before)):
                arrays[f"{part}{place}"] = np.asarray(answer.scores if subject.is_classification else answer.value)
                arrays[f"y{part}{place}"] = np.asarray(truth.label if subject.is_classification else truth.value)
        np.savez(Path(name) / "draws.npz", **arrays)
        done = subprocess.run([python, str(PEERS), str(Path(name) / "draws.npz")], check=True, capture_output=True)
    return json.loads(done.stdout)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--pooled", action="store_true", help="what blocks as the units would hold, too")
    parser.add_argument("--only", metavar="NAME", help="of the data, such as 'machine temperature'")
    options = parser.parse_args()
    coverages, estimates, pooled = [], [], []
    for make in (occupancy, motions, key_words, temperature):
        subject = make(options.data)
        if options.only not in (None, subject.name):
            continue
        found = list(draws(subject, options.draws))
        peers = ask_peers(options.peers, subject, found) if options.peers else None
        coverages += [coverage_row(subject, found, coverage, peers) for coverage in COVERAGES]
        if options.pooled:
            pooled += [pooled_row(subject, found, coverage) for coverage in COVERAGES]
        if subject.is_classification:
            estimates.append(estimate_row(subject, found, peers))
        print(f"{subject.name}: {len(subject.x)} rows in {len(np.unique(subject.block))} blocks", file=sys.stderr)
    names, rule = (" mapie or crepes |", "---|") if options.peers else ("", "")
    print(f"| data | asked | held (5 to 95 % of draws) | size | held after the change |{names}")
    print(f"|---|---|---|---|---|{rule}")
    print("\n".join(coverages))
    if pooled:
        print("\n| data | asked | held by blocks |\n|---|---|---|")
        print("\n".join(pooled))
    names = " nannyml |" if options.peers else ""
    print(
        f"\n| data | right | estimated | off by, points | within | mean score |{names}\n|---|---|---|---|---|---|{rule}"
    )
    print("\n".join(estimates))


if __name__ == "__main__":
    main()
