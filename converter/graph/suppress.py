"""Boxes and scores of a detector -> the remaining detections, inside the graph, for any number of windows.

`NonMaxSuppression` gives a list whose length depends on the picture. It is scattered into a table of scores, in which
suppressed ones are zero, and the highest `most` of each window are taken. Shapes thus are the same for every picture.
The reference in numpy is `converter/load/detection.py`.
"""

import numpy as np

from converter.graph.build import FLOAT, GraphBuilder
from converter.load.detection import Detection


def suppressed(builder: GraphBuilder, detection: Detection, values: list[str]) -> tuple[str, str, str]:
    """Add the suppression.

    Args:
        builder: the graph.
        detection: the layout of the outputs.
        values: the outputs, in the order of `detection.sources`.

    Returns:
        boxes `[N, most, 4]`, scores `[N, most]` and labels `[N, most]`.
    """
    boxes, scores = _parts(builder, detection, values)
    rules, classes = detection.rules, len(detection.classes)

    def whole(*numbers: int) -> str:
        return builder.constant(list(numbers), np.int64)

    by_class = builder.node("Transpose", scores, perm=[0, 2, 1])
    kept = builder.node(
        "NonMaxSuppression", boxes, by_class, whole(rules.most), builder.constant([rules.overlap]),
        builder.constant([rules.threshold]),
    )  # fmt: skip
    nothing = builder.node("Mul", by_class, builder.constant(0.0))
    table = builder.node("ScatterND", nothing, kept, builder.node("GatherND", by_class, kept))
    flat = builder.node("Reshape", table, whole(0, classes * detection.candidates))
    best, places = builder.nodes("TopK", 2, flat, whole(detection.most), axis=1)
    found = builder.node("Greater", best, builder.constant(0.0))
    label = builder.node("Div", places, builder.constant(detection.candidates, np.int64))
    candidate = builder.node("Mod", places, builder.constant(detection.candidates, np.int64))
    picked = builder.node("GatherND", boxes, builder.node("Unsqueeze", candidate, whole(2)), batch_dims=1)
    there = builder.node("Unsqueeze", builder.cast(found, FLOAT), whole(2))
    return (
        builder.node("Mul", picked, there),
        best,
        builder.node("Where", found, label, builder.constant(-1, np.int64)),
    )


def _parts(builder: GraphBuilder, detection: Detection, values: list[str]) -> tuple[str, str]:
    """Corners `[N, candidates, 4]`, and scores `[N, candidates, classes]`."""
    rules, tables = detection.rules, []
    extra = int(rules.objectness) + int(rules.background) + len(detection.classes)
    widths = (4 + extra,) if len(values) == 1 else (4, extra)
    for value, turned, width in zip(values, detection.turned, widths, strict=True):
        shape = (0, width, detection.candidates) if turned else (0, detection.candidates, width)
        table = builder.node("Reshape", value, builder.constant(list(shape), np.int64))
        tables.append(builder.node("Transpose", table, perm=[0, 2, 1]) if turned else table)
    if len(tables) == 1:
        tables = [_columns(builder, tables[0], 0, 4), _columns(builder, tables[0], 4, 4 + extra)]
    boxes, scores = tables
    if detection.activation == "sigmoid":
        scores = builder.node("Sigmoid", scores)
    elif detection.activation == "softmax":
        scores = builder.node("Softmax", scores, axis=2)
    if rules.objectness:
        scores = builder.node("Mul", _columns(builder, scores, 0, 1), _columns(builder, scores, 1, extra))
    if rules.background:
        scores = _columns(builder, scores, 1, 1 + len(detection.classes))
    return _corners(builder, boxes, rules.boxes), scores


def _columns(builder: GraphBuilder, value: str, start: int, stop: int) -> str:
    one, other, axis = (builder.constant([number], np.int64) for number in (start, stop, 2))
    return builder.node("Slice", value, one, other, axis)


def _corners(builder: GraphBuilder, boxes: str, kind: str) -> str:
    if kind == "xyxy":
        return boxes
    if kind == "yxyx":
        return builder.node("Gather", boxes, builder.constant([1, 0, 3, 2], np.int64), axis=2)
    place, size = _columns(builder, boxes, 0, 2), _columns(builder, boxes, 2, 4)
    if kind == "xywh":
        return builder.node("Concat", place, builder.node("Add", place, size), axis=2)
    half = builder.node("Mul", size, builder.constant(0.5))
    return builder.node("Concat", builder.node("Sub", place, half), builder.node("Add", place, half), axis=2)
