"""Statistics and band powers of windows, as a scikit-learn transformer.

Train with `make_pipeline(WindowFeatures(), StandardScaler(), MLPClassifier())` on windows `[n, length, channels]`;
the converter lowers the whole pipeline to one graph of standard ONNX operators that takes raw windows. Both sides
compute in float64 and agree to 1e-5 relative, for constant channels and for tiny and huge readings too.
This module needs numpy and scikit-learn only.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from converter.features.window_transformer import Doubles, WindowTransformer

STATISTICS = ("mean", "std", "rms", "min", "max", "ptp", "skewness", "kurtosis", "zero_crossings")

# Below this share of a channel's mean square, the power of a band is rounding noise of the transform, and is zero.
POWER_FLOOR = 1e-18


class WindowFeatures(WindowTransformer):
    """Statistics and spectral powers of each channel of a window.

    The result has a block of columns for each statistic, then for each band; within a block a column a channel.

    - `mean`, `min`, `max`, `ptp` (max - min), `rms` (root of the mean square), `std` (population);
    - `skewness` (third standardised moment) and `kurtosis` (fourth, minus 3); both 0 for a constant channel;
    - `zero_crossings`: how often the sign changes from one reading to the next, zero counting as positive;
    - bands `(low, high)`: the mean square of the part of the signal with low <= frequency < high, from the real
      FFT; the bands of a partition of 0 to beyond half the rate sum up to the mean square (Parseval).

    Args:
        statistics: which statistics, in which order.
        bands: frequency bands, in Hz where `rate_hz` is given, else in cycles per reading (0 to 0.5).
        rate_hz: readings per second.
        channels: number of channels, for windows that come flattened `[n, length * channels]`, time first.
    """

    def __init__(
        self,
        statistics: Sequence[str] = STATISTICS,
        bands: Sequence[tuple[float, float]] = (),
        rate_hz: float | None = None,
        channels: int | None = None,
    ) -> None:
        self.statistics = statistics
        self.bands = bands
        self.rate_hz = rate_hz
        self.channels = channels

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803, ARG002 - scikit-learn's names
        """Remember the shape of a window. Nothing is learnt from the values.

        Raises:
            ValueError: a statistic is unknown, a band is empty, or the windows have no shape that fits.
        """
        unknown = [name for name in self.statistics if name not in STATISTICS]
        if unknown:
            raise ValueError(f"statistics: expected some of {', '.join(STATISTICS)}, found {', '.join(unknown)}")
        if any(not 0 <= low < high for low, high in self.bands):
            raise ValueError(f"bands: expected pairs 0 <= low < high, found {list(self.bands)}")
        if not len(self.statistics) and not len(self.bands):
            raise ValueError("expected at least one statistic or band, found none")
        self._remember_shape(X, self.channels)
        return self

    def transform(self, X: Any) -> Doubles:  # noqa: N803 - scikit-learn's name
        """Windows -> features `[n, (statistics + bands) * channels]`, float64."""
        x = self._whole(X)
        blocks = [_STATISTIC[name](x) for name in self.statistics]
        if len(self.bands):
            blocks.append(self._powers(x))
        return np.concatenate(blocks, axis=1)

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> NDArray[Any]:
        """`mean_accel_x`, `band_0.5_3_accel_x`, ...; `input_features` are the names of the channels."""
        names = self._channel_names(input_features)
        blocks = [*self.statistics, *(f"band_{low:g}_{high:g}" for low, high in self.bands)]
        return np.array([f"{block}_{name}" for block in blocks for name in names], dtype=object)

    def spectrum(self) -> tuple[NDArray[np.int64], Doubles]:
        """The bins of the Fourier transform that some band needs, and their weights `[bins, bands]`.

        A band's power is the weighted sum of the squared magnitudes of these bins.
        """
        length = self.window_shape_[0]
        frequency = np.fft.rfftfreq(length, 1.0 / (self.rate_hz or 1.0))
        bands = np.asarray(self.bands, dtype=np.float64).reshape(-1, 2)
        inside = (frequency[:, None] >= bands[:, 0]) & (frequency[:, None] < bands[:, 1])
        twice = np.full(len(frequency), 2.0)
        twice[0] = 1.0
        if length % 2 == 0:
            twice[-1] = 1.0
        weight = inside * (twice / length**2)[:, None]
        bins = np.flatnonzero(inside.any(axis=1))
        return bins.astype(np.int64), weight[bins]

    def _powers(self, x: Doubles) -> Doubles:
        length = self.window_shape_[0]
        frequency = np.fft.rfftfreq(length, 1.0 / (self.rate_hz or 1.0))
        power = np.abs(np.fft.rfft(x, axis=1)) ** 2 / length**2
        power[:, 1 : (length + 1) // 2] *= 2.0
        floor = POWER_FLOOR * np.mean(x * x, axis=1)
        blocks = []
        for low, high in self.bands:
            total = power[:, (frequency >= low) & (frequency < high)].sum(axis=1)
            blocks.append(np.where(total <= floor, 0.0, total))
        return np.concatenate(blocks, axis=1)


def _standardised(x: Doubles, order: int) -> Doubles:
    """Central moment over the power of the standard deviation; 0 where the channel is constant."""
    deviation = x - x.mean(axis=1, keepdims=True)
    constant = np.ptp(x, axis=1) == 0
    variance = np.where(constant, 1.0, np.mean(deviation**2, axis=1))
    # Divided before it is raised, so that neither tiny nor huge readings leave float64.
    ratio = deviation / np.sqrt(variance)[:, None, :]
    return np.where(constant, 0.0, np.mean(ratio**order, axis=1))


def _std(x: Doubles) -> Doubles:
    return np.where(np.ptp(x, axis=1) == 0, 0.0, np.std(x, axis=1))


def _zero_crossings(x: Doubles) -> Doubles:
    positive = x >= 0
    return np.asarray((positive[:, 1:] != positive[:, :-1]).sum(axis=1), dtype=np.float64)


_STATISTIC = {
    "mean": lambda x: x.mean(axis=1),
    "std": _std,
    "rms": lambda x: np.sqrt(np.mean(x * x, axis=1)),
    "min": lambda x: x.min(axis=1),
    "max": lambda x: x.max(axis=1),
    "ptp": lambda x: np.ptp(x, axis=1),
    "skewness": lambda x: _standardised(x, 3),
    "kurtosis": lambda x: np.where(np.ptp(x, axis=1) == 0, 0.0, _standardised(x, 4) - 3.0),
    "zero_crossings": _zero_crossings,
}
