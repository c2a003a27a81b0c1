"""Every model of the data folder through `edge-convert build`: the table of sizes and losses in `docs/converter.md`.

    python -m benchmarks.converted [--data ../shared/data] [--write] [--keep FOLDER] [NAME...]

Each model goes the way of a user, with the file, a specification and data; what is refused stands in the table with
its reason. Calibration rows are never among the rows that judge. `--write` puts the table into the document. A model
whose framework is not installed is named and left out of the table, and the exit code is then 1. Forms are chosen by
the default preference, bytes and time, so that another processor may choose another. Bytes are those of whole files,
times those of one prediction; seconds are the processor time of the whole conversion, MB the most memory that it held,
frameworks included.
"""

import argparse
import contextlib
import csv
import datetime as dt
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.cli import main as convert
from converter.commands.inspect import manifest_of

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "converter.md"
BEGIN, END = "<!-- sizes and losses -->", "<!-- end of sizes and losses -->"
WORDS = ["Down", "Go", "Left", "No", "Off", "On", "Right", "Stop", "Up", "Yes", "Silence", "Unknown"]
MAX_DROP = "0.01"

Rows = NDArray[Any]
Samples = tuple[Rows, Rows | None]


@dataclass(frozen=True, slots=True)
class Case:
    """One model of the table.

    Attributes:
        name: in the table.
        prepare: gets the data folder and a folder to write into, and hands back the model, calibration rows and
            evaluation rows, each with their truth; no rows for a model that is converted without any.
        spec: the specification.
        note: where the rows come from.
    """

    name: str
    prepare: Callable[[Path, Path], tuple[Path, Samples | None, Samples | None]]
    spec: str
    note: str


def _plain(file: str) -> Callable[[Path, Path], tuple[Path, None, None]]:
    return lambda data, _: (data / file, None, None)


def _keywords(file: str, whole: bool) -> Callable[[Path, Path], tuple[Path, Samples, Samples]]:
    def prepare(data: Path, _: Path) -> tuple[Path, Samples, Samples]:
        folder = data / "mlperf-tiny-kws"
        with (folder / "labels.csv").open(newline="") as table:
            y = np.array([int(row["label"]) for row in csv.DictReader(table)][:500])
        q = np.load(folder / "samples_int8.npy")
        x = q if whole else (q.astype(np.float32) - 83) * np.float32(0.5847029089927673)
        return folder / file, (x[::2], y[::2]), (x[1::2], y[1::2])

    return prepare


def _machine_sound(file: str) -> Callable[[Path, Path], tuple[Path, Samples, Samples]]:
    def prepare(data: Path, _: Path) -> tuple[Path, Samples, Samples]:
        folder = data / "mlperf-tiny-anomaly"
        frames = np.fromfile(folder / "normal_id_01_00000000_hist_librosa.bin", "<f4").reshape(200, 128)
        x = np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])
        return folder / file, (x[:60], None), (x[65:], None)  # a window is five frames: none is in both

    return prepare


def _wake_word(file: str) -> Callable[[Path, Path], tuple[Path, Samples, Samples]]:
    def prepare(data: Path, _: Path) -> tuple[Path, Samples, Samples]:
        folder = data / "mlperf-tiny-wakeword"
        with np.load(folder / "calibration_samples.npz") as archive:
            x, y = archive["specs"].astype(np.float32), archive["labels"].astype(np.int64)
        return folder / file, (x[::2], y[::2]), (x[1::2], y[1::2])

    return prepare


def _sine(file: str) -> Callable[[Path, Path], tuple[Path, Samples, Samples]]:
    def prepare(data: Path, _: Path) -> tuple[Path, Samples, Samples]:
        x = np.linspace(0.0, 2.0 * np.pi, 1001, dtype=np.float32)[:, None]
        y = np.sin(x[:, 0].astype(np.float64))
        return data / "tflite-micro" / file, (x[::2], y[::2]), (x[1::2], y[1::2])

    return prepare


def _made_up(file: str, shape: tuple[int, ...]) -> Callable[[Path, Path], tuple[Path, Samples, Samples]]:
    def prepare(data: Path, _: Path) -> tuple[Path, Samples, Samples]:
        x = np.random.default_rng(0).integers(-128, 128, size=(400, *shape)).astype(np.float32)
        return data / file, (x[::2], None), (x[1::2], None)

    return prepare


def _can_bus(data: Path, _: Path) -> tuple[Path, Samples, Samples]:
    """10,000 rows on and beside the thresholds of the model's own trees, where a wrong comparison shows."""
    path = data / "can-bus-xgboost" / "xgboost_model.json"
    trees = json.loads(path.read_text())["learner"]["gradient_booster"]["model"]["trees"]
    rng = np.random.default_rng(0)
    columns = []
    for column in range(8):
        used = [
            value
            for tree in trees
            for value, feature, left in zip(
                tree["split_conditions"], tree["split_indices"], tree["left_children"], strict=True
            )
            if left >= 0 and feature == column
        ]
        columns.append(rng.choice(np.array([*used, 0.0]), 10_000))
    x = np.stack(columns, axis=1)
    x[5000:] *= 1.0 + rng.normal(size=(5000, 8)) * 0.1
    x = x.astype(np.float32)[:, None, :]
    return path, (x[:50], None), (x, None)


def _trained(kind: str) -> Callable[[Path, Path], tuple[Path, Samples, Samples]]:
    """A model of scikit-learn, trained here on recordings: on one file, judged by another."""

    def prepare(data: Path, folder: Path) -> tuple[Path, Samples, Samples]:
        import skops.io  # noqa: PLC0415 - heavy

        fit, calibration, evaluation = RECIPES[kind](data)
        path = folder / f"{kind}.skops"
        skops.io.dump(fit, path)
        return path, calibration, evaluation

    return prepare


def _occupancy(data: Path) -> tuple[Samples, Samples]:
    parts = []
    for name in ("datatraining.txt", "datatest2.txt"):
        with (data / "uci-occupancy" / name).open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        x = np.array([[float(value) for value in row[2:7]] for row in rows])
        parts.append((x, np.array([int(row[7]) for row in rows])))
    return parts[0], parts[1]


def _room(estimator: Any) -> Callable[[Path], tuple[Any, Samples, Samples]]:
    def make(data: Path) -> tuple[Any, Samples, Samples]:
        (x, y), (unseen, truth) = _occupancy(data)
        return estimator().fit(x, y), (x, y), (unseen, truth)

    return make


def _network() -> Any:
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=100, random_state=0))


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415

    return RandomForestClassifier(30, random_state=0)


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=30, random_state=0))


def _motions(data: Path) -> tuple[Any, Samples, Samples]:
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    from converter.features import WindowFeatures  # noqa: PLC0415

    parts = []
    for name in ("TRAIN", "TEST"):
        windows, labels = [], []
        for line in (data / "basic-motions" / f"BasicMotions_{name}.ts").read_text().splitlines():
            if line and line[0] not in "#@":
                *channels, label = line.split(":")
                windows.append(np.array([[float(v) for v in channel.split(",")] for channel in channels]).T)
                labels.append(label)
        parts.append((np.array(windows, dtype=np.float32), np.array(labels)))
    network = MLPClassifier((32,), max_iter=400, random_state=0)
    bands = ((0.2, 1.0), (1.0, 2.5), (2.5, 5.1))
    fit = make_pipeline(WindowFeatures(bands=bands, rate_hz=10.0), StandardScaler(), network).fit(*parts[0])
    return fit, parts[0], parts[1]


def _machine_temperature(data: Path) -> tuple[Any, Samples, Samples]:
    from sklearn.ensemble import IsolationForest  # noqa: PLC0415

    folder = data / "nab-machine-temperature"
    borders = [
        [dt.datetime.fromisoformat(moment) for moment in pair]
        for pair in json.loads((folder / "anomalies.json").read_text())["windows"]
    ]
    with (folder / "machine_temperature_system_failure.csv").open(newline="") as file:
        rows = [(dt.datetime.fromisoformat(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
    count = len(rows) // 12
    x = np.array([value for _, value in rows[: count * 12]], dtype=np.float32).reshape(count, 12, 1)
    y = np.array([any(low <= rows[12 * i + 11][0] <= high for low, high in borders) for i in range(count)]).astype(int)
    fit = IsolationForest(n_estimators=50, contamination=0.02, random_state=0).fit(x[:200, :, 0])
    return fit, (x[:200], y[:200]), (x[200:], y[200:])


RECIPES: dict[str, Callable[[Path], tuple[Any, Samples, Samples]]] = {
    "room network": _room(_network),
    "room forest": _room(_forest),
    "room boosting": _room(_boosting),
    "motions": _motions,
    "machine temperature": _machine_temperature,
}
_KEYWORDS = f'task = "classification"\nlabels = {json.dumps(WORDS)}\n[frame]\nshape = [49, 10, 1]\n'
_WAKE_WORD = 'task = "classification"\n[frame]\nshape = [30, 1, 40]\n'
_SOUND = 'task = "anomaly"\n[frame]\nshape = [640]\n'
_SINE = 'task = "regression"\n[frame]\nshape = [1]\n'
_ROOM = 'labels = ["empty", "occupied"]\n' + "".join(
    f'[[channel]]\nname = "{name}"\n' for name in ("temperature", "humidity", "light", "co2", "ratio")
)
_AXES = "[window]\nlength = 100\nstride = 50\nrate_hz = 10.0\n" + "".join(
    f'[[channel]]\nname = "{name}"\n' for name in ("ax", "ay", "az", "gx", "gy", "gz")
)
_OTHERS = "half of the samples calibrates, the other judges"
_ONE = "one recording, its beginning calibrates, the rest judges"
_TRAINED = "trained here; one file calibrates, another judges"

CASES = (
    Case("keywords, float TFLite", _keywords("kws_ref_model_float32.tflite", False), _KEYWORDS, _OTHERS),
    Case("keywords, int8 TFLite", _keywords("kws_ref_model.tflite", True), _KEYWORDS + 'dtype = "int8"\n', _OTHERS),
    Case("machine sound, Keras `.h5`", _machine_sound("ad01.h5"), _SOUND, _ONE),
    Case("machine sound, float TFLite", _machine_sound("ad01_fp32.tflite"), _SOUND, _ONE),
    Case("machine sound, int8 TFLite", _machine_sound("ad01_int8.tflite"), _SOUND, _ONE),
    Case("wake word, Keras `.h5`", _wake_word("str_ww_ref_model.h5"), _WAKE_WORD, _OTHERS),
    Case("wake word, int8 TFLite", _wake_word("str_ww_ref_model.tflite"), _WAKE_WORD, _OTHERS),
    Case("sine, float TFLite", _sine("hello_world_float.tflite"), _SINE, "the sine itself"),
    Case("sine, int8 TFLite", _sine("hello_world_int8.tflite"), _SINE, "the sine itself"),
    Case("speech, int8 TFLite", _made_up("tflite-micro/micro_speech_quantized.tflite", (1960,)),
         'task = "classification"\n[frame]\nshape = [1960]\ndtype = "int8"\n', "made-up numbers"),
    Case("CAN bus, XGBoost", _can_bus, "", "10,000 rows on and beside its thresholds"),
    Case("room, network", _trained("room network"), _ROOM, _TRAINED),
    Case("room, random forest", _trained("room forest"), _ROOM, _TRAINED),
    Case("room, scaler and histogram boosting", _trained("room boosting"), _ROOM, _TRAINED),
    Case("motions, features and network", _trained("motions"), _AXES, _TRAINED),
    Case("machine temperature, isolation forest", _trained("machine temperature"),
         '[window]\nlength = 12\n[[channel]]\nname = "temperature"\n', "trained here on the first 200 windows"),
    Case("microWakeWord, TFLite", _made_up("micro-wake-word/okay_nabu_v2.tflite", (3, 40)),
         'task = "classification"\nlabels = ["other", "okay_nabu"]\n[frame]\nshape = [3, 40]\ndtype = "int8"\n',
         "made-up numbers"),
    Case("digits, LSTM TFLite", _made_up("tflite-micro/trained_lstm.tflite", (28, 28)),
         f'task = "classification"\nlabels = {json.dumps(list("0123456789"))}\n[frame]\nshape = [28, 28]\n'
         "scale = 0.0078125\n",
         "made-up numbers"),
    Case("audio preprocessor, TFLite", _plain("tflite-micro/audio_preprocessor_int8.tflite"), "", ""),
)  # fmt: skip


def main() -> int:
    """Convert what was asked for, print the table, and write it where that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.converted", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; every model without any")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="default: ../shared/data")
    parser.add_argument("--keep", type=Path, help="a folder for the bundles, for `benchmarks.emulated`")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: expected the folder of models and recordings, found none")
    if arguments.write and arguments.names:
        sys.exit("--write: expected it without names, since the table is one of all models")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    lines: list[str] = []
    missing: list[str] = []
    for case in CASES:
        if arguments.names and not any(name in case.name for name in arguments.names):
            continue
        print(f"-- {case.name}", file=sys.stderr, flush=True)
        with multiprocessing.get_context("fork").Pool(1) as alone:  # so that memory is that of one conversion
            line = alone.apply(convert_one, (case.name, arguments.data, arguments.keep))
        (missing if line.startswith("missing") else lines).append(line)
    table = "\n".join((_HEAD, *lines))
    print(table)
    for line in missing:
        print(line, file=sys.stderr)
    if missing:
        return 1
    if arguments.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
        print(f"written to {DOCUMENT.relative_to(ROOT)}", file=sys.stderr)
    return 0


_HEAD = (
    "| model | its file | float32 ONNX | kept | form | us: float32, kept | metric: source, kept (rows) "
    "| labels that differ | largest difference | CPU s | MB | rows |\n"
    "|---|---:|---:|---:|---|---:|---|---:|---:|---:|---:|---|"
)


def convert_one(called: str, data: Path, keep: Path | None = None) -> str:
    """One line of the table; `missing ...` where a framework is not installed."""
    case = next(each for each in CASES if each.name == called)
    with tempfile.TemporaryDirectory(prefix="edge-converted-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        model, calibration, evaluation = case.prepare(data, folder)
        (folder / "spec.toml").write_text(case.spec, encoding="utf-8")
        arguments = ["build", str(model), "--spec", str(folder / "spec.toml"), "-o", str(folder / "out.onnx")]
        if calibration is None or evaluation is None:
            arguments += ["--quantize", "none"]
        else:
            for name, (x, y) in (("calibration", calibration), ("evaluation", evaluation)):
                arrays: dict[str, Any] = {"x": x} if y is None else {"x": x, "y": y}
                np.savez(folder / f"{name}.npz", **arrays)
                arguments += [f"--{name}", str(folder / f"{name}.npz")]
            arguments += ["--max-drop", MAX_DROP]
        answered, wrong = io.StringIO(), io.StringIO()
        began = _cpu_s()
        with contextlib.redirect_stdout(answered), contextlib.redirect_stderr(wrong):
            code = convert(arguments)
        size = f"{model.stat().st_size:,}"
        if code:
            why = wrong.getvalue().strip().replace(str(model), model.name).replace(str(folder), "")
            if "pip install" in why:
                return f"missing: {case.name}: {why}"
            return f"| {case.name} | {size} | | | refused: {why.partition(': ')[2]} | | | | | | | |"
        if keep is not None:
            keep.mkdir(exist_ok=True)
            shutil.copyfile(folder / "out.onnx", keep / f"{re.sub('[^a-zA-Z0-9]+', '-', case.name).strip('-')}.onnx")
        record = manifest_of(folder / "out.onnx").quantization
        return _line(case, size, record, _times(answered.getvalue()), spent=(_cpu_s() - began, _peak_mb()))


def _cpu_s() -> float:
    """The processor time of this process and its children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def _peak_mb() -> int:
    """The most memory that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _times(answered: str) -> str:
    """The time of one prediction of the first form and of the kept one, from the table that `build` prints."""
    rows = re.findall(r"^([* ]) {2}(?!source|model)\S.*?(\d+) +\d+$", answered, re.MULTILINE)
    kept = next((time for mark, time in rows if mark == "*"), "-")
    return f"{rows[0][1]}, {kept}" if rows else "-"


def _line(case: Case, size: str, record: dict[str, Any], times: str, *, spent: tuple[float, int]) -> str:
    came = "came quantised" in record["reason"]
    metric = f"{record['metric']}: {record['source_metric']:.4f}, {record['final_metric']:.4f} ({record['rows']:,})"
    cells = (
        case.name, size, f"{record['bytes_float']:,}", f"{record['bytes']:,}",
        "int8, as it came" if came else record["name"], times, metric, str(record["differing_labels"]),
        f"{record['max_score_difference']:.1e}", f"{spent[0]:.1f}", str(spent[1]), case.note,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
