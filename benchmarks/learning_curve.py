"""Labels on captured windows beside labels on random ones: what a model is worth after so many, over 20 seeds.

    python -m benchmarks.learning_curve DATA [--page docs/learning-curve.md]

DATA holds `uci-occupancy` and `basic-motions`; the third data set is the press of the closed loop, whose world changes.
For each seed a first model is trained on few windows. Its device then sees the pool once, in order, and `CapturePolicy`
keeps what `uncertain` asks for; the first N of these are labelled, or N windows by chance out of the whole pool. Both
second models are judged on test data that neither has seen. The report says whatever comes out.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.features import WindowFeatures
from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output
from edge_runtime.bundle.model import Scores
from edge_runtime.capture.policy import CapturePolicy
from edge_runtime.config.tables import CaptureTable
from examples.closed_loop.run import AFTER, BEFORE, record, windows_of

SEEDS = 20
UNCERTAIN = 0.5
STATISTICS = ("mean", "std", "min", "max", "rms")


class Task(NamedTuple):
    """One data set for one seed: what the first model knows, what its device sees, and what both are judged on."""

    first: tuple[NDArray[Any], NDArray[Any]]
    pool: tuple[NDArray[Any], NDArray[Any]]
    test: tuple[NDArray[Any], NDArray[Any]]


class Curve(NamedTuple):
    """The accuracies of 20 seeds: of the first model, and after so many labels: captured, random, half of each."""

    name: str
    before: NDArray[np.float64]
    kept: NDArray[np.float64]
    after: dict[int, NDArray[np.float64]]


def occupancy(folder: Path, seed: int) -> Task:
    """Single readings of an office, five channels; the first model knows 20 of them, the device sees a day and more."""
    train, test = (_office(folder / "uci-occupancy" / f"{name}.txt") for name in ("datatraining", "datatest2"))
    rng = np.random.default_rng(seed)
    first = _some_of_each(train[1], 10, rng)
    begin = int(rng.integers(0, len(train[0]) - 2000))
    pool = np.setdiff1d(np.arange(begin, begin + 2000), first)
    return Task(_rows(train, first), _rows(train, pool), test)


def motions(folder: Path, seed: int) -> Task:
    """Windows of a watch, four activities; the first model knows one of each, the rest of both files is split."""
    parts = [_watch(folder / "basic-motions" / f"BasicMotions_{name}.ts") for name in ("TRAIN", "TEST")]
    both = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(both[0]))
    test, rest = order[:40], order[40:]
    first = rest[_some_of_each(both[1][rest], 1, rng)]
    return Task(_rows(both, first), _rows(both, np.setdiff1d(rest, first)), _rows(both, test))


def press(_folder: Path, seed: int) -> Task:
    """The press of the closed loop: the first model knows the world before, the device sees the world after."""
    made = [
        windows_of(record(world, count, begin=0.0, seed=1000 * place + seed))
        for place, (world, count) in enumerate(((BEFORE, 120), (AFTER, 480), (AFTER, 480)))
    ]
    first, pool, test = ((windows, np.array(states)) for windows, states in made)
    return Task(first, pool, test)


def curve(name: str, tasks: Iterator[Task], counts: Sequence[int]) -> Curve:
    """Label so many windows each way, for every seed."""
    before, kept = [], []
    after: dict[int, list[list[float]]] = {count: [] for count in counts}
    for seed, task in enumerate(tasks):
        model = _fit(*task.first)
        chosen = _captured(model, task.pool[0])
        before.append(float(model.score(*task.test)))
        kept.append(len(chosen) / len(task.pool[0]))
        for count in counts:
            by_chance = np.random.default_rng(seed).choice(len(task.pool[0]), count, replace=False)
            scores = []
            for rows in (chosen[:count], by_chance, np.concatenate([chosen[: count // 2], by_chance[: count // 2]])):
                windows = np.concatenate([task.first[0], task.pool[0][rows]])
                labels = np.concatenate([task.first[1], task.pool[1][rows]])
                scores.append(float(_fit(windows, labels).score(*task.test)))
            after[count].append(scores)
    return Curve(name, np.array(before), np.array(kept), {count: np.array(found).T for count, found in after.items()})


def _captured(model: Any, pool: NDArray[Any]) -> NDArray[np.int64]:
    """What a device with `uncertain = 0.5` keeps, in order."""
    labels = tuple(map(str, model.classes_))
    manifest = Manifest(
        name="m", version="1", task="classification", input=Input((Channel("x"),)), output=Output(labels)
    )
    policy = CapturePolicy(CaptureTable(uncertain=UNCERTAIN), manifest, None, lambda: 1.0)
    scores = model.predict_proba(pool).astype(np.float32)
    answers = Scores(label=scores.argmax(axis=1), scores=scores)
    return np.array([row for row in range(len(pool)) if policy.reasons(answers, row)], np.int64)


def _fit(windows: NDArray[Any], labels: NDArray[Any]) -> Any:
    steps = [StandardScaler(), LogisticRegression(max_iter=500)]
    if windows.ndim == 3:
        steps.insert(0, WindowFeatures(statistics=STATISTICS))
    return make_pipeline(*steps).fit(windows, labels)


def _rows(data: tuple[NDArray[Any], NDArray[Any]], rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    return data[0][rows], data[1][rows]


def _some_of_each(labels: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.concatenate(
        [rng.choice(np.flatnonzero(labels == each), count, replace=False) for each in sorted(set(labels))]
    )


@cache
def _office(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(value) for value in row[2:7]] for row in rows]), np.array([row[7] for row in rows])


@cache
def _watch(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    windows, labels = [], []
    for line in path.read_text().splitlines():
        if line and line[0] not in "#@":
            *channels, label = line.split(":")
            windows.append(np.array([[float(value) for value in channel.split(",")] for channel in channels]).T)
            labels.append(label)
    return np.array(windows, np.float32), np.array(labels)


# --- the report -------------------------------------------------------------------------------------------------------

DATA = {
    "office (UCI occupancy)": (occupancy, (10, 40, 160)),
    "watch (BasicMotions)": (motions, (4, 8, 16)),
    "press, after its world changed": (press, (10, 40, 160)),
}


def report(curves: Sequence[Curve]) -> str:
    """The page: means over the seeds, the difference of pairs with its interval of 95 %, and how often each won."""
    lines = []
    for each in curves:
        for count, (captured, by_chance, mixed) in each.after.items():
            gap = captured - by_chance
            reach = 2.093 * gap.std(ddof=1) / np.sqrt(len(gap))  # Student's t, 19 degrees of freedom
            wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
            lines.append(
                f"| {each.name} | {each.before.mean():.3f} | {count} | {captured.mean():.3f} | {by_chance.mean():.3f} "
                f"| {mixed.mean():.3f} "
                f"| {gap.mean():+.3f} ({gap.mean() - reach:+.3f} to {gap.mean() + reach:+.3f}) | {wins} : {losses} |"
            )
    kept = "; ".join(f"{each.name} {100 * each.kept.mean():.0f} %" for each in curves)
    return PAGE.replace("ROWS", "\n".join(lines)).replace("KEPT", kept)


PAGE = """# Captured windows beside random ones

Is a label on a window that the device kept worth more than one on a window by chance? For each of 20 seeds a first
model is trained on few windows. A pool of further windows then passes in order, and `uncertain = 0.5` keeps some of it.
One second model is trained with labels on the first N of the kept windows, another with labels on N windows of the pool
by chance. Both are judged on test data that neither has seen.

| data | first model | labels | captured | random | half of each | captured less random (95 %) | better : worse |
|---|---|---|---|---|---|---|---|
ROWS

The rule kept of the pool: KEPT.

An interval that holds zero shows no difference. On none of the three are the captured windows shown to be better than
random ones. On the press, whose world changed, they are worse, for three reasons. The model is sure and wrong there,
which `uncertain` cannot see. The first windows that it keeps are neighbours in time. Most of them have one label.

Half of each is close to random there. So keep a share by chance (`random`) beside `uncertain`. It is also the only part
that estimates the accuracy. `labels` and alarms of drift are for states that chance seldom meets, and are not measured
here.

Made by `python -m benchmarks.learning_curve DATA --page docs/learning-curve.md`.
"""


def main() -> int:
    """All curves, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    curves = [
        curve(name, (make(arguments.data, seed) for seed in range(SEEDS)), counts)
        for name, (make, counts) in DATA.items()
    ]
    text = report(curves)
    if arguments.page:
        arguments.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
