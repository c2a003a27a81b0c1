"""The base of the feature transformers: takes windows, whole or flattened, and stores their shape."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

Doubles = NDArray[np.float64]


class WindowTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A transformer of windows `[n, length, channels]`, or flattened `[n, length * channels]`, time first.

    Attributes:
        window_shape_: length and channels.
        takes_windows_: whether it was fitted with whole windows, and not with flattened ones.
        n_features_in_: length times channels.
    """

    def _remember_shape(self, windows: Any, channels: int | None) -> None:
        """Take the shape from the rows that it is fitted with.

        Raises:
            ValueError: they are no windows, or `channels` does not divide them.
        """
        x = np.asarray(windows)
        if x.ndim == 3:
            self.window_shape_ = (int(x.shape[1]), int(x.shape[2]))
        elif x.ndim == 2 and x.shape[1] % (channels or 1) == 0:
            self.window_shape_ = (int(x.shape[1]) // (channels or 1), channels or 1)
        else:
            raise ValueError(f"expected windows [n, length, channels] or [n, length * channels], found {x.shape}")
        self.takes_windows_ = x.ndim == 3
        self.n_features_in_ = int(np.prod(self.window_shape_))

    def _whole(self, windows: Any) -> Doubles:
        """Rows as windows `[n, length, channels]`, float64."""
        check_is_fitted(self)
        return np.asarray(windows, dtype=np.float64).reshape(len(windows), *self.window_shape_)

    def _channel_names(self, given: Any) -> list[str]:
        """The names of the channels: as given, or x0, x1, ..."""
        check_is_fitted(self)
        channels = self.window_shape_[1]
        names = list(given) if given is not None else [f"x{i}" for i in range(channels)]
        if len(names) != channels:
            raise ValueError(f"input_features: expected {channels} channel names, found {len(names)}")
        return names
