"""TensorFlow SavedModel folders: TensorFlow is the reference, tf2onnx converts, and its result is verified.

tf2onnx exits with 0 for files that no runtime loads, so its output is checked like any ONNX file, against TensorFlow's
own answers. A SavedModel is a program that TensorFlow runs: one with operators that do more than compute
(`savedmodel_ops.py`) is refused without --trust. TensorFlow and tf2onnx are an extra of 2.2 GB.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.graph.build import OPSET
from converter.load.kind import Loader, ModelFile
from converter.load.onnx import OnnxModel
from converter.load.onnx_graph import check
from converter.load.optional import require
from converter.load.savedmodel_ops import COMPUTING, SAVING
from converter.load.torch import quiet
from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

PROGRAM = "saved_model.pb"
_OTHER_PROGRAMS = ("saved_model.pbtxt", "saved_model.cpb")  # some releases of TensorFlow read it instead
_OPERATOR = re.compile(r"(?:\w+>)*_?[A-Z][A-Za-z0-9]*")  # TensorFlow's own; functions have an underscore
_EXTRA = "tensorflow"
_SIGNATURE = "serving_default"
_SAVERS = ("__inference__traced_save", "__inference__traced_restore")  # TensorFlow's own; no other code calls them


def load(folder: Path, spec: Spec, trust: bool) -> "SavedModel":
    """Load a SavedModel.

    Raises:
        CommandError: a package is missing, the folder is damaged or not trusted, or there is no ONNX form.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    links = [path for path in sorted(folder.rglob("*")) if path.is_symlink()]
    if links:
        raise CommandError(f"{links[0]}: expected a folder that holds its own files, found a link to elsewhere")
    others = [name for name in _OTHER_PROGRAMS if (folder / name).exists()]
    if others:
        raise CommandError(
            f"{folder}: expected one program, {PROGRAM}, found {others[0]} beside it: save the model anew"
        )
    tensorflow = require("tensorflow", folder, _EXTRA)
    require("tf2onnx", folder, _EXTRA)
    reaching = sorted(set(_reaching(folder)))
    if reaching and not trust:
        raise CommandError(
            f"{folder}: it may hold operators that reach files, the network or Python ({', '.join(reaching)}): "
            "add --trust if you trust where it comes from"
        )
    try:
        with quiet():
            loaded = tensorflow.saved_model.load(str(folder))
    except Exception as error:
        raise CommandError(f"{folder}: TensorFlow cannot load it: {_first(str(error))}") from error
    name = _signature_of(loaded, folder)
    return SavedModel(_converted(folder, name), spec, str(folder), loaded, signature=name)


def _reaching(folder: Path) -> Iterator[str]:
    """Operators that do more than compute, read without running the file."""
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 - TensorFlow is an extra

    program = saved_model_pb2.SavedModel()
    try:
        program.ParseFromString((folder / PROGRAM).read_bytes())
    except Exception as error:
        raise CommandError(f"{folder}: expected a SavedModel, found a damaged or truncated {PROGRAM}") from error
    for graph in (meta.graph_def for meta in program.meta_graphs):
        functions = {function.signature.name: function for function in graph.library.function}
        called = {name for function in functions.values() for node in function.node_def for name in _calls(node)}
        for name, function in functions.items():
            saves = name.startswith(_SAVERS) and name not in called
            yield from (node.op for node in function.node_def if not _computes(node.op, functions, saves=saves))
        yield from (node.op for node in graph.node if not _computes(node.op, functions, saves=True))


def _computes(operator: str, functions: Collection[str], *, saves: bool) -> bool:
    """Whether it only computes: a listed operator, or a function of the program whose name no operator can have."""
    is_function = operator in functions and not _OPERATOR.fullmatch(operator)
    return operator in COMPUTING or is_function or (saves and operator in SAVING)


def _calls(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _signature_of(loaded: Any, folder: Path) -> str:
    names = sorted(loaded.signatures)
    if _SIGNATURE in names or len(names) == 1:
        return _SIGNATURE if _SIGNATURE in names else str(names[0])
    raise CommandError(
        f"{folder}: expected a signature {_SIGNATURE!r}, or just one, found {', '.join(names) or 'none'}: "
        "save it with signatures="
    )


def _converted(folder: Path, signature: str) -> onnx.ModelProto:
    """Run tf2onnx in a process of its own, since it prints and exits like a program."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "model.onnx"
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--output", str(out),
                   "--signature_def", signature, "--opset", str(OPSET)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        stderr_lines = done.stderr.splitlines()
        strange = sorted(
            {line.partition(": ")[2].partition("]")[0] for line in stderr_lines if "is not supported" in line}
        )
        if strange:
            raise CommandError(f"{folder}: no ONNX form is known for the TensorFlow operators {', '.join(strange)}")
        if done.returncode or not out.exists():
            reason = next(
                (line.strip() for line in reversed(stderr_lines) if line.strip()), f"exit code {done.returncode}"
            )
            raise CommandError(f"{folder}: tf2onnx cannot convert it: {_first(reason)}")
        model = onnx.load_model(out)
    check(model, str(folder))
    return model


class SavedModel(OnnxModel):
    """A SavedModel: its ONNX form, and TensorFlow as the reference."""

    framework = "TensorFlow"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str, loaded: Any, *, signature: str) -> None:
        self._loaded = loaded  # variables live as long as it does
        self._signature = loaded.signatures[signature]
        super().__init__(model, spec, place)
        self.version = str(require("tensorflow", place).__version__)

    def _ask(self, windows: Floats) -> dict[str, NDArray[Any]]:
        tensorflow = require("tensorflow", self._place)
        given = self._fed(windows, self._expanded)
        fed = {name: tensorflow.constant(np.ascontiguousarray(value)) for name, value in given.items()}
        try:
            found = self._signature(**fed)
        except Exception as error:
            raise CommandError(f"{self._place}: TensorFlow cannot run it: {_first(str(error))}") from error
        return {item.name: found[item.name].numpy() for item in self._session.get_outputs()}


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason given"


def _recognise(file: ModelFile) -> str | None:
    if not (file.path.is_dir() or file.path.name == PROGRAM):
        return None
    if not (_folder_of(file.path) / PROGRAM).is_file():
        raise CommandError(
            f"{file.path}: expected a model file, or a SavedModel of TensorFlow, found a folder without {PROGRAM}"
        )
    return "savedmodel"


def _folder_of(path: Path) -> Path:
    """The SavedModel of a path: the folder, or the program inside it."""
    return path if path.is_dir() else path.parent


LOADER = Loader(
    "TensorFlow's SavedModel", _recognise, lambda path, spec, _kind, trust: load(_folder_of(path), spec, trust)
)
