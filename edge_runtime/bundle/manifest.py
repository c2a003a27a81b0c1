"""The bundle's manifest: the one definition, written by the converter and read by the runtime.

It travels inside the ONNX file as JSON in the metadata entry `edge.manifest`. `read_manifest` accepts every
format-1 manifest, keeps the keys that it does not know (`Manifest.unknown`), and refuses a newer format.
Every shape below is without the free batch axis N unless it says otherwise.
"""

import math
from typing import Any, Literal, assert_never

import msgspec

from edge_runtime.errors import BundleError

METADATA_KEY = "edge.manifest"
FORMAT = 1
INPUT_NAME = "window"
MOST_DETECTIONS = 10_000

Task = Literal["classification", "regression", "anomaly", "multilabel", "tensor", "detection", "embedding"]
LABEL_TASKS = ("classification", "detection", "multilabel")  # whose answers name labels, which may be alarms


class _Part(msgspec.Struct, frozen=True):
    """A table of the manifest. Unknown keys are accepted, for newer minor formats."""


class Channel(_Part, frozen=True):
    """One measured quantity; the order of channels is the order of the last axis of the input.

    Where `missing` is allowed, a reading without the channel reaches the model as NaN, which the model treats itself.
    A channel with `categories` holds text; in the window it is the index of the category, and -1 for a text that is
    none of them, which reaches the model only where `unknown` is allowed.
    """

    name: str
    unit: str = ""
    range: tuple[float, float] | None = None
    missing: Literal["refused", "allowed"] = "refused"
    categories: tuple[str, ...] = ()
    unknown: Literal["refused", "allowed"] = "refused"

    @property
    def limits(self) -> tuple[float, float] | None:
        """What a reading may lie between: its range, or the indexes of its categories; None where all is allowed."""
        if not self.categories:
            return self.range
        return (-1.0 if self.unknown == "allowed" else 0.0, len(self.categories) - 1.0)


class Window(_Part, frozen=True):
    """How readings become one input: `length` of them, a new window every `stride`."""

    length: int = 1
    stride: int = 1
    rate_hz: float | None = None


class Input(_Part, frozen=True):
    """Either channels with a window (tensor `[N, length, channels]`) or a whole frame (`[N, *shape]`).

    `dtype` is what a frame's values are where they come from; the window is float32 in any case. `range` is that of
    every value of a frame.
    """

    channels: tuple[Channel, ...] = ()
    window: Window = Window()
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    range: tuple[float, float] | None = None

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of one window as the model takes it."""
        return self.shape if self.shape is not None else (self.window.length, len(self.channels))


class Target(_Part, frozen=True):
    """One quantity that a regression predicts."""

    name: str
    unit: str = ""


class NamedTensor(_Part, frozen=True):
    """One output of the tasks `tensor` and `embedding`: the graph's output of this name, without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"


class Output(_Part, frozen=True):
    """What the model says: by task `labels`, `targets`, the `threshold` of an anomaly, or `tensors`.

    `classes` is what the model itself calls its labels, in the same order, where that is something else: recordings
    may speak of either. `detections` is the most that a detection answers; rows beyond those found have the label -1.
    """

    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    threshold: float | None = None
    tensors: tuple[NamedTensor, ...] = ()
    detections: int | None = None


class BesideLimits(_Part, frozen=True):
    """How much a channel moves beside the others: the logarithm of its mean step, less `share` of their median.

    Only of channels that calm down and liven up with the others, such as the axes of a motion. `mean` and `sd` are of
    blocks, `slack` and `limit` belong to the CUSUM, in `sd`.
    """

    share: float
    mean: float
    sd: float
    slack: float
    limit: float


class DriftLimits(_Part, frozen=True):
    """How the means of blocks of one channel varied in the recordings, and beyond which values drift is an alarm.

    `mean` is that of the channel, `sd` that of the means of blocks; `step` and `step_sd` are the same of the logarithm
    of the mean step from one reading to the next. `slack` and `limit` belong to the CUSUM of the offset, in `sd`;
    `step_slack` and `step_limit` to that of the step, `psi` to the population stability index. `counts` are those of
    the bins in the recordings that the limits come from, which are not all of the reference.
    """

    mean: float
    sd: float
    step: float
    step_sd: float
    slack: float
    limit: float
    step_slack: float
    step_limit: float
    psi: float
    counts: tuple[int, ...] = ()
    beside: BesideLimits | None = None


class ChannelReference(_Part, frozen=True):
    """The training distribution of one channel: quantile `edges` of bins that hold `counts` readings each.

    `missing` is the share of readings without the channel, `run` the most equal values one after another, and `limits`
    are there where the recordings were long enough to calibrate alarms.
    """

    name: str
    mean: float
    std: float
    min: float
    max: float
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    missing: float = 0.0
    run: int | None = None
    limits: DriftLimits | None = None


class DriftReference(_Part, frozen=True):
    """What a device watches drift by.

    `block` is the number of readings that are judged together, `score_block` that of windows; the weight of a block in
    the shape falls by `1 / memory` with each further one. `rate_hz` is the rate of the recordings.
    `false_alarms_per_month` was asked for; of the blocks that calibration did not see, `checked` is the number and
    `alarms` how often an alarm began in them; `score_checked` and `score_alarms` are the same of answers.
    """

    block: int
    score_block: int
    memory: float = 8.0
    score_memory: float = 8.0
    rate_hz: float | None = None
    false_alarms_per_month: float = 1.0
    checked: int = 0
    alarms: int = 0
    score_checked: int = 0
    score_alarms: int = 0


class Confidence(_Part, frozen=True):
    """How often a label was right by its score, on rows that were held out: between two `scores`, a straight line.

    Of the rows that this had not seen, `checked` is the number, `accuracy` the share that was right, `estimated` what
    this estimated for them, and `error` the mean distance of the two over bins of the score.
    """

    scores: tuple[float, ...]
    shares: tuple[float, ...]
    rows: int = 0
    checked: int = 0
    accuracy: float | None = None
    estimated: float | None = None
    error: float | None = None


class Uncertainty(_Part, frozen=True):
    """Sets and intervals that hold the truth as often as `coverage` says; how they are read, `uncertainty.py` knows.

    `least` is the score from which on a label is in the set, `half` the half width of each target's interval. They come
    from `rows` rows; of `checked` rows that were not among these, the share `held` had the truth inside.
    """

    coverage: float | None = None
    least: float | None = None
    half: tuple[float, ...] = ()
    rows: int = 0
    checked: int = 0
    held: float | None = None
    confidence: Confidence | None = None


class State(_Part, frozen=True):
    """A tensor that a recurrent model hands from one window to the next; zero at the start of a stream."""

    input: str
    output: str
    shape: tuple[int, ...]
    type: str = "float32"


class Tensor(_Part, frozen=True):
    """A golden tensor: its shape with the batch axis, and its values as base64 of little-endian bytes."""

    shape: tuple[int, ...]
    dtype: str
    data: str


class SelfTest(_Part, frozen=True):
    """Golden inputs, the outputs that the converter's machine gave, and how far another processor may be off.

    A float output passes when every element is within `atol + rtol * |expected|`; of the labels, at most
    `label_mismatches` may differ. Of a large output, `every` says that each row holds one number of so many, in the
    order of the memory, from the first on; `atols` are the `atol` of single outputs.
    """

    input: Tensor
    outputs: dict[str, Tensor]
    atol: float = 1e-4
    rtol: float = 1e-3
    label_mismatches: int = 0
    every: dict[str, int] = {}
    atols: dict[str, float] = {}


class Source(_Part, frozen=True):
    """Where the model came from. Digests are SHA-256 in hex; `data` has one for each file or folder of recordings."""

    framework: str = ""
    version: str = ""
    digest: str = ""
    file: str = ""
    converted: str = ""
    converter: str = ""
    data: tuple[str, ...] = ()


class Requires(_Part, frozen=True):
    """What the device must offer. `onnxruntime` is the oldest release that runs the file."""

    onnxruntime: str = "1.20"
    opset: int = 17
    opset_ml: int | None = None
    ir_version: int = 8


class Manifest(_Part, frozen=True, kw_only=True):
    """Everything that a device needs to know about a model."""

    name: str
    version: str
    task: Task
    input: Input
    output: Output
    format: int = FORMAT
    reference: tuple[ChannelReference, ...] = ()
    score_reference: tuple[ChannelReference, ...] = ()
    drift: DriftReference | None = None
    uncertainty: Uncertainty | None = None
    quantization: dict[str, Any] = {}
    state: tuple[State, ...] = ()
    selftest: SelfTest | None = None
    source: Source = Source()
    requires: Requires = Requires()
    batch_invariant: bool = True
    batch_free: bool = True
    target_device: str | None = None
    extra: dict[str, Any] = {}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels in the order of the input's last axis."""
        return tuple(channel.name for channel in self.input.channels)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The texts of the channels that hold text, in the order of their indexes."""
        return {channel.name: channel.categories for channel in self.input.channels if channel.categories}


class OutputPort(msgspec.Struct, frozen=True):
    """An output of the normal form: the numpy type of its values, and its shape without the batch axis."""

    dtype: str
    shape: tuple[int, ...]


def output_ports(manifest: Manifest) -> dict[str, OutputPort]:
    """The outputs of the normal form by name, in graph order: what the task of a bundle answers."""
    output = manifest.output
    match manifest.task:
        case "classification":
            return {"label": OutputPort("int64", ()), "scores": OutputPort("float32", (len(output.labels),))}
        case "regression":
            return {"value": OutputPort("float32", (len(output.targets),))}
        case "anomaly":
            return {"score": OutputPort("float32", ())}
        case "multilabel":
            count = len(output.labels)  # each label is there (1) or not (0), with a score of its own
            return {"labels": OutputPort("int64", (count,)), "scores": OutputPort("float32", (count,))}
        case "tensor" | "embedding":
            return {tensor.name: OutputPort(tensor.dtype, tensor.shape) for tensor in output.tensors}
        case "detection":
            most = output.detections or 0
            return {
                "boxes": OutputPort("float32", (most, 4)),
                "scores": OutputPort("float32", (most,)),
                "label": OutputPort("int64", (most,)),
            }
        case _:
            assert_never(manifest.task)


class _Format(msgspec.Struct):
    format: int


_decode_format = msgspec.json.Decoder(_Format).decode
_decode_manifest = msgspec.json.Decoder(Manifest).decode
# msgspec skips members that it does not know without looking at their bytes, and raises these for what it does read.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_KNOWN = frozenset(Manifest.__struct_fields__)


def read_manifest(text: str | bytes, place: str) -> Manifest:
    """Decode and check a manifest.

    Args:
        text: the JSON of the metadata entry.
        place: the file that it came from, for messages.

    Raises:
        BundleError: it is no manifest, or one of a newer format, or it contradicts itself.
    """
    try:
        found = _decode_format(text).format
    except _UNREADABLE as error:
        raise BundleError(f"{place}: manifest: expected JSON with a `format`: {error}") from error
    if found != FORMAT:
        raise BundleError(
            f"{place}: manifest: expected format {FORMAT}, found {found}: "
            "update the runtime, or convert the model again with this release"
        )
    try:
        manifest = _decode_manifest(text)
        document = msgspec.json.decode(text)
    except _UNREADABLE as error:
        raise BundleError(f"{place}: manifest: {error}") from error
    mistakes = check_manifest(manifest)
    if mistakes:
        raise BundleError("\n".join(f"{place}: manifest: {mistake}" for mistake in mistakes))
    unknown = {key: value for key, value in document.items() if key not in _KNOWN}
    if unknown:
        manifest = msgspec.structs.replace(manifest, extra={**manifest.extra, **unknown})
    return manifest


def write_manifest(manifest: Manifest) -> str:
    """The manifest as JSON with sorted keys, so that equal manifests are equal bytes."""
    document = msgspec.to_builtins(manifest)
    document["format"] = manifest.format
    document.update(document.pop("extra", {}))
    return msgspec.json.encode(document, order="sorted").decode()


def check_manifest(manifest: Manifest) -> list[str]:
    """Every contradiction in a manifest, as sentences; empty when it is sound."""
    mistakes: list[str] = []
    window, task, output = manifest.input.window, manifest.task, manifest.output
    if not manifest.name or "/" in manifest.name or any(c in manifest.name for c in "+#\0"):
        mistakes.append(f"name: expected a word without / + #, found {manifest.name!r}")
    if manifest.input.shape is None:
        names = manifest.channel_names
        if not names:
            mistakes.append("input: expected channels or a frame shape, found neither")
        if len(set(names)) != len(names):
            mistakes.append(f"input.channels: expected different names, found {', '.join(names)}")
    elif not manifest.input.shape or min(manifest.input.shape) < 1:
        mistakes.append(f"input.shape: expected positive sizes, found {manifest.input.shape}")
    if manifest.input.range is not None and not manifest.input.range[0] < manifest.input.range[1]:
        mistakes.append(f"input.range: expected low < high, found {manifest.input.range}")
    if window.length < 1 or window.stride < 1:
        mistakes.append(
            f"input.window: expected length and stride of 1 or more, found {window.length} and {window.stride}"
        )
    if window.rate_hz is not None and not (math.isfinite(window.rate_hz) and window.rate_hz > 0):
        mistakes.append(f"input.window.rate_hz: expected a positive rate, found {window.rate_hz}")
    for channel in manifest.input.channels:
        if channel.range is not None and not channel.range[0] < channel.range[1]:
            mistakes.append(f"input.channels.{channel.name}.range: expected low < high, found {channel.range}")
        if len(set(channel.categories)) != len(channel.categories):
            mistakes.append(f"input.channels.{channel.name}.categories: expected different texts, found one twice")
        if channel.categories and channel.range is not None:
            mistakes.append(f"input.channels.{channel.name}.range: expected none beside categories, found one")
    if task == "classification" and len(output.labels) < 2:
        mistakes.append(f"output.labels: expected two or more, found {len(output.labels)}")
    if len(set(output.labels)) != len(output.labels):
        mistakes.append(f"output.labels: expected different names, found {', '.join(output.labels)}")
    if output.classes and len(output.classes) != len(output.labels):
        mistakes.append(f"output.classes: expected {len(output.labels)} as labels, found {len(output.classes)}")
    if task == "regression" and not output.targets:
        mistakes.append("output.targets: expected one or more, found none")
    if task == "multilabel" and not output.labels:
        mistakes.append("output.labels: expected one or more, found none")
    mistakes += _check_tensors(manifest) + _check_uncertainty(manifest)
    if task == "anomaly" and (output.threshold is None or not math.isfinite(output.threshold)):
        mistakes.append(f"output.threshold: expected a number, found {output.threshold}")
    return mistakes


def _check_uncertainty(manifest: Manifest) -> list[str]:
    """The contradictions of `uncertainty`."""
    found, targets = manifest.uncertainty, len(manifest.output.targets)
    if found is None:
        return []
    mistakes = []
    if found.least is not None and manifest.task != "classification":
        mistakes.append(f"uncertainty.least: expected none with task {manifest.task!r}, found {found.least}")
    if found.half and (manifest.task != "regression" or len(found.half) != targets):
        mistakes.append(f"uncertainty.half: expected {targets} as targets of a regression, found {len(found.half)}")
    if any(not (math.isfinite(half) and half >= 0) for half in found.half):
        mistakes.append(f"uncertainty.half: expected numbers of 0 or more, found {list(found.half)}")
    known = found.confidence
    if known is not None and not (
        len(known.scores) == len(known.shares) > 0 and list(known.scores) == sorted(known.scores)
    ):
        mistakes.append("uncertainty.confidence: expected as many shares as scores, which rise, found others")
    return mistakes


def _check_tensors(manifest: Manifest) -> list[str]:
    """The contradictions of the tasks `tensor`, `embedding` and `detection`."""
    task, output = manifest.task, manifest.output
    if task == "detection":
        mistakes = [] if output.labels else ["output.labels: expected one or more, found none"]
        if output.detections is None or not 1 <= output.detections <= MOST_DETECTIONS:
            mistakes.append(f"output.detections: expected 1 to {MOST_DETECTIONS}, found {output.detections}")
        return mistakes
    if task not in ("tensor", "embedding"):
        return []
    taken = {INPUT_NAME, *(state.input for state in manifest.state), *(state.output for state in manifest.state)}
    names = [tensor.name for tensor in output.tensors]
    mistakes = []
    if not names or (task == "embedding" and (len(names) != 1 or len(output.tensors[0].shape) != 1)):
        wanted = "one or more" if task == "tensor" else "one of one axis"
        mistakes.append(f"output.tensors: expected {wanted}, found {', '.join(names) or 'none'}")
    if len(set(names)) != len(names) or taken.intersection(names) or "" in names:
        mistakes.append(f"output.tensors: expected names that nothing else has, found {', '.join(names)}")
    for tensor in output.tensors:
        if any(size < 1 for size in tensor.shape):
            mistakes.append(f"output.tensors.{tensor.name}: expected positive sizes, found {list(tensor.shape)}")
    return mistakes
