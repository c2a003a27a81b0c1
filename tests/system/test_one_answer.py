"""One installed daemon with every kind of bundle: stream, HTTP, MQTT request and batch give the same bits."""

import http.client
import json
import os
import queue
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import NAMED_TASKS
from edge_runtime.bundle.open import open_bundle
from edge_runtime.readings import Floats
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support.broker import Mosquitto
from tests.support.installed import ROOT, Installed
from tests.support.kinds import KINDS, dense_outputs, named, numbers, row_numbers
from tests.support.waiting import patient

pytestmark = pytest.mark.system

COUNT = 12  # windows of each model


@dataclass
class Kind:
    """One model of the daemon, its windows, and what the stream has reported of them."""

    name: str
    path: Path
    manifest: Manifest
    windows: Floats
    expected: bytes = b""

    @property
    def readings(self) -> list[bytes]:
        """The windows as single messages of a sensor."""
        if self.manifest.input.shape:
            return [json.dumps(frame).encode() for frame in self.windows.tolist()]
        rows = self.windows.reshape(-1, len(self.manifest.channel_names)).tolist()
        return [json.dumps(dict(zip(self.manifest.channel_names, row, strict=True))).encode() for row in rows]

    def scores(self, documents: list[Any]) -> bytes:
        """The scores of these predictions, to the bit."""
        return np.array([numbers(document, self.manifest) for document in documents], np.float32).tobytes()


def make_kinds(folder: Path) -> list[Kind]:
    """Every kind of bundle, with windows."""
    found = []
    rng = np.random.default_rng(11)
    for number, make in enumerate(KINDS.values()):
        path = make().save(folder / f"m{number}.onnx")
        manifest = open_bundle(path).manifest
        shape = (COUNT, *manifest.input.tensor_shape)
        windows = rng.normal(scale=3, size=shape).astype(np.float32)
        if manifest.input.range is not None:  # whole numbers
            least, most = map(int, manifest.input.range)
            windows = rng.integers(least, most + 1, size=shape).astype(np.float32)
        found.append(Kind(f"m{number}", path, manifest, windows))
    return found


def device(broker: Mosquitto, kinds: list[Kind], port: int) -> str:
    """A source and a model for each kind; requests over HTTP and MQTT 5."""
    tables = "".join(
        f'[[source]]\nname = "s-{kind.name}"\ntype = "mqtt"\ntopics = ["in/{kind.name}"]\n'
        f'[[model]]\nname = "{kind.name}"\nbundle = "{kind.path}"\nsource = "s-{kind.name}"\n'
        for kind in kinds
    )
    return f"""
[device]
id = "room"
{tables}
[upstream]
url = "{broker.url}"
protocol = "5"
requests = "answer"
[http]
listen = "127.0.0.1:{port}"
"""


def by_http(port: int, kind: Kind) -> list[Any]:
    """Each window as a request by name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
    found = []
    for window in kind.windows:
        connection.request("POST", f"/predict/{kind.name}", named(window, kind.manifest))
        answer = connection.getresponse()
        found.append(json.loads(answer.read()))
        assert answer.status == 200, found
    connection.close()
    return found


def by_tensors(port: int, kind: Kind, *, binary: bool) -> Floats:
    """All windows as one request of tensors; the scores that come back."""
    tensor: dict[str, Any] = {"name": "window", "datatype": "FP32", "shape": kind.windows.shape}
    raw = kind.windows.astype("<f4").tobytes() if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": kind.windows.tolist()}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    connection.request("POST", f"/v2/models/{kind.name}/infer", head + raw, headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    document, position = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    found: dict[str, Any] = {}
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        kind_of_number = {"FP32": "<f4", "INT64": "<i8"}.get(output["datatype"])
        if kind_of_number is not None:
            values = np.frombuffer(body[position : position + size], kind_of_number) if binary else output["data"]
            found[output["name"]] = np.array(values, kind_of_number).reshape(output["shape"])
        position += size
    if kind.manifest.task in NAMED_TASKS:
        return dense_outputs(found, kind.manifest)
    answer_of: Floats = next(found[name] for name in ("scores", "value", "score") if name in found)
    return answer_of


def by_mqtt(port: int, kinds: list[Kind]) -> dict[str, list[Any]]:
    """Each window of each kind as a request over MQTT 5, all at once."""
    answers: queue.Queue[tuple[int, Any]] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _userdata, message: answers.put(
        (int(message.properties.CorrelationData), json.loads(message.payload))  # type: ignore[union-attr]
    )
    subscribed = queue.Queue[None]()
    client.on_subscribe = lambda *_: subscribed.put(None)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe("answers/all", 1)
    subscribed.get(timeout=patient(20))
    found: dict[str, list[Any]] = {}
    for kind in kinds:
        for number, window in enumerate(kind.windows):
            properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = "answers/all"
            properties.CorrelationData = str(number).encode()
            client.publish(f"edge/room/predict/{kind.name}", named(window, kind.manifest), 1, properties=properties)
        pairs = [answers.get(timeout=patient(20)) for _ in kind.windows]
        found[kind.name] = [document for _, document in sorted(pairs, key=lambda pair: pair[0])]
    client.disconnect()
    client.loop_stop()
    return found


def in_batch(command: list[str], folder: Path, kind: Kind, *more: str, env: dict[str, str] | None = None) -> bytes:
    """The scores in the output of `predict` over the same readings."""
    source = folder / f"{kind.name}.jsonl"
    source.write_bytes(b"\n".join(kind.readings) + b"\n")
    words = [*command, "predict", str(kind.path), source.name, "-o", f"{kind.name}-out.jsonl", *more]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=patient(120), check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / f"{kind.name}-out.jsonl").read_text().splitlines()]
    return np.array([row_numbers(row, kind.manifest) for row in rows], np.float32).tobytes()


def test_every_way_of_asking_gives_the_bits_of_the_stream(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    installed: Installed,
    tmp_path: Path,
    free_port: int,
) -> None:
    """What subscribers read of a model's windows is what requests and recordings of the same windows are answered."""
    kinds = make_kinds(tmp_path)
    subscriber = make_subscriber(mosquitto.port, "edge/#")
    make_daemon(device(mosquitto, kinds, free_port)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    for kind in kinds:
        for reading in kind.readings:
            subscriber.publish(f"in/{kind.name}", reading)
    subscriber.flush()
    for kind in kinds:
        messages = subscriber.wait_for(COUNT, f"edge/room/{kind.name}/-")
        kind.expected = kind.scores([message.document for message in messages])
    requested = by_mqtt(mosquitto.port, kinds)
    for kind in kinds:
        answered = kind.scores(by_http(free_port, kind))
        assert kind.scores(requested[kind.name]) == answered, kind
        if not kind.manifest.state:  # a request starts memory at zero; recordings and the stream do not
            assert answered == kind.expected, kind
            for binary in (False, True):
                assert by_tensors(free_port, kind, binary=binary).tobytes() == kind.expected, (kind, binary)
        assert in_batch([str(installed.edge_runtime)], tmp_path, kind) == kind.expected, kind
    python = os.environ.get("EDGE_DASK_PYTHON")
    if python is not None:
        command, environment = [python, "-m", "edge_runtime.cli"], os.environ | {"PYTHONPATH": str(ROOT)}
        windowed = next(kind for kind in kinds if not kind.manifest.batch_invariant)
        for kind in (kinds[0], windowed):
            dask = in_batch(command, tmp_path, kind, "--engine", "dask", "--workers", "2", env=environment)
            assert dask == kind.expected, kind
