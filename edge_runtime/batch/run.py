"""A whole run: which files, in which parts, scored by which engine, written to one output, and what it came to."""

import csv
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_runtime.batch.chunks import Chunk, read_chunks
from edge_runtime.batch.evaluate import EvaluationCounts, make_judge, total
from edge_runtime.batch.local_engine import run_parts
from edge_runtime.batch.outputs import OutputColumns, check_output, write_output
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

Engine = Callable[[Job, Sequence[Part], Callable[[int, int], None]], Iterator[PartResult]]


@dataclass(frozen=True)
class PredictOptions:
    """What `edge-runtime predict` was asked for."""

    bundle: Path
    files: Sequence[str]
    output: Place | None
    key: str | None = None
    time: str | None = None
    keep: Sequence[str] = ()
    truth: Sequence[str] = ()
    stride: int | None = None
    max_gap: float | None = None
    on_rate: OnRate = "warn"
    format: str = "auto"
    delimiter: str | None = None
    index_column: bool = False
    one_recording: bool = False
    workers: int | None = None
    threads: int | None = None


@dataclass
class PredictSummary:
    """What a run came to."""

    manifest: Manifest
    files: int = 0
    readings: int = 0
    windows: int = 0
    gaps: int = 0
    rate_hz: float | None = None
    resumed_parts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_file: Place | None = None
    judgement: EvaluationCounts | None = None


def predict(request: PredictOptions, engine: Engine | None = None) -> PredictSummary:
    """Score recorded files.

    Raises:
        EdgeError: something is wrong with the bundle, the files or the output; nothing of an old output is lost.
    """
    bundle = open_bundle(request.bundle)
    manifest = bundle.manifest
    kept = tuple(dict.fromkeys(name for name in (request.key, request.time, *request.keep) if name is not None))
    layout = OutputColumns(manifest, kept)
    if request.truth:
        make_judge(manifest, request.truth)
    if request.output is not None:
        check_output(request.output)
    files = find_files(request.files)
    wanted = Wanted(
        manifest.channel_names,
        manifest.input.tensor_shape,
        framed=manifest.input.shape is not None,
        key=request.key,
        time=request.time,
        columns=tuple(dict.fromkeys([*kept, *request.truth])),
        delimiter=request.delimiter,
        format=request.format,
        index_column=request.index_column,
    )
    job = Job(
        str(request.bundle),
        bundle.digest,
        wanted,
        kept,
        tuple(request.truth),
        request.stride,
        request.max_gap,
        request.on_rate,
    )
    recordings = open_all(files, wanted)
    if request.output is not None and _whole(request.output) in map(_whole, files):
        raise CommandError(f"{request.output}: it is one of the files to be read: choose another output")
    with tempfile.TemporaryDirectory() if request.output is None else _beside(request.output) as name:
        folder = Path(name)
        with part_folder(folder, job, files) as resumed:
            parts = make_parts(recordings, manifest, folder, stride=request.stride, one_recording=request.one_recording)
            here = replace(request, output=_staged(request.output, folder))
            run = _Run(here, job, layout, parts, engine or _local(request), resumed=resumed)
            outcome = run.complete(files)
            if isinstance(request.output, Remote):
                outcome.rejected_file = _upload(request.output, here.output, outcome.rejected_file)
        if request.output is not None:
            remove_parts(folder)
    return outcome


class _beside:  # noqa: N801 - used as a function
    """The folder of an output's parts, which outlives a run that fails; of a remote output in the current folder."""

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
    """Where the output is written: at its place, or here, to be uploaded when it is complete."""
    return folder / output.name if isinstance(output, Remote) else output


def _upload(output: Remote, file: Place | None, rejected: Place | None) -> Remote | None:
    """Bring output and side file to where they belong.

    Raises:
        CommandError: they cannot be written there; the parts are kept, so that the same command goes on.
    """
    assert isinstance(file, Path)
    beside = output.with_name(output.name + ".rejected.csv")
    try:
        if isinstance(rejected, Path):
            beside.take(rejected)
        else:
            beside.remove()
        output.take(file)
    except OSError as error:
        raise CommandError(f"{output}: cannot be written: {error.strerror or error}") from error
    return None if rejected is None else beside


def _local(request: PredictOptions) -> Engine:
    """A process a core; cores that would have no part take windows of the others, unless the user chose processes."""
    cores = request.workers or len(os.sched_getaffinity(0))

    def run(job: Job, parts: Sequence[Part], show: Callable[[int, int], None]) -> Iterator[PartResult]:
        spare = 1 if request.workers else cores // max(1, min(cores, len(parts)))
        return run_parts(replace(job, threads=request.threads or spare), parts, cores, show)

    return run


class _Run:
    """A run on its way: parts become complete while the output is being written."""

    def __init__(
        self,
        request: PredictOptions,
        job: Job,
        layout: OutputColumns,
        parts: list[Part],
        engine: Engine,
        *,
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

    def complete(self, files: Sequence[Place]) -> PredictSummary:
        """Score what is missing, write the output, and add everything up."""
        output = self._request.output
        assert not isinstance(output, Remote)
        try:
            if output is not None:
                write_output(output, self._layout, self._chunks, self._kinds)
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
            resumed_parts=self._resumed,
        )
        rates = [result.rate_hz for result in results if result.rate_hz is not None]
        outcome.rate_hz = statistics.median(rates) if rates else None
        for result in results:
            outcome.rejected.update(result.rejected)
        if self._request.truth:
            outcome.judgement = total(result.judgement for result in results if result.judgement is not None)
        if output is not None:
            outcome.rejected_file = self._write_rejected(output, any(outcome.rejected.values()))
        return outcome

    def _chunks(self) -> Iterator[Chunk]:
        for part in self._parts:
            self._result(part)
            yield from read_chunks(part.target)

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

    def _write_rejected(self, output: Path, wanted: bool) -> Path | None:
        """The list of what was not used, beside the output; an old one goes."""
        path = output.with_name(output.name + ".rejected.csv")
        try:
            if not wanted:
                path.unlink(missing_ok=True)
                return None
            beside = path.with_name(path.name + ".new")
            with beside.open("w", encoding="utf-8", newline="") as file:
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
            beside.replace(path)
        except OSError as error:
            raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path
