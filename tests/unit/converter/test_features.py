"""Window features: what they mean, and that the graph computes them as Python does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from converter.features import WindowFeatures
from converter.features.statistics import STATISTICS
from tests.support.feature_graphs import lowered

BANDS = ((0.0, 0.05), (0.05, 0.2), (0.2, 0.6))


def windows(n: int = 64, length: int = 32, channels: int = 3) -> NDArray[np.float32]:
    """Noise."""
    return np.random.default_rng(0).normal(size=(n, length, channels)).astype(np.float32)


def assert_parity(features: WindowFeatures, x: NDArray[Any]) -> None:
    """Graph and Python agree, in float64 on the same readings."""
    expected = features.transform(x)
    found = lowered(features, double=True).run(None, {"x": x.astype(np.float64)})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)


def test_each_statistic_is_what_the_books_say() -> None:
    """Mean, standard deviation, skewness and kurtosis are the population's; kurtosis is 0 for a normal distribution."""
    x = windows()
    features = WindowFeatures().fit(x)
    found = dict(zip(STATISTICS, np.split(features.transform(x), len(STATISTICS), axis=1), strict=True))
    double = x.astype(np.float64)
    np.testing.assert_allclose(found["mean"], double.mean(axis=1))
    np.testing.assert_allclose(found["std"], double.std(axis=1))
    np.testing.assert_allclose(found["rms"], np.sqrt((double**2).mean(axis=1)))
    np.testing.assert_allclose(found["ptp"], double.max(axis=1) - double.min(axis=1))
    np.testing.assert_allclose(found["skewness"], stats.skew(double, axis=1))
    np.testing.assert_allclose(found["kurtosis"], stats.kurtosis(double, axis=1))
    np.testing.assert_array_equal(found["zero_crossings"], (np.diff(np.signbit(double), axis=1)).sum(axis=1))


def test_the_power_of_a_sine_lies_in_its_band() -> None:
    """A sine of amplitude 2 at 3 Hz has a mean square of 2, all of it in the band around 3 Hz."""
    time = np.arange(100) / 50.0
    x = (2.0 * np.sin(2 * np.pi * 3.0 * time))[None, :, None]
    features = WindowFeatures(statistics=(), bands=((0.0, 2.0), (2.0, 4.0), (4.0, 26.0)), rate_hz=50.0).fit(x)
    np.testing.assert_allclose(features.transform(x)[0], [0.0, 2.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("length", [7, 8, 100])
def test_bands_that_cover_everything_add_up_to_the_mean_square(length: int) -> None:
    """No power is counted twice or lost, for odd and even windows (Parseval)."""
    x = windows(length=length)
    total = WindowFeatures(statistics=(), bands=BANDS).fit_transform(x).reshape(len(x), len(BANDS), -1).sum(axis=1)
    np.testing.assert_allclose(total, (x.astype(np.float64) ** 2).mean(axis=1))


def test_columns_are_named_after_statistic_and_channel() -> None:
    """The names stand in the order of the columns."""
    features = WindowFeatures(("mean", "max"), bands=((0.5, 3.0),), rate_hz=10.0).fit(windows(channels=2))
    names = features.get_feature_names_out(["x", "y"])
    assert list(names) == ["mean_x", "mean_y", "max_x", "max_y", "band_0.5_3_x", "band_0.5_3_y"]
    assert features.transform(windows(channels=2)).shape[1] == len(names)


def test_the_transformer_is_a_good_citizen_of_scikit_learn() -> None:
    """It clones, sits in a pipeline and takes its parameters by name."""
    features = WindowFeatures(("mean",), bands=BANDS, rate_hz=5.0)
    twin = clone(features).set_params(statistics=("std",))
    assert twin.get_params() == {"statistics": ("std",), "bands": BANDS, "rate_hz": 5.0, "channels": None}
    assert make_pipeline(features).fit_transform(windows()).shape == (64, 3 * 4)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("length", [2, 7, 32])
def test_flattened_windows_give_the_same_features(length: int, double: bool) -> None:
    """Windows as rows of length x channels values, time first, are the same windows, in the graph too."""
    x = windows(length=length)
    flat = x.reshape(len(x), -1)
    features = WindowFeatures(bands=BANDS, channels=3).fit(flat)
    expected = WindowFeatures(bands=BANDS).fit_transform(x)
    np.testing.assert_array_equal(features.transform(flat), expected)
    fed = flat.astype(np.float64) if double else flat
    np.testing.assert_allclose(lowered(features, double).run(None, {"x": fed})[0], expected, rtol=1e-5, atol=1e-30)


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.floats(-35.0, 35.0),
    st.floats(0.0, 1e4),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_the_graph_agrees_with_python_for_readings_of_any_scale(
    length: int, channels: int, exponent: float, offset: float, seed: int, constant: bool
) -> None:
    """Features agree to 1e-5 relative for tiny and huge readings, with large offsets, and in constant channels."""
    x = np.random.default_rng(seed).normal(size=(5, length, channels)) + offset
    if constant:
        x[:, :, 0] = x[:, :1, 0]
    with np.errstate(over="ignore"):
        x = np.clip(x * 10.0**exponent, -3e38, 3e38).astype(np.float32)
    features = WindowFeatures(("mean", "rms", "min", "max", "ptp", "zero_crossings", "std"), bands=()).fit(x)
    expected = features.transform(x)
    found = lowered(features, double=True).run(None, {"x": x.astype(np.float64)})[0]
    size = np.abs(x.astype(np.float64)).max(initial=1e-300)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12 * size)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("kind", ["noise", "constant", "one spike", "sine on a large offset"])
def test_moments_and_powers_agree_at_every_scale(kind: str, scale: float) -> None:
    """Skewness, kurtosis and band powers agree to 1e-5 relative where float32 readings leave something to measure."""
    x = windows(length=50, channels=2).astype(np.float64)
    if kind == "constant":
        x[:] = 0.1
    if kind == "one spike":
        x[:] = 0.25
        x[:, 7] = 1.0
    if kind == "sine on a large offset":
        x[:] = 1.0 + 1e-3 * np.sin(np.arange(50) * 2 * np.pi / 5)[None, :, None]
    assert_parity(WindowFeatures(bands=BANDS).fit(x), (x * scale).astype(np.float32))


def test_mistakes_are_told() -> None:
    """A statistic that does not exist, an empty band and a window without a shape are refused."""
    with pytest.raises(ValueError, match="statistics: expected some of mean, std"):
        WindowFeatures(("average",)).fit(windows())
    with pytest.raises(ValueError, match="bands: expected pairs"):
        WindowFeatures(bands=((2.0, 1.0),)).fit(windows())
    with pytest.raises(ValueError, match="expected windows"):
        WindowFeatures(channels=5).fit(np.zeros((4, 12)))
