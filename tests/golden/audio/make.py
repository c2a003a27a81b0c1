"""Make vectors.npz: what librosa and python_speech_features say about four signals, for every case of cases.json.

    pip install librosa python_speech_features && python tests/golden/audio/make.py

Made with librosa 0.11.0, python_speech_features 0.6, numpy 2.4.6 and scipy 1.17.1. The libraries are not needed to
run the tests.
"""

import json
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import python_speech_features
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
LENGTH = 2400  # 0.15 s at 16 kHz


def signals() -> dict[str, NDArray[np.float32]]:
    """A rising tone in noise, silence, full-scale noise that clips, and silence before a tone."""
    rng = np.random.default_rng(0)
    time = np.arange(LENGTH) / 16000.0
    tone = 0.4 * np.sin(2 * np.pi * (300.0 * time + 9000.0 * time**2))
    made = {
        "tone": tone + 0.01 * rng.normal(size=LENGTH),
        "silence": np.zeros(LENGTH),
        "full scale": np.clip(3.0 * rng.normal(size=LENGTH), -1.0, 1.0),
        "silence, then tone": np.where(time < 0.06, 0.0, np.rint(tone * 32767.0) / 32768.0),
    }
    return {name: signal.astype(np.float32) for name, signal in made.items()}


def answer(case: dict[str, Any], signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the library gives, frame by frame."""
    arguments = dict(case["arguments"])
    if case["call"].startswith("python_speech_features."):
        if "winfunc" in arguments:
            arguments["winfunc"] = getattr(np, arguments["winfunc"])
        found = getattr(python_speech_features, case["call"].partition(".")[2])(signal, **arguments)
        return np.asarray(found[0] if isinstance(found, tuple) else found)
    if case["call"] == "librosa.stft":
        return np.asarray(np.abs(librosa.stft(signal, **arguments)) ** case["power"]).T
    if case["call"] == "librosa.power_to_db":
        log = dict(case["log"])
        log["ref"] = np.max if log["ref"] == "max" else log["ref"]
        return np.asarray(librosa.power_to_db(librosa.feature.melspectrogram(y=signal, **arguments), **log)).T
    return np.asarray(getattr(librosa.feature, case["call"].rpartition(".")[2])(y=signal, **arguments)).T


def main() -> None:
    """Write the file."""
    made = signals()
    cases = json.loads((FOLDER / "cases.json").read_text())
    kept: dict[str, Any] = {f"signal/{name}": signal for name, signal in made.items()}
    for case in cases:
        for name, signal in made.items():
            found = answer(case, signal.astype(np.float64))
            kept[f"{case['name']}/{name}"] = found.astype(np.float32)
    np.savez_compressed(FOLDER / "vectors.npz", **kept)


if __name__ == "__main__":
    main()
