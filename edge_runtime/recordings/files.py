"""The recorded files of some names and patterns, and the reader of each."""

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import MissingColumnsError, Recording, RecordingError, Wanted
from edge_runtime.recordings.byte_streams import COMPRESSIONS, plain_suffix
from edge_runtime.recordings.folder import ABOUT, has_header, is_part
from edge_runtime.recordings.locations import Place, Remote, mark, place

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


@dataclass
class FoundFiles:
    """The selected files, and the skipped ones by reason: their number, and the first."""

    files: list[Place] = field(default_factory=list)
    passed_over: dict[str, tuple[int, str]] = field(default_factory=dict)

    def pass_over(self, reason: str, file: object) -> None:
        """Note a skipped file."""
        count, first = self.passed_over.get(reason, (0, str(file)))
        self.passed_over[reason] = count + 1, first


def find_files(names: Sequence[str], *, any_suffix: bool = False) -> FoundFiles:
    """Files, patterns and folders, as they were named, here or behind a URL.

    A folder or pattern stands for its files, in the order of the names, except names that begin with `.` or `_`
    (metadata of Spark and Arrow) and files of unknown kinds. A file that is named twice is read once.

    Args:
        names: as they were given.
        any_suffix: a pattern selects files of every suffix, since `--format` was given.

    Raises:
        CommandError: one of them matches no file, or is a table format whose files are not its rows.
    """
    found = FoundFiles()
    known: set[object] = set()
    mistakes = []
    for name in names:
        there = place(name)
        before = len(found.files)
        try:
            for file in _files(there, found, any_suffix=any_suffix):
                identity = _identity(file)
                if identity in known:
                    found.pass_over("read already", file)
                    before = -1
                else:
                    known.add(identity)
                    found.files.append(file)
        except CommandError as error:
            mistakes.append(str(error))
            continue
        if len(found.files) == before:
            kinds = ", ".join(FORMATS)
            what = f"a folder without {kinds}" if there.is_dir() else "nothing of that name"
            mistakes.append(f"{name}: expected recorded files, found {what}")
    if mistakes:
        raise CommandError("\n".join(mistakes))
    return found


def _identity(file: Place) -> object:
    """The identity of a file: two names of one file give the same."""
    if isinstance(file, Remote):
        return str(file)
    try:
        status = file.stat()
    except OSError:
        return file.absolute()
    return status.st_dev, status.st_ino


def _files(path: Place, found: FoundFiles, *, any_suffix: bool) -> Iterable[Place]:
    if isinstance(path, Remote):
        try:
            files = list(path.files())
            _refuse_tables(path, [str(file)[len(str(path)) :].strip("/") for file in files])
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror or error}") from error
        if len(files) == 1 and str(files[0]) == str(path):
            return files
        base = str(path).rstrip("/").split("*", maxsplit=1)[0].rpartition("/")[0] if "*" in str(path) else str(path)
        return [file for file in files if _is_meant(file, str(file)[len(base) :], found, any_suffix=any_suffix)]
    if path.is_dir():
        entries = sorted(path.rglob("*"))
        _refuse_tables(path, [str(entry.relative_to(path)) for entry in entries])
        return [
            entry
            for entry in entries
            if _is_file(entry, found) and _is_meant(entry, str(entry.relative_to(path)), found, any_suffix=False)
        ]
    if path.exists() or path.is_symlink():
        return [path]
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True, include_hidden=True))  # noqa: PTH207
    return [
        match
        for match in matches
        if _is_file(match, found)
        and _is_meant(match, str(Path(*match.parts[len(fixed) :])), found, any_suffix=any_suffix)
    ]


def _is_file(path: Path, found: FoundFiles) -> bool:
    if path.is_symlink() and not path.exists():
        found.pass_over("link to nothing", path)
    elif path.is_symlink() and path.is_dir():
        found.pass_over("link to a folder", path)
    return path.is_file()


def _is_meant(file: Place, below: str, found: FoundFiles, *, any_suffix: bool) -> bool:
    """Whether a file of a folder is a recording; `below` is its path in the folder."""
    if any(part.startswith((".", "_")) and "=" not in part for part in below.split("/") if part):
        found.pass_over("begins with . or _", file)
    elif file.name == ABOUT:
        found.pass_over("describes a recording", file)
    elif isinstance(file, Path) and is_part(file) and not has_header(file):
        found.pass_over("holds no reading yet", file)
    elif not any_suffix and not is_recording(file):
        found.pass_over("another suffix", file)
    else:
        return True
    return False


_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi"}


def _refuse_tables(path: Place, below: Sequence[str]) -> None:
    """Refuse a folder whose files hold rows that the table has since deleted or replaced."""
    kind = next((_TABLES[part] for name in below for part in name.split("/") if part in _TABLES), None)
    if kind is None and any(name.endswith(".metadata.json") and "metadata/" in f"/{name}" for name in below):
        kind = "Iceberg"
    if kind is not None:
        raise CommandError(
            f"{path}: expected recordings, found a {kind} table, whose files also hold rows that were deleted "
            "or replaced: write its current version to Parquet with its own library, and predict that"
        )


def hive_values(path: Place) -> dict[str, str | None]:
    """The columns in the names of a file's folders, such as `year=2026`."""
    values: dict[str, str | None] = {}
    for part in str(path).split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            values[unquote(name)] = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
    return values


def kind_of(path: Place) -> str:
    """The suffix that selects the reader; text may be compressed."""
    suffix = plain_suffix(path)
    compressed = path.suffix.lower() in COMPRESSIONS
    return "" if compressed and FORMATS.get(suffix) not in {"csv", "jsonl"} else suffix


def is_recording(path: Place) -> bool:
    """Whether a file in a folder has a known kind."""
    return kind_of(path) in FORMATS


def open_recording(path: Place, wanted: Wanted) -> Recording:
    """Read the head of a file and prepare to read the rest.

    A column that the file lacks may be in the names of its folders (`year=2026/`), as text.

    Raises:
        RecordingError: it does not exist, has an unknown kind, or lacks a required column.
    """
    values = hive_values(path)
    try:
        recording = _open(path, wanted)
        if not values or recording.names_columns:
            return recording
        from edge_runtime.recordings.json_lines import first_lacks  # noqa: PLC0415 - only where folders have such names

        missing = first_lacks(path, wanted, [name for name in (wanted.key, *wanted.columns) if name in values])
        if not missing:
            return recording
    except MissingColumnsError as error:
        missing = error.missing
        if not set(missing) <= set(values) - {wanted.time, *wanted.channels}:
            raise
    given = {name: values[name] for name in missing}
    from edge_runtime.recordings.hive import HiveRecording  # noqa: PLC0415 - only where folders have such names

    return HiveRecording(_open(path, HiveRecording.without(wanted, given)), wanted, given, str(path))


def _open(path: Place, wanted: Wanted) -> Recording:
    name = FORMATS.get(kind_of(path)) if wanted.format == "auto" else wanted.format
    if name is None:
        raise RecordingError(
            f"{path}: expected one of {', '.join(FORMATS)}, found {path.suffix or 'no suffix'}: say it with --format"
        )
    try:
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            path.open("rb").close()  # gives a better reason
        if name == "parquet":
            from edge_runtime.recordings.parquet import ParquetRecording  # noqa: PLC0415 - an extra, and slow to load

            return ParquetRecording(path, wanted)
        if name == "numpy":
            from edge_runtime.recordings.arrays import NumpyRecording  # noqa: PLC0415 - only when asked for

            return NumpyRecording(path, wanted)
        if name == "csv":
            from edge_runtime.recordings.csv_files import open_csv  # noqa: PLC0415 - only when asked for

            return open_csv(path, wanted)
        from edge_runtime.recordings.json_lines import open_json_lines  # noqa: PLC0415 - only when asked for

        return open_json_lines(path, wanted)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror or error}") from error


MOST_KEPT = 1_000  # opened recordings of 15 kB each, so that memory does not grow with the number of files


class OpenedRecordings:
    """Opened files, for a reader in the same process: opening takes a third of the time of a small file.

    Iteration yields the recordings in order. Those beyond `MOST_KEPT` are opened again at each use.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._paths: list[Place] = []
        self._known: dict[str, tuple[Recording, object]] = {}

    def add(self, path: Place) -> Recording:
        """Open a file.

        Raises:
            RecordingError: see `open_recording`.
        """
        found = _mark(path)
        recording = open_recording(path, self._wanted)
        self._paths.append(path)
        if len(self._known) < MOST_KEPT:
            self._known[str(path)] = recording, found
        return recording

    def __iter__(self) -> Iterator[Recording]:
        return (self.open(str(path), self._wanted) for path in self._paths)

    def open(self, path: str, wanted: Wanted) -> Recording:
        """The recording of a path; opened again if the file has changed.

        Raises:
            RecordingError: see `open_recording`.
        """
        there = place(path)
        recording, before = self._known.get(path, (None, None))
        if recording is None or before is None or _mark(there) != before:
            return open_recording(there, wanted)
        return recording


def _mark(path: Place) -> object:
    try:
        return mark(path)
    except OSError:
        return None  # opening it gives the reason


def open_all(paths: Sequence[Place], wanted: Wanted) -> OpenedRecordings:
    """Open every file before any is read; report all mistakes at once.

    Raises:
        RecordingError: some cannot be used, or do not match.
    """
    opened = OpenedRecordings(wanted)
    mistakes: list[str] = []
    misfits: list[str] = []
    schema: Any = None
    for number, path in enumerate(paths):
        try:
            recording = opened.add(path)
        except RecordingError as error:
            mistakes.append(str(error))
            continue
        if not number:
            schema = recording.schema
        elif not mistakes and recording.schema != schema:
            misfits.append(
                f"{path}: expected the kept columns of {paths[0]} ({_named(schema)}), "
                f"found {_named(recording.schema)}: predict files of one kind at a time"
            )
    if mistakes or misfits:
        raise RecordingError("\n".join(mistakes or misfits))
    return opened


def _named(schema: object) -> str:
    return "none with types" if schema is None else str(schema).replace("\n", ", ")
