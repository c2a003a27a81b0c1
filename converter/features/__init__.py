"""Window features as scikit-learn transformers: part of the model, so that training and device compute the same.

Saved models contain this module's name. The transformers need numpy and scikit-learn only.
"""

from converter.features.audio import MFCC, STFT, MelSpectrogram
from converter.features.statistics import WindowFeatures

__all__ = ["MFCC", "STFT", "MelSpectrogram", "WindowFeatures"]

# skops and pickle write the name of a class into the file, so the name stays when the code moves.
for _public in (MFCC, STFT, MelSpectrogram, WindowFeatures):
    _public.__module__ = __name__
