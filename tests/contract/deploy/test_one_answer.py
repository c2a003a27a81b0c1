"""Stream, request and batch are one answer: the same windows give the same bits, whatever stands beside them."""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.batch.run import PredictOptions, predict
from edge_runtime.bundle.manifest import Manifest, output_ports
from edge_runtime.bundle.model import NAMED_TASKS, Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable, RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from edge_runtime.readings import Batch, Floats
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.kinds import KINDS, dense_outputs, named, numbers, row_numbers

COUNT = 24


class Deployment:
    """One bundle, and its windows as every way of deploying it takes them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.path = KINDS[kind]().save(folder / "model.onnx")
        self.folder = folder
        self.model = Model(open_bundle(self.path))
        self.manifest = self.model.manifest
        shape = (COUNT, *self.manifest.input.tensor_shape)
        self.windows: Floats = np.random.default_rng(11).normal(scale=3, size=shape).astype(np.float32)
        if self.manifest.input.dtype == "int64":
            self.windows = np.abs(np.rint(self.windows)) % 11
        self.app = self.make_app()

    def make_app(self) -> App:
        """A server of this model, for one thread."""
        return App([Served(self.manifest.name, self.model, device="d", start=1)], Board(health=dict))

    def stream(self, size: int) -> Floats:
        """The scores that subscribers read, of readings that arrive `size` at a time."""
        manifest = self.manifest
        channels, loop = manifest.channel_names, Loop()
        payloads: list[bytes] = []
        outbox = SimpleNamespace(offer=lambda _stream, _topic, payload, **_: payloads.append(payload))
        pipeline = Pipeline(
            ModelTable(name="m", bundle="b", source="s", run="loop"),
            self.model,
            channels=channels,
            repair=RepairTable(),
            payload=JsonPayload(
                device="d", model="m", source="s", start=1, manifest=manifest, threshold=manifest.output.threshold
            ),
            topic="t",
            outbox=cast("Outbox", outbox),
            loop=loop,
            clock=Clock(),
            counters=Counters(),
        )
        readings = self.windows if manifest.input.shape else self.windows.reshape(-1, len(channels))
        for start in range(0, len(readings), size):
            values = readings[start : start + size].copy()
            count = len(values)
            pipeline.accept(Batch("s", values, [None] * count, [1.0 * start] * count, [None] * count, [None] * count))
        loop.close()
        return np.array([numbers(json.loads(payload), manifest) for payload in payloads], np.float32)

    def batch(self, suffix: str, *, workers: int = 1) -> Floats:
        """The scores in the output of `predict`."""
        readings = self.windows
        if not self.manifest.input.shape and suffix != ".npz":
            readings = self.windows.reshape(-1, len(self.manifest.channel_names))
        source = self.folder / f"in{suffix}"
        _write(source, readings, self.manifest)
        output = self.folder / "out.jsonl"
        predict(PredictOptions(self.path, [str(source)], output, workers=workers))
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        return np.array([row_numbers(row, self.manifest) for row in rows], np.float32)

    def request(self, sizes: list[int], *, binary: bool, app: App | None = None) -> Floats:
        """The scores of `/infer`, some windows a request; a model with memory gets its states back as inputs."""
        states: dict[str, Floats] = {}
        found = []
        start = 0
        for size in sizes:
            windows = self.windows[start : start + size]
            start += size
            outputs = _infer(app or self.app, self.manifest.name, {"window": windows, **states}, binary=binary)
            states = {state.input: outputs[state.output] for state in self.manifest.state}
            if self.manifest.task in NAMED_TASKS:
                found.append(dense_outputs(outputs, self.manifest))
                continue
            found.append(outputs[list(output_ports(self.manifest))[-1]].reshape(len(windows), -1))
        return np.concatenate(found)

    def by_name(self) -> Floats:
        """The scores of `/predict`, a window a request."""
        answers = [_post(self.app, f"/predict/{self.manifest.name}", named(w, self.manifest)) for w in self.windows]
        return np.array([numbers(json.loads(answer), self.manifest) for answer in answers], np.float32)


@pytest.fixture(params=KINDS)
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """Every kind of bundle, deployed in every way."""
    made = Deployment(request.param, tmp_path)
    yield made
    made.app.stop()


def test_the_size_of_a_batch_of_readings_changes_no_bit(deployment: Deployment) -> None:
    """Readings that come alone, in small groups or all at once give the same scores."""
    alone = deployment.stream(1)
    assert len(alone) == COUNT
    for size in (3, 7, 1000):
        assert deployment.stream(size).tobytes() == alone.tobytes()


def test_recordings_score_as_the_stream_does(deployment: Deployment) -> None:
    """Every kind of recorded file, and any number of workers, gives the scores that subscribers have read."""
    expected = deployment.stream(5)
    suffixes = [".npy", ".npz", ".jsonl"] + ([] if deployment.manifest.input.shape else [".csv", ".parquet"])
    for suffix in suffixes:
        assert deployment.batch(suffix).tobytes() == expected.tobytes(), suffix
    assert deployment.batch(".jsonl", workers=2).tobytes() == expected.tobytes()


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_requests_of_tensors_score_as_the_stream_does(deployment: Deployment, binary: bool) -> None:
    """Tensors as JSON or as bytes, one window or many a request, give the scores that subscribers have read."""
    expected = deployment.stream(5)
    sizes = [[1] * COUNT] if deployment.manifest.state else [[1] * COUNT, [5, 7, 12], [COUNT]]
    for each in sizes:
        assert deployment.request(each, binary=binary).tobytes() == expected.tobytes(), each


def test_requests_by_name_score_as_the_stream_does(deployment: Deployment) -> None:
    """A window of named readings gives the scores that subscribers have read; memory starts at zero each time."""
    if deployment.manifest.state:
        fresh = np.concatenate([deployment.request([1], binary=True)])
        assert deployment.by_name()[:1].tobytes() == fresh.tobytes()
        return
    assert deployment.by_name().tobytes() == deployment.stream(5).tobytes()


def test_requests_and_stream_at_the_same_time_change_no_bit(deployment: Deployment) -> None:
    """One session serves the loop and the threads of requests at once; each gets what it would get alone."""
    expected = deployment.stream(5).tobytes()
    sizes = [1] * COUNT
    found: list[bytes] = []

    def ask() -> None:
        app = deployment.make_app()
        found.extend(deployment.request(sizes, binary=True, app=app).tobytes() for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    streams = [deployment.stream(5).tobytes() for _ in range(10)]
    for thread in threads:
        thread.join(60)
    assert set(streams) == {expected}
    assert len(found) == 15
    assert set(found) == {expected}


def _write(path: Path, readings: Floats, manifest: Manifest) -> None:
    names = manifest.channel_names
    match path.suffix:
        case ".npy":
            np.save(path, readings)
        case ".npz":
            np.savez(path, x=readings)
        case ".jsonl" if manifest.input.shape:
            path.write_text("".join(json.dumps(frame) + "\n" for frame in readings.tolist()))
        case ".jsonl":
            lines = [json.dumps(dict(zip(names, row, strict=True))) for row in readings.tolist()]
            path.write_text("\n".join(lines) + "\n")
        case ".csv":
            rows = [",".join(map(str, row)) for row in readings]
            path.write_text("\n".join([",".join(names), *rows]) + "\n")
        case ".parquet":
            import pyarrow as pa  # noqa: PLC0415
            from pyarrow import parquet  # noqa: PLC0415

            table = pa.table(dict(zip(names, readings.T, strict=True)))
            parquet.write_table(table, path, row_group_size=10)


def _post(app: App, path: str, body: bytes, **headers: str) -> bytes:
    seen: list[str] = []
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "HTTP_HOST": "localhost",
        **headers,
    }
    answer = b"".join(app(environ, lambda status, _headers: seen.append(status)))
    assert seen == ["200 OK"], answer
    return answer


def _infer(app: App, name: str, inputs: dict[str, Floats], *, binary: bool) -> dict[str, Any]:
    tensors: list[dict[str, Any]] = []
    raw = b""
    for tensor, values in inputs.items():
        document: dict[str, Any] = {"name": tensor, "datatype": "FP32", "shape": list(values.shape)}
        if binary:
            data = values.astype("<f4").tobytes()
            document["parameters"] = {"binary_data_size": len(data)}
            raw += data
        else:
            document["data"] = values.tolist()
        tensors.append(document)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": binary}}).encode()
    headers = {"HTTP_INFERENCE_HEADER_CONTENT_LENGTH": str(len(head))} if binary else {}
    answer = _post(app, f"/v2/models/{name}/infer", head + raw, **headers)
    document, position = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    found = {}
    for output in document["outputs"]:
        kind = {"FP32": "<f4", "INT64": "<i8"}[output["datatype"]]
        if binary:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(answer[position : position + size], kind)
            position += size
        else:
            values = np.array(output["data"], kind)
        found[output["name"]] = values.reshape(output["shape"])
    return found
