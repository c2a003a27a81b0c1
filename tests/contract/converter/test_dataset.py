"""What devices captured or recorded, merged into one file: each row once, with its label and its provenance."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

from converter.cli import main
from converter.commands.inspect import manifest_of
from converter.data import read_data
from converter.labelling.decisions import Decision, LabelFile
from converter.spec import Spec
from edge_runtime.bundle.manifest import Channel, Input
from edge_runtime.capture.entries import CapturedChannel, Labelled
from edge_runtime.errors import CommandError
from edge_runtime.recordings.folder import About, RecordedChannel, write_about
from tests.support.captured import captured, numbered, write_captures


def _label(folder: Path, **labels: str | None) -> None:
    file = LabelFile(folder)
    for number, label in labels.items():
        file.add(Decision(id=f"room/comfort/-/1/{number[1:]}", label=label, time=1.0))


def _made(tmp_path: Path, *words: object) -> dict[str, np.ndarray]:
    out = tmp_path / "data.npz"
    assert main(["dataset", *map(str, words), "-o", str(out)]) == 0
    with np.load(out) as found:
        return dict(found)


def _refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["dataset", *map(str, words)]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    return err


def test_a_fleet_is_merged_without_doubles_and_with_its_provenance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was brought in twice, and one of another device with windows of the same values."""
    write_captures(tmp_path / "one" / "room", numbered(6))
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    write_captures(tmp_path / "two", numbered(3, device="cellar", key="a"), device="cellar", version="2.0.0")
    found = _made(tmp_path, tmp_path / "one", tmp_path / "again", tmp_path / "two")
    assert found["x"].shape == (9, 2, 2)
    assert sorted(found["x"][:, 0, 0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    assert len(set(found["id"].tolist())) == 9
    assert "y" not in found
    rows = dict(zip(found["id"].tolist(), range(9), strict=True))
    row = rows["cellar/comfort/a/1/2"]
    assert [found[name][row] for name in ("device", "key", "version", "predicted", "reasons", "time")] == [
        "cellar",
        "a",
        "2.0.0",
        "low",
        "uncertain",
        1_700_000_002.0,
    ]
    assert found["channels"].tolist() == ["temperature", "humidity"]
    assert str(tmp_path / "two") in str(found["folder"][row])
    assert "9 windows of 2 x 2 from 2 devices; no label; left out: 6 doubles" in capsys.readouterr().out


def test_labels_of_people_come_before_those_of_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last decision counts, one that was taken back does not, and what has no label is left out and counted."""
    answered = [
        Labelled(id=f"room/comfort/-/1/{number}", model="comfort", label=label, time=2.0)
        for number, label in ((0, "low"), (1, "low"), (4, "high"))
    ]
    write_captures(tmp_path / "c", [*numbered(6), *answered])
    _label(tmp_path / "c", _1="low", _2="high", _3="high")
    _label(tmp_path / "c", _1="high", _3=None)
    found = _made(tmp_path, tmp_path / "c")
    assert dict(zip(found["id"].tolist(), found["y"].tolist(), strict=True)) == {
        "room/comfort/-/1/0": "low",
        "room/comfort/-/1/1": "high",
        "room/comfort/-/1/2": "high",
        "room/comfort/-/1/4": "high",
    }
    assert "3 high, 1 low; left out: 2 without a label" in capsys.readouterr().out
    everything = _made(tmp_path, tmp_path / "c", "--all")
    assert len(everything["x"]) == 6
    assert "y" not in everything


def test_labels_that_contradict_each_other_leave_the_window_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two devices as of two people; it is named."""
    answered = [
        Labelled(id=f"room/comfort/-/1/{number}", model="comfort", label=label, time=2.0)
        for number, label in ((0, "low"), (0, "high"), (1, "low"), (1, "low"))
    ]
    write_captures(tmp_path / "a", [*numbered(4), *answered])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    _label(tmp_path / "a", _2="low")
    _label(tmp_path / "b", _2="high")
    found = _made(tmp_path, tmp_path / "a", tmp_path / "b")
    assert found["id"].tolist() == ["room/comfort/-/1/1"]
    out, err = capsys.readouterr()
    assert "2 with contradicting labels" in out
    assert "room/comfort/-/1/0: its labels contradict each other" in err
    assert "room/comfort/-/1/2: its labels contradict each other" in err


def test_captures_that_do_not_belong_together_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other channels, another unit, another length, another model: their numbers mean different things."""
    one = write_captures(tmp_path / "one", numbered(2))
    out = ("-o", tmp_path / "data.npz")
    swapped = (CapturedChannel("humidity"), CapturedChannel("temperature", "C"))
    other = write_captures(tmp_path / "swapped", numbered(2, start=9), channels=swapped)
    text = _refused(capsys, one, other, *out)
    assert "expected channels as in" in text
    assert "temperature (C), humidity, found humidity, temperature (C)" in text
    long = write_captures(tmp_path / "long", [captured(np.zeros((4, 2)), "room/comfort/-/1/99")], shape=(4, 2))
    assert "2 x 2, found 4 x 2" in _refused(capsys, one, long, *out)
    model = write_captures(tmp_path / "model", numbered(2, start=50), model="other")
    assert "expected captures of one model, found comfort, other: choose one with --model" in _refused(
        capsys, one, model, *out
    )
    assert not (tmp_path / "data.npz").exists()
    found = _made(tmp_path, one, model, "--model", "other")
    assert found["x"][:, 0, 0].tolist() == [50, 51]


def test_what_is_no_folder_of_captures_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None, a file, an empty folder, a file of another kind, labels that cannot be read."""
    out = ("-o", tmp_path / "data.npz")
    assert "expected a folder of captures or a recording, found none" in _refused(capsys, tmp_path / "no", *out)
    (tmp_path / "file").write_text("x")
    assert "found a file" in _refused(capsys, tmp_path / "file", *out)
    (tmp_path / "empty").mkdir()
    assert "expected captures, found no file" in _refused(capsys, tmp_path / "empty", *out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "part-00000001.captures").write_bytes(b"something else")
    assert "expected a file of captures, found another kind" in _refused(capsys, tmp_path / "other", *out)
    one = write_captures(tmp_path / "one", numbered(2))
    assert "expected a name that ends in .npz" in _refused(capsys, one, "-o", tmp_path / "data.csv")
    (one / "labels.jsonl").write_text('{"id": "a"}\n[]\n')
    assert "line 2: expected a decision" in _refused(capsys, one, *out)


def test_a_torn_end_is_named_and_the_rest_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brought in while a daemon was writing."""
    folder = write_captures(tmp_path / "c", numbered(5))
    part = next(folder.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-10])
    assert len(_made(tmp_path, folder)["x"]) == 4
    assert "bytes of it are no whole capture" in capsys.readouterr().err


def _recording(folder: Path, rows: list[tuple[float, str, str]], channels: tuple[str, ...] = ("a", "b")) -> Path:
    """Rows of (number, key, label)."""
    folder.mkdir()
    about = About(
        device="room",
        source="imu",
        channels=[RecordedChannel(name) for name in channels],
        key="site",
        label="label",
        sessions=[1, 2],
        rate_hz=10.0,
    )
    write_about(folder, about)
    lines = [f"{number},{key},{number},{-number},{label}" for number, key, label in rows]
    head = ",".join(about.columns)
    half = len(lines) // 2
    (folder / "part-000001.csv").write_text("\n".join([head, *lines[:half]]) + "\n")
    (folder / "part-000002.csv").write_text("\n".join([head, *lines[half:]]) + "\n")
    return folder


def test_recordings_become_readings_in_their_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each once; a group is a session and a key, so that no window goes over either."""
    one = _recording(tmp_path / "one", [(float(n), "ab"[n % 2], "walk" if n < 6 else "run") for n in range(12)])
    shutil.copytree(one, tmp_path / "copy")
    two = _recording(tmp_path / "two", [(float(n), "a", "") for n in range(20, 24)])
    found = _made(tmp_path, one, tmp_path / "copy", two)
    assert found["x"].tolist() == [[float(n), -float(n)] for n in range(12)]
    assert found["y"].tolist() == ["walk"] * 6 + ["run"] * 6
    assert len(set(found["group"].tolist())) == 4
    assert found["key"].tolist() == ["a", "b"] * 6
    assert found["channels"].tolist() == ["a", "b"]
    assert "left out: 12 doubles, 4 without a label" in capsys.readouterr().out


def test_a_recording_that_was_labelled_later_builds_with_these_labels(tmp_path: Path) -> None:
    """A label of a segment holds for its readings, before that of the recording."""
    folder = _recording(tmp_path / "r", [(float(n), "a", "walk") for n in range(200)])
    file = LabelFile(folder)
    for session in (0, 1):
        file.add(Decision(id=f"{session}/a/50+50", label="run", time=1.0))
    spec, wanted = Spec(), Input(channels=(Channel("b"), Channel("a")))
    found = read_data(folder, spec, wanted)
    assert found.truth is not None
    numbers = found.windows[:, 0, 1].tolist()
    assert dict(zip(numbers, found.truth.tolist(), strict=True)) == {
        float(n): "run" if n % 100 >= 50 else "walk" for n in range(200)
    }
    assert found.windows[:, 0, 0].tolist() == [-number for number in numbers]
    file.add(Decision(id="2/a/0+5", label="run", time=1.0))
    with pytest.raises(CommandError, match="which is not in this recording"):
        read_data(folder, spec, wanted)


def test_recordings_of_other_channels_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As captures are, and a recording beside captures."""
    out = ("-o", tmp_path / "data.npz")
    one = _recording(tmp_path / "one", [(float(n), "a", "x") for n in range(4)])
    two = _recording(tmp_path / "two", [(float(n), "a", "x") for n in range(4)], ("a", "c"))
    assert "expected the channels of" in _refused(capsys, one, two, *out)
    three = write_captures(tmp_path / "three", numbered(2))
    assert f"{three}: expected a recording as {one} is one" in _refused(capsys, one, three, *out)


def test_a_model_is_built_from_captures_as_they_are(tmp_path: Path) -> None:
    """From the folder, and from the merged file: the same reference, as both hold the same windows."""
    rng = np.random.default_rng(0)
    windows = [
        captured(
            rng.normal(number % 2, 0.1, (2, 2)),
            f"room/comfort/-/1/{number}",
            time=1_700_000_000.0 + number,
        )
        for number in range(80)
    ]
    folder = write_captures(tmp_path / "c", windows)
    _label(folder, **{f"_{number}": ("low", "high")[number % 2] for number in range(80)})
    data = _made(tmp_path, folder)
    model = LogisticRegression().fit(data["x"].reshape(80, 4), data["y"])
    skops.io.dump(model, tmp_path / "m.skops")
    (tmp_path / "spec.toml").write_text(
        'name = "comfort"\nversion = "1.1.0"\n[window]\nlength = 2\nstride = 2\n'
        '[[channel]]\nname = "temperature"\n[[channel]]\nname = "humidity"\n'
    )
    found = []
    for name, source in (("folder", folder), ("file", tmp_path / "data.npz")):
        out = tmp_path / f"{name}.onnx"
        words = ["build", str(tmp_path / "m.skops"), "--spec", str(tmp_path / "spec.toml"), "--data", str(source)]
        assert main([*words, "--quantize", "none", "-o", str(out)]) == 0
        found.append(manifest_of(out))
    assert found[0].reference == found[1].reference
    assert found[0].output.labels == ("high", "low")


def test_a_model_of_several_labels_is_built_from_captures_with_their_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The truth that a device took is a column a label; a person's answer for a window replaces it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2, 2)).astype(np.float32)
    truth = np.stack([x[:, 0, 0] > 0, x[:, 1, 1] > 0.3], axis=1).astype(float)
    ids = [f"room/comfort/-/1/{number}" for number in range(60)]
    windows = [captured(x[place], each, time=1_700_000_000.0 + place, label=None) for place, each in enumerate(ids)]
    answered = [
        Labelled(
            id=each,
            model="comfort",
            label=None,
            time=2.0,
            values=dict(zip(("hot", "wet"), truth[place].tolist(), strict=True)),
        )
        for place, each in enumerate(ids)
    ]
    folder = write_captures(tmp_path / "c", [*windows, *answered], task="multilabel", labels=("hot", "wet"))
    data = _made(tmp_path, folder)
    order = [ids.index(each) for each in data["id"].tolist()]
    assert data["y"].tolist() == truth[order].tolist()
    model = MultiOutputClassifier(LogisticRegression()).fit(data["x"].reshape(60, 4), data["y"])
    skops.io.dump(model, tmp_path / "m.skops")
    (tmp_path / "spec.toml").write_text(
        'labels = ["hot", "wet"]\n[window]\nlength = 2\nstride = 2\n'
        '[[channel]]\nname = "temperature"\n[[channel]]\nname = "humidity"\n'
    )
    words = ["build", str(tmp_path / "m.skops"), "--spec", str(tmp_path / "spec.toml"), "--data", str(folder)]
    assert main([*words, "--quantize", "none", "-o", str(tmp_path / "m.onnx")]) == 0
    assert manifest_of(tmp_path / "m.onnx").output.labels == ("hot", "wet")
    capsys.readouterr()
    assert main(["label", str(folder), "--no-browser", "--labels", "hot"]) == 1
    assert "--labels: expected none, since the model names hot, wet itself" in capsys.readouterr().err
    other = {"hot": 1.0 - float(truth[7, 0]), "wet": float(truth[7, 1])}
    LabelFile(folder).add(Decision(id=ids[7], values=other, time=3.0))
    again = _made(tmp_path, folder)
    changed = truth.copy()
    changed[7] = list(other.values())
    assert again["y"].tolist() == changed[[ids.index(each) for each in again["id"].tolist()]].tolist()


def test_captures_of_other_channels_build_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An excluded channel cannot be trained on."""
    folder = write_captures(tmp_path / "c", numbered(20))
    skops.io.dump(LogisticRegression().fit(np.eye(4), ["a", "b", "a", "b"]), tmp_path / "m.skops")
    (tmp_path / "spec.toml").write_text('[window]\nlength = 4\n[[channel]]\nname = "temperature"\n')
    words = ["build", str(tmp_path / "m.skops"), "--spec", str(tmp_path / "spec.toml"), "--data", str(folder)]
    assert main([*words, "-o", str(tmp_path / "m.onnx")]) == 1
    assert "expected captures of 4 x 1 (temperature), found 2 x 2 (temperature, humidity)" in capsys.readouterr().err


def test_compare_refuses_a_model_that_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By more than was allowed, with exit code 1; without the option it only shows both."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    truth = np.where(x[:, 0] > 0, "high", "low")
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32), y=truth)
    (tmp_path / "spec.toml").write_text('[[channel]]\nname = "a"\n[[channel]]\nname = "b"\n')
    bundles = {}
    for name, labels in (("good", truth), ("bad", np.where(x[:, 1] > 0, "high", "low"))):
        skops.io.dump(LogisticRegression().fit(x, labels), tmp_path / f"{name}.skops")
        bundles[name] = str(tmp_path / f"{name}.onnx")
        words = ["build", str(tmp_path / f"{name}.skops"), "--spec", str(tmp_path / "spec.toml"), "--quantize", "none"]
        assert main([*words, "-o", bundles[name]]) == 0
    data = ["--data", str(tmp_path / "data.npz")]
    capsys.readouterr()
    assert main(["compare", bundles["good"], bundles["bad"], *data]) == 0
    shown = capsys.readouterr().out
    assert "accuracy of B less that of A: -0." in shown
    assert "(paired bootstrap over 60 rows)\nright by A only: " in shown
    assert main(["compare", bundles["bad"], bundles["good"], *data, "--max-drop", "0"]) == 0
    assert main(["compare", bundles["good"], bundles["good"], *data, "--max-drop", "0"]) == 0
    assert main(["compare", bundles["good"], bundles["bad"], *data, "--max-drop", "1"]) == 0
    capsys.readouterr()
    assert main(["compare", bundles["good"], bundles["bad"], *data, "--max-drop", "0.05"]) == 1
    assert "accuracy: expected at least" in capsys.readouterr().err
    assert main(["compare", bundles["good"], bundles["bad"], *data, "--max-drop", "nan"]) == 1
