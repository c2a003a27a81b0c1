"""Which types of a skops file need no `--trust`: classes of numpy, scipy and scikit-learn, and our own features.

skops calls some of scikit-learn's own types untrusted (`AdamOptimizer`, `Tree`, `KDTree`). We accept classes of
these packages, their element-wise functions and scikit-learn's own scores and metrics, but no other function and
nothing of their test and build tools: a function named by a file is code that the file chose.
"""

import importlib
from collections.abc import Iterable

import numpy as np

_PACKAGES = ("numpy", "scipy", "sklearn")
_UNFIT = frozenset({"tests", "testing", "conftest", "f2py", "distutils", "_testutils", "ctypeslib", "memmap"})
_FUNCTIONS = ("sklearn.feature_selection.", "sklearn.metrics.", "sklearn.gaussian_process.")
_OURS = frozenset(
    {f"converter.features.{name}" for name in ("WindowFeatures", "STFT", "MelSpectrogram", "MFCC")}
    # As version 0.1 wrote them.
    | {f"converter.audio.{name}" for name in ("STFT", "MelSpectrogram", "MFCC")}
)


def untrusted(names: Iterable[str]) -> list[str]:
    """The names, out of those that skops does not trust, that we do not trust either."""
    return sorted(name for name in names if not _is_known(name))


def _is_known(name: str) -> bool:
    if name in _OURS:
        return True
    parts = name.split(".")
    if parts[0] not in _PACKAGES or _UNFIT & set(parts) or len(parts) < 2:
        return False
    try:
        found = getattr(importlib.import_module(".".join(parts[:-1])), parts[-1])
    except (ImportError, AttributeError):
        return False
    if isinstance(found, type):
        # A class that merely passes through these modules (say, subprocess.Popen) belongs to somebody else.
        return found.__module__.split(".")[0] in (*_PACKAGES, "builtins")
    return isinstance(found, np.ufunc) or (callable(found) and name.startswith(_FUNCTIONS))
