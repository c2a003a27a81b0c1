"""ONNX files of any origin: in the normal form, or with a window as input and scores, values or a score as output.

Old opsets are raised, and a batch fixed at 1 is made free where the graph allows it. Facts that the file lacks
(tensors, layout, logits or probabilities) come from the specification or from the graph. The source's answers are those
of the unchanged file, run by onnxruntime with numpy around it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.graph.build import opset_of, serialize
from converter.graph.fold import folded
from converter.graph.shrink import Saving
from converter.load.detection import Detection, find_detection
from converter.load.feeds import constants_of, feeds_of, named_tensor, require_name
from converter.load.kind import Loader, ModelFile
from converter.load.onnx_graph import (
    at_opset,
    check,
    class_constants,
    makers_of,
    manifest_of,
    numpy_type,
    open_session,
    with_free_batch,
    without_zipmap,
)
from converter.load.source import Answer, Core, SourceModel, StateTensor
from converter.load.tensors import squash
from converter.session import session_of
from converter.spec import Spec
from edge_runtime.bundle.manifest import INPUT_NAME, Task
from edge_runtime.bundle.model import NAMED_TASKS
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_TASK_OF: dict[str, Task] = {
    "label": "classification", "labels": "multilabel", "value": "regression", "score": "anomaly",
}  # fmt: skip
_NORMAL_OUTPUTS = {
    "classification": ("label", "scores"), "multilabel": ("labels", "scores"), "regression": ("value",),
    "anomaly": ("score",),
}  # fmt: skip
_PROBE_ROWS = 16
_LARGE = 1 << 17  # numbers of a window, from which on two rows suffice
_TRANSPARENT = ("DequantizeLinear", "QuantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
# Operators whose result is a probability if their input is: they average, select or move.
_PICKING = ("ReduceMean", "ReduceMax", "ReduceMin", "Slice", "Gather", "Transpose", "Concat")


def load(path: Path, spec: Spec) -> "OnnxModel":
    """Load an ONNX file.

    Raises:
        CommandError: it is no ONNX file, or has parts that no device can run.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise CommandError(f"{path}: expected an ONNX model, found a damaged, truncated or other file") from error
    return from_model(model, spec, str(path))


def from_model(model: onnx.ModelProto, spec: Spec, place: str) -> "OnnxModel":
    """Wrap an ONNX model in memory.

    Raises:
        CommandError: as `load`.
    """
    check(model, place)
    return OnnxModel(model, spec, place)


class OnnxModel(SourceModel):
    """A model in ONNX.

    Args:
        model: the graph.
        spec: the specification.
        place: the file, for messages.
        states: state tensors that the loader found, beside `[[state]]` of the specification.
    """

    framework = "ONNX"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str, states: Sequence[StateTensor] = ()) -> None:
        super().__init__()
        self._spec, self._place = spec, place
        self.version = f"opset {opset_of(model)}"
        self.manifest = manifest_of(model, place)
        self._model, zipped = without_zipmap(model)
        if zipped:
            saved = sum(node.ByteSize() for node in model.graph.node if node.op_type == "ZipMap")
            self.savings.append(Saving("ZipMap", len(zipped), saved))
        self.trees = any(node.op_type.startswith("TreeEnsemble") for node in self._model.graph.node)
        self._session = open_session(self._model, place)
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._check_ports()
        self._states = [*states, *self._find_states()]
        self._feeds = feeds_of(self._inputs, {state.input for state in self._states}, spec, place)
        self._input = self._feeds[0].input
        dims = [self._inputs[feed.input].shape for feed in self._feeds]
        self._fixed_batch = any(bool(each) and each[0] == 1 for each in dims)
        self._layout = self._feeds[0].layout
        self.shape = self._layout.shape if len(self._feeds) == 1 else (spec.length, len(spec.channel))
        self._constants = constants_of(self._inputs, self._feeds, spec, place)
        shapes = {name: self._inputs[name].shape for name in self._constants}
        self._expanded = {name for name, shape in shapes.items() if shape and not isinstance(shape[0], int)}
        if not self._fixed_batch and not self._states and self._rows_mix():
            self._fixed_batch = True
            self.notes.append("the windows of a batch change one another's answers: each is asked, and run, by itself")
        self._find_outputs(zipped)

    def _rows_mix(self) -> bool:
        """Whether a window's answer in a batch differs from its answer alone, by more than rounding."""
        rows = self._probe()[:4]
        if rows[0].size > _LARGE:
            return False
        together, alone = self._run(rows), [self._run(rows[index : index + 1]) for index in range(len(rows))]
        for name, part in together.items():
            if part.shape[:1] != (len(rows),) or part.dtype.kind not in "fiub":
                continue
            single = np.concatenate([each[name] for each in alone])
            if single.shape == part.shape and not np.allclose(part, single, rtol=1e-2, atol=1e-3, equal_nan=True):
                return True
        return False

    def _check_ports(self) -> None:
        """Refuse inputs of text, and outputs that are no tensors."""
        for item in self._inputs.values():
            if item.type == "tensor(string)":
                raise CommandError(
                    f"{self._place}: input {item.name!r}: expected numbers, found text: export the model from behind "
                    "its encoder, and say the texts of a channel as `categories` in the specification"
                )
        for item in self._session.get_outputs():
            if not item.type.startswith("tensor("):
                raise CommandError(
                    f"{self._place}: output {item.name!r}: expected a tensor, found {item.type}: export the model with "
                    "tensors as outputs (skl2onnx: without zipmap; of several labels convert the estimator itself)"
                )

    def predict(self, windows: Floats) -> Answer:
        """Run the unchanged file in onnxruntime."""
        if not self._fixed_batch and not self._states:
            return self._answer(self._run(windows), windows)
        rows = [self._run(windows[index : index + 1]) for index in range(len(windows))]
        return self._answer(_together(rows), windows)

    def stream(self, windows: Floats) -> tuple[Answer, dict[str, NDArray[Any]]] | None:
        """Answer consecutive windows with states handed on; None for a model without states."""
        if not self._states:
            return None
        rows = list(self._run_stream(windows))
        states = {
            state.input: np.concatenate([np.moveaxis(row[state.output], state.batch_axis, 0) for row in rows])
            for state in self._states
        }
        outputs = {state.output for state in self._states}
        kept = [{name: part for name, part in row.items() if name not in outputs} for row in rows]
        return self._answer(_together(kept), windows), states

    def core(self) -> Core:
        """The graph at an opset that devices support, with a free batch where that works."""
        model = at_opset(self._model, self._place)
        free, expanded = True, set(self._expanded)
        if self._fixed_batch:
            freed, expanded = self._freed(model)
            free = freed is not None
            if freed is not None:
                model = freed
            else:
                self.notes.append("the batch of this graph is fixed at 1: devices run it window by window")
        return Core(
            folded(model),
            self._input,
            self._layout.wanted,
            dict(self._roles),
            self._label_classes,
            extra={"columns": self._columns, "activation": self._activation, "detection": self._detection},
            arrange=self._layout,
            feeds=self._feeds if len(self._feeds) > 1 else (),
            constants=self._constants,
            expanded=frozenset(expanded),
            states=tuple(self._states),
            batch_free=free,
        )

    def _freed(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto | None, set[str]]:
        """The graph with a free batch, or None, and the constants that must be repeated for every row."""
        names = [*(feed.input for feed in self._feeds), *(state.input for state in self._states)]
        for expanded in (set(self._expanded), set(self._constants)):
            freed = with_free_batch(model, [*names, *expanded])
            if freed is not None and self._agrees(freed, expanded):
                return freed, expanded
        return None, set(self._expanded)

    def _find_states(self) -> list[StateTensor]:
        outputs = {item.name for item in self._session.get_outputs()}
        found = []
        for state in self._spec.state:
            require_name(state.input, self._inputs, "[[state]] input", self._place)
            require_name(state.output, outputs, "[[state]] output", self._place)
            shape = list(self._inputs[state.input].shape)
            if not 0 <= state.batch_axis < len(shape):
                raise CommandError(f"{self._place}: [[state]] {state.input}: no axis {state.batch_axis} in {shape}")
            del shape[state.batch_axis]
            if not all(isinstance(size, int) and size > 0 for size in shape):
                raise CommandError(f"{self._place}: [[state]] {state.input}: expected fixed sizes, found {shape}")
            found.append(StateTensor(state.input, state.output, tuple(shape), state.batch_axis))
        return found

    def _find_outputs(self, zipped: dict[str, tuple[Any, ...]]) -> None:
        """The role of each output, and its columns."""
        state_outputs = {state.output for state in self._states}
        outputs = {item.name: item for item in self._session.get_outputs() if item.name not in state_outputs}
        size = int(np.prod(self._layout.window))
        probe = self._run(self._probe()[: _PROBE_ROWS if size < _LARGE else 2])
        stated = self._spec.model
        for name in filter(None, (stated.output, stated.label, *(output.source for output in self._spec.output))):
            require_name(name, outputs, "[model] output" if not self._spec.output else "[[output]] name", self._place)
        labels = [name for name in outputs if probe[name].dtype.kind in "iUSO" and probe[name].size == len(probe[name])]
        floats = [name for name in outputs if probe[name].dtype.kind == "f"]
        normal = next((task for name, task in _TASK_OF.items() if name in outputs), None)
        is_normal = self._input == INPUT_NAME and normal is not None and set(_NORMAL_OUTPUTS[normal]) <= set(outputs)
        self.task = self._spec.task or (normal if is_normal else "classification" if labels and floats else None)
        self._label_classes: tuple[Any, ...] = ()
        self._activation, self._columns = "none", 1
        self._detection: Detection | None = None
        if self.task in NAMED_TASKS and self.task != "multilabel":
            self._find_tensors(self.task, {name: probe[name] for name in outputs}, floats)
            return
        several = tuple(output.source for output in self._spec.output)
        main = stated.output or (several[0] if several else self._main_output(floats, normal if is_normal else None))
        if len(several) > 1 and self.task != "regression":
            raise CommandError(
                f"{self._place}: [[output]]: expected one output for the task {self.task}, found {len(several)}: "
                "several are for the tasks tensor and regression"
            )
        self._columns = int(np.prod(probe[main].shape[1:]))
        if not self._columns:
            raise CommandError(
                f"{self._place}: output {main!r}: expected numbers for each window, found the shape "
                f"{list(probe[main].shape)}, which holds none: name another as `output` in [model]"
            )
        if self.task == "classification":
            label = stated.label or (labels[0] if labels and not (stated.output and not is_normal) else None)
            self._roles = {"scores": main, **({"label": label} if label else {})}
            self._activation = self._find_activation(main, probe[main], is_normal)
            count = max(2, self._columns)
            own = zipped.get(main, ()) or class_constants(self._model, count)
            self.classes = own or tuple(range(count))
            self._label_classes = own
        elif self.task == "multilabel":
            self._roles = {"scores": main, **({"labels": "labels"} if is_normal else {})}
            self._activation = self._find_activation(main, probe[main], is_normal)
            self.targets = self._columns
        elif self.task == "anomaly":
            size = int(np.prod(self._layout.wanted))
            rebuilt = stated.score == "reconstruction" or (stated.score is None and self._columns == size and size > 1)
            self._roles = {"reconstruction" if rebuilt else "score": main}
            if rebuilt and len(self._feeds) > 1:
                raise CommandError(
                    f"{self._place}: score: expected one input to compare a reconstruction with, found "
                    f"{len(self._feeds)}: give a score of its own, with [model] score = 'output'"
                )
            if not rebuilt and self._columns != 1:
                raise CommandError(f"{self._place}: expected one score a window, found {self._columns} in {main!r}")
        else:
            self._regress(several or (main,), probe)
        if is_normal:
            self._label_classes = ()
        if self.manifest is not None and is_normal:
            self.classes = self.manifest.output.labels
            self.threshold = self.manifest.output.threshold

    def _regress(self, sources: Sequence[str], probe: dict[str, NDArray[Any]]) -> None:
        """The columns of one output, or of several side by side, whose names are the targets."""
        self._roles = {"value" if not place else f"value_{place}": name for place, name in enumerate(sources)}
        counts = [int(np.prod(probe[name].shape[1:])) for name in sources]
        self.targets = sum(counts)
        if len(self._spec.output) > 0:
            self.target_names = tuple(
                output.name if count == 1 else f"{output.name}_{column}"
                for output, count in zip(self._spec.output, counts, strict=True)
                for column in range(count)
            )

    def _find_tensors(self, task: Task, probe: dict[str, NDArray[Any]], floats: list[str]) -> None:
        """The outputs of the tasks whose answers are tensors."""
        stated = {output.name: output.source for output in self._spec.output}
        if task == "detection":
            self._detection = find_detection(probe, floats, stated, self._spec, place=self._place)
            self.notes += self._detection.notes
            self._roles = {f"detection_{place}": name for place, name in enumerate(self._detection.sources)}
            self.classes, self.detections = self._detection.classes, self._detection.most
            return
        if task == "embedding":
            main = self._spec.model.output or (
                next(iter(stated.values())) if stated else self._main_output(floats, None)
            )
            stated = {"embedding": main}
        chosen = stated or {name: name for name in probe}
        taken = {INPUT_NAME, *(name for state in self._states for name in (state.input, state.output))}
        for name in chosen:
            if name in taken:
                raise CommandError(
                    f"{self._place}: [[output]] {name}: expected a name that no input and no state of the bundle has: "
                    "give it another with `name`, and the file's own as `tensor`"
                )
        self._roles = {f"tensor_{name}": source for name, source in chosen.items()}
        self.tensors = tuple(named_tensor(name, probe[source], task, self._place) for name, source in chosen.items())

    def _main_output(self, floats: list[str], normal: Task | None) -> str:
        if normal is not None:
            return _NORMAL_OUTPUTS[normal][-1]
        if len(floats) != 1:
            found = ", ".join(floats) or "none"
            raise CommandError(
                f"{self._place}: expected one output of numbers, found {found}: name it as `output` in [model]"
            )
        return floats[0]

    def _find_activation(self, name: str, probe: NDArray[Any], is_normal: bool) -> str:
        stated = self._spec.model.activation
        if stated is not None or is_normal:
            return stated or "none"
        makers = makers_of(name, self._model.graph, _TRANSPARENT + (_PICKING if self._columns == 1 else ()))
        if makers and makers <= {"Softmax", "Sigmoid"}:
            return "none"
        if self.task == "multilabel":
            self.notes.append(f"{name} holds no probabilities: sigmoid is applied; [model] activation changes that")
            return "sigmoid"
        flat = probe.reshape(len(probe), -1).astype(np.float64)
        if flat.shape[1] > 1 and (flat >= 0).all() and np.allclose(flat.sum(axis=1), 1.0, atol=1e-3):
            return "none"
        activation = "softmax" if flat.shape[1] > 1 else "sigmoid"
        self.notes.append(
            f"{name} does not hold probabilities: {activation} is applied; [model] activation changes that"
        )
        return activation

    def _probe(self) -> Floats:
        frame = self._spec.frame
        shape = self._layout.window if len(self._feeds) == 1 else (self._spec.length, len(self._spec.channel))
        if frame is not None and frame.dtype in ("int32", "int64"):
            low, high = (int(end) for end in frame.range or (0, 1))  # tokens: at least two
            return np.random.default_rng(0).integers(low, high, (_PROBE_ROWS, *shape), endpoint=True).astype(np.float32)
        rows = np.random.default_rng(0).normal(size=(_PROBE_ROWS, *shape)).astype(np.float32)
        for feed in self._feeds if len(shape) == 2 else ():
            if np.dtype(numpy_type(self._inputs[feed.input].type)).kind in "iu":
                for column in feed.columns if feed.columns is not None else range(shape[1]):
                    self._make_whole(rows, column)
        return rows

    def _make_whole(self, rows: Floats, column: int) -> None:
        """Whole numbers that an embedding table contains: of the channel's range, or 0 and 1."""
        given = self._spec.channel[column].range if column < len(self._spec.channel) else None
        low, high = (int(end) for end in given or (0, 1))
        rows[..., column] = np.random.default_rng(column).integers(low, high, rows.shape[:-1], endpoint=True)

    def _run(
        self, windows: Floats, session: Any = None, *, states: dict[str, Any] | None = None, expanded: Any = None
    ) -> dict[str, NDArray[Any]]:
        """Every output of the unchanged file, or of another session of the same graph."""
        own = session is None or session is self._session
        if own and self._fixed_batch and len(windows) > 1:
            return _together([self._run(windows[index : index + 1]) for index in range(len(windows))])
        if own and not states:
            return self._ask(windows)
        return self._run_graph(windows, session or self._session, states or {}, expanded or self._expanded)

    def _ask(self, windows: Floats) -> dict[str, NDArray[Any]]:
        """The source's answers, with states at their start; loaders of other frameworks override it."""
        return self._run_graph(windows, self._session, {}, self._expanded)

    def _run_graph(
        self, windows: Floats, session: Any, states: dict[str, Any], expanded: set[str]
    ) -> dict[str, NDArray[Any]]:
        names = [item.name for item in session.get_outputs()]
        fed = self._fed(windows, expanded)
        fed.update(states)
        try:
            return dict(zip(names, session.run(names, fed), strict=True))
        except Exception as error:
            text = str(error).strip().splitlines()[0]
            raise CommandError(
                f"{self._place}: onnxruntime cannot run it on {fed[self._input].shape}: {text}"
            ) from error

    def _run_stream(self, windows: Floats) -> Iterator[dict[str, NDArray[Any]]]:
        states: dict[str, Any] = {}
        for index in range(len(windows)):
            found = self._run(windows[index : index + 1], states=states)
            states = {state.input: found[state.output] for state in self._states}
            yield found

    def _fed(self, windows: Floats, expanded: set[str]) -> dict[str, Any]:
        """Every input of the file, states at their start."""
        fed: dict[str, Any] = {
            feed.input: feed.arrange(windows, numpy_type(self._inputs[feed.input].type)) for feed in self._feeds
        }
        for name, array in self._constants.items():
            fed[name] = np.repeat(array, len(windows), axis=0) if name in expanded else array
        for state in self._states:
            kind = numpy_type(self._inputs[state.input].type)
            fed[state.input] = np.moveaxis(np.zeros((len(windows), *state.shape), dtype=kind), 0, state.batch_axis)
        return fed

    def _answer(self, outputs: dict[str, NDArray[Any]], windows: Floats) -> Answer:
        n = len(windows)
        if self.task == "classification":
            scores = squash(outputs[self._roles["scores"]].reshape(n, -1).astype(np.float64), self._activation)
            if "label" not in self._roles:
                return Answer(label=scores.argmax(axis=1), scores=scores)
            raw = outputs[self._roles["label"]].reshape(-1).tolist()
            if self._label_classes:
                index = {name: position for position, name in enumerate(self._label_classes)}
                raw = [index[name] for name in raw]
            return Answer(label=np.array(raw, dtype=np.int64), scores=scores)
        if self.task == "multilabel":
            scores = outputs[self._roles["scores"]].reshape(n, -1).astype(np.float64)
            scores = scores if self._activation == "none" else 1.0 / (1.0 + np.exp(-scores))
            own = outputs[self._roles["labels"]].reshape(n, -1) if "labels" in self._roles else scores > 0.5
            return Answer(labels=own.astype(np.int64), scores=scores)
        if self.task == "anomaly":
            if "reconstruction" in self._roles:
                fed = self._layout.arrange(windows, np.float32).reshape(n, -1).astype(np.float64)
                rebuilt = outputs[self._roles["reconstruction"]].reshape(n, -1)
                return Answer(score=np.mean((rebuilt - fed) ** 2, axis=1))
            return Answer(score=outputs[self._roles["score"]].reshape(n).astype(np.float64))
        if self._detection is not None:
            return Answer(named=self._detection.found([outputs[name] for name in self._detection.sources]))
        if self.task in NAMED_TASKS:
            kinds = {tensor.name: (tensor.dtype, tensor.shape) for tensor in self.tensors}
            parts = {name: outputs[self._roles[f"tensor_{name}"]] for name in kinds}
            return Answer(
                named={name: part.reshape(n, *kinds[name][1]).astype(kinds[name][0]) for name, part in parts.items()}
            )
        columns = [outputs[name].reshape(n, -1) for name in self._roles.values()]
        return Answer(value=np.concatenate(columns, axis=1).astype(np.float64))

    def _agrees(self, freed: onnx.ModelProto, expanded: set[str]) -> bool:
        """Whether a graph with a freed batch answers several rows as it answers each alone."""
        rows = self._probe()[:7]
        alone = self._run(rows)
        try:
            session = session_of(serialize(freed))
            for batch in (1, 2, 7):
                together = self._run(rows[:batch], session, expanded=expanded)
                for name, part in together.items():
                    if name in {state.output for state in self._states}:
                        continue
                    if not np.allclose(part.reshape(batch, -1), alone[name][:batch].reshape(batch, -1), atol=1e-4):
                        return False
        except Exception:  # noqa: BLE001 - whatever it says, this graph wants its batch of 1
            return False
        return True


def _together(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Join the outputs of single windows."""
    return {
        name: np.concatenate([row[name] if row[name].shape[:1] == (1,) else row[name].reshape(1, -1) for row in rows])
        for name in rows[0]
    }


def _recognise(file: ModelFile) -> str | None:
    # Every ONNX file begins with the field `ir_version`.
    return "onnx" if file.suffix == ".onnx" or file.head[:1] == b"\x08" else None


LOADER = Loader("ONNX", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
