"""Labels by people: `labels.jsonl` beside captures, a line for each decision; the last one of a window counts.

Lines are only appended, and each is synchronised to disk, so a kill loses at most the decision that is being written. A
torn last line is ignored when the file is read, and cut off before the next write.
"""

import os
from pathlib import Path

import msgspec

from edge_runtime.errors import CommandError

FILE = "labels.jsonl"


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line.

    Attributes:
        id: of the prediction or the window.
        label: the true label; None where an earlier decision was undone.
        skipped: a person looked at it and gave no label.
        time: when, in Unix seconds.
    """

    id: str
    label: str | None = None
    skipped: bool = False
    time: float = 0.0


_decode = msgspec.json.Decoder(Decision).decode


class LabelFile:
    """The decisions of one folder.

    Args:
        folder: of the captures.

    Raises:
        CommandError: a whole line cannot be read.

    Attributes:
        path: of the file, which is created with the first decision.
        latest: the last decision of each window, undone ones included.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._size = 0
        self.latest: dict[str, Decision] = {}
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise CommandError(f"{self.path}: cannot be read: {error.strerror}") from error
        self._size = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: self._size].splitlines(), 1):
            try:
                self._note(_decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise CommandError(f"{self.path}: line {number}: expected a decision, found: {error}") from error

    def add(self, decision: Decision) -> None:
        """Append a decision, durably.

        Raises:
            CommandError: the write failed; the decision does not count.
        """
        line = msgspec.json.encode(decision) + b"\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(handle, self._size)
                os.lseek(handle, self._size, os.SEEK_SET)
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise CommandError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._size += len(line)
        self._note(decision)

    def _note(self, decision: Decision) -> None:
        self.latest.pop(decision.id, None)  # in the order in which they were made
        self.latest[decision.id] = decision


def decisions_in(folder: Path) -> dict[str, Decision]:
    """The last decision of each window, from all label files in a folder and its subfolders.

    Raises:
        CommandError: one cannot be read.
    """
    found: dict[str, Decision] = {}
    for path in sorted(folder.rglob(FILE)):
        for decision in LabelFile(path.parent).latest.values():
            before = found.get(decision.id)
            if before is None or decision.time >= before.time:
                found[decision.id] = decision
    return found


def has_decisions(folder: Path) -> bool:
    """Whether a folder holds labels by people."""
    return any(folder.rglob(FILE))
