"""Folders of captures, read back: those of a device, those that were brought in, and folders of such folders.

Guarantee: every whole entry is read; bytes behind the last whole one of a file are counted and named, and no window is
made of them. Files are only read, so that a daemon may be writing meanwhile.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_runtime.capture.entries import MAGIC, PATTERN, BundleFacts, Captured, Labelled, read
from edge_runtime.errors import CommandError


class FoundWindow(NamedTuple):
    """A window with the facts of its bundle and the file that it stands in."""

    entry: Captured
    facts: BundleFacts
    file: Path


class FoundCaptures(NamedTuple):
    """What a folder holds.

    Attributes:
        windows: in the order of the files.
        labels: that came from devices, the last one of a prediction last.
        damaged: files with bytes that are no whole entry, and how many.
    """

    windows: list[FoundWindow]
    labels: list[Labelled]
    damaged: dict[Path, int]


def files_of(folder: Path) -> list[Path]:
    """The files of captures in a folder and the folders in it."""
    return sorted(path for path in folder.rglob(PATTERN) if path.is_file())


def is_captures(folder: Path) -> bool:
    """Whether there is a file of captures in it."""
    return bool(files_of(folder))


def read_captures(folder: Path) -> FoundCaptures:
    """Everything that a folder holds.

    Raises:
        CommandError: there are no captures in it, or they cannot be read.
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
        if whole.whole < len(data):
            found.damaged[path] = len(data) - whole.whole
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
