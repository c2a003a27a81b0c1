"""Microphone and camera as sources, with real models where there are some: the daemon says what an offline run says."""

import importlib.util
import json
import shutil
import sys
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import skops.io
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter.cli import main
from converter.features import MFCC
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support.broker import Mosquitto

pytestmark = pytest.mark.system
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SPEED = "20"


def example(name: str) -> ModuleType:
    """A program of `examples/`, to be asked for what it would write."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path, model: Path, spec: str, x: Any, y: Any, *more: str) -> Path:
    """A bundle, made by the converter."""
    (folder / "spec.toml").write_text(spec)
    np.savez(folder / "d.npz", x=x, y=y)
    out = folder / "model.onnx"
    arguments = ["--spec", str(folder / "spec.toml"), "--data", str(folder / "d.npz"), "-o", str(out), *more]
    assert main(["build", str(model), *arguments]) == 0
    return out


def device(broker: Mosquitto, bundle: Path, argv: list[str], source: str, *, model: str = "") -> str:
    """A device whose source is a program."""
    return f"""
[device]
id = "kitchen"
[[source]]
name = "sensor"
type = "command"
argv = {json.dumps(argv)}
format = "raw"
{source}
[[model]]
name = "m"
bundle = "{bundle}"
source = "sensor"
{model}
[upstream]
url = "{broker.url}"
"""


def answers(
    text: str, count: int, broker: Mosquitto, make_daemon: MakeDaemon, *, make_subscriber: MakeSubscriber
) -> list[dict[str, Any]]:
    """What a device publishes: exactly so many predictions, in their order."""
    subscriber = make_subscriber(broker.port, "edge/kitchen/m/-")
    daemon = make_daemon(text).start()
    subscriber.wait_for(count, "edge/kitchen/m/-", deadline=120)
    daemon.stop()
    found = [json.loads(message.payload) for message in subscriber.on("edge/kitchen/m/-")]
    assert [each["seq"] for each in found] == list(range(1, count + 1))
    return found


def compare(found: list[dict[str, Any]], bundle: Path, windows: NDArray[Any]) -> NDArray[Any]:
    """See that labels and scores are those of the same bundle, asked for all windows at once; give the scores."""
    model = Model(open_bundle(bundle))
    expected = model.run(windows)
    names = model.manifest.output.labels
    assert names is not None
    assert expected.label is not None
    assert expected.scores is not None
    assert [each["label"] for each in found] == [names[index] for index in expected.label]
    scores = np.array([[each["scores"][name] for name in names] for each in found])
    np.testing.assert_allclose(scores, expected.scores, atol=1e-6)
    return scores


def samples_of(path: Path) -> NDArray[Any]:
    """The first channel of a wav file, from -1 to 1."""
    with wave.open(str(path)) as file:
        read = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    return (read[:, 0] / 32_768.0).astype(np.float32)


@pytest.mark.shared_data
def test_a_keyword_in_a_wav_that_is_played_to_a_device(
    shared_data: Path,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """Samples of a microphone, overlapping windows of a second, and the front end inside the graph."""
    wav = shared_data / "mlperf-tiny-wakeword" / "short_wav_easy10s.wav"
    sound, length, stride = samples_of(wav), 16_000, 1600
    starts = np.arange(0, len(sound) - length + 1, stride)
    windows = sound[starts[:, None] + np.arange(length)][:, :, None]
    spoken = json.loads((wav.parent / "sww_short_test.json").read_text())[0]["detection_windows"]
    truth = [
        "marvin" if any(at / length <= begin and end <= at / length + 1 for begin, end in spoken) else "other"
        for at in starts
    ]
    pipeline = make_pipeline(
        MFCC(rate_hz=16_000, n_fft=512, hop=256, bands=40, coefficients=13, summary=("mean", "std")),
        StandardScaler(),
        LogisticRegression(max_iter=2000),
    ).fit(windows, truth)
    skops.io.dump(pipeline, tmp_path / "word.skops")
    spec = f'[window]\nlength = {length}\nstride = {stride}\n[[channel]]\nname = "sample"\n'
    bundle = build(tmp_path, tmp_path / "word.skops", spec, windows, np.array(truth), "--quantize", "none")
    argv = [sys.executable, str(EXAMPLES / "sound" / "play_wav.py"), str(wav), SPEED]
    source = f'fields = ["sample"]\nlayout = ["int16"]\nscale = [{1 / 32_768!r}]\nframe_bytes = 3200\n'
    found = answers(
        device(mosquitto, bundle, argv, source), len(starts), mosquitto, make_daemon, make_subscriber=make_subscriber
    )
    compare(found, bundle, windows)
    assert [each["label"] for each in found] == pipeline.predict(windows).tolist()
    assert {each["label"] for each in found} == {"marvin", "other"}


@pytest.mark.shared_data
def test_a_wake_word_is_heard_three_times_and_not_a_fourth(
    shared_data: Path,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
) -> None:
    """MLPerf Tiny's own model and recording: every word is heard soon after it was reported, and nothing else is."""
    pytest.importorskip("ai_edge_litert")
    folder = shared_data / "mlperf-tiny-wakeword"
    wav = folder / "short_wav_easy10s.wav"
    with np.load(folder / "calibration_samples.npz") as archive:
        x, y = archive["specs"].astype(np.float32), archive["labels"].astype(np.int64)
    spec = 'task = "classification"\nlabels = ["marvin", "silence", "other"]\n[frame]\nshape = [30, 1, 40]\n'
    bundle = build(tmp_path, folder / "str_ww_ref_model.tflite", spec, x, y)
    program = example("sound/spectra.py")
    frames = program.frames(str(wav))
    argv = [sys.executable, str(EXAMPLES / "sound" / "spectra.py"), str(wav), SPEED]
    source = 'layout = ["float32"]\nframe_bytes = 4800\n'
    text = device(mosquitto, bundle, argv, source)
    found = answers(text, len(frames), mosquitto, make_daemon, make_subscriber=make_subscriber)
    scores = compare(found, bundle, frames[:, :, None, :])
    heard = [(row + 31) * program.HOP / program.RATE for row in np.flatnonzero(scores[:, 0] > 0.9)]
    spoken = json.loads((folder / "sww_short_test.json").read_text())[0]["detection_windows"]
    assert len(spoken) == 3
    for begin, end in spoken:
        assert any(begin < moment < end + 0.5 for moment in heard), (begin, heard)
    assert all(any(begin < moment < end + 0.5 for begin, end in spoken) for moment in heard), heard


def test_pictures_of_a_camera_are_told_apart(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Whole frames of bytes from a program, as ffmpeg writes them."""
    program = example("picture/moving_pictures.py")
    x, kinds = program.pictures(300, seed=1)
    flat = x.reshape(len(x), -1).astype(np.float32)
    pipeline = RandomForestClassifier(60, random_state=0)
    names = np.array(program.KINDS)[kinds]
    skops.io.dump(pipeline.fit(flat, names), tmp_path / "picture.skops")
    spec = f'[frame]\nshape = [{program.HEIGHT}, {program.WIDTH}, 3]\ndtype = "uint8"\n'
    bundle = build(tmp_path, tmp_path / "picture.skops", spec, x, names, "--quantize", "none")
    count = 60
    shown, shown_kinds = program.pictures(count)
    argv = [sys.executable, str(EXAMPLES / "picture" / "moving_pictures.py"), str(count), "200"]
    source = f'layout = ["uint8"]\nframe_bytes = {program.HEIGHT * program.WIDTH * 3}\n'
    text = device(mosquitto, bundle, argv, source)
    found = answers(text, count, mosquitto, make_daemon, make_subscriber=make_subscriber)
    compare(found, bundle, shown.astype(np.float32))
    right = [each["label"] == program.KINDS[kind] for each, kind in zip(found, shown_kinds, strict=True)]
    assert sum(right) > 0.8 * count


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_the_same_from_ffmpeg(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Its test source, in the form that the example's program writes."""
    program = example("picture/moving_pictures.py")
    x, kinds = program.pictures(300, seed=1)
    names = np.array(program.KINDS)[kinds]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    skops.io.dump(pipeline.fit(x.reshape(len(x), -1).astype(np.float32), names), tmp_path / "picture.skops")
    size = f"{program.WIDTH}x{program.HEIGHT}"
    spec = f'[frame]\nshape = [{program.HEIGHT}, {program.WIDTH}, 3]\ndtype = "uint8"\n'
    bundle = build(tmp_path, tmp_path / "picture.skops", spec, x, names, "--quantize", "none")
    lavfi = ["-f", "lavfi", "-i", f"smptebars=size={size}:rate=10", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    argv = ["ffmpeg", "-loglevel", "error", "-re", *lavfi]
    source = f'layout = ["uint8"]\nframe_bytes = {program.HEIGHT * program.WIDTH * 3}\n'
    subscriber = make_subscriber(mosquitto.port, "edge/kitchen/m/-")
    make_daemon(device(mosquitto, bundle, argv, source)).start()
    subscriber.wait_for(10, "edge/kitchen/m/-")
    labels = {json.loads(message.payload)["label"] for message in subscriber.on("edge/kitchen/m/-")}
    assert len(labels) == 1  # a still picture
