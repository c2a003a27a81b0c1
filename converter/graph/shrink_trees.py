"""Shrink tree ensembles without changing a bit of any answer, for every input, NaN and infinity included.

Nodes that no path reaches, splits that an earlier split of the path has decided, splits with two equal sides, and
attributes that equal the standard's default are removed. The trees keep their order and number, so sums are computed in
the same order. Two equal trees are not merged: doubled leaves would round differently.
"""

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

OPERATORS = ("TreeEnsembleRegressor", "TreeEnsembleClassifier")
_ARRANGING = ("Cast", "Identity", "Reshape", "Transpose")  # operators that turn no number into NaN

# x <= t and x < t test whether x is below a cut, x > t and x >= t whether it is above one; at equal t the cut of "<="
# and ">" lies just above t, the other just below. The kinds are not opposites: NaN fails both.
_BELOW = {"BRANCH_LEQ": 1, "BRANCH_LT": 0}
_ABOVE = {"BRANCH_GT": 1, "BRANCH_GTE": 0}
_LISTS = (
    "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values", "nodes_truenodeids",
    "nodes_falsenodeids",
)  # fmt: skip

Cut = tuple[float, int]
Leaf = tuple[tuple[int, float], ...]


@dataclass(slots=True)
class _Node:
    """A split, or with `leaf` the end of a path; `yes` and `no` are positions among the tree's nodes."""

    feature: int
    mode: str
    value: float
    missing: int
    yes: int
    no: int
    leaf: Leaf | None = None


def shrink_trees(node: onnx.NodeProto) -> int:
    """Make one ensemble smaller, in place.

    Args:
        node: one of `OPERATORS`.

    Returns: the number of removed nodes. An ensemble with float64 tables, or with interleaved trees, is not changed.
    """
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if any(name.endswith("_as_tensor") for name in given) or any(name not in given for name in _LISTS):
        return 0
    kind = "target" if node.op_type == "TreeEnsembleRegressor" else "class"
    trees = _read(given, kind)
    if trees is None:
        return 0
    smaller = [_simplified(tree) for tree in trees]
    _write(node, smaller, kind, given)
    return sum(map(len, trees)) - sum(map(len, smaller))


def drop_defaults(node: onnx.NodeProto) -> int:
    """Remove, in place, attributes of an ensemble that equal the standard's default; return their number."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    implied = {"nodes_hitrates"}  # a hint that changes no answer
    if not any(given.get("nodes_missing_value_tracks_true", ())):
        implied.add("nodes_missing_value_tracks_true")
    if given.get("post_transform") == b"NONE":
        implied.add("post_transform")
    if node.op_type == "TreeEnsembleRegressor":
        implied |= {"aggregate_function"} if given.get("aggregate_function") == b"SUM" else set()
        implied |= {"base_values"} if not any(given.get("base_values", ())) else set()
    kept = [attribute for attribute in node.attribute if attribute.name not in implied]
    dropped = len(node.attribute) - len(kept)
    copies = onnx.NodeProto()
    copies.attribute.extend(kept)
    del node.attribute[:]
    node.attribute.extend(copies.attribute)
    return dropped


def forget_missing(model: onnx.ModelProto, window: str) -> None:
    """Remove, in place, the side of missing values from trees that read the window directly.

    For windows that never hold NaN, because the contract refuses it. Trees behind other steps keep theirs: NaN may
    arise there. Every estimator of scikit-learn writes the list, with or without missing values in training, and splits
    with it are not simplified.
    """
    plain = {window}
    for node in model.graph.node:
        if node.op_type in _ARRANGING and node.input[0] in plain:
            plain.update(node.output)
        elif node.op_type in OPERATORS and node.input[0] in plain:
            kept = [each for each in node.attribute if each.name != "nodes_missing_value_tracks_true"]
            copies = onnx.NodeProto()
            copies.attribute.extend(kept)
            del node.attribute[:]
            node.attribute.extend(copies.attribute)


def _read(given: dict[str, Any], kind: str) -> list[list[_Node]] | None:
    """The trees one by one; None where they are interleaved, or point to a missing node."""
    leaves: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for tree, number, column, weight in zip(
        *(given.get(f"{kind}_{part}", []) for part in ("treeids", "nodeids", "ids", "weights")), strict=True
    ):
        leaves.setdefault((tree, number), []).append((column, weight))
    missing = given.get("nodes_missing_value_tracks_true") or [0] * len(given["nodes_treeids"])
    trees: dict[int, list[_Node]] = {}
    places: dict[tuple[int, int], int] = {}
    last = None
    for tree, number, feature, mode, value, yes, no, tracks in zip(
        *(given[name] for name in _LISTS), missing, strict=True
    ):
        if tree in trees and tree != last:
            return None
        last = tree
        nodes = trees.setdefault(tree, [])
        places[tree, number] = len(nodes)
        leaf = tuple(sorted(leaves.get((tree, number), []), key=_column)) if mode == b"LEAF" else None
        nodes.append(_Node(feature, mode.decode(), value, tracks, yes, no, leaf))
    for tree, nodes in trees.items():
        for node in nodes:
            if node.leaf is None:
                if (tree, node.yes) not in places or (tree, node.no) not in places:
                    return None
                node.yes, node.no = places[tree, node.yes], places[tree, node.no]
    return list(trees.values())


def _column(entry: tuple[int, float]) -> int:
    return entry[0]


def _simplified(tree: list[_Node]) -> list[_Node]:
    """The remaining nodes, the root first, each before its children."""
    known: dict[tuple[Any, ...], int] = {}  # equal subtrees have the same number
    forms: list[tuple[Any, ...]] = []
    bounds: dict[tuple[str, int], tuple[Cut, Cut]] = {}
    widest = ((float("-inf"), -1), (float("inf"), 2))
    done: list[int] = []  # numbers of finished subtrees, the last one on top
    todo: list[tuple[str, Any]] = [("visit", 0)]
    visits = 0

    def intern(form: tuple[Any, ...]) -> int:
        number = known.setdefault(form, len(forms))
        if number == len(forms):
            forms.append(form)
        return number

    while todo:
        step, argument = todo.pop()
        if step == "bound":
            place, limits = argument
            bounds[place] = limits
            continue
        node = tree[argument]
        visits += step == "visit"
        if visits > len(tree):
            return tree  # some nodes have two parents: the number of paths might be exponential
        if step == "join":
            no, yes = done.pop(), done.pop()
            same = (node.feature, node.mode, node.value, node.missing, yes, no)
            done.append(yes if yes == no else intern(same))
            continue
        if node.leaf is not None:
            done.append(intern(tuple((column, weight, str(weight)) for column, weight in node.leaf)))
            continue
        side = "below" if node.mode in _BELOW else "above"
        offset = _BELOW.get(node.mode, _ABOVE.get(node.mode))
        if offset is None or node.missing:
            todo += [("join", argument), ("visit", node.no), ("visit", node.yes)]
            continue
        cut, place = (node.value, offset), (side, node.feature)
        low, high = bounds.get(place, widest)
        # Every number that reaches this node lies between low and high, for this kind of comparison.
        if cut >= high:
            todo.append(("visit", node.yes if side == "below" else node.no))
            continue
        if cut <= low:
            todo.append(("visit", node.no if side == "below" else node.yes))
            continue
        lower, upper = (place, (low, cut)), (place, (cut, high))
        first, second = (lower, upper) if side == "below" else (upper, lower)
        todo += [
            ("join", argument), ("bound", (place, (low, high))),
            ("visit", node.no), ("bound", second), ("visit", node.yes), ("bound", first),
        ]  # fmt: skip
    return _laid_out(done[0], forms)


def _laid_out(root: int, forms: list[tuple[Any, ...]]) -> list[_Node]:
    """Rebuild a tree from the numbers of its subtrees."""
    nodes: list[_Node] = []
    todo: list[tuple[int, _Node | None, str]] = [(root, None, "")]
    while todo:
        number, parent, side = todo.pop()
        if parent is not None:
            setattr(parent, side, len(nodes))
        form = forms[number]
        if not form or isinstance(form[0], tuple):
            nodes.append(_Node(0, "LEAF", 0.0, 0, 0, 0, tuple((column, weight) for column, weight, _ in form)))
            continue
        feature, mode, value, missing, yes, no = form
        nodes.append(_Node(feature, mode, value, missing, 0, 0))
        todo += [(no, nodes[-1], "no"), (yes, nodes[-1], "yes")]
    return nodes


def _write(node: onnx.NodeProto, trees: list[list[_Node]], kind: str, given: dict[str, Any]) -> None:
    lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
    ends: dict[str, list[Any]] = {f"{kind}_{part}": [] for part in ("treeids", "nodeids", "ids", "weights")}
    missing: list[int] = []
    for tree, nodes in enumerate(trees):
        for number, each in enumerate(nodes):
            values = (tree, number, each.feature, each.mode, each.value, each.yes, each.no)
            for name, value in zip(_LISTS, values, strict=True):
                lists[name].append(value)
            missing.append(each.missing)
            for column, weight in each.leaf or ():
                for name, value in zip(ends, (tree, number, column, weight), strict=True):
                    ends[name].append(value)
    if any(missing):
        lists["nodes_missing_value_tracks_true"] = missing
    for name in ("nodes_hitrates", "nodes_missing_value_tracks_true", *_LISTS, *ends):
        given.pop(name, None)
    attributes = {**given, **lists, **ends}
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
