"""Window features as scikit-learn transformers: part of the model, so that training and device cannot disagree.

This is the public name of them all, and the name that saved models carry. They need numpy and scikit-learn only.
"""

from converter.features.audio import MFCC, STFT, MelSpectrogram
from converter.features.statistics import WindowFeatures

__all__ = ["MFCC", "STFT", "MelSpectrogram", "WindowFeatures"]

# skops and pickle write the name of a class into the file: it has to stay, wherever the code of the class moves.
for _public in (MFCC, STFT, MelSpectrogram, WindowFeatures):
    _public.__module__ = __name__
