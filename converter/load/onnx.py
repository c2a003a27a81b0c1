"""ONNX files: in the normal form already, or with one window in and scores or values out."""

from pathlib import Path
from typing import Any

import onnx

from converter.evaluate import run, session_of
from converter.graph import STANDARD_DOMAINS, serialize
from converter.load.source import Answer, Core, SourceModel
from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.manifest import INPUT_NAME, METADATA_KEY, Manifest, Task, read_manifest
from edge_runtime.readings import Floats

_TASK_OF: dict[str, Task] = {"label": "classification", "value": "regression", "score": "anomaly"}


def load(path: Path, spec: Spec) -> "OnnxModel":
    """Load an ONNX file.

    Raises:
        CommandError: it is no ONNX file, or has parts that no device would run.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(
            f"{path}: expected an ONNX model, found a damaged, truncated or other file: {text[0] if text else error}"
        ) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise CommandError(f"{path}: weights in other files are not accepted: save the model as one file")
    strange = sorted({node.domain for node in model.graph.node} - set(STANDARD_DOMAINS))
    if strange:
        raise CommandError(f"{path}: expected standard operators, found those of {', '.join(strange)}")
    return OnnxModel(model, spec, str(path))


class OnnxModel(SourceModel):
    """A model in ONNX. Its own answers, by onnxruntime, are the truth that later forms are held to."""

    framework = "ONNX"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str) -> None:
        super().__init__()
        self._model, self._spec, self._place = model, spec, place
        self.version = str(model.ir_version)
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [item for item in model.graph.input if item.name not in constants]
        names = {output.name for output in model.graph.output}
        if [item.name for item in inputs] != [INPUT_NAME] or not names & set(_TASK_OF):
            raise CommandError(
                f"{place}: expected an ONNX model in normal form, found inputs {[i.name for i in inputs]}"
            )
        self.manifest = _manifest_of(model, place)
        shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim][1:]
        self.shape = tuple(shape) if all(shape) else None
        self.task = next(task for name, task in _TASK_OF.items() if name in names)
        self._session: Any = None
        self._describe()

    def _describe(self) -> None:
        manifest = self.manifest
        if manifest is not None:
            self.classes = manifest.output.labels
            self.threshold = manifest.output.threshold
        columns = self._columns("value" if self.task == "regression" else "scores")
        if self.task == "regression" and columns:
            self.targets = columns

    def _columns(self, name: str) -> int:
        for output in self._model.graph.output:
            if output.name == name:
                dims = output.type.tensor_type.shape.dim
                return int(dims[-1].dim_value) if len(dims) == 2 else 1
        return 0

    def predict(self, windows: Floats) -> Answer:
        """Ask onnxruntime."""
        if self._session is None:
            self._session = session_of(serialize(self._model))
        return run(self._session, windows)

    def core(self) -> Core:
        """The graph itself."""
        assert self.shape is not None
        names = {output.name for output in self._model.graph.output}
        roles = {name: name for name in ("label", "scores", "value", "score") if name in names}
        return Core(self._model, INPUT_NAME, self.shape, roles, layout="time_first")


def _manifest_of(model: onnx.ModelProto, place: str) -> Manifest | None:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return read_manifest(entry.value, place)
    return None
