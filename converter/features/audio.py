"""Spectrograms, mel spectrograms and cepstra (MFCC) of windows, as scikit-learn transformers.

Train with `make_pipeline(MFCC(...), StandardScaler(), MLPClassifier())` on windows `[n, length, channels]`, usually of
one channel; the converter lowers the pipeline to one graph that takes the raw window (`lower_audio.py`). Both compute
in float64. The results agree with librosa and python_speech_features to 1e-4; `like_librosa` and
`like_python_speech_features` take the arguments of these libraries. Windows must have the length of the training
windows. No state is carried from one window to the next.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from converter.features.mel import NORMS, SCALES, cosine_transform, mel_filters
from converter.features.window_transformer import Doubles, WindowTransformer

# A bin below this share of its frame's power is rounding noise of the transform, and is set to zero. Readings in
# float32 have noise of 1e-18, so no signal is lost. Otherwise two logarithms of noise would be compared.
SPECTRAL_FLOOR = 1e-22

PADDINGS = ("none", "end", "constant", "reflect", "edge")
LOGS = ("none", "db", "ln", "ln_nonzero", "ln_offset")
SUMMARIES = ("mean", "std", "min", "max")

_EPSILON = float(np.finfo(np.float64).eps)  # python_speech_features replaces zero by it


@dataclass(repr=False, eq=False, kw_only=True)
class STFT(WindowTransformer):
    """Short-time Fourier transform: the power or magnitude of each frequency in each frame of a window.

    Columns are ordered by frame, then channel, then bin.

    Attributes:
        n_fft: length of the transform; it gives n_fft // 2 + 1 bins. Powers of two are cheapest.
        hop: readings from one frame to the next; a quarter of `window_length` where it is not given.
        window: the weights of a frame, or a name of `scipy.signal.get_window` (periodic).
        window_length: readings in a frame, at most n_fft, which is the default; the rest of the transform is zero.
        padding: `none`: frames of n_fft readings lie inside the window, as librosa has them with center=False.
            `constant` (zeros), `reflect`, `edge`: the window is continued so that frame i is centred on reading
            i * hop. `end`: the first frame starts at reading 0, and zeros follow until no reading is left out.
        preemphasis: this share of the previous reading is subtracted from each reading.
        power: 2 for powers, 1 for magnitudes.
        per_bin: whether powers (magnitudes) are divided by n_fft.
        log: `none`; `db`: decibels, of squares where `power` is 1, not below `floor`; `ln`: natural logarithm, not
            below that of `floor`; `ln_nonzero`: only zero is replaced by `floor`; `ln_offset`: of value + `floor`.
        floor: the smallest value whose logarithm is taken.
        reference: the value of 0 dB, or `max` for the largest of the window's channel.
        range_db: values more than this many decibels below the largest of the window's channel are raised to that
            limit.
        summary: instead of every frame, `mean`, `std`, `min`, `max` over the frames, in the order given.
        channels: number of channels, for windows that come flattened `[n, length * channels]`, time first.
    """

    n_fft: int = 512
    hop: int | None = None
    window: str | tuple[Any, ...] | Sequence[float] = "hann"
    window_length: int | None = None
    padding: str = "none"
    preemphasis: float = 0.0
    power: float = 2.0
    per_bin: bool = False
    log: str = "none"
    floor: float = 1e-10
    reference: float | Literal["max"] = 1.0
    range_db: float | None = None
    summary: Sequence[str] = ()
    channels: int | None = None

    @classmethod
    def like_librosa(
        cls,
        *,
        n_fft: int = 2048,
        hop_length: int | None = None,
        win_length: int | None = None,
        window: str | tuple[Any, ...] | Sequence[float] = "hann",
        center: bool = True,
        pad_mode: str = "constant",
        **ours: Any,
    ) -> Self:
        """Frames as `librosa.stft` makes them; `ours` are further arguments of this class."""
        return cls(
            n_fft=n_fft, hop=hop_length, window_length=win_length, window=window,
            padding=pad_mode if center else "none", **ours,
        )  # fmt: skip

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803, ARG002 - scikit-learn's names
        """Store the shape of a window. Nothing is learnt from the values.

        Raises:
            ValueError: an argument is out of its range, or no frame fits into the window.
        """
        self._check()
        self._remember_shape(X, self.channels)
        length, half = self.window_shape_[0], self.n_fft // 2
        if self.padding == "none" and length < self.n_fft:
            raise ValueError(
                f"padding: expected windows of at least n_fft = {self.n_fft} readings, found {length}: "
                "take a smaller n_fft, or padding"
            )
        if self.padding == "reflect" and length <= half:
            raise ValueError(f"padding: expected more than {half} readings to reflect, found {length}")
        self.n_frames_ = len(self.starts())
        return self

    def transform(self, X: Any) -> Doubles:  # noqa: N803 - scikit-learn's name
        """Windows -> features `[n, frames * channels * columns]`, float64."""
        x = self._whole(X).transpose(0, 2, 1)
        if self.preemphasis:
            x = np.concatenate([x[..., :1], x[..., 1:] - self.preemphasis * x[..., :-1]], axis=-1)
        modes: dict[str, Any] = {"reflect": "reflect", "edge": "edge"}
        x = np.pad(x, ((0, 0), (0, 0), self.pads()), mode=modes.get(self.padding, "constant"))
        frames = x[..., self.starts()[:, None] + np.arange(self.frame_length)] * self.weights()
        power = np.abs(np.fft.rfft(frames, self.n_fft, axis=-1)) ** 2
        total = self.n_fft * np.sum(frames * frames, axis=-1, keepdims=True)
        power = np.where(power <= SPECTRAL_FLOOR * total, 0.0, power)
        values = self._features(power / self.n_fft if self.per_bin and self.power == 2 else power)
        if self.summary:
            values = np.concatenate([_SUMMARY[name](values) for name in self.summary], axis=2)
        return np.asarray(values.transpose(0, 2, 1, 3).reshape(len(x), -1))

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> NDArray[Any]:
        """`power_12_frame_3_x0`, or `power_12_mean_x0` of a summary; `input_features` are the names of the channels."""
        channels = self._channel_names(input_features)
        blocks = list(self.summary) or [f"frame_{i}" for i in range(self.n_frames_)]
        columns = self.column_names()
        return np.array([f"{column}_{block}_{name}" for block in blocks for name in channels for column in columns],
                        dtype=object)  # fmt: skip

    def column_names(self) -> list[str]:
        """The column names of a frame of one channel, in order."""
        name = "power" if self.power == 2 else "magnitude"
        return [f"{name}_{i}" for i in range(self.n_fft // 2 + 1)]

    @property
    def frame_length(self) -> int:
        """Readings in a frame."""
        return self.window_length or self.n_fft

    def weights(self) -> Doubles:
        """What a frame is weighted with, `[frame_length]`."""
        named = isinstance(self.window, str) or (isinstance(self.window, tuple) and isinstance(self.window[0], str))
        if named:
            from scipy.signal import get_window  # noqa: PLC0415 - slow to import

            return np.asarray(get_window(self.window, self.frame_length, fftbins=True), dtype=np.float64)
        return np.asarray(self.window, dtype=np.float64)

    def pads(self) -> tuple[int, int]:
        """How many readings are put before and behind the window."""
        length = self.window_shape_[0]
        if self.padding == "none":
            return 0, 0
        if self.padding == "end":
            return 0, max(0, int(self.starts()[-1]) + self.frame_length - length)
        return self.n_fft // 2, self.n_fft // 2

    def starts(self) -> NDArray[np.int64]:
        """Where each frame starts in the window with its padding."""
        length, hop = self.window_shape_[0], self._step
        if self.padding == "end":
            return hop * np.arange(1 + max(0, -(-(length - self.frame_length) // hop)))
        if self.padding != "none":
            length += 2 * (self.n_fft // 2)
        return (self.n_fft - self.frame_length) // 2 + hop * np.arange(1 + (length - self.n_fft) // hop)

    @property
    def _step(self) -> int:
        return self.hop or max(1, self.frame_length // 4)

    def _check(self) -> None:
        """Every argument by itself.

        Raises:
            ValueError: with the argument, what is expected, and what was found.
        """
        if self.n_fft < 2 or not 1 <= self.frame_length <= self.n_fft or self._step < 1:
            raise ValueError(
                f"n_fft, window_length, hop: expected 1 <= window_length <= n_fft and hop >= 1, "
                f"found {self.n_fft}, {self.frame_length}, {self._step}"
            )
        if self.power not in (1, 2):
            raise ValueError(f"power: expected 1 or 2, found {self.power}")
        for name, value, known in (("padding", self.padding, PADDINGS), ("log", self.log, LOGS)):
            _one_of(name, value, known)
        for name in self.summary:
            _one_of("summary", name, SUMMARIES)
        if self.log != "none" and not self.floor > 0:
            raise ValueError(f"floor: expected more than 0, found {self.floor}")
        if self.log != "db" and self.range_db is not None:
            raise ValueError(f"range_db: expected log='db' with it, found {self.log!r}")
        if self.weights().shape != (self.frame_length,):
            raise ValueError(f"window: expected {self.frame_length} weights, found {self.weights().shape}")

    def _features(self, power: Doubles) -> Doubles:
        """Powers `[n, channels, frames, bins]` -> what the class gives, `[n, channels, frames, columns]`."""
        return self._logarithm(self._rooted(power))

    def _rooted(self, power: Doubles) -> Doubles:
        if self.power == 2:
            return power
        root = np.sqrt(power)
        return root / self.n_fft if self.per_bin else root

    def _logarithm(self, values: Doubles) -> Doubles:
        if self.log == "none":
            return values
        if self.log != "db":
            return logarithm(values, self.log, self.floor)
        db = 10.0 * np.log10(np.maximum(values ** (2.0 / self.power), self.floor))
        largest = db.max(axis=(2, 3), keepdims=True)
        if self.range_db is not None:
            db = np.maximum(db, largest - self.range_db)
        return db - (largest if self.reference == "max" else self.reference_db)

    @property
    def reference_db(self) -> float:
        """What a reference value is in decibels."""
        assert self.reference != "max"
        return 10.0 * math.log10(max(abs(self.reference), self.floor))


@dataclass(repr=False, eq=False, kw_only=True)
class MelSpectrogram(STFT):
    """The spectrogram in bands of equal width for the ear.

    Columns stand frame by frame, in a frame channel by channel, in a channel band by band.

    Attributes:
        rate_hz: readings per second.
        bands: number of mel bands.
        low_hz: where the first band begins.
        high_hz: where the last band ends; half the rate where it is not given.
        scale: `slaney`, `htk`, or `htk_bins` (corners rounded to bins, as python_speech_features has them).
        norm: `slaney` gives every band the same area, `none` the same height.
    """

    rate_hz: float = 16000.0
    bands: int = 40
    low_hz: float = 0.0
    high_hz: float | None = None
    scale: str = "slaney"
    norm: str = "slaney"

    @classmethod
    def like_librosa(
        cls,
        *,
        sr: float = 22050.0,
        n_mels: int = 128,
        fmin: float = 0.0,
        fmax: float | None = None,
        htk: bool = False,
        norm: str | None = "slaney",
        **further: Any,
    ) -> Self:
        """As `librosa.feature.melspectrogram`; for `librosa.power_to_db` of it add log="db", range_db=80.0.

        Args:
            sr: readings per second.
            n_mels: number of bands.
            fmin: where the first band begins.
            fmax: where the last band ends.
            htk: whether the scale is HTK's, and not Slaney's.
            norm: `slaney` or None.
            further: arguments of `librosa.stft`, and of this class.
        """
        return super().like_librosa(
            rate_hz=sr, bands=n_mels, low_hz=fmin, high_hz=fmax, scale="htk" if htk else "slaney",
            norm=norm or "none", **{"hop_length": 512, **further},
        )  # fmt: skip

    @classmethod
    def like_python_speech_features(
        cls,
        *,
        samplerate: float = 16000.0,
        winlen: float = 0.025,
        winstep: float = 0.01,
        nfilt: int = 26,
        nfft: int = 512,
        lowfreq: float = 0.0,
        highfreq: float | None = None,
        preemph: float = 0.97,
        winfunc: Callable[[int], Any] | None = None,
        **ours: Any,
    ) -> Self:
        """As `python_speech_features.logfbank`; with log="none" as the first result of `fbank`.

        Args:
            samplerate: readings per second.
            winlen: seconds in a frame.
            winstep: seconds from one frame to the next.
            nfilt: number of bands.
            nfft: length of the transform; a frame must fit in.
            lowfreq: where the first band begins.
            highfreq: where the last band ends.
            preemph: share of the reading before that is taken off.
            winfunc: gives the weights of a frame by its length; ones where it is not given.
            ours: further arguments of this class.
        """
        length = math.floor(winlen * samplerate + 0.5)
        return cls(**{
            "rate_hz": samplerate, "bands": nfilt, "low_hz": lowfreq, "high_hz": highfreq, "scale": "htk_bins",
            "norm": "none", "n_fft": nfft, "hop": math.floor(winstep * samplerate + 0.5), "window_length": length,
            "window": "boxcar" if winfunc is None else np.asarray(winfunc(length), dtype=np.float64).tolist(),
            "padding": "end", "preemphasis": preemph, "per_bin": True, "log": "ln_nonzero", "floor": _EPSILON, **ours,
        })  # fmt: skip

    def column_names(self) -> list[str]:
        """The column names of a frame of one channel, in order."""
        return [f"mel_{i}" for i in range(self.bands)]

    def filters(self) -> Doubles:
        """The weights of the bands, `[n_fft // 2 + 1, bands]`."""
        high = self.high_hz or self.rate_hz / 2.0
        return mel_filters(
            self.rate_hz, self.n_fft, self.bands, self.low_hz, high_hz=high, scale=self.scale, norm=self.norm
        )

    def _check(self) -> None:
        super()._check()
        _one_of("scale", self.scale, SCALES)
        _one_of("norm", self.norm, NORMS)
        high = self.high_hz or self.rate_hz / 2.0
        if self.bands < 1 or not 0 <= self.low_hz < high <= self.rate_hz / 2.0:
            raise ValueError(
                f"bands, low_hz, high_hz: expected at least one band and 0 <= low_hz < high_hz <= rate_hz / 2, "
                f"found {self.bands}, {self.low_hz}, {high} at {self.rate_hz} readings per second"
            )

    def _features(self, power: Doubles) -> Doubles:
        return self._logarithm(self._rooted(power) @ self.filters())


@dataclass(repr=False, eq=False, kw_only=True)
class MFCC(MelSpectrogram):
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II of the logarithm of the mel spectrogram.

    Columns stand frame by frame, in a frame channel by channel, in a channel coefficient by coefficient.

    Attributes:
        coefficients: how many are kept.
        lifter: coefficient k is multiplied by 1 + lifter / 2 * sin(pi * (k + lifter_from) / lifter); 0 for none.
        lifter_from: 1 as in librosa, 0 as in python_speech_features.
        energy: whether the first coefficient is replaced by the natural logarithm of the frame's power.
    """

    log: str = "db"
    coefficients: int = 13
    lifter: float = 0.0
    lifter_from: int = 1
    energy: bool = False

    @classmethod
    def like_librosa(  # type: ignore[override]  # it takes more than `librosa.feature.melspectrogram` does
        cls,
        *,
        n_mfcc: int = 20,
        lifter: float = 0.0,
        norm: str = "ortho",
        mel_norm: str | None = "slaney",
        **further: Any,
    ) -> Self:
        """As `librosa.feature.mfcc`.

        Args:
            n_mfcc: how many coefficients are kept.
            lifter: as librosa has it.
            norm: of the cosine transform; only `ortho` is known.
            mel_norm: of the mel bands, `slaney` or None.
            further: arguments of `librosa.feature.melspectrogram`, and of this class.
        """
        _one_of("norm", norm, ("ortho",))
        return super().like_librosa(
            coefficients=n_mfcc, lifter=lifter, norm=mel_norm, **{"range_db": 80.0, **further}
        )  # fmt: skip

    @classmethod
    def like_python_speech_features(
        cls,
        *,
        numcep: int = 13,
        ceplifter: float = 22,
        appendEnergy: bool = True,  # noqa: N803 - that library's name
        **further: Any,
    ) -> Self:
        """As `python_speech_features.mfcc`.

        Args:
            numcep: how many coefficients are kept.
            ceplifter: as python_speech_features has it.
            appendEnergy: whether the first coefficient is the logarithm of the frame's power.
            further: arguments of `python_speech_features.logfbank`, and of this class.
        """
        return super().like_python_speech_features(
            coefficients=numcep, lifter=ceplifter, lifter_from=0, energy=appendEnergy, **further
        )

    def column_names(self) -> list[str]:
        """The column names of a frame of one channel, in order."""
        return [f"mfcc_{i}" for i in range(self.coefficients)]

    def lifted(self) -> Doubles:
        """What the lifter multiplies each coefficient with, `[coefficients]`."""
        k = np.arange(self.coefficients) + self.lifter_from
        return 1.0 + self.lifter / 2.0 * np.sin(np.pi * k / self.lifter) if self.lifter > 0 else np.ones(len(k))

    def cepstrum(self) -> Doubles:
        """The cosine transform with the lifter in it, `[bands, coefficients]`."""
        return cosine_transform(self.bands, self.coefficients) * self.lifted()

    def _check(self) -> None:
        super()._check()
        if not 1 <= self.coefficients <= self.bands:
            raise ValueError(f"coefficients: expected 1 to {self.bands} (bands), found {self.coefficients}")
        if self.log == "none":
            raise ValueError("log: expected a logarithm, found 'none': take MelSpectrogram")
        if self.energy and self.power != 2:
            raise ValueError(f"energy: expected power = 2 with it, found {self.power}")

    def _features(self, power: Doubles) -> Doubles:
        values = super()._features(power) @ self.cepstrum()
        if self.energy:
            values[..., 0] = logarithm(power.sum(axis=-1), "ln_nonzero", self.floor)
        return values


def logarithm(values: Doubles, kind: str, floor: float) -> Doubles:
    """The natural logarithm, with `floor` used as `kind` says."""
    if kind == "ln_offset":
        return np.log(values + floor)
    return np.log(np.maximum(values, floor) if kind == "ln" else np.where(values == 0.0, floor, values))


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected {', '.join(known)}, found {value!r}")


def _std(values: Doubles) -> Doubles:
    constant = np.ptp(values, axis=2, keepdims=True) == 0
    return np.where(constant, 0.0, values.std(axis=2, keepdims=True))


_SUMMARY: dict[str, Callable[[Doubles], Doubles]] = {
    "mean": lambda values: values.mean(axis=2, keepdims=True),
    "std": _std,
    "min": lambda values: values.min(axis=2, keepdims=True),
    "max": lambda values: values.max(axis=2, keepdims=True),
}
