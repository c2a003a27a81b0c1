"""Captures of one or many devices -> windows with their labels and their origin, without duplicates.

Two windows are duplicates when id, bundle and values are the same: the folder was fetched twice, or lies in two
folders. A label comes from people (`labels.jsonl`, the last decision in each given folder), else from the truth that
the device received. A window with contradicting labels is left out, counted and named. Captures that differ in model,
channels or window are refused, since their numbers mean different things.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from converter.labelling.decisions import decisions_in
from edge_runtime.capture.entries import BundleFacts, Captured
from edge_runtime.capture.folder import FoundWindow, read_captures
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

BLOCKS = 10  # of the windows of a key: some calibrate, the others evaluate
FEWEST_OF_BLOCK = 4

_Truth = tuple[str | None, dict[str, float]]  # a label, or numbers by name


class MergedWindow(NamedTuple):
    """One window of a merge.

    Attributes:
        entry: the window as the device stored it.
        facts: of its bundle.
        place: the file it was read from.
        label: the true label; None where it is not known yet.
        values: the true values of a regression, by target, or 1 and 0 for each label of a multi-label model; empty
            where they are not known.
    """

    entry: Captured
    facts: BundleFacts
    place: Path
    label: str | None
    values: dict[str, float]

    @property
    def is_labelled(self) -> bool:
        """Whether its truth is known."""
        return self.label is not None or bool(self.values)

    @property
    def numbers(self) -> Floats:
        """The window."""
        return self.entry.window(self.facts)


class Merge(NamedTuple):
    """The windows of several folders.

    Attributes:
        windows: without duplicates, by device, key and time.
        counts: the number of windows left out, by reason.
        notes: a sentence for each unusual finding.
    """

    windows: list[MergedWindow]
    counts: Counter[str]
    notes: list[str]


def merge(folders: Sequence[Path], model: str | None = None) -> Merge:
    """Read folders of captures and merge them.

    Args:
        folders: of one device or of several.
        model: only the captures of this model.

    Raises:
        CommandError: they cannot be read, or do not belong together.
    """
    counts: Counter[str] = Counter()
    notes: list[str] = []
    kept: dict[tuple[str, str, bytes], FoundWindow] = {}
    contents: dict[str, tuple[str, str, bytes]] = {}
    labels_by_id: dict[str, list[_Truth]] = {}
    decided: dict[str, list[_Truth]] = {}
    for folder in folders:
        found = read_captures(folder)
        for path, count in found.damaged.items():
            notes.append(f"{path}: {count} bytes of it are no whole capture, and are left out")
        for window in found.windows:
            if model is not None and window.facts.model != model:
                counts["of other models"] += 1
                continue
            entry = window.entry
            same = (entry.id, window.facts.digest, hashlib.sha256(entry.values).digest())
            if same in kept:
                counts["doubles"] += 1
                continue
            if contents.setdefault(entry.id, same) != same:
                counts["with an id that stands for other values too"] += 1
            kept[same] = window
        for label in found.labels:
            labels_by_id.setdefault(label.id, []).append((label.label, label.values))
        for decision in decisions_in(folder).values():
            if decision.is_truth:
                decided.setdefault(decision.id, []).append((decision.label, decision.values))
    _require_one_kind(list(kept.values()))
    windows = []
    for window in kept.values():
        merged = _labelled(window, decided, labels_by_id)
        if merged is None:
            counts["with contradicting labels"] += 1
            notes.append(f"{window.file}: {window.entry.id}: its labels contradict each other: label it anew")
        else:
            windows.append(merged)
    windows.sort(key=lambda each: (each.facts.device, each.entry.key or "", each.entry.time))
    return Merge(windows, counts, notes)


def groups_of(windows: Sequence[MergedWindow]) -> list[str]:
    """Blocks of time of each device and key, so that neighbours are not split between calibration and evaluation."""
    names: list[str] = []
    of_key: Counter[str] = Counter(_stream(each) for each in windows)
    seen: Counter[str] = Counter()
    for each in windows:
        stream = _stream(each)
        blocks = max(1, min(BLOCKS, of_key[stream] // FEWEST_OF_BLOCK))
        names.append(f"{stream}/{seen[stream] * blocks // of_key[stream]}")
        seen[stream] += 1
    return names


def channels_of(folder: Path) -> tuple[str, ...]:
    """The channels of the captures in a folder, in order."""
    found = read_captures(folder).windows
    return tuple(channel.name for channel in found[0].facts.channels) if found else ()


def _stream(window: MergedWindow) -> str:
    return f"{window.facts.device}/{'-' if window.entry.key is None else window.entry.key}"


def _labelled(
    window: FoundWindow, decided: dict[str, list[_Truth]], labels_by_id: dict[str, list[_Truth]]
) -> MergedWindow | None:
    """The window with its truth, by people before that of devices; None where truths contradict each other."""
    identity = window.entry.id
    truths = decided.get(identity) or labels_by_id.get(identity) or [(None, {})]
    if any(each != truths[0] for each in truths):
        return None
    label, values = truths[0]
    return MergedWindow(window.entry, window.facts, window.file, label, values)


def _require_one_kind(windows: list[FoundWindow]) -> None:
    """Raises CommandError where the windows do not belong together."""
    if not windows:
        return
    models = sorted({each.facts.model for each in windows})
    if len(models) > 1:
        raise CommandError(f"expected captures of one model, found {', '.join(models)}: choose one with --model")
    first = windows[0]
    for each in windows:
        for what, own, other in (
            ("channels", _channels(first.facts), _channels(each.facts)),
            ("windows", list(first.facts.shape), list(each.facts.shape)),
            ("a task", first.facts.task, each.facts.task),
            ("numbers", list(first.facts.value_names), list(each.facts.value_names)),
        ):
            if own != other:
                raise CommandError(
                    f"{each.file}: expected {what} as in {first.file}, {_shown(own)}, found {_shown(other)}: "
                    "their numbers mean different things: make a file of each"
                )


def _channels(facts: BundleFacts) -> list[str]:
    return [f"{each.name} ({each.unit})" if each.unit else each.name for each in facts.channels]


def _shown(found: list[str] | list[int] | str) -> str:
    if isinstance(found, str):
        return found
    separator = ", " if found and isinstance(found[0], str) else " x "
    return separator.join(map(str, found)) or "none"


def document(window: MergedWindow) -> bytes:
    """The answer of the model, as JSON, for the column `answer`."""
    return msgspec.json.encode(window.entry.answer)
