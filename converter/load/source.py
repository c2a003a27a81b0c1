"""What every loader hands on: a model that can answer windows in Python, and say itself as an ONNX graph.

`SourceModel.predict` is the truth that every later form of the model is held to. `SourceModel.core` gives the
same model as an ONNX graph with its own input and outputs named by role; `normal_form.py` does the rest.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import NamedTensor, Task
from edge_runtime.readings import Floats

if TYPE_CHECKING:
    import onnx

    from converter.graph.shrink import Saving
    from converter.load.tensors import Layout


INDEPENDENT = "each class has a probability of its own: the scores of a row need not sum to 1"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model says about n windows, in the terms of the normal form.

    Attributes:
        label: `[n]` index of the predicted class, in the order of the labels.
        scores: `[n, classes]` probabilities.
        value: `[n, targets]` of a regression.
        score: `[n]` of an anomaly, higher is stranger.
        named: the outputs of the tasks tensor, embedding and detection, `[n, *shape]` each.
        labels: `[n, labels]` of a multi-label model, 1 where a label is there; `scores` has a probability for each.
    """

    label: NDArray[np.int64] | None = None
    scores: NDArray[Any] | None = None
    value: NDArray[Any] | None = None
    score: NDArray[Any] | None = None
    named: dict[str, NDArray[Any]] | None = None
    labels: NDArray[np.int64] | None = None

    @staticmethod
    def of(arrays: dict[str, NDArray[Any]]) -> "Answer":
        """The outputs of a graph by name: of the normal form's own tasks, or `named`."""
        if set(arrays) in ({"label", "scores"}, {"labels", "scores"}, {"value"}, {"score"}, {"scores"}):
            return Answer(**cast("dict[str, Any]", arrays))
        return Answer(named=arrays)

    @staticmethod
    def joined(parts: Sequence["Answer"]) -> "Answer":
        """Those of windows that follow one another."""
        tensors = [part.tensors() for part in parts]
        if len(tensors) == 1:
            return parts[0]
        return Answer.of({name: np.concatenate([part[name] for part in tensors]) for name in tensors[0]})

    def rows(self, which: NDArray[np.int64]) -> "Answer":
        """Those of some windows."""
        return Answer.of({name: part[which] for name, part in self.tensors().items()})

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The parts that are there, by the names of the normal form's outputs."""
        if self.named is not None:
            return self.named
        parts = {"label": self.label, "labels": self.labels, "scores": self.scores, "value": self.value,
                 "score": self.score}  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor that a recurrent model hands from one window to the next; `shape` is without the batch axis."""

    input: str
    output: str
    shape: tuple[int, ...]
    batch_axis: int


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a source, and what of the window goes into it.

    Attributes:
        input: its name.
        layout: how that part of the window lies in it.
        columns: the channels that it takes; None for all.
        last: whether it takes the last reading of a window and not the whole.
    """

    input: str
    layout: "Layout"
    columns: tuple[int, ...] | None = None
    last: bool = False

    def arrange(self, windows: Floats, kind: Any) -> NDArray[Any]:
        """Its part of windows as the model wants it, in numpy."""
        part = windows if self.columns is None else windows[..., list(self.columns)]
        return self.layout.arrange(part[:, -1:] if self.last else part, kind)


@dataclass(slots=True)
class Core:
    """A model as an ONNX graph, before the normal form.

    Attributes:
        model: the graph, in float32 or whatever it wants.
        input: the name of the tensor that takes the window.
        shape: what that tensor wants, without the batch axis.
        outputs: role -> tensor. Roles: `label` (a class, or its position), `labels` (1 for each label that is there),
            `scores` (probabilities, or what becomes them by `extra["activation"]`), `decisions` (decision values),
            `value`, `score`, `decision` (higher is more ordinary), `reconstruction` (of the input).
        classes: the classes that `label` speaks in, where it does not speak in positions.
        extra: `columns` of the scores, their `activation`, the `cut` of a tuned threshold.
        arrange: how the window lies in the input; None where a reshape is enough.
        feeds: the inputs where there are several, each with a group of channels.
        constants: inputs that always have the same value.
        expanded: those of them that are repeated for every window of a batch.
        states: inputs and outputs that carry a recurrent state.
        batch_free: whether the graph takes any number of windows at once.
    """

    model: "onnx.ModelProto"
    input: str
    shape: tuple[int, ...]
    outputs: dict[str, str]
    classes: tuple[Any, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    arrange: "Layout | None" = None
    feeds: tuple[ModelInput, ...] = ()
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    expanded: frozenset[str] = frozenset()
    states: tuple[StateTensor, ...] = ()
    batch_free: bool = True


class SourceModel(ABC):
    """A trained model of any framework.

    Attributes:
        framework: its name, as people write it.
        version: the release that wrote or read it.
        task: what it predicts; None where only the specification can tell.
        classes: its own classes, in the order of its scores.
        shape: the shape of one input, without the batch axis, where the model tells it.
        feature_names: the names of its flat input, where the model tells them.
        targets: how many values a regression gives, or how many labels a multi-label model tells of.
        target_names: what they are called, where the model or the specification's outputs tell.
        tensors: the outputs of the tasks tensor and embedding.
        detections: the most that a detector answers.
        threshold: of an anomaly score.
        rate_hz: readings per second that its features reckon with.
        trees: whether it is made of decision trees, which have nothing to quantise.
        independent: whether each class has a probability of its own, so that they need not sum to 1.
        own_rule: whether its label comes from a rule beside its scores, such as a tuned threshold.
        sentinels: values that it treats apart, such as that of a missing reading.
        notes: sentences that its user should read.
        savings: what the loader left out of the source's graph, since no answer needs it.
    """

    framework: str = ""
    version: str = ""
    task: Task | None = None
    classes: tuple[Any, ...] = ()
    shape: tuple[int, ...] | None = None
    feature_names: tuple[str, ...] = ()
    targets: int = 1
    target_names: tuple[str, ...] = ()
    tensors: tuple[NamedTensor, ...] = ()
    detections: int | None = None
    threshold: float | None = None
    rate_hz: float | None = None
    trees: bool = False
    independent: bool = False
    own_rule: bool = False
    sentinels: tuple[float, ...] = ()

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.savings: list[Saving] = []

    def takes_unknown(self, column: int) -> bool:
        """Whether it has an answer to a text that is no category, in a column of the flat window that holds text."""
        del column
        return False

    def settle(self, shape: tuple[int, ...]) -> None:
        """Take the shape of a window from the specification, where the model does not tell it."""
        if self.shape is None:
            self.shape = (math.prod(shape),)

    @abstractmethod
    def predict(self, windows: Floats) -> Answer:
        """Answer float32 windows `[n, *shape of the bundle's input]` with the source's own code."""

    def stream(self, windows: Floats) -> tuple[Answer, dict[str, NDArray[Any]]] | None:
        """Answers to windows that follow one another, and each state after each; None for a model without memory."""
        del windows
        return None

    def drift(self, windows: Floats) -> int | None:
        """How many windows a conversion in float32 would send another way through trees; None where that is no danger.

        Reported, since other converters do this; ours moves the thresholds instead, and none of the windows.
        """
        del windows
        return None

    @abstractmethod
    def core(self) -> Core:
        """The model as an ONNX graph.

        Raises:
            CommandError: it cannot be expressed in ONNX.
        """


def class_name(value: Any) -> str:
    """A class of a model as the label that people read: 3.0 is "3"."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def class_names(values: Sequence[Any]) -> tuple[str, ...]:
    """Every class as a label."""
    return tuple(class_name(value) for value in values)
