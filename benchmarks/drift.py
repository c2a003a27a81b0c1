"""How soon drift is found, and how often falsely: `python -m benchmarks.drift DATA [--river PYTHON]`.

Faults are put into parts of recordings that nothing was calibrated on, at several places of each; the watch of the
device sees what comes before, and its first alarm that belongs to the fault counts. The same part without a fault gives
the false alarms. ADWIN and Page-Hinkley of river, with their default settings on standardised readings, see the same.

DATA is a folder with the recordings (occupancy, machine temperature, BasicMotions, key words, wake words). With `--nab`
it is a copy of numenta/NAB instead: false alarms in the later third of its series, without what is labelled there.
"""

import argparse
import csv
import json
import subprocess
import tempfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from converter.data import Dataset
from converter.demo import read_recordings
from converter.load.source import Answer
from converter.plan import BundlePlan
from converter.reference import MONTH_S, make_reference
from converter.spec import DriftSpec
from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output, Window
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats

MOST_NAB = 6000  # readings of one series
PLACES = 8  # where a fault begins, in each recording
FAULTS = ("offset 1 sd", "offset 3 sd", "scale x2", "stuck", "noise 1 sd", "swapped", "half the rate", "missing 30 %")
RIVER = Path(__file__).parent / "peers" / "river_drift.py"
ALARM = 2


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What calibrates, and what comes later.

    Attributes:
        name: for the table.
        channels: their names.
        rate_hz: readings in a second.
        early: the readings that calibrate.
        late: those that nothing was tuned on.
        groups: of the readings that calibrate, where they do not all follow one another.
        horizon: readings within which a fault has to be found.
        faulty: the column that gets the faults; the next one is exchanged with it.
    """

    name: str
    channels: tuple[str, ...]
    rate_hz: float
    early: Floats
    late: Floats
    horizon: int
    groups: NDArray[Any] | None = None
    faulty: int = 0


@dataclass(slots=True)
class Found:
    """How often a fault was found within the horizon, and after how many readings."""

    delays: list[int] = field(default_factory=list)
    tried: int = 0

    def __str__(self) -> str:
        if not self.delays:
            return f"0/{self.tried}"
        return f"{len(self.delays)}/{self.tried}, {round(float(np.median(self.delays))):,}"


# --- recordings -----------------------------------------------------------------------------------------------------


def recordings(data: Path) -> Iterator[Recording]:
    """The five of them."""
    names = ("Temperature", "Humidity", "Light", "CO2", "HumidityRatio")
    early, late = (_columns(data / "uci-occupancy" / file, names) for file in ("datatraining.txt", "datatest2.txt"))
    yield Recording("occupancy", names, 1 / 60, early, late, 2880)
    machine = _columns(data / "nab-machine-temperature" / "machine_temperature_system_failure.csv", ("value",))
    yield Recording("machine temperature", ("value",), 1 / 300, machine[:11_000], machine[11_000:], 2016)
    parts = []
    for file in ("BasicMotions_TRAIN.ts", "BasicMotions_TEST.ts"):
        found, labels = read_recordings(data / "basic-motions" / file)
        parts.append((found.reshape(-1, 6), np.repeat(labels, 100)))
    order = np.random.default_rng(0).permutation(40)  # activities follow one another as they come
    late = parts[1][0].reshape(40, 100, 6)[order].reshape(-1, 6)
    axes = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
    yield Recording("BasicMotions", axes, 10.0, parts[0][0], late, 1000, groups=parts[0][1])
    words = np.load(data / "mlperf-tiny-kws" / "samples_int8.npy").astype(np.float32).reshape(-1, 10)
    coefficients = tuple(f"mfcc_{number}" for number in range(10))
    yield Recording("key words (MFCC)", coefficients, 50.0, words[: 350 * 49], words[350 * 49 :], 1500)
    with wave.open(str(data / "mlperf-tiny-wakeword" / "short_wav_easy10s.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).astype(np.float32)
    yield Recording("sound (16 kHz)", ("left", "right"), 16_000.0, sound[:96_000], sound[96_000:], 24_000)


def _columns(path: Path, names: tuple[str, ...]) -> Floats:
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file))
    shift = len(rows[0]) - len(head)  # R writes row names without a heading
    places = [head.index(name) + shift for name in names]
    return np.array([[float(row[place]) for place in places] for row in rows], np.float32)


# --- faults ---------------------------------------------------------------------------------------------------------


def spoiled(values: Floats, fault: str, recording: Recording, rng: np.random.Generator) -> Floats | None:
    """Readings with a fault from the first on; None where the recording has no such fault."""
    found, column = values.copy(), recording.faulty
    mean, std = recording.early[:, column].mean(), recording.early[:, column].std()
    match fault:
        case "offset 1 sd":
            found[:, column] += std
        case "offset 3 sd":
            found[:, column] += 3 * std
        case "scale x2":
            found[:, column] = mean + 2 * (found[:, column] - mean)
        case "stuck":
            found[:, column] = found[0, column]
        case "noise 1 sd":
            found[:, column] += rng.normal(0.0, std, len(found)).astype(np.float32)
        case "swapped":
            if found.shape[1] < 2:
                return None
            found[:, [column, column + 1]] = found[:, [column + 1, column]]
        case "missing 30 %":
            found[rng.random(len(found)) < 0.3, column] = np.nan
        case "half the rate":
            return found[::2]
    return found


# --- ours -----------------------------------------------------------------------------------------------------------


def manifest_of(recording: Recording, alarms: float) -> tuple[Manifest, str]:
    """As a build makes it, and what the build says."""
    given = Input(
        channels=tuple(Channel(name=name) for name in recording.channels), window=Window(1, 1, recording.rate_hz)
    )
    plan = BundlePlan("m", "1.0.0", "anomaly", given, (), (), (), (), 1.0)
    data = Dataset(
        recording.early[:, np.newaxis], None, None, recording.early, overlapping=False, place="",
        reading_groups=recording.groups, rate_hz=recording.rate_hz,
    )  # fmt: skip
    made = make_reference(plan, data, Answer(), DriftSpec(false_alarms_per_month=alarms), say=lambda _: None)
    manifest = Manifest(
        name="m", version="1.0.0", task="anomaly", input=given, output=Output(threshold=1.0), reference=made.channels,
        drift=made.drift,
    )  # fmt: skip
    return manifest, made.notes[0]


def _feed(monitor: Monitor, values: Floats, times: list[float], until: Callable[[Monitor], bool]) -> int | None:
    """After how many readings a condition holds; None where it never does."""
    step = max(1, (monitor.base.block if monitor.base else 64) // 4)
    for start in range(0, len(values), step):
        part = values[start : start + step]
        monitor.take(part, [None] * len(part), times[start : start + step], 0.0)
        if until(monitor):
            return start + len(part)
    return None


def ours(recording: Recording, manifest: Manifest, fault: str | None, places: list[int]) -> Found:
    """Each fault at each place, found by the alarm that belongs to it; without a fault, by any alarm of the column."""
    found = Found()
    assert manifest.drift is not None
    before_it = 40 * manifest.drift.block
    for number, place in enumerate(places):
        rng = np.random.default_rng(number)
        later = recording.late[place : place + recording.horizon]
        broken = later if fault is None else spoiled(later, fault, recording, rng)
        if broken is None:
            return found
        monitor = Monitor(manifest, is_recorded=True)
        before = recording.late[max(0, place - before_it) : place]
        moments = (np.arange(-len(before), 0) / recording.rate_hz).tolist()
        _feed(monitor, before, moments, lambda _: False)
        period = (2.0 if fault == "half the rate" else 1.0) / recording.rate_hz
        if _is_found(monitor, fault, recording.faulty):
            continue  # an alarm that was there before says nothing of the fault
        found.tried += 1
        delay = _feed(
            monitor, broken, (np.arange(len(broken)) * period).tolist(),
            lambda now: _is_found(now, fault, recording.faulty),
        )  # fmt: skip
        if delay is not None:
            found.delays.append(delay)
    return found


def _is_found(monitor: Monitor, fault: str | None, column: int) -> bool:
    stream = monitor.streams.get(None)
    if stream is None or stream.input is None:
        return False
    if fault == "half the rate":
        return stream.pacing.rate.state == ALARM
    columns = [column, column + 1] if fault == "swapped" else [column]
    return any(stream.input.state_of(each) == ALARM for each in columns)


def false_alarms(recording: Recording, manifest: Manifest) -> tuple[int, float]:
    """Alarms of the stream in the whole later part without a fault, and its length in months."""
    monitor, began = Monitor(manifest, is_recorded=True), []
    monitor.on_change.append(lambda _, state: began.append(state))
    times = (np.arange(len(recording.late)) / recording.rate_hz).tolist()
    _feed(monitor, recording.late, times, lambda _: False)
    return began.count("alarm"), len(recording.late) / recording.rate_hz / MONTH_S


def interval(count: int, months: float) -> str:
    """Alarms a month with the exact 95 % interval of a Poisson law."""
    low = stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    high = stats.chi2.ppf(0.975, 2 * count + 2) / 2
    return f"{count / months:.3g} [{low / months:.2g}, {high / months:.2g}]"


# --- river ----------------------------------------------------------------------------------------------------------


def river(python: str, recording: Recording, places: list[int]) -> tuple[dict[str, dict[str, Found]], dict[str, int]]:
    """What ADWIN and Page-Hinkley find of the same faults at the same places, and how often they report without one."""
    mean, std = recording.early.mean(axis=0), recording.early.std(axis=0)
    streams, names = [], []
    for fault in (None, *FAULTS):
        for number, place in enumerate(places):
            rng = np.random.default_rng(number)
            later = recording.late[place : place + recording.horizon]
            broken = later if fault is None else spoiled(later, fault, recording, rng)
            if broken is None:
                continue
            before = recording.late[max(0, place - 5000) : place]
            whole = (np.concatenate([recording.early[-2000:], before, broken]) - mean) / std
            streams.append(whole[:, recording.faulty])
            names.append((fault or "none", 2000 + len(before)))
    plain = (np.concatenate([recording.early[-2000:], recording.late]) - mean) / std
    streams.append(plain[:, recording.faulty])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "streams.npz"
        np.savez(path, *streams)
        done = subprocess.run([python, str(RIVER), str(path)], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, Found]] = {}
    falsely: dict[str, int] = {}
    for detector, (*alarms, without) in json.loads(done.stdout).items():
        falsely[detector] = sum(place >= 2000 for place in without)
        for (fault, begin), places_of_alarms in zip(names, alarms, strict=True):
            each = found.setdefault(detector, {}).setdefault(fault, Found())
            each.tried += 1
            late = [place - begin for place in places_of_alarms if place >= begin]
            if late:
                each.delays.append(late[0] + 1)
    return found, falsely


# --- the table ------------------------------------------------------------------------------------------------------


def rows(recording: Recording, alarms: float, python: str | None) -> Iterator[str]:
    """The lines of one recording."""
    manifest, answered = manifest_of(recording, alarms)
    assert manifest.drift is not None, answered
    last = len(recording.late) - recording.horizon
    places = np.linspace(min(last, 16 * manifest.drift.block), last, PLACES).astype(int).tolist()
    peers, falsely = river(python, recording, places) if python else ({}, {})
    count, months = false_alarms(recording, manifest)
    yield f"\n### {recording.name}\n"
    yield (
        f"{len(recording.early):,} readings calibrate, {len(recording.late):,} are tried, at "
        f"{recording.rate_hz:.4g} Hz; faults in `{recording.channels[recording.faulty]}`, to be found within "
        f"{recording.horizon:,} readings.\n"
    )
    yield f"> {answered}\n"
    others = "".join(f"; {name}, of this channel alone: {number:,}" for name, number in falsely.items())
    yield (
        f"Without a fault, over {months * 30:.3g} days: {count} alarms, {interval(count, months)} a month, "
        f"{alarms:g} asked for{others}.\n"
    )
    heads = ["fault", "this", *peers]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for fault in (None, *FAULTS):
        mine = ours(recording, manifest, fault, places)
        if not mine.tried and fault == "swapped" and recording.late.shape[1] < 2:
            continue
        beside = [str(peers[name].get(fault or "none", Found())) for name in peers]
        yield "| " + " | ".join([fault or "none (by chance)", str(mine), *beside]) + " |"


def nab(data: Path, alarms: float) -> Iterator[str]:
    """False alarms in each folder of the Numenta benchmark, without the windows that it calls anomalous."""
    windows = json.loads((data / "labels" / "combined_windows.json").read_text())
    yield "| folder | series | days | alarms | a month, with 95 % interval | not held at build |"
    yield "|---|---|---|---|---|---|"
    for folder in sorted((data / "data").glob("real*")):
        series, total, months, refused = 0, 0, 0.0, 0
        for path in sorted(folder.glob("*.csv")):
            recording = _nab_series(path, windows[f"{folder.name}/{path.name}"])
            manifest, answered = manifest_of(recording, alarms)
            if manifest.drift is None or path.stem == "machine_temperature_system_failure":  # too short; tried above
                continue
            found, tried = false_alarms(recording, manifest)
            series, total, months = series + 1, total + found, months + tried
            refused += "not held" in answered
        if series:
            yield f"| {folder.name} | {series} | {30 * months:.0f} | {total} | {interval(total, months)} | {refused} |"


def _nab_series(path: Path, windows: list[list[str]]) -> Recording:
    with path.open(newline="") as file:
        rows = sorted((datetime.fromisoformat(row[0]), float(row[1])) for row in list(csv.reader(file))[1:])
    spans = [[datetime.fromisoformat(end) for end in window] for window in windows]
    kept = [value for when, value in rows if not any(begin <= when <= end for begin, end in spans)][:MOST_NAB]
    interval_s = float(np.median(np.diff([when.timestamp() for when, _ in rows])))
    values = np.array(kept, np.float32)[:, np.newaxis]
    early = int(0.65 * len(values))
    return Recording(path.stem, ("value",), 1.0 / interval_s, values[:early], values[early:], 0)


def walk(rng: np.random.Generator, count: int, keeps: float) -> Floats:
    """Two columns of made readings, each of which keeps a share of the one before, with a standard deviation of one."""
    steps = rng.normal(size=(count, 2)) * np.sqrt(1.0 - keeps**2)
    found, now = np.empty((count, 2), np.float32), rng.normal(size=2)
    for row in range(count):
        now = keeps * now + steps[row]
        found[row] = now
    return found


def made_readings(alarms: float = 4.0, recordings_of_each: int = 6, months: int = 6) -> Iterator[str]:
    """False alarms over years of readings a minute whose law stays the same."""
    total = 0
    for keeps in (0.0, 0.9, 0.99):
        for seed in range(recordings_of_each):
            rng = np.random.default_rng(100 + seed)
            early, late = walk(rng, 30_000, keeps), walk(rng, int(months * MONTH_S / 60), keeps)
            recording = Recording("made", ("a", "b"), 1 / 60, early, late, 0)
            total += false_alarms(recording, manifest_of(recording, alarms)[0])[0]
    tried = 3 * recordings_of_each * months
    yield f"Made readings, {tried} months: {total} alarms, {interval(total, tried)} a month, {alarms:g} asked for."


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the recordings")
    parser.add_argument("--river", metavar="PYTHON", help="an interpreter whose environment has river")
    parser.add_argument("--alarms", type=float, default=1.0, help="false alarms a month")
    parser.add_argument("--made", action="store_true", help="only false alarms over years of made readings")
    parser.add_argument("--nab", action="store_true", help="only false alarms, over the series of numenta/NAB")
    args = parser.parse_args()
    if args.nab:
        print(*nab(args.data, args.alarms), sep="\n")
        return
    if args.made:
        print(*made_readings(), sep="\n")
        return
    for recording in recordings(args.data):
        for line in rows(recording, args.alarms, args.river):
            print(line, flush=True)


if __name__ == "__main__":
    main()
