"""A watch on a serial port: the device recognises activities of people it has never met, as the workstation would."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from converter import demo
from tests.conftest import MakeDaemon, MakePort, MakeSubscriber
from tests.support.broker import Mosquitto
from tests.support.workshop import Workshop

pytestmark = [pytest.mark.system, pytest.mark.shared_data]

WINDOWS_PER_RECORDING = (100 - demo.LENGTH) // demo.STRIDE + 1


def test_recordings_over_a_port_are_recognised(
    shared_data: Path,
    workshop: Workshop,
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    make_port: MakePort,
) -> None:
    """Forty held-out recordings, line by line over a port: 0.90 or better with int8, and no label differs from offline.

    A gap in the readings' own times ends a recording, so no window holds parts of two.
    """
    folder = shared_data / "basic-motions"
    train, held_out = (demo.read_recordings(folder / f"BasicMotions_{part}.ts") for part in ("TRAIN", "TEST"))
    x, y = demo.cut(*train)
    windows, truth = demo.cut(*held_out)
    model = demo.fit(x, y)
    bundles = {
        quantize: workshop.build(
            f"activity-{quantize}",
            lambda: model,
            demo.specification(),
            calibration=(x, y),
            evaluation=(windows, truth),
            quantize=quantize,
        )
        for quantize in ("none", "int8")
    }
    port = make_port("watch")
    client = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(_device(mosquitto, bundles, port.path)).start()
    client.wait_for_text("edge/watch/status", "online")
    port.write(b"\n")  # a reader drops what stands before the first line end
    for number, recording in enumerate(held_out[0]):
        lines = (
            f"{1_700_000_000 + 60 * number + tick / demo.RATE_HZ:.1f}," + ",".join(map(str, reading))
            for tick, reading in enumerate(recording)
        )
        port.write("".join(f"{line}\n" for line in lines).encode())
    answers = {
        quantize: [message.document for message in client.wait_for(len(truth), f"edge/watch/{quantize}/")]
        for quantize in bundles
    }
    assert daemon.stop() == 0
    for predictions in answers.values():
        assert len(predictions) == len(truth), "no window runs over the border of two recordings"
        assert [p["time"] for p in predictions[:2]] == ["2023-11-14T22:13:24.900000Z", "2023-11-14T22:13:27.400000Z"]
    labels = {quantize: np.array([p["label"] for p in predictions]) for quantize, predictions in answers.items()}
    assert (labels["none"] == model.predict(windows)).all()
    assert (labels["int8"] == _offline(bundles["int8"], windows, model.classes_)).all()
    assert np.mean(labels["int8"] == truth) >= 0.90


def _offline(bundle: Path, windows: Any, classes: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as on a board, on every x86
    session = onnxruntime.InferenceSession(bundle, options, providers=["CPUExecutionProvider"])
    return classes[session.run(["label"], {"window": windows})[0]]


def _device(broker: Mosquitto, bundles: dict[str, Path], port: Path) -> str:
    fields = ", ".join(f'"{name}"' for name in ("time", *demo.CHANNELS))
    models = "".join(
        f'[[model]]\nname = "{name}"\nbundle = "{bundle}"\nsource = "watch"\nmax_gap = 1.0\n'
        for name, bundle in bundles.items()
    )
    return f"""
[device]
id = "watch"

[[source]]
name = "watch"
type = "serial"
port = "{port}"
fields = [{fields}]

{models}
[upstream]
url = "{broker.url}"
"""
