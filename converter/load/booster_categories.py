"""Boosters that were trained on text: translate the model's codes of categories to the indexes of a window.

LightGBM and XGBoost store the texts of a categorical column in the model, in the order of their codes. Where a channel
declares its texts in another order, the trees' sets of codes become sets of indexes. A text that training did not
contain has no code; both treat it as a missing value, as a pandas categorical does.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.load.source import class_name
from converter.spec import ChannelSpec

Known = Mapping[int, Sequence[str]]  # column -> its texts, in the order of the codes
Indexes = Mapping[int, Mapping[int, float]]  # column -> code -> index in the window
INDEXES = "edge_indexes_"  # an attribute that is set on a copy of an estimator
NO_INDEXES: Indexes = MappingProxyType({})


def known_to_lightgbm(booster: Any) -> dict[int, list[str]]:
    """The texts of each categorical column."""
    listed = getattr(booster, "pandas_categorical", None) or []
    infos = booster.dump_model(num_iteration=1)["feature_infos"]
    columns = [place for place, name in enumerate(booster.feature_name()) if infos.get(name, {}).get("values")]
    if len(columns) != len(listed):
        return {}
    return {column: [class_name(value) for value in values] for column, values in zip(columns, listed, strict=True)}


def known_to_xgboost(learner: Mapping[str, Any]) -> dict[int, list[str]]:
    """The texts of each categorical column; empty for XGBoost before 3.1 and for columns of numbers."""
    machine = learner["gradient_booster"]
    trees = machine["gbtree"]["model"] if machine["name"] == "dart" else machine.get("model", {})
    found = {}
    for column, each in enumerate(trees.get("cats", {}).get("enc", ())):
        offsets, values = each.get("offsets") or [], each.get("values") or []
        if len(offsets) > 1:
            raw = bytes(value & 255 for value in values)
            found[column] = [raw[a:b].decode() for a, b in pairwise(offsets)]
    return found


def declared(channels: Sequence[ChannelSpec], width: int, known: Known) -> dict[int, tuple[str, ...]]:
    """The declared texts of the columns whose texts the model stores."""
    if not channels or width % len(channels):
        return {}
    each = {column: channels[column % len(channels)].categories for column in known}
    return {column: texts for column, texts in each.items() if texts}


def indexes_of(known: Known, texts: Mapping[int, Sequence[str]]) -> dict[int, dict[int, float]]:
    """For each column the index of each code; a code whose text is not declared occurs in no reading."""
    return {
        column: {
            code: float(texts[column].index(text)) for code, text in enumerate(known[column]) if text in texts[column]
        }
        for column in texts
    }


def coded(x: NDArray[Any], indexes: Indexes) -> NDArray[Any]:
    """Rows of indexes as rows of codes, missing where there is none."""
    if not indexes:
        return x
    x = x.copy()
    for column, codes in indexes.items():
        found = np.full(len(x), np.nan)
        for code, index in codes.items():
            found[x[:, column] == index] = code
        x[:, column] = found
    return x


def named(codes: Sequence[int], column: int, indexes: Indexes) -> list[float]:
    """A set of codes as the set of their values in a window."""
    if column not in indexes:
        return [float(code) for code in codes]
    return [indexes[column][code] for code in codes if code in indexes[column]]


def booster_texts(estimator: Any) -> dict[int, list[str]]:
    """The training texts of an estimator of LightGBM or XGBoost, by column; empty for any other estimator."""
    module = type(estimator).__module__.split(".")[0]
    if module == "lightgbm" and hasattr(estimator, "booster_"):
        return known_to_lightgbm(estimator.booster_)
    if module == "xgboost" and hasattr(estimator, "get_booster"):
        return known_to_xgboost(json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"])
    return {}
