"""TFLite files: the interpreter, the float or int8 ONNX, and the final bundle, on recorded samples."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.load import open_model, tflite_operators
from converter.session import run, session_of
from converter.spec import load_spec
from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.readings import Carry

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.shared_data

WORDS = ["Down", "Go", "Left", "No", "Off", "On", "Right", "Stop", "Up", "Yes", "Silence", "Unknown"]
KWS = f'task = "classification"\nlabels = {json.dumps(WORDS)}\n[frame]\nshape = [49, 10, 1]\n'


def samples(folder: Path) -> tuple[Any, Any]:
    """500 spoken words as int8 spectra, and which words they are."""
    with (folder / "labels.csv").open(newline="") as file:
        truth = [int(row["label"]) for row in csv.DictReader(file)][:500]
    return np.load(folder / "samples_int8.npy"), np.array(truth)


def interpreted(path: Path, x: Any) -> Any:
    """What TFLite's interpreter gives, as anybody would call it, for int8 rows."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    given, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for row in x:
        interpreter.set_tensor(given["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(wanted["index"])[0])
    scale, zero = wanted["quantization"]
    return (np.array(rows).astype(np.float32) - np.float32(zero)) * np.float32(scale)


def build(tmp_path: Path, model: Path, spec: str, *arguments: str) -> Path:
    """A bundle that must succeed."""
    (tmp_path / "spec.toml").write_text(spec)
    out = tmp_path / "out.onnx"
    assert main(["build", str(model), "--spec", str(tmp_path / "spec.toml"), "-o", str(out), *arguments]) == 0
    return out


def test_the_int8_keyword_model_is_bit_identical_to_its_interpreter(shared_data: Path, tmp_path: Path) -> None:
    """All 500 samples: every score of the bundle is the interpreter's, to the last bit, and it stays int8."""
    folder = shared_data / "mlperf-tiny-kws"
    x, y = samples(folder)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    spec = KWS + 'dtype = "int8"\n'
    out = build(tmp_path, folder / "kws_ref_model.tflite", spec, "--data", str(tmp_path / "d.npz"))
    source = open_model(folder / "kws_ref_model.tflite", load_spec(tmp_path / "spec.toml"), trust=False)
    windows = x.astype(np.float32)
    found, expected = run(session_of(out.read_bytes()), windows), source.predict(windows)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.scores, interpreted(folder / "kws_ref_model.tflite", x))
    assert "came quantised" in manifest_of(out).quantization["reason"]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}


@pytest.mark.parametrize("method", ["auto", "int8"])
def test_the_float_keyword_model_becomes_int8_within_a_point(method: str, shared_data: Path, tmp_path: Path) -> None:
    """Calibrated on one half of the samples and judged by the other, int8 loses less than one point."""
    folder = shared_data / "mlperf-tiny-kws"
    q, y = samples(folder)
    x = (q.astype(np.float32) - 83) * np.float32(0.5847029089927673)
    np.savez(tmp_path / "one.npz", x=x[::2], y=y[::2])
    np.savez(tmp_path / "other.npz", x=x[1::2], y=y[1::2])
    files = ["--calibration", str(tmp_path / "one.npz"), "--evaluation", str(tmp_path / "other.npz")]
    out = build(
        tmp_path, folder / "kws_ref_model_float32.tflite", KWS, *files, "--quantize", method, "--prefer", "size"
    )
    record = manifest_of(out).quantization
    assert record["float_metric"] >= 0.88
    assert record["drop"] <= 0.01
    assert record["differing_labels_float"] == 0
    assert record["max_score_difference_float"] < 1e-5
    assert record["bytes"] < record["bytes_float"] / 2


@pytest.mark.parametrize(("name", "mean"), [("ad01_fp32", 9.7071), ("ad01_int8", None)])
def test_an_autoencoder_s_reconstruction_error_becomes_a_score(
    name: str, mean: float | None, shared_data: Path, tmp_path: Path
) -> None:
    """196 windows of one recording: the published mean of the float model, parity, a threshold from data."""
    folder = shared_data / "mlperf-tiny-anomaly"
    frames = np.fromfile(folder / "normal_id_01_00000000_hist_librosa.bin", "<f4").reshape(200, 128)
    x = np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])
    np.savez(tmp_path / "d.npz", x=x)
    spec = 'task = "anomaly"\n[frame]\nshape = [640]\n'
    out = build(tmp_path, folder / f"{name}.tflite", spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    source = open_model(folder / f"{name}.tflite", load_spec(tmp_path / "spec.toml"), trust=False)
    score = run(session_of(out.read_bytes()), x).score
    assert score is not None
    expected = source.predict(x).score
    assert expected is not None
    np.testing.assert_allclose(score, expected, rtol=1e-4)
    if mean is not None:
        assert score.mean() == pytest.approx(mean, abs=1e-3)
    assert manifest_of(out).output.threshold == pytest.approx(np.quantile(score, 0.99), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "task"),
    [
        ("mlperf-tiny-wakeword/str_ww_ref_model", [30, 1, 40], "classification"),
        ("tflite-micro/micro_speech_quantized", [1960], "classification"),
        ("tflite-micro/hello_world_int8", [1], "regression"),
        ("tflite-micro/hello_world_float", [1], "regression"),
    ],
)
def test_other_small_models_answer_as_their_interpreter(
    name: str, shape: list[int], task: str, shared_data: Path, tmp_path: Path
) -> None:
    """On made-up inputs: at most six int8 steps apart for one model of known difference, else none or one."""
    kind = "" if name.endswith("float") else 'dtype = "int8"\n'
    spec = f'task = "{task}"\n[frame]\nshape = {shape}\n{kind}'
    (tmp_path / "spec.toml").write_text(spec)
    source = open_model(shared_data / f"{name}.tflite", load_spec(tmp_path / "spec.toml"), trust=False)
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, size=(100, *shape)) if kind else rng.uniform(0, 6.28, size=(100, *shape))
    expected = source.predict(x.astype(np.float32))
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32))
    out = build(tmp_path, shared_data / f"{name}.tflite", spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    found = run(session_of(out.read_bytes()), x.astype(np.float32))
    for part, array in expected.tensors().items():
        steps = 6 if "speech" in name else 1
        np.testing.assert_allclose(found.tensors()[part], array, atol=1e-5 if not kind else steps / 100)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("tflite-micro/audio_preprocessor_int8", "SignalWindow"),
        ("tflite-micro/audio_preprocessor_int8", "SignalFilterBank"),
    ],
)
def test_what_has_no_onnx_form_is_refused_in_one_sentence(
    name: str, operator: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Custom operators are named."""
    assert (
        main(["build", str(shared_data / f"{name}.tflite"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]) == 1
    )
    stderr = capsys.readouterr().err
    assert "no ONNX form is known for the TFLite operators" in stderr
    assert operator in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(
    share: float, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it ends, there is one message."""
    whole = (shared_data / "mlperf-tiny-kws" / "kws_ref_model.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(whole[: int(len(whole) * share)])
    (tmp_path / "spec.toml").write_text(KWS)
    arguments = ["build", str(tmp_path / "cut.tflite"), "--spec", str(tmp_path / "spec.toml"), "--quantize", "none"]
    assert main([*arguments, "-o", str(tmp_path / "o.onnx")]) == 1
    stderr = capsys.readouterr().err
    assert "cut.tflite" in stderr
    assert "Traceback" not in stderr


WAKE = 'task = "classification"\nlabels = ["other", "okay_nabu"]\n[frame]\nshape = [3, 40]\ndtype = "int8"\n'


def spectra(count: int) -> Any:
    """A stream of int8 spectra, of noise that swells and fades."""
    rng = np.random.default_rng(4)
    loud = 60 + 50 * np.sin(np.arange(count) / 9)[:, None, None]
    return np.clip(rng.normal(-30, 1, (count, 3, 40)) + loud * rng.normal(size=(count, 3, 40)), -128, 127).astype(
        np.int8
    )


ASSIGNED = (
    58,
    61,
    65,
    75,
    85,
    89,
)  # the tensors of the file that its variables stream, stream_1 ... stream_5 are given


def test_the_wake_word_s_variables_become_states_to_the_bit(shared_data: Path, tmp_path: Path) -> None:
    """Over a stream of 300 windows all scores and states are the interpreter's, which keeps its variables itself."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    path, x = shared_data / "micro-wake-word" / "okay_nabu_v2.tflite", spectra(300)
    np.savez(tmp_path / "d.npz", x=x)
    out = build(tmp_path, path, WAKE, "--data", str(tmp_path / "d.npz"))
    opened = open_bundle(out)
    names = [state.input for state in opened.manifest.state]
    interpreter = Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    scales = {item["index"]: item["quantization"] for item in interpreter.get_tensor_details()}
    model, carry, other = Model(opened), Carry(), Carry()
    moved = []
    for row in x:
        found = model.run(row[None].astype(np.float32), [carry])
        lent = model.run_borrowed(row[None].astype(np.float32), [other])
        assert np.asarray(lent.scores).tobytes() == np.asarray(found.scores).tobytes()
        assert [part.tobytes() for part in other.parts or []] == [part.tobytes() for part in carry.parts or []]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        score = np.float32(interpreter.get_tensor(93)[0, 0]) * np.float32(1 / 256)
        assert np.asarray(found.scores)[0, 1].tobytes() == score.tobytes()
        for place, tensor in enumerate(ASSIGNED):
            name = f"state_stream_{place}_states" if place else "state_stream_states"
            held = interpreter.get_tensor(tensor)[0].astype(np.float32) - np.float32(scales[tensor][1])
            wanted = held * np.float32(scales[tensor][0])
            assert carry.parts is not None
            assert carry.parts[names.index(name)].tobytes() == wanted.tobytes()
        assert carry.parts is not None
        moved.append(carry.parts[names.index("state_stream_5_states")].copy())
    assert len(np.unique(np.array(moved))) > 50
    check_golden(model)
    np.savez(tmp_path / "stream.npz", x=x)
    _a_wrong_state_is_refused(path, tmp_path)


def _a_wrong_state_is_refused(path: Path, folder: Path) -> None:
    """A state that is handed on wrongly shows in no single window: the stream in `build` is what finds it."""
    right = tflite_operators.OPERATORS["ASSIGN_VARIABLE"]

    def wrong(network: Any, operator: Any) -> None:
        right(network, operator)
        variable = next(iter(network.variables.values()))
        variable.value = network.node("Mul", variable.value, network.constant(0.0))

    files = ["--calibration", str(folder / "d.npz"), "--evaluation", str(folder / "stream.npz")]
    names = ["build", str(path), "--spec", str(folder / "spec.toml"), *files, "-o", str(folder / "wrong.onnx")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tflite_operators.OPERATORS, "ASSIGN_VARIABLE", wrong)
        assert main(names) == 1
    assert not (folder / "wrong.onnx").exists()
    assert main(names) == 0


def test_an_lstm_answers_each_window_from_an_empty_memory(shared_data: Path, tmp_path: Path) -> None:
    """28 rows of 28 numbers: the scores are those of an interpreter whose variables are reset before each window."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    path = shared_data / "tflite-micro" / "trained_lstm.tflite"
    x = np.random.default_rng(0).random((60, 28, 28)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    channels = "".join(f'[[channel]]\nname = "c{index}"\n' for index in range(28))
    labels = json.dumps(list("0123456789"))
    spec = f'task = "classification"\nlabels = {labels}\n[window]\nlength = 28\n{channels}'
    out = build(tmp_path, path, spec, "--data", str(tmp_path / "d.npz"), "--quantize", "none")
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    wanted = []
    for row in x:
        interpreter.reset_all_variables()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        wanted.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    found = np.asarray(run(session_of(out.read_bytes()), x).scores)
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-5)
    assert manifest_of(out).state == ()
