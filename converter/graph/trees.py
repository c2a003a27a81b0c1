"""Decision trees of any framework as one `Forest`, and a forest as one ONNX node with exact comparisons.

Frameworks compare a float64 threshold with a float32 or float64 value, often after a scaler; an ONNX tree on a device
compares float32 with float32. Rounding a threshold to the nearest float32, or scaling in float32, moves rows over a
split. Therefore the thresholds are searched, not rounded: for each comparison the search finds the largest float32
reading for which the source's comparison, scaling included, is true. Then `reading <= threshold` gives the source's
answer for every float32 reading, and the graph needs no scaler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from converter.graph.category_sets import CategorySets

Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

_LOWEST_KEY = -int(np.array(np.finfo(np.float32).max, dtype=np.float32).view(np.int32))
_HIGHEST_KEY = -_LOWEST_KEY
_ROWS_AT_ONCE = 200_000  # float64 cells of a search step: 1.6 MB


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees as flat arrays over all nodes; the output is `base` plus the sum of the reached leaves.

    Attributes:
        tree: the tree of each node.
        node: the number of each node within its tree; 0 is the root.
        feature: the input column of an inner node; -1 marks a leaf.
        threshold: of the comparison, as the source holds it.
        left: the node (within the tree) of "yes".
        right: the node of "no".
        leaf: index into the arrays above of each leaf value.
        target: the output column that it adds to.
        weight: what it adds.
        outputs: output columns.
        base: `[outputs]`, the start of the sum.
        compare: `<=` or `<`.
        narrow: whether the source rounds the value to float32 before it compares.
        missing: whether a missing value (NaN) goes to "yes", for each node.
        sets: the splits by category, which are columns behind those of the input.
        tiny: the source treats numbers up to this size as zero.
    """

    tree: Ints
    node: Ints
    feature: Ints
    threshold: Doubles
    left: Ints
    right: Ints
    leaf: Ints
    target: Ints
    weight: Doubles
    outputs: int
    base: Doubles
    compare: Literal["<=", "<"]
    narrow: bool
    missing: NDArray[np.bool_]
    sets: "CategorySets | None" = None
    tiny: float = 0.0


class ForestBuilder:
    """Collects trees, node by node arrays at a time, into a `Forest`."""

    def __init__(
        self, outputs: int, compare: Literal["<=", "<"], narrow: bool, sets: "CategorySets | None" = None
    ) -> None:
        self._outputs, self._compare, self._narrow, self._sets = outputs, compare, narrow, sets
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._leaves: list[tuple[NDArray[Any], ...]] = []
        self._nodes = 0

    def add(
        self,
        feature: NDArray[Any],
        threshold: NDArray[Any],
        left: NDArray[Any],
        right: NDArray[Any],
        *,
        weights: NDArray[Any],
        targets: Sequence[int] | None = None,
        missing: NDArray[Any] | None = None,
    ) -> None:
        """Add one tree.

        Args:
            feature: the column of each node; negative marks a leaf.
            threshold: of each node.
            left: number of the "yes" node; ignored for leaves.
            right: number of the "no" node.
            weights: `[nodes, len(targets)]`: the addends of each leaf.
            targets: the output columns of `weights`; all by default.
            missing: whether NaN takes the way of "yes" at each node; nowhere by default.
        """
        n = len(feature)
        feature = np.where(np.asarray(feature) < 0, -1, feature).astype(np.int64)
        columns = np.arange(self._outputs) if targets is None else np.asarray(targets)
        tree = np.full(n, len(self._parts), dtype=np.int64)
        tracks = np.zeros(n, dtype=np.bool_) if missing is None else np.asarray(missing, dtype=np.bool_)
        self._parts.append((tree, np.arange(n), feature, np.asarray(threshold, np.float64), left, right, tracks))
        leaves = np.flatnonzero(feature < 0)
        values = np.asarray(weights, dtype=np.float64).reshape(n, len(columns))[leaves]
        keep = values != 0
        keep[~keep.any(axis=1), 0] = True  # onnxruntime needs a value for each leaf
        row, column = np.nonzero(keep)
        self._leaves.append((leaves[row] + self._nodes, columns[column], values[row, column]))
        self._nodes += n

    def build(self, base: Sequence[float] | NDArray[Any] | None = None) -> Forest:
        """All trees added so far."""
        tree, node, feature, threshold, left, right, missing = (
            np.concatenate(part) for part in zip(*self._parts, strict=True)
        )
        leaf, target, weight = (np.concatenate(part) for part in zip(*self._leaves, strict=True))
        start = np.zeros(self._outputs) if base is None else np.asarray(base, dtype=np.float64).reshape(self._outputs)
        return Forest(
            tree, node.astype(np.int64), feature, threshold, left.astype(np.int64), right.astype(np.int64),
            leaf, target.astype(np.int64), weight, self._outputs, start, self._compare, self._narrow, missing,
            self._sets or None,
        )  # fmt: skip


def exact_thresholds(forest: Forest, columns: int, transform: Transform | None = None) -> NDArray[np.float32]:
    """For each node, the largest float32 reading for which the source's comparison holds; minus infinity if none.

    Args:
        forest: the trees.
        columns: the width of the input.
        transform: the source's scaling of a row of readings, separate for each column and non-decreasing.
    """
    result = np.zeros(len(forest.feature), dtype=np.float32)
    inner = np.flatnonzero(forest.feature >= 0)
    if not len(inner):
        return result
    pairs, back = np.unique(
        np.stack([forest.feature[inner].astype(np.float64), forest.threshold[inner]], axis=1),
        axis=0,
        return_inverse=True,
    )
    feature, threshold = pairs[:, 0].astype(np.int64), pairs[:, 1]
    found = np.empty(len(pairs), dtype=np.float32)
    step = max(1, _ROWS_AT_ONCE // columns)
    for start in range(0, len(pairs), step):
        part = slice(start, start + step)
        found[part] = _search(feature[part], threshold[part], forest, columns, transform=transform)
    result[inner] = found[back.reshape(-1)]
    return result


def _search(
    feature: Ints, threshold: Doubles, forest: Forest, columns: int, *, transform: Transform | None
) -> NDArray[np.float32]:
    """Bisect over all float32 numbers in their order, every threshold at once."""
    rows = np.arange(len(feature))

    def holds(keys: Ints) -> NDArray[np.bool_]:
        readings = _float_of(keys).astype(np.float64)
        if transform is None:
            values = readings
        else:
            table = np.zeros((len(rows), columns))
            table[rows, feature] = readings
            values = transform(table)[rows, feature]
        if forest.narrow:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32).astype(np.float64)
        if forest.tiny:
            values = np.where(np.abs(values) <= forest.tiny, 0.0, values)
        return values <= threshold if forest.compare == "<=" else values < threshold

    low = np.full(len(feature), _LOWEST_KEY, dtype=np.int64)
    high = np.full(len(feature), _HIGHEST_KEY, dtype=np.int64)
    never, always = ~holds(low), holds(high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        yes = holds(middle)
        low, high = np.where(yes, middle, low), np.where(yes, high, middle)
    found = np.where(always, np.finfo(np.float32).max, _float_of(low))
    return np.where(never, np.float32(-np.inf), found).astype(np.float32)


def _float_of(keys: Ints) -> NDArray[np.float32]:
    """The float32 number of a rank: ranks rise with the numbers; rank 0 is zero."""
    return np.where(keys < 0, -np.abs(keys).astype(np.int32).view(np.float32), keys.astype(np.int32).view(np.float32))


def drifting_rows(forest: Forest, rows: NDArray[np.float32], transform: Transform | None = None) -> int:
    """The number of rows that would reach another leaf of some tree if scaler and comparison were computed in float32.

    A graph of a scaler and trees with rounded thresholds computes so. With exact thresholds no row moves.

    Args:
        forest: the trees.
        rows: `[n, columns]` readings.
        transform: as in `exact_thresholds`.
    """
    scale = transform if transform is not None else _as_it_is
    with np.errstate(over="ignore", invalid="ignore"):
        exact = scale(rows.astype(np.float64))
        if forest.narrow:
            exact = exact.astype(np.float32).astype(np.float64)
        rough = np.asarray(scale(rows), dtype=np.float32).astype(np.float64)  # type: ignore[arg-type]
        rounded = forest.threshold.astype(np.float32).astype(np.float64)
    roots = np.flatnonzero(np.diff(forest.tree, prepend=-1))
    moved = np.zeros(len(rows), dtype=bool)
    for root in roots:
        moved |= _leaves(forest, int(root), forest.threshold, exact) != _leaves(forest, int(root), rounded, rough)
    return int(moved.sum())


def _as_it_is(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _leaves(forest: Forest, root: int, threshold: Doubles, values: Doubles) -> Ints:
    """The leaf of one tree that each row reaches."""
    at = np.full(len(values), root, dtype=np.int64)
    every = np.arange(len(values))
    while True:
        feature = forest.feature[at]
        inner = feature >= 0
        if not inner.any():
            return at
        value = values[every, np.maximum(feature, 0)]
        yes = value <= threshold[at] if forest.compare == "<=" else value < threshold[at]
        yes |= np.isnan(value) & forest.missing[at]
        at = np.where(inner, root + np.where(yes, forest.left[at], forest.right[at]), at)


def forest_node(forest: Forest, thresholds: NDArray[np.float32], source: str, result: str) -> Any:
    """One `TreeEnsembleRegressor` node of `ai.onnx.ml` 3: float32 `[N, columns]` in, float32 `[N, outputs]` out."""
    from onnx import helper  # noqa: PLC0415 - heavy

    inner = forest.feature >= 0
    attributes = {
        "aggregate_function": "SUM",
        "n_targets": forest.outputs,
        "nodes_falsenodeids": np.where(inner, forest.right, 0).tolist(),
        "nodes_featureids": np.where(inner, forest.feature, 0).tolist(),
        "nodes_modes": ["BRANCH_LEQ" if is_inner else "LEAF" for is_inner in inner],
        "nodes_nodeids": forest.node.tolist(),
        "nodes_treeids": forest.tree.tolist(),
        "nodes_truenodeids": np.where(inner, forest.left, 0).tolist(),
        "nodes_values": np.where(inner, thresholds, 0).astype(np.float32).tolist(),
        "post_transform": "NONE",
        "target_ids": forest.target.tolist(),
        "target_nodeids": forest.node[forest.leaf].tolist(),
        "target_treeids": forest.tree[forest.leaf].tolist(),
        "target_weights": forest.weight.astype(np.float32).tolist(),
    }
    tracks = forest.missing & inner
    if tracks.any():
        attributes["nodes_missing_value_tracks_true"] = tracks.astype(np.int64).tolist()
    if forest.base.any():
        attributes["base_values"] = forest.base.astype(np.float32).tolist()
    return helper.make_node(
        "TreeEnsembleRegressor", [source], [result], name="trees", domain="ai.onnx.ml", **attributes
    )
