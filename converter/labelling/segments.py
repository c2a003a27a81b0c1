"""A recording of `edge-runtime record` in segments for labelling, and its readings with the labels of the segments.

The id of a segment is `SESSION/KEY/FIRST+COUNT`: which readings of the session and the key, in order, it holds.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.labelling.decisions import decisions_in
from edge_runtime.errors import CommandError
from edge_runtime.recordings.folder import TIME, About, joined, read_about

SEGMENT_S = 1.0
SEGMENT_READINGS = 100  # where the rate of a recording is not known


class Segment(NamedTuple):
    """Consecutive readings, and the label that the recording has for them."""

    id: str
    session: int
    key: str
    time: float
    values: NDArray[np.float32]
    label: str | None


class Segments(NamedTuple):
    """A whole recording, with the names of the columns."""

    segments: list[Segment]
    channels: list[str]


class RecordedReadings(NamedTuple):
    """The readings of a recording, a row each; a label that is not known is empty."""

    values: NDArray[np.float32]
    labels: NDArray[np.str_]
    keys: NDArray[np.str_]
    sessions: NDArray[np.int64]
    times: NDArray[np.float64]
    text: bytes


def read_recording(folder: Path) -> RecordedReadings:
    """Every reading, with the labels by people.

    Raises:
        CommandError: it is no recording, or cannot be read.
    """
    about = read_about(folder)
    text, rows = joined(folder)
    found = _parsed(folder, about, text)
    count = found.num_rows
    labels = [""] * count if about.label is None else [label or "" for label in found.column(about.label).to_pylist()]
    keys = [""] * count if about.key is None else [key or "" for key in found.column(about.key).to_pylist()]
    readings = RecordedReadings(
        np.stack([np.asarray(found.column(each.name), np.float32) for each in about.channels], axis=1),
        np.array(labels, dtype=object).astype(np.str_),
        np.array(keys, dtype=object).astype(np.str_),
        np.repeat(np.arange(len(rows)), rows),
        np.asarray(found.column(TIME), np.float64),
        text,
    )
    return readings._replace(labels=_relabelled(folder, readings))


def read_segments(folder: Path, readings: int | None) -> Segments:
    """Cut a recording into segments of so many readings; the rest of a session is shorter.

    Raises:
        CommandError: it is no recording, or cannot be read.
    """
    about = read_about(folder)
    if readings is None:
        readings = SEGMENT_READINGS if about.rate_hz is None else max(2, round(SEGMENT_S * about.rate_hz))
    found = read_recording(folder)
    segments = []
    for session, key, rows in _streams(found):
        for first in range(0, len(rows), readings):
            own = rows[first : first + readings]
            names = set(found.labels[own].tolist())
            segments.append(
                Segment(
                    f"{session}/{key}/{first}+{len(own)}",
                    session,
                    key,
                    float(found.times[own[0]]),
                    found.values[own],
                    names.pop() or None if len(names) == 1 else None,
                )
            )
    channels = [f"{each.name} ({each.unit})" if each.unit else each.name for each in about.channels]
    return Segments(segments, channels)


def _parsed(folder: Path, about: About, text: bytes) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - heavy, and only recordings need it
    import pyarrow.csv  # noqa: PLC0415

    texts = {name: pa.string() for name in (about.key, about.label) if name}
    numbers = {TIME: pa.float64(), **{channel.name: pa.float32() for channel in about.channels}}
    options = pyarrow.csv.ConvertOptions(column_types=texts | numbers)
    try:
        return pyarrow.csv.read_csv(pa.BufferReader(text), convert_options=options)
    except pa.ArrowException as error:
        raise CommandError(f"{folder}: cannot be read as a recording: {str(error).splitlines()[0]}") from error


def _streams(found: RecordedReadings) -> list[tuple[int, str, NDArray[np.int64]]]:
    """The rows of each session and key, in order."""
    streams: dict[tuple[int, str], list[int]] = {}
    for row, stream in enumerate(zip(found.sessions.tolist(), found.keys.tolist(), strict=True)):
        streams.setdefault(stream, []).append(row)
    return [(session, key, np.array(rows)) for (session, key), rows in streams.items()]


def _relabelled(folder: Path, found: RecordedReadings) -> NDArray[np.str_]:
    """The labels; those by people replace those of the recording.

    Raises:
        CommandError: a decision is about readings that are not in this recording.
    """
    decisions = decisions_in(folder)
    if not decisions:
        return found.labels
    labels: NDArray[Any] = found.labels.astype(object)
    streams = {(session, key): rows for session, key, rows in _streams(found)}
    for decision in decisions.values():
        if decision.label is None:
            continue
        rows = _rows_of(decision.id, streams)
        if rows is None:
            raise CommandError(f"{folder}: labels.jsonl speaks of {decision.id!r}, which is not in this recording")
        labels[rows] = decision.label
    return labels.astype(np.str_)


def _rows_of(identity: str, streams: dict[tuple[int, str], NDArray[np.int64]]) -> NDArray[np.int64] | None:
    head, _, place = identity.rpartition("/")
    session, _, key = head.partition("/")
    first, _, count = place.partition("+")
    if not all(each.isascii() and each.isdigit() and len(each) < 16 for each in (session, first, count)):
        return None
    rows = streams.get((int(session), key))
    if rows is None or int(first) + int(count) > len(rows):
        return None
    return rows[int(first) : int(first) + int(count)]
