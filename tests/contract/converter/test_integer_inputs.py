"""Models of tokens and bytes: whole numbers of any width go in as they are, and what is none is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of
from edge_runtime.batch.run import PredictOptions, predict

WORDS, LENGTH = 60, 7
LABELS = ["calm", "angry", "sad"]


def token_model(path: Path, kind: int) -> Path:
    """A bag of words: a table, a mean, a product."""
    rng = np.random.default_rng(0)
    table, weights = (rng.normal(size=size).astype(np.float32) for size in ((WORDS, 6), (6, len(LABELS))))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        ],
        "words", [helper.make_tensor_value_info("ids", kind, ["N", LENGTH])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", len(LABELS)])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def spec_of(dtype: str, more: str = "") -> str:
    """A frame of whole numbers."""
    head = f'task = "classification"\nlabels = {json.dumps(LABELS)}\n'
    return f'{head}[frame]\nshape = [{LENGTH}]\ndtype = "{dtype}"\n{more}'


def build(folder: Path, model: Path | str, spec: str, *arguments: str) -> int:
    """Run `build`; the bundle is `out.onnx`."""
    (folder / "spec.toml").write_text(spec)
    names = ["build", str(model), "--spec", str(folder / "spec.toml"), "-o", str(folder / "out.onnx")]
    return main([*names, *arguments])


def scores(bundle: Path, x: Any) -> Any:
    """What a bundle answers."""
    return run(session_of(bundle.read_bytes()), x.astype(np.float32)).scores


@pytest.mark.parametrize(("dtype", "kind"), [("int32", TensorProto.INT32), ("int64", TensorProto.INT64)])
def test_tokens_go_in_as_they_are(dtype: str, kind: int, tmp_path: Path) -> None:
    """The scores are those of onnxruntime on the file as it came; the manifest says what a device may let through."""
    model = token_model(tmp_path / "m.onnx", kind)
    x = np.random.default_rng(1).integers(0, WORDS, size=(80, LENGTH)).astype(dtype)
    np.savez(tmp_path / "d.npz", x=x)
    assert build(tmp_path, model, spec_of(dtype, f"range = [0, {WORDS - 1}]\n"), "--data", str(tmp_path / "d.npz")) == 0
    manifest = manifest_of(tmp_path / "out.onnx")
    wanted = manifest.input
    assert (wanted.shape, wanted.dtype, wanted.range) == ((LENGTH,), dtype, (0.0, WORDS - 1.0))
    expected = onnxruntime.InferenceSession(model).run(None, {"ids": x})[0]
    np.testing.assert_allclose(scores(tmp_path / "out.onnx", x), expected, atol=1e-5)


def test_a_token_that_float32_cannot_hold_is_refused_in_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2^24 + 1 names its row; it would have become another token."""
    model = token_model(tmp_path / "m.onnx", TensorProto.INT64)
    x = np.ones((20, LENGTH), np.int64)
    x[13, 2] = 2**24 + 1
    np.savez(tmp_path / "d.npz", x=x)
    assert build(tmp_path, model, spec_of("int64"), "--data", str(tmp_path / "d.npz")) == 1
    assert "found 16777217 in row 13: a device rejects such frames" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_frames_out_of_range_are_in_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows with a token beyond the vocabulary are counted, named and left out, as a device would reject them."""
    model = token_model(tmp_path / "m.onnx", TensorProto.INT64)
    x = np.random.default_rng(1).integers(0, WORDS, size=(60, LENGTH))
    x[5, 0] = WORDS
    np.savez(tmp_path / "d.npz", x=x)
    spec = spec_of("int64", f"range = [0, {WORDS - 1}]\n")
    assert build(tmp_path, model, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none") == 0
    assert "a device would reject 1 of 60 frames" in capsys.readouterr().out


def test_recordings_of_tokens_are_scored_and_strange_ones_counted(tmp_path: Path) -> None:
    """`predict` reads whole numbers of 64 bits and sets aside what the model does not know."""
    model = token_model(tmp_path / "m.onnx", TensorProto.INT64)
    assert build(tmp_path, model, spec_of("int64", f"range = [0, {WORDS - 1}]\n"), "--quantize", "none") == 0
    x = np.random.default_rng(2).integers(0, WORDS, size=(30, LENGTH))
    x[7, 3] = 2**40
    np.savez(tmp_path / "in.npz", x=x)
    result = predict(PredictOptions(tmp_path / "out.onnx", [str(tmp_path / "in.npz")], tmp_path / "out.jsonl"))
    assert result.rejected == {"out_of_range": 1}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    good = np.delete(x, 7, axis=0)
    expected = onnxruntime.InferenceSession(model).run(None, {"ids": good})[0]
    found = np.array([[row[f"score_{label}"] for label in LABELS] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_module_of_torch_takes_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding bag from `module:function`: the truth is the module on the same int64 tokens."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    (tmp_path / "words.py").write_text(
        "import torch\n"
        "class Bag(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.table, self.head = torch.nn.Embedding({WORDS}, 5), torch.nn.Linear(5, 3)\n"
        "    def forward(self, ids):\n"
        "        return torch.softmax(self.head(self.table(ids).mean(dim=1)), dim=1)\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return Bag()\n"
    )
    monkeypatch.chdir(tmp_path)
    spec = spec_of("int64", f"range = [0, {WORDS - 1}]\n")
    assert build(tmp_path, "words:make", spec, "--trust", "--quantize", "none") == 0
    monkeypatch.syspath_prepend(str(tmp_path))
    import words  # type: ignore[import-not-found] # noqa: PLC0415

    x = np.random.default_rng(3).integers(0, WORDS, size=(40, LENGTH))
    with torch.no_grad():
        expected = words.make().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(scores(tmp_path / "out.onnx", x), expected, atol=1e-5)
