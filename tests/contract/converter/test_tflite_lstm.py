"""TFLite's LSTM: its cells are clipped after each step, whatever form the bundle has for it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from converter.cli import main
from converter.load import tflite_lstm
from converter.session import run, session_of
from tests.support.tflite_files import TfliteFile

pytest.importorskip("ai_edge_litert")

LENGTH, UNITS = 28, 3
SPEC = f'task = "regression"\ntargets = ["a", "b", "c"]\n[window]\nlength = {LENGTH}\n[[channel]]\nname = "x"\n'


def lstm_file(path: Path, clip: float) -> list[NDArray[Any]]:
    """An LSTM of three units, the first of which counts: its cell gains about the sign of the reading in each step."""
    rng = np.random.default_rng(3)
    fed = [rng.normal(0, 1, (UNITS, 1)).astype(np.float32) for _ in range(4)]
    before = [rng.normal(0, 0.3, (UNITS, UNITS)).astype(np.float32) for _ in range(4)]
    bias = [np.zeros(UNITS, np.float32) for _ in range(4)]
    bias[0][0] = bias[1][0] = 9.0  # enters and remembers
    fed[2][0], before[2][0] = 6.0, 0.0
    file = TfliteFile()
    graph = file.graph()

    def tensor(name: str, shape: tuple[int, ...], value: Any = None) -> int:
        return file.tensor(graph, name, "FLOAT32", shape, value=value)

    x, result = tensor("x", (1, LENGTH, 1)), tensor("y", (1, LENGTH, UNITS))
    tables = [[tensor(f"{kind}{n}", each.shape, each) for n, each in enumerate(group)]
              for kind, group in (("fed", fed), ("before", before), ("bias", bias))]  # fmt: skip
    states = [tensor("output", (1, UNITS)), tensor("cell", (1, UNITS))]
    for state in states:
        graph.tensors[state].isVariable = True
    none = -1
    inputs = [x, *tables[0], *tables[1], none, none, none, *tables[2], none, none, *states, none, none, none, none]
    file.operator(graph, "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [result], options="UnidirectionalSequenceLSTMOptions",
                  fusedActivationFunction=4, cellClip=clip, projClip=0.0, timeMajor=False)  # fmt: skip
    last = tensor("last", (1, UNITS))
    begin = file.tensor(graph, "begin", "INT32", (3,), value=np.array([0, LENGTH - 1, 0], np.int32))
    size = file.tensor(graph, "size", "INT32", (3,), value=np.array([1, 1, UNITS], np.int32))
    part = tensor("part", (1, 1, UNITS))
    file.operator(graph, "SLICE", [result, begin, size], [part], options="SliceOptions")
    shape = file.tensor(graph, "shape", "INT32", (2,), value=np.array([1, UNITS], np.int32))
    file.operator(graph, "RESHAPE", [part, shape], [last], options="ReshapeOptions", newShape=[1, UNITS])
    graph.inputs, graph.outputs = [x], [last]
    file.save(path)
    return [np.stack(fed), np.stack(before), np.stack(bias)]


def windows() -> NDArray[np.float32]:
    """Ordinary windows, and every third one counts to 18 and back by 10; clipped, to 10 and back to 0."""
    x = np.random.default_rng(5).normal(0, 0.4, (30, LENGTH, 1)).astype(np.float32)
    x[::3, :18], x[::3, 18:] = 1.0, -1.0
    return x


def by_hand(weights: list[NDArray[Any]], x: NDArray[Any], clip: float) -> NDArray[Any]:
    """The outputs after the last step, in float64; without `clip` where that is infinite."""
    fed, before, bias = (part.astype(np.float64) for part in weights)
    h = c = np.zeros((len(x), UNITS))
    for step in range(x.shape[1]):
        enter, forget, plain, output = (x[:, step] @ fed[n].T + h @ before[n].T + bias[n] for n in range(4))
        opened = [1 / (1 + np.exp(-gate)) for gate in (enter, forget, output)]
        c = np.clip(opened[1] * c + opened[0] * np.tanh(plain), -clip, clip)
        h = opened[2] * np.tanh(c)
    return h


def converted(folder: Path, x: NDArray[Any]) -> bytes:
    """A bundle that has been compared with the interpreter on these windows."""
    (folder / "spec.toml").write_text(SPEC)
    np.savez(folder / "x.npz", x=x)
    out = folder / "out.onnx"
    names = ["--spec", str(folder / "spec.toml"), "-o", str(out), "--data", str(folder / "x.npz")]
    assert main(["build", str(folder / "m.tflite"), *names, "--quantize", "none"]) == 0
    return out.read_bytes()


def scores(data: bytes, x: NDArray[Any]) -> NDArray[Any]:
    """The values of a bundle."""
    return np.asarray(run(session_of(data), x).value)


def test_a_window_whose_cells_are_clipped_answers_as_clipped_and_the_others_by_the_operator(tmp_path: Path) -> None:
    """Cells that reach 10 stay there, as in TFLite; windows alone and among others give the same bits."""
    x = windows()
    weights = lstm_file(tmp_path / "m.tflite", 10.0)
    wanted, without = by_hand(weights, x, 10.0), by_hand(weights, x, np.inf)
    assert np.abs(wanted - without)[::3].max() > 0.01, "the windows would be the same without clipping"
    data = converted(tmp_path, x)
    found = scores(data, x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    alone = np.concatenate([scores(data, x[row : row + 1]) for row in range(len(x))])
    assert found.tobytes() == alone.tobytes()
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert kinds.count("LSTM") == 2
    assert kinds.count("If") == 1
    assert "Sigmoid" not in kinds, "steps are unrolled where nothing is clipped"


def test_the_comparison_sees_the_cells_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that count to 18 are seen by a bound of 17, and pass one of 19: then the conversion is refused."""
    x = windows()
    weights = lstm_file(tmp_path / "m.tflite", 10.0)
    monkeypatch.setattr(tflite_lstm, "_MARGIN", -7.0)
    np.testing.assert_allclose(scores(converted(tmp_path, x), x), by_hand(weights, x, 10.0), atol=1e-5)
    monkeypatch.setattr(tflite_lstm, "_MARGIN", -9.0)
    with pytest.raises(AssertionError):
        converted(tmp_path, x)


@pytest.mark.parametrize("clip", [0.0, float(LENGTH)])
def test_where_no_cell_can_be_clipped_the_operator_stands_alone(tmp_path: Path, clip: float) -> None:
    """Without a clip, and with one that the steps of a window cannot reach, nothing is compared on the device."""
    x = windows()
    weights = lstm_file(tmp_path / "m.tflite", clip)
    data = converted(tmp_path, x)
    np.testing.assert_allclose(scores(data, x), by_hand(weights, x, np.inf), atol=1e-5)
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert kinds.count("LSTM") == 1
    assert "If" not in kinds


def test_a_large_lstm_takes_single_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many units the cells would cost as much again as the steps."""
    monkeypatch.setattr(tflite_lstm, "_MOST_UNITS", UNITS - 1)
    x = windows()
    weights = lstm_file(tmp_path / "m.tflite", 10.0)
    data = converted(tmp_path, x)
    np.testing.assert_allclose(scores(data, x), by_hand(weights, x, 10.0), atol=1e-5)
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert kinds.count("LSTM") == kinds.count("Clip") + 1 == LENGTH, "the last cell is not needed"


def test_a_clip_that_shows_in_the_outputs_is_applied_before_them(tmp_path: Path) -> None:
    """At 2 the tanh of a clipped cell is another one, so that the operator's own output of a step would be wrong."""
    x = windows()
    weights = lstm_file(tmp_path / "m.tflite", 2.0)
    wanted = by_hand(weights, x, 2.0)
    assert np.abs(wanted - by_hand(weights, x, 10.0)).max() > 0.01
    np.testing.assert_allclose(scores(converted(tmp_path, x), x), wanted, atol=1e-5)
