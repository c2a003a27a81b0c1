"""A room's sensors over a real broker: every reading is answered, and the device agrees with the workstation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support.broker import Mosquitto
from tests.support.recordings import OCCUPANCY_CHANNELS, OCCUPANCY_SPEC, Table, read_occupancy, train_occupancy
from tests.support.subscriber import Message
from tests.support.workshop import Workshop

pytestmark = [pytest.mark.system, pytest.mark.shared_data, pytest.mark.slow]

LABELS = np.array(["empty", "occupied"])


def test_every_reading_is_answered_as_the_workstation_would(
    shared_data: Path,
    workshop: Workshop,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
) -> None:
    """Each of 12,417 readings of two rooms gets one prediction from each of two models, over MQTT.

    The float bundle's labels are scikit-learn's on at least 99.9 % of them; int8 costs at most one point of accuracy.
    """
    folder = shared_data / "uci-occupancy"
    training = read_occupancy(folder / "datatraining.txt")
    rooms = {"room-a": read_occupancy(folder / "datatest.txt"), "room-b": read_occupancy(folder / "datatest2.txt")}
    model = train_occupancy(training)
    bundles = {
        quantize: workshop.build(
            f"occupancy-{quantize}",
            lambda: model,
            OCCUPANCY_SPEC,
            calibration=(training.x[::4], training.y[::4]),
            evaluation=(rooms["room-a"].x, rooms["room-a"].y),
            quantize=quantize,
        )
        for quantize in ("none", "int8")
    }
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(_device(mosquitto, bundles)).start()
    client.wait_for_text("edge/office/status", "online")
    for room, table in rooms.items():
        for number, row in enumerate(table.x):
            reading = dict(zip(OCCUPANCY_CHANNELS, map(float, row), strict=True))
            client.publish(f"sensors/{room}/climate", {**reading, "seq": number})
    client.flush(60)
    total = sum(len(table.x) for table in rooms.values())
    for quantize in bundles:
        client.wait_for(total, f"edge/office/{quantize}/", deadline=60)
    assert daemon.stop() == 0
    reconnected = daemon.log.count("connected to") > 1
    answers = {
        quantize: _answers(client.on(f"edge/office/{quantize}/"), rooms, repeats=reconnected) for quantize in bundles
    }
    offline = {room: LABELS[model.predict(table.x)] for room, table in rooms.items()}
    agreement = np.mean(np.concatenate([answers["none"][room] == offline[room] for room in rooms]))
    assert agreement >= 0.999, f"the float bundle agrees on {agreement:.5f}"
    accuracy = {quantize: _accuracy(answers[quantize], rooms) for quantize in bundles}
    workstation = _accuracy(offline, rooms)
    assert accuracy["int8"] >= workstation - 0.01, f"int8 {accuracy['int8']:.4f}, scikit-learn {workstation:.4f}"


def _device(broker: Mosquitto, bundles: dict[str, Path]) -> str:
    models = "".join(
        f'[[model]]\nname = "{name}"\nbundle = "{bundle}"\nsource = "climate"\n' for name, bundle in bundles.items()
    )
    return f"""
[device]
id = "office"

[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/{{key}}/climate"]

{models}
[upstream]
url = "{broker.url}"

[outbox]
path = "office.db"
"""


def _answers(messages: list[Message], rooms: dict[str, Table], *, repeats: bool) -> dict[str, NDArray[Any]]:
    """The label of every reading, by room and in the order of the readings; repeats only after a lost connection."""
    found: dict[str, dict[int, str]] = {room: {} for room in rooms}
    for message in messages:
        prediction = message.document
        room, number = prediction["key"], int(prediction["id"].rpartition("/")[2])
        assert repeats or number not in found[room], f"answered twice: {prediction['id']}"
        label = found[room].setdefault(number, prediction["label"])
        assert label == prediction["label"], "a repeat says the same"
    for room, table in rooms.items():
        assert sorted(found[room]) == list(range(len(table.x)))
    return {room: np.array([found[room][number] for number in sorted(found[room])]) for room in rooms}


def _accuracy(labels: dict[str, NDArray[Any]], rooms: dict[str, Table]) -> float:
    return float(np.mean(np.concatenate([labels[room] == LABELS[table.y] for room, table in rooms.items()])))
