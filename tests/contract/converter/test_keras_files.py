"""Keras: the model, its ONNX export and the bundle, on recorded and made-up inputs."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("torch")
pytest.importorskip("onnxscript")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from converter.cli import main  # noqa: E402
from converter.commands.inspect import manifest_of  # noqa: E402
from converter.load import open_model  # noqa: E402
from converter.session import run, session_of  # noqa: E402
from converter.spec import load_spec  # noqa: E402

KERAS_2 = Path(__file__).parents[2] / "golden" / "keras2"

pytestmark = [pytest.mark.filterwarnings("ignore")]


def assert_parity(tmp_path: Path, model: Path, spec: str, x: Any) -> Any:
    """Source and bundle agree to 1e-4: each anomaly score to 1e-4 of itself; the manifest is handed back."""
    (tmp_path / "spec.toml").write_text(spec)
    np.savez(tmp_path / "d.npz", x=x)
    out = tmp_path / "out.onnx"
    arguments = ["--spec", str(tmp_path / "spec.toml"), "--data", str(tmp_path / "d.npz"), "--quantize", "none"]
    assert main(["build", str(model), *arguments, "-o", str(out)]) == 0
    expected = open_model(model, load_spec(tmp_path / "spec.toml"), trust=False).predict(x.astype(np.float32))
    found = run(session_of(out.read_bytes()), x.astype(np.float32)).tensors()
    for name, part in expected.tensors().items():
        np.testing.assert_allclose(found[name], part, rtol=1e-4, atol=0 if name == "score" else 1e-4)
    return manifest_of(out)


@pytest.mark.shared_data
def test_the_published_autoencoder_gives_its_published_score(shared_data: Path, tmp_path: Path) -> None:
    """An old Keras file; the mean score of one normal recording is the one measured elsewhere."""
    folder = shared_data / "mlperf-tiny-anomaly"
    frames = np.fromfile(folder / "normal_id_01_00000000_hist_librosa.bin", "<f4").reshape(200, 128)
    x = np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])
    manifest = assert_parity(tmp_path, folder / "ad01.h5", 'task = "anomaly"\n[frame]\nshape = [640]\n', x)
    assert manifest.source.framework == "Keras"
    score = run(session_of((tmp_path / "out.onnx").read_bytes()), x).score
    assert score is not None
    assert score.mean() == pytest.approx(9.4913, abs=1e-3)


@pytest.mark.shared_data
def test_a_keras_2_file_that_keras_3_stumbles_over_is_read(shared_data: Path, tmp_path: Path) -> None:
    """The streaming wake word, whose depthwise convolutions say `groups`."""
    folder = shared_data / "mlperf-tiny-wakeword"
    with np.load(folder / "calibration_samples.npz") as archive:
        x = archive["specs"]
    assert_parity(
        tmp_path, folder / "str_ww_ref_model.h5", 'task = "classification"\n[frame]\nshape = [30, 1, 40]\n', x
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["recurrent", "picture"])
def test_files_of_keras_2_answer_as_keras_2_did(name: str, suffix: str, tmp_path: Path) -> None:
    """LSTM, GRU, separable, depthwise and transposed convolutions, in words that Keras 3 does not know, to 1e-5."""
    with np.load(KERAS_2 / f"{name}.npz") as vectors:
        x, y = vectors["x"], vectors["y"]
    (tmp_path / "spec.toml").write_text(f'task = "regression"\n[frame]\nshape = {list(x.shape[1:])}\n')
    arguments = ["--spec", str(tmp_path / "spec.toml"), "--quantize", "none", "-o", str(tmp_path / "out.onnx")]
    assert main(["build", str(KERAS_2 / f"{name}{suffix}"), *arguments]) == 0
    value = run(session_of((tmp_path / "out.onnx").read_bytes()), x).value
    assert value is not None
    np.testing.assert_allclose(value, y, atol=1e-5)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_of_today_converts(suffix: str, tmp_path: Path) -> None:
    """Convolution over time, channels last as Keras has them."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((20, 3)), layers.Conv1D(8, 5, activation="relu"), layers.BatchNormalization(),
        layers.GlobalAveragePooling1D(), layers.Dropout(0.5), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.save(tmp_path / f"m{suffix}")
    x = np.random.default_rng(0).normal(size=(50, 20, 3))
    spec = 'task = "classification"\n[window]\nlength = 20\n'
    assert assert_parity(tmp_path, tmp_path / f"m{suffix}", spec, x).input.tensor_shape == (20, 3)


def test_code_inside_a_file_needs_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Lambda layer, a function smuggled in as an object, and weights without a model are refused."""
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "plain.keras")
    gadget = {"module": "keras.utils", "class_name": "function", "config": "get_file"}
    for name, extra in (("lambda", {"class_name": "Lambda", "module": "keras.layers"}), ("gadget", gadget)):
        with zipfile.ZipFile(tmp_path / "plain.keras") as source:
            members = {member: source.read(member) for member in source.namelist()}
        config = json.loads(members["config.json"])
        config["config"]["layers"].append(extra)
        with zipfile.ZipFile(tmp_path / f"{name}.keras", "w") as target:
            for member, data in members.items():
                target.writestr(member, json.dumps(config) if member == "config.json" else data)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["x"] = np.zeros(3)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "weights.h5").read_bytes()[:300])
    for name, message in (
        ("lambda.keras", "it carries code (Lambda)"),
        ("gadget.keras", "it carries code (keras.utils.function)"),
        ("weights.h5", "found weights without one"),
        ("cut.h5", "found a damaged, truncated or other file"),
    ):
        assert main(["build", str(tmp_path / name), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
        stderr = capsys.readouterr().err
        assert message in stderr, stderr


def channels(*names: str) -> str:
    """Tables of channels."""
    return "".join(f'[[channel]]\nname = "{name}"\n' for name in names)


@pytest.mark.parametrize("length", [5, 12])
def test_an_open_time_axis_is_as_long_as_the_window_of_the_specification(length: int, tmp_path: Path) -> None:
    """The same file serves windows of any length; the truth is Keras on windows of that length."""
    given = keras.Input((None, 3))
    hidden = keras.layers.GRU(6)(keras.layers.Conv1D(4, 3, padding="same")(given))
    keras.Model(given, keras.layers.Dense(2)(hidden)).save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(30, length, 3)).astype(np.float32)
    spec = f'task = "regression"\n[window]\nlength = {length}\n{channels("x", "y", "z")}'
    assert assert_parity(tmp_path, tmp_path / "m.keras", spec, x).input.window.length == length


def test_an_open_size_that_nothing_fills_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the input's sizes and what was found."""
    given = keras.Input((None, 3))
    keras.Model(given, keras.layers.Dense(2)(keras.layers.GRU(6)(given))).save(tmp_path / "m.keras")
    (tmp_path / "s.toml").write_text(f'task = "regression"\n[window]\nlength = 4\n{channels("x", "y")}')
    names = ["build", str(tmp_path / "m.keras"), "--spec", str(tmp_path / "s.toml"), "-o", str(tmp_path / "o.onnx")]
    assert main([*names, "--quantize", "none"]) == 1
    stderr = capsys.readouterr().err
    assert "leaves sizes open (?, 3)" in stderr
    assert "found [4, 2]" in stderr


def test_tokens_of_an_embedding_layer_are_whole_numbers(tmp_path: Path) -> None:
    """An int32 input, its length fixed by the frame."""
    given = keras.Input((None,), dtype="int32")
    mean = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(40, 8)(given))
    keras.Model(given, keras.layers.Dense(3, activation="softmax")(mean)).save(tmp_path / "m.keras")
    x = np.random.default_rng(0).integers(0, 40, size=(30, 9)).astype(np.int32)
    spec = 'task = "classification"\nlabels = ["a", "b", "c"]\n[frame]\nshape = [9]\ndtype = "int32"\nrange = [0, 39]\n'
    assert_parity(tmp_path, tmp_path / "m.keras", spec, x)


def test_several_inputs_and_outputs_are_named_as_in_keras(tmp_path: Path) -> None:
    """Motion over time beside the last temperatures; two heads, which become targets."""
    motion, climate = keras.Input((None, 3), name="motion"), keras.Input((2,), name="climate")
    joined = keras.layers.Concatenate()([keras.layers.GRU(5)(motion), keras.layers.Dense(4)(climate)])
    heads = [keras.layers.Dense(1, name="power")(joined), keras.layers.Dense(2, name="wear")(joined)]
    keras.Model([motion, climate], heads).save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(30, 6, 5)).astype(np.float32)
    spec = (
        f'task = "regression"\n[window]\nlength = 6\n{channels("t", "x", "y", "z", "h")}'
        '[[input]]\nname = "motion"\nchannels = ["x", "y", "z"]\n[[input]]\nname = "climate"\nchannels = ["t", "h"]\n'
        '[[output]]\nname = "wear"\n[[output]]\nname = "power"\n'
    )
    manifest = assert_parity(tmp_path, tmp_path / "m.keras", spec, x)
    assert [target.name for target in manifest.output.targets] == ["wear_0", "wear_1", "power"]
    model = keras.models.load_model(tmp_path / "m.keras")
    power, wear = model.predict([x[..., 1:4], x[:, -1, [0, 4]]], verbose=0)
    found = run(session_of((tmp_path / "out.onnx").read_bytes()), x).value
    np.testing.assert_allclose(np.asarray(found), np.concatenate([wear, power], axis=1), atol=1e-4)
