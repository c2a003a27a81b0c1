"""What another rate does to an answer, and what `on_rate = "resample"` gives back: the tables of `docs/rates.md`.

`python -m benchmarks.resampling ../shared/data` takes recordings, measures them anew at other rates (on the straight
lines between their readings), and asks a model that was trained at the recorded rate: once as the readings come, once
after they went through the stream's own watch over the rate. A window's truth is that of its last reading.
"""

import csv
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converter import demo
from edge_runtime.readings import Floats
from edge_runtime.stream.rate import Pace

FACTORS = (1.0, 0.5, 0.8, 1.25, 2.0, 5.0)
BLOCK = 256  # readings of one wake-up
Table = NDArray[np.float64]
Answer = Callable[[Floats], NDArray[Any]]


def cut(readings: Any, length: int, stride: int) -> Floats:
    """Windows of so many readings."""
    starts = range(0, len(readings) - length + 1, stride)
    return np.array([readings[start : start + length] for start in starts], np.float32)


def measured_at(readings: Any, factor: float) -> Table:
    """The same, measured so many times as often."""
    moments = np.arange(len(readings))
    wanted = np.arange(0, len(readings) - 1 + 1e-9, 1 / factor)
    return np.column_stack([np.interp(wanted, moments, column) for column in np.asarray(readings, np.float64).T])


def resampled(readings: Table, factor: float, length: int) -> Floats:
    """What the stream makes of readings that come so many times as often as the model wants them."""
    passed: list[Floats] = []
    pace = Pace(1.0, length, "resample", restart=lambda _: passed.clear(), notice=lambda _: None)
    moments = 1.7e9 + np.arange(len(readings)) / factor
    for start in range(0, len(readings), BLOCK):
        part = readings[start : start + BLOCK].astype(np.float32)
        paced = pace.take(part, [None] * len(part), moments[start : start + BLOCK].tolist(), 0.0)
        passed.append(part if paced is None else paced.values)
    return np.concatenate(passed)


class Trial:
    """One model and the recordings to ask it with."""

    def __init__(self, name: str, length: int, stride: int, answer: Answer, *, is_value: bool = False) -> None:
        self.name = name
        self._length = length
        self._stride = stride
        self._answer = answer
        self._is_value = is_value
        self._recordings: list[tuple[Table, NDArray[Any]]] = []

    def add(self, readings: Any, truth: NDArray[Any]) -> None:
        """One recording with the truth of each reading."""
        self._recordings.append((np.asarray(readings, np.float64), truth))

    def row(self) -> str:
        """The table's row: as they come, and resampled, for each factor."""
        cells = []
        for factor in FACTORS:
            anew = [(measured_at(readings, factor), truth) for readings, truth in self._recordings]
            as_they_come = self._score([(readings, 1 / factor, truth) for readings, truth in anew])
            brought = self._score([(resampled(readings, factor, self._length), 1.0, truth) for readings, truth in anew])
            cells.append(f"{as_they_come:.3f} / {brought:.3f}")
        return f"| {self.name} | " + " | ".join(cells) + " |"

    def _score(self, asked: list[tuple[Any, float, NDArray[Any]]]) -> float:
        found, right = [], []
        for readings, step, truth in asked:
            windows = cut(readings, self._length, self._stride)
            if not len(windows):
                continue
            ends = (np.arange(len(windows)) * self._stride + self._length - 1) * step
            found.append(self._answer(windows))
            right.append(truth[np.minimum(ends.astype(int), len(truth) - 1)])
        answers, truths = np.concatenate(found), np.concatenate(right)
        if not self._is_value:
            return float(np.mean(answers == truths))
        return float(1 - ((answers - truths) ** 2).sum() / ((truths - truths.mean()) ** 2).sum())


def motions(folder: Path) -> Trial:
    """The demonstration: a watch, four activities, windows of 5 s at 10 Hz."""
    model = demo.fit(*demo.cut(*demo.read_recordings(folder / "basic-motions" / "BasicMotions_TRAIN.ts")))
    trial = Trial("activities of a watch (accuracy)", demo.LENGTH, demo.STRIDE, model.predict)
    for readings, label in zip(*demo.read_recordings(folder / "basic-motions" / "BasicMotions_TEST.ts"), strict=True):
        trial.add(readings, np.array([label] * len(readings)))
    return trial


def occupancy(folder: Path) -> Trial:
    """A room, occupied or not, by ten minutes of five sensors."""

    def read(name: str) -> tuple[Table, NDArray[np.int64]]:
        with (folder / "uci-occupancy" / name).open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        values = np.array([[float(value) for value in row[2:7]] for row in rows])
        return values, np.array([int(row[7]) for row in rows])

    def features(windows: Floats) -> Floats:
        steps = np.diff(windows, axis=1)
        parts = [windows.mean(1), windows.std(1), windows[:, -1] - windows[:, 0], np.abs(steps).mean(1)]
        return np.concatenate(parts, 1)

    length = 10
    readings, truth = read("datatraining.txt")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features(cut(readings, length, 1)), truth[length - 1 :])
    trial = Trial(
        "a room, occupied or not (accuracy)", length, length, lambda windows: model.predict(features(windows))
    )
    trial.add(*read("datatest2.txt"))
    return trial


def machine(folder: Path) -> Trial:
    """The temperature of a machine: by how much it has changed in two hours, from its steps."""
    with (folder / "nab-machine-temperature" / "machine_temperature_system_failure.csv").open(newline="") as file:
        values = np.array([[float(row[1])] for row in list(csv.reader(file))[1:]])
    length, half = 24, len(values) // 2
    change = np.zeros(len(values))
    change[length - 1 :] = values[length - 1 :, 0] - values[: len(values) - length + 1, 0]

    def features(windows: Floats) -> Floats:
        steps = np.diff(windows, axis=1)
        return np.concatenate([np.abs(steps).mean(1), steps.std(1), steps.mean(1)], 1)

    model = make_pipeline(StandardScaler(), Ridge())
    model.fit(features(cut(values[:half], length, 1)), change[length - 1 : half])
    answer: Answer = lambda windows: model.predict(features(windows))  # noqa: E731
    trial = Trial("change of a machine's temperature (R²)", length, length, answer, is_value=True)
    trial.add(values[half:], change[half:])
    return trial


def sound(folder: Path) -> Trial:
    """Ten seconds of speech at 16 kHz: which quarter of all frames one belongs to, by the centre of its spectrum."""
    with wave.open(str(folder / "mlperf-tiny-wakeword" / "short_wav_easy10s.wav")) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())[:, :1]
    readings, length = raw / 32768.0, 512

    def features(windows: Floats) -> Floats:
        power = np.abs(np.fft.rfft(windows[:, :, 0] * np.hanning(length), axis=1)) ** 2
        bands = [band.mean(1) for band in np.array_split(np.log(power + 1e-6), 16, axis=1)]
        return np.stack(bands, 1).astype(np.float32)

    frames = cut(readings, length, length)
    power = np.abs(np.fft.rfft(frames[:, :, 0], axis=1)) ** 2
    centre = (power * np.arange(length // 2 + 1)).sum(1) / (power.sum(1) + 1e-12)
    classes = np.searchsorted(np.quantile(centre, [0.25, 0.5, 0.75]), centre)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)).fit(features(frames), classes)
    answer: Answer = lambda windows: model.predict(features(windows))  # noqa: E731
    trial = Trial("frames of speech, four classes (accuracy)", length, length, answer)
    trial.add(readings, np.repeat(classes, length))
    return trial


def main() -> int:
    """Print the table."""
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.resampling FOLDER-OF-RECORDINGS", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    print("| as they come / resampled | " + " | ".join(f"{factor:g}x" for factor in FACTORS) + " |")
    print("|---|" + "---|" * len(FACTORS))
    for trial in (motions(folder), occupancy(folder), machine(folder), sound(folder)):
        print(trial.row(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
