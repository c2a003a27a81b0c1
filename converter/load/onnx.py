"""ONNX from anywhere: in the normal form already, or with one window in and scores, values or a score out.

Old opsets are raised, a batch frozen at 1 is made free where the graph allows it, and what the file leaves open
(which tensors, which layout, logits or probabilities) is taken from the specification or from the graph itself.
The source's answers are those of the file as it came, run by onnxruntime with numpy around it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner

from converter.graph.build import OPSET, STANDARD_DOMAINS, opset_of, serialize
from converter.graph.fold import folded
from converter.graph.shrink import Saving
from converter.load.kind import Loader, ModelFile
from converter.load.source import Answer, Core, SourceModel, StateTensor
from converter.load.tensors import layout_of, squash
from converter.session import session_of
from converter.spec import Spec
from edge_runtime.bundle.manifest import INPUT_NAME, METADATA_KEY, Manifest, Task, read_manifest
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_NEWEST_OPSET = 22  # of onnxruntime 1.20, the oldest that devices have
_TASK_OF: dict[str, Task] = {"label": "classification", "value": "regression", "score": "anomaly"}
_NORMAL_OUTPUTS = {"classification": ("label", "scores"), "regression": ("value",), "anomaly": ("score",)}
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.STRING)
_PROBE_ROWS = 16
_TRANSPARENT = ("DequantizeLinear", "QuantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
# What leaves single probabilities probabilities: they are averaged, picked or moved.
_PICKING = ("ReduceMean", "ReduceMax", "ReduceMin", "Slice", "Gather", "Transpose", "Concat")


def load(path: Path, spec: Spec) -> "OnnxModel":
    """Load an ONNX file.

    Raises:
        CommandError: it is no ONNX file, or has parts that no device would run.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise CommandError(f"{path}: expected an ONNX model, found a damaged, truncated or other file") from error
    return from_model(model, spec, str(path))


def from_model(model: onnx.ModelProto, spec: Spec, place: str) -> "OnnxModel":
    """Take an ONNX model that is in memory already.

    Raises:
        CommandError: as `load`.
    """
    check(model, place)
    return OnnxModel(model, spec, place)


def check(model: onnx.ModelProto, place: str) -> None:
    """Refuse what no device would run.

    Raises:
        CommandError: the model is no sound ONNX, has weights elsewhere, or operators outside the standard.
    """
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in _all_tensors(model)):
        raise CommandError(f"{place}: weights in other files are not accepted: save the model as one file")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(
            f"{place}: expected an ONNX model, found a damaged, truncated or other file: {text[0] if text else error}"
        ) from error
    strange = sorted({f"{node.domain}.{node.op_type}" for node in _all_nodes(model) if not _is_standard(node, model)})
    if strange:
        raise CommandError(f"{place}: expected standard operators, found {', '.join(strange)}")


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of functions, and of the bodies of If, Loop and Scan in both."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for training in model.training_info:
        waiting += [*training.initialization.node, *training.algorithm.node]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                waiting += inner.node


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor, wherever it stands."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    attributes = [each for function in model.functions for each in function.attribute_proto]
    attributes += [each for node in _all_nodes(model) for each in node.attribute]
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
        yield from (tensor for each in sparse for tensor in (each.values, each.indices))
        graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        yield from (tensor for each in graph.sparse_initializer for tensor in (each.values, each.indices))


def _is_standard(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    return node.domain in STANDARD_DOMAINS or any(
        (function.domain, function.name) == (node.domain, node.op_type) for function in model.functions
    )


class OnnxModel(SourceModel):
    """A model in ONNX."""

    framework = "ONNX"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str) -> None:
        super().__init__()
        self._spec, self._place = spec, place
        self.version = f"opset {opset_of(model)}"
        self.manifest = _manifest_of(model, place)
        self._model, zipped = _without_zipmap(model)
        if zipped:
            saved = sum(node.ByteSize() for node in model.graph.node if node.op_type == "ZipMap")
            self.savings.append(Saving("ZipMap", len(zipped), saved))
        self.trees = any(node.op_type.startswith("TreeEnsemble") for node in self._model.graph.node)
        self._session = _session(self._model, place)
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._states = self._find_states()
        self._constants = self._find_constants()
        self._input = self._find_input()
        dims = [size if isinstance(size, int) and size > 0 else 0 for size in self._inputs[self._input].shape]
        self._fixed_batch = bool(dims) and dims[0] == 1
        self._layout = layout_of(tuple(dims[1:]), spec, place)
        self.shape = self._layout.shape
        self._find_outputs(zipped)

    def predict(self, windows: Floats) -> Answer:
        """Ask onnxruntime, with the file as it came."""
        if not self._fixed_batch and not self._states:
            return self._answer(self._run(windows), windows)
        rows = [self._run(windows[index : index + 1]) for index in range(len(windows))]
        return self._answer({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, windows)

    def core(self) -> Core:
        """The graph itself, at an opset that devices know, with a free batch where that works."""
        model = _at_opset(self._model, self._place)
        free = True
        if self._fixed_batch:
            freed = _with_free_batch(model, [self._input, *(state.input for state in self._states)])
            free = freed is not None and self._agrees(freed)
            if free and freed is not None:
                model = freed
            else:
                self.notes.append("the batch of this graph is fixed at 1: devices run it window by window")
        return Core(
            folded(model),
            self._input,
            self._layout.wanted,
            dict(self._roles),
            self._label_classes,
            extra={"columns": self._columns, "activation": self._activation},
            arrange=self._layout,
            constants=self._constants,
            states=tuple(self._states),
            batch_free=free,
        )

    def _find_states(self) -> list[StateTensor]:
        outputs = {item.name for item in self._session.get_outputs()}
        found = []
        for state in self._spec.state:
            self._require(state.input, self._inputs, "[[state]] input")
            self._require(state.output, outputs, "[[state]] output")
            shape = list(self._inputs[state.input].shape)
            if not 0 <= state.batch_axis < len(shape):
                raise CommandError(f"{self._place}: [[state]] {state.input}: no axis {state.batch_axis} in {shape}")
            del shape[state.batch_axis]
            if not all(isinstance(size, int) and size > 0 for size in shape):
                raise CommandError(f"{self._place}: [[state]] {state.input}: expected fixed sizes, found {shape}")
            found.append(StateTensor(state.input, state.output, tuple(shape), state.batch_axis))
        return found

    def _find_constants(self) -> dict[str, NDArray[Any]]:
        return {name: self._constant(name, value) for name, value in self._spec.constants.items()}

    def _constant(self, name: str, value: Any) -> NDArray[Any]:
        self._require(name, self._inputs, "[constants]")
        array = np.asarray(value, dtype=numpy_type(self._inputs[name].type))
        missing = len(self._inputs[name].shape) - array.ndim
        return array.reshape((1,) * missing + array.shape) if missing > 0 else array

    def _require(self, name: str, known: Any, what: str) -> None:
        if name not in known:
            raise CommandError(f"{self._place}: {what}: expected one of {', '.join(known)}, found {name!r}")

    def _find_input(self) -> str:
        taken = {state.input for state in self._states} | set(self._constants)
        free = [name for name in self._inputs if name not in taken]
        asked = self._spec.model.input
        if asked is not None:
            self._require(asked, self._inputs, "[model] input")
            if free != [asked]:
                others = ", ".join(name for name in free if name != asked)
                raise CommandError(
                    f"{self._place}: inputs that nothing feeds: {others}: name them as states or constants"
                )
            return str(asked)
        if len(free) != 1:
            found = ", ".join(f"{name} {self._inputs[name].shape}" for name in free) or "none"
            raise CommandError(
                f"{self._place}: expected one input for the window, found {found}: "
                "name it in [model], and the others in [[state]] or [constants]"
            )
        return str(free[0])

    def _find_outputs(self, zipped: dict[str, tuple[Any, ...]]) -> None:
        """Which output plays which role, and what its columns are."""
        state_outputs = {state.output for state in self._states}
        outputs = {item.name: item for item in self._session.get_outputs() if item.name not in state_outputs}
        probe = self._run(self._probe())
        said = self._spec.model
        for name in filter(None, (said.output, said.label)):
            self._require(name, outputs, "[model] output")
        labels = [name for name in outputs if probe[name].dtype.kind in "iUSO" and probe[name].size == _PROBE_ROWS]
        floats = [name for name in outputs if probe[name].dtype.kind == "f"]
        normal = next((task for name, task in _TASK_OF.items() if name in outputs), None)
        is_normal = self._input == INPUT_NAME and normal is not None and set(_NORMAL_OUTPUTS[normal]) <= set(outputs)
        self.task = self._spec.task or (normal if is_normal else "classification" if labels and floats else None)
        main = said.output or self._main_output(floats, normal if is_normal else None)
        self._columns = int(np.prod(probe[main].shape[1:]))
        self._label_classes: tuple[Any, ...] = ()
        self._activation = "none"
        if self.task == "classification":
            label = said.label or (labels[0] if labels and not (said.output and not is_normal) else None)
            self._roles = {"scores": main, **({"label": label} if label else {})}
            self._activation = self._find_activation(main, probe[main], is_normal)
            count = max(2, self._columns)
            own = zipped.get(main, ()) or _class_constants(self._model, count)
            self.classes = own or tuple(range(count))
            self._label_classes = own
        elif self.task == "anomaly":
            size = int(np.prod(self._layout.wanted))
            rebuilt = said.score == "reconstruction" or (said.score is None and self._columns == size and size > 1)
            self._roles = {"reconstruction" if rebuilt else "score": main}
            if not rebuilt and self._columns != 1:
                raise CommandError(f"{self._place}: expected one score a window, found {self._columns} in {main!r}")
        else:
            self._roles = {"value": main}
            self.targets = self._columns
        if is_normal:
            self._label_classes = ()
        if self.manifest is not None and is_normal:
            self.classes = self.manifest.output.labels
            self.threshold = self.manifest.output.threshold

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
        said = self._spec.model.activation
        if said is not None or is_normal:
            return said or "none"
        makers = _makers_of(name, self._model.graph, _TRANSPARENT + (_PICKING if self._columns == 1 else ()))
        if makers and makers <= {"Softmax", "Sigmoid"}:
            return "none"
        flat = probe.reshape(len(probe), -1).astype(np.float64)
        if flat.shape[1] > 1 and (flat >= 0).all() and np.allclose(flat.sum(axis=1), 1.0, atol=1e-3):
            return "none"
        activation = "softmax" if flat.shape[1] > 1 else "sigmoid"
        self.notes.append(
            f"{name} does not hold probabilities: {activation} is applied; [model] activation changes that"
        )
        return activation

    def _probe(self) -> Floats:
        shape, frame = self._layout.window, self._spec.frame
        if frame is not None and frame.dtype in ("int32", "int64"):
            low, high = (int(end) for end in frame.range or (0, 1))  # tokens: there are two at least
            return np.random.default_rng(0).integers(low, high, (_PROBE_ROWS, *shape), endpoint=True).astype(np.float32)
        return np.random.default_rng(0).normal(size=(_PROBE_ROWS, *shape)).astype(np.float32)

    def _run(self, windows: Floats, session: Any = None) -> dict[str, NDArray[Any]]:
        session = session or self._session
        names = [item.name for item in session.get_outputs()]
        if self._fixed_batch and len(windows) > 1 and session is self._session:
            rows = [self._run(windows[index : index + 1]) for index in range(len(windows))]
            return {name: np.concatenate([row[name].reshape(1, -1) for row in rows]) for name in names}
        fed = self._fed(windows)
        try:
            return dict(zip(names, session.run(names, fed), strict=True))
        except Exception as error:
            text = str(error).strip().splitlines()[0]
            raise CommandError(
                f"{self._place}: onnxruntime cannot run it on {fed[self._input].shape}: {text}"
            ) from error

    def _fed(self, windows: Floats) -> dict[str, Any]:
        """Every input of the file, states at their start."""
        kind = numpy_type(self._inputs[self._input].type)
        fed: dict[str, Any] = {self._input: self._layout.arrange(windows, kind), **self._constants}
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
        if self.task == "anomaly":
            if "reconstruction" in self._roles:
                fed = self._layout.arrange(windows, np.float32).reshape(n, -1).astype(np.float64)
                rebuilt = outputs[self._roles["reconstruction"]].reshape(n, -1)
                return Answer(score=np.mean((rebuilt - fed) ** 2, axis=1))
            return Answer(score=outputs[self._roles["score"]].reshape(n).astype(np.float64))
        return Answer(value=outputs[self._roles["value"]].reshape(n, -1).astype(np.float64))

    def _agrees(self, freed: onnx.ModelProto) -> bool:
        """Whether a graph whose batch was made free answers several rows as it answers each alone."""
        rows = self._probe()[:7]
        alone = self._run(rows)
        try:
            session = session_of(serialize(freed))
            for batch in (1, 2, 7):
                together = self._run(rows[:batch], session)
                for name, part in together.items():
                    if name in {state.output for state in self._states}:
                        continue
                    if not np.allclose(part.reshape(batch, -1), alone[name][:batch].reshape(batch, -1), atol=1e-4):
                        return False
        except Exception:  # noqa: BLE001 - whatever it says, this graph wants its batch of 1
            return False
        return True


def _makers_of(
    name: str, graph: onnx.GraphProto, through: tuple[str, ...], outside: dict[str, onnx.NodeProto] | None = None
) -> set[str]:
    """The operators that make a tensor, seen through what only rounds, shapes or picks, and in every branch of an `If`.

    Empty where something else stands at its beginning, such as an input or a constant. `outside` are the makers of
    what a branch takes from the graph around it.
    """
    makers = {**(outside or {}), **{output: node for node in graph.node for output in node.output}}
    while name in makers and makers[name].op_type in through:
        name = makers[name].input[0]
    if name not in makers:
        return set()
    node = makers[name]
    if node.op_type != "If":
        return {str(node.op_type)}
    place = list(node.output).index(name)
    found = [_makers_of(item.g.output[place].name, item.g, through, makers) for item in node.attribute]
    return set.union(*found) if all(found) else set()


def _class_constants(model: onnx.ModelProto, count: int) -> tuple[Any, ...]:
    """The classes that a converted classifier carries, in an attribute or as the table that labels are taken from."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name.startswith("classlabels"):
                names = helper.get_attribute_value(attribute)
                if len(names) == count:
                    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)
        if node.op_type == "ArrayFeatureExtractor" and node.input[0] in constants:
            table = onnx.numpy_helper.to_array(constants[node.input[0]]).reshape(-1).tolist()
            if len(table) == count:
                return tuple(name.decode() if isinstance(name, bytes) else name for name in table)
    return ()


def _session(model: onnx.ModelProto, place: str) -> Any:
    try:
        return session_of(serialize(model))
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise CommandError(f"{place}: onnxruntime cannot load it: {text}") from error


def _manifest_of(model: onnx.ModelProto, place: str) -> Manifest | None:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return read_manifest(entry.value, place)
    return None


def numpy_type(kind: str) -> Any:
    """`tensor(float)` as numpy says it."""
    names = {"float": "float32", "double": "float64"}
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype(names.get(inner, inner))


def _without_zipmap(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[Any, ...]]]:
    """A copy whose outputs are tensors where the file had maps, and the classes that the maps named."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    classes: dict[str, tuple[Any, ...]] = {}
    outputs = {output.name: output for output in copy.graph.output}
    kept = []
    for node in copy.graph.node:
        if node.op_type == "ZipMap" and node.output[0] in outputs:
            given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            names = given.get("classlabels_int64s") or [name.decode() for name in given.get("classlabels_strings", [])]
            output = outputs[node.output[0]]
            output.CopyFrom(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, ["N", len(names)]))
            classes[node.input[0]] = tuple(names)
        else:
            kept.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    imports = {entry.domain: entry.version for entry in copy.opset_import}  # skl2onnx writes some of them twice
    if not {"", "ai.onnx"} & set(imports):  # nothing but trees inside
        imports[""] = OPSET
    del copy.opset_import[:]
    copy.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in imports.items())
    return copy, classes


def _at_opset(model: onnx.ModelProto, place: str) -> onnx.ModelProto:
    """The same model at an opset that devices know and the quantiser takes."""
    opset = opset_of(model)
    if OPSET <= opset <= _NEWEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET if opset < OPSET else _NEWEST_OPSET)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(
            f"{place}: opset {opset} cannot be brought to {OPSET}: {text[0] if text else error}: export it again"
        ) from error


def _with_free_batch(model: onnx.ModelProto, inputs: list[str]) -> onnx.ModelProto | None:
    """A copy whose batch of 1 is free, constant shapes in `Reshape` included; None where a shape is not known."""
    try:
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - then shapes stay unknown
        known = model
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*known.graph.value_info, *known.graph.output)
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        if (value.name in inputs or value in copy.graph.output) and len(dims) and dims[0].dim_value == 1:
            dims[0].dim_param = "N"
    for node in copy.graph.node:
        if node.op_type != "Reshape":
            continue
        shape = shapes.get(node.output[0])
        if not shape or shape[0] != 1:
            continue
        if 0 in shape[1:]:
            return None
        name = f"{node.output[0]}_free_shape"
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *shape[1:]], dtype=np.int64), name))
        node.input[1] = name
    return copy


def _recognise(file: ModelFile) -> str | None:
    # Every ONNX file begins with the field `ir_version`.
    return "onnx" if file.suffix == ".onnx" or file.head[:1] == b"\x08" else None


LOADER = Loader("ONNX", _recognise, lambda path, spec, _kind, _trust: load(path, spec))
