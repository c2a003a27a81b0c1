"""Watches a large machine's temperature for trouble: train, convert, replay eleven weeks through the daemon, count.

    python examples/machine_temperature.py FOLDER [--work DIR] [--figures docs/anomaly.md]

FOLDER holds `machine_temperature_system_failure.csv` and `anomalies.json` of the Numenta Anomaly Benchmark (its
`data/realKnownCause` and `labels`). The model has seen only the first week, before the first labelled anomaly. The
daemon is the real one; its broker is the embedded one of the extra `demo`. The figures are made of what a subscriber
received, never of what the workstation computed.
"""

import argparse
import csv
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.features import WindowFeatures
from edge_runtime.demo import Audience, embedded_broker, run_step, running_daemon, subscription
from edge_runtime.errors import EdgeError
from edge_runtime.readings import Floats

RECORDING = "machine_temperature_system_failure.csv"
LENGTH = 72  # readings: six hours, of one every five minutes
TRAINED_UNTIL = datetime(2013, 12, 10, tzinfo=UTC)  # six hours before the first labelled window
MAX_GAP = 3600.0
MARGIN = 1.0  # the threshold is this quantile of the scores of the training: none of it is an alarm

SPECIFICATION = f"""
name = "machine-temperature"
version = "1.0.0"
task = "anomaly"
threshold_quantile = {MARGIN}

[window]
length = {LENGTH}
stride = 1

[[channel]]
name = "value"
range = [-50.0, 250.0]
"""


@dataclass(frozen=True)
class Recording:
    """The readings in the order of the file, and the labelled windows in Unix seconds."""

    times: NDArray[np.float64]
    values: Floats
    anomalies: list[tuple[float, float]]

    def in_anomaly(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of these times lie in a labelled window."""
        inside: NDArray[np.bool_] = np.any([(times >= start) & (times <= end) for start, end in self.anomalies], axis=0)
        return inside


@dataclass(frozen=True)
class Figures:
    """What a subscriber saw. Times and anomalies are those of the predictions, in order."""

    predictions: int
    alarms_in_window: list[int]
    first_alarms: list[datetime | None]
    alarms_outside: int
    episodes_outside: int
    days: float

    @property
    def windows_found(self) -> int:
        """Labelled windows with at least one alarm."""
        return sum(count > 0 for count in self.alarms_in_window)


def read_recording(folder: Path) -> Recording:
    """The benchmark's file and its labels. Times without a zone are taken as UTC, as the daemon does."""
    with (folder / RECORDING).open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = json.loads((folder / "anomalies.json").read_text())
    return Recording(
        np.array([_seconds(row["timestamp"]) for row in rows]),
        np.array([float(row["value"]) for row in rows], np.float32),
        [(_seconds(start), _seconds(end)) for start, end in labels["windows"]],
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def training_windows(recording: Recording) -> Floats:
    """Every window of the first week."""
    week = recording.values[recording.times < TRAINED_UNTIL.timestamp()]
    return np.lib.stride_tricks.sliding_window_view(week, LENGTH)[:, :, None].copy()


def fit(windows: Floats) -> Any:
    """An isolation forest on the level and the spread of six hours. Seeded."""
    from sklearn.ensemble import IsolationForest  # noqa: PLC0415 - slow to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415

    features = WindowFeatures(statistics=("mean", "std", "min", "max"))
    return make_pipeline(features, IsolationForest(n_estimators=200, random_state=7)).fit(windows)


def build(folder: Path, work: Path) -> Path:
    """Train on the first week and convert; the bundle."""
    import skops.io  # noqa: PLC0415

    windows = training_windows(read_recording(folder))
    skops.io.dump(fit(windows), work / "machine.skops")
    (work / "machine.toml").write_text(SPECIFICATION)
    np.savez(work / "week.npz", x=windows)
    bundle = work / "machine.onnx"
    arguments = ["build", work / "machine.skops", "--spec", work / "machine.toml", "--data", work / "week.npz"]
    arguments += ["-o", bundle]
    command = [sys.executable, "-c", "import sys; from converter.cli import main; sys.exit(main())"]
    print(f"$ edge-convert {shlex.join(map(str, arguments))}\n", flush=True)
    run_step([*command, *map(str, arguments)])
    return bundle


def device_file(recording: Path, bundle: Path, broker: str) -> str:
    """A device that replays the file as fast as it can, and takes two of the last three windows for a verdict."""
    return f"""
[device]
id = "machine"
health_interval = 1.0

[[source]]
name = "thermometer"
type = "replay"
files = ["{recording.resolve()}"]
speed = "full"
time = "timestamp"

[[model]]
name = "temperature"
bundle = "{bundle.resolve()}"
source = "thermometer"
smoothing = {{ n = 2, m = 3 }}
max_gap = {MAX_GAP}                     # no window runs over an hour without readings

[upstream]
url = "{broker}"

[outbox]
path = "machine.db"
"""


def evaluate(predictions: list[dict[str, Any]], recording: Recording) -> Figures:
    """Count alarms inside and outside of the labelled windows; an unbroken run of alarms is one episode."""
    times = np.array([datetime.fromisoformat(prediction["time"]).timestamp() for prediction in predictions])
    alarms = np.array([prediction["anomaly"] for prediction in predictions])
    outside = alarms & ~recording.in_anomaly(times) & (times >= TRAINED_UNTIL.timestamp())
    inside = [alarms & (times >= start) & (times <= end) for start, end in recording.anomalies]
    return Figures(
        predictions=len(predictions),
        alarms_in_window=[int(found.sum()) for found in inside],
        first_alarms=[datetime.fromtimestamp(times[found][0], UTC) if found.any() else None for found in inside],
        alarms_outside=int(outside.sum()),
        episodes_outside=int((outside & ~np.roll(outside, 1)).sum()),
        days=(times[-1] - TRAINED_UNTIL.timestamp()) / 86400,
    )


def replay(folder: Path, bundle: Path, work: Path, recording: Recording) -> list[dict[str, Any]]:
    """Run the daemon over the whole recording; what a subscriber received."""
    with embedded_broker() as port, subscription(port, "edge/#") as arrivals:
        device = work / "machine-device.toml"
        device.write_text(device_file(folder / RECORDING, bundle, f"mqtt://127.0.0.1:{port}"))
        with running_daemon(device, work / "daemon.log") as daemon:
            audience = Audience(arrivals, daemon, work / "daemon.log")
            count = expected_predictions(recording)
            return [json.loads(arrival.payload) for arrival in audience.predictions("edge/machine/temperature/", count)]


def expected_predictions(recording: Recording) -> int:
    """One a reading, but for those that fill a window: the first of the file, and the first after a gap.

    The clock steps back once, by less than `max_gap`: late readings are no gap.
    """
    steps = np.diff(recording.times)
    jumps = np.flatnonzero(np.abs(steps) > MAX_GAP) + 1
    return sum(max(0, len(run) - LENGTH + 1) for run in np.split(recording.times, jumps))


def describe(figures: Figures, recording: Recording, bundle: Path) -> str:
    """The figures as the page `docs/anomaly.md`."""
    rows = []
    for (start, end), count, first in zip(
        recording.anomalies, figures.alarms_in_window, figures.first_alarms, strict=True
    ):
        begin, finish = (datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M") for moment in (start, end))
        shown = first.strftime("%Y-%m-%d %H:%M") if first else "never"
        rows.append(f"| {begin} | {finish} | {count} | {shown} |")
    table = "\n".join(rows)
    per_week = figures.episodes_outside / figures.days * 7
    return f"""# Anomalies of a machine's temperature

The Numenta Anomaly Benchmark has eleven weeks of a large machine's temperature, a reading every five minutes, and four
labelled windows of trouble: a planned shutdown, two anomalies, and the failure that ended it.
An isolation forest on four statistics (mean, std, min, max) of the last six hours has seen only the first week.
The bundle ({bundle.stat().st_size / 1000:.0f} kB; trees stay float32) ran in the daemon on the replayed recording, with
`smoothing = {{ n = 2, m = 3 }}`; the figures are counted from what an MQTT subscriber received.

| window from | to | alarms in it | first alarm |
|---|---|---|---|
{table}

- {figures.windows_found} of {len(recording.anomalies)} labelled windows hold an alarm.
- {figures.alarms_outside} of {figures.predictions:,} predictions are alarms outside of them, \
in {figures.episodes_outside} episodes over {figures.days:.0f} days: {per_week:.1f} a week.
- The threshold is the highest score of the first week. It was not tuned on what came later; the length of the window
  and the four statistics were chosen among some dozens of combinations by looking at this very recording, so on another
  machine expect less.

Made by `python examples/machine_temperature.py FOLDER --figures docs/anomaly.md`.
"""


def main() -> int:
    """Everything, in the order of the path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the model, the bundle and the log there")
    parser.add_argument("--figures", type=Path, metavar="FILE.md", help="write the figures there")
    arguments = parser.parse_args()
    try:
        recording = read_recording(arguments.folder)
        with tempfile.TemporaryDirectory() as temporary:
            work = arguments.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            bundle = build(arguments.folder, work)
            text = describe(evaluate(replay(arguments.folder, bundle, work, recording), recording), recording, bundle)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.figures:
        arguments.figures.write_text(text)
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
