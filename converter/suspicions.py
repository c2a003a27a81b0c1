"""Warnings about rows and metric, in sentences, before a bundle is made.

Rows that a device would reject are left out here, so that no metric includes readings that never reach the model. Pure,
except for calls of the source.
"""

from collections import Counter
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from converter.data import Dataset
from converter.evaluate import Judgement, Truth, judge
from converter.fidelity import Ask
from converter.load.source import class_name
from converter.plan import BundlePlan
from edge_runtime.errors import CommandError
from edge_runtime.stream.frame_contract import frame_contract

_ROWS = 512  # rows for the test with exchanged channels
_MOST_CHANNELS = 10  # 45 pairs
_GAIN = 0.05  # gain of the metric from which on an exchange is not chance
_GOOD = 0.97
_MOST_NAMED = 5


def admitted(dataset: Dataset, plan: BundlePlan) -> tuple[Dataset, list[str]]:
    """The rows that a device accepts, and warnings about the others.

    Raises:
        CommandError: it accepts none.
    """
    if plan.input.shape is not None:
        return _admitted_frames(dataset, plan)
    bad = np.zeros(len(dataset), dtype=np.bool_)
    reasons: list[str] = []
    for index, channel in enumerate(plan.input.channels):
        if channel.limits is None:
            continue
        low, high = (np.float32(limit) for limit in channel.limits)
        values = dataset.windows[..., index]
        outside = (values < low) | (values > high)
        rows = outside.reshape(len(dataset), -1).any(axis=1)
        if rows.any():
            where = f"{channel.name} out of {low:g} to {high:g}"
            if channel.categories:
                where = f"{channel.name} of no known category"
            reasons.append(f"{int(rows.sum()):,} with {where}, the first {float(values[outside][0]):g}")
            bad |= rows
    if not bad.any():
        return dataset, []
    listed = "; ".join(reasons)
    if bad.all():
        raise CommandError(
            f"{dataset.place}: expected rows that a device lets through, found none: {listed}: "
            "correct `range` and `categories` in the specification, or the data"
        )
    sentences = [
        (
            f"warning: a device would reject {int(bad.sum()):,} of {len(bad):,} rows of {dataset.place}, which "
            f"are left out of every figure: {listed}"
        )
    ]
    if dataset.truth is not None and dataset.truth.ndim == 1 and plan.task == "classification":
        whole = Counter(class_name(item) for item in dataset.truth.tolist())
        lost = Counter(class_name(item) for item in dataset.truth[bad].tolist())
        hit = [
            f"{lost[name]:,} of {whole[name]:,} of {name!r}" for name in sorted(lost) if lost[name] * 2 > whole[name]
        ]
        if hit:
            sentences.append(f"warning: most rows of some classes are among them: {', '.join(hit[:_MOST_NAMED])}")
    return dataset.take(np.flatnonzero(~bad)), sentences


def _admitted_frames(dataset: Dataset, plan: BundlePlan) -> tuple[Dataset, list[str]]:
    contract = frame_contract(plan.input)
    good = None if contract is None else contract.check(dataset.windows, [])
    if contract is None or good is None:
        return dataset, []
    reasons = "; ".join(
        f"{refusal.number:,} {reason}: {contract.explain(reason, dataset.windows[refusal.row])}"
        for reason, refusal in contract.refusals.items()
    )
    if not good.any():
        raise CommandError(
            f"{dataset.place}: expected frames that a device lets through, found none: {reasons}: "
            "correct [frame] range in the specification, or the data"
        )
    sentences = (
        f"warning: a device would reject {int((~good).sum()):,} of {len(good):,} frames of {dataset.place}, which are "
        f"left out of every figure: {reasons}"
    )
    return dataset.take(np.flatnonzero(good)), [sentences]


def order_of_columns(plan: BundlePlan, columns: tuple[str, ...]) -> list[str]:
    """Warn if the channels have another order than the columns of the data file."""
    names = [channel.name for channel in plan.input.channels]
    shared = [name for name in columns if name in names]
    if len(shared) != len(names) or shared == names:
        return []
    return [
        (
            f"warning: the channels stand in the order {', '.join(names)}, the columns of the data in the order "
            f"{', '.join(shared)}: the model must have been trained with the former"
        )
    ]


def about_the_metric(reference: Judgement, truth: Truth, plan: BundlePlan) -> list[str]:
    """Warn if the source is no better than a constant answer."""
    if truth.label is not None and plan.task == "classification" and len(truth.label):
        counts = np.bincount(truth.label, minlength=len(plan.labels))
        most = float(counts.max() / len(truth.label))
        if reference.metric <= most < 1.0:
            return [
                (
                    f"warning: the source's accuracy is {reference.metric:.4f}, no better than always saying "
                    f"{plan.labels[int(counts.argmax())]!r} ({most:.4f}): are channels, units and labels those of its "
                    "training?"
                )
            ]
    if truth.value is not None and reference.metric <= 0:
        return [
            (
                f"warning: the source's R2 is {reference.metric:.4f}, no better than always saying the mean: "
                "are channels, units and targets those of its training?"
            )
        ]
    return []


def exchanged_channels(ask: Ask, windows: NDArray[np.float32], truth: Truth, plan: BundlePlan) -> list[str]:
    """Warn if the source answers better with two channels exchanged."""
    channels = plan.input.channels
    known = truth.label if plan.task == "classification" else truth.value if plan.task == "regression" else None
    if known is None or plan.input.shape is not None or not 2 <= len(channels) <= _MOST_CHANNELS:
        return []
    rows = np.sort(np.random.default_rng(0).permutation(len(windows))[:_ROWS])
    some = windows[rows]
    part = Truth(None if truth.label is None else truth.label[rows], None if truth.value is None else truth.value[rows])

    def metric(asked: NDArray[np.float32]) -> float:
        answer = ask(asked)
        return judge(answer, answer, part, plan.task).metric

    plain = metric(some)
    if plain >= _GOOD:
        return []
    best, pair = plain + _GAIN, None
    for one, other in combinations(range(len(channels)), 2):
        order = list(range(len(channels)))
        order[one], order[other] = other, one
        try:
            found = metric(np.ascontiguousarray(some[..., order]))
        except Exception:  # noqa: BLE001, S112 - a model may refuse the values of another channel; it is not exchanged
            continue
        if found > best:
            best, pair = found, (one, other)
    if pair is None:
        return []
    first, second = (channels[index].name for index in pair)
    return [
        (
            f"warning: with {first!r} and {second!r} exchanged the source does better on {len(some)} of these rows "
            f"({best:.4f} instead of {plain:.4f}): are the channels in the order of its training?"
        )
    ]
