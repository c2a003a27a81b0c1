"""Which files are meant, and how each is read."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Recording, RecordingError, Wanted
from edge_runtime.recordings.locations import Place, Remote, place

FORMATS = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".npy": "numpy",
    ".npz": "numpy",
}


def find_files(names: Sequence[str]) -> list[Place]:
    """Files, patterns and folders, as they were named, here or behind a URL.

    A folder stands for what is in it, in the order of the names.

    Raises:
        CommandError: one of them stands for nothing.
    """
    found: dict[Place, None] = {}
    mistakes = []
    for name in names:
        there = place(name)
        files = list(_files(there))
        if not files:
            kinds = ", ".join(FORMATS)
            what = f"a folder without {kinds}" if there.is_dir() else "nothing of that name"
            mistakes.append(f"{name}: expected recorded files, found {what}")
        found.update(dict.fromkeys(files))
    if mistakes:
        raise CommandError("\n".join(mistakes))
    return list(found)


def _files(path: Place) -> Iterable[Place]:
    if isinstance(path, Remote):
        try:
            files = list(path.files())
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror or error}") from error
        return files if len(files) == 1 else [file for file in files if file.suffix.lower() in FORMATS]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in FORMATS and file.is_file())
    if path.exists():
        return [path]
    return sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())  # noqa: PTH207


def open_recording(path: Place, wanted: Wanted) -> Recording:
    """Look at the head of a file and make ready to read it.

    Raises:
        RecordingError: it is not there, of no kind that we know, or without a column that is needed.
    """
    name = FORMATS.get(path.suffix.lower()) if wanted.format == "auto" else wanted.format
    if name is None:
        raise RecordingError(
            f"{path}: expected one of {', '.join(FORMATS)}, found {path.suffix or 'no suffix'}: say it with --format"
        )
    try:
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            path.open("rb").close()  # names the reason better
        if name == "parquet":
            from edge_runtime.recordings.parquet import ParquetRecording  # noqa: PLC0415 - an extra, and slow to load

            return ParquetRecording(path, wanted)
        if name == "numpy":
            from edge_runtime.recordings.arrays import NumpyRecording  # noqa: PLC0415 - only when asked for

            return NumpyRecording(path, wanted)
        from edge_runtime.recordings.text import open_csv, open_json_lines  # noqa: PLC0415 - only when asked for

        return open_csv(path, wanted) if name == "csv" else open_json_lines(path, wanted)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_all(paths: Sequence[Place], wanted: Wanted) -> list[Recording]:
    """Every file, looked at before any is read; all mistakes at once.

    Raises:
        RecordingError: some cannot be used, or do not belong together.
    """
    recordings: list[Recording] = []
    mistakes = []
    for path in paths:
        try:
            recordings.append(open_recording(path, wanted))
        except RecordingError as error:
            mistakes.append(str(error))
    for path, recording in zip(paths, recordings, strict=False):
        if mistakes:
            break
        if recording.schema != recordings[0].schema:
            mistakes.append(
                f"{path}: expected the kept columns of {paths[0]} ({_named(recordings[0].schema)}), "
                f"found {_named(recording.schema)}: predict files of one kind at a time"
            )
    if mistakes:
        raise RecordingError("\n".join(mistakes))
    return recordings


def _named(schema: object) -> str:
    return "none with types" if schema is None else str(schema).replace("\n", ", ")
