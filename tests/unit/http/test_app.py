import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edge_runtime.bundle.model import ModelError, Scores
from edge_runtime.http import app as app_module
from edge_runtime.http import scorer as scorer_module
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.responses import HttpError, Response
from edge_runtime.http.scorer import MAX_WINDOWS, Scorer, Work, result
from edge_runtime.http.served_model import Numbers, Served
from edge_runtime.readings import Floats
from tests.support import builders
from tests.support.asking import Answered, ask
from tests.support.http_server import served_models

INFER = "/v2/models/activity/infer"
HEALTH: dict[str, Any] = {
    "device": 'a"b\\c\nd',
    "runtime": "0.1.0",
    "readings": 5,
    "rss_bytes": 1000,
    "rejected": {"out_of_range": 2},
    "sources": {"imu": {"open": True}},
    "connected": {"upstream": True},
    "broker": {"url": "mqtt://b:1883", "fallback": True, "failovers": 2, "returns": 1},
    "models": {"activity": {"version": "1.0.0", "predictions": 4, "latency_ms": {"p50": 0.5, "p99": 1.25}}},
}


def tensor(**changes: Any) -> dict[str, Any]:
    """A sound request of one window, with changes to its input."""
    window = {"name": "window", "datatype": "FP32", "shape": [1, 1, 2], "data": [[[21.5, 48.25]]]}
    return {"inputs": [window | changes]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """One served model of each kind."""
    return served_models(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def app(models: list[Served]) -> Iterator[App]:
    """The routes over these models, without a token."""
    made = App(models, Board(health=lambda: HEALTH))
    yield made
    made.stop()


def refusal(answered: Answered, status: int, words: str) -> None:
    """Every refusal is JSON that says what was expected and found."""
    assert (answered.status, next(iter(answered.document))) == (status, "error"), answered
    assert words in answered.document["error"]


def test_the_protocols_questions_about_health_and_models(app: App) -> None:
    """Live, ready, the server and each model with its version answer as the protocol has it."""
    assert ask(app, "GET", "/v2/health/live").document["live"] is True
    assert ask(app, "GET", "/v2/health/ready").document["ready"] is True
    assert "binary_tensor_data" in ask(app, "GET", "/v2").document["extensions"]
    assert ask(app, "GET", "/v2/models/activity/ready").document == {"name": "activity", "ready": True}
    assert ask(app, "GET", "/v2/models/activity/versions/1.0.0/ready").status == 200
    found = ask(app, "GET", "/v2/models/drowsy/versions/1.0.0").document
    assert found["versions"] == ["1.0.0"]
    assert found["inputs"] == [
        {"name": "window", "datatype": "FP32", "shape": [-1, 2, 2]},
        {"name": "memory", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert [output["name"] for output in found["outputs"]] == ["label", "scores", "memory_out"]
    assert [channel["name"] for channel in found["parameters"]["channels"]] == ["left", "right"]


def test_an_unknown_model_or_version_is_not_found(app: App) -> None:
    """A wrong name or version is 404, and the answer names the right ones."""
    refusal(ask(app, "GET", "/v2/models/nothing"), 404, "activity, motion")
    refusal(ask(app, "POST", "/v2/models/activity/versions/9/infer", tensor()), 404, "expected version 1.0.0")
    refusal(ask(app, "GET", "/v2/models/../../etc/passwd"), 404, "nothing at")
    refusal(ask(app, "GET", "/v2/models/..%2f..%2fetc"), 404, "activity")
    refusal(ask(app, "GET", "/\xff"), 400, "UTF-8")
    assert ask(app, "DELETE", "/v2/models/activity").headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "expected an inference request"),
        (b"\xff\xfe", "expected an inference request"),
        (b"[" * 5000, "expected an inference request"),
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "expected window, found none"),
        ({"inputs": tensor()["inputs"] * 2}, "each once"),
        (tensor(name="other"), "expected window"),
        (tensor(datatype="BYTES"), "expected FP32"),
        (tensor(shape=[1, 2, 1]), "expected [n, 1, 2]"),
        (tensor(shape=[0, 1, 2], data=[]), "n of 1 or more"),
        (tensor(shape=[-1, 1, 2]), "n of 1 or more"),
        (tensor(shape=[10**18, 1, 2]), "n of 1 or more"),
        (tensor(shape=[2, 1, 2]), "expected 4 numbers, found 2"),
        (tensor(data=[[[1.0], [2.0]]], shape=[1, 1, 2]) | {"outputs": [{"name": "x"}]}, "outputs: expected some of"),
        (tensor(data=[1, "2"]), "Expected `float`"),
        (tensor(data=[1, None]), "Expected `float`"),
        (tensor(data=[1, True]), "Expected `float`"),
        (tensor(data=[[1], [2, 3]]), "rows of numbers of one length"),
        (tensor(data=5), "expected a list of numbers"),
        (json.dumps(tensor()).replace("21.5", "NaN").encode(), "expected an inference request"),
        (json.dumps(tensor()).replace("21.5", "1e999").encode(), "rows of numbers"),
        (tensor(parameters={"binary_data_size": 8}), "expected at most the 0 bytes"),
        (tensor(parameters={"binary_data_size": "8"}), "found 8"),
        (tensor() | {"parameters": {"binary_data_output": 1}}, "expected true or false"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(app: App, body: Any, words: str) -> None:
    """Wrong JSON, shape, type or size is 400, and says what was expected."""
    refusal(ask(app, "POST", INFER, body), 400, words)


@pytest.mark.parametrize(
    ("values", "reason"),
    [([np.nan, 1], "missing_channel"), ([np.inf, 1], "not_finite"), ([1, 2e6], "out_of_range")],
)
def test_tensors_keep_the_contract_too(app: App, values: list[float], reason: str) -> None:
    """A number that the stream would reject never reaches the model from a tensor either."""
    raw = np.array(values, "<f4").tobytes()
    request = tensor(parameters={"binary_data_size": 8})
    del request["inputs"][0]["data"]
    head = json.dumps(request).encode()
    found = ask(app, "POST", INFER, head + raw, inference_header_content_length=str(len(head)))
    refusal(found, 422, "expected")
    assert found.document["reasons"] == {reason: 1}


@pytest.mark.parametrize("length", ["-1", "99999", "x", "1e3", "٣"])
def test_a_wrong_length_of_the_json_part_is_refused(app: App, length: str) -> None:
    """The header that says where the binary part begins must be a number within the body."""
    refusal(ask(app, "POST", INFER, tensor(), inference_header_content_length=length), 400, "expected a number")


def test_a_binary_part_of_the_wrong_size_is_refused(app: App) -> None:
    """Bytes that are too few, too many, or not asked for are refused."""
    request = tensor(parameters={"binary_data_size": 4})
    del request["inputs"][0]["data"]
    head = json.dumps(request).encode()
    length = str(len(head))
    refusal(ask(app, "POST", INFER, head + b"abcd", inference_header_content_length=length), 400, "8 bytes of FP32")
    refusal(ask(app, "POST", INFER, head + b"ab", inference_header_content_length=length), 400, "the 2 bytes that came")
    head = json.dumps(tensor()).encode()
    found = ask(app, "POST", INFER, head + b"abcd", inference_header_content_length=str(len(head)))
    refusal(found, 400, "found 4 bytes more")


def test_packed_bodies_are_unpacked_within_the_limit(app: App) -> None:
    """Bodies in gzip and deflate are taken; what is broken, cut short or grows beyond the limit is refused."""
    data = json.dumps(tensor()).encode()
    assert ask(app, "POST", INFER, gzip.compress(data), content_encoding="gzip").status == 200
    assert ask(app, "POST", INFER, zlib.compress(data), content_encoding="deflate").status == 200
    refusal(ask(app, "POST", INFER, b"no gzip", content_encoding="gzip"), 400, "packed with gzip, found none")
    refusal(ask(app, "POST", INFER, gzip.compress(data)[:-9], content_encoding="gzip"), 400, "found a part of one")
    bomb = gzip.compress(bytes(app_module.MAX_BODY_BYTES + 1))
    refusal(ask(app, "POST", INFER, bomb, content_encoding="gzip"), 413, "expected at most")
    refusal(ask(app, "POST", INFER, data, content_encoding="br"), 415, "gzip or deflate")


def test_a_body_over_the_limit_is_refused(app: App) -> None:
    """More than 8 MiB is 413."""
    refusal(ask(app, "POST", INFER, bytes(app_module.MAX_BODY_BYTES + 1)), 413, "expected at most")


def test_a_named_body_holds_no_more_than_its_model_takes(app: App) -> None:
    """What is far longer than a window can be is refused before it is read."""
    refusal(ask(app, "POST", "/predict/activity", b" " * 70_000 + b"{}"), 413, "expected at most 65664 bytes")


@pytest.mark.parametrize("nested", [False, True])
def test_long_texts_are_read_and_written_in_pieces(app: App, nested: bool) -> None:
    """A request of many windows is the same as many requests, and others get their chance in between."""
    values = np.random.default_rng(5).normal(size=(9_000, 1, 2)).astype(np.float32)
    data: list[Any] = values.tolist() if nested else values.ravel().tolist()
    paused = []
    app.pause = lambda: paused.append(1)
    found = ask(app, "POST", INFER, tensor(shape=[9_000, 1, 2], data=data)).document["outputs"]
    app.pause = lambda: None
    expected = builders.classification().run({"window": values})["scores"]
    assert np.array_equal(np.array(found[1]["data"], np.float32).reshape(-1, 2), expected)
    assert len(paused) > 10
    data[5000:5001] = [["x"]] if nested else ["x"]
    refusal(ask(app, "POST", INFER, tensor(shape=[9_000, 1, 2], data=data)), 400, "rows of numbers")
    if nested:
        data[5000] = [[1.0, 2.0, 3.0]]
        refusal(ask(app, "POST", INFER, tensor(shape=[9_000, 1, 2], data=data)), 400, "rows of numbers")


def test_large_answers_are_packed_for_who_can_unpack_them(app: App) -> None:
    """An answer over a kilobyte comes as gzip, if the client says that it takes it."""
    body = {"inputs": [{"name": "window", "datatype": "FP32", "shape": [200, 1, 2], "data": [1.0] * 400}]}
    plain = ask(app, "POST", INFER, body)
    packed = ask(app, "POST", INFER, body, accept_encoding="br, gzip;q=0.5")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert "Content-Encoding" not in ask(app, "POST", INFER, body, accept_encoding="gzip;q=0").headers


def test_the_states_of_a_model_come_back_and_go_in_again(app: App) -> None:
    """A client hands the state of one answer to the next request, and gets what a stream would give."""
    windows = np.random.default_rng(1).normal(size=(3, 2, 2)).astype(np.float32)
    memory: list[float] | None = None
    scores = []
    for window in windows:
        inputs = [{"name": "window", "datatype": "FP32", "shape": [1, 2, 2], "data": window.tolist()}]
        if memory is not None:
            inputs.append({"name": "memory", "datatype": "FP32", "shape": [1, 3], "data": memory})
        found = ask(app, "POST", "/v2/models/drowsy/infer", {"inputs": inputs}).document["outputs"]
        memory = found[2]["data"]
        scores.append(found[1]["data"])
    draft, state, expected = builders.stateful(), np.zeros((1, 3), np.float32), []
    for window in windows:
        answer = draft.run({"window": window[None], "memory": state})
        state = answer["memory_out"]
        expected.append(answer["scores"][0].tolist())
    assert scores == expected


@pytest.mark.parametrize(
    ("model", "body", "words", "reasons"),
    [
        ("activity", {"temperature": 21.5}, "humidity: expected a number, found none", {"missing_channel": 1}),
        ("activity", {"temperature": "x", "humidity": 1}, "wrong_type", {"wrong_type": 1}),
        ("activity", {"temperature": 1, "humidity": 2e6}, "expected -1e+06 to 1e+06, found 2", {"out_of_range": 1}),
        ("activity", {"temperature": 1, "humidity": 1, "time": "soon"}, "bad_time", {"bad_time": 1}),
        ("motion", {"temperature": 1, "humidity": 1}, "expected a window of 3 readings, found 1", {"window": 1}),
        ("motion", {"temperature": [1, 2], "humidity": [1, 2]}, "3 readings, found 2", {"window": 1}),
        ("motion", {"temperature": [1, 2, 3], "humidity": [1]}, "a list of one length", None),
    ],
)
def test_a_violation_of_the_contract_is_named(app: App, model: str, body: Any, words: str, reasons: Any) -> None:
    """A reading that the stream would reject is 422, with the reason that the stream would count."""
    found = ask(app, "POST", f"/predict/{model}", body)
    refusal(found, 422, words)
    assert found.document.get("reasons") == reasons


def test_a_body_that_is_no_json_is_not_a_violation(app: App) -> None:
    """What cannot be read at all is 400."""
    refusal(ask(app, "POST", "/predict/activity", b"{"), 400, "expected a JSON object of channels")
    refusal(ask(app, "POST", "/predict/activity", b"\x00\xff"), 400, "expected a JSON object of channels")
    refusal(ask(app, "POST", "/predict/picture", {"frame": [1, 2]}), 400, "expected a frame of 4 x 6 x 3 numbers")


def test_a_window_comes_as_a_list_of_readings_or_as_lists(app: App) -> None:
    """Both forms of a window give the same prediction; the time is that of the last reading."""
    rows = [{"temperature": float(i), "humidity": float(-i)} for i in range(3)]
    rows[-1]["time"] = 1700000000.25
    lists = {"temperature": [0.0, 1.0, 2.0], "humidity": [0.0, -1.0, -2.0], "time": 1700000000.25}
    first = ask(app, "POST", "/predict/motion", rows).document
    second = ask(app, "POST", "/predict/motion", lists).document
    assert first["time"] == "2023-11-14T22:13:20.250000Z"
    assert first["scores"] == second["scores"]
    assert first["id"] == second["id"] == "d/motion/-/1700000000.25"


def test_every_answer_without_an_identity_has_an_id_of_its_own(app: App) -> None:
    """Ids of answers never repeat, and never look like those of the stream."""
    ids = [ask(app, "POST", "/predict/power", {"current": 1, "voltage": 2}).document["id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert ids[0].startswith("d/power/-/http-3-")


def test_metrics_are_read_by_prometheus_own_parser(app: App) -> None:
    """The page of metrics is sound, whatever characters names hold."""
    ask(app, "GET", "/v2/models/nothing")
    found = ask(app, "GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(found.body.decode())}
    assert families["edge_info"].samples[0].labels["device"] == 'a"b\\c\nd'
    assert families["edge_readings"].samples[0].value == 5
    assert {s.labels["quantile"]: s.value for s in families["edge_model_latency_seconds"].samples} == {
        "0.5": 0.0005,
        "0.99": 0.00125,
    }
    assert families["edge_link_connected"].samples[0].labels == {"link": "upstream"}
    assert families["edge_broker_fallback"].samples[0].value == 1
    changes = {sample.labels["to"]: sample.value for sample in families["edge_broker_changes"].samples}
    assert changes == {"failover": 2, "return": 1}
    assert families["edge_rejected"].samples[0].labels == {"reason": "out_of_range"}
    assert any(s.labels == {"route": "model", "status": "404"} for s in families["edge_http_requests"].samples)


def test_without_a_token_only_the_loopback_is_meant(app: App) -> None:
    """A page of another site, whose name was made to point at this machine, is turned away."""
    refusal(ask(app, "GET", "/v2", host="evil.example:8080"), 403, "evil.example")
    for host in ("localhost", "127.0.0.1:9", "[::1]:8080"):
        assert ask(app, "GET", "/v2", host=host).status == 200


def test_head_gives_the_head_of_get(app: App) -> None:
    """HEAD has the headers of GET and no body."""
    found = ask(app, "HEAD", "/v2")
    assert (found.status, found.body) == (200, b"")
    assert int(found.headers["Content-Length"]) == len(ask(app, "GET", "/v2").body)


class CountingModel:
    """A model that says how many windows it was given at a time, and cannot take a 13."""

    def __init__(self, manifest: Any) -> None:
        self.manifest = manifest
        self.sizes: list[int] = []

    def run(self, windows: Floats, carries: object = None) -> Scores:
        self.sizes.append(len(windows))
        if (windows == 13).any():
            raise ModelError("unlucky")
        return Scores(value=windows.reshape(len(windows), -1))


@pytest.fixture
def counting(models: list[Served]) -> Any:
    """A model that counts."""
    return CountingModel(models[2].manifest)


def work(model: Any, count: int, number: float = 0.0) -> Work:
    """A request of so many windows, which is answered with its scores."""
    windows = np.full((count, 1, 1), number, np.float32)
    return Work(model, windows, lambda scores: Response(body=repr(scores.value).encode()))


@pytest.mark.parametrize("numbers", [range(20, 26), range(10, 16)], ids=["all good", "one of them bad"])
def test_requests_that_wait_together_are_scored_together(counting: Any, numbers: range) -> None:
    """One call of the model takes all that wait for it; each gets its own scores, and a bad one spoils no other."""
    scorer = Scorer()
    waiting = {number: work(counting, 2, number) for number in numbers}
    for each in waiting.values():
        scorer.add(each)
    assert scorer.turn() == list(waiting.values())
    assert counting.sizes[0] == 12
    for number, each in waiting.items():
        if number == 13:
            with pytest.raises(HttpError, match="unlucky") as caught:
                result(each)
            assert caught.value.status == 422
        else:
            assert result(each).body == repr(np.full((2, 1), number, np.float32)).encode()


def test_a_large_request_takes_turns_with_others(counting: Any) -> None:
    """No request waits for more than one call of the model's largest batch."""
    scorer = Scorer()
    large, small = work(counting, 2 * MAX_WINDOWS + 1), work(counting, 1)
    scorer.add(large)
    scorer.add(small)
    assert [scorer.turn(), scorer.turn(), scorer.turn(), scorer.turn()] == [[], [small], [], [large]]
    assert counting.sizes == [MAX_WINDOWS, 1, MAX_WINDOWS, 1]


def test_too_many_requests_are_told_to_come_back(counting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is 503 with Retry-After, and so is a turn that comes too late."""
    monkeypatch.setattr(scorer_module, "MAX_WAITING", 1)
    scorer = Scorer()
    late = work(counting, 1)
    late.since -= scorer_module.PATIENCE_S + 1
    scorer.add(late)
    with pytest.raises(HttpError, match="too many") as caught:
        scorer.add(work(counting, 1))
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    assert scorer.turn() == [late]
    with pytest.raises(HttpError, match="no turn") as caught:
        result(late)
    assert caught.value.status == 503
    assert not counting.sizes


def test_work_is_refused_at_once_when_too_much_of_it_waits(models: list[Served], counting: Any) -> None:
    """Requests that would wait for long are refused with the reason; the small questions are answered all the same."""
    busy = App(models, Board(health=lambda: HEALTH))
    for _ in range(scorer_module.MAX_WAITING):
        busy.scorer.add(work(counting, 1))
    found = ask(busy, "POST", INFER, tensor())
    refusal(found, 503, "too many")
    assert found.headers["Retry-After"] == "1"
    assert ask(busy, "GET", "/healthz").status == 200
    busy.stop()


def test_a_daemon_that_does_not_answer_is_not_healthy(models: list[Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the loop hangs, `/healthz` is 503 while the server itself still answers."""
    monkeypatch.setattr("edge_runtime.http.live_view.PATIENCE_S", 0.01)
    hung = App(models, Board(lambda _call: None, lambda: HEALTH))
    refusal(ask(hung, "GET", "/healthz"), 503, "the daemon has not answered")
    assert ask(hung, "GET", "/v2/health/live").status == 200
    hung.stop()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
hostile = st.one_of(
    st.binary(max_size=80),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda shape, data, kind, more: json.dumps(tensor(shape=shape, data=data, datatype=kind) | more).encode(),
        json_values | st.lists(st.integers(-3, 4), max_size=4),
        json_values,
        st.sampled_from(["FP32", "INT64", "BYTES", ""]),
        st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "x"]), json_values, max_size=2),
    ),
    st.builds(
        lambda first, second: json.dumps({"temperature": first, "humidity": second}).encode(), json_values, json_values
    ),
)


@settings(max_examples=400)
@given(
    body=hostile,
    path=st.sampled_from([INFER, "/predict/activity", "/predict/motion", "/predict/picture", "/v2/models/drowsy/infer"])
    | st.text(max_size=20).map(lambda text: "/" + text.encode().decode("latin-1")),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD"]),
    headers=st.dictionaries(
        st.sampled_from(["content_encoding", "inference_header_content_length", "accept_encoding", "authorization"]),
        st.sampled_from(["gzip", "deflate", "0", "5", "identity", "Basic !", "*"]),
        max_size=2,
    ),
)
def test_nothing_that_is_asked_ends_in_an_internal_error(
    app: App, body: bytes, path: str, method: str, headers: dict[str, str]
) -> None:
    """Whatever a client sends, it is answered or refused with a reason; the service goes on."""
    if path == "/events":
        return
    found = ask(app, method, path, body, **headers)
    assert found.status < 500, (path, body)
    if found.status >= 400 and method != "HEAD":
        assert found.document["error"]


def test_the_page_is_small_and_needs_nothing_else(app: App, tmp_path: Path) -> None:
    """The status page is one file of less than 30 kB that loads nothing from anywhere."""
    found = ask(app, "GET", "/")
    assert found.status == 200
    assert len(found.body) < 30_000
    text = found.body.decode()
    assert '<html lang="en">' in text
    for foreign in ("http://", "https://", "src=", "@import", "url("):
        assert foreign not in text
    assert "default-src 'none'" in found.headers["Content-Security-Policy"]


def test_the_openapi_file_names_every_route_with_its_method(app: App) -> None:
    """What tools read about the routes is what the routes are, and its refusals look as it says."""
    document = ask(app, "GET", "/openapi.json").document
    described = {
        (method.upper(), path.replace("{model}", "activity").replace("{version}", "1.0.0"))
        for path, methods in document["paths"].items()
        for method in methods
    }
    for method, path in described - {("GET", "/events"), ("POST", "/truth/activity")}:  # a daemon's own
        found = ask(app, method, path, tensor())
        assert found.status in {200, 422}, path
        wrong = "POST" if method == "GET" else "GET"
        assert ask(app, wrong, path).status == 405, path
    routes = [(wanted, pattern) for _name, pattern, wanted, _handler in app._routes]
    for wanted, pattern in routes:
        assert any(method == wanted and pattern.fullmatch(path) for method, path in described), pattern


def test_another_bundle_goes_on_numbering(models: list[Served]) -> None:
    """The ids of predictions before and after an exchange of a bundle differ, so that no two answers are one."""
    numbers: Numbers = {}
    reading = b'{"temperature": 21.5, "humidity": 48.25}'
    ids = []
    for _ in range(2):
        served = Served("activity", models[0].model, device="d", start=3, numbers=numbers)
        ids += [ask(App([served], Board()), "POST", "/predict/activity", reading).document["id"] for _ in range(2)]
    assert len(set(ids)) == 4
