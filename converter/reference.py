"""The reference of a bundle: the distributions of training data and answers, and the limits for drift.

Limits are calibrated on the earlier part of the recordings and checked on the later one, by the device's own code; the
result is reported. Recordings that are too short give a reference without limits, which still shows and compares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from converter.blocks import cut, longest_runs, sessions_of
from converter.bootstrap import NEVER, SHIFTS_SD, ColumnLimits, limits_of
from converter.data import Dataset
from converter.load.source import Answer
from converter.plan import BundlePlan
from converter.spec import DriftSpec
from edge_runtime.bundle.manifest import (
    BesideLimits,
    ChannelReference,
    DriftLimits,
    DriftReference,
    Input,
    Manifest,
    Output,
    Window,
)
from edge_runtime.bundle.model import Scores
from edge_runtime.drift.baseline import Baseline, Doubles
from edge_runtime.drift.column import medians_of_others
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats

_BINS = 10
MONTH_S = 30 * 86_400.0
CALIBRATING_SHARE = 0.7  # of the blocks calibrate; the later ones check
LASTING_SHARE = 1 / 3  # of the later blocks: an alarm of that length is no chance
LEAST_BLOCKS = 30  # with fewer, the variation of block means is not known
_SIZES = (128, 512, 2048, 8192)  # lengths of a block that are tried; 64 where the recordings are short
_LEAST_BLOCK_S = 10.0  # shorter blocks find nothing sooner that matters, and cost more
_EXPLAINED = 0.7  # of the standard deviation is left at most, where a column is judged beside the others
_MANY_SESSIONS = 8  # with so many recordings, every third one checks
_MOST_READINGS = 400_000  # rows of the earlier and of the later part that are used
_MOST_CHECKED = 200_000
_MOST_OUTPUTS = 32  # scores of more classes are not watched
_UNKNOWN_RATE_S = 60.0  # seconds between readings, where neither specification nor recordings have a rate


@dataclass(frozen=True, slots=True)
class BundleReference:
    """The reference in the manifest.

    Attributes:
        channels: of the readings.
        scores: of the answers.
        drift: the settings and results of the calibration; None without limits.
        notes: sentences for progress and report.
    """

    channels: tuple[ChannelReference, ...] = ()
    scores: tuple[ChannelReference, ...] = ()
    drift: DriftReference | None = None
    notes: tuple[str, ...] = ()


def reference_of(readings: NDArray[np.floating], names: Sequence[str]) -> tuple[ChannelReference, ...]:
    """The distribution of each channel, for drift: quantile edges and how many readings lie between them."""
    result = []
    for column, name in enumerate(names):
        every = readings[:, column].astype(np.float64)
        values = every[np.isfinite(every)]  # a channel that may be missing is NaN there
        missing = 1.0 - len(values) / max(1, len(every))
        values = values if len(values) else np.zeros(1)
        edges = np.unique([_short(edge) for edge in np.quantile(values, np.linspace(0.0, 1.0, _BINS + 1))])
        result.append(
            ChannelReference(
                name=name,
                mean=_short(values.mean()),
                std=_short(values.std()),
                min=_short(values.min()),
                max=_short(values.max()),
                edges=tuple(edges.tolist()),
                counts=_counts(values, edges),
                missing=_short(missing),
            )
        )
    return tuple(result)


def make_reference(
    plan: BundlePlan, data: Dataset | None, answer: Answer, wanted: DriftSpec, *, say: Callable[[str], None]
) -> BundleReference:
    """The reference of a bundle.

    Args:
        plan: the bundle's facts.
        data: the recordings; None where there are none.
        answer: to the windows that judge, in their order.
        wanted: the allowed false alarms, and the length of a block.
        say: takes lines of progress.
    """
    if data is None:
        return BundleReference()
    names = [channel.name for channel in plan.input.channels]
    scores, columns = _numbers(plan, answer)
    channels = reference_of(data.readings, names) if names else ()
    scored = reference_of(scores, columns) if columns else ()
    rate_hz = plan.input.window.rate_hz or data.rate_hz
    found = BundleReference(channels, scored)
    if names:
        found = _calibrated(found, data, plan, wanted, rate_hz=rate_hz)
    if columns:
        found = _with_scores(found, scores, plan, wanted, rate_hz=rate_hz)
    for line in found.notes:
        say(line)
    return found


# --- readings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One length of a block with its result."""

    block: int
    channels: tuple[ChannelReference, ...]
    blocks: int
    memory: float
    delays: tuple[float, ...]  # in readings


def _calibrated(
    found: BundleReference, data: Dataset, plan: BundlePlan, wanted: DriftSpec, *, rate_hz: float | None
) -> BundleReference:
    sessions = sessions_of(data.reading_groups, len(data.readings))
    early, late = _parted(sessions)
    trials = [
        trial
        for block in _sizes(early, wanted.block, rate_hz)
        if (trial := _try(found.channels, data.readings, early, block, wanted=wanted, rate_hz=rate_hz))
    ]
    if not trials:
        count = sum(len(rows) for rows in early)
        least = LEAST_BLOCKS * (wanted.block or 64)
        text = (
            f"drift: no limits: {count:,} readings are too few for blocks of {wanted.block or 64} "
            f"(at least {least:,}): a device reports what is stuck, missing or out of range, and shows the rest"
        )
        return replace(found, notes=(*found.notes, text))
    best = min(trials, key=lambda trial: float(np.log(trial.delays).sum()))
    about = DriftReference(
        block=best.block,
        score_block=best.block,
        rate_hz=rate_hz,
        memory=best.memory,
        false_alarms_per_month=wanted.false_alarms_per_month,
    )
    check = _check(best, data.readings, late, plan, about=about)
    about = msgspec.structs.replace(about, checked=check.blocks, alarms=check.alarms)
    notes = _in_words(best, about, check, rate_hz)
    return BundleReference(best.channels, found.scores, about, (*found.notes, notes))


def _parted(sessions: list[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """The rows that calibrate and those that check: of many recordings every third, else the end of each."""
    if len(sessions) >= _MANY_SESSIONS:
        return [rows for place, rows in enumerate(sessions) if place % 3 != 2], sessions[2::3]
    cuts = [int(len(rows) * CALIBRATING_SHARE) for rows in sessions]
    early = [rows[:cut] for rows, cut in zip(sessions, cuts, strict=True)]
    return early, [rows[cut:] for rows, cut in zip(sessions, cuts, strict=True)]


def _sizes(early: list[NDArray[np.int64]], asked: int | None, rate_hz: float | None) -> list[int]:
    """The lengths of a block that the recordings allow; of a fast stream only those that a device can afford."""
    if asked is not None:
        return [asked]
    fitting = [size for size in _SIZES if sum(len(rows) // size for rows in early) >= 2 * LEAST_BLOCKS]
    least = 0.0 if rate_hz is None else _LEAST_BLOCK_S * rate_hz
    return [size for size in fitting if size >= least] or fitting[-1:] or [64, 32]


def _try(
    references: tuple[ChannelReference, ...],
    values: NDArray[np.floating],
    early: list[NDArray[np.int64]],
    block: int,
    *,
    wanted: DriftSpec,
    rate_hz: float | None,
) -> _Trial | None:
    """Limits for one length of a block; None where the recordings are too short for it."""
    most = max(block, _MOST_READINGS // max(1, len(early)))
    part = [rows[-most:] for rows in early if len(rows)]
    if not part:
        return None
    used = np.concatenate(part)
    base = Baseline(references, None, block)
    std = np.nan_to_num(base.std, nan=1.0)
    blocks = cut(values, part, block, edges=base.edges, std=std)
    if len(blocks) < LEAST_BLOCKS:
        return None
    seconds = _UNKNOWN_RATE_S if rate_hz is None else 1.0 / rate_hz
    known = values[used].astype(np.float64)
    known[~np.isfinite(known)] = np.nan
    mean = _mean(known)
    sd, step_sd = _spread(blocks.mean, std), _spread(blocks.step, np.full(len(std), 1.0))
    step = _mean(blocks.step)
    beside = _beside(blocks.step)
    counts = np.full(base.shares.shape, np.nan)
    for column, reference in enumerate(references):
        if base.known[column]:
            own = _counts(known[:, column], np.array(reference.edges))
            counts[column, : len(own)] = own
    limits = limits_of(
        blocks, mean=mean, sd=sd, std=std, step=step, step_sd=step_sd, counts=counts,
        beside=None if beside is None else (beside.steps - beside.mean) / beside.sd,
        alarms=wanted.false_alarms_per_month * block * seconds / MONTH_S,
        day=None if rate_hz is None else 86_400.0 * rate_hz / block,
    )  # fmt: skip
    runs = list(map(max, longest_runs(values, part), longest_runs(values, part, every=base.every)))
    limited = []
    for column, reference in enumerate(references):
        varies = bool(np.isfinite(base.std[column]))
        limit = _limits(column, limits, (mean, sd, step, step_sd), counts, beside=beside) if varies else None
        limited.append(msgspec.structs.replace(reference, run=runs[column], limits=limit))
    return _Trial(block, tuple(limited), len(blocks), limits.memory, tuple(delay * block for delay in limits.delays))


def _spread(found: Doubles, least: Doubles) -> Doubles:
    """The standard deviation over blocks, with a floor, since a constant value in a few blocks may vary later."""
    return np.maximum(np.sqrt(_mean((found - _mean(found)) ** 2)), 0.02 * least)


def _mean(values: Doubles) -> Doubles:
    """For each column the value; 0 where it is missing."""
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Beside:
    """The logarithms of mean steps of blocks, less a share of the median of the other columns; of each column."""

    share: Doubles  # 0 where the others say little of the column
    steps: Doubles  # [blocks, columns]
    mean: Doubles
    sd: Doubles


def _beside(steps: Doubles) -> _Beside | None:
    """What the other columns explain of how much each moves; None where they explain too little of any."""
    if steps.shape[1] < 2:
        return None
    others = np.array([medians_of_others([None if np.isnan(one) else one for one in row]) for row in steps.tolist()])
    others = others.astype(np.float64)  # None becomes NaN
    own_part, their_part = steps - _mean(steps), others - _mean(others)
    both = np.isfinite(own_part) & np.isfinite(their_part)
    own_part, their_part = np.where(both, own_part, 0.0), np.where(both, their_part, 0.0)
    share = (own_part * their_part).sum(axis=0) / np.maximum((their_part**2).sum(axis=0), 1e-9)
    left = steps - share * others
    sd = _spread(left, np.full(len(share), 1.0))
    share = np.where((share > 0.0) & (sd < _EXPLAINED * _spread(steps, np.full(len(share), 1.0))), share, 0.0)
    return _Beside(share, left, _mean(left), sd) if share.any() else None


def _limits(
    column: int,
    limits: ColumnLimits,
    figures: tuple[Doubles, Doubles, Doubles, Doubles],
    counts: Doubles,
    *,
    beside: _Beside | None,
) -> DriftLimits:
    mean, sd, step, step_sd = (_short(each[column]) for each in figures)
    own = counts[column][np.isfinite(counts[column])]
    return DriftLimits(
        mean=mean, sd=sd, step=step, step_sd=step_sd,
        slack=_short(limits.slack[column]), limit=_short(limits.limit[column]),
        step_slack=_short(limits.step_slack[column]), step_limit=_short(limits.step_limit[column]),
        psi=_short(limits.psi[column]) if len(own) else 1e9, counts=tuple(int(each) for each in own),
        beside=None if beside is None or not beside.share[column] else BesideLimits(
            share=_short(beside.share[column]), mean=_short(beside.mean[column]), sd=_short(beside.sd[column]),
            slack=_short(limits.beside_slack[column]), limit=_short(limits.beside_limit[column]),
        ),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Check:
    """What a device's monitor found in later recordings: new alarms, blocks in alarm, and the first alarm's reason."""

    blocks: int
    alarms: int
    in_alarm: int
    why: str | None

    def verdict(self, expected: float, *, otherwise: str) -> str:
        """Whether there are no more alarms than by chance; `otherwise` says what it means if there are.

        An alarm by chance ends soon. One that lasts is a change, and would else count once like that.
        """
        if not self.blocks:
            return "nothing was left to check by"
        if self.alarms > _most_by_chance(expected):
            return f"not held ({self.why}): {otherwise}"
        if self.in_alarm > LASTING_SHARE * self.blocks:
            return f"not held ({self.why}; in alarm for {self.in_alarm} of {self.blocks} blocks): {otherwise}"
        return "held"


def _check(
    trial: _Trial,
    values: NDArray[np.floating],
    late: list[NDArray[np.int64]],
    plan: BundlePlan,
    *,
    about: DriftReference,
    of_answers: bool = False,
) -> _Check:
    """Run a device's monitor over the later recordings."""
    manifest = Manifest(
        name="check", version="0.0.0", task="regression", output=Output(), drift=about,
        reference=() if of_answers else trial.channels, score_reference=trial.channels if of_answers else (),
        input=Input(channels=plan.input.channels, window=Window()),
    )  # fmt: skip
    blocks, alarms, in_alarm, why = 0, 0, 0, None
    room = _MOST_CHECKED
    for rows in late:
        monitor = Monitor(manifest, is_recorded=True)
        began: list[str] = []
        monitor.on_change.append(partial(_note, began))
        part = values[rows[: max(0, room)]].astype(np.float32)
        room -= len(part)
        for start in range(0, len(part), trial.block):
            piece: Floats = part[start : start + trial.block]
            before = len(began)
            if of_answers:
                monitor.take_scores(Scores(value=piece), [None] * len(piece))
            else:
                monitor.take(piece, [None] * len(piece), None, 0.0)
            in_alarm += monitor.state == "alarm" and len(piece) == trial.block
            if "alarm" in began[before:] and why is None:
                why = monitor.document()["why"]
        blocks += monitor.blocks
        alarms += began.count("alarm")
    return _Check(blocks, alarms, in_alarm, why)


def _note(began: list[str], key: str | None, state: str) -> None:
    del key
    began.append(state)


def _in_words(trial: _Trial, about: DriftReference, check: _Check, rate_hz: float | None) -> str:
    """A sentence about the calibration and the check on later recordings."""
    expected = _expected(about, about.checked * about.block, rate_hz)
    asked = f"{about.false_alarms_per_month:g} false alarms a month"
    unit = "" if rate_hz is not None else " (of one reading a minute, since neither rate_hz nor times are known)"
    sizes = [
        f"of {size:g} {'is not found' if delay >= 0.9 * NEVER * trial.block else f'after about {delay:,.0f} readings'}"
        for size, delay in zip(SHIFTS_SD, trial.delays, strict=True)
    ]
    delay = f"an offset {' and one '.join(sizes)} (standard deviations)"
    head = (
        f"drift: limits from {trial.blocks} blocks of {about.block} readings, for {asked}{unit}; {delay}; "
        f"on {about.checked} later blocks {about.alarms} alarms, {expected:.2g} expected: "
    )
    return head + check.verdict(
        expected,
        otherwise="the later recordings differ from the earlier ones: record longer, or say another "
        "`false_alarms_per_month` in [drift]",
    )  # fmt: skip


def _expected(about: DriftReference, count: int, rate_hz: float | None) -> float:
    """False alarms within so many readings or windows, at the rate that was asked for."""
    seconds = _UNKNOWN_RATE_S if rate_hz is None else 1.0 / rate_hz
    return about.false_alarms_per_month * count * seconds / MONTH_S


def _most_by_chance(expected: float) -> int:
    """The 95 % quantile of a Poisson law of this mean."""
    term = total = np.exp(-expected)
    most = 0
    while total < 0.95:
        most += 1
        term *= expected / most
        total += term
    return most


# --- answers --------------------------------------------------------------------------------------------------------


def _numbers(plan: BundlePlan, answer: Answer) -> tuple[NDArray[np.floating], tuple[str, ...]]:
    """The numbers of the answers with their names; none for tensors and for very many classes."""
    values = answer.scores if answer.scores is not None else answer.value
    if values is None and answer.score is not None:
        values = answer.score[:, np.newaxis]
    names = plan.labels or tuple(target.name for target in plan.targets) or ("score",)
    if values is None or plan.task == "detection" or values.shape[1] != len(names) or len(names) > _MOST_OUTPUTS:
        return np.zeros((0, 0)), ()
    return values, names


def _with_scores(
    found: BundleReference, scores: NDArray[np.floating], plan: BundlePlan, wanted: DriftSpec, *, rate_hz: float | None
) -> BundleReference:
    """Limits for the answers, from the earlier part of the windows; they are in the order of the recordings."""
    cut_at = int(len(scores) * CALIBRATING_SHARE)
    early, late = [np.arange(cut_at)], [np.arange(cut_at, len(scores))]
    rate = None if rate_hz is None else rate_hz / plan.input.window.stride
    asked = None if wanted.block is None else max(8, wanted.block // plan.input.window.stride)
    for block in [asked] if asked is not None else [*_sizes(early, None, rate)[:1], 32, 16]:
        trial = _try(found.scores, scores, early, block, wanted=wanted, rate_hz=rate)
        if trial is not None:
            about = found.drift or DriftReference(
                block=block, score_block=block, rate_hz=rate_hz,
                false_alarms_per_month=wanted.false_alarms_per_month,
            )  # fmt: skip
            about = msgspec.structs.replace(about, score_block=block, score_memory=trial.memory)
            check = _check(trial, scores, late, plan, about=about, of_answers=True)
            about = msgspec.structs.replace(about, score_checked=check.blocks, score_alarms=check.alarms)
            notes = _answers_in_words(trial, about, check, rate)
            return BundleReference(found.channels, trial.channels, about, (*found.notes, notes))
    return found


def _answers_in_words(trial: _Trial, about: DriftReference, check: _Check, rate_hz: float | None) -> str:
    """What later answers, which calibration has not seen, say of the limits."""
    expected = _expected(about, about.score_checked * about.score_block, rate_hz)
    head = (
        f"drift of answers: limits from {trial.blocks} blocks of {about.score_block} windows; on {about.score_checked} "
        f"later blocks {about.score_alarms} alarms, {expected:.2g} expected: "
    )
    return head + check.verdict(
        expected,
        otherwise="the model answers otherwise to the later recordings: record longer",
    )  # fmt: skip


def _counts(values: NDArray[np.floating], edges: NDArray[np.floating]) -> tuple[int, ...]:
    """The number of values in each bin; values outside count in the outer bins."""
    known = values[np.isfinite(values)]
    if len(edges) < 2:
        return (len(known),)
    inner = edges[1:-1].astype(np.float32).astype(np.float64)  # compared in float32, as on a device
    places = np.searchsorted(inner, known, side="right")
    return tuple(int(count) for count in np.bincount(places, minlength=len(edges) - 1))


def _short(value: object) -> float:
    return float(f"{float(value):.7g}")  # type: ignore[arg-type]
