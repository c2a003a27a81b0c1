"""Truth that comes later, over a real broker and over HTTP: joined, counted by reason, kept over a restart."""

import contextlib
import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.truth.figures import wilson
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system

ACCURACY = "edge/room/accuracy/comfort"
TRUTH = "edge/room/truth/comfort"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two labels, of single readings."""
    return builders.classification().save(tmp_path / "comfort.onnx")


def _send(client: Subscriber, count: int, key: str = "a") -> list[Any]:
    """Readings, and their predictions."""
    before = len(client.on(f"edge/room/comfort/{key}"))
    for number in range(count):
        reading = {
            "temperature": number % 7 - 3,
            "humidity": number % 3,
            "time": 1_800_000_000 + 10 * (before + number),
        }
        client.publish(f"sensors/{key}/climate", reading)
    return [each.document for each in client.wait_for(before + count, f"edge/room/comfort/{key}")][before:]


def _wait_for_accuracy(client: Subscriber, **wanted: Any) -> Any:
    """The first document with these members."""

    def newest() -> Any:
        found = client.on(ACCURACY)
        return found[-1].document if found else {}

    wait_until(lambda: {name: newest().get(name) for name in wanted} == wanted, lambda: f"{wanted}, not {newest()}", 15)
    return newest()


def _other(label: str) -> str:
    return "low" if label == "high" else "high"


def test_truth_by_id_and_by_key_and_time_gives_live_accuracy(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, make_subscriber: MakeSubscriber, bundle: Path
) -> None:
    """Right, wrong, unknown, late, twice, contradicting and malformed: each counted where it belongs, and kept."""
    daemon = make_daemon(
        climate_device(mosquitto, bundle, model="", source="late_tolerance = 1") + "[truth]\nremember = 20\n"
    )
    daemon.start()
    subscriber.wait_for_text("edge/room/status", "online")
    old = _send(subscriber, 10)
    made = _send(subscriber, 20)
    for each in made[:8]:
        subscriber.publish(TRUTH, {"id": each["id"], "label": each["label"]})
    for each in made[8:12]:
        subscriber.publish(TRUTH, {"key": "a", "time": each["time"], "label": _other(each["label"])})
    document = _wait_for_accuracy(subscriber, n=12)
    assert document["accuracy"] == pytest.approx(8 / 12, abs=1e-6)
    assert document["interval"] == pytest.approx(wilson(8, 12), abs=1e-5)
    assert document["unmatched"] == {"unknown": 0, "late": 0, "twice": 0, "conflict": 0}
    confusion: dict[str, dict[str, int]] = {}
    for place, each in enumerate(made[:12]):
        row = confusion.setdefault(each["label"] if place < 8 else _other(each["label"]), {})
        row[each["label"]] = row.get(each["label"], 0) + 1
    assert document["confusion"] == confusion

    subscriber.publish(TRUTH, {"id": made[0]["id"], "label": made[0]["label"]})
    subscriber.publish(TRUTH, {"id": made[1]["id"], "label": _other(made[1]["label"])})
    subscriber.publish(TRUTH, {"id": old[0]["id"], "label": "low"})
    subscriber.publish(TRUTH, {"key": "a", "time": old[1]["time"], "label": "low"})
    subscriber.publish(TRUTH, {"id": "hall/comfort/a/no-such-id", "label": "low"})
    subscriber.publish(TRUTH, {"id": made[2]["id"], "label": "middling"})
    for body in ("{", "[]", json.dumps({"label": "low"})):
        subscriber.publish(TRUTH, body)
    subscriber.publish("edge/room/truth/no-such-model", {"id": "x", "label": "low"})
    document = _wait_for_accuracy(subscriber, refused={"unknown_label": 1, "malformed": 3})
    assert document["unmatched"] == {"unknown": 1, "late": 2, "twice": 1, "conflict": 1}
    assert document["n"] == 12
    health = _wait_for_health(subscriber)
    assert health["errors"] == {
        "truth_malformed": 3,
        "truth_unknown_label": 1,
        "truth_unknown": 1,
        "truth_late": 2,
        "truth_conflict": 1,
        "truth_unknown_model": 1,
    }
    assert health["skipped"] == {"truth_twice": 1}
    assert health["models"]["comfort"]["accuracy"]["n"] == 12
    for words in ("expected one of low, high, found 'middling'", "the first one stands", "is known already: "):
        assert daemon.log.count(words) == 1
    assert daemon.stop() == 0

    newcomer = make_subscriber(mosquitto.port, ACCURACY)
    assert newcomer.wait_for(1)[0].document["n"] == 12  # retained
    subscriber.clear()
    daemon.start()
    assert _wait_for_accuracy(subscriber, n=12)["unmatched"] == document["unmatched"]
    subscriber.publish(TRUTH, {"id": made[13]["id"], "label": made[13]["label"]})
    subscriber.publish(TRUTH, {"id": made[0]["id"], "label": made[0]["label"]})
    document = _wait_for_accuracy(subscriber, n=13)
    assert document["unmatched"]["twice"] == 2
    assert daemon.stop() == 0


def test_several_labels_that_were_mostly_withheld_have_an_accuracy_too(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """By key and time, also where truth comes before the reading; by id what was published."""
    bundle = builders.multilabel().save(tmp_path / "alerts.onnx")
    daemon = make_daemon(climate_device(mosquitto, bundle, model='publish = "change"')).start()
    subscriber.wait_for_text("edge/room/status", "online")
    start = 1_800_000_000

    def read(place: int, warm: float) -> None:
        reading = {"temperature": warm, "humidity": 0.5, "pressure": 0.5, "time": start + 10 * place}
        subscriber.publish("sensors/a/climate", reading)

    subscriber.publish(TRUTH, {"key": "a", "time": start + 30, "labels": []})
    for place, warm in enumerate((5.0, 5.0, 5.0, -5.0, -5.0)):
        read(place, warm)
    first, second = (each.document for each in subscriber.wait_for(2, "edge/room/comfort/a"))
    assert first["present"] != second["present"]
    for place in (1, 2):
        subscriber.publish(TRUTH, {"key": "a", "time": start + 10 * place, "labels": first["present"]})
    subscriber.publish(TRUTH, {"id": first["id"], "labels": first["present"]})
    subscriber.publish(TRUTH, {"id": first["id"], "label": "hot"})
    document = _wait_for_accuracy(subscriber, n=4, withheld=2, refused={"malformed": 1})
    wrong = len(second["present"])
    assert wrong > 0
    assert (document["accuracy"], document["right"]) == (0.75, 3)
    assert document["hamming"] == pytest.approx(wrong / 12, abs=1e-5)
    assert sum(row["false"] for row in document["labels"].values()) == wrong
    assert {label for label, row in document["labels"].items() if row["hit"] >= 3} >= set(first["present"])
    assert daemon.stop() == 0


def _wait_for_health(client: Subscriber) -> Any:
    def newest() -> Any:
        found = client.on("edge/room/health")
        return found[-1].document if found else {}

    wait_until(lambda: newest().get("errors", {}).get("truth_unknown_model") == 1, lambda: str(newest()), 15)
    return newest()


def test_a_tap_over_http_is_joined_with_the_token_that_http_wants(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, bundle: Path, tmp_path: Path, free_port: int
) -> None:
    """Each refusal has its status and the sentence; without the token nothing is taken."""
    (tmp_path / "token").write_text("secret\n")
    http = f'[http]\nlisten = "127.0.0.1:{free_port}"\ntoken_file = "{tmp_path / "token"}"\n'
    daemon = make_daemon(climate_device(mosquitto, bundle) + http + '[truth]\nlisten = "off"\n').start()
    subscriber.wait_for_text("edge/room/status", "online")
    made = _send(subscriber, 3)

    def tell(document: Any, *, login: str = "secret", model: str = "comfort") -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", free_port, timeout=patient(10))
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {login}"}
        with contextlib.closing(connection):
            connection.request("POST", f"/truth/{model}", json.dumps(document), head)
            answer = connection.getresponse()
            return answer.status, json.load(answer)

    first = {"id": made[0]["id"], "label": made[0]["label"]}
    assert tell(first, login="guess")[0] == 401
    assert tell(first) == (200, {"result": "joined", "id": made[0]["id"], "right": True})
    assert tell(first) == (200, {"result": "twice", "id": None, "right": None})
    assert tell({**first, "label": _other(made[0]["label"])})[0] == 409
    wrong = {"key": "a", "time": made[1]["time"], "label": _other(made[1]["label"])}
    assert tell(wrong) == (200, {"result": "joined", "id": made[1]["id"], "right": False})
    assert tell({"id": "nothing", "label": "low"})[0] == 404
    assert tell({"id": "room/comfort/a/1/1", "label": "low"})[0] == 410
    assert tell({"id": made[2]["id"], "label": "so-so"})[0] == 422
    assert tell({"id": made[2]["id"]})[0] == 400
    assert tell(first, model="other")[0] == 404
    assert tell({"id": made[2]["id"], "label": "so-so"})[1]["error"].endswith(
        "expected one of low, high, found 'so-so'"
    )
    document = _wait_for_accuracy(subscriber, n=2)
    assert document["unmatched"] == {"unknown": 1, "late": 1, "twice": 1, "conflict": 1}
    assert daemon.stop() == 0


def test_the_accuracy_is_estimated_without_any_truth(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """The mean of the chances that the scores promise, over every window, also of those that are withheld."""
    draft = builders.classification()
    scores, shares = [0.5, 0.75, 1.0], [0.4, 0.7, 0.95]
    draft.manifest["uncertainty"] = {"confidence": {"scores": scores, "shares": shares}}
    bundle = draft.save(tmp_path / "sure.onnx")
    daemon = make_daemon(climate_device(mosquitto, bundle)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    made = _send(subscriber, 40)
    document = _wait_for_accuracy(subscriber, estimated_over=40)
    chances = np.interp([each["score"] for each in made], scores, shares)
    assert document["estimated"] == pytest.approx(chances.mean(), abs=1e-4)
    assert (document["n"], document["accuracy"]) == (0, None)
    assert daemon.stop() == 0
