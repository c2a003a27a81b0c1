"""The gate for sources that came quantised: a step of rounding is the same model, more is another."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.cli import main
from converter.load import open_model
from converter.load.onnx import OnnxModel
from converter.load.source import Answer
from converter.rounding import Steps, steps_between
from converter.spec import load_spec

STEP = np.float32(1 / 256)


def network() -> onnx.ModelProto:
    """Two inputs to three probabilities in steps of 1/256, as int8 softmax gives them."""
    weights = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=-1),
        helper.make_node("QuantizeLinear", ["p", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["probabilities"]),
    ]
    tensors = {"w": weights, "step": STEP, "zero": np.int8(-128)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convert(folder: Path, *, truth: bool = False) -> int:
    """Build a bundle of the network, judged on 300 rows; the truth, where it is known, is what the source says."""
    onnx.save(network(), folder / "m.onnx")
    x = np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32)
    np.savez(folder / "d.npz", x=x)
    (folder / "s.toml").write_text(
        'task = "classification"\nlabels = ["a", "b", "c"]\n[[channel]]\nname = "u"\n[[channel]]\nname = "v"\n'
    )
    if truth:
        source = open_model(folder / "m.onnx", load_spec(folder / "s.toml"), trust=False)
        label = source.predict(x[:, None, :]).label
        assert label is not None
        np.savez(folder / "d.npz", x=x, y=label)
    out = ["--data", str(folder / "d.npz"), "-o", str(folder / "out.onnx"), "--quantize", "none"]
    return main(["build", str(folder / "m.onnx"), "--spec", str(folder / "s.toml"), *out])


def off_by(steps: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the source answer some steps otherwise on a share of the rows, so that its label moves where it is close."""
    honest = OnnxModel.predict

    def other(source: Any, windows: Any) -> Answer:
        answer = honest(source, windows)
        assert answer.scores is not None
        moved = answer.scores.copy()
        rows = np.arange(len(moved)) < share * len(moved)
        first, second = np.argsort(-moved, axis=1)[:, 0], np.argsort(-moved, axis=1)[:, 1]
        places = np.arange(len(moved))
        moved[places[rows], first[rows]] -= np.float32(steps) * STEP
        moved[places[rows], second[rows]] += np.float32(steps) * STEP
        return dataclasses.replace(answer, scores=moved, label=moved.argmax(axis=1).astype(np.int64))

    monkeypatch.setattr(OnnxModel, "predict", other)


@pytest.mark.parametrize(("steps", "share", "code"), [(1, 0.4, 0), (4, 0.4, 0), (4, 0.6, 1), (40, 0.1, 1)])
def test_a_quantised_source_is_judged_by_steps_of_rounding_and_not_by_labels(
    steps: float, share: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Labels that a step decides may differ on any number of rows; scores that are many steps off are a fault."""
    off_by(steps, share, monkeypatch)
    assert convert(tmp_path) == code
    printed = capsys.readouterr()
    if steps > 1:
        expected = f"{int(share * 300)} of 300 rows differ by more than one step of rounding (0.00391), by {steps}"
        assert expected in printed.out
    if code:
        assert "the ONNX form does not answer as the source does" in printed.err


@pytest.mark.parametrize(("steps", "code"), [(1, 0), (4, 1)])
def test_where_the_truth_is_known_a_quantised_form_must_keep_the_metric(
    steps: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the truth a loss is a loss, unless every row is within one step."""
    off_by(steps, 0.4, monkeypatch)
    assert convert(tmp_path, truth=True) == code


def test_the_step_is_that_of_the_last_rounding(tmp_path: Path) -> None:
    """Weights behind it would enlarge a step, so that none is known then; a float model has none."""
    model = network()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    one = Answer(scores=np.zeros((2, 3), np.float32))
    other = Answer(scores=np.full((2, 3), 2 * STEP, np.float32))
    found = steps_between(model, one, other)
    assert found is not None
    assert found.step == pytest.approx(1 / 256)
    assert found.rows.tolist() == pytest.approx([2.0, 2.0])
    model.graph.node[-1].output[0] = "rounded"
    model.graph.node.append(helper.make_node("MatMul", ["rounded", "w3"], ["scores"]))
    assert steps_between(model, one, other) is None


def test_rows_that_are_not_finite_are_no_rounding() -> None:
    """NaN against a number is as far off as can be."""
    assert not Steps(1.0, np.array([np.inf])).is_rounding
    assert Steps(1.0, np.zeros(0)).is_rounding
