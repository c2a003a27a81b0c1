"""The former place of the transformers of sound: models that were saved with version 0.1 name them here."""

from converter.features import MFCC, STFT, MelSpectrogram

__all__ = ["MFCC", "STFT", "MelSpectrogram"]
