"""Recurrent models: the stream of a device gives what an offline run gives, one state a key, anew after a gap."""

import importlib.util
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.cli import main
from converter.commands.inspect import manifest_of
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.stream.windows import Windows

RATE = 16000.0
CUTS = (1, 700, 3, 2048, 511, 40, 4096)  # readings that arrive together


def build(model: Path, spec: str, folder: Path) -> Path:
    """A bundle that must succeed."""
    (folder / "spec.toml").write_text(spec)
    out = folder / "out.onnx"
    assert main(["build", str(model), "--spec", str(folder / "spec.toml"), "--quantize", "none", "-o", str(out)]) == 0
    return out


def streamed(
    bundle: Path, readings: NDArray[Any], keys: list[str | None], times: list[float], *, max_gap: float
) -> Any:
    """What the device answers to readings as they come in, key -> scores `[windows, classes]`."""
    model = Model(open_bundle(bundle))
    window = model.manifest.input.window
    windows = Windows(model.manifest.input.tensor_shape, length=window.length, stride=window.stride, max_gap=max_gap)
    found: dict[str | None, list[Any]] = {key: [] for key in dict.fromkeys(keys)}
    at = turn = 0
    while at < len(keys):
        stop = min(len(keys), at + CUTS[turn % len(CUTS)])
        done = windows.push(readings[at:stop], keys[at:stop], times[at:stop], 0.0)
        if len(done.rows):
            scores = model.run(done.windows, done.carries).scores
            assert scores is not None
            for row, score in zip(done.rows, scores, strict=True):
                found[keys[at + row]].append(score.copy())
        at, turn = stop, turn + 1
    return {key: np.array(scores) for key, scores in found.items()}


def offline(source: Path, signal: NDArray[Any], length: int, stride: int, *, state: NDArray[Any], **fixed: Any) -> Any:
    """The file as it came, asked window by window with its own state handed on, `[windows]` of its output."""
    session = onnxruntime.InferenceSession(source)
    answers = []
    for start in range(0, len(signal) - length + 1, stride):
        given = {"input": signal[None, start : start + length], "state": state, **fixed}
        output, state = session.run(["output", "stateN"], given)
        answers.append(output.reshape(-1)[0])
    return np.array(answers)


def spec_of(length: int, stride: int, gain: str) -> str:
    """One channel of sound, one state, one constant; a probability becomes two scores."""
    return (
        'task = "classification"\nlabels = ["other", "speech"]\n'
        f'[window]\nlength = {length}\nstride = {stride}\nrate_hz = {RATE}\n[[channel]]\nname = "sound"\n'
        '[model]\ninput = "input"\noutput = "output"\n'
        f'[[state]]\ninput = "state"\noutput = "stateN"\nbatch_axis = 1\n[constants]\n{gain}\n'
    )


def interleaved(signals: dict[str, NDArray[Any]], gap: tuple[str, int]) -> tuple[Any, list[str | None], list[float]]:
    """Readings of several keys in blocks of 100; the one named in `gap` is silent for a minute at that reading."""
    rows, keys, times = [], [], []
    for start in range(0, max(len(signal) for signal in signals.values()), 100):
        for key, signal in signals.items():
            for index in range(start, min(start + 100, len(signal))):
                rows.append(signal[index])
                keys.append(key)
                times.append(index / RATE + (60.0 if (key, True) == (gap[0], index >= gap[1]) else 0.0))
    return np.array(rows, dtype=np.float32)[:, None], list(keys), times


def assert_stream_equals_offline(
    source: Path, bundle: Path, signals: dict[str, NDArray[Any]], shape: tuple[int, int], *, state: Any, **fixed: Any
) -> Any:
    """Two keys beside each other, one with a gap: each stretch is an offline run of its own, to 1e-5."""
    first, second = signals
    cut = len(signals[second]) // 2 + 37
    readings, keys, times = interleaved(signals, (second, cut))
    found = streamed(bundle, readings, keys, times, max_gap=1.0)
    whole = offline(source, signals[first], *shape, state=state, **fixed)
    parts = [offline(source, part, *shape, state=state, **fixed) for part in np.split(signals[second], [cut])]
    np.testing.assert_allclose(found[first][:, 1], whole, atol=1e-5)
    np.testing.assert_allclose(found[second][:, 1], np.concatenate(parts), atol=1e-5)
    # The state matters, and so does the gap: neither windows alone nor one long run give these numbers.
    alone = [offline(source, signals[first][at : at + shape[0]], *shape, state=state, **fixed)[0]
             for at in range(0, len(signals[first]) - shape[0] + 1, shape[1])]  # fmt: skip
    assert np.abs(np.array(alone) - whole).max() > 1e-3
    ungapped = offline(source, signals[second], *shape, state=state, **fixed)
    after = found[second][len(parts[0]) :, 1]
    assert not np.allclose(after[:3], ungapped[len(parts[0]) :][:3], atol=1e-4)
    return whole


def gru(path: Path, length: int, hidden: int) -> Path:
    """A small recurrent network with the interface of Silero's: input, state `[1, N, hidden]`, a constant sr."""
    rng = np.random.default_rng(0)
    made = {
        "w": rng.normal(size=(1, 3 * hidden, length)), "r": rng.normal(size=(1, 3 * hidden, hidden)),
        "b": rng.normal(size=(1, 6 * hidden)), "out": rng.normal(size=(hidden, 1)),
    }  # fmt: skip
    made["w"] /= np.sqrt(length)
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in made.items()]
    constants += [
        numpy_helper.from_array(np.array([0]), "axis"),
        numpy_helper.from_array(np.array(1 / 16000, dtype=np.float32), "per"),
    ]
    nodes = [
        helper.make_node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rate", "per"], ["gain"]),
        helper.make_node("Mul", ["input", "gain"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "axis"], ["sequence"]),
        helper.make_node("GRU", ["sequence", "w", "r", "b", "", "state"], ["", "stateN"], hidden_size=hidden),
        helper.make_node("Squeeze", ["stateN", "axis"], ["last"]),
        helper.make_node("MatMul", ["last", "out"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
    ]
    floats: dict[str, list[str | int]] = {
        "input": ["N", length],
        "state": [1, "N", hidden],
        "output": ["N", 1],
        "stateN": [1, "N", hidden],
    }
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in floats.items()}
    rate = helper.make_tensor_value_info("sr", TensorProto.INT64, [])
    graph = helper.make_graph(
        nodes, "gru", [values["input"], values["state"], rate], [values["output"], values["stateN"]], constants
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_stream_of_windows_is_an_offline_run_of_each_key_and_starts_anew_after_a_gap(tmp_path: Path) -> None:
    """A GRU over windows that overlap, readings of two keys mixed and cut anyhow."""
    source = gru(tmp_path / "gru.onnx", 64, 6)
    bundle = build(source, spec_of(64, 48, "sr = 16000"), tmp_path)
    manifest = manifest_of(bundle)
    assert [(state.input, state.output, state.shape) for state in manifest.state] == [("state", "stateN", (1, 6))]
    assert [item.name for item in onnxruntime.InferenceSession(bundle).get_inputs()] == ["window", "state"]
    rng = np.random.default_rng(1)
    signals = {name: rng.normal(size=1500).astype(np.float32) for name in ("left", "right")}
    start = np.zeros((1, 1, 6), dtype=np.float32)
    assert_stream_equals_offline(source, bundle, signals, (64, 48), state=start, sr=np.array(16000))


def speech(path: Path) -> NDArray[np.float32]:
    """The first channel of a recording, between -1 and 1."""
    with wave.open(str(path)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    return np.asarray(data[:, 0] / 32768.0, dtype=np.float32)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15"])
def test_silero_s_voice_detector_hears_a_word_in_a_stream_as_it_does_offline(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    """The file of the package silero-vad: state and rate from the specification, real speech, two keys, a gap."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("needs the model files of silero-vad: pip install --no-deps silero-vad")
    source = Path(found.origin).parent / "data" / f"{name}.onnx"
    # 32 ms, with the 4 ms before them as context, which is what Silero's own Python hands over.
    bundle = build(source, spec_of(576, 512, "sr = 16000"), tmp_path)
    word = speech(shared_data / "mlperf-tiny-wakeword" / "marvin_617de221_0.wav")
    noise = np.random.default_rng(0).normal(scale=0.003, size=16000).astype(np.float32)
    signals = {"word": np.concatenate([noise[:8000], word]), "two words": np.concatenate([word, noise[:4000], word])}
    start = np.zeros((2, 1, 128), dtype=np.float32)
    heard = assert_stream_equals_offline(source, bundle, signals, (576, 512), state=start, sr=np.array(16000))
    assert heard[:12].max() < 0.3
    assert heard[15:].max() > 0.8
