"""Plots as inline SVG, without scripts and external links; colours come from the page's style sheet.

Every function takes plain numbers and returns a `<figure>`. A form of the model has the same colour and letter on the
whole page: `colour(3)` and `letter(3)`.
"""

import html
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

COLOURS = 8
_WIDE, _TALL = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 445, 16, 208

Scale = Callable[[float], float]


def colour(index: int) -> str:
    """The CSS class of a form's colour."""
    return f"c{index % COLOURS}"


def letter(index: int) -> str:
    """The letter of a form in plots."""
    return chr(ord("A") + index) if index < 26 else str(index)


def points(
    xs: Sequence[float],
    ys: Sequence[float],
    across: str,
    up: str,
    *,
    limit: float | None = None,
    kept: int | None = None,
) -> str:
    """A point with a letter for each form; a dashed line at the limit."""
    x, low_x, high_x = _logs(xs)
    low, high = _span([*ys, *([limit] if limit is not None else [])])
    y = _line(low, high, _BOTTOM, _TOP)
    marks = []
    if limit is not None:
        marks.append(f'<path class="limit" d="M{_LEFT} {y(limit):.1f}H{_RIGHT}"/>')
        marks.append(_text(_RIGHT, y(limit) - 4, "at least", "end"))
    for index, (a, b) in enumerate(zip(xs, ys, strict=True)):
        ring = f'<circle class="ring" cx="{x(a):.1f}" cy="{y(b):.1f}" r="9"/>' if index == kept else ""
        marks.append(f'{ring}<circle class="{colour(index)} dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="5"/>')
        near = sum(abs(x(a) - x(c)) < 12 and abs(y(b) - y(d)) < 12 for c, d in zip(xs[:index], ys[:index], strict=True))
        marks.append(_text(x(a) + 10 * near, y(b) - 12, letter(index), "middle", kind="name"))
    ends = _text(_LEFT, 226, f"{low_x:,.0f}") + _text(_RIGHT, 226, f"{high_x:,.0f}", "end")
    ends += _text(_LEFT - 6, _BOTTOM, f"{low:.4f}", "end") + _text(_LEFT - 6, _TOP + 8, f"{high:.4f}", "end")
    return figure(_frame() + ends + "".join(marks), _WIDE, _TALL, f"{up} (up) over {across} (right, logarithmic).")


def shares(gaps: Sequence[NDArray[np.float64]]) -> str:
    """For each form, the share of rows whose largest difference from the source is below a value."""
    least, most = -9.0, 1.0
    x = _line(least, most, _LEFT, _RIGHT)
    lines = []
    for index, gap in enumerate(gaps):
        if not len(gap):
            continue
        quantiles = np.linspace(0.0, 1.0, 60)
        logs = np.log10(np.clip(np.quantile(gap, quantiles), 10.0**least, 10.0**most))
        spots = " ".join(
            f"{x(float(log)):.1f},{_BOTTOM - q * (_BOTTOM - _TOP):.1f}" for log, q in zip(logs, quantiles, strict=True)
        )
        lines.append(f'<polyline class="{colour(index)} curve" points="{spots}"/>')
        middle = _BOTTOM - 0.5 * (_BOTTOM - _TOP) + 20 - 8 * index
        lines.append(_text(x(float(logs[30])) + 5, middle, letter(index), kind="name"))
    ticks = "".join(_text(x(power), 226, f"1e{power}", "middle") for power in range(-9, 2, 2))
    sides = _text(_LEFT - 6, _TOP + 8, "100 %", "end") + _text(_LEFT - 6, _BOTTOM, "0", "end")
    caption = "Share of rows (up) whose largest score difference from the source is below a value (right)."
    return figure(_frame() + ticks + sides + "".join(lines), _WIDE, _TALL, caption)


def layers(names: Sequence[str], forms: Sequence[tuple[int, dict[str, float]]], kept: int | None) -> str:
    """A row for each layer, a dot for each form: the signal-to-error ratio in decibels."""
    known = [value for _, values in forms for value in values.values() if math.isfinite(value)]
    low, high = math.floor(min(known, default=0.0) / 10) * 10, math.ceil(max(known, default=60.0) / 10) * 10
    high = max(high, low + 10)
    side, step, top = 250, 17, 26
    x = _line(low, high, side, 640)
    tall = top + step * len(names) + 8
    parts = []
    for tick in range(low, high + 1, 10):
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top - 4}V{tall - 6}"/>')
        parts.append(_text(x(tick), top - 10, f"{tick} dB", "middle"))
    for row, name in enumerate(names):
        middle = top + step * row + step / 2
        parts.append(_text(side - 10, middle + 4, name if len(name) < 38 else f"…{name[-36:]}", "end"))
        for index, values in forms:
            value = values.get(name)
            if value is not None:
                place = x(min(max(value, low), high))
                ring = f'<circle class="ring" cx="{place:.1f}" cy="{middle:.1f}" r="7"/>' if index == kept else ""
                parts.append(f'{ring}<circle class="{colour(index)} dot" cx="{place:.1f}" cy="{middle:.1f}" r="4"/>')
    caption = (
        "Signal over error of every layer's result, in the order of the graph; 20 dB is an error of a tenth, "
        "40 dB of a hundredth. The form that was kept has a ring."
    )
    return figure("".join(parts), 660, tall, caption)


def confusion(matrix: NDArray[np.int64], labels: Sequence[str], name: str) -> str:
    """Truth down, prediction across; the darker, the larger the share of the row."""
    count = len(labels)
    cell = max(14, min(40, 330 // count))
    most = np.maximum(matrix.sum(axis=1), 1)
    boxes = []
    for i in range(count):
        boxes.append(_text(84, 20 + i * cell + cell / 2 + 4, labels[i][:13], "end"))
        for j in range(count):
            depth, x, y = matrix[i, j] / most[i], 90 + j * cell, 20 + i * cell
            boxes.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{cell}" height="{cell}" fill-opacity="{depth:.3f}"/>'
            )
            if cell > 20 and matrix[i, j]:
                kind = "bright" if depth > 0.5 else ""
                boxes.append(_text(x + cell / 2, y + cell / 2 + 4, str(matrix[i, j]), "middle", kind=kind))
    size = count * cell
    return figure("".join(boxes), 96 + size, 26 + size, f"{name}: truth down, prediction across.")


def reliability(curves: Sequence[tuple[int, str, Sequence[tuple[float, float, int]]]]) -> str:
    """The share of right answers by score; a dot grows with its rows."""
    side = _line(0.0, 1.0, 40, 240)
    up = _line(0.0, 1.0, 220, 20)
    parts = [f'<path class="limit" d="M{side(0)} {up(0)}L{side(1)} {up(1)}"/>']
    for row, (index, name, dots) in enumerate(curves):
        spots = " ".join(f"{side(a):.1f},{up(b):.1f}" for a, b, _ in dots)
        parts.append(f'<polyline class="{colour(index)} curve" points="{spots}"/>')
        total = max(1, sum(count for *_, count in dots))
        for a, b, count in dots:
            size = 2.5 + 4.0 * math.sqrt(count / total)
            parts.append(f'<circle class="{colour(index)} dot" cx="{side(a):.1f}" cy="{up(b):.1f}" r="{size:.1f}"/>')
        parts.append(f'<circle class="{colour(index)} dot" cx="262" cy="{36 + 18 * row}" r="5"/>')
        parts.append(_text(272, 40 + 18 * row, name))
    frame = '<path class="axis" d="M40 20V220H240"/>'
    frame += _text(34, 26, "1", "end") + _text(34, 222, "0", "end") + _text(240, 236, "1", "middle")
    caption = (
        "Share of right answers (up) over the score of the answer (right); on the diagonal a score means what it says."
    )
    return figure(frame + "".join(parts), _WIDE, _TALL, caption)


def against(right: NDArray[np.float64], found: NDArray[np.float64], name: str, index: int) -> str:
    """Predicted values over true ones, a dot a row; at most 600 rows, evenly taken."""
    step = max(1, len(right) // 600)
    right, found = right[::step], found[::step]
    low, high = _span([*right.tolist(), *found.tolist()])
    x, y = _line(low, high, 60, 260), _line(low, high, 220, 20)
    dots = "".join(
        f'<circle class="{colour(index)} faint" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2"/>'
        for a, b in zip(right.tolist(), found.tolist(), strict=True)
    )
    frame = '<path class="axis" d="M60 20V220H260"/><path class="limit" d="M60 220L260 20"/>'
    ends = (
        _text(54, 28, f"{high:.3g}", "end")
        + _text(54, 222, f"{low:.3g}", "end")
        + _text(260, 236, f"{high:.3g}", "end")
    )
    return figure(frame + ends + dots, 290, _TALL, f"{name}: predicted (up) over true (right).")


def histogram(groups: Sequence[tuple[int, str, NDArray[np.float64]]], threshold: float | None) -> str:
    """How scores are spread, a line a form, and the threshold of the alarm."""
    every = np.concatenate([values for *_, values in groups])
    every = every[np.isfinite(every)]
    low, high = _span(
        [float(every.min(initial=0.0)), float(every.max(initial=0.0)), *([threshold] if threshold is not None else [])]
    )
    edges = np.linspace(low, high, 41)
    counts = [np.histogram(values, edges)[0] for *_, values in groups]
    most = max(1, *(int(count.max()) for count in counts))
    x, y = _line(low, high, _LEFT, _RIGHT), _line(0.0, float(most), _BOTTOM, _TOP)
    parts = []
    for (index, name, _), count in zip(groups, counts, strict=True):
        spots = " ".join(
            f"{x(float((a + b) / 2)):.1f},{y(float(n)):.1f}" for a, b, n in zip(edges, edges[1:], count, strict=False)
        )
        parts.append(f'<polyline class="{colour(index)} curve" points="{spots}"/>')
        row = len(parts) // 3  # three parts a form
        parts.append(f'<circle class="{colour(index)} dot" cx="{_RIGHT - 130}" cy="{_TOP + 8 + 18 * row}" r="5"/>')
        parts.append(_text(_RIGHT - 120, _TOP + 12 + 18 * row, name))
    if threshold is not None:
        parts.append(f'<path class="limit" d="M{x(threshold):.1f} {_TOP}V{_BOTTOM}"/>')
        parts.append(_text(x(threshold) + 4, _TOP + 8, "threshold"))
    ends = (
        _text(_LEFT, 226, f"{low:.3g}")
        + _text(_RIGHT, 226, f"{high:.3g}", "end")
        + _text(_LEFT - 6, _TOP + 8, str(most), "end")
    )
    return figure(_frame() + ends + "".join(parts), _WIDE, _TALL, "Rows (up) of a score (right).")


def figure(inside: str, width: float, height: float, caption: str) -> str:
    """A drawing with its caption."""
    escaped = html.escape(caption)
    broad = ' class="broad"' if width > _WIDE else ""  # on a narrow screen it scrolls instead of shrinking
    size = f'{broad} viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    drawing = f'<svg{size} role="img" aria-label="{escaped}">{inside}</svg>'
    return f"<figure>{drawing}<figcaption>{escaped}</figcaption></figure>"


def _frame() -> str:
    return f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _line(least: float, most: float, low: float, high: float) -> Scale:
    span = (most - least) or 1.0
    return lambda value: low + (value - least) / span * (high - low)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis around some values, with a margin."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = (high - low) * 0.06 or max(abs(high) * 0.01, 1e-6)
    return low - margin, high + margin


def _logs(values: Sequence[float]) -> tuple[Scale, float, float]:
    """A logarithmic axis, and its ends."""
    low = max(min(values), 1e-3)
    high = max(low, *values)
    margin = (high / low) ** 0.08 if high > low else 1.1
    low, high = low / margin, high * margin
    inner = _line(math.log(low), math.log(high), _LEFT, _RIGHT)
    return (lambda value: inner(math.log(max(value, 1e-3)))), low, high
