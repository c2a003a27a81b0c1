"""Channels of text for scikit-learn: an estimator by indexes for the graph, and its own texts for the reference.

A window holds the index of a category. `CodedEstimator` has a copy of the estimator with indexes instead of texts in
encoders and imputers; the graph is made from it. It turns windows back into the original texts, so that the estimator's
own `predict` stays the reference. A category of the estimator that the specification does not list gets an index that
no reading has. Weak point: text must reach an encoder, or a booster that splits by category, through imputers and
column transformers only.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.load.booster_categories import INDEXES, booster_texts
from converter.load.source import class_name
from converter.spec import ChannelSpec
from edge_runtime.errors import CommandError

_MOST_SHOWN = 8
_NEVER = -2.0  # and below: indexes of undeclared categories, which no reading has
_UNKNOWN_TEXT = "\x00 a text that no model was trained on"
_UNKNOWN_NUMBER = -987_654_321.0
_ENCODERS = ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
_ONE = {"FixedThresholdClassifier": "estimator_", "SelfTrainingClassifier": "estimator_",
        "TunedThresholdClassifierCV": "estimator_",
        "TransformedTargetRegressor": "regressor_", "HistGradientBoostingClassifier": "_preprocessor",
        "HistGradientBoostingRegressor": "_preprocessor"}  # fmt: skip
_SEVERAL = ("Voting", "Stacking", "OneVs", "MultiOutput", "Bagging")
Categories = Mapping[int, tuple[str, ...]]
Origins = Sequence[int | None]  # for each column, its column in the window; None for a computed one


@dataclass
class _Seen:
    """An estimator's facts about the columns of text."""

    learned: dict[int, list[Any]] = field(default_factory=dict)
    typed: dict[Any, list[str]] = field(default_factory=dict)  # a booster needs the column as a pandas categorical
    elsewhere: dict[int, str] = field(default_factory=dict)  # a step that takes the column unencoded


class CodedEstimator:
    """An estimator that was trained on text, with windows of indexes as input.

    Args:
        estimator: fitted; not changed.
        by_position: a copy that takes plain arrays.
        categories: the declared texts of each column that holds text.
        names: of the columns, for messages.
        place: the file, for messages.

    Attributes:
        by_index: a copy with indexes in place of texts; only for the graph.
        estimator: as it was trained.
        notes: sentences for the user.

    Raises:
        CommandError: a step takes text in another way, or pandas is required and not installed.
    """

    def __init__(
        self, estimator: Any, by_position: Any, categories: Categories, names: Sequence[str], *, place: str
    ) -> None:
        self.estimator, self._categories, self._place = estimator, categories, place
        width = int(estimator.n_features_in_)
        seen = _Seen()
        _walk(by_position, list(range(width)), lambda column, values: _note(seen, column, values), seen)
        self.notes: list[str] = []
        self._values: dict[int, list[Any]] = {}
        codes: dict[int, dict[Any, float]] = {}
        for column, texts in categories.items():
            self._add(column, texts, seen, codes, name=names[column])
        self.by_index = copy.deepcopy(by_position)
        _walk(self.by_index, list(range(width)), lambda column, values: _coded(values, codes.get(column)), seen)
        self._typed = seen.typed
        self._columns = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
        if self._columns and self._values:
            _require_pandas(place)

    def holds_text(self, column: int) -> bool:
        """Whether indexes of this column are turned back into the training's values."""
        return column in self._values

    def call(self, method: str, x: NDArray[np.float64]) -> Any:
        """Call the original estimator on rows of indexes."""
        return getattr(self.estimator, method)(self.values(x))

    def values(self, x: NDArray[np.float64]) -> Any:
        """Rows of indexes as the training's values."""
        table = x.astype(object)
        for column, values in self._values.items():
            index = np.rint(np.nan_to_num(x[:, column], nan=-1.0)).astype(np.int64)
            known = (index >= 0) & (index < len(self._categories[column]))
            texts = np.array(values, dtype=object)[np.where(known, index, len(values) - 1)]
            texts[np.isnan(x[:, column])] = np.nan
            table[:, column] = texts
        if not self._columns:
            return table
        import pandas as pd  # noqa: PLC0415 - an estimator that knows names was trained with it

        frame = pd.DataFrame({name: table[:, place] for place, name in enumerate(self._columns)}, dtype=object)
        numbers = [name for place, name in enumerate(self._columns) if place not in self._values]
        frame[numbers] = frame[numbers].astype(np.float64)
        for column, known_texts in self._typed.items():
            name = self._columns[column]
            frame[name] = pd.Categorical(frame[name], categories=known_texts)
        return frame

    def _add(
        self, column: int, texts: tuple[str, ...], seen: _Seen, codes: dict[int, dict[Any, float]], *, name: str
    ) -> None:
        learned = [value for value in seen.learned.get(column, ()) if not _is_missing(value)]
        by_name = {_text_of(value, texts): value for value in learned}
        is_text = any(isinstance(value, str) for value in learned)
        if not is_text and not set(by_name) <= set(texts):
            return  # it was trained on indexes
        if not learned:
            return
        if column in seen.elsewhere:
            raise CommandError(
                f"{self._place}: channel {name!r} holds text, and {seen.elsewhere[column]} takes it as it is: expected "
                "OneHotEncoder, OrdinalEncoder or TargetEncoder in front, behind imputers at most"
            )
        index = {text: float(place) for place, text in enumerate(texts)}
        strange = [text for text in by_name if text not in index]
        if strange:
            self.notes.append(
                f"categories: channel {name!r}: the model also knows {', '.join(map(repr, strange[:5]))}, which the "
                "specification leaves out: readings with them are of an unknown category"
            )
        new = [text for text in texts if text not in by_name]
        if new:
            self.notes.append(
                f"categories: channel {name!r}: the model was not trained on {', '.join(map(repr, new[:5]))}, and "
                "treats them as it treats an unknown category"
            )
        codes[column] = {value: index.get(text, _NEVER - place) for place, (text, value) in enumerate(by_name.items())}
        unknown: Any = _UNKNOWN_TEXT if is_text else _UNKNOWN_NUMBER
        self._values[column] = [by_name.get(text, text if is_text else unknown) for text in texts] + [unknown]


def coded_estimator(
    estimator: Any, by_position: Any, channels: Sequence[ChannelSpec], place: str
) -> CodedEstimator | None:
    """An estimator for channels of text; None where there are none, or the columns are no channels."""
    width = int(getattr(estimator, "n_features_in_", 0))
    fits = bool(channels) and width > 0 and width % len(channels) == 0
    _check_declared(estimator, by_position, channels if fits else (), place)
    if not fits or not any(channel.categories for channel in channels):
        return None
    each = [channels[column % len(channels)] for column in range(width)]
    categories = {column: channel.categories for column, channel in enumerate(each) if channel.categories}
    return CodedEstimator(estimator, by_position, categories, [channel.name for channel in each], place=place)


def _check_declared(estimator: Any, by_position: Any, channels: Sequence[ChannelSpec], place: str) -> None:
    """Refuse columns of text without categories in the specification."""
    seen = _Seen()
    width = int(getattr(estimator, "n_features_in_", 0))
    _walk(by_position, list(range(width)), lambda column, values: _note(seen, column, values), seen)
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    for column, values in sorted(seen.learned.items()):
        texts = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        if texts and not (channels and channels[column % len(channels)].categories):
            name = names[column] if column < len(names) else f"column {column}"
            listed = ", ".join(f'"{text}"' for text in texts[:_MOST_SHOWN])
            more = ", ..." if len(texts) > _MOST_SHOWN else ""
            raise CommandError(
                f"{place}: channel {name!r} holds text, which the model knows as one of {len(texts)}: list them in the "
                f"specification, in the [[channel]] of {name!r}: categories = [{listed}{more}]"
            )


def _note(seen: _Seen, column: int, values: Sequence[Any]) -> Sequence[Any]:
    seen.learned.setdefault(column, []).extend(values)
    return values


def _coded(values: Sequence[Any], codes: Mapping[Any, float] | None) -> Any:
    """Learned values as indexes, in the learned order."""
    if codes is None:
        return values
    return np.array([np.nan if _is_missing(value) else codes[value] for value in values], dtype=np.float64)


def _text_of(value: Any, texts: tuple[str, ...]) -> str:
    """A learned value as in the specification: true and false in either case."""
    text = class_name(value)
    return text.lower() if isinstance(value, bool | np.bool_) and text.lower() in texts else text


def _is_missing(value: Any) -> bool:
    return value is None or value != value or type(value).__name__ == "NAType"  # noqa: PLR0124 - NaN is not itself


def _walk(part: Any, origins: Origins, change: Callable[[int, Sequence[Any]], Sequence[Any]], seen: _Seen) -> Origins:
    """Replace every list of a column's learned values by the result of `change`.

    Returns:
        The columns that the part passes on.
    """
    kind = type(part).__name__
    if kind in _ENCODERS:
        part.categories_ = [
            values if (column := _at(origins, place)) is None else change(column, values)
            for place, values in enumerate(part.categories_)
        ]
        return ()
    known = booster_texts(part)
    if known:
        indexes = {}
        for place, texts in known.items():
            column = _at(origins, place)
            found: Any = texts if column is None else change(column, texts)
            if isinstance(found, np.ndarray):
                indexes[place] = dict(enumerate(found.tolist()))
                seen.typed[column] = texts
        setattr(part, INDEXES, indexes)
        return ()
    if kind == "SimpleImputer":
        return _walk_imputer(part, origins, change)
    if hasattr(part, "transformers_"):
        return _walk_columns(part, origins, change, seen)
    if kind == "FunctionTransformer" and part.func is None:
        return origins
    if hasattr(part, "steps"):
        for _, step in part.steps:
            if step is not None and not isinstance(step, str):
                origins = _walk(step, origins, change, seen)
        return origins
    inside = list(_inside(part))
    if not inside and kind != "MissingIndicator":
        seen.elsewhere.update(
            {column: kind for column in origins if column is not None and column not in seen.elsewhere}
        )
    for one in inside:
        _walk(one, origins, change, seen)
    return ()


def _inside(part: Any) -> Iterator[Any]:
    """The fitted estimators with the same input columns."""
    kind = type(part).__name__
    if kind.startswith("HistGradient") and getattr(part, "_preprocessor", None) is None:
        return
    one = getattr(part, _ONE.get(kind, "best_estimator_"), None)
    if one is not None:
        yield one
    elif hasattr(part, "calibrated_classifiers_"):
        yield from (each.estimator for each in part.calibrated_classifiers_)
    elif hasattr(part, "transformer_list"):
        yield from (step for _, step in part.transformer_list if not isinstance(step, str))
    elif any(name in kind for name in _SEVERAL):
        yield from part.estimators_


def _walk_columns(
    part: Any, origins: Origins, change: Callable[[int, Sequence[Any]], Sequence[Any]], seen: _Seen
) -> Origins:
    out: dict[int, int | None] = {}
    for name, step, _ in part.transformers_:
        own = [_at(origins, int(place)) for place in part._transformer_to_input_indices[name]]  # noqa: SLF001
        given = own if step == "passthrough" else () if step == "drop" else _walk(step, own, change, seen)
        where = part.output_indices_.get(name, slice(0, 0))
        out.update(zip(range(where.start, where.stop), given, strict=False))
    return [out.get(place) for place in range(max(out, default=-1) + 1)]


def _walk_imputer(part: Any, origins: Origins, change: Callable[[int, Sequence[Any]], Sequence[Any]]) -> Origins:
    columns = [_at(origins, place) for place in range(len(part.statistics_))]
    filled = [
        value if column is None or _is_missing(value) else change(column, [value])[0]
        for column, value in zip(columns, part.statistics_, strict=True)
    ]
    if all(not isinstance(value, str) for value in filled):
        part.statistics_ = np.array(filled, dtype=np.float64)
        part._fit_dtype = part.statistics_.dtype  # noqa: SLF001 - what it was trained on, for its own checks
        if part.missing_values is None:
            part.missing_values = np.nan
    return [
        column
        for column, value in zip(columns, filled, strict=True)
        if getattr(part, "keep_empty_features", False) or not _is_missing(value)
    ]


def _at(origins: Origins, place: int) -> int | None:
    return origins[place] if place < len(origins) else None


def _require_pandas(place: str) -> None:
    if importlib.util.find_spec("pandas") is None:
        raise CommandError(
            f"{place}: it was trained on a table with names and text: install pandas, so that the model can be asked"
        )
