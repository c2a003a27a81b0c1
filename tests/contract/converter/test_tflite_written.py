"""TFLite files written here: tokens beside numbers, and variables of floats, held to the interpreter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from converter.cli import main
from converter.session import run, run_stream, session_of
from edge_runtime.bundle.open import open_bundle
from tests.support.tflite_files import TfliteFile


def interpreter_of(path: Path) -> Any:
    """The interpreter, ready."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    made = Interpreter(model_path=str(path))
    made.allocate_tensors()
    return made


def build(folder: Path, model: Path, spec: str, x: Any) -> int:
    """Run `build` with rows that judge."""
    (folder / "s.toml").write_text(spec)
    np.savez(folder / "d.npz", x=x)
    names = ["build", str(model), "--spec", str(folder / "s.toml"), "--data", str(folder / "d.npz")]
    return main([*names, "--quantize", "none", "-o", str(folder / "o.onnx")])


def test_tokens_of_int32_and_numbers_go_into_inputs_of_their_own(tmp_path: Path) -> None:
    """A table of words beside two temperatures; the tokens stay whole numbers."""
    file, rng = TfliteFile(), np.random.default_rng(0)
    graph = file.graph()
    ids = file.tensor(graph, "ids", "INT32", (1, 5))
    climate = file.tensor(graph, "climate", "FLOAT32", (1, 2))
    table = file.tensor(graph, "table", "FLOAT32", (20, 2), value=rng.normal(size=(20, 2)).astype(np.float32))
    rows = file.tensor(graph, "rows", "FLOAT32", (1, 5, 2))
    axes = file.tensor(graph, "axes", "INT32", (1,), value=np.array([1], np.int32))
    mean, out = file.tensor(graph, "mean", "FLOAT32", (1, 2)), file.tensor(graph, "out", "FLOAT32", (1, 2))
    file.operator(graph, "GATHER", [table, ids], [rows], options="GatherOptions", axis=0)
    file.operator(graph, "MEAN", [rows, axes], [mean], options="ReducerOptions", keepDims=False)
    file.operator(graph, "ADD", [mean, climate], [out], options="AddOptions")
    graph.inputs, graph.outputs = [ids, climate], [out]
    path = file.save(tmp_path / "m.tflite")
    x = np.concatenate([rng.integers(0, 20, (30, 5, 1)), rng.normal(size=(30, 5, 2))], axis=2).astype(np.float32)
    spec = 'task = "regression"\n[window]\nlength = 5\n[[channel]]\nname = "id"\nrange = [0, 19]\n'
    spec += '[[channel]]\nname = "t"\n[[channel]]\nname = "h"\n[[input]]\nname = "ids"\nchannels = ["id"]\n'
    assert build(tmp_path, path, spec + '[[input]]\nname = "climate"\nchannels = ["t", "h"]\n', x) == 0
    interpreter, wanted = interpreter_of(path), []
    places = {item["name"]: item["index"] for item in interpreter.get_input_details()}
    for row in x:
        interpreter.set_tensor(places["ids"], row[None, :, 0].astype(np.int32))
        interpreter.set_tensor(places["climate"], row[None, -1, 1:])
        interpreter.invoke()
        wanted.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    found = run(session_of((tmp_path / "o.onnx").read_bytes()), x).value
    np.testing.assert_allclose(np.asarray(found), np.array(wanted), atol=1e-5)


def counter(path: Path, start: float) -> Path:
    """A running sum of its input, in a variable that begins at `start`."""
    file = TfliteFile()
    graph, once = file.graph(), file.graph()
    options = {"options": "VarHandleOptions", "sharedName": "sum", "container": ""}
    x, handle = file.tensor(graph, "x", "FLOAT32", (1, 2)), file.tensor(graph, "handle", "RESOURCE", ())
    held, added = file.tensor(graph, "held", "FLOAT32", (1, 2)), file.tensor(graph, "added", "FLOAT32", (1, 2))
    file.operator(graph, "CALL_ONCE", [], [], options="CallOnceOptions", initSubgraphIndex=1)
    file.operator(graph, "VAR_HANDLE", [], [handle], **options)
    file.operator(graph, "READ_VARIABLE", [handle], [held], options="ReadVariableOptions")
    file.operator(graph, "ADD", [x, held], [added], options="AddOptions")
    file.operator(graph, "ASSIGN_VARIABLE", [handle, added], [], options="AssignVariableOptions")
    graph.inputs, graph.outputs = [x], [added]
    again = file.tensor(once, "handle", "RESOURCE", ())
    first = file.tensor(once, "first", "FLOAT32", (1, 2), value=np.full((1, 2), start, np.float32))
    file.operator(once, "VAR_HANDLE", [], [again], **options)
    file.operator(once, "ASSIGN_VARIABLE", [again, first], [], options="AssignVariableOptions")
    return file.save(path)


def test_a_variable_of_floats_is_handed_on(tmp_path: Path) -> None:
    """A running sum: the bundle's stream is the interpreter's, and numpy's."""
    path, x = counter(tmp_path / "m.tflite", 0.0), np.random.default_rng(0).integers(-9, 9, (40, 2)).astype(np.float32)
    assert build(tmp_path, path, 'task = "regression"\n', x) == 0
    opened = open_bundle(tmp_path / "o.onnx")
    found, _ = run_stream(session_of((tmp_path / "o.onnx").read_bytes()), x[:, None], opened.manifest.state)
    np.testing.assert_array_equal(np.asarray(found.value), np.cumsum(x, axis=0))


def test_a_variable_that_does_not_begin_at_zero_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device's states do; the message names the variable."""
    path = counter(tmp_path / "m.tflite", 3.0)
    assert build(tmp_path, path, 'task = "regression"\n', np.ones((20, 2), np.float32)) == 1
    assert "variable sum: expected one that begins at zero" in capsys.readouterr().err
