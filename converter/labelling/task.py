"""The items to label: the windows of captures, or the segments of a recording, with the possible labels.

A recording is cut, by session and key, into segments of a number of readings, a second by default. The id of a segment
names its position, so that every reader of the recording assigns the label to the same readings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.captured import MergedWindow, merge
from edge_runtime.capture.policy import ANOMALY, NORMAL
from edge_runtime.errors import CommandError
from edge_runtime.recordings.folder import is_recording

MOST_LABELS = 200
MOST_LABEL_CHARACTERS = 200


class LabelItem(NamedTuple):
    """One window or segment.

    Attributes:
        id: of the prediction, the window or the segment.
        about: facts about it, as pairs of a word and a text.
        values: `[readings, channels]`, or a frame.
        label: the truth, where the device received one or the recording has one.
        truth: the same as numbers, of a regression or a multi-label model; empty where they are not known.
    """

    id: str
    about: list[tuple[str, str]]
    values: NDArray[np.float32]
    label: str | None
    truth: dict[str, float]


TaskKind = Literal["one", "several", "numbers"]


class LabelTask(NamedTuple):
    """The content of the page.

    Attributes:
        items: in order of device, key and time.
        channels: the names of the columns; none for frames.
        labels: to choose from; of `numbers` the names of the targets.
        notes: a sentence for each unusual finding.
        kind: `one` label an item, `several` (each is present or not), or `numbers` (one for each target).
    """

    items: list[LabelItem]
    channels: list[str]
    labels: list[str]
    notes: list[str]
    kind: TaskKind = "one"


def label_task(folder: Path, *, model: str | None, labels: Sequence[str], readings: int | None) -> LabelTask:
    """Read a folder.

    Args:
        folder: of captures, or a recording.
        model: of captures, only those of this model.
        labels: to choose from; those of the bundle or the recording when left out.
        readings: of a segment of a recording.

    Raises:
        CommandError: it is neither, or has no labels to choose from.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "none"
        raise CommandError(f"{folder}: expected a folder of captures or a recording, found {found}")
    task = _of_recording(folder, labels, readings) if is_recording(folder) else _of_captures(folder, model, labels)
    if not task.items:
        raise CommandError(f"{folder}: expected something to label, found nothing")
    return task


def _of_captures(folder: Path, model: str | None, labels: Sequence[str]) -> LabelTask:
    merged = merge([folder], model)
    if not merged.windows:
        return LabelTask([], [], [], merged.notes)
    facts = merged.windows[0].facts
    kinds: dict[str, TaskKind] = {"multilabel": "several", "regression": "numbers"}
    kind = kinds.get(facts.task, "one")
    if kind != "one":
        if labels:
            raise CommandError(f"--labels: expected none, since the model names {', '.join(facts.value_names)} itself")
        known = list(facts.value_names)
    elif facts.task == "anomaly":
        known = list(labels or (NORMAL, ANOMALY))
    else:  # versions of a model may have different labels
        known = list(labels or dict.fromkeys(label for each in merged.windows for label in each.facts.labels))
    channels = [f"{each.name} ({each.unit})" if each.unit else each.name for each in facts.channels]
    return LabelTask([_item(each) for each in merged.windows], channels, known, merged.notes, kind)


def _item(window: MergedWindow) -> LabelItem:
    entry, facts = window.entry, window.facts
    scores = entry.answer.get("scores") or entry.answer.get("score") or []
    names = facts.labels if len(scores) == len(facts.labels) else ("score",) * len(scores)
    ranked = sorted(zip(scores, names, strict=True), reverse=True)[:5]
    about = [
        ("device", facts.device),
        ("key", "-" if entry.key is None else entry.key),
        ("time", _moment(entry.time)),
        ("model", f"{facts.model} {facts.version}"),
        ("predicted", entry.label or "-"),
        ("scores", ", ".join(f"{name} {score:.3g}" for score, name in ranked)),
        ("kept for", ", ".join(entry.reasons)),
    ]
    return LabelItem(entry.id, about, window.numbers, window.label, window.values)


def _moment(seconds: float) -> str:
    return str(np.datetime64(round(seconds * 1000), "ms")).replace("T", " ") + " UTC"


def _of_recording(folder: Path, labels: Sequence[str], readings: int | None) -> LabelTask:
    from converter.labelling.segments import read_segments  # noqa: PLC0415 - pyarrow, which captures do not need

    found = read_segments(folder, readings)
    items = [
        LabelItem(
            each.id,
            [("session", str(each.session)), ("key", each.key or "-"), ("time", _moment(each.time))],
            each.values,
            each.label,
            {},
        )
        for each in found.segments
    ]
    known = list(labels) or sorted({each.label for each in items if each.label})
    return LabelTask(items, found.channels, known, [])


def document(item: LabelItem) -> dict[str, Any]:
    """The values of one item for the page; as JSON, NaN is null."""
    return {"rows": item.values.reshape(len(item.values), -1).tolist()}
