"""The plan of a run, and its parts that are done already.

The folder `OUT.parts` holds a file for each complete part, and the run's arguments. The same command continues an
interrupted run; another command, or a changed file, starts anew.

Guarantee: a part of an earlier run counts only if its files have the digests of its result, and its name is that of the
same run. Therefore no sync is needed: a part that a power cut damaged or reverted is scored again.
"""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edge_runtime import __version__
from edge_runtime.batch.score import Job, Open, PartResult, new_digest, open_anew
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Piece
from edge_runtime.recordings.files import OpenedRecordings
from edge_runtime.recordings.locations import Place, mark

PIECE_BYTES = 1 << 25
MOST_SMALL_PARTS = 128
FEWEST_SMALL_PARTS = 16  # of many files, so that so many cores have work
LEAST_BYTES, LEAST_ROWS = 1 << 21, 1 << 16  # of a part of several files: a smaller one is not worth its own files
_PLAN = "run.json"


@dataclass(frozen=True)
class Part:
    """The unit of work of a worker."""

    number: int
    pieces: list[Piece]
    target: Path
    open_piece: Open = open_anew  # in the process that made the plan

    @property
    def weight(self) -> int:
        """Its share of the whole work."""
        return sum(piece.weight for piece in self.pieces)

    def result(self) -> PartResult | None:
        """Its result, if it is complete and undamaged."""
        try:
            result = msgspec.json.decode(self.target.with_suffix(".json").read_bytes(), type=PartResult)
            whole = set(result.digests) == {".part", ".faults"} and all(
                _digest(self.target.with_suffix(suffix)) == digest for suffix, digest in result.digests.items()
            )
        except (OSError, msgspec.DecodeError):
            return None
        return result if whole else None


def _together(found: list[list[Piece]], least: int) -> list[list[Piece]]:
    """Many small consecutive pieces form one part, since each part has its own files.

    The grouping depends on the recordings alone, so that a run with more workers continues with the same parts.
    """
    total = sum(piece.weight for pieces in found for piece in pieces)
    most = max(total // MOST_SMALL_PARTS, min(total // FEWEST_SMALL_PARTS, least))
    parts: list[list[Piece]] = []
    held = most + 1
    for pieces in found:
        weight = sum(piece.weight for piece in pieces)
        if held + weight > most:
            parts.append([])
            held = 0
        parts[-1] += pieces
        held += weight
    return parts


def _digest(path: Path) -> str:
    digest = new_digest()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return str(digest.hexdigest())


def make_parts(
    opened: OpenedRecordings,
    manifest: Manifest,
    folder: Path,
    *,
    stride: int | None,
    one_recording: bool,
    run: str,
) -> list[Part]:
    """Files, or pieces of files where no window can run over the border between two.

    Args:
        opened: the files, in order.
        manifest: of the model.
        folder: where the parts are kept.
        stride: instead of the bundle's own.
        one_recording: windows run on from one file into the next.
        run: distinguishes the parts of this run from those of another one.
    """
    window = manifest.input.window
    alone = manifest.input.shape is not None or window.length == (stride or window.stride) == 1
    divisible = alone and not manifest.state
    found: list[list[Piece]] = []
    least = 0
    for recording in opened:
        least = least or (LEAST_BYTES if recording.counts_bytes else LEAST_ROWS)
        pieces = recording.pieces(PIECE_BYTES if divisible else None)
        found += [pieces] if not divisible else [[piece] for piece in pieces]
    if one_recording and not divisible:
        found = [[piece for pieces in found for piece in pieces]]
    else:
        found = _together(found, least)
    return [
        Part(number, pieces, folder / f"{number:06d}-{run}.part", opened.open) for number, pieces in enumerate(found)
    ]


@contextlib.contextmanager
def part_folder(folder: Path, job: Job, files: Sequence[Place]) -> Iterator[tuple[bool, str]]:
    """Lock the folder of a run; return whether the same run was begun in it, and the id of this run.

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
        plan = _describe(job, files)
        yield _resume(folder, plan), hashlib.blake2b(plan, digest_size=6).hexdigest()


def remove_parts(folder: Path) -> None:
    """Remove the folder of a complete run."""
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
    wanted = {
        "runtime": __version__,
        "job": msgspec.to_builtins(replace(job, bundle="")),
        "files": found,
        "piece": PIECE_BYTES,
    }
    return msgspec.json.encode(wanted)
