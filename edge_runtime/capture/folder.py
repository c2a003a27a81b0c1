"""Read folders of captures: of a device, of a workstation that fetched them, and folders of such folders.

Guarantee: every complete entry is read. Bytes after the last complete entry of a file are counted and reported, and
never read as a window. Files are only read, so a daemon may write them at the same time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_runtime.capture.entries import MAGIC, PATTERN, BundleFacts, Captured, Labelled, read
from edge_runtime.errors import CommandError


class FoundWindow(NamedTuple):
    """A window with the facts of its bundle, and its file."""

    entry: Captured
    facts: BundleFacts
    file: Path


class FoundCaptures(NamedTuple):
    """The contents of a folder.

    Attributes:
        windows: in the order of the files.
        labels: the labels from devices; of several for one prediction the newest is last.
        damaged: files with bytes outside complete entries, and the number of these bytes.
    """

    windows: list[FoundWindow]
    labels: list[Labelled]
    damaged: dict[Path, int]


def files_of(folder: Path) -> list[Path]:
    """The capture files in a folder and its subfolders."""
    return sorted(path for path in folder.rglob(PATTERN) if path.is_file())


def is_captures(folder: Path) -> bool:
    """Whether the folder holds a capture file."""
    return bool(files_of(folder))


def read_captures(folder: Path) -> FoundCaptures:
    """Read all captures of a folder.

    Raises:
        CommandError: it holds no captures, or they cannot be read.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder}: expected a folder of captures, found {'a file' if folder.exists() else 'none'}")
    found = FoundCaptures([], [], {})
    files = files_of(folder)
    if not files:
        raise CommandError(f"{folder}: expected captures, found no file {PATTERN} in it or in its folders")
    for path in files:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
        if data and not data.startswith(MAGIC) and not MAGIC.startswith(data):
            raise CommandError(f"{path}: expected a file of captures, found another kind, or one of a later release")
        whole = read(data)
        if lost := len(data) - whole.whole + whole.damaged:
            found.damaged[path] = lost
        found.windows.extend(_with_facts(path, whole.entries))
        found.labels.extend(entry for entry in whole.entries if isinstance(entry, Labelled))
    return found


def _with_facts(path: Path, entries: list[BundleFacts | Captured | Labelled]) -> Iterator[FoundWindow]:
    facts: list[BundleFacts] = []
    for entry in entries:
        if isinstance(entry, BundleFacts):
            facts.append(entry)
        elif isinstance(entry, Captured):
            yield FoundWindow(entry, facts[entry.bundle], path)
