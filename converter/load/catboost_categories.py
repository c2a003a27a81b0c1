"""CatBoost's splits by category as tables of CatBoost's own answers to every combination of categories.

CatBoost turns categories into numbers by hashes and by statistics of the training (CTR), of one or several features,
sometimes combined with comparisons of numbers. Each such split depends on a few features only, and a symmetric tree's
leaf number holds the outcome of each split as a bit. CatBoost computes the leaf of every combination, and the outcomes
become a table of the graph (`category_sets.py`).

Guarantee: an undeclared text gets CatBoost's answer to a text that training did not contain. Weak points: a text of the
training that the specification does not declare counts as undeclared; a split with more than `_MOST` combinations is
refused, and so are trees that are not symmetric.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.graph.category_sets import CategorySets, Digit
from converter.spec import ChannelSpec
from edge_runtime.errors import CommandError

_MOST = 4096  # combinations of categories and comparisons of one split
_NEVER_SEEN = "\N{SYMBOL FOR NULL} no category"  # stands for an undeclared text


def texts_of(features: Mapping[str, Any], channels: Sequence[ChannelSpec], place: str) -> dict[int, tuple[str, ...]]:
    """The declared texts of each column that CatBoost treats as a category.

    Raises:
        CommandError: a channel declares none.
    """
    columns = {int(each["flat_feature_index"]): str(each["feature_id"]) for each in features["categorical_features"]}
    found = {column: channels[column % len(channels)].categories if channels else () for column in columns}
    missing = [columns[column] or f"feature {column}" for column, texts in found.items() if not texts]
    if missing:
        raise CommandError(
            f"{place}: expected the texts of each feature that CatBoost takes as a category, found none for "
            f"{', '.join(missing)}: say them as categories = [...] in its [[channel]], numbers as text too"
        )
    return found


def with_texts(x: NDArray[np.float32], texts: Mapping[int, Sequence[str]]) -> NDArray[Any]:
    """Rows as CatBoost's input: texts instead of indexes."""
    if not texts:
        return x
    rows = x.astype(object)
    for column, known in texts.items():
        values = x[:, column]
        rows[:, column] = [
            value if math.isnan(value) else known[int(value)] if 0 <= value < len(known) else _NEVER_SEEN
            for value in values.tolist()
        ]
    return rows


class CategorySplits:
    """The splits by category of one model.

    Args:
        model: CatBoost's own JSON.
        booster: the same model in CatBoost.
        texts: the declared texts of each column of categories.
        sets: takes the tables.
        place: the file, for messages.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        booster: Any,
        texts: Mapping[int, Sequence[str]],
        sets: CategorySets,
        *,
        place: str,
    ) -> None:
        self._booster, self._texts, self._sets, self._place = booster, texts, sets, place
        features = model["features_info"]
        self._flat = [int(each["flat_feature_index"]) for each in features.get("categorical_features", ())]
        self._floats = features.get("float_features", ())
        self._width = len(self._flat) + len(self._floats)
        self._digits: dict[int, tuple[Digit, ...]] = {}
        self._where: dict[int, tuple[int, int]] = {}
        first = sum(len(each["borders"]) for each in self._floats)
        first += sum(len(each.get("values", ())) for each in features.get("categorical_features", ()))
        for ctr in features.get("ctrs", ()):
            for number in range(first, first + len(ctr["borders"])):
                self._digits[number] = self._of_elements(ctr["elements"])
            first += len(ctr["borders"])
        for tree, each in enumerate(model.get("oblivious_trees", ())):
            for level, split in enumerate(each.get("splits") or ()):
                self._where.setdefault(int(split["split_index"]), (tree, level))
        self._leaves: dict[tuple[Digit, ...], NDArray[np.int64]] = {}

    def column(self, split: Mapping[str, Any]) -> int:
        """The column that is 1 where the split is true.

        Raises:
            CommandError: it depends on too many combinations.
        """
        number = int(split["split_index"])
        if split["split_type"] == "OneHotFeature":
            digits: tuple[Digit, ...] = (self._category(int(split["cat_feature_index"])),)
        else:
            digits = self._digits[number]
        tree, level = self._where[number]
        yes = (self._asked(digits)[:, tree] >> level) & 1
        return self._sets.tabled(digits, yes == 1)

    def _asked(self, digits: tuple[Digit, ...]) -> NDArray[np.int64]:
        """The leaf of every tree for each combination; the last digit changes fastest."""
        if digits in self._leaves:
            return self._leaves[digits]
        count = math.prod(digit.size for digit in digits)
        if count > _MOST:
            who = ", ".join(sorted({f"feature {digit.feature}" for digit in digits}))
            raise CommandError(
                f"{self._place}: CatBoost has a split by {count:,} combinations of {who}, expected at most {_MOST:,}: "
                "train it with max_ctr_complexity=1, or with fewer categories a feature"
            )
        rows = np.zeros((count, self._width), dtype=object)
        for column, texts in self._texts.items():
            rows[:, column] = texts[0]
        for row, places in enumerate(product(*(range(digit.size) for digit in digits))):
            for digit, place in zip(digits, places, strict=True):
                rows[row, digit.feature] = self._value(digit, place)
        found = np.asarray(self._booster.calc_leaf_indexes(rows), dtype=np.int64).reshape(count, -1)
        self._leaves[digits] = found
        return found

    def _value(self, digit: Digit, place: int) -> Any:
        if not digit.borders:
            return self._texts[digit.feature][place - 1] if place else _NEVER_SEEN
        if place == len(digit.borders):
            return float(np.nextafter(np.float32(digit.borders[-1]), np.float32(np.inf)))
        return float(np.float32(digit.borders[place]))  # below this border, above the previous ones

    def _category(self, index: int) -> Digit:
        column = self._flat[index]
        return Digit(column, len(self._texts[column]) + 1)

    def _of_elements(self, elements: Sequence[Mapping[str, Any]]) -> tuple[Digit, ...]:
        """The features of a statistic: categories, and numbers with the borders of their comparisons."""
        categories = {int(each["cat_feature_index"]) for each in elements if "cat_feature_index" in each}
        borders: dict[int, set[float]] = {}
        for each in elements:
            if "float_feature_index" in each:
                borders.setdefault(int(each["float_feature_index"]), set()).add(float(each["border"]))
        numbers = []
        for index, several in sorted(borders.items()):
            feature = self._floats[index]
            numbers.append(
                Digit(
                    int(feature["flat_feature_index"]),
                    len(several) + 1,
                    tuple(sorted(several)),
                    missing_is_above=feature["nan_value_treatment"] == "AsTrue",
                )
            )
        return (*(self._category(index) for index in sorted(categories)), *numbers)
