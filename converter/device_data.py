"""Folders of a device as a `Dataset` for `build`: captures, and recordings with labels that people added."""

from pathlib import Path

from converter.data import Dataset, by, check_finite, cut_windows
from converter.dataset import merged_table
from edge_runtime.bundle.manifest import Input
from edge_runtime.errors import CommandError


def of_captures(folder: Path, wanted: Input) -> Dataset:
    """The labelled windows of a folder of captures; all of them where none has a label."""
    arrays = merged_table([folder], model=None, everything=False).arrays
    names, expected = arrays["channels"].tolist(), [channel.name for channel in wanted.channels]
    if names != expected or arrays["x"].shape[1:] != wanted.tensor_shape:
        raise CommandError(
            f"{folder}: expected captures of {by(wanted.tensor_shape)} ({', '.join(expected)}), "
            f"found {by(arrays['x'].shape[1:])} ({', '.join(names)})"
        )
    readings = arrays["x"].reshape(-1, wanted.tensor_shape[-1])
    return Dataset(arrays["x"], arrays.get("y"), arrays["group"], readings, overlapping=False, place=str(folder))


def of_labelled_recording(folder: Path, wanted: Input) -> Dataset:
    """The readings of a recording with labels that people added, in windows."""
    arrays = merged_table([folder], model=None, everything=False).arrays
    names = arrays["channels"].tolist()
    missing = [channel.name for channel in wanted.channels if channel.name not in names]
    if missing:
        raise CommandError(f"{folder}: expected a column {missing[0]!r}, found {', '.join(names)}")
    values = arrays["x"][:, [names.index(channel.name) for channel in wanted.channels]]
    check_finite(values, wanted, folder)
    return cut_windows(values, arrays.get("y"), arrays["group"], wanted.window, path=folder)
