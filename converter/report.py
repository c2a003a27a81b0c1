"""What `build` shows: the table on the terminal, and on request a page that a sceptic can judge by.

The page is one file of HTML and inline SVG without any script or foreign address, so that it can be mailed and kept.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.evaluate import Judgement
from converter.load.source import Answer
from edge_runtime.errors import CommandError

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.search import Bench


@dataclass(frozen=True, slots=True)
class Row:
    """One form of the model in the table."""

    name: str
    size: int | None
    judgement: Judgement
    kept: bool = False
    note: str = ""
    latency_us: float | None = None


def table(rows: Sequence[Row], metric: str) -> str:
    """The forms of a model, a line each."""
    head = ("", "model", "bytes", metric, "drop", "differing labels", "largest score difference", "us here", "")
    source = rows[0].judgement.metric
    body = [
        (
            "*" if row.kept else "",
            row.name,
            "-" if row.size is None else f"{row.size:,}",
            f"{row.judgement.metric:.4f}",
            f"{source - row.judgement.metric:+.4f}" if index else "-",
            str(row.judgement.differing) if index else "-",
            f"{row.judgement.difference:.2e}" if index else "-",
            "-" if row.latency_us is None else f"{row.latency_us:.0f}",
            row.note,
        )
        for index, row in enumerate(rows)
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    left = {0, 1, 8}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    ]
    return "\n".join((lines[0], "-" * max(len(line) for line in lines), *lines[1:]))


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """All that the page shows. `answers` and `kept` speak of the forms, that is of `rows` without the first."""

    model: str
    plan: "Plan"
    metric: str
    rows: list[Row]
    bench: "Bench"
    answers: list[Answer]
    kept: int | None
    reason: str


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; text-align: right }
th { border-bottom: 2px solid #888 } td:first-child, th:first-child { text-align: left }
tr.kept { background: #e8f3e8; font-weight: 600 } figure { display: inline-block; margin: 1rem 1.5rem 1rem 0 }
figcaption { font-size: 13px; color: #555; max-width: 26rem } svg text { font: 11px system-ui, sans-serif }
"""
_COLOURS = ("#777777", "#1b6ca8", "#b3541e", "#3a7d44", "#7b4397", "#a61e4d", "#5f6f0f", "#0f6f6f")


def write_page(path: Path, proof: Proof) -> None:
    """Write the page.

    Raises:
        CommandError: it cannot be written.
    """
    parts = [_heading(proof), _table(proof), _scatter(proof), _errors(proof)]
    if proof.plan.task == "classification":
        parts += [_per_class(proof), _confusions(proof), _reliability(proof)]
    title = html.escape(f"{proof.plan.name} {proof.plan.version}")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error


def _heading(proof: Proof) -> str:
    plan, bench = proof.plan, proof.bench
    rows = f"{len(bench.evaluation):,} rows judge"
    if bench.calibration is not bench.evaluation:
        rows += f", {len(bench.calibration):,} others calibrated"
    return (
        f"<h1>{html.escape(plan.name)} {html.escape(plan.version)}</h1>"
        f"<p>{plan.task}, from {html.escape(proof.model)}; window {' × '.join(map(str, plan.input.tensor_shape))}; "  # noqa: RUF001
        f"{rows}.</p><p><strong>{html.escape(proof.reason)}</strong></p>"
    )


def _table(proof: Proof) -> str:
    head = ("form", "bytes", proof.metric, "drop", "differing labels", "score difference, median", "99 %", "largest",
            "µs here")  # fmt: skip
    source = proof.rows[0].judgement.metric
    lines = []
    for index, row in enumerate(proof.rows):
        seen = row.judgement
        cells = [row.name, "" if row.size is None else f"{row.size:,}", f"{seen.metric:.4f}"]
        if index:
            cells += [f"{source - seen.metric:+.4f}", str(seen.differing), f"{seen.quantiles[0]:.2e}",
                      f"{seen.quantiles[2]:.2e}", f"{seen.difference:.2e}",
                      "" if row.latency_us is None else f"{row.latency_us:.0f}"]  # fmt: skip
        lines.append(_line(cells, kept=row.kept))
    note = (
        "<p>Times were taken on the machine that converted, one thread, batch 1; they say nothing about a device.</p>"
    )
    return f"<h2>Every form on the same rows</h2><table>{_line(head, 'th')}{''.join(lines)}</table>{note}"


def _line(cells: Sequence[str], tag: str = "td", kept: bool = False) -> str:
    inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f'<tr class="kept">{inside}</tr>' if kept else f"<tr>{inside}</tr>"


def _scatter(proof: Proof) -> str:
    forms = proof.rows[1:]
    sizes = [float(row.size or 0) for row in forms]
    times = [row.latency_us or 0.0 for row in forms]
    metrics = [row.judgement.metric for row in forms]
    names = [row.name for row in forms]
    return (
        "<h2>What size and time buy</h2>"
        + _points(sizes, metrics, names, "bytes", proof.metric)
        + _points(times, metrics, names, "µs a prediction, here", proof.metric)
    )


def _points(xs: Sequence[float], ys: Sequence[float], names: Sequence[str], across: str, up: str) -> str:
    x, y = _scale(xs, 50, 400), _scale(ys, 190, 20)
    marks = "".join(
        f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="5" fill="{_COLOURS[i % 8]}"/>'
        f'<text x="{x(a) + 7:.1f}" y="{y(b) + 4 + 12 * (i % 3 - 1):.1f}">{html.escape(name)}</text>'
        for i, (a, b, name) in enumerate(zip(xs, ys, names, strict=True))
    )
    ends = f'<text x="50" y="222">{min(xs):,.0f}</text><text x="380" y="222">{max(xs):,.0f}</text>'
    ends += f'<text x="2" y="194">{min(ys):.4f}</text><text x="2" y="24">{max(ys):.4f}</text>'
    frame = '<path d="M45 15V205H510" fill="none" stroke="#999"/>'
    return _figure(f"{frame}{ends}{marks}", 520, 230, f"{up} over {across}.")


def _scale(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    least, most = min(values), max(values)
    span = (most - least) or 1.0
    return lambda value: low + (value - least) / span * (high - low)


def _figure(inside: str, width: int, height: int, caption: str) -> str:
    svg = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{inside}</svg>'
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _errors(proof: Proof) -> str:
    """How far each form's scores are from the source's: the share of rows below an error."""
    parts = []
    for index, answer in enumerate(proof.answers):
        gap = np.sort(_gap(answer, proof.bench.expected))
        if not len(gap):
            continue
        quantiles = np.linspace(0, 1, 60)
        logs = np.log10(np.maximum(np.quantile(gap, quantiles), 1e-9))
        points = " ".join(
            f"{60 + (log + 9) / 10 * 400:.1f},{195 - q * 170:.1f}" for log, q in zip(logs, quantiles, strict=True)
        )
        name = html.escape(proof.rows[index + 1].name)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_COLOURS[index % 8]}" stroke-width="2"/>'
            f'<text x="480" y="{30 + 15 * index}" fill="{_COLOURS[index % 8]}">{name}</text>'
        )
    ticks = "".join(f'<text x="{50 + 400 * k / 10:.0f}" y="215">1e{k - 9}</text>' for k in range(0, 11, 2))
    frame = '<path d="M60 20V197H470" fill="none" stroke="#999"/><text x="20" y="30">100 %</text>'
    caption = "Share of rows whose largest score difference from the source is below a value."
    return f"<h2>Where errors arise</h2>{_figure(frame + ticks + ''.join(parts), 640, 225, caption)}"


def _gap(answer: Answer, expected: Answer) -> NDArray[np.float64]:
    for name in ("scores", "value", "score"):
        one, other = getattr(answer, name), getattr(expected, name)
        if one is not None and other is not None:
            gap = np.abs(one.astype(np.float64) - other.astype(np.float64)).reshape(len(one), -1)
            return np.asarray(gap.max(axis=1), dtype=np.float64)
    return np.zeros(0)


def _right(proof: Proof) -> NDArray[np.int64]:
    label = proof.bench.truth.label
    right = label if label is not None else proof.bench.expected.label
    assert right is not None
    return right


def _shown(proof: Proof) -> list[tuple[str, Answer]]:
    shown = [("source", proof.bench.expected), ("float32", proof.answers[0])]
    if proof.kept:
        shown.append((proof.rows[proof.kept + 1].name, proof.answers[proof.kept]))
    return shown


def _per_class(proof: Proof) -> str:
    right = _right(proof)
    head = ["class", "rows"]
    for name, _ in _shown(proof):
        head += [f"{name}: recall", "precision"]
    lines = []
    for index, label in enumerate(proof.plan.labels):
        cells = [label, str(int((right == index).sum()))]
        for _, answer in _shown(proof):
            said = np.asarray(answer.label) == index
            hit = said & (right == index)
            cells += [_share(hit.sum(), (right == index).sum()), _share(hit.sum(), said.sum())]
        lines.append(_line(cells))
    return f"<h2>Class by class</h2><table>{_line(head, 'th')}{''.join(lines)}</table>"


def _share(part: Any, whole: Any) -> str:
    return f"{float(part) / float(whole):.3f}" if whole else "-"


def _confusions(proof: Proof) -> str:
    right, count = _right(proof), len(proof.plan.labels)
    if count > 40:
        return ""
    cell = max(14, min(46, 320 // count))
    figures = []
    for name, answer in _shown(proof):
        matrix = np.zeros((count, count), dtype=np.int64)
        np.add.at(matrix, (right, np.asarray(answer.label)), 1)
        most = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        boxes = []
        for i in range(count):
            boxes.append(
                f'<text x="2" y="{20 + i * cell + cell / 2 + 4:.0f}">{html.escape(proof.plan.labels[i][:12])}</text>'
            )
            for j in range(count):
                depth = matrix[i, j] / most[i, 0]
                x, y = 84 + j * cell, 20 + i * cell
                ink = "#fff" if depth > 0.5 else "#222"
                place = f'x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle" fill="{ink}"'
                boxes.append(
                    f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" '
                    f'fill="rgb(27 108 168 / {depth:.3f})" stroke="#ddd"/>'
                )
                if cell > 24 and matrix[i, j]:
                    boxes.append(f"<text {place}>{matrix[i, j]}</text>")
        size = count * cell
        figures.append(_figure("".join(boxes), 90 + size, 26 + size, f"{name}: truth down, prediction across."))
    return f"<h2>Confusion</h2>{''.join(figures)}"


def _reliability(proof: Proof) -> str:
    """Whether a score of 0.8 is right in 8 of 10 rows."""
    right, curves = _right(proof), []
    for index, (name, answer) in enumerate(_shown(proof)):
        if answer.scores is None:
            continue
        best, hit = answer.scores.max(axis=1), answer.scores.argmax(axis=1) == right
        points = []
        for low in np.arange(0.0, 1.0, 0.1):
            rows = (best >= low) & (best < low + 0.1 + (1e-6 if low > 0.85 else 0.0))
            if rows.sum() >= 5:
                points.append(f"{40 + best[rows].mean() * 200:.1f},{220 - hit[rows].mean() * 200:.1f}")
        colour = _COLOURS[index % 8]
        marks = "".join(
            f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3.5" fill="{colour}"/>' for p in points
        )
        curves.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>{marks}'
            f'<text x="250" y="{40 + 16 * index}" fill="{colour}">{html.escape(name)}</text>'
        )
    frame = '<path d="M40 20V220H240M40 220L240 20" fill="none" stroke="#bbb"/><text x="8" y="26">1</text>'
    caption = "Share of right answers over the score of the answer; on the diagonal a score means what it says."
    return f"<h2>Reliability</h2>{_figure(frame + ''.join(curves), 400, 235, caption)}"
