"""The rate of the readings is part of what a model was trained on: another rate is reported, or resampled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter import demo
from edge_runtime.batch.run import PredictOptions, PredictSummary, predict
from edge_runtime.cli import main
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support.broker import Mosquitto
from tests.support.workshop import Workshop

pytestmark = [pytest.mark.system, pytest.mark.shared_data]

RIGHT = 0.983  # of the 120 held-out windows, at the ten readings a second that the model was trained on
START = 1_700_000_000


@pytest.fixture(scope="module")
def held_out(shared_data: Path) -> tuple[Floats, NDArray[np.str_]]:
    """Forty recordings of ten seconds, and what was done in each."""
    return demo.read_recordings(shared_data / "basic-motions" / "BasicMotions_TEST.ts")


@pytest.fixture
def bundle(workshop: Workshop, shared_data: Path, held_out: tuple[Floats, NDArray[np.str_]]) -> Path:
    """The demonstration's model: 50 readings at 10 Hz."""
    x, y = demo.cut(*demo.read_recordings(shared_data / "basic-motions" / "BasicMotions_TRAIN.ts"))
    model = demo.fit(x, y)
    return workshop.build(
        "activity-int8",
        lambda: model,
        demo.specification(),
        calibration=(x, y),
        evaluation=demo.cut(*held_out),
        quantize="int8",
    )


def at(recording: Floats, rate_hz: float) -> list[dict[str, float]]:
    """A recording as a sensor of another rate would have measured it: on the straight lines between its readings."""
    moments = np.arange(len(recording)) / demo.RATE_HZ
    wanted = np.arange(round(moments[-1] * rate_hz) + 1) / rate_hz
    columns = [np.interp(wanted, moments, column) for column in recording.T]
    return [
        {"time": START + float(moment), **dict(zip(demo.CHANNELS, map(float, row), strict=True))}
        for moment, row in zip(wanted, np.column_stack(columns), strict=True)
    ]


def record(folder: Path, held_out: tuple[Floats, NDArray[np.str_]], rate_hz: float) -> list[str]:
    """A file of JSON Lines for each recording, with its key and its truth."""
    files = []
    for number, (recording, truth) in enumerate(zip(*held_out, strict=True)):
        path = folder / f"{rate_hz:g}-{number:02d}.jsonl"
        rows = [{**reading, "who": f"r{number}", "truth": str(truth)} for reading in at(recording, rate_hz)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(str(path))
    return files


def accuracy(outcome: PredictSummary) -> float:
    """The share of the windows whose label is right."""
    assert outcome.judgement is not None
    right = sum(row.get(label, 0) for label, row in outcome.judgement.confusion.items())
    return right / outcome.judgement.judged


def test_predict_notices_another_rate_and_brings_it_to_the_models(
    tmp_path: Path, bundle: Path, held_out: tuple[Floats, NDArray[np.str_]], capfd: pytest.CaptureFixture[str]
) -> None:
    """At 20 and 50 Hz `warn` names both rates, `resample` is within 0.02 of 0.983, and `reject` uses nothing."""

    def run(rate_hz: float, on_rate: Any) -> PredictSummary:
        files = record(tmp_path, held_out, rate_hz)
        return predict(PredictOptions(bundle, files, None, time="time", truth=("truth",), on_rate=on_rate, workers=1))

    assert accuracy(run(10.0, "warn")) == pytest.approx(RIGHT, abs=0.01)  # int8: one window more or less
    assert accuracy(run(10.0, "resample")) == accuracy(run(10.0, "warn"))
    for rate_hz in (20.0, 50.0):
        assert accuracy(run(rate_hz, "warn")) < 0.75
        assert accuracy(run(rate_hz, "resample")) == pytest.approx(RIGHT, abs=0.02)
        assert run(rate_hz, "resample").rate_hz == pytest.approx(rate_hz, rel=0.01)
    with pytest.raises(CommandError, match=r"none of \d+ readings could be used: wrong_rate \d+"):
        run(20.0, "reject")
    files = record(tmp_path, held_out, 20.0)
    options = ["-o", str(tmp_path / "o.csv"), "--time", "time", "--workers", "1"]
    assert main(["predict", str(bundle), *files, *options]) == 0
    stderr = capfd.readouterr().err
    assert "expected readings at 10 Hz (rate_hz of the bundle), found 20 Hz: a window of 50 readings is 2.5 s" in stderr
    assert "instead of 5 s: --on-rate resample brings them to it" in stderr


def test_resampling_changes_no_bit_of_a_stream_at_the_right_rate(
    tmp_path: Path, bundle: Path, held_out: tuple[Floats, NDArray[np.str_]]
) -> None:
    """The outputs of `warn` and `resample` are the same file."""
    files = record(tmp_path, held_out, 10.0)
    for on_rate in ("warn", "resample"):
        request = PredictOptions(bundle, files, tmp_path / f"{on_rate}.csv", time="time", on_rate=on_rate, workers=1)
        predict(request)
    assert (tmp_path / "warn.csv").read_bytes() == (tmp_path / "resample.csv").read_bytes()


def test_the_daemon_says_so_and_resamples(
    tmp_path: Path,
    bundle: Path,
    held_out: tuple[Floats, NDArray[np.str_]],
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
) -> None:
    """At 20 Hz one model warns and another one resamples: a line in the log, the state in health, and right answers."""
    files = json.dumps(record(tmp_path, held_out, 20.0))
    models = "".join(
        f'[[model]]\nname = "{name}"\nbundle = "{bundle}"\nsource = "watch"\non_rate = "{name}"\n'
        for name in ("warn", "resample")
    )
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(
        f'[device]\nid = "rates"\nhealth_interval = 0.5\n[[source]]\nname = "watch"\ntype = "replay"\nfiles = {files}\n'
        f'speed = "full"\nkey = "who"\n{models}[upstream]\nurl = "{mosquitto.url}"\n'
    ).start()
    truth = {f"r{number}": str(label) for number, label in enumerate(held_out[1])}
    found: dict[str, list[bool]] = {}
    for name, count in (("warn", 240), ("resample", 80)):
        messages = client.wait_for(count, f"edge/rates/{name}/", deadline=120)
        found[name] = [message.document["label"] == truth[message.document["key"]] for message in messages]
    health = client.wait_for(1, "edge/rates/health")[-1].document
    deadline = 200
    while health["models"]["resample"]["rate"] != "off" and deadline:
        deadline -= 1
        health = client.wait_for(201 - deadline, "edge/rates/health")[-1].document
    assert daemon.stop() == 0
    assert np.mean(found["resample"]) >= RIGHT - 0.02
    assert np.mean(found["warn"]) < 0.75
    for name in ("warn", "resample"):
        assert health["models"][name]["rate"] == "off"
        assert health["models"][name]["rate_hz"] == pytest.approx(20.0, rel=0.01)
    assert "expected readings at 10 Hz (rate_hz of the bundle), found 20 Hz" in daemon.log
    assert "they are resampled" in daemon.log
