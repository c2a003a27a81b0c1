"""Splits by category: a split tests whether a value is in a set, but ONNX trees compare numbers with thresholds.

Each set becomes a column of 0 and 1 behind the numbers, and the split compares that column with one half. The column is
looked up in a table with a row for each possible value (unknown, each category of a set, missing). The source's
treatment of an unknown or missing value thus is a row of the table. Chains of `BRANCH_EQ` would need a node for each
category, and copies of subtrees.

A split that depends on several features (`tabled`) is looked up by the number of their combination.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.graph.build import DOUBLE, FLOAT, INT64, GraphBuilder

HALF = 0.5  # the threshold of a split by category: "yes" is where the column is 0
_WHOLE = 16_777_217.0  # float32 holds no larger whole numbers, and no framework has a larger category


@dataclass
class _Column:
    """The sets of one column: the values on the "yes" side, and the side of other values."""

    sets: list[tuple[frozenset[float], bool, bool]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the columns that they become


@dataclass(frozen=True, slots=True)
class Digit:
    """One of the features by which a table is looked up.

    Attributes:
        feature: the column of the input.
        size: the number of its values there.
        borders: of a number, ascending: its digit is the count of borders below it. A category has no borders; its
            digit is its index plus one, and 0 for an unknown one.
        missing_is_above: whether NaN counts as above all borders, or below all.
    """

    feature: int
    size: int
    borders: tuple[float, ...] = ()
    missing_is_above: bool = False


class CategorySets:
    """The sets of a forest.

    Args:
        columns: the width of the input.
        whole: how the source rounds a value before the lookup: `cut` towards zero, `floor`, or not at all (`exact`).
    """

    def __init__(self, columns: int, *, whole: Literal["exact", "cut", "floor"]) -> None:
        self._columns: dict[int, _Column] = {}
        self._whole = whole
        self._width = columns
        self._known: dict[Any, int] = {}
        self._tables: dict[tuple[Digit, ...], list[tuple[NDArray[np.bool_], int]]] = {}

    @property
    def width(self) -> int:
        """The number of columns of input and sets together."""
        return self._width + len(self._known)

    def column(self, feature: int, yes: Collection[float], *, unknown: bool, missing: bool) -> int:
        """The column that is 0 where a value goes to "yes".

        Args:
            feature: the column of the input.
            yes: the categories that go to "yes".
            unknown: whether all others go to "yes". Then `yes` holds those that do not.
            missing: whether NaN goes to "yes".
        """
        key = (feature, frozenset(map(float, yes)), unknown, missing)
        if key not in self._known:
            self._known[key] = self._width + len(self._known)
            column = self._columns.setdefault(feature, _Column())
            column.sets.append(key[1:])
            column.numbers.append(self._known[key])
        return self._known[key]

    def tabled(self, digits: tuple[Digit, ...], ones: NDArray[np.bool_]) -> int:
        """The column that is 1 for some combinations of digits; the last digit changes fastest."""
        key = (digits, ones.tobytes())
        if key not in self._known:
            self._known[key] = self._width + len(self._known)
            self._tables.setdefault(digits, []).append((ones, self._known[key]))
        return self._known[key]

    def has(self, feature: int) -> bool:
        """Whether a split tests categories of this column."""
        return feature in self._columns

    def __bool__(self) -> bool:
        return bool(self._known)

    def add_to(self, builder: GraphBuilder, features: str, exact: str) -> str:
        """Write the columns of the sets behind the numbers, in float32.

        Args:
            builder: of the graph.
            features: `[N, columns]` in float32.
            exact: the same features in the type in which the source compares them, float32 or float64.
        """
        if not self._known:
            return features
        blocks, order = [features], []
        for feature, column in self._columns.items():
            table, values = _table(column)
            blocks.append(self._looked_up(builder, exact, feature, values, table=table))
            order += column.numbers
        for digits, outcomes in self._tables.items():
            table = np.stack([ones for ones, _ in outcomes], axis=1).astype(np.int8)
            place = _combined(builder, features, digits)
            blocks.append(builder.cast(builder.node("Gather", builder.constant(table, np.int8), place, axis=0), FLOAT))
            order += [number for _, number in outcomes]
        joined = builder.node("Concat", *blocks, axis=1)
        places = [*range(self._width), *(self._width + int(place) for place in np.argsort(order))]
        if places == list(range(self.width)):
            return joined
        return builder.node("Gather", joined, builder.constant(places, np.int64), axis=1)

    def _looked_up(
        self, builder: GraphBuilder, features: str, feature: int, values: list[float], *, table: NDArray[np.float64]
    ) -> str:
        value = builder.node("Gather", features, builder.constant([feature], np.int64), axis=1)
        value = builder.cast(value, DOUBLE)
        absent = builder.node("IsNaN", value)
        if self._whole == "floor":
            value = builder.node("Floor", value)
        elif self._whole == "cut":
            bound = [builder.constant(limit, np.float64) for limit in (-_WHOLE, _WHOLE)]
            held = builder.node("Where", absent, builder.constant(-1.0, np.float64), value)
            held = builder.node("Min", builder.node("Max", held, bound[0]), bound[1])
            value = builder.cast(builder.cast(held, INT64), DOUBLE)
        hit = builder.cast(builder.node("Equal", value, builder.constant([values], np.float64)), DOUBLE)
        numbers = builder.constant(np.arange(1.0, len(values) + 1)[:, None], np.float64)
        place = builder.node("MatMul", hit, numbers)
        place = builder.node("Where", absent, builder.constant(len(values) + 1.0, np.float64), place)
        place = builder.node("Reshape", builder.cast(place, INT64), builder.constant([-1], np.int64))
        return builder.cast(builder.node("Gather", builder.constant(table, np.int8), place, axis=0), FLOAT)


def _combined(builder: GraphBuilder, features: str, digits: tuple[Digit, ...]) -> str:
    """The number of each row's combination of digits."""
    number, one, nought = "", builder.constant(1.0), builder.constant(0.0)
    for digit in digits:
        value = builder.node("Gather", features, builder.constant([digit.feature], np.int64), axis=1)
        absent = builder.node("IsNaN", value)
        if digit.borders:
            above = builder.cast(builder.node("Greater", value, builder.constant([digit.borders])), FLOAT)
            own = builder.node("ReduceSum", above, builder.constant([1], np.int64), keepdims=1)
            lost = builder.constant(float(len(digit.borders))) if digit.missing_is_above else nought
        else:
            top = builder.constant(float(digit.size - 1))
            own = builder.node("Min", builder.node("Max", builder.node("Add", value, one), nought), top)
            lost = nought
        own = builder.node("Where", absent, lost, own)
        number = (
            builder.node("Add", builder.node("Mul", number, builder.constant(float(digit.size))), own)
            if number
            else own
        )
    return builder.node("Reshape", builder.cast(number, INT64), builder.constant([-1], np.int64))


def _table(column: _Column) -> tuple[NDArray[np.float64], list[float]]:
    """`[unknown, each value, missing] x sets`: 0 where a value goes to "yes"; and the values."""
    values = sorted(frozenset().union(*(named for named, _, _ in column.sets)))
    table = np.ones((len(values) + 2, len(column.sets)))
    for place, (named, unknown, missing) in enumerate(column.sets):
        holds = np.array([value in named for value in values], dtype=bool)
        table[0, place] = not unknown
        table[1:-1, place] = holds if unknown else ~holds
        table[-1, place] = not missing
    return table, values
