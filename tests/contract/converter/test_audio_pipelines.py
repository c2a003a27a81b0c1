"""Sound: features, scaler and classifier become one graph that takes the raw window."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skops.io
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.features import MFCC, STFT, MelSpectrogram
from converter.session import run, session_of

RATE = 8000.0
LENGTH = 2000  # a quarter of a second
SOUNDS = ("buzz", "hiss", "whistle")


def sounds(n: int, length: int, seed: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Three kinds of sound at random pitch and loudness, `[n, length, 1]`, and which they are."""
    rng = np.random.default_rng(seed)
    time = np.arange(length) / RATE
    windows, labels = [], []
    for index in range(n):
        label = SOUNDS[index % 3]
        pitch = rng.uniform(80, 200)
        signal = {
            "buzz": np.sign(np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6))),
            "hiss": rng.normal(size=length),
            "whistle": np.sin(2 * np.pi * 12 * pitch * time + rng.uniform(0, 6)),
        }[label]
        windows.append(np.clip(10 ** rng.uniform(-3, 0) * signal + 1e-4 * rng.normal(size=length), -1.0, 1.0))
        labels.append(label)
    return np.array(windows, dtype=np.float32)[:, :, None], np.array(labels)


def extremes(length: int) -> NDArray[np.float32]:
    """Silence, full-scale noise, a full-scale square, the loudest constant, and one click."""
    time = np.arange(length)
    made = [
        np.zeros(length),
        np.sign(np.random.default_rng(9).normal(size=length)),
        np.where(time // 10 % 2, 1.0, -1.0),
        np.ones(length),
        (time == length // 2) * 1.0,
    ]
    return np.array(made, dtype=np.float32)[:, :, None]


def build(model: Any, x: Any, y: Any, spec: str, *, folder: Path, quantize: str) -> Path:
    """A bundle out of a skops file, without --trust."""
    skops.io.dump(model, folder / "sound.skops")
    (folder / "spec.toml").write_text(spec)
    np.savez(folder / "d.npz", x=x, y=y)
    out = folder / "sound.onnx"
    arguments = ["--spec", str(folder / "spec.toml"), "--data", str(folder / "d.npz"), "--quantize", quantize]
    assert main(["build", str(folder / "sound.skops"), *arguments, "-o", str(out)]) == 0
    return out


FRONT_ENDS = {
    "librosa-mfcc": MFCC.like_librosa(sr=RATE, n_mfcc=13, n_fft=512, hop_length=160, n_mels=40),
    "speech-features-mfcc": MFCC.like_python_speech_features(samplerate=RATE, nfft=256),
    "mfcc-summary": MFCC(rate_hz=RATE, n_fft=256, hop=128, bands=20, summary=("mean", "std")),
    "mel": MelSpectrogram.like_librosa(sr=RATE, n_fft=256, hop_length=256, n_mels=20, log="db", range_db=80.0),
    "stft": STFT(n_fft=200, hop=200, log="ln"),
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_pipeline_of_sound_features_is_one_graph_that_takes_the_raw_window(name: str, tmp_path: Path) -> None:
    """MFCC and its like, scaler, network: same labels, scores to 1e-4, for silence and full-scale sound as well."""
    x, y = sounds(120, LENGTH, 0)
    network = MLPClassifier((8,), max_iter=60, random_state=0)
    model = make_pipeline(FRONT_ENDS[name], StandardScaler(), network).fit(x, y)
    out = build(model, x, y, "", folder=tmp_path, quantize="none")
    manifest = manifest_of(out)
    assert manifest.input.tensor_shape == (LENGTH, 1)
    assert manifest.input.window.rate_hz == (None if name == "stft" else RATE)
    assert manifest.output.labels == SOUNDS
    unseen = np.concatenate([sounds(60, LENGTH, 1)[0], extremes(LENGTH)])
    found, expected = run(session_of(out.read_bytes()), unseen), model.predict_proba(unseen)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    assert found.label is not None
    np.testing.assert_array_equal(np.array(SOUNDS)[found.label], model.predict(unseen))


def test_the_network_behind_the_features_becomes_int8_and_the_features_stay_as_they_are(tmp_path: Path) -> None:
    """Quantisation touches the classifier's products; on sounds never seen the int8 bundle recognises 95 %."""
    x, y = sounds(240, LENGTH, 0)
    network = MLPClassifier((16,), max_iter=100, random_state=0)
    model = make_pipeline(FRONT_ENDS["mfcc-summary"], StandardScaler(), network).fit(x, y)
    out = build(model, x, y, "", folder=tmp_path, quantize="int8")
    assert manifest_of(out).quantization["method"] == "int8"
    unseen, truth = sounds(120, LENGTH, 1)
    label = run(session_of(out.read_bytes()), unseen).label
    assert label is not None
    assert np.mean(np.array(SOUNDS)[label] == truth) >= 0.95


def test_a_model_of_single_frames_takes_frames_as_they_overlap(tmp_path: Path) -> None:
    """A window of one frame (32 ms) and a stride of 10 ms: the stream of windows gives what the frames give."""
    frame, step = 256, 80
    features = MFCC.like_python_speech_features(samplerate=RATE, winlen=frame / RATE, nfft=frame, winfunc=np.hamming)
    x, y = sounds(300, frame, 0)
    model = make_pipeline(features, StandardScaler(), LogisticRegression()).fit(x, y)
    spec = f'[window]\nlength = {frame}\nstride = {step}\nrate_hz = {RATE}\n[[channel]]\nname = "sound"\n'
    out = build(model, x, y, spec, folder=tmp_path, quantize="none")
    assert (features.n_frames_, manifest_of(out).input.window.stride) == (1, step)
    # python_speech_features' own framing of a long signal, each frame by itself: a window has no reading before it.
    signal = sounds(3, 2000, 5)[0][2, :, 0]
    windows = np.lib.stride_tricks.sliding_window_view(signal, frame)[::step, :, None]
    found = run(session_of(out.read_bytes()), np.ascontiguousarray(windows))
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, model.predict_proba(windows), atol=1e-4)
    assert found.label is not None
    assert set(np.array(SOUNDS)[found.label]) == {"whistle"}
    assert onnxruntime.InferenceSession(out).get_inputs()[0].shape == ["N", frame, 1]


def test_a_rate_that_the_features_do_not_reckon_with_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mel bands at another rate would be other frequencies: specification and model must agree."""
    x, y = sounds(30, LENGTH, 0)
    model = make_pipeline(FRONT_ENDS["mfcc-summary"], LogisticRegression()).fit(x, y)
    skops.io.dump(model, tmp_path / "sound.skops")
    (tmp_path / "spec.toml").write_text(f"[window]\nlength = {LENGTH}\nrate_hz = 16000.0\n")
    arguments = ["--spec", str(tmp_path / "spec.toml"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")]
    assert main(["build", str(tmp_path / "sound.skops"), *arguments]) == 1
    stderr = capsys.readouterr().err
    assert "window.rate_hz: the specification says 16000 Hz, the model's features reckon with 8000 Hz" in stderr
    assert not (tmp_path / "o.onnx").exists()
