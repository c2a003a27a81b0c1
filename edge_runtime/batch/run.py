"""A whole run: choose files, parts and engine, score, write one output, and report the result."""

import csv
import os
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.batch.chunks import Chunk, read_chunks
from edge_runtime.batch.evaluate import EvaluationCounts, describe, make_judge, total
from edge_runtime.batch.local_engine import run_parts
from edge_runtime.batch.outputs import OutputColumns, check_output, publish, write_output
from edge_runtime.batch.parts import Part, make_parts, part_folder, remove_parts
from edge_runtime.batch.progress import Bar
from edge_runtime.batch.score import Job, PartResult, read_faults
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Wanted
from edge_runtime.recordings.files import find_files, open_all
from edge_runtime.recordings.locations import Place, Remote
from edge_runtime.stream.rate import OnRate

UNIT_KEY = "time_unit = "  # as a device file has it
EXPLAINED = ("bad_key", "bad_time", "malformed", "noise")  # reasons whose rows do not show the fault by themselves
DAMAGED = "it is damaged: run the same command again, which scores it anew"

Engine = Callable[[Job, Sequence[Part], Callable[[int, int], None]], Iterator[PartResult]]


@dataclass(frozen=True)
class PredictOptions:
    """The arguments of `edge-runtime predict`."""

    bundle: Place
    files: Sequence[str]
    output: Place | None
    key: str | None = None
    time: str | None = None
    time_unit: str = "s"
    keep: Sequence[str] = ()
    truth: Sequence[str] = ()
    stride: int | None = None
    max_gap: float | None = None
    on_rate: OnRate = "warn"
    format: str = "auto"
    delimiter: str | None = None
    decimal: str = "."
    encoding: str = "utf-8"
    index_column: bool = False
    trailing_delimiter: bool = False
    on_reject: Literal["skip", "fail"] = "skip"
    one_recording: bool = False
    workers: int | None = None
    threads: int | None = None


@dataclass
class PredictSummary:
    """The result of a run."""

    manifest: Manifest
    files: int = 0
    readings: int = 0
    windows: int = 0
    gaps: int = 0
    unsorted: int = 0
    rate_hz: float | None = None
    resumed_parts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_file: Place | None = None
    whys: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, tuple[int, str]] = field(default_factory=dict)
    judgement: EvaluationCounts | None = None
    evaluation: list[str] = field(default_factory=list)


def predict(request: PredictOptions, engine: Engine | None = None) -> PredictSummary:
    """Score recorded files; the bundle may be behind a URL.

    Raises:
        EdgeError: see `predict_with`.
    """
    if not isinstance(request.bundle, Remote):
        return predict_with(request.bundle, request, engine)
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / request.bundle.name
        try:
            with request.bundle.open("rb") as there, bundle.open("wb") as here:
                shutil.copyfileobj(there, here)
        except OSError as error:
            raise CommandError(f"{request.bundle}: cannot be read: {error.strerror or error}") from error
        return predict_with(bundle, request, engine)


def predict_with(path: Path, request: PredictOptions, engine: Engine | None = None) -> PredictSummary:
    """Score recorded files.

    Raises:
        EdgeError: the bundle, the files or the output cannot be used, or no reading could; an old output stays.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    kept = tuple(dict.fromkeys(name for name in (request.key, request.time, *request.keep) if name is not None))
    layout = OutputColumns(manifest, kept)
    if request.truth:
        make_judge(manifest, request.truth)
    if request.output is not None:
        check_output(request.output)
    found = find_files(request.files, any_suffix=request.format != "auto")
    files = found.files
    wanted = Wanted(
        manifest.channel_names,
        manifest.input.tensor_shape,
        framed=manifest.input.shape is not None,
        key=request.key,
        time=request.time,
        columns=tuple(dict.fromkeys([*kept, *request.truth])),
        delimiter=request.delimiter,
        format=request.format,
        decimal=request.decimal,
        encoding=request.encoding,
        time_unit=request.time_unit,
        index_column=request.index_column,
        categories=manifest.categories,
        trailing_delimiter=request.trailing_delimiter,
    )
    job = Job(
        str(path),
        bundle.digest,
        wanted,
        kept,
        tuple(request.truth),
        request.stride,
        request.max_gap,
        request.on_rate,
        request.one_recording,
    )
    opened = open_all(files, wanted)
    if request.output is not None and _whole(request.output) in map(_whole, files):
        raise CommandError(f"{request.output}: it is one of the files to be read: choose another output")
    with tempfile.TemporaryDirectory() if request.output is None else _beside(request.output) as name:
        folder = Path(name)
        with part_folder(folder, job, files) as (resumed, run):
            parts = make_parts(
                opened, manifest, folder, stride=request.stride, one_recording=request.one_recording, run=run
            )
            here = replace(request, output=_staged(request.output, folder))
            chosen = engine or _local(request)
            outcome, written = _Run(here, job, layout, parts, engine=chosen, resumed=resumed).complete(files)
            outcome.passed_over = found.passed_over
            fault = _judge(outcome, request)
            outcome.rejected_file = _publish(request.output, written, bad=fault is not None)
        if request.output is not None:
            remove_parts(folder)
    if fault is not None:
        raise CommandError(f"{fault}, listed in {outcome.rejected_file}" if outcome.rejected_file else fault)
    return outcome


def _judge(outcome: PredictSummary, request: PredictOptions) -> str | None:
    """Why the result may not replace an older one; None where it may."""
    rejected = sum(outcome.rejected.values())
    if outcome.readings and rejected >= outcome.readings:
        return f"none of {outcome.readings} readings could be used: {reasons_in_words(outcome)}"
    if rejected and request.on_reject == "fail":
        return f"{rejected} of {outcome.readings} readings could not be used: {reasons_in_words(outcome)}"
    if outcome.judgement is not None:
        try:
            outcome.evaluation = describe(outcome.judgement, outcome.manifest)
        except CommandError as error:
            return str(error)
    return None


def reasons_in_words(outcome: PredictSummary) -> str:
    """Reasons, the number of each, and the expectation of the first."""
    whys = {
        reason: f" ({why.replace(UNIT_KEY, '--time-unit ')})"
        for reason, why in outcome.whys.items()
        if reason in EXPLAINED
    }
    return ", ".join(f"{reason} {count}{whys.get(reason, '')}" for reason, count in sorted(outcome.rejected.items()))


@dataclass
class _Written:
    """The files of a run before their renaming, complete and durable: the output, and the list of unused readings."""

    output: Path | None = None
    rejected: Path | None = None


def _publish(output: Place | None, written: _Written, *, bad: bool) -> Place | None:
    """Rename the files; of a bad run only the list of unused readings. Return the list's path.

    Raises:
        CommandError: it cannot be written there; the parts are kept, so that the same command can continue.
    """
    if output is None:
        return None
    beside = output.with_name(output.name + ".rejected.csv")
    assert written.output is not None
    try:
        if written.rejected is None:
            beside.unlink(missing_ok=True)
        elif isinstance(beside, Remote):
            beside.take(written.rejected)
        else:
            publish(written.rejected, beside)
        if bad:
            written.output.unlink()
        elif isinstance(output, Remote):
            output.take(written.output)
        else:
            publish(written.output, output)
    except OSError as error:
        raise CommandError(f"{output}: cannot be written: {error.strerror or error}") from error
    return None if written.rejected is None else beside


class _beside:  # noqa: N801 - used as a function
    """The folder of an output's parts, which a failed run keeps; for a remote output in the current folder."""

    def __init__(self, output: Place) -> None:
        name = output.name + ".parts"
        self._name = name if isinstance(output, Remote) else str(output.with_name(name))

    def __enter__(self) -> str:
        return self._name

    def __exit__(self, *_: object) -> None:
        return None


def _whole(file: Place) -> str:
    return str(file if isinstance(file, Remote) else file.absolute())


def _staged(output: Place | None, folder: Path) -> Path | None:
    """The local path of the output: its place, or a file here that is uploaded when it is complete."""
    return folder / output.name if isinstance(output, Remote) else output


def _local(request: PredictOptions) -> Engine:
    """A process for each core; cores without a part take windows of the others, unless the user chose processes."""
    cores = request.workers or len(os.sched_getaffinity(0))

    def run(job: Job, parts: Sequence[Part], show: Callable[[int, int], None]) -> Iterator[PartResult]:
        spare = 1 if request.workers else cores // max(1, min(cores, len(parts)))
        return run_parts(replace(job, threads=request.threads or spare), parts, cores, show)

    return run


class _Run:
    """A running run: parts become complete while the output is written."""

    def __init__(
        self,
        request: PredictOptions,
        job: Job,
        layout: OutputColumns,
        parts: list[Part],
        *,
        engine: Engine,
        resumed: bool,
    ) -> None:
        self._request = request
        self._layout = layout
        self._parts = parts
        self._results: dict[int, PartResult] = {}
        if resumed:
            known = ((part.number, part.result()) for part in parts)
            self._results = {number: result for number, result in known if result is not None}
        self._resumed = len(self._results)
        missing = [part for part in parts if part.number not in self._results]
        weight = sum(part.weight for part in parts)
        self._bar = Bar(weight, weight - sum(part.weight for part in missing))
        self._coming = zip(missing, engine(job, missing, self._bar.show), strict=True)

    def complete(self, files: Sequence[Place]) -> tuple[PredictSummary, _Written]:
        """Score the missing parts, write the files beside the output, and add up the counts."""
        output = self._request.output
        assert not isinstance(output, Remote)
        written = _Written()
        try:
            if output is not None:
                written.output = write_output(output, self._layout, self._chunks, self._kinds)
            for part in self._parts:
                self._result(part)
        finally:
            self._coming.close() if hasattr(self._coming, "close") else None
            self._bar.clear()
        results = [self._results[part.number] for part in self._parts]
        outcome = PredictSummary(
            self._layout.manifest,
            files=len(files),
            readings=sum(result.readings for result in results),
            windows=sum(result.windows for result in results),
            gaps=sum(result.gaps for result in results),
            unsorted=sum(result.unsorted for result in results),
            resumed_parts=self._resumed,
        )
        rates = [result.rate_hz for result in results if result.rate_hz is not None]
        outcome.rate_hz = statistics.median(rates) if rates else None
        for result in results:
            outcome.rejected.update(result.rejected)
            outcome.whys = result.whys | outcome.whys
        if self._request.truth:
            outcome.judgement = total(result.judgement for result in results if result.judgement is not None)
        if output is not None and any(outcome.rejected.values()):
            try:
                written.rejected = self._write_rejected(output)
            except CommandError:
                assert written.output is not None
                written.output.unlink(missing_ok=True)
                raise
        return outcome, written

    def _chunks(self) -> Iterator[Chunk]:
        for part in self._parts:
            rows = 0
            for chunk in self._read(part):
                rows += chunk.count
                yield chunk
            if rows != self._result(part).windows:
                raise CommandError(f"{part.target}: {DAMAGED}")

    def _read(self, part: Part) -> Iterator[Chunk]:
        self._result(part)
        try:
            yield from read_chunks(part.target)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CommandError(f"{part.target}: {DAMAGED}") from error

    def _result(self, part: Part) -> PartResult:
        while part.number not in self._results:
            done, result = next(self._coming)
            self._results[done.number] = result
        return self._results[part.number]

    def _kinds(self) -> dict[str, set[str]]:
        kinds: dict[str, set[str]] = {}
        for part in self._parts:
            for name, found in self._result(part).kinds.items():
                kinds.setdefault(name, set()).update(found)
        return kinds

    def _write_rejected(self, output: Path) -> Path:
        """The list of unused readings, beside the output."""
        path = output.with_name(output.name + ".rejected.csv.new")
        try:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["file", "row", "reason", "text"])
                lines: Counter[str] = Counter()  # of the pieces of each file so far
                for part in self._parts:
                    pieces, result = part.pieces, self._results[part.number]
                    before = []
                    for piece, count in zip(pieces, result.lines, strict=True):
                        before.append(lines[piece.path])
                        lines[piece.path] += count
                    for index, row, reason, text in read_faults(part.target.with_suffix(".faults")):
                        writer.writerow([pieces[index].path, row + before[index], reason, text])
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path
