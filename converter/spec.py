"""The specification TOML that goes with a model -> frozen, typed values. The one way in: nothing else reads the file.

`load_spec` reports all mistakes of a file at once, each with its place, the expectation and the finding, and for an
unknown key the nearest known one. Facts that the model file contains need not be repeated.
"""

import difflib
import math
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_runtime.bundle.manifest import MOST_DETECTIONS, Task
from edge_runtime.errors import CommandError

_SEMANTIC_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_BAD_NAME = re.compile(r"[/+#\0]")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: every key is known."""


class WindowSpec(_Table, frozen=True, kw_only=True):
    """`[window]`: how readings form one input. Without the table, each reading is an input."""

    length: int
    stride: int | None = None
    rate_hz: float | None = None


class ChannelSpec(_Table, frozen=True, kw_only=True):
    """`[[channel]]`: one measured quantity, in the order of the model's input.

    With `missing = "allowed"` a reading may lack it, and the model handles missing values. With `categories` it holds
    text, and the window holds the index of the text in this list.
    """

    name: str
    unit: str = ""
    range: tuple[float, float] | None = None
    missing: Literal["refused", "allowed"] = "refused"
    categories: tuple[str, ...] = ()


class TargetSpec(_Table, frozen=True, kw_only=True):
    """`[[target]]`: one quantity that a regression predicts."""

    name: str
    unit: str = ""


class FrameSpec(_Table, frozen=True, kw_only=True):
    """`[frame]`: one reading is a whole tensor; `value * scale + offset` is part of the graph."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8", "int8", "uint16", "int16", "int32", "int64"] = "float32"
    range: tuple[float, float] | None = None
    layout: Literal["hwc", "chw"] | None = None
    scale: float = 1.0
    offset: float = 0.0


class ModelSpec(_Table, frozen=True, kw_only=True):
    """`[model]`: the tensors of the file, and the layout of the model's input."""

    input: str | None = None
    output: str | None = None
    label: str | None = None
    layout: Literal["time_first", "channel_first", "flat", "hwc", "chw"] | None = None
    activation: Literal["none", "softmax", "sigmoid"] | None = None
    score: Literal["output", "reconstruction"] | None = None


class InputSpec(_Table, frozen=True, kw_only=True):
    """`[[input]]`: one of several inputs of a model, and the channels that go into it."""

    name: str
    channels: tuple[str, ...]


class OutputSpec(_Table, frozen=True, kw_only=True):
    """`[[output]]`: one of several outputs; `tensor` is its name in the file, if it differs from the published one."""

    name: str
    tensor: str | None = None

    @property
    def source(self) -> str:
        """The tensor of the file."""
        return self.tensor or self.name


class DetectionSpec(_Table, frozen=True, kw_only=True):
    """`[detection]`: the layout of boxes in a detector's output, and which of them are kept."""

    boxes: Literal["cxcywh", "xywh", "xyxy", "yxyx"] = "cxcywh"
    objectness: bool = False
    background: bool = False
    threshold: float = 0.25
    overlap: float = 0.45
    most: int = 100


class StateSpec(_Table, frozen=True, kw_only=True):
    """`[[state]]`: a tensor that a recurrent model hands from one window to the next."""

    input: str
    output: str
    batch_axis: int = 0


class DataSpec(_Table, frozen=True, kw_only=True):
    """`[data]`: how to read `--data`, if it is a table. `label` may be several columns for a regression."""

    label: str | tuple[str, ...] | None = None
    group: str | None = None
    time: str | None = None


class DriftSpec(_Table, frozen=True, kw_only=True):
    """`[drift]`: the allowed false alarms a month, and the readings in a block."""

    false_alarms_per_month: float = 1.0
    block: int | None = None


class UncertaintySpec(_Table, frozen=True, kw_only=True):
    """`[uncertainty]`: sets of labels or intervals of values that hold the truth with probability `coverage`.

    Without a coverage, only the scores of a classification are calibrated.
    """

    coverage: float | None = None


class Spec(_Table, frozen=True, kw_only=True):
    """The whole file."""

    name: str | None = None
    version: str = "1.0.0"
    task: Task | None = None
    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    threshold: float | None = None
    threshold_quantile: float | None = None
    target_device: Literal["pi3", "pi4", "pi5", "zero2w"] | None = None
    window: WindowSpec | None = None
    channel: tuple[ChannelSpec, ...] = ()
    target: tuple[TargetSpec, ...] = ()
    frame: FrameSpec | None = None
    model: ModelSpec = ModelSpec()
    input: tuple[InputSpec, ...] = ()
    output: tuple[OutputSpec, ...] = ()
    detection: DetectionSpec | None = None
    state: tuple[StateSpec, ...] = ()
    constants: dict[str, int | float | tuple[float, ...]] = {}
    data: DataSpec = DataSpec()
    drift: DriftSpec = DriftSpec()
    uncertainty: UncertaintySpec | None = None

    @property
    def length(self) -> int:
        """Readings in one window."""
        return self.window.length if self.window else 1

    @property
    def stride(self) -> int:
        """Readings between the starts of two windows; by default windows do not overlap."""
        return (self.window.stride or self.window.length) if self.window else 1

    @property
    def target_specs(self) -> tuple[TargetSpec, ...]:
        """The targets, given as names or as tables."""
        return self.target or tuple(TargetSpec(name=name) for name in self.targets)


def load_spec(path: Path) -> Spec:
    """Read and check a specification.

    Raises:
        CommandError: the file is missing, is no TOML, or has mistakes; a line for each mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CommandError(f"{path}: expected a specification, found no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: expected a specification in TOML: {error}") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CommandError(f"{path}: expected TOML: {error}") from error
    return parse_spec(raw, str(path))


def parse_spec(raw: dict[str, Any], place: str) -> Spec:
    """Check a parsed specification; every message begins with `place`.

    Raises:
        CommandError: every mistake found, a line each.
    """
    mistakes: list[str] = []
    spec: Spec | None = _decode(Spec, raw, "", mistakes)
    if spec is not None:
        mistakes += _contradictions(spec)
    if mistakes or spec is None:
        raise CommandError("\n".join(f"{place}: {mistake}" for mistake in mistakes))
    return spec


def _contradictions(spec: Spec) -> list[str]:
    """Mistakes of a specification whose keys all have the right type."""
    found: list[str] = []
    if spec.name is not None and (not spec.name or _BAD_NAME.search(spec.name)):
        found.append(f"name: expected a word without / + #, found {spec.name!r}")
    if not _SEMANTIC_VERSION.fullmatch(spec.version):
        found.append(f"version: expected a semantic version such as 1.0.0, found {spec.version!r}")
    found += _repeated("labels", spec.labels)
    found += _repeated("channel", [channel.name for channel in spec.channel])
    found += _repeated("target", [target.name for target in spec.target_specs])
    if spec.targets and spec.target:
        found.append("targets: expected either targets or [[target]], found both")
    if len(spec.labels) == 1 and spec.task not in ("detection", "multilabel"):
        found.append("labels: expected two or more, found one")
    if spec.labels and spec.task in ("regression", "anomaly", "tensor", "embedding"):
        found.append(f"labels: expected none with task {spec.task!r}, found {len(spec.labels)}")
    if spec.target_specs and spec.task not in (None, "regression"):
        found.append(f"targets: expected none with task {spec.task!r}, found {len(spec.target_specs)}")
    if spec.window is not None:
        for key, value in (("length", spec.window.length), ("stride", spec.window.stride)):
            if value is not None and value < 1:
                found.append(f"window.{key}: expected 1 or more, found {value}")
        if spec.window.rate_hz is not None and not (math.isfinite(spec.window.rate_hz) and spec.window.rate_hz > 0):
            found.append(f"window.rate_hz: expected a positive rate, found {spec.window.rate_hz}")
    for channel in spec.channel:
        found += _repeated(f"channel {channel.name}: categories", channel.categories)
        if channel.categories and channel.range is not None:
            found.append(f"channel {channel.name}: range: expected none beside categories, found {list(channel.range)}")
        if channel.range is not None and not channel.range[0] < channel.range[1]:
            found.append(f"channel {channel.name}: range: expected low < high, found {list(channel.range)}")
    if spec.threshold is not None and spec.threshold_quantile is not None:
        found.append("threshold: expected either threshold or threshold_quantile, found both")
    if spec.threshold_quantile is not None and not 0 < spec.threshold_quantile <= 1:
        found.append(f"threshold_quantile: expected more than 0 and at most 1, found {spec.threshold_quantile}")
    if not 1e-3 <= spec.drift.false_alarms_per_month <= 1000.0:
        found.append(
            f"drift.false_alarms_per_month: expected 0.001 to 1000, found {spec.drift.false_alarms_per_month:g}"
        )
    if spec.drift.block is not None and not 8 <= spec.drift.block <= 1_000_000:
        found.append(f"drift.block: expected 8 to 1000000 readings, found {spec.drift.block}")
    sure = spec.uncertainty
    if sure is not None and sure.coverage is not None and not 0 < sure.coverage < 1:
        found.append(f"uncertainty.coverage: expected more than 0 and less than 1, found {sure.coverage}")
    found += _ports(spec)
    if spec.frame is not None:
        if spec.window is not None or spec.channel:
            found.append("frame: expected no [window] and no [[channel]] beside it, found both")
        if not spec.frame.shape or min(spec.frame.shape) < 1:
            found.append(f"frame.shape: expected positive sizes, found {list(spec.frame.shape)}")
        if spec.frame.range is not None and not spec.frame.range[0] < spec.frame.range[1]:
            found.append(f"frame.range: expected low < high, found {list(spec.frame.range)}")
    return found


def _ports(spec: Spec) -> list[str]:
    """Mistakes in several inputs, several outputs and boxes."""
    found = _repeated("input", [given.name for given in spec.input])
    found += _repeated("output", [output.name for output in spec.output])
    names = [channel.name for channel in spec.channel]
    for given in spec.input:
        strange = [name for name in given.channels if name not in names]
        if strange or not given.channels:
            found.append(
                f"input {given.name}: channels: expected some of {', '.join(names) or '[[channel]]'}, "
                f"found {', '.join(strange) or 'none'}"
            )
    if spec.input:
        fed = {name for given in spec.input for name in given.channels}
        unused = [name for name in names if name not in fed]
        if unused:
            found.append(f"input: expected every channel in one of them, found none for {', '.join(unused)}")
        if spec.frame is not None or spec.model.input is not None:
            found.append("input: expected no [frame] and no [model] input beside [[input]], found one")
    if spec.output and spec.model.output is not None:
        found.append("output: expected either [[output]] or [model] output, found both")
    if spec.detection is not None:
        boxes = spec.detection
        if spec.task != "detection":
            found.append(f"detection: expected task = 'detection' with this table, found {spec.task!r}")
        if not 0 <= boxes.threshold < 1:
            found.append(f"detection.threshold: expected 0 or more and less than 1, found {boxes.threshold}")
        if not 0 < boxes.overlap <= 1:
            found.append(f"detection.overlap: expected more than 0 and at most 1, found {boxes.overlap}")
        if not 1 <= boxes.most <= MOST_DETECTIONS:
            found.append(f"detection.most: expected 1 to {MOST_DETECTIONS}, found {boxes.most}")
    return found


def _repeated(place: str, names: tuple[str, ...] | list[str]) -> list[str]:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    return [f"{place}: expected different names, found {name!r} more than once" for name in twice]


def _decode(kind: type[Any], raw: Any, place: str, mistakes: list[str]) -> Any:
    """Decode one table field by field, because msgspec stops at the first mistake."""
    if not isinstance(raw, dict):
        mistakes.append(f"{place}: expected a table, found {raw!r}")
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    before = len(mistakes)
    values: dict[str, Any] = {}
    prefix = f"{place}." if place else ""
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(fields)}"
            mistakes.append(f"{prefix}{key}: unknown key{hint}")
    for key, field in fields.items():
        if key in raw:
            values[field.name] = _decode_value(field.type, raw[key], f"{prefix}{key}", mistakes)
        elif field.required:
            mistakes.append(f"{prefix}{key}: expected {_words(field.type)}, found nothing")
    return kind(**values) if len(mistakes) == before else None


def _decode_value(kind: Any, raw: Any, place: str, mistakes: list[str]) -> Any:
    inner = _struct_of(kind)
    if inner is not None and typing.get_origin(kind) is tuple:
        if not isinstance(raw, list):
            mistakes.append(f"{place}: expected tables ([[{place}]]), found {raw!r}")
            return ()
        return tuple(_decode(inner, item, f"{place}[{index}]", mistakes) for index, item in enumerate(raw))
    if inner is not None:
        return _decode(inner, raw, place, mistakes)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError:
        mistakes.append(f"{place}: expected {_words(kind)}, found {raw!r}")
        return None


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """The table type inside `Table`, `Table | None` or `tuple[Table, ...]`."""
    for candidate in (kind, *typing.get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _words(kind: Any) -> str:
    """A type in words."""
    plain = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    if kind in plain:
        return plain[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(argument) for argument in arguments if argument is not type(None))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_words(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_words(arguments[0])}"
    return "a table"
