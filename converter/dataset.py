"""Captures or recordings of devices -> one `.npz` for training: `x`, `y`, `group`, and the origin of each row.

`edge-convert build --data DATA.npz` reads it directly, other programs by `numpy.load`. It has no duplicate rows.
Captures give windows `[n, length, channels]`; recordings give readings `[n, channels]`, which `build` cuts into windows
within each `group`. The two are not mixed, since windows cannot be separated into readings again.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.captured import MergedWindow, document, groups_of, merge
from converter.labelling.segments import RecordedReadings, read_recording
from edge_runtime.errors import CommandError
from edge_runtime.recordings.folder import About, is_recording, read_about
from edge_runtime.system.durable import replace_file


class MergedRows(NamedTuple):
    """Rows with a summary and notes.

    Attributes:
        arrays: the arrays of the file, by name.
        summary: one line.
        notes: a sentence for each unusual finding.
    """

    arrays: dict[str, NDArray[Any]]
    summary: str
    notes: list[str]


def merged_table(folders: Sequence[Path], *, model: str | None, everything: bool) -> MergedRows:
    """Merge folders into one table.

    Args:
        folders: all of captures, or all of recordings.
        model: of captures, only those of this model.
        everything: include rows without a label, and leave out `y`.

    Raises:
        CommandError: they cannot be read, do not match, or are empty.
    """
    for folder in folders:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "none"
            raise CommandError(f"{folder}: expected a folder of captures or a recording, found {found}")
    recordings = [folder for folder in folders if is_recording(folder)]
    if not recordings:
        return _of_captures(folders, model, everything=everything)
    others = [folder for folder in folders if folder not in recordings]
    if others:
        raise CommandError(
            f"{others[0]}: expected a recording as {recordings[0]} is one, found none: make a file of each kind"
        )
    return _of_recordings(recordings, everything=everything)


def write(path: Path, table: MergedRows) -> None:
    """Write the file atomically.

    Raises:
        CommandError: it cannot be written.
    """
    if path.suffix.lower() != ".npz":
        raise CommandError(f"{path}: expected a name that ends in .npz")
    memory = io.BytesIO()
    np.savez_compressed(memory, **table.arrays)  # type: ignore[arg-type]
    try:
        replace_file(path, memory.getvalue())
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error


# --- captures ---------------------------------------------------------------------------------------------------------


def _of_captures(folders: Sequence[Path], model: str | None, *, everything: bool) -> MergedRows:
    merged = merge(folders, model)
    if not merged.windows:
        raise CommandError(f"{folders[0]}: expected captures{f' of model {model}' if model else ''}, found none")
    labelled = [each for each in merged.windows if each.is_labelled]
    windows = merged.windows if everything or not labelled else labelled
    if len(windows) < len(merged.windows):
        merged.counts["without a label"] += len(merged.windows) - len(windows)
    arrays = _columns(windows)
    truth = None
    if not everything and labelled:
        truth = arrays["y"] = _truth(windows)
    first = windows[0].facts
    size = " x ".join(map(str, first.shape))
    devices = len({each.facts.device for each in windows})
    sentences = [f"{len(windows)} windows of {size} from {devices} device{'s' * (devices > 1)}", _spread(truth)]
    return MergedRows(arrays, _summary(sentences, merged.counts), merged.notes)


def _columns(windows: Sequence[MergedWindow]) -> dict[str, NDArray[Any]]:
    facts = windows[0].facts
    return {
        "x": np.stack([each.numbers for each in windows]),
        "group": np.array(groups_of(windows)),
        "channels": np.array([channel.name for channel in facts.channels]),
        "id": np.array([each.entry.id for each in windows]),
        "device": np.array([each.facts.device for each in windows]),
        "model": np.array([each.facts.model for each in windows]),
        "version": np.array([each.facts.version for each in windows]),
        "digest": np.array([each.facts.digest for each in windows]),
        "key": np.array([each.entry.key or "" for each in windows]),
        "time": np.array([each.entry.time for each in windows]),
        "predicted": np.array([each.entry.label or "" for each in windows]),
        "answer": np.array([document(each).decode() for each in windows]),
        "reasons": np.array([",".join(each.entry.reasons) for each in windows]),
        "folder": np.array([str(each.place.parent) for each in windows]),
    }


def _truth(windows: Sequence[MergedWindow]) -> NDArray[Any]:
    names = windows[0].facts.value_names
    if not names:
        return np.array([each.label for each in windows])
    try:
        numbers = [[each.values[name] for name in names] for each in windows]
    except KeyError as error:
        raise CommandError(f"expected a number for each of {', '.join(names)}, found none for {error}") from error
    return np.array(numbers, np.float64)


# --- recordings -------------------------------------------------------------------------------------------------------


def _of_recordings(folders: Sequence[Path], *, everything: bool) -> MergedRows:
    abouts = [read_about(folder) for folder in folders]
    first = abouts[0]
    for folder, about in zip(folders, abouts, strict=True):
        if about.channels != first.channels:
            raise CommandError(
                f"{folder}: expected the channels of {folders[0]}, {_names(first)}, found {_names(about)}: "
                "their numbers mean different things: make a file of each"
            )
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    parts: list[dict[str, NDArray[Any]]] = []
    for folder, about in zip(folders, abouts, strict=True):
        found = read_recording(folder)
        digest = hashlib.sha256(found.text).digest()
        if digest in seen:
            counts["doubles"] += len(found.values)
            continue
        seen.add(digest)
        parts.append(_readings(folder, about, found))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    has_label = whole["y"] != ""
    if everything or not has_label.any():
        del whole["y"]
    else:
        counts["without a label"] += int((~has_label).sum())
        whole = {name: column[has_label] for name, column in whole.items()}
    if not len(whole["x"]):
        raise CommandError(f"{folders[0]}: expected readings, found none")
    rates = sorted({about.rate_hz for about in abouts if about.rate_hz is not None})
    notes = []
    if rates and rates[-1] > 1.1 * rates[0]:
        notes.append(f"the recordings have rates from {rates[0]:g} to {rates[-1]:g} readings a second: are they alike?")
    whole["channels"] = np.array([channel.name for channel in first.channels])
    sentences = [f"{len(whole['x'])} readings of {len(first.channels)} channels", _spread(whole.get("y"))]
    return MergedRows(whole, _summary(sentences, counts), notes)


def _readings(folder: Path, about: About, found: RecordedReadings) -> dict[str, NDArray[Any]]:
    """The readings of one recording, a row each."""
    count = len(found.values)
    streams = zip(found.sessions.tolist(), found.keys.tolist(), strict=True)
    return {
        "x": found.values,
        "y": found.labels,
        "group": np.array([f"{folder}/{session}/{key}" for session, key in streams], np.str_),
        "device": np.full(count, about.device),
        "source": np.full(count, about.source),
        "key": found.keys,
        "time": found.times,
        "folder": np.full(count, str(folder)),
    }


def _names(about: About) -> str:
    return ", ".join(f"{each.name} ({each.unit})" if each.unit else each.name for each in about.channels)


def _spread(truth: NDArray[Any] | None) -> str:
    """The number of rows of each label."""
    if truth is None:
        return "no label"
    if truth.dtype.kind != "U":
        return f"{truth.shape[1]} numbers each"
    names, counts = np.unique(truth, return_counts=True)
    return ", ".join(f"{count} {name}" for name, count in zip(names.tolist(), counts.tolist(), strict=True))


def _summary(parts: Sequence[str], counts: Counter[str]) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return "; ".join([*parts, *([f"left out: {left_out}"] if left_out else [])])
