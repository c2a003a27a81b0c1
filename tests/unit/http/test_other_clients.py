"""What clients of Triton, KServe V1, MLflow and SageMaker ask, and what a scraper reads."""

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_runtime.http.access_log import AccessLog
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.responses import Request, Response
from edge_runtime.http.served_model import Served
from edge_runtime.http.shared_counts import PLACE_BYTES, SharedCounts
from tests.support import builders
from tests.support.asking import Answered, ask
from tests.support.http_server import served_models
from tests.support.waiting import patient

ROWS = [[21.5, 48.25], [3.0, 90.0], [-20.0, 1.5]]
NAMES = ["temperature", "humidity"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """One served model of each kind."""
    return served_models(tmp_path_factory.mktemp("bundles"), alerts=builders.multilabel())


@pytest.fixture
def app(models: list[Served]) -> Iterator[App]:
    """The routes over these models."""
    made = App(models, Board(health=lambda: {"device": "d", "rss_bytes": 7}))
    yield made
    made.stop()


@pytest.fixture
def alone(models: list[Served]) -> App:
    """The routes over one model."""
    return App(models[:1], Board(health=dict))


def wanted(served: Served, windows: list[Any]) -> list[Any]:
    """What the model itself says: labels by their place, values, scores."""
    shape = served.manifest.input.tensor_shape
    scores = served.model.run(np.array(windows, np.float32).reshape(-1, *shape))
    if scores.label is not None:
        return [served.manifest.output.labels[int(place)] for place in scores.label]
    found = scores.value if scores.value is not None else scores.score
    assert found is not None
    return list(found.ravel().tolist())


def test_rows_of_lists_and_of_names_are_the_same_rows(app: App, models: list[Served]) -> None:
    """KServe's V1 and TensorFlow Serving's columns: the predictions are the model's own."""
    predictions = wanted(models[0], ROWS)
    by_name = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    bodies: list[dict[str, Any]] = [
        {"instances": ROWS},
        {"instances": [[row] for row in ROWS]},
        {"instances": by_name},
        {"inputs": ROWS},
        {"inputs": {"window": ROWS}},
        {"inputs": dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))},
    ]
    for body in bodies:
        answered = ask(app, "POST", "/v1/models/activity:predict", body)
        assert (answered.status, answered.document) == (200, {"predictions": predictions}), body


@pytest.mark.parametrize("name", ["power", "vibration"])
def test_values_and_scores_are_numbers(app: App, models: list[Served], name: str) -> None:
    """A single target is a number a row, and so is the score of an anomaly."""
    served = next(each for each in models if each.name == name)
    width = len(served.manifest.channel_names)
    rows = [[0.25] * width, [0.5] * width]
    found = ask(app, "POST", f"/v1/models/{name}:predict", {"instances": rows}).document["predictions"]
    np.testing.assert_array_equal(np.array(found, np.float32), np.array(wanted(served, rows), np.float32))


def test_several_labels_are_a_list_of_those_that_are_there(app: App, models: list[Served]) -> None:
    """A row of a multi-label model is answered with its labels, as with the one label of a classifier."""
    served = next(each for each in models if each.name == "alerts")
    rows = np.random.default_rng(3).normal(size=(8, 3)).round(2).tolist()
    tensors = served.model.run(np.array(rows, np.float32)[:, None]).arrays()
    names = served.manifest.output.labels
    expected = [[name for name, yes in zip(names, row, strict=True) if yes == 1] for row in tensors["labels"].tolist()]
    assert len({len(row) for row in expected}) > 1
    found = ask(app, "POST", "/v1/models/alerts:predict", {"instances": rows})
    assert found.document == {"predictions": expected}


def test_windows_are_instances(app: App, models: list[Served]) -> None:
    """A window is nested, flat, or a list of readings by name."""
    window = [[1.0, 2.0, 3.0][:2] for _ in range(3)]
    names = models[1].manifest.channel_names
    window = [[float(place + channel) for channel in range(len(names))] for place in range(3)]
    flat = [number for row in window for number in row]
    named = [dict(zip(names, row, strict=True)) for row in window]
    answers = [
        ask(app, "POST", "/v1/models/motion:predict", {"instances": [instance]}).document
        for instance in (window, flat, named)
    ]
    assert answers == [{"predictions": wanted(models[1], [window])}] * 3


@pytest.mark.parametrize("name", ["drowsy", "picture"])
def test_states_and_frames_are_served_too(app: App, models: list[Served], name: str) -> None:
    """A recurrent model begins each row with states of zero; a frame is nested as its shape."""
    served = next(each for each in models if each.name == name)
    instance = np.zeros(served.manifest.input.tensor_shape).tolist()
    found = ask(app, "POST", f"/v1/models/{name}:predict", {"instances": [instance, instance]})
    assert found.status == 200
    assert len(found.document["predictions"]) == 2


def text_of(rows: list[list[Any]], header: list[str] | None = None) -> bytes:
    """Rows as CSV."""
    file = io.StringIO()
    csv.writer(file).writerows([*([header] if header else []), *rows])
    return file.getvalue().encode()


def invoke(app: App, body: Any, kind: str = "application/json") -> Answered:
    """One request as MLflow's clients send it."""
    return ask(app, "POST", "/invocations", body, content_type=kind)


def test_mlflows_forms_are_the_same_rows(alone: App, models: list[Served]) -> None:
    """Tables by columns and by records, with columns in any order and more of them, and CSV with and without names."""
    answer = {"predictions": wanted(models[0], ROWS)}
    turned = [[7, humidity, temperature] for temperature, humidity in ROWS]
    records = [{"humidity": humidity, "temperature": temperature, "more": "x"} for temperature, humidity in ROWS]
    columns = ["more", "humidity", "temperature"]
    assert invoke(alone, {"dataframe_split": {"columns": columns, "data": turned}}).document == answer
    assert invoke(alone, {"dataframe_records": records}).document == answer
    assert invoke(alone, {"instances": ROWS}, "application/json; charset=utf-8").document == answer
    assert invoke(alone, text_of(turned, columns), "text/csv").document == answer
    assert invoke(alone, text_of(ROWS), "text/csv; header=absent").document == answer


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "application/json", 400, "expected a JSON object with one of instances"),
        (b"[[1,2]]", "application/json", 400, "expected a JSON object with one of instances"),
        (b"{}", "application/json", 400, "expected a JSON object with one of instances"),
        (b'{"instances": [[1,2]], "inputs": [[1,2]]}', "application/json", 400, "one of instances"),
        (b'{"instances": []}', "application/json", 422, "expected instances of the shape"),
        (b'{"instances": [[1,2,3]]}', "application/json", 422, "expected instances of the shape [1, 2] or [2]"),
        (b'{"instances": [[1,"2"]]}', "application/json", 400, "expected rows of numbers"),
        (b'{"instances": [[1,true]]}', "application/json", 400, "expected rows of numbers"),
        (b'{"instances": [[1,2],[3]]}', "application/json", 400, "expected rows of numbers"),
        (b'{"instances": [{"temperature": 1}]}', "application/json", 422, "humidity missing"),
        (b'{"instances": [{"temperature": "1", "humidity": 2}]}', "application/json", 422, "found '1'"),
        (b'{"instances": [{"temperature": true, "humidity": 2}]}', "application/json", 422, "found 'True'"),
        (b'{"instances": [{"temperature": 1, "humidity": null}]}', "application/json", 422, "found none"),
        (b'{"instances": [{"temperature": 1, "humidity": 2e6}]}', "application/json", 422, "expected -1e+06 to"),
        (b'{"instances": 5}', "application/json", 400, "expected a list"),
        (b'{"inputs": {"temperature": [1], "humidity": [1,2]}}', "application/json", 422, "one length"),
        (b'{"dataframe_split": {"columns": ["temperature"], "data": [[1]]}}', "application/json", 422, "missing"),
        (
            b'{"dataframe_split": {"columns": ["temperature", "humidity", "humidity"], "data": [[1,2,3]]}}',
            "application/json", 422, "different names",
        ),
        (b'{"dataframe_split": {"columns": ["humidity"], "data": [[1, 2]]}}', "application/json", 422, "missing"),
        (
            b'{"dataframe_split": {"columns": ["temperature", "humidity"], "data": [[1]]}}',
            "application/json", 422, "expected 2 values in row 0, found 1",
        ),
        (b"21.5,48\n3,90\n", "text/csv", 422, "header=absent"),
        (b"temperature,humidity\n1,0x10\n", "text/csv", 422, "expected a number, found '0x10'"),
        (b"temperature,humidity\n1,1_0\n", "text/csv", 422, "expected a number, found '1_0'"),
        (b"temperature,humidity\n1,\n", "text/csv", 422, "expected a number, found none"),
        (b"temperature,humidity\n", "text/csv", 400, "expected one row or more"),
        (b"\xff", "text/csv", 400, "expected CSV in UTF-8"),
        (b"x", "application/x-npy", 415, "expected Content-Type application/json or text/csv"),
        (b'{"dataframe_records": [' + b" " * (1 << 20) + b"]}", "application/json", 413, "at most 1048576 bytes"),
    ],
)  # fmt: skip
def test_a_form_that_is_wrong_is_refused(alone: App, body: bytes, kind: str, status: int, words: str) -> None:
    """Each refusal says what was expected."""
    answered = invoke(alone, body, kind)
    assert (answered.status, next(iter(answered.document))) == (status, "error")
    assert words in answered.document["error"]


def test_one_model_is_behind_invocations(app: App) -> None:
    """With several, the request has to name one."""
    answered = invoke(app, {"instances": ROWS})
    assert answered.status == 422
    assert "ask /v1/models/MODEL:predict" in answered.document["error"]


def test_kserves_small_questions(app: App) -> None:
    """Which models there are, and whether one is ready."""
    assert "activity" in ask(app, "GET", "/v1/models").document["models"]
    assert ask(app, "GET", "/v1/models/activity").document == {"name": "activity", "ready": True}
    assert ask(app, "GET", "/v1/models/nothing").status == 404
    app.stop()
    assert ask(app, "GET", "/v1/models/activity").status == 503
    assert ask(app, "GET", "/ping").status == 503


def test_tritons_config_says_what_the_metadata_says(app: App) -> None:
    """Shapes without the batch, types in Triton's words, and a batch that one call takes."""
    for name in ("activity", "drowsy", "power", "vibration", "picture"):
        metadata = ask(app, "GET", f"/v2/models/{name}").document
        config = ask(app, "GET", f"/v2/models/{name}/config").document
        assert (config["name"], config["platform"], config["max_batch_size"]) == (name, "onnxruntime_onnx", 256)
        for key in ("input", "output"):
            found = [
                (each["name"], each["data_type"], each.get("reshape", {"shape": each["dims"]})["shape"])
                for each in config[key]
            ]
            assert found == [
                (each["name"], f"TYPE_{each['datatype']}", each["shape"][1:]) for each in metadata[f"{key}s"]
            ]


def test_statistics_count_as_triton_counts(app: App) -> None:
    """Requests, rows and calls; those that failed apart; and a version or all models."""
    for count in (1, 1, 5):
        assert ask(app, "POST", "/v1/models/activity:predict", {"instances": [ROWS[0]] * count}).status == 200
    assert ask(app, "POST", "/v1/models/activity:predict", {"instances": [[1]]}).status == 422
    (found,) = ask(app, "GET", "/v2/models/activity/stats").document["model_stats"]
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == (
        "activity",
        "1.0.0",
        7,
        3,
    )
    stats = found["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"], stats["queue"]["count"]) == (3, 1, 3)
    assert [(each["batch_size"], each["compute_infer"]["count"]) for each in found["batch_stats"]] == [(1, 2), (5, 1)]
    parts = sum(stats[part]["ns"] for part in ("compute_input", "queue", "compute_infer", "compute_output"))
    assert 0 < parts <= stats["success"]["ns"] * 1.01
    every = ask(app, "GET", "/v2/models/stats").document["model_stats"]
    assert [each["inference_count"] for each in every] == [7, *[0] * (len(every) - 1)]
    assert ask(app, "GET", "/v2/models/activity/versions/1.0.0/stats").status == 200
    assert ask(app, "GET", "/v2/models/activity/versions/9/config").status == 404


def test_metrics_by_model_add_up(app: App) -> None:
    """Requests by status, rows, a histogram whose last bucket is their number, and the memory of the process."""
    for count in (1, 2):
        ask(app, "POST", "/v1/models/activity:predict", {"instances": [ROWS[0]] * count})
    ask(app, "POST", "/v2/models/activity/infer", {"inputs": []})
    ask(app, "POST", "/v2/models/nothing/infer", {"inputs": []})
    text = ask(app, "GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = families["edge_http_model_requests"].samples
    assert {(s.labels["model"], s.labels["status"]): s.value for s in requests} == {
        ("activity", "200"): 2.0,
        ("activity", "400"): 1.0,
    }
    assert [s.value for s in families["edge_http_model_rows"].samples] == [3.0]
    histogram = families["edge_http_model_request_seconds"]
    assert histogram.type == "histogram"
    buckets = [s for s in histogram.samples if s.name.endswith("_bucket")]
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)
    assert (buckets[-1].labels["le"], buckets[-1].value) == ("+Inf", 2.0)
    assert [s.value for s in histogram.samples if s.name.endswith("_count")] == [2.0]
    assert {s.labels["model"]: s.value for s in families["edge_http_model_waiting"].samples}["activity"] == 0.0
    assert families["process_resident_memory_bytes"].samples[0].value == 7.0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: see .ci/run")
def test_promtool_finds_nothing_to_say(app: App) -> None:
    """The judge of Prometheus itself reads the page, of a daemon's health as well."""
    health = {
        "device": 'a"b', "runtime": "1", "uptime_s": 1.5, "readings": 5, "predictions": 1, "published": 1, "queued": 0,
        "cpu_s": 0.5, "rss_bytes": 1000, "rejected": {"out_of_range": 2}, "skipped": {"late": 1}, "errors": {"x": 1},
        "dropped": {"full": 1}, "sources": {"imu": {"open": True}}, "connected": {"upstream": True},
        "broker": {"url": "mqtt://b:1883", "fallback": True, "failovers": 2, "returns": 1},
        "sinks": {"cloud": {"state": "x", "errors": {"no_answer": 3}, "dropped": {"sink_full": 1}}},
        "models": {"activity": {"version": "1.0.0", "predictions": 4, "latency_ms": {"p50": 0.5, "p99": 1.25}}},
    }  # fmt: skip
    full = App(list(app.models.values()), Board(health=lambda: health))
    ask(full, "POST", "/v1/models/activity:predict", {"instances": ROWS})
    page = ask(full, "GET", "/metrics").body
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, timeout=patient(60), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_processes_count_together(models: list[Served]) -> None:
    """Whichever is scraped answers for all; one that is started again goes on from what its predecessor counted."""
    memory = SharedCounts(2)
    apps = []
    for number in (0, 1):
        made = App(models[:1], Board(health=lambda: {"rss_bytes": 1}))
        made.counts.share(seat(memory, number))
        apps.append(made)
    for made, count in zip(apps, (3, 4), strict=True):
        for _ in range(count):
            ask(made, "POST", "/v1/models/activity:predict", {"instances": ROWS})
        made.counts.publish()
    assert [rows(made) for made in apps] == [21.0, 21.0]
    again = App(models[:1], Board(health=lambda: {"rss_bytes": 1}))
    again.counts.share(seat(memory, 1))
    ask(again, "POST", "/v1/models/activity:predict", {"instances": ROWS})
    assert rows(again) == 24.0
    assert rows(apps[0]) == 24.0


def seat(memory: SharedCounts, number: int) -> SharedCounts:
    """The same memory as one process sees it."""
    made = SharedCounts.__new__(SharedCounts)
    made.__dict__.update(memory.__dict__)
    made.number = number
    return made


def rows(app: App) -> float:
    """The rows that `/metrics` tells."""
    text = ask(app, "GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return float(families["edge_http_model_rows"].samples[0].value)


def test_half_a_document_is_not_read() -> None:
    """A writer that was killed in the middle leaves nothing that a reader takes; what is too long is left out."""
    memory = SharedCounts(2)
    assert memory.others() == []
    memory.write(b"counts")
    memory.write(b"x" * PLACE_BYTES)
    memory.number = 1
    assert memory.others() == [b"counts"]
    memory._memory[8:9] = b"C"
    assert memory.others() == []


def test_the_access_log_is_a_line_of_json(models: list[Served]) -> None:
    """Who asked what, what came of it and how long it took; a client cannot forge a line or fill the disk with one."""
    file = io.StringIO()
    log = AccessLog(file)
    headers = {"user-agent": 'curl"\n{"status": 200}', "x-forwarded-for": "203.0.113.9"}
    request = Request("POST", "/predict/activity/" + "x" * 5000, headers, b"")
    request.route, request.model = "predict", "activity"
    log("127.0.0.1", request, Response(422), 31)
    log("127.0.0.1", None, Response(400), 5)
    first, second = map(json.loads, file.getvalue().splitlines())
    assert (first["client"], first["method"], first["route"], first["model"]) == (
        "127.0.0.1",
        "POST",
        "predict",
        "activity",
    )
    assert (first["status"], first["bytes"], len(first["path"])) == (422, 31, 200)
    assert first["x_forwarded_for"] == "203.0.113.9"
    assert first["ms"] >= 0
    assert second["status"] == 400
    file.close()
    log("127.0.0.1", None, Response(400), 5)
    assert log.lost == 1


def test_the_folder_of_a_bundle_is_not_told(app: App, tmp_path: Path) -> None:
    """Clients learn the file's name, and nothing of the machine's folders."""
    assert str(tmp_path.parent) not in ask(app, "GET", "/v2/models/activity/config").body.decode()
