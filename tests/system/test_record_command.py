"""`edge-runtime record`: readings before any model exists; what is written replays, predicts and trains as it is."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.cli import main
from edge_runtime.recordings.folder import joined, parts_of, read_about
from tests.conftest import MakePort
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.installed import Installed, clean_environment
from tests.support.ports import VirtualPort
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system


def device(folder: Path, source: str, url: str = "mqtt://127.0.0.1:1") -> Path:
    """A device file without a model."""
    path = folder / "room.toml"
    path.write_text(f'[device]\nid = "room"\n[[source]]\nname = "s"\n{source}\n[upstream]\nurl = "{url}"\n')
    return path


def begin(installed: Installed, path: Path, folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """A recording that runs."""
    return subprocess.Popen(
        [str(installed.edge_runtime), "record", str(path), "-o", str(folder), *options],
        env=clean_environment(),
        cwd=path.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    """All readings of a recording, by the standard library's reader."""
    return list(csv.DictReader(joined(folder)[0].decode().splitlines()))


def wait_for_rows(folder: Path, count: int) -> None:
    """Until so many readings are on the disk."""
    wait_until(
        lambda: (folder / "recording.json").exists() and len(rows_of(folder)) >= count, f"{count} rows", deadline=20
    )


def wait_for_reader(port: VirtualPort, process: "subprocess.Popen[bytes]") -> None:
    """Until the process has the port open; then a line that is dropped, since it may be torn."""
    device = str(port.path.resolve())
    folder = Path(f"/proc/{process.pid}/fd")

    def is_open() -> bool:
        return any(os.path.lexists(each) and os.path.realpath(each) == device for each in folder.iterdir())

    wait_until(is_open, "an open port", deadline=30)
    port.write(b"torn\n")


def send(port: VirtualPort, values: list[tuple[float, float]]) -> None:
    """Lines of two numbers."""
    port.write(b"".join(b"%r,%r\n" % pair for pair in values))


def test_a_recording_replays_to_the_same_bits_and_predicts_and_builds_as_it_is(
    installed: Installed, make_port: MakePort, tmp_path: Path
) -> None:
    """Two labelled runs into one folder; then `type = "replay"`, `predict` and `edge-convert build --data` read it."""
    port = make_port("imu")
    path = device(tmp_path, f'type = "serial"\nport = "{port.path}"\nfields = ["x", "y"]')
    folder = tmp_path / "rec"
    rng = np.random.default_rng(5)
    sent: list[tuple[float, float]] = []
    for label, centre in (("calm", 0.0), ("shaken", 5.0)):
        values = [(float(x), float(y)) for x, y in rng.normal(centre, 1.0, size=(60, 2))]
        running = begin(installed, path, folder, "--label", label)
        wait_for_reader(port, running)
        send(port, values)
        wait_for_rows(folder, len(sent) + len(values))
        running.send_signal(signal.SIGINT)
        assert running.wait(patient(20)) == 0, running.stderr.read() if running.stderr else ""
        assert running.stderr is not None
        running.stderr.close()
        sent += values
    about = read_about(folder)
    assert [each.name for each in about.channels] == ["x", "y"]
    assert (about.label, about.key, about.sessions, about.readings) == ("label", None, [1, 2], len(rows_of(folder)))
    assert about.ended is not None
    found = [(row["x"], row["y"]) for row in rows_of(folder)]
    wanted = [(np.float32(x), np.float32(y)) for x, y in sent]
    got = [(np.float32(float(x)), np.float32(float(y))) for x, y in found]
    assert got == wanted, "the same bits, each once and in order"
    assert {row["label"] for row in rows_of(folder)} == {"calm", "shaken"}

    bundle = builders.regression(channels=("x", "y"), targets=("t",)).save(tmp_path / "b.onnx")
    played = tmp_path / "played.toml"
    played.write_text(
        f'[device]\nid = "room"\n[[source]]\nname = "s"\ntype = "replay"\npath = "{folder}"\nspeed = "full"\n'
        f'[[model]]\nname = "m"\nbundle = "{bundle}"\nsource = "s"\n[upstream]\nurl = "mqtt://127.0.0.1:1"\n'
    )
    tried = installed.run(installed.edge_runtime, "try", played, "--json", cwd=tmp_path)
    events = [json.loads(line) for line in tried.stdout.splitlines()]
    readings = [event["reading"] for event in events if event["event"] == "reading"]
    assert [(np.float32(each["x"]), np.float32(each["y"])) for each in readings] == got
    answers = [event["prediction"]["values"]["t"] for event in events if event["event"] == "prediction"]
    scored = tmp_path / "scored.csv"
    done = installed.run(installed.edge_runtime, "predict", bundle, folder, "-o", scored, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with scored.open() as file:
        predicted = [float(next(value for name, value in row.items() if name == "t")) for row in csv.DictReader(file)]
    assert [np.float32(value) for value in predicted] == [np.float32(value) for value in answers]


def test_a_model_is_built_from_a_recording(installed: Installed, tmp_path: Path) -> None:
    """`edge-convert build --data DIR`: the label is known, no window goes over a session, both halves see label."""
    import skops.io  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - most system tests need it not

    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(0, 1, (200, 2)), rng.normal(5, 1, (200, 2))]).astype(np.float32)
    y = np.array(["calm"] * 200 + ["shaken"] * 200)
    recording = tmp_path / "room.csv"
    path = device(tmp_path, f'type = "replay"\nfiles = ["{recording}"]\nspeed = "full"')
    for label in ("calm", "shaken"):
        rows = "".join(f"{a!r},{b!r}\n" for a, b in x[y == label].astype(float).tolist())
        recording.write_text("x,y\n" + rows)
        done = installed.run(
            installed.edge_runtime,
            *("record", path, "-o", tmp_path / "rec", "--label", label, "--channels", "x,y"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    skops.io.dump(LogisticRegression().fit(x, y), tmp_path / "m.skops")
    (tmp_path / "spec.toml").write_text('task = "classification"\n[[channel]]\nname = "x"\n[[channel]]\nname = "y"\n')
    built = installed.run(
        installed.edge_convert,
        *("build", tmp_path / "m.skops", "--spec", tmp_path / "spec.toml", "--data", tmp_path / "rec"),
        *("--quantize", "none", "-o", tmp_path / "m.onnx"),
        cwd=tmp_path,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "m.onnx").exists()


def test_topics_give_keys_and_the_first_message_the_channels(
    installed: Installed, mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path
) -> None:
    """JSON names its values itself: numbers become channels, `time` and text do not."""
    path = device(tmp_path, 'type = "mqtt"\ntopics = ["s/{key}"]', mosquitto.url)
    folder = tmp_path / "rec"
    running = begin(installed, path, folder)
    wait_until(lambda: "edge-rec-" in mosquitto.log and "s/+" in mosquitto.log, "a subscription")
    for number in range(10):
        document = {"time": 1_764_331_200 + number, "room": "north", "t": 20.1 + number, "h": 40, "id": number}
        subscriber.publish(f"s/{'ab'[number % 2]}", document)
    wait_for_rows(folder, 10)
    running.send_signal(signal.SIGTERM)
    assert running.wait(patient(20)) == 0
    assert running.stderr is not None
    running.stderr.close()
    bundle = builders.regression(channels=("t", "h"), targets=("v",), length=2, stride=1).save(tmp_path / "b.onnx")
    done = installed.run(installed.edge_runtime, "predict", bundle, folder, "-o", "scored.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "scored.csv").open() as file:
        keys = [row["key"] for row in csv.DictReader(file)]
    assert keys == ["a", "b"] * 4, "a window of two readings of one key: the first of each key completes none"
    about = read_about(folder)
    assert ([each.name for each in about.channels], about.key, about.own_times) == (["t", "h"], "key", True)
    assert [row["key"] for row in rows_of(folder)] == ["a", "b"] * 5
    assert [float(row["time"]) for row in rows_of(folder)] == [1_764_331_200.0 + number for number in range(10)]
    assert about.rate_hz == 0.5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_kill_loses_at_most_a_second_and_the_folder_goes_on(
    installed: Installed, make_port: MakePort, tmp_path: Path, seed: int
) -> None:
    """A kill at an odd moment; a torn line is left out; the next run writes the next part and keeps what was there."""
    port = make_port("imu")
    path = device(tmp_path, f'type = "serial"\nport = "{port.path}"\nfields = ["n"]')
    folder = tmp_path / "rec"
    running = begin(installed, path, folder)
    wait_for_reader(port, running)
    until = time.monotonic() + 1.6 + 0.3 * seed
    sent: list[tuple[float, int]] = []
    number = 0
    while time.monotonic() < until:
        port.write(b"%d\n" % number)
        sent.append((time.monotonic(), number))
        number += 1
        time.sleep(0.005)
    running.kill()
    killed = time.monotonic()
    running.wait(patient(20))
    assert running.stderr is not None
    running.stderr.close()
    kept = [int(float(row["n"])) for row in rows_of(folder)]
    assert kept == list(range(kept[0], kept[0] + len(kept)))
    assert kept[0] == 0
    lost = [moment for moment, n in sent if n > kept[-1]]
    assert not lost or killed - lost[0] < 2.0, "a second, and what this machine was late by"
    part = parts_of(folder)[-1]
    with part.open("ab") as file:
        file.write(b"17645")  # what a power cut may leave
    replay = device(tmp_path, f'type = "replay"\npath = "{folder}"\nspeed = "full"')
    again = installed.run(
        installed.edge_runtime, "record", replay, "-o", tmp_path / "copy", "--channels", "n", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert [int(float(row["n"])) for row in rows_of(tmp_path / "copy")] == kept
    second = begin(installed, path, folder)
    path.write_text(path.read_text())
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=patient(20))


def test_what_does_not_fit_is_one_sentence(installed: Installed, tmp_path: Path) -> None:
    """Other columns in the folder, a source that is not there, a folder with something else, nothing that came."""
    recording = tmp_path / "room.csv"
    recording.write_text("x,y\n1,2\n")
    path = device(tmp_path, f'type = "replay"\nfiles = ["{recording}"]\nspeed = "full"')

    def record(*options: str | Path) -> subprocess.CompletedProcess[str]:
        return installed.run(installed.edge_runtime, "record", path, *options, cwd=tmp_path)

    assert record("-o", "rec", "--channels", "x,y").returncode == 0
    for options, words in (
        (("-o", "rec", "--channels", "x"), "expected a recording of time, x, found one of time, x, y"),
        (("-o", "rec2", "--source", "none"), "expected one of the sources s, found none"),
        (("-o", "rec2"), "expected --channels"),
        (("-o", ".", "--channels", "x,y"), "expected a recording, found no recording.json"),
    ):
        done = record(*options)
        assert done.returncode == 1, done.stdout
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    silent = device(tmp_path, 'type = "serial"\nport = "/dev/none"\nfields = ["x"]')
    done = installed.run(installed.edge_runtime, "record", silent, "-o", "rec3", "--seconds", "0.5", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing was recorded: /dev/none: no such port" in done.stderr


@pytest.mark.parametrize(
    "options",
    [["--label", ""], ["--label", "two\nlines"], ["--channels", ""], ["--channels", "x,x"], ["--channels", "x,"]],
)
def test_a_label_or_a_channel_that_would_spoil_the_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str]
) -> None:
    """A line break in a label would tear lines, and a column that is there twice could not be read back: 2."""
    path = device(tmp_path, 'type = "serial"\nport = "/dev/none"\nfields = ["x", "y"]')
    assert main(["record", str(path), "-o", str(tmp_path / "rec"), *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{options[0]}: expected")
    assert not (tmp_path / "rec").exists()
