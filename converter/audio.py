"""The audio transformers under their former module name, which models saved with version 0.1 contain."""

from converter.features import MFCC, STFT, MelSpectrogram

__all__ = ["MFCC", "STFT", "MelSpectrogram"]
