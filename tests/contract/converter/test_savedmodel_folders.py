"""SavedModel folders of TensorFlow: the model's own answers, its ONNX form and the bundle, on the same rows."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.session import run, session_of

pytestmark = [pytest.mark.filterwarnings("ignore")]

WINDOW = 'task = "classification"\n[window]\nlength = 4\n'


@pytest.fixture
def tensorflow() -> Any:
    """TensorFlow, where it and tf2onnx are (`pip install .[tensorflow]`, 2.2 GB)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    pytest.importorskip("tf2onnx")
    return pytest.importorskip("tensorflow")


def save(tensorflow: Any, folder: Path, ask: Any, *shape: int, **variables: Any) -> Any:
    """A module with variables, and `ask(module, x)` as its only signature; what asks it is handed back."""
    module = tensorflow.Module()
    for name, value in variables.items():
        setattr(module, name, tensorflow.Variable(value))
    signature = [tensorflow.TensorSpec([None, *shape], tensorflow.float32, name="x")]
    module.ask = tensorflow.function(lambda x: ask(module, x), input_signature=signature)
    tensorflow.saved_model.save(module, str(folder), signatures=module.ask)
    return module.ask


def dense(tensorflow: Any, folder: Path, several: bool) -> Any:
    """One product; with `several`, its signature gives two outputs."""

    def ask(module: Any, x: Any) -> Any:
        logits = tensorflow.reshape(x, [-1, 12]) @ module.weight
        return {"logits": logits, "embedding": tensorflow.nn.relu(logits)} if several else {"logits": logits}

    return save(tensorflow, folder, ask, 4, 3, weight=noise(12, 3))


def noise(*shape: int) -> NDArray[np.float32]:
    """Seeded noise."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def softmax(x: Any) -> Any:
    """Probabilities of logits."""
    power = np.exp(x - x.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def build(model: Path, spec: str, *arguments: str) -> int:
    """The exit code of `build`; the bundle is out.onnx beside the model."""
    (model.parent / "spec.toml").write_text(spec)
    out = str(model.parent / "out.onnx")
    return main(["build", str(model), "--spec", str(model.parent / "spec.toml"), "-o", out, *arguments])


@pytest.mark.parametrize("by", ["the folder", "its program"])
def test_a_module_answers_as_tensorflow_does(by: str, tensorflow: Any, tmp_path: Path) -> None:
    """Named by its folder or by the file in it: the same labels, scores to 1e-5, a digest of the whole folder."""
    ask = dense(tensorflow, tmp_path / "m", several=False)
    path = tmp_path / "m" if by == "the folder" else tmp_path / "m" / "saved_model.pb"
    (path.parent / "spec.toml").write_text(WINDOW)
    out = tmp_path / "out.onnx"
    assert (
        main(["build", str(path), "--spec", str(path.parent / "spec.toml"), "--quantize", "none", "-o", str(out)]) == 0
    )
    x = noise(50, 4, 3)
    expected = ask(tensorflow.constant(x))["logits"].numpy()
    found = run(session_of(out.read_bytes()), x)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, softmax(expected), atol=1e-5)
    np.testing.assert_array_equal(found.label, expected.argmax(axis=1))
    source = manifest_of(out).source
    assert (source.framework, source.version) == ("TensorFlow", tensorflow.__version__)
    assert len(source.digest) == 64


def test_a_signature_of_several_outputs_is_chosen_from_by_name(
    tensorflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outputs are named in the message, and `[model] output` picks one."""
    ask = dense(tensorflow, tmp_path / "m", several=True)
    assert build(tmp_path / "m", WINDOW, "--quantize", "none") == 1
    assert "expected one output of numbers, found embedding, logits" in capsys.readouterr().err
    spec = 'task = "regression"\n[window]\nlength = 4\n[model]\noutput = "embedding"\n'
    assert build(tmp_path / "m", spec, "--quantize", "none") == 0
    x = noise(50, 4, 3)
    value = run(session_of((tmp_path / "out.onnx").read_bytes()), x).value
    assert value is not None
    np.testing.assert_allclose(value, ask(tensorflow.constant(x))["embedding"].numpy(), atol=1e-5)


def test_an_exported_keras_model_becomes_int8(tensorflow: Any, tmp_path: Path) -> None:
    """What `model.export` writes: convolution, normalisation, pooling; int8 within the limit."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras is on another backend here")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((20, 3)), keras.layers.Conv1D(16, 5, activation="relu"), keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.export(str(tmp_path / "m"), verbose=False)
    x = noise(200, 20, 3)
    np.savez(tmp_path / "d.npz", x=x)
    spec = 'task = "classification"\n[window]\nlength = 20\n'
    arguments = ["--data", str(tmp_path / "d.npz"), "--quantize", "int8", "--max-drop", "0.05"]
    assert build(tmp_path / "m", spec, *arguments) == 0
    record = manifest_of(tmp_path / "out.onnx").quantization
    assert record["differing_labels_float"] == 0
    assert record["max_score_difference_float"] < 1e-5
    assert record["drop"] <= 0.05


def test_an_operator_without_onnx_form_is_named_although_tf2onnx_ends_with_0(
    tensorflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and no file."""
    save(tensorflow, tmp_path / "m", lambda _, x: {"y": tensorflow.math.bessel_i0(x)}, 4)
    assert build(tmp_path / "m", 'task = "regression"\n', "--quantize", "none") == 1
    stderr = capsys.readouterr().err
    assert "no ONNX form is known for the TensorFlow operators" in stderr
    assert "BesselI0" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_that_counts_its_calls_is_refused(
    tensorflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable that changes when it is asked has no form in ONNX."""

    def ask(module: Any, x: Any) -> Any:
        module.count.assign_add(1.0)
        return {"y": tensorflow.reduce_sum(x, 1) * module.count}

    save(tensorflow, tmp_path / "m", ask, 4, count=0.0)
    assert build(tmp_path / "m", 'task = "regression"\n', "--quantize", "none") == 1
    stderr = capsys.readouterr().err
    assert "tf2onnx cannot convert it" in stderr
    assert "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_a_model_that_writes_files_needs_trust(
    tensorflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it runs: it is refused by what stands in its program."""
    target = str(tmp_path / "written")

    def ask(_: Any, x: Any) -> Any:
        tensorflow.io.write_file(target, "surprise")
        return {"y": tensorflow.reduce_sum(x, 1)}

    save(tensorflow, tmp_path / "m", ask, 4)
    assert build(tmp_path / "m", 'task = "regression"\n', "--quantize", "none") == 1
    assert "operators that reach files, the network or Python (WriteFile): add --trust" in capsys.readouterr().err
    assert not Path(target).exists()


def test_a_damaged_folder_and_one_with_a_link_are_refused(
    tensorflow: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truncated anywhere, or pointing elsewhere: one sentence."""
    dense(tensorflow, tmp_path / "m", several=False)
    program = tmp_path / "m" / "saved_model.pb"
    whole = program.read_bytes()
    for data, message in (
        (whole[: len(whole) // 2], "found a damaged or truncated saved_model.pb"),
        (b"", "TensorFlow cannot load it"),
    ):
        program.write_bytes(data)
        assert build(tmp_path / "m", WINDOW, "--quantize", "none") == 1
        stderr = capsys.readouterr().err
        assert message in stderr, stderr
        assert len(stderr.strip().splitlines()) == 1


def test_a_link_in_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A SavedModel holds its own files; this is seen before TensorFlow is asked for."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"\x08\x01")
    (tmp_path / "m" / "variables").symlink_to("/etc")
    assert build(tmp_path / "m", WINDOW, "--quantize", "none") == 1
    assert "m/variables: expected a folder that holds its own files, found a link" in capsys.readouterr().err


def test_without_tensorflow_the_command_that_installs_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is `tensorflow`; a folder that is no SavedModel gets another message."""
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    (tmp_path / "m").mkdir()
    assert build(tmp_path / "m", WINDOW, "--quantize", "none") == 1
    assert "found a folder without saved_model.pb" in capsys.readouterr().err
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"\x08\x01")
    assert build(tmp_path / "m", WINDOW, "--quantize", "none") == 1
    stderr = capsys.readouterr().err
    assert (
        "needs tensorflow, which is not installed: pip install 'edge-inference-runtime[convert,tensorflow]'" in stderr
    )
