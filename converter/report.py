"""The output of `build`: the table on the terminal, and on request a page with the full evidence.

The page is one file of HTML and inline SVG without scripts and external links, so that it can be mailed and archived.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter import plots
from converter.assessment import Judged, assess
from converter.evaluate import Judgement, Truth
from converter.layers import Layer, worst_of
from converter.load.source import Answer
from converter.named_answers import worth
from converter.session import Speed, processor
from edge_runtime.errors import CommandError
from edge_runtime.system.durable import replace_file

if TYPE_CHECKING:
    from converter.graph.shrink import Saving
    from converter.plan import BundlePlan
    from converter.search import Bench

_MOST_LAYERS = 40
_MOST_CLASSES = 40
_MOST_COLUMNS = 8  # columns of a table that fits every screen except a phone's
_FEW_COLUMNS = 4  # columns of a table that fits a phone's too
_LEAST_ROWS = 5  # with fewer rows a reliability curve has no point


@dataclass(frozen=True, slots=True)
class FormRow:
    """One form of the model in the table."""

    name: str
    size: int | None
    judgement: Judgement
    kept: bool = False
    speed: Speed | None = None


def table(rows: Sequence[FormRow], metric: str) -> str:
    """The forms of a model, a line each."""
    head = ("", "model", "bytes", metric, "drop", "differing labels", "largest score difference", "us here", "us CPU")
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
            "-" if row.speed is None else f"{row.speed.wall_us:.0f}",
            "-" if row.speed is None else f"{row.speed.cpu_us:.0f}",
        )
        for index, row in enumerate(rows)
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    ]
    return "\n".join((lines[0], "-" * max(len(line) for line in lines), *lines[1:]))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Proof:
    """The content of the page. `answers`, `layers` and `kept` refer to the forms: `rows` without the first.

    Attributes:
        model: the name of the source file, without its folder, since the page may be shared.
        plan: the bundle's facts.
        metric: its name.
        rows: the source, and every form that was tried.
        bench: the evaluation rows, and the truth.
        answers: of every form.
        kept: the index of the kept form, or None.
        reason: why it was kept.
        max_drop: the loss of the metric that was allowed.
        savings: the removed parts of the graph.
        layers: for every form, the error of each of its layers.
        notes: sentences about the target device.
    """

    model: str
    plan: "BundlePlan"
    metric: str
    rows: list[FormRow]
    bench: "Bench"
    answers: list[Answer]
    kept: int | None
    reason: str
    max_drop: float
    savings: "Sequence[Saving]"
    layers: "list[tuple[Layer, ...]]"
    notes: Sequence[str]


def _stacked(kind: str, width: str) -> str:
    """Below a width, a table of this kind shows each row as pairs of column name and cell."""
    return f"""@media (max-width: {width}) {{
table.{kind}, .{kind} tbody {{ display: block }} .{kind} tr:first-child {{ display: none }}
.{kind} tr {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); column-gap: 1.5rem;
  border-top: 2px solid var(--rule); padding: .4rem .3rem }}
.{kind} td {{ display: flex; justify-content: space-between; border: 0; padding: .1rem .3rem; white-space: normal }}
.{kind} td:empty {{ display: none }} .{kind} tr + tr td {{ border: 0 }}
.{kind} td::before {{ content: attr(data-of); color: var(--soft); font-weight: 400; padding-right: 1rem }}
.{kind} td:first-child {{ grid-column: 1 / -1; font-weight: 600 }} .{kind} td:first-child::before {{ content: none }} }}
"""


_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5a636e; --rule: #c8ced6; --paper: #fff; --mark: #e4f1e6;
  --good: #2f7d43; --bad: #b3261e; --open: #a06a00;
  --cell: #1b6ca8; --c0: #5d6570; --c1: #1b6ca8; --c2: #b3541e; --c3: #2f7d43; --c4: #7b4397; --c5: #a61e4d;
  --c6: #6f6a00; --c7: #0f6f6f }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ec; --soft: #9aa5b1; --rule: #434b55; --paper: #15181c;
  --mark: #1d3324; --good: #6cc683; --bad: #ff8a80; --open: #e0b050;
  --cell: #3f8fcb; --c0: #a3acb8; --c1: #62aee6; --c2: #f0935a; --c3: #6cc683; --c4: #c08fe0;
  --c5: #f0739d; --c6: #cfc74a; --c7: #4fc4c4 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper) }
.verdict { font-size: 1.15rem; border-left: .4rem solid var(--rule); padding: .5rem .9rem; margin: 1rem 0 }
.verdict.good { border-color: var(--good) } .verdict.bad { border-color: var(--bad); font-weight: 600 }
.verdict.open { border-color: var(--open) }
h2 { margin-top: 2.2rem } .wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .4rem; text-align: right }
td { white-space: nowrap }
th { border-bottom: 2px solid var(--rule); font-weight: 600; font-size: 13px; line-height: 1.25 }
tr + tr td { border-top: 1px solid var(--rule) }
td:first-child, th:first-child { text-align: left }
tr.kept { background: var(--mark); font-weight: 600 }
figure { display: inline-block; margin: 1rem 1.5rem 1rem 0; vertical-align: top; max-width: 100% }
svg { max-width: 100%; height: auto } figcaption, .small { font-size: 13px; color: var(--soft); max-width: 28rem }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) } svg text.name { font-weight: 700; fill: var(--ink) }
svg text.bright { fill: #fff } .axis { fill: none; stroke: var(--rule) }
.grid { stroke: var(--rule); stroke-opacity: .6 }
.limit { fill: none; stroke: var(--soft); stroke-dasharray: 4 4 }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.cell { fill: var(--cell); stroke: var(--rule) } .dot { stroke: none } .faint { opacity: .45; stroke: none }
svg .curve { fill: none; stroke-width: 1.8 }
figure { overflow-x: auto } svg.broad { max-width: none }
@media (max-width: 44rem) { body { margin: 1rem auto } figure { margin: 1rem 0 } svg text { font-size: 14px }
  svg.broad text { font-size: 11px } }
"""
    + _stacked("many", "78rem")
    + _stacked("some", "44rem")
    + "".join(f".c{i} {{ fill: var(--c{i}); stroke: var(--c{i}) }} " for i in range(plots.COLOURS))
)


def write_page(path: Path, proof: Proof) -> None:
    """Write the page atomically.

    Raises:
        CommandError: it cannot be written.
    """
    parts = [_heading(proof), _table(proof), _scatter(proof), _differences(proof), _layers(proof)]
    if proof.plan.task == "classification":
        parts += [_per_class(proof), _confusions(proof), _reliability(proof)]
    elif proof.plan.task == "multilabel":
        parts.append(_per_class(proof))
    elif proof.plan.task == "regression":
        parts.append(_values(proof))
    elif proof.plan.task == "anomaly":
        parts.append(_scores(proof))
    parts += [_left_out(proof), _machine()]
    title = html.escape(f"{proof.plan.name} {proof.plan.version}")
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    try:
        replace_file(path, page.encode())
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error


def _heading(proof: Proof) -> str:
    plan, bench = proof.plan, proof.bench
    rows = f"{len(bench.evaluation):,} rows judge"
    if bench.calibration is not bench.evaluation:
        rows += f", {len(bench.calibration):,} others calibrated"
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in proof.notes)
    assessed = assess(_judged(proof))
    return (
        f"<h1>{html.escape(plan.name)} {html.escape(plan.version)}</h1>"
        f'<p class="verdict {assessed.kind}">{html.escape(assessed.sentence)}</p>'
        f"<p>{plan.task}, from {html.escape(proof.model)}; window {' × '.join(map(str, plan.input.tensor_shape))}; "  # noqa: RUF001
        f"{rows}.</p><p>Kept is <strong>{html.escape(proof.reason)}</strong>.</p>{notes}"
    )


def _judged(proof: Proof) -> Judged:
    plan, kept = proof.plan, proof.kept
    row = proof.rows[0 if kept is None else kept + 1]
    return Judged(
        task=plan.task,
        truth=proof.bench.truth,
        answer=None if kept is None else proof.answers[kept],
        form=proof.reason if kept is None else row.name,
        metric=proof.metric,
        source=proof.rows[0].judgement.metric,
        kept=row.judgement.metric,
        max_drop=proof.max_drop,
        labels=plan.labels,
        targets=[(target.name, target.unit) for target in plan.targets],
        threshold=plan.threshold,
    )


def _table(proof: Proof) -> str:
    head = ("form", "in plots", "bytes", proof.metric, "drop", "differing labels", "difference, median",
            "difference, 90 %", "difference, 99 %", "largest difference", "µs here", "µs CPU")  # fmt: skip
    source = proof.rows[0].judgement.metric
    lines = []
    for index, row in enumerate(proof.rows):
        seen = row.judgement
        cells = [row.name, plots.letter(index - 1) if index else "", "" if row.size is None else f"{row.size:,}"]
        cells.append(f"{seen.metric:.4f}")
        if index:
            cells += [f"{source - seen.metric:+.4f}", str(seen.differing)]
            cells += [f"{value:.1e}" for value in (*seen.quantiles, seen.difference)]
        if row.speed is not None:
            cells += [f"{row.speed.wall_us:.0f}", f"{row.speed.cpu_us:.0f}"]
        lines.append((cells, row.kept))
    return f"<h2>Every form on the same rows</h2>{_grid(head, lines)}"


def _grid(head: Sequence[str], lines: Sequence[tuple[Sequence[str], bool]]) -> str:
    """A table; on a narrow screen each row is a list of column names and cells."""
    rows = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
    for cells, kept in lines:
        inside = "".join(
            f'<td data-of="{html.escape(name)}">{html.escape(cell)}</td>' if cell else "<td></td>"
            for name, cell in zip(head, cells, strict=False)
        )
        rows.append(f'<tr class="kept">{inside}</tr>' if kept else f"<tr>{inside}</tr>")
    size = "many" if len(head) > _MOST_COLUMNS else "some" if len(head) > _FEW_COLUMNS else "few"
    return f'<div class="wide"><table class="{size}">{"".join(rows)}</table></div>'


def _scatter(proof: Proof) -> str:
    forms = proof.rows[1:]
    metrics = [row.judgement.metric for row in forms]
    limit = proof.rows[0].judgement.metric - proof.max_drop
    sizes = [float(row.size or 1) for row in forms]
    times = [row.speed.wall_us if row.speed else 1.0 for row in forms]
    return (
        "<h2>What size and time buy</h2>"
        + plots.points(sizes, metrics, "bytes", proof.metric, limit=limit, kept=proof.kept)
        + plots.points(times, metrics, "µs a prediction, here", proof.metric, limit=limit, kept=proof.kept)
    )


def _differences(proof: Proof) -> str:
    gaps = [_gap(answer, proof.bench.expected) for answer in proof.answers]
    return f"<h2>How far answers move</h2>{plots.shares(gaps)}"


def _layers(proof: Proof) -> str:
    """The error of every layer; of a large graph only the least exact layers of the kept form."""
    forms = [
        (index, {layer.name: layer.sqnr_db for layer in found}) for index, found in enumerate(proof.layers) if found
    ]
    if not forms:
        return ""
    longest = max((found for found in proof.layers if found), key=len)
    operators = {layer.name: layer.operator for found in proof.layers for layer in found}
    names = [layer.name for layer in longest]
    note = ""
    if len(names) > _MOST_LAYERS:
        judged = proof.layers[proof.kept] if proof.kept else longest
        worst = {layer.name for layer in worst_of(judged or longest, _MOST_LAYERS)}
        note = f'<p class="small">The {_MOST_LAYERS} least exact of {len(names)} layers.</p>'
        names = [name for name in names if name in worst]
    shown = {name: f"{name} {operators[name]}" for name in names}
    renamed = [
        (index, {shown[name]: value for name, value in values.items() if name in shown}) for index, values in forms
    ]
    return f"<h2>Error by layer</h2>{note}{plots.layers(list(shown.values()), renamed, proof.kept)}"


def _gap(answer: Answer, expected: Answer) -> NDArray[np.float64]:
    if answer.named is not None:
        return worth(answer, expected, "tensor" if "boxes" not in answer.named else "detection")[2]
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


def _shown(proof: Proof) -> list[tuple[int, str, Answer]]:
    """The source, the float32 form, and the form that was kept, each with its colour."""
    shown = [(plots.COLOURS - 1, "source", proof.bench.expected), (0, proof.rows[1].name, proof.answers[0])]
    if proof.kept:
        shown.append((proof.kept, proof.rows[proof.kept + 1].name, proof.answers[proof.kept]))
    return shown


def _per_class(proof: Proof) -> str:
    """Recall and precision of each class, or of each label of a multi-label model."""
    word = "label" if proof.plan.task == "multilabel" else "class"
    right = _marked(proof, proof.bench.truth if proof.bench.truth.is_known else proof.bench.expected)
    head = [word, "rows"]
    for _, name, _ in _shown(proof):
        head += [f"{name}: recall", "precision"]
    lines = []
    for index, label in enumerate(proof.plan.labels):
        there = right[:, index]
        cells = [label, str(int(there.sum()))]
        for *_, answer in _shown(proof):
            predicted = _marked(proof, answer)[:, index]
            cells += [
                _share((predicted & there).sum(), there.sum()),
                _share((predicted & there).sum(), predicted.sum()),
            ]
        lines.append((cells, False))
    return f"<h2>{word.capitalize()} by {word}</h2>{_grid(head, lines)}"


def _marked(proof: Proof, predicted: Answer | Truth) -> NDArray[np.bool_]:
    """For each row and label, whether the label is present."""
    if predicted.labels is not None:
        return np.asarray(predicted.labels == 1)
    assert predicted.label is not None
    return np.asarray(predicted.label[:, None] == np.arange(len(proof.plan.labels)))


def _share(part: Any, whole: Any) -> str:
    return f"{float(part) / float(whole):.3f}" if whole else "-"


def _confusions(proof: Proof) -> str:
    right, count = _right(proof), len(proof.plan.labels)
    if count > _MOST_CLASSES:
        return f"<h2>Confusion</h2><p>{count} classes are too many to draw; the table above has them.</p>"
    figures = []
    for _, name, answer in _shown(proof):
        matrix = np.zeros((count, count), dtype=np.int64)
        np.add.at(matrix, (right, np.asarray(answer.label)), 1)
        figures.append(plots.confusion(matrix, proof.plan.labels, name))
    return f"<h2>Confusion</h2>{''.join(figures)}"


def _reliability(proof: Proof) -> str:
    """The reliability of scores: whether a score of 0.8 is right in 8 of 10 rows."""
    right, curves = _right(proof), []
    for index, name, answer in _shown(proof):
        if answer.scores is None:
            continue
        best, hit = answer.scores.max(axis=1), answer.scores.argmax(axis=1) == right
        bins = np.minimum((best * 10).astype(np.int64), 9)
        dots = [
            (float(best[bins == each].mean()), float(hit[bins == each].mean()), int((bins == each).sum()))
            for each in range(10)
            if (bins == each).sum() >= _LEAST_ROWS
        ]
        curves.append((index, name, dots))
    return f"<h2>Reliability</h2>{plots.reliability(curves)}"


def _values(proof: Proof) -> str:
    """Predicted over true values, a plot for each target and form; the first four targets."""
    truth = proof.bench.truth.value
    right = truth if truth is not None else np.asarray(proof.bench.expected.value, dtype=np.float64)
    figures = [
        plots.against(
            right[:, column], np.asarray(answer.value, dtype=np.float64)[:, column], f"{target.name}, {name}", index
        )
        for column, target in enumerate(proof.plan.targets[:4])
        for index, name, answer in _shown(proof)
    ]
    return f"<h2>Predicted and true</h2>{''.join(figures)}"


def _scores(proof: Proof) -> str:
    groups = [(index, name, np.asarray(answer.score, dtype=np.float64)) for index, name, answer in _shown(proof)]
    return f"<h2>Scores and threshold</h2>{plots.histogram(groups, proof.plan.threshold)}"


def _left_out(proof: Proof) -> str:
    if not proof.savings:
        return ""
    lines = [([saving.what, f"{saving.count:,}", f"{saving.bytes:,}"], False) for saving in proof.savings]
    lines.append((["together", "", f"{sum(saving.bytes for saving in proof.savings):,}"], True))
    return f"<h2>Left out without changing an answer</h2>{_grid(('what', 'count', 'bytes'), lines)}"


def _machine() -> str:
    import onnxruntime  # noqa: PLC0415 - heavy

    return (
        '<p class="small">Times: one prediction at batch 1 on one thread of the machine that converted '
        f"({html.escape(processor())}, onnxruntime {onnxruntime.__version__}): the median, and the mean of the "
        "processor time. They compare forms with each other and say little about a device.</p>"
    )
