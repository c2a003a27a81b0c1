"""Rows beyond the data: values that a faulty sensor or bus may send and that recordings rarely hold.

Sentinels, limits of analogue-to-digital converters, categories outside the training, the ends of each channel's range,
values at, just below and just above the thresholds of trees, and the limits of float32. Each row differs from a
recorded one in one channel, so that a message can name the channel and the value.

Guarantee: no row holds a value outside a channel's `range`, since devices reject it. Weak points: one channel at a time
(and all at once), and a seeded sample of many thresholds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.fidelity import FEW_CATEGORIES, Ask, compare
from converter.load.source import Answer
from converter.named_answers import compare_named, rows_to_judge
from converter.plan import BundlePlan
from converter.session import run, session_of, start_of
from edge_runtime.bundle.manifest import INPUT_NAME, Input, State, Task
from edge_runtime.readings import Floats
from edge_runtime.stream.frame_contract import limits_of

Kind = Literal["missing", "sentinel", "limit of a converter", "beyond the data", "no whole number", "end of the range",
               "threshold of a tree", "limit of float32", "category", "unknown category"]  # fmt: skip

_SENTINELS = (-999.0, -9999.0, -1.0, 0.0, 1.0, 999.0, 9999.0)
_CONVERTERS = (255.0, 1023.0, 4095.0, 16383.0, 32767.0, -32768.0, 65535.0)  # 8 to 16 bits
_FLOAT32 = (float(np.finfo(np.float32).max), -float(np.finfo(np.float32).max))
_TINY = (float(np.finfo(np.float32).smallest_subnormal), -0.0)
_BASES = 3  # recorded rows for each value
_NUMBERS = 4_000_000  # of all probing rows together
_LEAST_ROWS, _MOST_ROWS = 64, 6000
_THROUGH = ("Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze", "Cast")


@dataclass(frozen=True, slots=True)
class Point:
    """One probing value. `channel` is None for a value in all channels."""

    channel: int | None
    value: float
    kind: Kind

    def in_words(self, channels: Sequence[str]) -> str:
        """The point in words."""
        if self.kind == "missing":
            return f"{'every channel' if self.channel is None else f'channel {channels[self.channel]!r}'} missing"
        where = "every reading" if self.channel is None or not channels else f"channel {channels[self.channel]!r}"
        return f"{where} at {self.value:.9g} ({self.kind})"


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """Probing rows, the point of each, and the source's answers.

    Attributes:
        windows: the rows, without those that the source refuses.
        points: the probing value of each.
        expected: the source's answers.
        refused: a value that the source refuses and the reason, a missing one first; None where it answers all.
    """

    windows: Floats
    points: tuple[Point, ...]
    expected: Answer | None
    refused: tuple[Point, str] | None = None

    def within_reason(self) -> NDArray[np.bool_]:
        """Marks rows that are not at the limits of float32."""
        return np.array([point.kind != "limit of float32" for point in self.points], dtype=np.bool_)

    def not_finite(self, model: bytes, states: Sequence[State], batch: int) -> Point | None:
        """The first point at which a form answers NaN or infinity and the source does not."""
        if self.expected is None:
            return None
        asked = self.within_reason() & _finite_rows(self.expected)
        rows = np.flatnonzero(asked)
        if not len(rows):
            return None
        found = run(session_of(model), self.windows[rows], batch, start_of(states))
        bad = rows[~_finite_rows(found)]
        return self.points[int(bad[0])] if len(bad) else None


def probing_rows(
    plan: BundlePlan, windows: Floats, model: onnx.ModelProto | None = None, sentinels: Sequence[float] = ()
) -> tuple[Floats, tuple[Point, ...]]:
    """Rows for the comparison of source and converted model.

    Args:
        plan: the channels, with their ranges.
        windows: recorded ones.
        model: in normal form; the thresholds of its trees are probed.
        sentinels: values that the model treats specially.
    """
    rng = np.random.default_rng(0)
    most = int(np.clip(_NUMBERS // max(1, int(np.prod(windows.shape[1:]))), _LEAST_ROWS, _MOST_ROWS))
    most = min(most, rows_to_judge(sum(math.prod(tensor.shape) for tensor in plan.tensors), most))
    if plan.input.shape is not None:
        return _frames(windows, plan.input)
    points = list(_points(plan, windows, sentinels))
    bases = min(_BASES, len(windows))
    if len(points) * bases > most // 2:
        picked = rng.permutation(len(points))[: max(1, most // 2 // bases)]
        points = [points[index] for index in sorted(picked)]
    rows: list[Floats] = []
    tried: list[Point] = []
    for point in points:
        for turn, base in enumerate(rng.integers(len(windows), size=bases)):
            row = windows[base].copy()
            place: Any = slice(None) if point.channel is None else point.channel
            row[(-1 if turn % 2 else slice(None)), place] = point.value
            rows.append(row)
            tried.append(point)
    for feature, value in _thresholds(model, rng, most // 2) if model is not None else ():
        time, channel = divmod(feature, windows.shape[-1])
        if time >= windows.shape[1] or not _is_let_through(plan, channel, float(value)):
            continue
        row = windows[int(rng.integers(len(windows)))].copy()
        row[time, channel] = value
        rows.append(row)
        tried.append(Point(channel, float(value), "threshold of a tree"))
    return np.asarray(rows, dtype=np.float32).reshape(-1, *windows.shape[1:]), tuple(tried)


def ask_beyond(
    plan: BundlePlan,
    windows: Floats,
    ask: Ask,
    model: onnx.ModelProto | None = None,
    *,
    sentinels: Sequence[float] = (),
) -> Probes:
    """The probing rows with the source's answers; rows that the source refuses are removed."""
    rows, points = probing_rows(plan, windows, model, sentinels)
    refused: list[tuple[int, str]] = []
    parts = list(_answers(rows, 0, ask, refused))
    gone = {row for row, _ in refused}
    kept = [row for row in range(len(rows)) if row not in gone]
    reported = sorted(refused, key=lambda each: (points[each[0]].kind != "missing", each[0]))
    first = (points[reported[0][0]], reported[0][1]) if reported else None
    if not kept:
        return Probes(rows[:0], (), None, first)
    return Probes(rows[kept], tuple(points[row] for row in kept), Answer.joined(parts), first)


@dataclass(frozen=True, slots=True)
class Beyond:
    """A point where a converted model differs from its source, and the difference in words."""

    point: Point
    difference: str


def beyond(
    probes: Probes,
    model: bytes,
    states: Sequence[State],
    batch: int,
    *,
    ask: Ask,
    names: Sequence[str],
    recorded: Floats,
    expected: Answer,
    task: Task = "classification",
) -> tuple[Beyond | None, Beyond | None]:
    """The first fault among plausible values, and the first at the limits of float32; None for none.

    Args:
        probes: the rows, with the source's answers.
        model: in normal form.
        states: of a recurrent model.
        batch: the number of rows in a batch.
        ask: calls the source.
        names: of the answers' columns.
        recorded: recorded windows,
        expected: and what the source answers to them.
        task: of the model.
    """
    if probes.expected is None:
        return None, None
    found = run(session_of(model), probes.windows, batch, start_of(states))
    on_trees = np.array([point.kind == "threshold of a tree" for point in probes.points], dtype=np.bool_)
    reasonable = probes.within_reason()

    def first(mask: NDArray[np.bool_], *, boundaries: bool = True) -> Beyond | None:
        rows = np.flatnonzero(mask)
        if not len(rows) or probes.expected is None:
            return None
        one, other = found.rows(rows), probes.expected.rows(rows)
        if one.named is not None:
            seen = compare_named(one, other, task)
            return Beyond(probes.points[int(rows[seen.first.row])], str(seen.first)) if seen.first else None
        seen = compare(
            one, other, probes.windows[rows], ask, names=names, scale=expected, recorded=recorded, boundaries=boundaries
        )  # fmt: skip
        return Beyond(probes.points[int(rows[seen.first.row])], str(seen.first)) if seen.first else None

    # Thresholds are exact: a comparison that is off by the last bit is a fault.
    return first(reasonable & ~on_trees) or first(on_trees, boundaries=False), first(~reasonable)


def _points(plan: BundlePlan, windows: Floats, sentinels: Sequence[float]) -> Iterator[Point]:
    fixed: list[tuple[Kind, Sequence[float]]] = [
        ("sentinel", (*sentinels, *_SENTINELS)),
        ("limit of a converter", _CONVERTERS),
        ("limit of float32", _FLOAT32),
        ("sentinel", _TINY),
    ]
    flat = windows.reshape(-1, windows.shape[-1])
    for index, channel in enumerate(plan.input.channels):
        if channel.categories:
            yield from (Point(index, value, kind) for value, kind in _categories(plan, index))
            continue
        values = flat[:, index][np.isfinite(flat[:, index])].astype(np.float64)
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
        own: list[tuple[Kind, Sequence[float]]] = [("missing", (float("nan"),))]
        if channel.range is not None:
            own.append(("end of the range", channel.range))
        own.append(("beyond the data", (low, high, 2 * low - high, 2 * high - low)))
        distinct = np.unique(values)
        if len(distinct) <= FEW_CATEGORIES and (distinct == np.rint(distinct)).all():
            own.append(("beyond the data", (high + 1.0, low - 1.0)))
            own.append(("no whole number", (low + 0.5,)))
        for kind, several in (*own, *fixed):
            for value in several:
                if _is_let_through(plan, index, value):
                    yield Point(index, value, kind)
    for kind, several in (("missing", (float("nan"),)), *fixed):
        for value in several:
            if all(_is_let_through(plan, index, value) for index in range(len(plan.input.channels))):
                yield Point(None, value, kind)


def _categories(plan: BundlePlan, channel: int) -> Iterator[tuple[float, Kind]]:
    """Every category, an unknown one, and a missing one."""
    for place in range(len(plan.input.channels[channel].categories)):
        yield float(place), "category"
    for value, kind in ((-1.0, "unknown category"), (float("nan"), "missing")):
        if _is_let_through(plan, channel, value):
            yield value, kind  # type: ignore[misc]


def _is_let_through(plan: BundlePlan, channel: int, value: float) -> bool:
    """Whether a device lets a value through to the model."""
    if np.isnan(value):
        return plan.input.channels[channel].missing == "allowed"
    largest = float(np.finfo(np.float32).max)
    low, high = plan.input.channels[channel].limits or (-largest, largest)
    if plan.input.channels[channel].categories and value != np.rint(value):
        return False
    with np.errstate(over="ignore"):
        return bool(np.float32(low) <= np.float32(value) <= np.float32(high))


def _frames(windows: Floats, wanted: Input) -> tuple[Floats, tuple[Point, ...]]:
    """Frames of one value: dark, bright, the ends of the recorded range and of the range that a device accepts."""
    low, high = limits_of(wanted)
    values: dict[float, Kind] = {0.0: "sentinel", float(windows.min()): "beyond the data",
                                 float(windows.max()): "beyond the data"}  # fmt: skip
    if np.dtype(wanted.dtype).itemsize < 4:
        limits = np.iinfo(wanted.dtype)
        low, high = max(low, limits.min), min(high, limits.max)
    if wanted.dtype != "float32" or wanted.range is not None:
        values |= {low: "end of the range", high: "end of the range"}
    values = {value: kind for value, kind in values.items() if low <= value <= high}
    rows = np.stack([np.full(windows.shape[1:], value, dtype=np.float32) for value in values])
    return rows, tuple(Point(None, value, kind) for value, kind in values.items())


def _thresholds(model: onnx.ModelProto, rng: np.random.Generator, most: int) -> Iterator[tuple[int, np.float32]]:
    """Columns of the flat window, with values at, below and above the thresholds of trees."""
    makers = {output: node for node in model.graph.node for output in node.output}
    pairs: list[NDArray[Any]] = []
    for node in model.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        name = node.input[0]
        while name in makers and makers[name].op_type in _THROUGH:
            name = makers[name].input[0]
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if name != INPUT_NAME or "nodes_values" not in given:
            continue
        inner = np.array([mode != b"LEAF" for mode in given["nodes_modes"]])
        features, values = np.array(given["nodes_featureids"])[inner], np.array(given["nodes_values"])[inner]
        pairs.append(np.stack([features, values], axis=1))
    if not pairs:
        return
    every = np.unique(np.concatenate(pairs).astype(np.float64), axis=0)
    every = every[np.isfinite(every[:, 1])]
    for row in rng.permutation(len(every))[: most // 3]:
        value = np.float32(every[row, 1])
        for near in (value, np.nextafter(value, np.float32(-np.inf)), np.nextafter(value, np.float32(np.inf))):
            if np.isfinite(near):
                yield int(every[row, 0]), near


def _answers(rows: Floats, start: int, ask: Ask, refused: list[tuple[int, str]]) -> Iterator[Answer]:
    """Call the source, with halves down to single rows where it refuses some."""
    if not len(rows):
        return
    try:
        answer = ask(rows)
    except Exception as error:  # noqa: BLE001 - any framework may refuse a value in its own way
        if len(rows) == 1:
            text = str(error).strip().splitlines()
            refused.append((start, text[0] if text else type(error).__name__))
            return
        middle = len(rows) // 2
        yield from _answers(rows[:middle], start, ask, refused)
        yield from _answers(rows[middle:], start + middle, ask, refused)
    else:
        yield answer


def _finite_rows(answer: Answer) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] | None = None
    for part in answer.tensors().values():
        rows = np.isfinite(part.reshape(len(part), -1)).all(axis=1)
        good = rows if good is None else good & rows
    assert good is not None
    return good
