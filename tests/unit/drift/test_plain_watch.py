"""The watch against a plain one that takes readings one by one, with loops and lists and no numpy in its arithmetic."""

import itertools
import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest

from converter.reference import reference_of
from edge_runtime.bundle.manifest import (
    BesideLimits,
    Channel,
    ChannelReference,
    DriftLimits,
    DriftReference,
    Input,
    Manifest,
    Output,
)  # fmt: skip
from edge_runtime.bundle.model import Scores
from edge_runtime.drift.baseline import MOST_SAMPLED, MOST_TOGETHER, Baseline
from edge_runtime.drift.block_sums import BlockSums
from edge_runtime.drift.column import medians_of_others
from edge_runtime.drift.columns import FIRST_BLOCKS, WatchedColumns
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats
from tests.support import drifting

NAMES = ("temperature", "pressure")
MEMORY = 8.0
AXES = ("x", "y", "z", "roll", "yaw")


class PlainColumn:
    """What `docs/drift.md` says of one column, as a reader would write it down."""

    def __init__(self, reference: ChannelReference, block: int) -> None:
        self.reference, self.block = reference, block
        self.every = max(1, block // MOST_SAMPLED)
        self.seen: list[float] = []
        size = block // self.every
        self.counts = [size * MEMORY * share for share in self.shares(reference.counts)]
        self.sums = {"offset up": 0.0, "offset down": 0.0, "step up": 0.0, "step down": 0.0}
        self.psi = self.missing = self.late_count = self.late_total = 0.0
        self.run, self.blocks = 0, 0

    def take(self, value: float) -> None:
        """One reading."""
        self.seen.append(value)
        if len(self.seen) % self.block == 0:
            self.judge()

    def judge(self) -> None:
        """A block is whole."""
        self.blocks += 1
        sampled = self.seen[:: self.every] if self.block % self.every == 0 else []
        size = self.block // self.every
        now, before = sampled[-size:], sampled[-size - 1 : -size]
        there = [each for each in now if math.isfinite(each)]
        way = [abs(b - a) for a, b in zip([*before, *now], [*before, *now][1:], strict=False) if math.isfinite(b - a)]
        limits = self.reference.limits
        assert limits is not None
        mean = sum(there) / max(1, len(there))
        self.add("offset", (mean - limits.mean) / limits.sd if 2 * len(there) >= size else 0.0)
        step = math.log(max(sum(way) / max(1, len(way)), 1e-4 * self.reference.std))
        self.add("step", (step - limits.step) / limits.step_sd if 2 * len(way) >= size else 0.0)
        edges = [-math.inf, *map(float, np.array(self.reference.edges[1:-1], np.float32)), math.inf]
        for place, (low, high) in enumerate(pairwise(edges)):
            self.counts[place] *= 1 - 1 / MEMORY
            self.counts[place] += sum(low <= each < high for each in there)
        late, training = self.shares(self.counts), self.shares(self.reference.counts)
        if self.blocks >= FIRST_BLOCKS:
            self.psi = sum((q - p) * math.log(q / p) for p, q in zip(training, late, strict=True))
        self.missing = 1 - len(there) / size
        self.late_count = (1 - 1 / MEMORY) * self.late_count + len(there)
        self.late_total = (1 - 1 / MEMORY) * self.late_total + sum(each - limits.mean for each in there)
        self.run = 0
        for each in reversed(sampled):
            if each - sampled[-1] != 0.0:  # nor a number less infinity
                break
            self.run += 1
        self.run = max(self.run, 1)

    def add(self, name: str, z: float) -> None:
        """Both sums of one figure."""
        limits = self.reference.limits
        assert limits is not None
        slack, limit = (limits.slack, limits.limit) if name == "offset" else (limits.step_slack, limits.step_limit)
        z = max(-slack - limit / 2, min(slack + limit / 2, z))
        for way, sign in (("up", 1), ("down", -1)):
            one = self.sums[f"{name} {way}"] + sign * z - slack
            self.sums[f"{name} {way}"] = max(0.0, min(2 * limit, one))

    @staticmethod
    def shares(counts: Any) -> list[float]:
        """With half a count more in each bin."""
        total = sum(counts) + 0.5 * len(counts)
        return [(each + 0.5) / total for each in counts]


def _calm(values: Floats, _: np.random.Generator) -> Floats:
    return values


def _offset(values: Floats, _: np.random.Generator) -> Floats:
    values[len(values) // 2 :, 0] += 0.7
    return values


def _holes(values: Floats, rng: np.random.Generator) -> Floats:
    values[rng.random(values.shape) < 0.2] = np.nan
    values[rng.random(values.shape) < 0.02] = np.inf
    values[300:900, 1] = np.nan  # whole blocks of it
    return values


def _steps(values: Floats, _: np.random.Generator) -> Floats:
    values[:] = np.round(values / 2.0) * 2.0
    values[700:1300, 0] = 20.0
    return values


STREAMS: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "calm": _calm, "offset": _offset, "holes": _holes, "steps": _steps,
}  # fmt: skip


@pytest.mark.parametrize("name", list(STREAMS))
@pytest.mark.parametrize("block", [64, 128, 512, 2048])
def test_the_figures_are_those_of_a_plain_watch(name: str, block: int) -> None:
    """Whatever is missing or equal, and of however many readings one is looked at."""
    rng = np.random.default_rng(block)
    made = drifting.with_block(drifting.manifest(drifting.readings(rng, 4000), NAMES), block)
    values = STREAMS[name](drifting.readings(rng, max(2000, 5 * block)), rng)
    monitor = Monitor(made)
    plain = [PlainColumn(each, block) for each in made.reference]
    start = 0
    while start < len(values):
        part = values[start : start + int(rng.choice([1, 1, 1, 2, 5, 63, 64, 65, 700]))]
        monitor.take(part, [None] * len(part), None, 0.0)
        start += len(part)
        for row in part.tolist():
            for column, value in zip(plain, row, strict=True):
                column.take(value)
        watched = monitor.streams[None].input
        assert watched is not None
        assert watched.blocks == plain[0].blocks
        if watched.blocks:
            compare(watched, plain)


def compare(watched: WatchedColumns, plain: list[PlainColumn]) -> None:
    """All figures of all columns."""
    for ours, theirs in zip(watched.columns, plain, strict=True):
        sums = [ours.offsets.up, ours.offsets.down, ours.steps.up, ours.steps.down]
        assert sums == pytest.approx(list(theirs.sums.values()), rel=1e-6, abs=1e-6)
        assert ours.psi == pytest.approx(theirs.psi, rel=1e-9, abs=1e-9)
        assert ours.missing == pytest.approx(theirs.missing)
        assert (ours.late_count, ours.late_total) == pytest.approx((theirs.late_count, theirs.late_total), abs=1e-3)
        assert ours.run == theirs.run


@pytest.mark.parametrize("block", [2048, 4096])
@pytest.mark.parametrize("run", [1, 3, 200])
def test_readings_that_are_looked_at_seldom_are_not_stuck(block: int, run: int) -> None:
    """One value for itself is no run of equal ones, of however many readings it is the only one that is looked at."""
    rng = np.random.default_rng(3)
    made = drifting.with_block(drifting.manifest(drifting.readings(rng, 4000), NAMES), block)
    made = drifting.with_reference(made, tuple(msgspec.structs.replace(each, run=run) for each in made.reference))
    monitor = Monitor(made)
    values = drifting.readings(rng, 6 * block)
    for start in range(0, len(values), block):
        monitor.take(values[start : start + block], [None] * block, None, 0.0)
        why = monitor.document()["why"]
        assert why is None or "stuck" not in why
    values[:, 0] = 20.0
    monitor.take(values[: 2 * block], [None] * (2 * block), None, 0.0)
    assert monitor.document()["channels"]["temperature"]["stuck"]


def test_readings_with_and_without_times_may_come_in_any_order() -> None:
    """Each counts once: the blocks, and what they say, are those of the readings alone."""
    rng = np.random.default_rng(4)
    made = drifting.with_block(drifting.manifest(drifting.readings(rng, 4000), NAMES), 256)
    values = drifting.readings(rng, 2600)
    whole, mixed = Monitor(made, wall=lambda: None), Monitor(made, wall=lambda: None)
    whole.take(values, [None] * len(values), None, 0.0)
    start = 0
    while start < len(values):
        part = values[start : start + int(rng.choice([1, 1, 1, 1, 3, 40]))]
        times = [float(start + row) for row in range(len(part))] if rng.random() < 0.5 else None
        mixed.take(part, [None] * len(part), times, float(start))
        start += len(part)
    one, two = whole.document(), mixed.document()
    assert one["blocks"] == 10
    assert [one[member] for member in ("blocks", "channels")] == [two[member] for member in ("blocks", "channels")]


def test_answers_one_by_one_are_those_at_once() -> None:
    """Of classes, and of values."""
    rng = np.random.default_rng(5)
    answers = rng.beta(2.0, 5.0, (1300, 2)).astype(np.float32)
    made = drifting.manifest(drifting.readings(rng, 4000), NAMES)
    made = msgspec.structs.replace(made, drift=DriftReference(block=64, score_block=256))
    made = drifting.with_scores(made, answers, ("a", "b"))
    for is_regression in (False, True):
        whole, single = Monitor(made), Monitor(made)
        parts = [answers, *(answers[row : row + 1] for row in range(len(answers)))]
        given = [Scores(value=part) if is_regression else Scores(scores=part) for part in parts]
        whole.take_scores(given[0], [None] * len(answers))
        for each in given[1:]:
            single.take_scores(each, [None])
        one, two = whole.streams[None].scores, single.streams[None].scores
        assert one is not None
        assert two is not None
        assert one.blocks == two.blocks == 5
        assert [each.psi for each in one.columns] == [each.psi for each in two.columns]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_median_of_the_others_is_that_of_the_library(count: int) -> None:
    """With equal values and with some that are not known."""
    rng = np.random.default_rng(count)
    for _ in range(50):
        values = [None if rng.random() < 0.2 else float(rng.integers(5)) for _ in range(count)]
        for place, found in enumerate(medians_of_others(values)):
            others = [each for number, each in enumerate(values) if number != place and each is not None]
            assert found == (statistics.median(others) if others else None)


def lively(rng: np.random.Generator, blocks: int, block: int = 64) -> Floats:
    """Axes that rest and move together, by turns of some blocks."""
    size = np.repeat(np.exp(rng.normal(0.0, 1.5, blocks)), block)
    found: Floats = (rng.normal(size=(blocks * block, len(AXES))) * size[:, np.newaxis]).astype(np.float32)
    return found


def beside(rng: np.random.Generator) -> Manifest:
    """A bundle that was trained on such readings; no other limit is ever reached."""
    values = lively(rng, 200)
    steps = np.log(np.abs(np.diff(values, axis=0))[: 199 * 64].reshape(199, 64, len(AXES)).mean(axis=1))
    left = [steps[:, place] - np.median(np.delete(steps, place, 1), axis=1) for place in range(len(AXES))]
    return Manifest(
        name="motion", version="1.0.0", task="anomaly", output=Output(threshold=1.0),
        input=Input(channels=tuple(Channel(name=name) for name in AXES)),
        drift=DriftReference(block=64, score_block=64),
        reference=tuple(
            msgspec.structs.replace(
                each,
                limits=DriftLimits(
                    mean=each.mean, sd=1e9, step=0.0, step_sd=1e9, slack=1.0, limit=1e9, step_slack=1.0, step_limit=1e9,
                    psi=1e9, beside=BesideLimits(1.0, float(part.mean()), float(part.std()), 0.5, 12.0),
                ),
            )
            for each, part in zip(reference_of(values, AXES), left, strict=True)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("factor", "words"), [(2.0, "more"), (0.5, "less")])
def test_a_channel_that_moves_otherwise_than_the_others_is_named(factor: float, words: str) -> None:
    """By some blocks of whatever liveliness; where all move more, nothing is reported."""
    rng = np.random.default_rng(8)
    monitor = Monitor(beside(rng))
    for values in (lively(rng, 40), 3.0 * lively(rng, 40), 0.1 * lively(rng, 40)):
        monitor.take(values, [None] * len(values), None, 0.0)
        assert monitor.state == "ok", monitor.document()["why"]
    values = lively(rng, 12)
    values[:, 1] *= factor
    monitor.take(values, [None] * len(values), None, 0.0)
    document = monitor.document()
    assert document["why"] == f"y: moves {words} beside the other channels than in training"
    assert document["causes"] == [{"at": "y", "cause": f"moves {words} than the others", "state": "alarm"}]


def test_a_block_whose_others_are_missing_says_nothing_beside() -> None:
    """Nor does one in which the channel itself is missing."""
    rng = np.random.default_rng(8)
    monitor = Monitor(beside(rng))
    values = lively(rng, 40)
    values[:, 1] *= 2.0
    values[:, [0, 2, 3, 4]] = np.nan
    monitor.take(values, [None] * len(values), None, 0.0)
    watched = monitor.streams[None].input
    assert watched is not None
    assert [(each.besides.up, each.besides.down) for each in watched.columns] == [(0.0, 0.0)] * len(AXES)


def test_what_lies_in_each_bin_is_what_numpy_counts() -> None:
    """With more bins in one column than in the other, values on the edges, and beyond the range."""
    rng = np.random.default_rng(6)
    made: Manifest = drifting.manifest(drifting.readings(rng, 4000).round(0), NAMES)
    short = msgspec.structs.replace(made.reference[0], edges=(10.0, 20.0, 30.0), counts=(2000, 2000), limits=None)
    base = Baseline((short, made.reference[1]), made.input.channels, 64)
    block = drifting.readings(rng, 65).round(0)
    block[5, 0], block[6, 1] = 85.5, -0.5
    sums = BlockSums(base)
    (found,) = sums.of(bytearray(block.tobytes()))
    assert [outside for *_, outside, _ in found] == [1, 1]
    for column, reference in enumerate(base.edges):
        inner = reference[np.isfinite(reference)]
        counts = np.histogram(block[1:, column], [-np.inf, *inner, np.inf])[0]
        assert sums.bins[0, column, : len(counts)].tolist() == counts.tolist()
        assert not sums.bins[0, column, len(counts) :].any()


def test_sums_are_those_of_the_block_and_of_no_earlier_one() -> None:
    """Of each column: readings, present ones, deviations, their squares, steps, and the way from reading to reading."""
    rng = np.random.default_rng(7)
    made = drifting.manifest(drifting.readings(rng, 4000), NAMES)
    base = Baseline(made.reference, made.input.channels, 64)
    sums = BlockSums(base)
    for _ in range(2):
        block = drifting.readings(rng, 65)
        (found,) = sums.of(bytearray(block.tobytes()))
        for column, (size, present, total, square, steps, way, _, _) in enumerate(found):
            values = [float(value) - float(base.centre[column]) for value in block[:, column]]
            assert (size, present, steps) == (64, 64, 64)
            assert total == pytest.approx(math.fsum(values[1:]), abs=1e-6)
            assert square == pytest.approx(math.fsum(value * value for value in values[1:]))
            assert way == pytest.approx(math.fsum(abs(new - old) for old, new in itertools.pairwise(values)))


@pytest.mark.parametrize(("rate_hz", "blocks"), [(1.0, 1), (99.0, 1), (100.0, MOST_TOGETHER), (1e6, MOST_TOGETHER)])
@pytest.mark.parametrize("name", list(STREAMS))
def test_blocks_of_a_fast_stream_are_judged_some_at_once(name: str, rate_hz: float, blocks: int) -> None:
    """Their figures are those of each judged by itself, and a slow stream waits for none."""
    rng = np.random.default_rng(9)
    made = drifting.manifest(drifting.readings(rng, 4000), NAMES)
    values = STREAMS[name](drifting.readings(rng, 36 * 64), rng)
    slow, quick = Monitor(made), Monitor(drifting.with_rate(made, rate_hz))
    for start in range(0, len(values), 50):
        part = values[start : start + 50]
        for monitor in (slow, quick):
            monitor.take(part, [None] * len(part), None, 0.0)
        assert quick.blocks == slow.blocks // blocks * blocks
    one, two = slow.streams[None].input, quick.streams[None].input
    assert one is not None
    assert two is not None
    for ours, theirs in zip(one.columns, two.columns, strict=True):
        mine, other = (
            (*each.save().late, *each.save().offset, *each.save().step, each.psi, each.missing, each.run)
            for each in (ours, theirs)
        )
        assert mine == pytest.approx(other, rel=1e-12)


def test_an_alarm_within_blocks_that_are_judged_at_once_is_seen() -> None:
    """A gap in one block of three is reported, and goes when the next three are without."""
    rng = np.random.default_rng(10)
    made = drifting.with_rate(drifting.manifest(drifting.readings(rng, 4000), NAMES), 1e6)
    monitor, seen = Monitor(made), []
    monitor.on_change.append(lambda _, state: seen.append((state, monitor.document()["why"])))
    values = drifting.readings(rng, 9 * 64)
    values[:64, 0] = np.nan
    monitor.take(values, [None] * len(values), None, 0.0)
    assert [state for state, _ in seen] == ["alarm", "ok"]
    assert seen[0][1] == "temperature: missing in 100% of the readings, in training in 0%"
