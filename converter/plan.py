"""The bundle's facts, from the specification and the model. All contradictions between the two are reported at once."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from converter.load.source import SourceModel, class_names
from converter.spec import Spec
from edge_runtime.bundle.manifest import Channel, Input, NamedTensor, Target, Task, Window
from edge_runtime.errors import CommandError


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """The facts about a bundle that its manifest states.

    Attributes:
        name: of the model.
        version: of the model.
        task: the kind of prediction.
        input: the input that it takes.
        labels: of a classification or a multi-label model, in the order of the scores.
        classes: the model's own names of the labels, in the same order.
        order: for each label, the position of its class in the model's own scores.
        targets: of a regression.
        threshold: of an anomaly; None until it is computed from data.
        tensors: the outputs of the tasks tensor and embedding.
        detections: the largest number of detections in an answer.
    """

    name: str
    version: str
    task: Task
    input: Input
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    order: tuple[int, ...]
    targets: tuple[Target, ...]
    threshold: float | None
    tensors: tuple[NamedTensor, ...] = ()
    detections: int | None = None


def agree(spec: Spec, source: SourceModel, path: Path, columns: tuple[str, ...] = ()) -> BundlePlan:
    """Match the specification with the model.

    Args:
        spec: the specification by the user.
        source: the model.
        path: the model's file; the bundle's name if the specification has none.
        columns: channel names, if specification and model have none.

    Raises:
        CommandError: they contradict each other, or neither states a fact; a line for each.
    """
    mistakes: list[str] = []
    task = _task(spec, source, mistakes)
    window = _input(spec, source, columns, mistakes)
    labels, classes, order = _labels(spec, source, task, mistakes)
    targets = _targets(spec, source, task, mistakes)
    if mistakes or task is None or window is None:
        raise CommandError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    name = spec.name or re.sub(r"[^\w.-]+", "-", path.stem) or "model"
    threshold = spec.threshold if spec.threshold is not None else source.threshold
    return BundlePlan(
        name, spec.version, task, window, labels, classes, order, targets, threshold if task == "anomaly" else None,
        source.tensors, source.detections,
    )  # fmt: skip


def with_unknown(plan: BundlePlan, source: SourceModel) -> BundlePlan:
    """The plan completed by the treatment of an unknown category: the source answers, or devices refuse the reading."""
    count = len(plan.input.channels)
    channels = tuple(
        msgspec.structs.replace(channel, unknown="allowed")
        if channel.categories
        and all(source.takes_unknown(time * count + place) for time in range(plan.input.window.length))
        else channel
        for place, channel in enumerate(plan.input.channels)
    )
    return replace(plan, input=msgspec.structs.replace(plan.input, channels=channels))


def _task(spec: Spec, source: SourceModel, mistakes: list[str]) -> Task | None:
    if spec.task and source.task and spec.task != source.task:
        mistakes.append(f"task: the specification says {spec.task}, the model is a {source.task}")
    if not spec.task and not source.task:
        mistakes.append("task: the model does not tell; expected `task` in the specification, found nothing")
    return spec.task or source.task


def _input(spec: Spec, source: SourceModel, columns: tuple[str, ...], mistakes: list[str]) -> Input | None:
    if spec.frame is not None:
        size = math.prod(spec.frame.shape)
        if source.shape is not None and math.prod(source.shape) != size:
            mistakes.append(
                f"frame.shape: the specification says {list(spec.frame.shape)}, which makes {size} values; "
                f"the model takes {math.prod(source.shape)}"
            )
        return Input(shape=spec.frame.shape, dtype=spec.frame.dtype, range=spec.frame.range)
    wanted = source.shape
    length = spec.length
    if wanted is not None and len(wanted) == 2:
        if spec.window is not None and wanted[0] != length:
            mistakes.append(f"window.length: the specification says {length}, the model takes {wanted[0]} readings")
        length = wanted[0]
    elif wanted is not None and len(wanted) > 2:
        mistakes.append(f"the model takes tensors of {wanted}: expected a [frame] in the specification, found none")
        return None
    count = _channel_count(spec, source, length, columns, mistakes=mistakes)
    if count is None:
        return None
    names = source.feature_names if len(source.feature_names) == count else columns if len(columns) == count else ()
    channels = tuple(
        Channel(name=item.name, unit=item.unit, range=item.range, missing=item.missing, categories=item.categories)
        for item in spec.channel
    )
    if not channels:
        channels = tuple(Channel(name=name) for name in (names or [f"channel_{i}" for i in range(count)]))
    stride = spec.stride if spec.window is not None else length
    return Input(
        channels=channels,
        window=Window(length=length, stride=stride, rate_hz=_rate(spec, source, mistakes)),
    )


def _rate(spec: Spec, source: SourceModel, mistakes: list[str]) -> float | None:
    stated = spec.window.rate_hz if spec.window is not None else None
    if stated is not None and source.rate_hz is not None and not math.isclose(stated, source.rate_hz, rel_tol=1e-6):
        mistakes.append(
            f"window.rate_hz: the specification says {stated:g} Hz, "
            f"the model's features reckon with {source.rate_hz:g} Hz"
        )
    return stated if stated is not None else source.rate_hz


def _channel_count(
    spec: Spec, source: SourceModel, length: int, columns: tuple[str, ...], *, mistakes: list[str]
) -> int | None:
    stated = len(spec.channel)
    wanted = source.shape
    if wanted is None:
        if not stated and not columns:
            mistakes.append(
                "channel: the model does not tell how many it takes; expected [[channel]] tables, found none"
            )
            return None
        return stated or len(columns)
    if len(wanted) == 2:
        if stated and stated != wanted[1]:
            mistakes.append(f"channel: the specification has {stated}, the model takes {wanted[1]}")
        return stated or wanted[1]
    features = wanted[0]
    if stated and stated * length != features:
        mistakes.append(
            f"channel: the specification has {stated} over windows of {length}, which makes {stated * length} values; "
            f"the model takes {features}"
        )
        return stated
    if features % length:
        mistakes.append(f"window.length: the model takes {features} values, which {length} readings cannot make up")
        return None
    return features // length


def _labels(
    spec: Spec, source: SourceModel, task: Task | None, mistakes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    if task == "detection":
        return spec.labels, spec.labels, tuple(range(len(spec.labels)))
    if task == "multilabel":
        return _several_labels(spec, source, mistakes)
    if task != "classification":
        return (), (), ()
    classes = class_names(source.classes)
    if len(classes) == 1 or len(spec.labels) == 1:
        mistakes.append(
            f"labels: expected two classes or more to tell apart, found one, {(classes or spec.labels)[0]!r}: "
            "train the model on rows of several classes"
        )
    if not spec.labels:
        if not classes:
            mistakes.append("labels: the model does not name its classes; expected `labels` in the specification")
        return classes, classes, tuple(range(len(classes)))
    if not classes:
        return spec.labels, spec.labels, tuple(range(len(spec.labels)))
    if len(spec.labels) != len(classes):
        mistakes.append(f"labels: the specification has {len(spec.labels)}, the model has {len(classes)} classes")
        return spec.labels, classes, tuple(range(len(classes)))
    common = set(spec.labels) & set(classes)
    if common == set(classes):
        order = tuple(classes.index(label) for label in spec.labels)
        return spec.labels, spec.labels, order
    if common and isinstance(source.classes[0], str):
        strange = ", ".join(repr(label) for label in spec.labels if label not in classes)
        mistakes.append(f"labels: expected the model's classes {', '.join(classes)}, found {strange}")
    else:
        source.notes.append(
            "labels: " + ", ".join(f"{label} is class {name}" for label, name in zip(spec.labels, classes, strict=True))
        )
    return spec.labels, classes, tuple(range(len(classes)))


def _several_labels(
    spec: Spec, source: SourceModel, mistakes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """The names of a multi-label model's labels: from the specification, the model or the columns of the truth."""
    own = class_names(source.classes)
    columns = spec.data.label if isinstance(spec.data.label, tuple) else ()
    labels = spec.labels or own
    if not labels:
        labels = columns if len(columns) == source.targets else tuple(f"label_{i}" for i in range(source.targets))
    if len(labels) != source.targets:
        mistakes.append(f"labels: the specification has {len(labels)}, the model has {source.targets}")
        return labels, labels, tuple(range(len(labels)))
    if set(labels) == set(own):
        return labels, labels, tuple(own.index(label) for label in labels)
    return labels, own or labels, tuple(range(len(labels)))


def _targets(spec: Spec, source: SourceModel, task: Task | None, mistakes: list[str]) -> tuple[Target, ...]:
    if task != "regression":
        return ()
    stated = spec.target_specs
    if len(stated) > source.targets:
        mistakes.append(f"targets: the specification has {len(stated)}, the model gives {source.targets}")
    named = [Target(name=target.name, unit=target.unit) for target in stated]
    own = source.target_names or tuple(f"output_{i}" for i in range(source.targets))
    return (*named, *(Target(name=name) for name in own[len(named) :]))
