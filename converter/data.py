"""Recorded data -> windows with their truth. No window crosses the border of a group.

`read_data` reads `.npz`, `.csv` and `.parquet`; `split` separates calibration rows from evaluation rows. Every mistake
in the data is one message that names the file, the column and the first bad row. A window's truth is that of its last
reading, because a prediction has the time of its last reading.
"""

import datetime as dt
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from converter.blocks import rate_of
from converter.labelling.decisions import has_decisions
from converter.spec import Spec
from edge_runtime.bundle.manifest import Channel, Input, Window
from edge_runtime.capture.folder import is_captures
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats
from edge_runtime.recordings.folder import is_recording, joined, read_about
from edge_runtime.stream.codecs.columns import CategoryIndex
from edge_runtime.stream.frame_contract import LARGEST_WHOLE

MINIMUM_WINDOWS = 10  # with fewer, one row would be more than ten points of any metric
CALIBRATION_SHARE = 0.3
SESSION = "(session and key)"  # the group of a recording's windows; no device gives a column this name
_BLOCKS = 10  # of a session: some calibrate, the others evaluate


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Windows for calibration or evaluation.

    Attributes:
        windows: float32 `[n, length, channels]`, or `[n, *shape]` of frames.
        truth: one item a window; None where the data has none.
        groups: the recording that each window comes from; None where windows are independent.
        readings: `[m, channels]`, each reading once, for the reference distribution.
        overlapping: whether neighbours share readings, so that they must not be split at random.
        place: the file, for messages.
        reading_groups: the group of each reading, where not all readings follow one another.
        rate_hz: the median rate of the readings; None where the data has no times.
    """

    windows: Floats
    truth: NDArray[Any] | None
    groups: NDArray[Any] | None
    readings: Floats
    overlapping: bool
    place: str
    reading_groups: NDArray[Any] | None = None
    rate_hz: float | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def take(self, rows: NDArray[np.int64]) -> "Dataset":
        """The windows of some rows."""
        return Dataset(
            self.windows[rows],
            None if self.truth is None else self.truth[rows],
            None if self.groups is None else self.groups[rows],
            self.readings,
            self.overlapping,
            self.place,
            self.reading_groups,
            self.rate_hz,
        )


def read_data(path: Path, spec: Spec, wanted: Input) -> Dataset:
    """Read a file of recorded readings or windows.

    Args:
        path: `.npz`, `.csv` or `.parquet`, or a folder that `edge-runtime record` has made.
        spec: says how to read it.
        wanted: the channels and windows, or the frames, of the bundle's input.

    Raises:
        CommandError: it cannot be read, or lacks what the specification names, or holds NaN or too few rows.
    """
    shape = wanted.tensor_shape
    if not path.exists():
        raise CommandError(f"{path}: expected data, found no such file")
    suffix = path.suffix.lower()
    if path.is_dir() and not is_recording(path) and is_captures(path):
        dataset: Dataset = _from_devices().of_captures(path, wanted)
    elif path.is_dir() and spec.data.label is None and has_decisions(path):
        dataset = _in_blocks(_from_devices().of_labelled_recording(path, wanted), wanted.window)
    elif path.is_dir():
        dataset = _in_blocks(_read_table(path, for_recording(path, spec), wanted), wanted.window)
    elif suffix == ".npz":
        dataset = _read_npz(path, wanted, shape)
    elif suffix in (".csv", ".parquet"):
        if wanted.shape is not None:
            raise CommandError(f"{path}: expected .npz for frames, found a table")
        dataset = _read_table(path, spec, wanted)
    else:
        raise CommandError(f"{path}: expected .npz, .csv or .parquet, found {suffix or 'no suffix'}")
    check_finite(dataset.windows, wanted, path)
    if len(dataset) < MINIMUM_WINDOWS:
        raise CommandError(
            f"{path}: too few rows: expected at least {MINIMUM_WINDOWS} windows to judge a model by, "
            f"found {len(dataset)}"
        )
    return dataset


def _from_devices() -> ModuleType:
    from converter import device_data  # noqa: PLC0415 - it makes a `Dataset`, and so imports this module

    return device_data


def table_columns(path: Path | None, spec: Spec) -> tuple[str, ...]:
    """The columns of a table that may be channels: all but label, group and time; none where it is no table."""
    if path is None or not path.exists():
        return ()
    if path.is_dir() and not is_recording(path) and is_captures(path):
        from converter.captured import channels_of  # noqa: PLC0415 - only where there are captures

        return channels_of(path)
    if path.is_dir():
        spec = for_recording(path, spec)
    elif path.suffix.lower() not in (".csv", ".parquet"):
        return ()
    taken = {*_label_columns(spec), spec.data.group, spec.data.time}
    return tuple(name for name in _columns(path, spec) if name not in taken)


def _in_blocks(dataset: Dataset, window: Window) -> Dataset:
    """Each session in blocks of time as groups, so that both halves of a split hold parts of every session.

    Often a session has one label. Windows that share readings with the block before are left out.
    """
    assert dataset.groups is not None
    shared = -(-window.length // window.stride) - 1  # windows that overlap with one
    kept: list[NDArray[np.int64]] = []
    names: list[str] = []
    for group in dict.fromkeys(dataset.groups.tolist()):
        rows = np.flatnonzero(dataset.groups == group)
        blocks = max(1, min(_BLOCKS, len(rows) // (2 * (shared + 1))))
        for number, block in enumerate(np.array_split(rows, blocks)):
            whole = block if number == 0 else block[shared:]
            kept.append(whole)
            names += [f"{group}/{number}"] * len(whole)
    chosen = dataset.take(np.concatenate(kept))
    return Dataset(
        chosen.windows, chosen.truth, np.array(names), chosen.readings, overlapping=False, place=dataset.place,
        reading_groups=dataset.reading_groups, rate_hz=dataset.rate_hz,
    )  # fmt: skip


def split(dataset: Dataset, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Calibration and evaluation rows: separated by group where there are several, else by class, seeded.

    Overlapping windows of a single recording are cut once in time; windows that cross the cut are left out.
    """
    n = len(dataset)
    rng = np.random.default_rng(seed)
    wanted = max(1, round(n * CALIBRATION_SHARE))
    groups = dataset.groups
    if groups is not None and len(np.unique(groups)) > 1:
        return _split_groups(dataset, groups, wanted, rng)
    if dataset.overlapping:
        reach = max(1, dataset.windows.shape[1] - 1)
        start = min(n - 1, wanted + reach)
        return dataset.take(np.arange(wanted)), dataset.take(np.arange(start, n))
    chosen = np.zeros(n, dtype=bool)
    keys = _strata(dataset.truth, n)
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        chosen[rng.permutation(rows)[: int(len(rows) * CALIBRATION_SHARE)]] = True
    if not chosen.any():
        chosen[rng.integers(n)] = True
    return dataset.take(np.flatnonzero(chosen)), dataset.take(np.flatnonzero(~chosen))


def _split_groups(
    dataset: Dataset, groups: NDArray[Any], wanted: int, rng: np.random.Generator
) -> tuple[Dataset, Dataset]:
    names = rng.permutation(np.unique(groups))
    chosen = np.zeros(len(dataset), dtype=bool)
    for name in names[:-1]:
        chosen |= groups == name
        if chosen.sum() >= wanted:
            break
    return dataset.take(np.flatnonzero(chosen)), dataset.take(np.flatnonzero(~chosen))


def _strata(truth: NDArray[Any] | None, n: int) -> NDArray[Any]:
    """Class of each row where the truth is made of few classes; one class otherwise."""
    if truth is None or truth.ndim != 1:
        return np.zeros(n, dtype=np.int64)
    keys = truth.astype(str)
    return keys if len(np.unique(keys)) <= max(2, n // 5) else np.zeros(n, dtype="<U1")


def _read_npz(path: Path, wanted: Input, shape: tuple[int, ...]) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("x", "y", "group") if name in archive.files}
            names = archive.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path}: expected a .npz archive of plain arrays: {error}") from error
    if "x" not in arrays:
        raise CommandError(f"{path}: expected an array `x`, found {', '.join(names) or 'nothing'}")
    x = arrays["x"]
    if x.dtype.kind == "U" and x.ndim > 1 and any(channel.categories for channel in wanted.channels):
        x = _from_text(x, wanted.channels, path)
    if x.dtype.kind not in "fiub":
        raise CommandError(f"{path}: x: expected numbers, found {x.dtype}")
    truth, groups = arrays.get("y"), arrays.get("group")
    for name, array in (("y", truth), ("group", groups)):
        if array is not None and len(array) != len(x):
            raise CommandError(f"{path}: {name}: expected {len(x)} rows as in x, found {len(array)}")
    if truth is not None:
        _check_truth(truth, path, "y")
        if truth.ndim == 2 and truth.shape[1] == 1:
            truth = truth[:, 0]
    values = _narrowed(x, wanted, path)
    if x.ndim == 2 and len(shape) == 2 and x.shape[1] == shape[1] and shape[0] > 1:
        return cut_windows(values, truth, groups, wanted.window, path=path)
    if x.shape[1:] != shape and x.ndim >= 2 and int(np.prod(x.shape[1:])) == int(np.prod(shape)) and x.ndim != 3:
        values = values.reshape(len(x), *shape)
    if x.ndim == 1 and shape == (1, 1):
        values = values.reshape(-1, 1, 1)
    if values.shape[1:] != shape:
        raise CommandError(
            f"{path}: x: expected windows of {by(shape)}, found {by(x.shape[1:]) or 'single numbers'}: "
            "mend [window] and [[channel]] of the specification, or the data"
        )
    readings = values.reshape(-1, shape[-1])
    together = groups if groups is not None else truth if len(np.unique(_strata(truth, len(values)))) > 1 else None
    each = None if together is None else np.repeat(together, len(readings) // len(values))
    return Dataset(
        values, truth, groups, readings, overlapping=False, place=str(path), reading_groups=each,
        rate_hz=wanted.window.rate_hz,
    )  # fmt: skip


def _narrowed(x: NDArray[Any], wanted: Input, path: Path) -> Floats:
    """Numbers as float32, which holds whole ones of up to 24 bits: larger ones of a frame of integers are refused."""
    if wanted.dtype in ("int32", "int64"):
        with np.errstate(invalid="ignore"):
            bad = ~(np.abs(x.astype(np.float64)) <= LARGEST_WHOLE)
        if bad.any():
            place = tuple(int(index) for index in np.argwhere(bad)[0])
            raise CommandError(
                f"{path}: x: expected whole numbers from -{LARGEST_WHOLE} to {LARGEST_WHOLE}, which float32 holds, "
                f"found {x[place]} in row {place[0]}: a device rejects such frames"
            )
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def _read_table(path: Path, spec: Spec, expected: Input) -> Dataset:
    channels = [channel.name for channel in expected.channels]
    columns = _columns(path, spec)
    wanted = [*channels, *_label_columns(spec), *(name for name in (spec.data.group, spec.data.time) if name)]
    missing = [name for name in wanted if name not in columns]
    if missing:
        labels = set(_label_columns(spec))
        raise CommandError(
            "\n".join(
                f"{path}: expected a {'label ' if name in labels else ''}column {name!r}, "
                f"found {', '.join(columns) or 'none'}"
                for name in missing
            )
        )
    values = np.stack([_values(columns[each.name], each, path) for each in expected.channels], axis=1)
    check_finite(values, expected, path)
    truth = None
    if _label_columns(spec):
        parts = [_plain(columns[name], name, path) for name in _label_columns(spec)]
        truth = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    groups = _plain(columns[spec.data.group], spec.data.group, path) if spec.data.group else None
    rate_hz = read_about(path).rate_hz if path.is_dir() else None
    if spec.data.time:
        times = _times(columns[spec.data.time], spec.data.time, path)
        order = np.argsort(times, kind="stable")
        rate_hz = rate_hz or rate_of(times[order], None if groups is None else groups[order])
        values = values[order]
        truth = truth[order] if truth is not None else None
        groups = groups[order] if groups is not None else None
    return replace(cut_windows(values.astype(np.float32), truth, groups, expected.window, path=path), rate_hz=rate_hz)


def _columns(path: Path, spec: Spec) -> dict[str, Any]:
    """The columns of a table. In a CSV file, label, group and time stay text as written."""
    import pyarrow as pa  # noqa: PLC0415 - heavy, and only tables need it
    import pyarrow.csv  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    rows: list[int] = []
    try:
        if path.is_dir() or path.suffix.lower() == ".csv":
            names = (*_label_columns(spec), spec.data.group, spec.data.time, *_text_channels(spec))
            as_text = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in names if name})
            text: Any = path
            if path.is_dir():
                data, rows = joined(path)
                text = pa.BufferReader(data)
            table = pyarrow.csv.read_csv(text, convert_options=as_text)
        else:
            table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CommandError(f"{path}: cannot be read as a table: {str(error).splitlines()[0]}") from error
    columns = {name: table.column(name) for name in table.column_names}
    if path.is_dir() and spec.data.group == SESSION:
        key = read_about(path).key
        keys = [""] * table.num_rows if key is None else table.column(key).cast(pa.string()).to_pylist()
        session = np.repeat(np.arange(len(rows)), rows)
        names = pa.array([f"{number}/{name}" for number, name in zip(session, keys, strict=True)], pa.string())
        columns[SESSION] = pa.chunked_array([names])
    return columns


def for_recording(folder: Path, spec: Spec) -> Spec:
    """The specification completed by a recording: its label, and that no window crosses a key or session.

    Raises:
        CommandError: the folder is no recording.
    """
    about = read_about(folder)
    data = spec.data
    return msgspec.structs.replace(
        spec,
        data=msgspec.structs.replace(data, label=data.label or about.label, group=data.group or SESSION),
    )


def _values(column: Any, channel: Channel, path: Path) -> NDArray[np.float64]:
    """The numbers of a channel, or the indexes of its categories."""
    if not channel.categories:
        return _numbers(column, channel.name, path)
    texts = column.to_pylist()
    if path.is_dir() or path.suffix.lower() == ".csv":  # as a device's codec reads it
        texts = [text.strip() or None for text in texts]
    return _indexes(texts, channel)


def _from_text(x: NDArray[Any], channels: Sequence[Channel], path: Path) -> NDArray[np.float64]:
    """An array of text whose last axis is made of channels: indexes of categories, and numbers written as text."""
    columns = x.reshape(len(x), -1)
    found = np.empty(columns.shape)
    for place in range(columns.shape[1]):
        channel, texts = channels[place % len(channels)], columns[:, place].tolist()
        try:
            found[:, place] = _indexes(texts, channel) if channel.categories else [float(text) for text in texts]
        except ValueError as error:
            raise CommandError(f"{path}: x: expected numbers for channel {channel.name!r}: {error}") from error
    return found.reshape(x.shape)


def _text_channels(spec: Spec) -> tuple[str, ...]:
    return tuple(channel.name for channel in spec.channel if channel.categories)


def _indexes(values: Sequence[Any], channel: Channel) -> NDArray[np.float64]:
    index = CategoryIndex(channel.categories)
    places = {value: index(value) for value in set(values)}
    found = [places[value] for value in values]
    return np.array([np.nan if place is None else place for place in found], dtype=np.float64)


def _numbers(column: Any, name: str, path: Path) -> NDArray[np.float64]:
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowException as error:
        raise CommandError(f"{path}: column {name!r}: expected numbers, found {column.type}") from error


def _plain(column: Any, name: str, path: Path) -> NDArray[Any]:
    if column.null_count:
        raise CommandError(f"{path}: column {name!r}: expected a value in every row, found {column.null_count} empty")
    values = np.asarray(column.to_numpy())
    if values.dtype == object:
        values = values.astype(str)
    if values.dtype.kind == "U" and (values == "").any():
        count, row = int((values == "").sum()), int(np.flatnonzero(values == "")[0])
        raise CommandError(
            f"{path}: column {name!r}: expected a value in every row, found {count} empty, the first in row {row}"
        )
    values = _whole(values)
    _check_truth(values, path, f"column {name!r}")
    return values


def _whole(values: NDArray[Any]) -> NDArray[Any]:
    """Text as whole numbers, where every item is written as Python would write its number (not as in `01`)."""
    try:
        numbers = values.astype(np.int64) if values.dtype.kind == "U" else values
    except (ValueError, OverflowError):
        return values
    return numbers if (numbers.astype(values.dtype) == values).all() else values


def _times(column: Any, name: str, path: Path) -> NDArray[Any]:
    """The sort keys of rows: numbers, or times in ISO 8601, never text."""
    values = _plain(column, name, path)
    if values.dtype.kind != "U":
        return values
    try:
        return values.astype(np.float64)
    except ValueError:
        pass
    moments = []
    for row, text in enumerate(values.tolist()):
        try:
            moments.append(dt.datetime.fromisoformat(text.strip()))
        except ValueError as error:
            raise CommandError(
                f"{path}: column {name!r}: expected numbers, or times in ISO 8601 such as 2026-11-28T09:30:00, "
                f"found {text!r} in row {row}: write the times so; text has no order in time"
            ) from error
    aware = [moment.tzinfo is not None for moment in moments]
    if any(aware) and not all(aware):
        row = aware.index(False)
        raise CommandError(
            f"{path}: column {name!r}: expected a time zone in every row or in none, found none in row {row}"
        )
    start = dt.datetime(1970, 1, 1, tzinfo=dt.UTC if all(aware) else None)
    return np.array([(moment - start) // dt.timedelta(microseconds=1) for moment in moments], dtype=np.int64)


def _check_truth(values: NDArray[Any], path: Path, what: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise CommandError(f"{path}: {what}: expected a finite number in every row, found {values[row]} in row {row}")


def _label_columns(spec: Spec) -> tuple[str, ...]:
    label = spec.data.label
    return () if label is None else (label,) if isinstance(label, str) else label


def cut_windows(
    values: Floats, truth: NDArray[Any] | None, groups: NDArray[Any] | None, window: Window, *, path: Path
) -> Dataset:
    """Cut readings into windows, recording by recording."""
    length, stride = window.length, window.stride
    ends: list[NDArray[np.int64]] = []
    rows_of: list[NDArray[np.int64]] = []
    names = [None] if groups is None else list(dict.fromkeys(groups.tolist()))
    for name in names:
        rows = np.arange(len(values)) if groups is None else np.flatnonzero(groups == name)
        starts = np.arange(0, len(rows) - length + 1, stride)
        if len(starts):
            picked = rows[starts[:, None] + np.arange(length)]
            rows_of.append(picked)
            ends.append(picked[:, -1])
    if not rows_of:
        raise CommandError(
            f"{path}: too few rows: expected recordings of at least {length} readings, found none "
            f"among {len(values)} rows"
        )
    index, last = np.concatenate(rows_of), np.concatenate(ends)
    return Dataset(
        values[index],
        None if truth is None else truth[last],
        None if groups is None else groups[last],
        values,
        overlapping=stride < length,
        place=str(path),
        reading_groups=groups,
    )


def check_finite(values: NDArray[Any], wanted: Input, path: Path) -> None:
    """Refuse missing numbers, except in channels that allow them, and infinite ones."""
    bad = ~np.isfinite(values)
    names = [channel.name for channel in wanted.channels]
    if len(names) == values.shape[-1]:
        bad &= ~(np.isnan(values) & np.array([channel.missing == "allowed" for channel in wanted.channels]))
    if not bad.any():
        return
    where = np.argwhere(bad)[0]
    name = f" in channel {names[where[-1]]!r}" if len(names) == values.shape[-1] else ""
    raise CommandError(
        f"{path}: expected finite numbers, found {int(bad.sum())} that are NaN or infinite, the first in row "
        f"{where[0]}{name}: leave such rows out, repair them as the device's configuration would, or, where the model "
        'treats missing values itself, say missing = "allowed" in its [[channel]]'
    )


def by(shape: Sequence[int]) -> str:
    """A shape, for messages."""
    return " x ".join(str(size) for size in shape)
