"""Mel scales, their triangular filters and the cosine transform behind cepstra: the constants of `audio.py`.

Two conventions are in use. librosa keeps the corners of the triangles between the bins of the transform;
python_speech_features rounds them down to bins first. Both have the HTK scale, librosa also Slaney's.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

SCALES = ("slaney", "htk", "htk_bins")
NORMS = ("slaney", "none")

# Slaney's Auditory Toolbox: linear to 1000 Hz at 200/3 Hz a mel, above that 27 mels a factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_BEND_HZ = 1000.0
_BEND_MEL = _BEND_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(hz: Any, scale: str) -> Doubles:
    """Frequencies in Hz on a mel scale."""
    hz = np.asarray(hz, dtype=np.float64)
    if scale != "slaney":
        return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))
    above = _BEND_MEL + np.log(np.maximum(hz, _BEND_HZ) / _BEND_HZ) / _LOG_STEP
    return np.asarray(np.where(hz < _BEND_HZ, hz / _HZ_PER_MEL, above))


def mel_to_hz(mel: Any, scale: str) -> Doubles:
    """The reverse of `hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    if scale != "slaney":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    above = _BEND_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BEND_MEL) - _BEND_MEL))
    return np.asarray(np.where(mel < _BEND_MEL, mel * _HZ_PER_MEL, above))


def mel_filters(
    rate_hz: float, n_fft: int, bands: int, low_hz: float, *, high_hz: float, scale: str, norm: str
) -> Doubles:
    """Triangular filters, evenly spaced on a mel scale.

    Args:
        rate_hz: samples per second.
        n_fft: length of the transform; it has n_fft // 2 + 1 bins.
        bands: number of filters.
        low_hz: where the first filter begins.
        high_hz: where the last filter ends.
        scale: `slaney`, `htk`, or `htk_bins` (corners rounded down to bins, as python_speech_features has them).
        norm: `slaney` gives every triangle the same area, `none` the same height.

    Returns:
        weights `[n_fft // 2 + 1, bands]`.
    """
    ends = hz_to_mel([low_hz, high_hz], scale)
    corners = mel_to_hz(np.linspace(ends[0], ends[1], bands + 2), scale)
    bins = np.arange(n_fft // 2 + 1, dtype=np.float64)[:, None]
    if scale == "htk_bins":
        at, position = np.floor((n_fft + 1) * corners / rate_hz), bins
    else:
        at, position = corners, bins * rate_hz / n_fft
    low, middle, high = at[:-2], at[1:-1], at[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        rising, falling = (position - low) / (middle - low), (high - position) / (high - middle)
    if scale == "htk_bins":
        # A filter whose corners were rounded to one bin has no rising or no falling side, or is empty.
        weights = np.where((position >= low) & (position < middle), rising, 0.0)
        weights = np.where((position >= middle) & (position < high), falling, weights)
    else:
        weights = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        weights = weights * (2.0 / (corners[2:] - corners[:-2]))
    return np.asarray(weights, dtype=np.float64)


def cosine_transform(bands: int, coefficients: int) -> Doubles:
    """The orthonormal DCT-II as a matrix `[bands, coefficients]`."""
    angle = np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(coefficients)
    matrix = np.sqrt(2.0 / bands) * np.cos(angle)
    matrix[:, 0] = math.sqrt(1.0 / bands)
    return np.asarray(matrix, dtype=np.float64)
