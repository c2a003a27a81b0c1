"""What was measured: raw values by figure, target and round; their medians as one table and as one JSON file."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.names import DAEMON


@dataclass
class Results:
    """Every measured value, in the order of measuring."""

    machine: dict[str, Any]
    values: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: str, target: str, value: float) -> None:
        """Keep one value of one round."""
        self.values[figure][target].append(value)

    def note(self, text: str) -> None:
        """Keep something that a reader of the table must know, and say it at once."""
        self.notes.append(text)
        print(f"  ! {text}", flush=True)

    def median(self, figure: str, target: str) -> float | None:
        """The median over the rounds; None where it was not measured."""
        found = self.values.get(figure, {}).get(target)
        return statistics.median(found) if found else None

    def ratio(self, figure: str, target: str, reference: str) -> float | None:
        """The median over the rounds of the ratio in the same round, so that a slow stretch hits both."""
        ratios = [a / b for a, b in self._rounds(figure, target, reference) if b]
        return statistics.median(ratios) if ratios else None

    def difference(self, figure: str, target: str, reference: str) -> float | None:
        """The same of the difference."""
        differences = [a - b for a, b in self._rounds(figure, target, reference)]
        return statistics.median(differences) if differences else None

    def _rounds(self, figure: str, target: str, reference: str) -> Iterable[tuple[float, float]]:
        """What both came to, round by round."""
        found = self.values.get(figure, {})
        return zip(found.get(target, ()), found.get(reference, ()), strict=False)

    def read(self, path: Path) -> None:
        """Take the values of an earlier run, which this one's follow; its machine has to be the same."""
        document = json.loads(path.read_text())
        for figure, by_target in document["values"].items():
            for target, values in by_target.items():
                self.values[figure][target].extend(values)
        self.curves.update(document["curves"])
        self.notes.extend(document["notes"])

    def write(self, path: Path) -> None:
        """Everything, raw, as JSON."""
        document = {"machine": self.machine, "values": self.values, "curves": self.curves, "notes": self.notes}
        path.write_text(json.dumps(document, indent=1))

    def table(self, goals: "list[Goal]") -> str:
        """A row a figure and a column a target, figures of the same targets together; then the goals and the curves."""
        listed = {figure: found for figure, found in self.values.items() if not figure.startswith("growth")}  # curves
        text = "\n\n".join(_align(_rows(block)) for block in _blocks(listed))
        judged = [row for goal in goals if (row := goal.row(self)) is not None]
        if judged:
            text += "\n\n" + _align([["goal", "asked", "reached", ""], *judged])
        for name, points in self.curves.items():
            heads = list(points[0])
            text += f"\n\n{name}\n" + _align([heads, *([_number(point[head]) for head in heads] for point in points)])
        if self.notes:
            text += "\n\n" + "\n".join(f"! {note}" for note in self.notes)
        return text


Figures = dict[str, dict[str, list[float]]]


def _blocks(figures: Figures) -> list[Figures]:
    """Figures that share a target beside our own belong together, and so do those of our own alone."""
    blocks: list[tuple[set[str], Figures]] = []
    for figure, by_target in figures.items():
        others = set(by_target) - {DAEMON}
        for known, block in blocks:
            if known & others or not (known or others):
                known.update(others)
                block[figure] = by_target
                break
        else:
            blocks.append((others, {figure: by_target}))
    return [block for _, block in blocks]


def _rows(block: Figures) -> list[list[str]]:
    names = list(dict.fromkeys(name for by_target in block.values() for name in by_target))
    cells = [
        [figure, *(_number(statistics.median(found[name])) if name in found else "" for name in names)]
        for figure, found in block.items()
    ]
    return [["figure", *names], *cells]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure of `target`: absolute, or beside `reference` as a ratio or a difference."""

    text: str
    figure: str
    target: str
    most: float
    reference: str | None = None
    kind: str = "ratio"
    at_least: bool = False
    judged: bool = True

    def row(self, results: Results) -> list[str] | None:
        """The goal as a row of the table; None where a side of it was not measured."""
        reached = self._reached(results)
        if reached is None:
            return None
        met = reached >= self.most if self.at_least else reached <= self.most
        return [
            self.text,
            ("at least " if self.at_least else "at most ") + _number(self.most),
            _number(reached),
            ("ok" if met else "MISSED") if self.judged else "to compare",
        ]

    def _reached(self, results: Results) -> float | None:
        if self.reference is None:
            return results.median(self.figure, self.target)
        if self.kind == "ratio":
            return results.ratio(self.figure, self.target, self.reference)
        return results.difference(self.figure, self.target, self.reference)


def _number(value: float) -> str:
    if value and abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
