"""Spectrograms, mel spectrograms and MFCC: what librosa and python_speech_features give, in Python and in the graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone

from converter.features import MFCC, STFT, MelSpectrogram, lower_audio
from tests.support.feature_graphs import lowered

GOLDEN = Path(__file__).parents[2] / "golden" / "audio"
CASES: dict[str, Any] = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())}
SIGNALS = ("tone", "silence", "full scale", "silence, then tone")


def ours(case: dict[str, Any]) -> STFT:
    """Our transformer, out of the arguments of the library's function."""
    arguments = dict(case["arguments"])
    if "winfunc" in arguments:
        arguments["winfunc"] = getattr(np, arguments["winfunc"])
    call = case["call"]
    if call == "librosa.stft":
        return STFT.like_librosa(**arguments, power=case["power"])
    if call == "librosa.feature.melspectrogram":
        return MelSpectrogram.like_librosa(**arguments)
    if call == "librosa.power_to_db":
        log = case["log"]
        return MelSpectrogram.like_librosa(
            **arguments, log="db", floor=log["amin"], range_db=log["top_db"], reference=log["ref"]
        )
    if call == "librosa.feature.mfcc":
        return MFCC.like_librosa(**arguments)
    if call == "python_speech_features.mfcc":
        return MFCC.like_python_speech_features(**arguments)
    log = "none" if call.endswith(".fbank") else "ln_nonzero"
    return MelSpectrogram.like_python_speech_features(**arguments, log=log)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_library_to_1e_4_in_python_and_in_the_graph(name: str, signal: str) -> None:
    """Called with a library's own arguments, a transformer gives the library's numbers, and so does its graph."""
    with np.load(GOLDEN / "vectors.npz") as vectors:
        x, expected = vectors[f"signal/{signal}"], vectors[f"{name}/{signal}"]
    windows = np.stack([x, x[::-1]])[:, :, None]
    features = ours(CASES[name]).fit(windows)
    found = features.transform(windows)
    # Powers of one spectrum span ten decades: what is small beside the largest is held to it.
    tolerance = max(1e-9 * float(np.abs(expected).max()), np.finfo(float).eps)
    np.testing.assert_allclose(found[0].reshape(expected.shape), expected, rtol=1e-4, atol=tolerance)
    graph = lowered(features, double=True).run(None, {"x": windows.astype(np.float64)})[0]
    np.testing.assert_allclose(graph, found, rtol=1e-8, atol=1e-8 * max(float(np.abs(found).max()), 1e-300))


def noise(*shape: int) -> NDArray[np.float32]:
    """Seeded noise."""
    return np.random.default_rng(0).normal(scale=0.1, size=shape).astype(np.float32)


def assert_parity(features: STFT, x: NDArray[Any]) -> None:
    """The graph in float64 and in float32 gives what Python gives, to 1e-6 of the largest."""
    expected = features.transform(x)
    assert np.isfinite(expected).all()
    for double in (True, False):
        found = lowered(features, double).run(None, {"x": x.astype(np.float64 if double else np.float32)})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * float(np.abs(expected).max()))


KINDS = [
    STFT(n_fft=64, hop=40, summary=("mean", "std"), log="ln"),
    STFT(n_fft=48, window_length=31, hop=7, power=1, per_bin=True, padding="reflect", log="db", reference="max"),
    MelSpectrogram(n_fft=128, bands=12, rate_hz=8000.0, log="ln_offset", floor=1e-6, padding="edge"),
    MelSpectrogram(n_fft=100, bands=9, scale="htk", power=1, log="db", range_db=60.0, summary=("min", "max")),
    MFCC(n_fft=256, hop=128, bands=20, window=("kaiser", 8.0), summary=("mean", "std", "min", "max")),
    MFCC.like_python_speech_features(samplerate=8000.0, numcep=10, winfunc=np.hamming),
]


@pytest.mark.parametrize("features", KINDS, ids=lambda features: repr(features)[:40])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_option_is_in_the_graph_too(features: STFT, channels: int) -> None:
    """Logarithms, summaries, paddings and windows; several channels; windows whole or flattened."""
    x = noise(5, 400, channels)
    whole = clone(features).fit(x)
    assert_parity(whole, x)
    flat = clone(features).set_params(channels=channels).fit(x.reshape(5, -1))
    assert_parity(flat, x.reshape(5, -1))
    np.testing.assert_array_equal(flat.transform(x.reshape(5, -1)), whole.transform(x))
    for channel in range(channels):
        alone = clone(features).fit_transform(x[:, :, channel : channel + 1])
        columns = [name.endswith(f"_x{channel}") for name in whole.get_feature_names_out()]
        np.testing.assert_allclose(whole.transform(x)[:, columns], alone, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 32767.0, 1e-20, 1e20])
@pytest.mark.parametrize("kind", ["silence", "constant", "whole periods of a sine", "one click", "square"])
@pytest.mark.parametrize("features", KINDS, ids=lambda features: repr(features)[:40])
def test_the_graph_agrees_where_bins_are_empty(features: STFT, kind: str, scale: float) -> None:
    """Silence and full-scale signals whose spectrum is zero almost everywhere: no logarithm of rounding noise."""
    time = np.arange(400)
    signal = {
        "silence": np.zeros(400),
        "constant": np.ones(400),
        "whole periods of a sine": np.sin(2 * np.pi * time / 16),
        "one click": (time == 200) * 1.0,
        "square": np.where(time // 8 % 2, 1.0, -1.0),
    }[kind]
    x = (signal * scale).astype(np.float32)[None, :, None]
    assert_parity(clone(features).fit(x), x)


def test_columns_are_named_after_coefficient_frame_and_channel() -> None:
    """The names stand in the order of the columns."""
    features = MFCC(n_fft=64, hop=64, bands=8, coefficients=2).fit(noise(3, 128, 2))
    assert list(features.get_feature_names_out(["l", "r"])) == [
        "mfcc_0_frame_0_l", "mfcc_1_frame_0_l", "mfcc_0_frame_0_r", "mfcc_1_frame_0_r",
        "mfcc_0_frame_1_l", "mfcc_1_frame_1_l", "mfcc_0_frame_1_r", "mfcc_1_frame_1_r",
    ]  # fmt: skip
    summary = STFT(n_fft=2, summary=("max",)).fit(noise(3, 8, 1))
    assert list(summary.get_feature_names_out()) == ["power_0_max_x0", "power_1_max_x0"]


def test_a_graph_of_a_long_transform_stays_small() -> None:
    """Fourier, mel and cosine matrices are computed by the session: the file holds the corners and the window."""
    from skl2onnx import convert_sklearn  # noqa: PLC0415
    from skl2onnx.common.data_types import DoubleTensorType  # noqa: PLC0415

    features = MFCC.like_librosa(sr=16000, n_mels=128).fit(noise(1, 16000, 1))
    lower_audio.register()
    model = convert_sklearn(features, initial_types=[("x", DoubleTensorType([None, 16000, 1]))], target_opset=17)
    assert len(model.SerializeToString()) < 40_000


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (STFT(n_fft=512), "padding: expected windows of at least n_fft = 512 readings, found 128"),
        (STFT(n_fft=512, padding="reflect"), "expected more than 256 readings to reflect, found 128"),
        (STFT(n_fft=64, window_length=65), "expected 1 <= window_length <= n_fft"),
        (STFT(n_fft=64, window=[1.0, 2.0]), "window: expected 64 weights, found"),
        (STFT(n_fft=64, power=3), "power: expected 1 or 2, found 3"),
        (STFT(n_fft=64, padding="wrap"), "padding: expected none, end, constant, reflect, edge, found 'wrap'"),
        (STFT(n_fft=64, summary=("median",)), "summary: expected mean, std, min, max, found 'median'"),
        (STFT(n_fft=64, log="ln", floor=0.0), "floor: expected more than 0"),
        (STFT(n_fft=64, log="ln", range_db=80.0), "range_db: expected log='db' with it"),
        (MelSpectrogram(n_fft=64, scale="bark"), "scale: expected slaney, htk, htk_bins, found 'bark'"),
        (MelSpectrogram(n_fft=64, rate_hz=8000.0, high_hz=5000.0), "expected at least one band and 0 <= low_hz"),
        (MFCC(n_fft=64, bands=10), "coefficients: expected 1 to 10 (bands), found 13"),
        (MFCC(n_fft=64, log="none"), "take MelSpectrogram"),
        (MFCC(n_fft=64, power=1, energy=True), "energy: expected power = 2 with it"),
    ],
)
def test_mistakes_are_told(features: STFT, message: str) -> None:
    """What cannot be meant is refused when it is fitted, with the argument and what was expected."""
    with pytest.raises(ValueError) as error:
        features.fit(noise(2, 128, 1))
    assert message in str(error.value)
