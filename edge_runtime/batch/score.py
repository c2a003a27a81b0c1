"""One part of a run: read, check, window, score, and write the scored windows. The same in every worker.

Guarantee: the part's file gets its name when it is complete; an interrupted part leaves no file. Its result holds the
digests of its files, by which a later run detects damage by a power cut. Unused readings are listed with place and
reason. Memory is bounded by one block, for recordings of any length.
"""

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from edge_runtime.batch.chunks import Chunk, write_chunk
from edge_runtime.batch.evaluate import EvaluationCounts, Judge, make_judge
from edge_runtime.batch.even_windows import EvenWindows
from edge_runtime.batch.side_by_side import SideBySide
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Model, ModelError, ModelOptions, Scores, row_bytes
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError
from edge_runtime.readings import Carry, Floats
from edge_runtime.recordings.blocks import (
    ArrowColumns,
    Block,
    Columns,
    Fault,
    ListColumns,
    Piece,
    Recording,
    TextColumns,
    Wanted,
)
from edge_runtime.recordings.files import open_recording
from edge_runtime.recordings.locations import place
from edge_runtime.stream.contract import Contract
from edge_runtime.stream.frame_contract import frame_contract
from edge_runtime.stream.rate import OnRate, Pace
from edge_runtime.stream.windows import Windows

BLOCK_ROWS = 16_384
BLOCK_BYTES = 1 << 24  # the largest number of windows of one block
CALL_BYTES = 1 << 20  # the windows of one call of the model: a batch that fits into a cache is scored fastest
MAX_KEYS = 1_000_000
GAP_PERIODS = 10  # without `max_gap`, a jump of the time by more than so many periods of the rate is a gap


class InterruptedPartError(CommandError):
    """The run was stopped; the part is done again next time."""


@dataclass(frozen=True)
class Job:
    """The settings of all parts of a run.

    Attributes:
        bundle: the bundle's file; `digest` must still be its digest.
        wanted: the columns to read from the files.
        kept: the columns copied beside the predictions.
        truth: the columns of the truth; empty without an evaluation.
        stride: instead of the bundle's own.
        max_gap: seconds, instead of the value from the bundle's rate.
        on_rate: the treatment of a stream with another rate than the bundle's.
        one_recording: windows run on from one file into the next.
        threads: models side by side in each process; not part of the run's identity, since they change no bit.
    """

    bundle: str
    digest: str
    wanted: Wanted
    kept: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    stride: int | None = None
    max_gap: float | None = None
    on_rate: OnRate = "warn"
    one_recording: bool = False
    threads: int = 1


class PartResult(msgspec.Struct):
    """The result of a part.

    Attributes:
        unsorted: readings with an earlier time than the previous reading of the same key.
        lines: the number of lines or rows of each piece.
        digests: of its files, by suffix.
        whys: expectation and finding of the first reading of each reason.
    """

    readings: int = 0
    windows: int = 0
    gaps: int = 0
    unsorted: int = 0
    rate_hz: float | None = None
    rejected: dict[str, int] = {}
    lines: list[int] = []
    kinds: dict[str, list[str]] = {}
    judgement: EvaluationCounts | None = None
    digests: dict[str, str] = {}
    whys: dict[str, str] = {}


def new_digest() -> Any:
    """The digest of a part's file."""
    return hashlib.blake2b(digest_size=16)


class _DigestedFile:
    """A file that is written sequentially, and the digest of its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = new_digest()

    def write(self, data: bytes) -> None:
        """Append."""
        self._digest.update(data)
        self._file.write(data)

    def hexdigest(self) -> str:
        """The digest of all written bytes."""
        return str(self._digest.hexdigest())


@dataclass
class Progress:
    """Takes a part's progress, and tells it to stop."""

    add: Callable[[int, int], None] = lambda _weight, _readings: None
    stopped: Callable[[], bool] = lambda: False


_models: dict[tuple[str, str, int, int], SideBySide] = {}


def load_model(job: Job) -> SideBySide:
    """The job's model, loaded once in each process."""
    path = (job.bundle, job.digest, os.getpid(), job.threads)
    if path not in _models:
        bundle = open_bundle(Path(job.bundle))
        if bundle.digest != job.digest:
            raise CommandError(f"{job.bundle}: it changed while it was in use: start again")
        most = max(64, min(4096, CALL_BYTES // row_bytes(bundle.manifest)))
        _models.clear()
        options = ModelOptions(max_batch=most, arena=True)
        _models[path] = SideBySide(lambda: Model(bundle, options), job.threads)
    return _models[path]


Open = Callable[[str, Wanted], Recording]


def open_anew(path: str, wanted: Wanted) -> Recording:
    """Open the file of a piece in a worker."""
    return open_recording(place(path), wanted)


def score_part(
    job: Job, pieces: list[Piece], target: Path, progress: Progress, *, open_piece: Open = open_anew
) -> PartResult:
    """Score some pieces, which follow one another, into `target`.

    Args:
        job: the settings of the run.
        pieces: the pieces to read.
        target: the part's file.
        progress: takes the progress.
        open_piece: opens the file of a piece by its path.

    Raises:
        EdgeError: a file cannot be read, the disk is full, or the run was stopped.
    """
    unfinished, faults = target.with_suffix(".new"), target.with_suffix(".faults")
    try:
        with unfinished.open("wb") as file, faults.open("wb") as fault_file:
            scored, listed = _DigestedFile(file), _DigestedFile(fault_file)
            result = _Part(job, load_model(job), scored, listed, progress, open_piece).run(pieces)
            result.digests = {target.suffix: scored.hexdigest(), faults.suffix: listed.hexdigest()}
        unfinished.replace(target)
        summary = target.with_suffix(".json")
        beside = target.with_suffix(".json-new")
        beside.write_bytes(msgspec.json.encode(result))
        beside.replace(summary)
    except OSError as error:
        raise CommandError(f"{target.parent}: cannot be written: {error.strerror or error}") from error
    return result


@dataclass
class _Part:
    """The state of a part that is being scored."""

    job: Job
    model: SideBySide
    file: _DigestedFile
    fault_file: _DigestedFile
    progress: Progress
    open_piece: Open
    rejected: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    whys: dict[str, str] = field(default_factory=dict)

    def run(self, pieces: list[Piece]) -> PartResult:
        job, manifest = self.job, self.model.manifest
        result = PartResult()
        judge = make_judge(manifest, job.truth) if job.truth else None
        windower: Windower | None = None
        rates: list[float] = []
        before = ""
        for number, piece in enumerate(pieces):
            recording = self.open_piece(piece.path, job.wanted)
            begins = piece.path != before and not job.one_recording
            if windower is None or (begins and (windower.remembers or windower.whole != recording.whole)):
                if windower is not None:
                    result.gaps += windower.gaps
                    result.unsorted += windower.unsorted
                    rates += [] if windower.rate_hz is None else [windower.rate_hz]
                windower = Windower(manifest, job, whole=recording.whole)
            before = piece.path
            lines = 0
            for block in recording.blocks(piece, windower.block_rows):
                if self.progress.stopped():
                    raise InterruptedPartError("interrupted")
                result.readings += len(block) + len(block.faults)
                lines += block.lines
                result.windows += self._take(number, block, windower, judge)
                self.progress.add(block.done, len(block))
            result.lines.append(lines)
        if windower is not None:
            result.gaps += windower.gaps
            result.unsorted += windower.unsorted
            rates += [] if windower.rate_hz is None else [windower.rate_hz]
        result.rate_hz = statistics.median(rates) if rates else None
        result.rejected = dict(self.rejected)
        result.whys = self.whys
        result.kinds = {name: sorted(kinds) for name, kinds in self.kinds.items()}
        result.judgement = None if judge is None else judge.judgement
        return result

    def _take(self, piece: int, block: Block, windower: "Windower", judge: Judge | None) -> int:
        good = windower.judge(block)
        refused = windower.reasons(block, good) if good is not None else {}
        refusals = [Fault(block.rows[row], reason, block.text(row)) for row, reason in refused.items()]
        self._note(piece, sorted([*block.faults, *refusals], key=lambda fault: fault.row))
        if good is not None:
            block = block.take(np.flatnonzero(good).tolist())
        if not len(block):
            return 0
        windows, rows, carries = windower.push(block)
        if windower.refused:
            self._note(piece, [Fault(block.rows[row], "wrong_rate", block.text(row)) for row in windower.refused])
        if not len(windows):
            return 0
        scores, rows = self._score(windows, rows, carries, piece, block=block)
        if not len(rows):
            return 0
        columns = block.columns if len(rows) == len(block) else block.columns.take(rows)
        if judge is not None:
            judge.add(scores, [columns.values(name) for name in self.job.truth])
        write_chunk(self.file, Chunk(len(rows), scores, self._kept(columns)))
        return len(rows)

    def _kept(self, columns: Columns) -> Columns:
        """Keep only the columns beside the predictions; of untyped values note the types."""
        if isinstance(columns, ArrowColumns):
            return ArrowColumns(columns.batch.select(list(self.job.kept))) if self.job.kept else ListColumns({})
        if isinstance(columns, TextColumns) and self.job.kept:
            for name in self.job.kept:
                self.kinds.setdefault(name, set()).add("str")
            return TextColumns(columns.batch.select(list(self.job.kept)))
        kept = {name: columns.values(name) for name in self.job.kept}
        for name, values in kept.items():
            self.kinds.setdefault(name, set()).update({type(value).__name__ for value in values})
        return ListColumns(kept)

    def _score(
        self, windows: Floats, rows: list[int], carries: list[Carry] | None, piece: int, *, block: Block
    ) -> tuple[Scores, list[int]]:
        """Scores and rows of the windows that the model answered with finite numbers."""
        try:
            scores = self.model.run(windows, carries)
        except ModelError:
            scores, good = self._one_by_one(windows, carries)
        else:
            finite = scores.finite_rows()
            if finite is None:
                return scores, rows
            good = np.flatnonzero(finite).tolist()
            scores = scores.rows(good)
            for row in np.flatnonzero(~finite).tolist():
                if carries is not None:
                    carries[row].parts = None  # as in the stream: a state that is NaN would stay NaN
        bad = sorted(set(range(len(rows))).difference(good))
        for row in bad:
            self._note(piece, [Fault(block.rows[rows[row]], "model_failed", block.text(rows[row]))])
        return scores, [rows[row] for row in good]

    def _one_by_one(self, windows: Floats, carries: list[Carry] | None) -> tuple[Scores, list[int]]:
        """Find the windows on which the model fails; their neighbours are scored."""
        found: list[Scores] = []
        good: list[int] = []
        for row in range(len(windows)):
            try:
                scores = self.model.run(windows[row : row + 1].copy(), None if carries is None else [carries[row]])
            except ModelError:
                continue
            if scores.finite_rows() is None:
                found.append(scores)
                good.append(row)
        if not found:
            return Scores(), []
        return Scores.joined(found), good

    def _note(self, piece: int, faults: list[Fault]) -> None:
        for fault in faults:
            self.rejected[fault.reason] += 1
            if fault.why and fault.reason not in self.whys:
                self.whys[fault.reason] = fault.why
            self.fault_file.write(msgspec.json.encode((piece, fault.row, fault.reason, fault.text)) + b"\n")


class Windower:
    """Readings -> windows, by the rules of the stream: the contract, then `windows.py`."""

    def __init__(self, manifest: Manifest, job: Job, *, whole: bool) -> None:
        window, shape = manifest.input.window, manifest.input.tensor_shape
        self.whole = whole
        self._channels = manifest.input.channels
        self._contract = Contract(self._channels) if self._channels else None
        self._frames = frame_contract(manifest.input)
        framed = whole or manifest.input.shape is not None
        length = 1 if framed else window.length
        stride = 1 if framed else job.stride or window.stride
        self._windows = Windows(shape, length=length, stride=stride, max_gap=None, max_keys=MAX_KEYS)
        rate_gap = None if window.rate_hz is None else max(GAP_PERIODS / window.rate_hz, 1.0)
        self._max_gap = job.max_gap or rate_gap
        self._on_rate = job.on_rate
        self._pace = None
        self.unsorted = 0
        self._last_times: dict[str | None, float] = {}
        self.refused: list[int] = []  # readings of the last block with a wrong rate
        if window.rate_hz is not None and not framed and (length > 1 or manifest.state):
            self._pace = Pace(
                window.rate_hz,
                length,
                job.on_rate,
                restart=self._windows.restart,
                notice=lambda _: None,
                holds=False,
                max_keys=MAX_KEYS,
            )
        # A window of one reading of a model without states is that reading; no state is kept.
        self._direct = length == stride == 1 and not manifest.state
        plain = job.wanted.key is None and job.wanted.time is None and not manifest.state
        self._timed = job.wanted.time is not None  # keys whose order is checked
        self._even = EvenWindows(length, stride) if plain and not framed and not self._direct else None
        self._shape = shape
        self.block_rows = max(16, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes(manifest)))

    @property
    def remembers(self) -> bool:
        """Whether a state carries over from reading to reading; else one object serves several recordings."""
        return not self._direct or self._timed

    @property
    def gaps(self) -> int:
        """The number of restarted windows."""
        return self._windows.gaps

    @property
    def rate_hz(self) -> float | None:
        """The measured rate, the median over the keys; None where it is not known."""
        return None if self._pace is None else self._pace.rate_hz

    def judge(self, block: Block) -> Any:
        """None when every reading satisfies the contract, else `[n]`, True where good."""
        values = block.values
        if self._contract is None:
            if self._frames is not None:
                return self._frames.check(values, []) if len(values) else None
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            return None if finite.all() else finite
        if not self.whole:
            return self._contract.check(values, []) if len(values) else None
        flat = values.reshape(-1, len(self._channels))
        good = self._contract.check(flat, [])
        return None if good is None else good.reshape(len(values), -1).all(axis=1)

    def reasons(self, block: Block, good: Any) -> dict[int, str]:
        """The reason of each refused reading."""
        found = {}
        for row in np.flatnonzero(~good).tolist():
            if self._contract is None:
                found[row] = "not_finite" if self._frames is None else self._frames.reason(block.values[row])
                continue
            alone = Contract(self._channels)
            alone.check(block.values[row].reshape(-1, len(self._channels)), [])
            found[row] = next(iter(alone.rejected), "out_of_range")
        return found

    def push(self, block: Block) -> tuple[Floats, list[int], list[Carry] | None]:
        """The windows that the block completes, and for each the reading that completed it."""
        count = len(block)
        if self._direct:
            return block.values.reshape(count, *self._shape), list(range(count)), None
        if self._even is not None:
            windows, rows = self._even.push(block.values)
            return windows.reshape(len(windows), *self._shape), rows, None
        keys: list[str | None] = block.keys if block.keys is not None else [None] * count
        timed = block.times is not None and None not in block.times
        times = [float(moment or 0.0) for moment in block.times] if block.times is not None else [0.0] * count
        self._windows.watch_gaps(self._max_gap if timed else None)
        if timed:
            self._count_unsorted(keys, times)
        self.refused = []
        paced = self._pace.take(block.values, keys, times, 0.0) if self._pace is not None and timed else None
        if paced is None:
            done = self._windows.push(block.values, keys, times, 0.0)
            return done.windows, done.rows, done.carries
        if self._on_rate == "reject":
            self.refused = sorted(set(range(count)).difference(paced.rows))
        done = self._windows.push(paced.values, paced.keys, paced.times, 0.0)
        return done.windows, [paced.rows[row] for row in done.rows], done.carries

    def _count_unsorted(self, keys: list[str | None], times: list[float]) -> None:
        last = self._last_times
        for key, moment in zip(keys, times, strict=True):
            if moment < last.get(key, moment):
                self.unsorted += 1
            last[key] = moment


def read_faults(path: Path) -> Iterator[tuple[int, int, str, str]]:
    """Piece, row, reason and text of a part's unused readings."""
    decode = msgspec.json.Decoder(tuple[int, int, str, str]).decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)
