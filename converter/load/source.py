"""The result of every loader: a model that answers windows in Python and can be expressed as an ONNX graph.

`SourceModel.predict` is the reference for every later form of the model. `SourceModel.core` returns the same model as
an ONNX graph with its own input and with outputs named by role; `normal_form.py` does the rest.
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
    """A model's answers to n windows, as in the normal form.

    Attributes:
        label: `[n]` index of the predicted class, in the order of the labels.
        scores: `[n, classes]` probabilities.
        value: `[n, targets]` of a regression.
        score: `[n]` of an anomaly; a higher score is more anomalous.
        named: the outputs of the tasks tensor, embedding and detection, `[n, *shape]` each.
        labels: `[n, labels]` of a multi-label model, 1 where a label is present; `scores` has a probability for each.
    """

    label: NDArray[np.int64] | None = None
    scores: NDArray[Any] | None = None
    value: NDArray[Any] | None = None
    score: NDArray[Any] | None = None
    named: dict[str, NDArray[Any]] | None = None
    labels: NDArray[np.int64] | None = None

    @staticmethod
    def of(arrays: dict[str, NDArray[Any]]) -> "Answer":
        """The outputs of a graph by name: those of the normal form's tasks, or `named`."""
        if set(arrays) in ({"label", "scores"}, {"labels", "scores"}, {"value"}, {"score"}, {"scores"}):
            return Answer(**cast("dict[str, Any]", arrays))
        return Answer(named=arrays)

    @staticmethod
    def joined(parts: Sequence["Answer"]) -> "Answer":
        """Join the answers to consecutive windows."""
        tensors = [part.tensors() for part in parts]
        if len(tensors) == 1:
            return parts[0]
        return Answer.of({name: np.concatenate([part[name] for part in tensors]) for name in tensors[0]})

    def rows(self, which: NDArray[np.int64]) -> "Answer":
        """The answers to some windows."""
        return Answer.of({name: part[which] for name, part in self.tensors().items()})

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The parts that exist, by the names of the normal form's outputs."""
        if self.named is not None:
            return self.named
        parts = {"label": self.label, "labels": self.labels, "scores": self.scores, "value": self.value,
                 "score": self.score}  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor that a recurrent model passes from one window to the next; `shape` excludes the batch axis."""

    input: str
    output: str
    shape: tuple[int, ...]
    batch_axis: int


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a source, and its part of the window.

    Attributes:
        input: its name.
        layout: the arrangement of that part in the input.
        columns: its channels; None for all.
        last: whether it takes only the last reading of a window.
    """

    input: str
    layout: "Layout"
    columns: tuple[int, ...] | None = None
    last: bool = False

    def arrange(self, windows: Floats, kind: Any) -> NDArray[Any]:
        """Its part of windows in the model's arrangement, in numpy."""
        part = windows if self.columns is None else windows[..., list(self.columns)]
        return self.layout.arrange(part[:, -1:] if self.last else part, kind)


@dataclass(slots=True)
class Core:
    """A model as an ONNX graph, before the normal form.

    Attributes:
        model: the graph, in float32 or its own type.
        input: the name of the window's tensor.
        shape: of that tensor, without the batch axis.
        outputs: role -> tensor. Roles: `label` (a class, or its position), `labels` (1 for each label that is there),
            `scores` (probabilities, or what becomes them by `extra["activation"]`), `decisions` (decision values),
            `value`, `score`, `decision` (higher is more ordinary), `reconstruction` (of the input).
        classes: the values of `label`, where they are not positions.
        extra: `columns` of the scores, their `activation`, the `cut` of a tuned threshold.
        arrange: the arrangement of the window in the input; None where a reshape suffices.
        feeds: several inputs, each with a group of channels.
        constants: inputs with a constant value.
        expanded: those of them that are repeated for every window of a batch.
        states: inputs and outputs of recurrent states.
        batch_free: whether the graph takes any number of windows.
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
        framework: its usual name.
        version: the release that wrote or read it.
        task: of the model; None where only the specification can state it.
        classes: the model's own classes, in the order of its scores.
        shape: of one input, without the batch axis; None where the model does not contain it.
        feature_names: the names of its flat input, if the model contains them.
        targets: the number of values of a regression, or of labels of a multi-label model.
        target_names: their names, if the model or the specification's outputs have them.
        tensors: the outputs of the tasks tensor and embedding.
        detections: the largest number of detections in an answer.
        threshold: of an anomaly score.
        rate_hz: readings per second that its features assume.
        trees: whether it consists of decision trees, which cannot be quantised.
        independent: whether each class has its own probability, so that they need not sum to 1.
        own_rule: whether its label comes from another rule than the largest score, such as a tuned threshold.
        sentinels: values that it treats specially, such as that of a missing reading.
        notes: sentences that its user should read.
        savings: parts of the source's graph that the loader removed, since no answer needs them.
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
        """Whether it answers an unknown category in a text column of the flat window."""
        del column
        return False

    def settle(self, shape: tuple[int, ...]) -> None:
        """Take the shape of a window from the specification, where the model does not contain it."""
        if self.shape is None:
            self.shape = (math.prod(shape),)

    @abstractmethod
    def predict(self, windows: Floats) -> Answer:
        """Answer float32 windows `[n, *shape of the bundle's input]` with the source's own code."""

    def stream(self, windows: Floats) -> tuple[Answer, dict[str, NDArray[Any]]] | None:
        """Answers to consecutive windows, and the states after each; None for a model without states."""
        del windows
        return None

    def drift(self, windows: Floats) -> int | None:
        """The number of windows that a float32 conversion would move to other leaves; None where that cannot happen.

        Reported, since other converters do this; this converter changes the thresholds instead, and no window moves.
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
    """A class of a model as a label: 3.0 is "3"."""
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
