"""The plan of a run, and what of it is done already.

The folder `OUT.parts` holds a file for each part that is complete, and what the run was asked for. The same command
goes on where an interrupted one stopped; any other command, or a file that has changed since, starts anew.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_runtime import __version__
from edge_runtime.batch.score import Job, PartResult
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Piece, Recording
from edge_runtime.recordings.locations import Place, mark

PIECE_BYTES = 1 << 25
_PLAN = "run.json"


@dataclass(frozen=True)
class Part:
    """What one worker does at a time."""

    number: int
    pieces: list[Piece]
    target: Path

    @property
    def weight(self) -> int:
        """Its share of the work."""
        return sum(piece.weight for piece in self.pieces)

    def result(self) -> PartResult | None:
        """What it came to, when it is complete."""
        try:
            return msgspec.json.decode(self.target.with_suffix(".json").read_bytes(), type=PartResult)
        except (FileNotFoundError, msgspec.DecodeError):
            return None


def make_parts(
    recordings: Sequence[Recording], manifest: Manifest, folder: Path, *, stride: int | None, one_recording: bool
) -> list[Part]:
    """Files, or pieces of files where no window can run over the border between two.

    Args:
        recordings: the files, in order.
        manifest: of the model.
        folder: where the parts are kept.
        stride: instead of the bundle's own.
        one_recording: windows run on from one file into the next.
    """
    window = manifest.input.window
    alone = manifest.input.shape is not None or window.length == (stride or window.stride) == 1
    divisible = alone and not manifest.state
    found: list[list[Piece]] = []
    for recording in recordings:
        pieces = recording.pieces(PIECE_BYTES if divisible else None)
        found += [pieces] if not divisible else [[piece] for piece in pieces]
    if one_recording and not divisible:
        found = [[piece for pieces in found for piece in pieces]]
    return [Part(number, pieces, folder / f"{number:06d}.part") for number, pieces in enumerate(found)]


@contextlib.contextmanager
def part_folder(folder: Path, job: Job, files: Sequence[Place]) -> Iterator[bool]:
    """Hold the folder of a run; gives whether a run of the same kind was begun in it.

    Raises:
        CommandError: it cannot be made, or another run holds it.
    """
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise CommandError(f"{folder}: cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(f"{folder}: another run is writing this output: wait for it, or stop it") from error
        yield _resume(folder, _describe(job, files))


def remove_parts(folder: Path) -> None:
    """Clear up after a run that is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def _resume(folder: Path, wanted: bytes) -> bool:
    plan = folder / _PLAN
    try:
        if plan.exists() and plan.read_bytes() == wanted:
            return True
        for old in folder.iterdir():
            if old.name != "lock":
                old.unlink()
        plan.write_bytes(wanted)
    except OSError as error:
        raise CommandError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return False


def _describe(job: Job, files: Sequence[Place]) -> bytes:
    found = [mark(file) for file in files]
    wanted = {"runtime": __version__, "job": msgspec.to_builtins(job), "files": found, "piece": PIECE_BYTES}
    return msgspec.json.encode(wanted)
