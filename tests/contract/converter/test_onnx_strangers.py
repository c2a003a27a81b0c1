"""ONNX files as strangers make them: branches and loops that see the batch, odd outputs; none leaves a traceback."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.cli import main
from converter.commands.inspect import manifest_of
from tests.contract.converter.test_onnx_files import FLOAT, ask, build, noise, save, softmax

X: Any = ("x", FLOAT, ["N", 4])


def branch(name: str, weights: Any) -> Any:
    """A body of one product."""
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"l{name}"]),
            helper.make_node("Softmax", [f"l{name}"], [f"y{name}"], axis=1),
        ],
        name,
        [],
        [helper.make_tensor_value_info(f"y{name}", FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, f"w{name}")],
    )


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_a_branch_that_looks_at_the_whole_batch_is_run_window_by_window(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a window is answered does not depend on the windows that it comes with; numpy alone is right."""
    w = noise(4, 3)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "nought"], ["yes"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch("a", w), else_branch=branch("b", -w)),
    ]
    path = save(
        tmp_path / "m.onnx", nodes, [X], [("y", FLOAT, ["N", 3])], constants={"nought": np.array(0.0, np.float32)}
    )
    x = noise(60, 4)
    np.savez(tmp_path / "d.npz", x=x)
    out = build(path, f'task = "{task}"\n', "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    assert "the windows of a batch change one another's answers" in capsys.readouterr().out
    assert not manifest_of(out).batch_free
    found = np.concatenate([ask(out, row[None, None])["scores"] for row in x])
    np.testing.assert_allclose(found, softmax(np.where(x.mean(axis=1, keepdims=True) > 0, x @ w, -(x @ w))), atol=1e-5)


def test_a_loop_over_the_channels_converts(tmp_path: Path) -> None:
    """A body that hands a state from turn to turn."""
    step, w = noise(4, 4), noise(4, 3)
    ports: Any = [("i", 7, []), ("go", 9, []), ("s", FLOAT, ["N", 4])], [("on", 9, []), ("so", FLOAT, ["N", 4])]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "step"], ["sm"]),
            helper.make_node("Tanh", ["sm"], ["so"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [helper.make_tensor_value_info(*each) for each in ports[0]],
        [helper.make_tensor_value_info(*each) for each in ports[1]],
        [numpy_helper.from_array(step, "step")],
    )
    nodes = [
        helper.make_node("Loop", ["turns", "yes", "x"], ["f"], body=body),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    constants = {"turns": np.array(4), "yes": np.array(True), "w": w}
    path = save(tmp_path / "m.onnx", nodes, [X], [("y", FLOAT, ["N", 3])], constants=constants)
    x = noise(60, 4)
    np.savez(tmp_path / "d.npz", x=x)
    out = build(path, 'task = "regression"\n', "--data", str(tmp_path / "d.npz"))
    expected = x
    for _ in range(4):
        expected = np.tanh(expected @ step)
    np.testing.assert_allclose(ask(out, x[:, None])["value"], expected @ w, atol=2e-3)


TEXT = ("x", TensorProto.STRING, ["N", 4])
STRANGE: dict[str, tuple[list[Any], Any, Any, dict[str, Any], str, str]] = {
    "text": (
        [helper.make_node("Identity", ["x"], ["t"]), helper.make_node("Shape", ["t"], ["s"]),
         helper.make_node("Cast", ["s"], ["y"], to=1)],
        TEXT, ("y", FLOAT, [2]), {}, 'task = "regression"\n', "input 'x': expected numbers, found text: export the",
    ),
    "nothing": (
        [helper.make_node("Compress", ["x", "none"], ["y"], axis=1)],
        X, ("y", FLOAT, ["N", None]), {"none": np.zeros(4, bool)}, 'task = "regression"\n',
        "output 'y': expected numbers for each window, found the shape [16, 0], which holds none",
    ),
    "no number": (
        [helper.make_node("Log", ["x"], ["y"])],
        X, ("y", FLOAT, ["N", 4]), {}, 'task = "regression"\n', "found NaN or infinity in value of ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_holds_no_answer_is_refused_in_a_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text, outputs without numbers, and answers that are none for the rows of the data."""
    nodes, given, result, constants, spec, words = STRANGE[name]
    path = save(tmp_path / "m.onnx", nodes, [given], [result], constants=constants)
    np.savez(tmp_path / "d.npz", x=noise(60, 4))
    (tmp_path / "s.toml").write_text(spec)
    command = ["build", str(path), "--spec", str(tmp_path / "s.toml"), "--data", str(tmp_path / "d.npz")]
    assert main([*command, "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    stderr = capsys.readouterr().err
    assert words in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_a_sequence_as_output_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As skl2onnx writes the probabilities of several outputs."""
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["y"], axis=1)],
        "g",
        [helper.make_tensor_value_info(*X)],
        [helper.make_tensor_sequence_value_info("y", FLOAT, ["N", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert main(["build", str(tmp_path / "m.onnx"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    stderr = capsys.readouterr().err
    assert "output 'y': expected a tensor, found seq(tensor(float)): export the model with tensors as outputs" in stderr
    assert len(stderr.strip().splitlines()) == 1
