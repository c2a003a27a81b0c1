"""The document for Home Assistant: what its validator asks for, for every kind of model, and when it is published."""

import hashlib
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
    "multilabel": Output(labels=("hot", "wet", 'lo"ud 🔥')),
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

    def subscribe(self, filters: list[str], qos: int, handler: Handler) -> None:
        assert qos == 1
        self.filters, self.handler = filters, handler

    def unsubscribe(self, _handler: Handler) -> None:
        self.handler = None

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, **_more: Any) -> bool:
        assert qos == 1
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
        example["labels"]['lo"ud 🔥'] = 0.5
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
    """Keys appear as they are seen, and what is reported already is not reported again."""
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
    assert document["qos"] == 1  # a prediction is published with 1 too
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
    rig.part.exchange(_table(), cast("Model", SimpleNamespace(manifest=_manifest("anomaly"))))
    assert len(rig.link.sent) == 1  # another bundle with the same outputs
    before = len(made)
    rig.loop.advance(10 * home_assistant.LOOK_S)
    assert len(made) == before
    rig.keys["m"].append("cellar")
    rig.loop.advance(home_assistant.LOOK_S)
    assert "m__cellar__anomaly" in rig.link.components
    rig.link.hear("home/status", b"online")
    rig.loop.advance(10.0)
    assert len(rig.link.sent) == 3
    monkeypatch.setattr(home_assistant, "MOST_KEYS", 3)
    rig.keys["m"].append("one too many")
    before = len(made)
    rig.loop.advance(10 * home_assistant.LOOK_S)
    assert len(made) == before


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
def test_a_strange_document_is_replaced(tmp_path: Path, payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever may write there can put anything there; a removed document, which is empty, is not strange."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.link.hear(TOPIC, payload, retained=True)
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert rig.link.components
    assert len([each for each in caplog.records if "not one of ours" in each.message]) == bool(payload)


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


KEYED = DEVICE.replace('topics = ["readings/{key}"]', 'topics = ["readings/all"]\nkey = "machine"')
OTHERS = "".join(f'[[source]]\nname = "{name}"\ntype = "mqtt"\ntopics = ["{name}"]\n' for name in ("a", "b"))
JOINED = DEVICE.replace('"mqtt"\ntopics = ["readings/{key}"]', '"join"\nof = ["a", "b"]').replace(
    "[[model]]", f"{OTHERS}[[model]]"
)


@pytest.mark.parametrize("text", [DEVICE, KEYED, JOINED])
def test_a_source_that_may_have_keys_has_entities_with_its_first(tmp_path: Path, text: str) -> None:
    """From a topic, from a field, or from the sources that it joins; an entity without a key would never have a value.

    A reading that has none makes that entity.
    """
    rig = _up(tmp_path, text, "detection")
    assert not [name for name in rig.link.components if "count" in name]
    rig.keys["m"].append("hall")
    rig.loop.advance(home_assistant.LOOK_S)
    assert [name for name in rig.link.components if "count" in name] == ["m__hall__count"]
    rig.keys["m"].append(None)
    rig.loop.advance(home_assistant.LOOK_S)
    assert [name for name in rig.link.components if "count" in name] == ["m__hall__count", "m__count"]


def test_keys_that_the_configuration_does_not_show_have_entities(tmp_path: Path) -> None:
    """A replayed recording has a key of its own; the entity without a key, which it never has, is removed."""
    rig = _up(tmp_path, DEVICE.replace("{key}", "all"), "detection")
    assert rig.link.components["m__count"]["state_topic"] == "edge/press-07/m/-"
    rig.keys["m"].append("hall")
    rig.loop.advance(home_assistant.LOOK_S)
    assert rig.link.components["m__hall__count"]["state_topic"] == "edge/press-07/m/hall"
    assert rig.link.components["m__count"] == {"platform": "sensor"}


def test_a_model_that_comes_back_begins_without_keys(tmp_path: Path) -> None:
    """A reload without the model has forgotten them, so that the entity of each appears with its next reading."""
    rig = _up(tmp_path, task="detection")
    rig.keys["m"] = ["hall"]
    rig.loop.advance(home_assistant.LOOK_S)
    rig.begin({})
    rig.keys["m"] = []
    rig.begin({"m": _manifest("detection")})
    assert rig.link.components["m__hall__count"] == {"platform": "sensor"}


def test_another_configuration_is_published_with_the_next_look(tmp_path: Path) -> None:
    """The device's class is shown as its model."""
    rig = _up(tmp_path)
    assert json.loads(rig.link.sent[0][1])["device"]["model"] == "edge device"
    rig.part.configure(_config(tmp_path, DEVICE.replace('"press-07"', '"press-07"\nclass = "pi4"')))
    rig.loop.advance(home_assistant.LOOK_S)
    assert [json.loads(payload)["device"]["model"] for _, payload, _ in rig.link.sent[1:]] == ["pi4"]


def test_a_link_that_is_up_before_the_configuration_changes_nothing() -> None:
    """There is no document yet."""
    loop, link = SteppedLoop(), _Link()
    part = HomeAssistant(cast("AnyConnection", link), loop.as_loop, keys=dict, on_birth=lambda: None)
    part.link_changed()
    loop.advance(10.0)
    assert link.sent == []


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


def test_a_reading_without_a_key_belongs_to_the_device_itself(tmp_path: Path) -> None:
    """Also where each key is a device."""
    rig = _Rig(_config(tmp_path, DEVICES), {"m": _manifest("detection")})
    rig.keys["m"] += [None, "hall"]
    rig.loop.advance(home_assistant.READ_BACK_S)
    documents = _documents(rig)
    assert set(documents) == {TOPIC, HALL}
    assert documents[TOPIC]["components"]["m__count"]["state_topic"] == "edge/press-07/m/-"
    assert documents[HALL]["components"]["m__count"]["state_topic"] == "edge/press-07/m/hall"


def test_the_device_of_a_key_is_removed_later_where_the_link_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next look, and once."""
    rig = _Rig(_config(tmp_path, DEVICES), {"m": _manifest("detection")})
    gone = {"components": {"old__score": {"platform": "sensor", "state_topic": "edge/press-07/old/hall"}}}
    rig.loop.advance(home_assistant.READ_BACK_S)
    rig.link.hear(HALL, json.dumps(gone).encode(), retained=True)
    with monkeypatch.context() as broken:
        broken.setattr(rig.link, "publish", lambda *_, **__: False)
        rig.loop.advance(home_assistant.LOOK_S)
    rig.loop.advance(10 * home_assistant.LOOK_S)
    assert rig.link.sent[1:] == [(HALL, b"", True)]


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


# -- numbers and edges ---------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_page() -> None:
    """A look every two seconds, one second for an earlier document, 0.5 to 2 after a birth, 100 keys, 4 MiB."""
    assert (home_assistant.LOOK_S, home_assistant.READ_BACK_S, home_assistant.BIRTH_S) == (2.0, 1.0, (0.5, 2.0))
    assert (home_assistant.MOST_KEYS, home_assistant.MOST_BYTES) == (100, 4 * 1024 * 1024)


@pytest.mark.parametrize(
    ("payloads", "topic"),
    [
        ("json", "edge/d/m/-"), (("json", "values"), "edge/d/m/-"), (("msgpack", "json"), "edge/d/m/-/json"),
        (("values", "json"), "edge/d/m/-"), ("msgpack", None), (("values", "msgpack"), None),
    ],
)  # fmt: skip
def test_entities_read_the_json_of_a_prediction_where_it_is(payloads: Any, topic: str | None) -> None:
    """Below the prediction's topic where another convention has that; without JSON there are none."""
    found = components_of(_table(payload=payloads), _manifest("anomaly"), "edge/d/m/{key}", "edge_d", key=None)
    assert {each["state_topic"] for each in found.values()} == ({topic} if topic else set())


def test_entities_are_named_by_model_and_key() -> None:
    """A key that the name of the model has in it already is not repeated."""

    def names(model: str, key: str | None) -> set[str]:
        found = components_of(_table(model), _manifest("detection"), "t/{key}", "edge_d", key=key)
        return {each["name"] for each in found.values()}

    assert names("pump", None) == {"pump count"}
    assert names("pump", "hall") == {"pump hall count"}
    assert names("hall pump", "hall") == {"hall pump count"}


def test_an_abstention_is_an_option_of_the_label() -> None:
    """An enum whose state is not among its options is an error in Home Assistant."""
    found = components_of(_table(abstain="unsure"), _manifest("classification"), "t", "n", key=None)
    assert found["m__label"]["options"] == ["ok", "worn", "unsure"]
    assert found["m__label"]["unique_id"] == "n__m__label"


def test_health_has_entities_where_it_is_published(tmp_path: Path) -> None:
    """Switched off it has none; each is diagnostic, on the topic of health."""
    assert home_assistant.health_components("", "edge_d") == {}
    found = home_assistant.health_components("edge/d/health", "edge_d")
    assert set(found) == {
        f"health__{each}" for each in ("readings", "predictions", "rejected", "queued", "memory", "temperature")
    }
    assert all(each["entity_category"] == "diagnostic" for each in found.values())
    assert {each["state_topic"] for each in found.values()} == {"edge/d/health"}
    assert found["health__temperature"]["device_class"] == "temperature"
    assert found["health__memory"]["unique_id"] == "edge_d__health__memory"
    assert tmp_path.exists()


def _up(folder: Path, text: str = DEVICE, task: str = "anomaly") -> _Rig:
    """With its first document published."""
    rig = _Rig(_config(folder, text), {"m": _manifest(task)})
    rig.loop.advance(home_assistant.READ_BACK_S)
    return rig


def test_a_birth_before_the_first_document_changes_nothing(tmp_path: Path) -> None:
    """The document comes after its second, and the birth is not answered a second time."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    rig.link.hear("home/status", b"online")
    rig.loop.advance(0.99)
    assert rig.link.sent == []
    rig.loop.advance(0.02)
    rig.loop.advance(20.0)
    assert (len(rig.link.sent), rig.births) == (1, 0)


def test_a_birth_is_answered_between_half_a_second_and_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At random, so that a hundred devices do not answer at once."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 1.5

    monkeypatch.setattr("edge_runtime.delivery.home_assistant.random.uniform", uniform)
    rig = _up(tmp_path)
    rig.loop.advance(home_assistant.LOOK_S - 0.1)  # the next look would come before
    rig.link.hear("home/status", b"online")
    rig.loop.advance(1.4)
    assert (len(rig.link.sent), rig.births) == (1, 0)
    rig.loop.advance(0.2)
    assert (len(rig.link.sent), rig.births, asked) == (2, 1, [(0.5, 2.0)])


def test_an_earlier_document_is_read_only_where_the_broker_kept_it(tmp_path: Path) -> None:
    """Not the device's own, which comes back while it is subscribed; nor one that is larger than any of ours."""
    earlier = {"components": {"old__score": {"platform": "sensor", "state_topic": "edge/press-07/old/-"}}}
    payload = json.dumps(earlier).encode()
    rig = _up(tmp_path)
    rig.link.hear(TOPIC, payload)
    rig.link.hear(TOPIC, payload + b" " * (home_assistant.MOST_BYTES + 1 - len(payload)), retained=True)
    rig.loop.advance(10.0)
    assert len(rig.link.sent) == 1
    rig.link.hear(TOPIC, payload + b" " * (home_assistant.MOST_BYTES - len(payload)), retained=True)
    rig.loop.advance(home_assistant.LOOK_S)
    assert rig.link.components["old__score"] == {"platform": "sensor"}


@pytest.mark.parametrize(
    ("topic", "key"),
    [
        ("edge/press-07/m/hall", "hall"), ("edge/press-07/m/hall/json", "hall"), ("edge/press-07/m/-", None),
        ("edge/press-07/m/hall/x", "none"), ("edge/press-07/other/hall", "none"), ("x/edge/press-07/m/hall", "none"),
    ],
)  # fmt: skip
def test_keys_of_an_earlier_document_are_known_by_their_topics(tmp_path: Path, topic: str, key: str | None) -> None:
    """Of a model that still runs, by its whole topic."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("detection")})
    earlier = {"components": {"x": {"platform": "sensor", "state_topic": topic}}}
    rig.link.hear(TOPIC, json.dumps(earlier).encode(), retained=True)
    rig.loop.advance(home_assistant.READ_BACK_S)
    known = [name for name in rig.link.components if name.endswith("count")]
    assert known == {"none": [], None: ["m__count"]}.get(key, [f"m__{key}__count"])


def test_messages_of_other_devices_are_claimed_only_where_they_are_subscribed_to(tmp_path: Path) -> None:
    """With a document for each key; else they belong to another part."""
    rig = _up(tmp_path)
    assert rig.link.handler is not None
    other = Message(b"home/device/edge_other/config", b"{}", None, retained=True)
    rig.link.handler([other])
    assert not other.claimed
    devices = _up(tmp_path, DEVICES)
    devices.link.hear("home/device/edge_other/config", b"{}", retained=True)
    strange = Message(b"elsewhere", b"{}", None)
    assert devices.link.handler is not None
    devices.link.handler([strange])
    assert not strange.claimed
    devices.loop.advance(10.0)
    assert [topic for topic, *_ in devices.link.sent] == [TOPIC]


def test_a_link_that_goes_down_ends_the_looks(tmp_path: Path) -> None:
    """And one that comes up begins with the time for an earlier document."""
    rig = _up(tmp_path)
    rig.link.ready = False
    rig.part.link_changed()
    rig.part.link_changed()
    served = rig.loop.served
    rig.loop.advance(100.0)
    assert rig.loop.served == served
    rig.link.ready = True
    rig.part.link_changed()
    rig.loop.advance(0.9)
    assert len(rig.link.sent) == 1
    rig.loop.advance(0.2)
    assert len(rig.link.sent) == 2


def test_a_document_that_the_link_does_not_take_is_published_with_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full queue loses none."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    with monkeypatch.context() as broken:
        broken.setattr(rig.link, "publish", lambda *_, **__: False)
        rig.loop.advance(home_assistant.READ_BACK_S)
    rig.loop.advance(home_assistant.LOOK_S)
    assert len(rig.link.sent) == 1
    rig.loop.advance(10.0)
    assert len(rig.link.sent) == 1


def test_a_refused_document_is_logged_once_and_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With each look, until it is accepted; after that another refusal is logged again."""
    rig = _Rig(_config(tmp_path), {"m": _manifest("anomaly")})
    outcomes: list[Any] = []

    def publish(topic: str, payload: bytes, *, qos: int, retain: bool, outcome: Any) -> bool:
        assert (qos, retain) == (1, True)
        rig.link.sent.append((topic, payload, retain))
        outcomes.append(outcome)
        return True

    monkeypatch.setattr(rig.link, "publish", publish)
    rig.loop.advance(home_assistant.READ_BACK_S)
    for _ in range(3):
        outcomes.pop()(False)
        rig.loop.advance(home_assistant.LOOK_S)
    assert len(rig.link.sent) == 4
    assert len([each for each in caplog.records if "refused" in each.message]) == 1
    outcomes.pop()(True)
    rig.loop.advance(10.0)
    assert len(rig.link.sent) == 4
    rig.keys["m"].append("hall")
    rig.loop.advance(home_assistant.LOOK_S)
    outcomes.pop()(False)
    assert len([each for each in caplog.records if "refused" in each.message]) == 2


def test_a_model_without_entities_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By its task or by its payload; a reload does not repeat it."""
    rig = _Rig(_config(tmp_path), {})
    tensor = Manifest(name="m", version="1", task="tensor", input=Input(), output=Output())
    packed = _table("p", payload=("msgpack", "values"))
    models = [
        (_table("t"), cast("Model", SimpleNamespace(manifest=tensor))),
        (packed, cast("Model", SimpleNamespace(manifest=_manifest("anomaly")))),
    ]
    rig.part.begin(models)
    found = [getattr(each, "fields", None) or each.__dict__ for each in caplog.records if "no entities" in each.message]
    assert len(found) == 2
    rig.part.begin(models)
    assert len([each for each in caplog.records if "no entities" in each.message]) == 2
    assert "the task tensor" in str(found[0])
    assert "payload msgpack values" in str(found[1])


def test_an_exchanged_bundle_changes_its_document_at_once(tmp_path: Path) -> None:
    """Its labels are the options of an entity; before the first document there is nothing to change."""
    rig = _Rig(_config(tmp_path, DEVICE.replace("{key}", "all")), {"m": _manifest("classification")})
    other = Manifest(name="m", version="2", task="classification", input=Input(), output=Output(labels=("x", "y")))
    rig.part.exchange(_table(), cast("Model", SimpleNamespace(manifest=other)))
    assert rig.link.sent == []
    rig.loop.advance(home_assistant.READ_BACK_S)
    assert rig.link.components["m__label"]["options"] == ["x", "y"]
    rig.part.exchange(_table(), cast("Model", SimpleNamespace(manifest=_manifest("classification"))))
    assert rig.link.components["m__label"]["options"] == ["ok", "worn"]
    assert len(rig.link.sent) == 2


def test_a_part_that_has_ended_does_nothing_more(tmp_path: Path) -> None:
    """No look, no document of another bundle, no answer to a birth."""
    rig = _up(tmp_path, DEVICE.replace("{key}", "all"), "classification")
    rig.part.end()
    served = rig.loop.served
    rig.loop.advance(100.0)
    assert rig.loop.served == served
    rig.part.exchange(_table(), cast("Model", SimpleNamespace(manifest=_manifest("anomaly"))))
    rig.link.hear("home/status", b"online")
    rig.loop.advance(100.0)
    assert (len(rig.link.sent), rig.births) == (1, 0)


@pytest.mark.parametrize("for_good", [True, False])
def test_an_end_publishes_nothing_more(tmp_path: Path, *, for_good: bool) -> None:
    """For good it clears its document; the timer is gone either way."""
    rig = _up(tmp_path)
    rig.part.leave(for_good=for_good)
    assert rig.link.handler is None
    assert [payload for _, payload, _ in rig.link.sent[1:]] == ([b""] if for_good else [])
    rig.keys["m"].append("hall")
    rig.loop.advance(100.0)
    rig.part.link_changed()
    rig.loop.advance(0)
    assert len(rig.link.sent) == (2 if for_good else 1)


def test_the_last_key_that_has_entities_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, at the bound; keys of models that are not there any more are no new ones."""
    monkeypatch.setattr(home_assistant, "MOST_KEYS", 2)
    rig = _up(tmp_path, task="detection")
    rig.keys["gone"] = ["x"]
    rig.loop.advance(10.0)
    assert len(rig.link.sent) == 1
    rig.keys["m"] += ["a"]
    rig.loop.advance(home_assistant.LOOK_S)
    assert not caplog.records
    rig.keys["m"] += ["b", "c"]
    rig.loop.advance(10.0)
    rig.keys["m"] += ["d"]
    rig.loop.advance(10.0)
    assert len([each for each in caplog.records if "further keys" in each.message]) == 1
    assert len(rig.link.sent) == 3
    assert [name for name in rig.link.components if "count" in name] == ["m__a__count", "m__b__count"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a-b_c", "a-b_c"), ("A9", "A9"), ("a__b", "a_b-"), ("_a", "a-"), ("a_", "a-"), ("hä ll", "h_ll-"), ("", "-")],
)
def test_a_word_of_an_id_is_itself_or_has_a_hash(text: str, expected: str) -> None:
    """Two words are joined by `__`, so none has it, or begins or ends with `_`."""
    found = home_assistant._word(text)
    if expected.endswith("-"):
        assert found == expected + hashlib.sha256(text.encode()).hexdigest()[:8]
    else:
        assert found == expected
