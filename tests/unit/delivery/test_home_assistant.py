"""The document for Home Assistant: what its validator asks for, for every kind of model, and when it is published."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge_runtime.bundle.manifest import Input, Manifest, Output, Target
from edge_runtime.bundle.model import Model
from edge_runtime.config.load import load_config
from edge_runtime.config.tables import Config, ModelTable
from edge_runtime.delivery import home_assistant
from edge_runtime.delivery.home_assistant import HomeAssistant, components_of
from edge_runtime.delivery.payloads import can_alarm
from edge_runtime.errors import ConfigError
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Handler, Message
from edge_runtime.stream.decide import Decider
from tests.support.stepped import SteppedLoop

SCHEMAS = Path(__file__).resolve().parents[3] / "docs" / "schemas"
DEVICE = """
[device]
id = "press-07"
[[source]]
name = "imu"
type = "mqtt"
topics = ["readings/{key}"]
[[model]]
name = "m"
bundle = "m.onnx"
source = "imu"
[upstream]
url = "mqtt://localhost"
[home_assistant]
prefix = "home"
"""
TOPIC = "home/device/edge_press-07/config"
OUTPUTS = {
    "classification": Output(labels=("ok", "worn")),
    "anomaly": Output(threshold=2.0),
    "regression": Output(targets=(Target("power", "W"), Target('o"dd {{ näme', "degC"))),
    "detection": Output(labels=("cat", "dog"), detections=3),
    "multilabel": Output(labels=("hot", "wet", 'lo"ud')),
}


def _manifest(task: str) -> Manifest:
    return Manifest(name="m", version="1.0.0", task=cast("Any", task), input=Input(), output=OUTPUTS[task])


def _table(name: str = "m", **more: Any) -> ModelTable:
    return ModelTable(name=name, bundle="m.onnx", source="imu", **more)


def _config(folder: Path, text: str = DEVICE) -> Config:
    (folder / "m.onnx").touch()
    (folder / "device.toml").write_text(text)
    return load_config(folder / "device.toml")


class _Link:
    """A connection that keeps what is published, and hands in what a test says."""

    def __init__(self) -> None:
        self.ready = True
        self.url = "mqtt://first"
        self.sent: list[tuple[str, bytes, bool]] = []
        self.filters: list[str] = []
        self.handler: Handler | None = None

    def subscribe(self, filters: list[str], _qos: int, handler: Handler) -> None:
        self.filters, self.handler = filters, handler

    def unsubscribe(self, _handler: Handler) -> None:
        self.handler = None

    def publish(self, topic: str, payload: bytes, *, retain: bool, **_more: Any) -> bool:
        self.sent.append((topic, payload, retain))
        return True

    def hear(self, topic: str, payload: bytes, *, retained: bool = False) -> None:
        assert self.handler is not None
        message = Message(topic.encode(), payload, None, retained=retained)
        self.handler([message])
        assert message.claimed

    @property
    def components(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sent[-1][1])["components"]
        return found


class _Rig:
    """A `HomeAssistant` on a loop whose time the test moves."""

    def __init__(self, config: Config, models: dict[str, Manifest]) -> None:
        self.loop, self.link = SteppedLoop(), _Link()
        self.keys: dict[str, list[str | None]] = {name: [] for name in models}
        self.births = 0
        self.part = HomeAssistant(
            cast("AnyConnection", self.link),
            self.loop.as_loop,
            keys=lambda: dict(self.keys),
            on_birth=self._born,
        )
        self.part.configure(config)
        self.begin(models)

    def begin(self, models: dict[str, Manifest]) -> None:
        made = [(_table(name), cast("Model", SimpleNamespace(manifest=each))) for name, each in models.items()]
        self.part.begin(made)

    def _born(self) -> None:
        self.births += 1


@pytest.mark.parametrize("task", OUTPUTS)
@pytest.mark.parametrize("key", [None, "hall", "hall/9 é"])
def test_each_entity_has_what_the_validator_asks_for(task: str, key: str | None) -> None:
    """As tried with Home Assistant 2025.1: platform, unique id, state topic; an enum has options and no state class."""
    found = components_of(_table(alarm_labels=("worn",)), _manifest(task), "edge/d/m/{key}", "edge_d", key=key)
    assert found
    assert len({each["unique_id"] for each in found.values()}) == len(found)
    for name, each in found.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
        assert each["unique_id"] == f"edge_d__{name}"
        assert each["platform"] in {"sensor", "binary_sensor"}
        assert each["state_topic"] == f"edge/d/m/{key or '-'}"
        is_enum = each.get("device_class") == "enum"
        assert is_enum == ("options" in each)
        assert not (is_enum and ("state_class" in each or "unit_of_measurement" in each))
        assert each["platform"] == "sensor" or set(each).isdisjoint({"state_class", "unit_of_measurement", "options"})


@pytest.mark.parametrize("task", OUTPUTS)
def test_templates_read_what_the_schema_shows(task: str) -> None:
    """Evaluated as Home Assistant does it, on the examples of `docs/schemas`."""
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    example = json.loads((SCHEMAS / f"prediction-{task}.json").read_text())["examples"][0]
    if task == "regression":
        example["values"]['o"dd {{ näme'] = 21.5
    if task == "multilabel":
        example["labels"]['lo"ud'] = 0.5
    found = components_of(_table(alarm_labels=("worn",)), _manifest(task), "t", "edge_d", key=None)
    values = {
        name.removeprefix("m__"): environment.from_string(each["value_template"]).render(value_json=example)
        for name, each in found.items()
    }
    expected = {
        "classification": {"label": "worn", "score": "0.973", "alarm": "ON"},
        "anomaly": {"score": "3.5", "anomaly": "ON", "alarm": "ON"},
        "regression": {"value_power": "12.5", next(each for each in values if "dd" in each): "21.5"}
        if task == "regression"
        else {},
        "detection": {"count": "2", "alarm": "ON"},
        "multilabel": {
            "present_hot": "ON",
            "score_hot": "0.97",
            "present_wet": "OFF",
            "score_wet": "0.125",
            **{name: "OFF" if name.startswith("present") else "0.5" for name in values if "ud" in name},
            "alarm": "ON",
        },
    }[task]
    assert values == expected


def test_values_have_unit_and_class() -> None:
    """The unit in the spelling of Home Assistant, and the class that belongs to it."""
    power, odd = components_of(_table(), _manifest("regression"), "t", "d", key=None).values()
    assert (power["unit_of_measurement"], power["device_class"]) == ("W", "power")
    assert (odd["unit_of_measurement"], odd["device_class"]) == ("°C", "temperature")


@pytest.mark.parametrize("task", OUTPUTS)
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("labels", [(), ("worn",)])
def test_an_alarm_is_an_entity_where_predictions_have_one(
    task: str, threshold: float | None, labels: tuple[str, ...]
) -> None:
    """As the stage that makes the predictions has it."""
    table, manifest = _table(threshold=threshold, alarm_labels=labels), _manifest(task)
    assert can_alarm(table, manifest) == Decider(manifest, table)._can_alarm


def test_the_document_follows_what_there_is(tmp_path: Path) -> None:
    """Keys appear as they are seen, and what is said already is not said again."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("classification")})
    assert rig.link.filters == [TOPIC, "home/status"]
    assert rig.link.sent == []  # the broker has not yet had time to send an earlier document
    rig.loop.advance(home_assistant.READ_BACK_S)
    topic, payload, retained = rig.link.sent[-1]
    assert (topic, retained) == (TOPIC, True)
    document = json.loads(payload)
    assert set(document) == {"device", "origin", "availability_topic", "qos", "components"}  # it refuses others
    assert document["device"]["identifiers"] == ["edge_press-07"]
    assert document["origin"]["name"]
    assert document["availability_topic"] == "edge/press-07/status"
    assert all(name.startswith("health__") for name in document["components"])
    rig.keys["m"].append("hall")
    rig.loop.advance(home_assistant.LOOK_S)
    assert rig.link.components["m__hall__label"]["state_topic"] == "edge/press-07/m/hall"
    rig.loop.advance(10 * home_assistant.LOOK_S)
    assert len(rig.link.sent) == 2


def test_a_look_makes_no_document_where_nothing_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many models and keys a document is large, and a look comes every two seconds."""
    made: list[str] = []
    real = home_assistant.components_of

    def counted(table: ModelTable, *arguments: Any, **more: Any) -> Any:
        made.append(table.name)
        return real(table, *arguments, **more)

    monkeypatch.setattr(home_assistant, "components_of", counted)
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.keys["m"] += ["hall", "attic"]
    rig.loop.advance(home_assistant.READ_BACK_S)
    before = len(made)
    rig.loop.advance(10 * home_assistant.LOOK_S)
    assert len(made) == before
    rig.keys["m"].append("cellar")
    rig.loop.advance(home_assistant.LOOK_S)
    assert "m__cellar__anomaly" in rig.link.components
    rig.link.hear("home/status", b"online")
    rig.loop.advance(10.0)
    assert len(rig.link.sent) == 3


def test_a_birth_is_answered_once_and_only_a_birth(tmp_path: Path) -> None:
    """The same document again, and then the state of the device."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.loop.advance(home_assistant.READ_BACK_S)
    rig.link.hear("home/status", b"offline")
    rig.loop.advance(10.0)
    assert (len(rig.link.sent), rig.births) == (1, 0)
    rig.link.hear("home/status", b"online")
    rig.link.hear("home/status", b"online")
    rig.loop.advance(10.0)
    assert (len(rig.link.sent), rig.births) == (2, 1)
    assert rig.link.sent[0] == rig.link.sent[1]


def test_another_broker_is_given_the_document_too(tmp_path: Path) -> None:
    """The one that stands in for the first, and the first again; whether or not the link was seen to be down."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.loop.advance(home_assistant.READ_BACK_S)
    rig.link.url = "mqtt://second"
    rig.part.link_changed()
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert len(rig.link.sent) == 2
    rig.link.ready = False
    rig.part.link_changed()
    rig.loop.advance(60.0)
    assert len(rig.link.sent) == 2
    rig.link.ready = True
    rig.part.link_changed()
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert len(rig.link.sent) == 3


def test_what_an_earlier_document_had_is_removed_or_goes_on(tmp_path: Path) -> None:
    """A model that is gone is left with its platform alone; a key that was seen needs no new reading."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    sensor = {"platform": "sensor", "unique_id": "x"}
    earlier = {
        "old__score": sensor | {"state_topic": "edge/press-07/old/-"},
        "m__hall__score": sensor | {"state_topic": "edge/press-07/m/hall"},
        "long_gone": {"platform": "sensor"},
    }
    rig.link.hear(TOPIC, json.dumps({"components": earlier}).encode(), retained=True)
    rig.loop.advance(home_assistant.READ_BACK_S)
    found = rig.link.components
    assert found["old__score"] == {"platform": "sensor"}
    assert found["m__hall__score"]["unique_id"] == "edge_press-07__m__hall__score"
    assert "long_gone" not in found
    rig.begin({})
    assert rig.link.components["m__hall__anomaly"] == {"platform": "binary_sensor"}
    rig.begin({"m": _manifest("anomaly")})
    rig.keys["m"].append("hall")
    rig.loop.advance(home_assistant.LOOK_S)
    assert rig.link.components["m__hall__anomaly"]["device_class"] == "problem"


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[]", b'{"components": 3}', b'{"components": {"a": "b"}}', b"{}", b"[" * 60_000]
)
def test_a_strange_document_is_replaced(tmp_path: Path, payload: bytes) -> None:
    """Whoever may write there can put anything there."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.link.hear(TOPIC, payload, retained=True)
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert rig.link.components


def test_keys_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document does not grow without end, whatever the keys are."""
    monkeypatch.setattr(home_assistant, "MOST_KEYS", 3)
    rig = _Rig(_config(tmp_path), {"m": _manifest("detection")})
    rig.keys["m"] += [f"k{number}" for number in range(10)]
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert sum(name.endswith("__count") for name in rig.link.components) == 3


def test_a_source_without_keys_has_entities_at_once(tmp_path: Path) -> None:
    """Nothing but the first reading would tell more."""
    rig = _Rig(_config(tmp_path, DEVICE.replace("{key}", "all")), {"m": _manifest("regression")})
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert rig.link.components["m__value_power"]["state_topic"] == "edge/press-07/m/-"


DEVICES = DEVICE.replace('prefix = "home"', 'prefix = "home"\nkeys = "devices"')
HALL = "home/device/edge_press-07__hall/config"


def _documents(rig: _Rig) -> dict[str, Any]:
    """The newest of each topic; None where it was cleared."""
    return {topic: json.loads(payload) if payload else None for topic, payload, _ in rig.link.sent}


def test_keys_are_devices_where_that_is_wanted(tmp_path: Path) -> None:
    """Each has a document of its own, behind that of the device that connects it; health stays there."""
    rig = _Rig(_config(tmp_path, DEVICES), {"m": _manifest("anomaly")})
    assert rig.link.filters == ["home/device/+/config", "home/status"]
    rig.keys["m"] += ["hall", "ä/b"]
    rig.loop.advance(home_assistant.READ_BACK_S)
    topics = [topic for topic, _, _ in rig.link.sent]
    assert topics[:2] == [TOPIC, HALL]
    assert len(topics) == 3
    documents = _documents(rig)
    assert all(name.startswith("health__") for name in documents[TOPIC]["components"])
    hall = documents[HALL]
    assert hall["device"] | {"sw_version": ""} == {
        "identifiers": ["edge_press-07__hall"],
        "name": "hall",
        "manufacturer": "edge-runtime",
        "model": "edge device",
        "sw_version": "",
        "via_device": "edge_press-07",
    }
    assert set(hall) == set(documents[TOPIC])
    assert hall["availability_topic"] == "edge/press-07/status"
    assert set(hall["components"]) == {"m__score", "m__anomaly", "m__alarm"}
    assert hall["components"]["m__score"]["state_topic"] == "edge/press-07/m/hall"
    assert hall["components"]["m__score"]["name"] == "m score"
    ids = [each["unique_id"] for document in documents.values() for each in document["components"].values()]
    assert len(ids) == len(set(ids))
    assert re.fullmatch(r"home/device/[A-Za-z0-9_-]+/config", topics[2])
    rig.loop.advance(10 * home_assistant.LOOK_S)
    assert len(rig.link.sent) == 3
    rig.link.hear("home/status", b"online")
    rig.loop.advance(10.0)
    assert [topic for topic, _, _ in rig.link.sent[3:]] == topics


def test_the_device_of_a_key_goes_on_over_a_start_and_goes_when_its_models_are_gone(tmp_path: Path) -> None:
    """Documents of other devices are nothing to us; an empty retained message removes one of ours."""
    rig = _Rig(_config(tmp_path, DEVICES), {"m": _manifest("anomaly")})
    sensor = {"platform": "sensor", "state_topic": "edge/press-07/m/hall"}
    rig.link.hear(HALL, json.dumps({"components": {"m__score": sensor, "m__old": sensor}}).encode(), retained=True)
    gone = {"components": {"old__score": {"platform": "sensor", "state_topic": "edge/press-07/old/attic"}}}
    attic = HALL.replace("hall", "attic")
    rig.link.hear(attic, json.dumps(gone).encode(), retained=True)
    rig.link.hear("home/device/edge_press-070__hall/config", json.dumps(gone).encode(), retained=True)
    rig.loop.advance(home_assistant.READ_BACK_S)
    documents = _documents(rig)
    assert set(documents) == {TOPIC, HALL, attic}
    assert documents[attic] is None
    assert documents[HALL]["components"]["m__old"] == {"platform": "sensor"}
    assert documents[HALL]["components"]["m__score"]["unique_id"] == "edge_press-07__hall__m__score"
    rig.part.leave(for_good=True)
    assert {topic for topic, payload in ((t, p) for t, p, _ in rig.link.sent[-2:]) if not payload} == {TOPIC, HALL}


def test_a_device_that_leaves_for_good_is_removed(tmp_path: Path) -> None:
    """An empty retained message is how."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.loop.advance(home_assistant.READ_BACK_S)
    rig.part.leave(for_good=True)
    assert rig.link.sent[-1] == (TOPIC, b"", True)
    rig.loop.advance(60.0)
    assert rig.link.sent[-1][1] == b""


def test_ids_do_not_collide() -> None:
    """Names with signs that an id cannot have, and names that another split of the parts would give."""
    tables = [("a_b", None), ("a", "b"), ("a__b", None), ("a", "_b"), ("a b", None), ("a/b", None), ("a.b", None)]
    ids = [
        name for model, key in tables for name in components_of(_table(model), _manifest("anomaly"), "t", "d", key=key)
    ]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("line", "word"),
    [('status_topic = ""', "upstream.status_topic"), ("retain = false", "upstream.retain")],
)
def test_what_would_leave_entities_unavailable_is_refused(tmp_path: Path, line: str, word: str) -> None:
    """Without a retained status Home Assistant never learns that the device is there."""
    with pytest.raises(ConfigError) as caught:
        _config(tmp_path, DEVICE.replace("localhost", f'localhost"\n{line}\ntopic = "t/{{model}}'))
    assert [each.split(": ")[1] for each in caught.value.mistakes] == [word]
