"""A machine's temperature, replayed through the daemon: the alarms lie where people have marked trouble."""

from pathlib import Path

import pytest

from examples import machine_temperature
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support.broker import Mosquitto
from tests.support.installed import ROOT
from tests.support.workshop import Workshop

pytestmark = [pytest.mark.system, pytest.mark.shared_data, pytest.mark.slow]


def test_a_replayed_recording_gives_the_alarms_of_the_page(
    shared_data: Path,
    workshop: Workshop,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
) -> None:
    """Every labelled window holds an alarm, few lie outside, and `docs/anomaly.md` has these very figures."""
    folder = shared_data / "nab-machine-temperature"
    recording = machine_temperature.read_recording(folder)
    windows = machine_temperature.training_windows(recording)
    bundle = workshop.build(
        "machine-temperature",
        lambda: machine_temperature.fit(windows),
        machine_temperature.SPECIFICATION,
        calibration=(windows, None),
        evaluation=(windows, None),
        quantize="auto",
    )
    client = make_subscriber(mosquitto.port, "edge/machine/temperature/#")
    daemon = make_daemon(
        machine_temperature.device_file(folder / machine_temperature.RECORDING, bundle, mosquitto.url)
    ).start()
    count = machine_temperature.expected_predictions(recording)
    predictions = [message.document for message in client.wait_for(count, deadline=90)]
    assert daemon.stop() == 0
    assert len(predictions) == count
    figures = machine_temperature.evaluate(predictions, recording)
    assert figures.windows_found == 4
    assert figures.alarms_outside < 0.01 * count
    page = (ROOT / "docs" / "anomaly.md").read_text()
    assert f"{figures.alarms_outside} of {count:,} predictions are alarms outside" in page
    for alarms in figures.alarms_in_window:
        assert f"| {alarms} |" in page
