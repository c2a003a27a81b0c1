"""How right the models of a fleet are: the documents of `edge/{device}/accuracy/{model}`, each and in sum. Pure.

Confusion matrices are added up, so the accuracy of a model over all devices is that of all judged windows; no reading
leaves a device. Each version of a model has its own sum. Weak point: an offline device counts with its retained
document, which may be old.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from edge_runtime.fleet.overview import OverviewRow
from edge_runtime.fleet.same_drift import same_drift
from edge_runtime.truth.figures import CELLS, TruthSums, summed

HEADER = ("DEVICE", "MODEL", "VERSION", "N", "RIGHT", "95 %", "ESTIMATED", "UNMATCHED", "DRIFT")
_DRIFT = {"alarm": 2, "watch": 1, "ok": 0}  # the worst one counts


Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class TargetErrors(msgspec.Struct, frozen=True):
    """The errors of one target of a regression."""

    mae: float
    bias: float = 0.0


class AccuracyDocument(msgspec.Struct, frozen=True):
    """A device's document of one model, with the members that are used here."""

    version: str = ""
    n: Number = 0
    accuracy: Share | None = None
    interval: tuple[Share, Share] | None = None
    confusion: dict[str, dict[str, Number]] = {}
    errors: dict[str, TargetErrors] = {}
    labels: dict[str, dict[str, Number]] = {}
    right: Number = 0
    withheld: Number = 0
    estimated: Share | None = None
    estimated_over: Number = 0
    unmatched: dict[str, Number] = {}


def read_documents(found: Mapping[str, Any]) -> dict[str, AccuracyDocument]:
    """The documents of one device by model; documents of other programs are left out."""
    documents = {}
    for model, document in found.items():
        try:
            read = msgspec.convert(document, AccuracyDocument)
        except msgspec.ValidationError:
            continue
        if read.right <= read.n:
            documents[model] = read
    return documents


def in_sum(rows: Sequence[OverviewRow]) -> list[dict[str, Any]]:
    """Each model and version over all devices with a document, with the devices on which its input drifts."""
    parts: dict[tuple[str, str], list[tuple[OverviewRow, AccuracyDocument]]] = {}
    for row in rows:
        documents = read_documents(row.accuracy)
        for model, document in documents.items():
            parts.setdefault((model, document.version), []).append((row, document))
        for model in row.drift.keys() - documents.keys():
            parts.setdefault((model, _version(row, model)), []).append((row, AccuracyDocument()))
    return [_summed(*name, found) for name, found in sorted(parts.items())]


def _summed(model: str, version: str, found: Sequence[tuple[OverviewRow, AccuracyDocument]]) -> dict[str, Any]:
    sums = summed(
        [
            TruthSums(each.n, each.confusion, msgspec.to_builtins(each.errors), each.labels, each.right)
            for _, each in found
        ]
    )
    over = sum(each.estimated_over for _, each in found if each.estimated is not None)
    promised = sum((each.estimated or 0.0) * each.estimated_over for _, each in found)
    unmatched: Counter[str] = Counter()
    states: dict[str, list[str]] = {}
    for row, each in found:
        unmatched.update(each.unmatched)
        state = row.drift.get(model, {}).get("state")
        if state is not None:
            states.setdefault(str(state), []).append(row.name)
    return {
        "model": model,
        "version": version,
        "devices": len(found),
        **sums,
        "withheld": sum(each.withheld for _, each in found),
        "estimated": float(f"{promised / over:.4g}") if over else None,
        "estimated_over": over,
        "unmatched": dict(unmatched),
        "drift": states,
        "same_drift": same_drift([(row.name, row.drift[model]) for row, _ in found if model in row.drift]),
    }


def lines_of(rows: Sequence[OverviewRow]) -> list[list[str]]:
    """The table: a line for each device and model, and one for each model over all devices."""
    lines = []
    for row in rows:
        documents = read_documents(row.accuracy)
        models = sorted(documents.keys() | row.drift.keys())
        for model in models:
            document = documents.get(model, AccuracyDocument(version=_version(row, model)))
            drift = row.drift.get(model, {})
            lines.append(_line(row.name, model, msgspec.to_builtins(document), _words(drift)))
        if not models:
            lines.append([row.name, *[""] * (len(HEADER) - 2), row.why or "it tells nothing of truth or drift"])
    for total in in_sum(rows):
        drift = ", ".join(f"{len(names)} {state}" for state, names in sorted(total["drift"].items(), key=_rank))
        lines.append(_line(f"{total['devices']} devices", total["model"], total, drift))
    return lines


def confusion_lines(total: Mapping[str, Any]) -> list[str]:
    """The confusion of one model over all devices, or of each of its labels; nothing for a regression."""
    if total.get("hamming") is not None:
        return _label_lines(total)
    confusion: dict[str, dict[str, int]] = total["confusion"]
    names = sorted(confusion.keys() | {predicted for row in confusion.values() for predicted in row})
    if not names:
        return []
    width = max(len(name) for name in names)
    cells = max(width, 7)
    return [
        f"{total['model']} {total['version']}: a row is the truth, a column the prediction",
        " " * width + "".join(f"  {name:>{cells}}" for name in names),
        *(
            f"{name:{width}}"
            + "".join(f"  {confusion.get(name, {}).get(predicted, 0):>{cells}}" for predicted in names)
            for name in names
        ),
    ]


def _label_lines(total: Mapping[str, Any]) -> list[str]:
    labels: dict[str, dict[str, int]] = total["labels"]
    width = max(len(name) for name in labels)
    return [
        f"{total['model']} {total['version']}: {100 * total['hamming']:.1f} % of all labels are wrong",
        " " * width + "".join(f"  {cell:>7}" for cell in CELLS),
        *(f"{name:{width}}" + "".join(f"  {row.get(cell, 0):>7}" for cell in CELLS) for name, row in labels.items()),
    ]


def _line(device: str, model: str, document: Mapping[str, Any], drift: str) -> list[str]:
    interval, errors = document["interval"], document.get("errors") or {}
    if errors:
        right, between = "MAE " + ", ".join(f"{name} {each['mae']:.4g}" for name, each in errors.items()), ""
    else:
        right = "" if document["accuracy"] is None else f"{100 * document['accuracy']:.1f} %"
        between = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
    unmatched = ", ".join(f"{count} {reason}" for reason, count in document["unmatched"].items() if count)
    estimated = "" if document["estimated"] is None else f"{100 * document['estimated']:.1f} %"
    return [device, model, document["version"], str(document["n"]), right, between, estimated, unmatched, drift]


def _words(drift: Mapping[str, Any]) -> str:
    state, why = str(drift.get("state", "")), str(drift.get("why") or "")
    return f"{state}: {why}" if why and state != "ok" else state


def _rank(item: tuple[str, list[str]]) -> int:
    return -_DRIFT.get(item[0], 0)


def _version(row: OverviewRow, model: str) -> str:
    return str(row.drift.get(model, {}).get("version", ""))
