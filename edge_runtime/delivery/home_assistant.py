"""Home Assistant: publishes the retained document from which it makes entities for a device's predictions and health.

Device-based MQTT discovery (Home Assistant 2024.11 and later): one document on `PREFIX/device/edge_{device}/config`.
Each output of each model is an entity, for every key seen so far; with `keys = "devices"` a key is a device with its
own document. Availability is the device's status topic.

Guarantee: a document is published again whenever its content changes, after every connection, and when Home Assistant
publishes its start on `PREFIX/status`. Earlier documents are read back from the broker. An entity of a model that was
removed, also while the device was off, stays in the document with only its platform, by which Home Assistant removes
the entity. Weak points: predictions are not retained, so an entity has no value from a start of Home Assistant to the
next prediction; only `MOST_KEYS` keys of a model have entities.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from edge_runtime import __version__
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Model
from edge_runtime.config.tables import Config, ModelTable
from edge_runtime.delivery.payloads import can_alarm, first_of
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

LOOK_S = 2.0  # interval of the check for new keys
READ_BACK_S = 1.0  # after a connection: the time for the broker to send the document of an earlier start
BIRTH_S = 0.5, 2.0  # after a birth message, at random, so that devices do not all answer at once
MOST_KEYS = 100
MOST_BYTES = 4 << 20  # of a document that is read back

# Home Assistant's device class of a unit; other units are shown without one.
_CLASSES = {
    "°C": "temperature", "°F": "temperature", "K": "temperature",
    "W": "power", "kW": "power", "V": "voltage", "mV": "voltage", "A": "current", "mA": "current",
    "Hz": "frequency", "kHz": "frequency", "Pa": "pressure", "hPa": "pressure", "kPa": "pressure", "bar": "pressure",
    "lx": "illuminance", "m/s": "speed", "km/h": "speed", "g": "weight", "kg": "weight", "m": "distance",
    "mm": "distance", "cm": "distance", "km": "distance",
}  # fmt: skip
_SPELLINGS = {"C": "°C", "degC": "°C", "celsius": "°C", "F": "°F", "degF": "°F"}

_log = get_logger("home assistant")

Component = dict[str, Any]


def discovery_topic(prefix: str, device: str) -> str:
    """The topic of a device's document."""
    return f"{prefix}/device/edge_{_word(device)}/config"


def components_of(
    table: ModelTable, manifest: Manifest, topic: str, name: str, *, key: str | None
) -> dict[str, Component]:
    """The entities of one model and key, by the last part of their names."""
    if "json" not in table.payloads:
        return {}
    if first_of(table.payloads) != "json":
        topic = f"{topic}/json"
    found: dict[str, Component] = {}
    if manifest.task == "classification":
        labels = [*manifest.output.labels, *([] if table.abstain is None else [table.abstain])]
        found["label"] = _sensor("label", "{{ value_json.label }}", device_class="enum", options=labels)
        found["score"] = _sensor("score", "{{ value_json.score }}", state_class="measurement")
    elif manifest.task == "anomaly":
        found["score"] = _sensor("score", "{{ value_json.score }}", state_class="measurement")
        found["anomaly"] = _binary("anomaly", "{{ 'ON' if value_json.anomaly else 'OFF' }}")
    elif manifest.task == "regression":
        for target in manifest.output.targets:
            # `value_json.values` would be the method of that name
            value = f"{{{{ value_json['values'][{json.dumps(target.name, ensure_ascii=False)}] }}}}"
            more = _unit(target.unit)
            found[f"value_{_word(target.name)}"] = _sensor(target.name, value, state_class="measurement", **more)
    elif manifest.task == "detection":
        found["count"] = _sensor("count", "{{ value_json.detections | count }}", state_class="measurement")
    elif manifest.task == "multilabel":
        for label in manifest.output.labels:
            quoted = json.dumps(label, ensure_ascii=False)
            there = f"{{{{ 'ON' if {quoted} in value_json.present else 'OFF' }}}}"
            score = f"{{{{ value_json.labels[{quoted}] }}}}"
            found[f"present_{_word(label)}"] = _binary(label, there)
            found[f"score_{_word(label)}"] = _sensor(f"{label} score", score, state_class="measurement")
    if can_alarm(table, manifest):
        found["alarm"] = _binary("alarm", "{{ 'ON' if value_json.alarm else 'OFF' }}")
    shown = table.name if key is None or key in table.name else f"{table.name} {key}"
    words = [_word(table.name), *([] if key is None else [_word(key)])]
    return {
        "__".join([*words, output]): {
            **component,
            "name": f"{shown} {component['name']}",
            "unique_id": "__".join([name, *words, output]),
            "state_topic": topic.replace("{key}", "-" if key is None else key),
        }
        for output, component in found.items()
    }


def health_components(topic: str, name: str) -> dict[str, Component]:
    """The main figures of the health document, as diagnostic entities."""
    if not topic:
        return {}
    counted = {"state_class": "total_increasing"}
    bytes_ = {"device_class": "data_size", "unit_of_measurement": "B", "state_class": "measurement"}
    found = {
        "readings": _sensor("readings", "{{ value_json.readings }}", **counted),
        "predictions": _sensor("predictions", "{{ value_json.predictions }}", **counted),
        "rejected": _sensor("rejected readings", "{{ value_json.rejected.values() | sum }}", **counted),
        "queued": _sensor("predictions that wait", "{{ value_json.queued }}", state_class="measurement"),
        "memory": _sensor("memory", "{{ value_json.rss_bytes }}", **bytes_),
        "temperature": _sensor(
            "processor temperature", "{{ value_json.machine.temperature_c }}", state_class="measurement", **_unit("°C")
        ),
    }
    return {
        f"health__{each}": {
            **component,
            "unique_id": f"{name}__health__{each}",
            "state_topic": topic,
            "entity_category": "diagnostic",
        }
        for each, component in found.items()
    }


def whole_document(
    config: Config, status: str, components: Mapping[str, Component], key: str | None = None
) -> dict[str, Any]:
    """The discovery document of a device, or of a key as a separate device."""
    device = config.device
    own = f"edge_{_word(device.id)}"
    return {
        "device": {
            "identifiers": [own if key is None else key_device(own, key)],
            "name": device.id if key is None else key,
            "manufacturer": "edge-runtime",
            "model": device.class_ or "edge device",
            "sw_version": __version__,
            **({} if key is None else {"via_device": own}),
        },
        "origin": {"name": "edge-runtime", "sw_version": __version__},
        "availability_topic": status,
        "qos": 1,
        "components": dict(components),
    }


def key_device(own: str, key: str) -> str:
    """The identifier of a key as a separate device."""
    return f"{own}__{_word(key)}"


class _Document:
    """The state of one document at the broker.

    Args:
        topic: its topic.

    Attributes:
        last: its entities, as published last.
        gone: entities to remove, with their platforms.
        payload: as published over the present connection; empty before.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.last: dict[str, Component] = {}
        self.gone: dict[str, str] = {}
        self.payload = b""

    def entities(self, wanted: Mapping[str, Component]) -> dict[str, Component]:
        """The wanted entities, and only the platform of each former one."""
        self.gone.update({name: each["platform"] for name, each in self.last.items()})
        self.gone = {name: platform for name, platform in self.gone.items() if name not in wanted}
        self.last = dict(wanted)
        return {**wanted, **{name: {"platform": platform} for name, platform in self.gone.items()}}


class HomeAssistant:
    """Keeps the documents up to date; every method belongs to the loop's thread.

    Args:
        connection: the link upstream.
        loop: the event loop.
        keys: the keys seen by each model, by its name.
        on_birth: called after a start of Home Assistant, when the document was published again.
    """

    def __init__(
        self,
        connection: AnyConnection,
        loop: Loop,
        *,
        keys: Callable[[], dict[str, Iterable[str | None]]],
        on_birth: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._keys = keys
        self._on_birth = on_birth
        self._config: Config | None = None
        self._models: dict[str, tuple[ModelTable, Manifest]] = {}
        self._seen: dict[str, dict[str | None, None]] = {}
        self._main = _Document("")
        self._documents: dict[str, _Document] = {}  # by topic, the main one among them
        self._birth = ""
        self._of_key = ""  # a pattern of the topics of keys as devices
        self._broker: str | None = None  # the one that the documents are published to
        self._is_refused = False
        self._is_current = False  # every document is published in its present form, for all seen keys
        self._timer: Timer | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Describe this configuration from now on; its prefix and its device must be those of the first."""
        table = config.home_assistant
        assert table is not None
        if self._config is None:
            self._main = _Document(discovery_topic(table.prefix, config.device.id))
            self._documents = {self._main.topic: self._main}
            self._birth = f"{table.prefix}/status"
            filters = [self._main.topic, self._birth]
            if table.keys == "devices":
                own = re.escape(f"{table.prefix}/device/edge_{_word(config.device.id)}__")
                self._of_key = f"{own}[^/]+/config"
                filters = [f"{table.prefix}/device/+/config", self._birth]
            self._connection.subscribe(filters, 1, self._take)
        self._config = config
        self._is_current = False

    def begin(self, models: list[tuple[ModelTable, Model]]) -> None:
        """Give entities to these models only, from now on."""
        self._models = {table.name: (table, model.manifest) for table, model in models}
        for name, (table, manifest) in self._models.items():
            if name not in self._seen and not components_of(table, manifest, "", "", key=None):
                has_json = "json" in table.payloads
                why = f"the task {manifest.task}" if has_json else f"payload {' '.join(table.payloads)}"
                _log.warning("a model has no entities in Home Assistant", extra=fields(model=name, why=why))
            self._seen.setdefault(name, {})
        self._seen = {name: seen for name, seen in self._seen.items() if name in self._models}
        self.link_changed()
        self._publish_changes()

    def exchange(self, table: ModelTable, model: Model) -> None:
        """Note that another bundle runs from now on, which may have other labels."""
        self._models[table.name] = (table, model.manifest)
        self._publish_changes()

    def link_changed(self) -> None:
        """Handle a link that came up or went down, or a change of broker."""
        broker = self._connection.url if self._connection.ready else None
        if self._broker == broker:
            return
        self._broker = broker
        self._forget_published()
        if broker is not None:
            self._look_in(READ_BACK_S)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave(self, *, for_good: bool) -> None:
        """End; `for_good` also removes the device from Home Assistant."""
        self._connection.unsubscribe(self._take)
        if for_good:
            for topic in self._documents:
                self._connection.publish(topic, b"", qos=1, retain=True, outcome=None)
        self.end()

    def end(self) -> None:
        """Publish nothing more; the document stays for the next start."""
        if self._timer is not None:
            self._timer.cancel()
        self._broker = None

    # --- received -----------------------------------------------------------------------------------------------------

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            topic = message.topic.decode(errors="replace")
            if topic == self._birth:
                message.claimed = True
                if message.payload == b"online" and self._main.payload:
                    self._forget_published()
                    self._look_in(random.uniform(*BIRTH_S), birth=True)  # noqa: S311 - no secret
            elif topic == self._main.topic or (self._of_key and re.fullmatch(self._of_key, topic)):
                message.claimed = True
                if message.retained and message.payload and len(message.payload) <= MOST_BYTES:
                    self._read_back(self._documents.setdefault(topic, _Document(topic)), message.payload)
            elif self._of_key and topic.startswith(self._birth.removesuffix("status") + "device/"):
                message.claimed = True  # of another device

    def _read_back(self, document: _Document, payload: bytes) -> None:
        """Read an earlier document: keep its keys, and mark its unwanted entities for removal."""
        try:
            found = msgspec.json.decode(payload)["components"].items()
            earlier = {str(name): (str(each["platform"]), str(each.get("state_topic", ""))) for name, each in found}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            _log.warning("the retained document is not one of ours; it is replaced", extra=fields(topic=document.topic))
            return
        self._is_current = False
        for name, (platform, topic) in earlier.items():
            if topic:  # else it is already being removed
                self._see_again(topic)
                document.gone[name] = platform

    def _see_again(self, topic: str) -> None:
        for name in self._models:
            before, has_key, after = self._topic_of(name).partition("{key}")
            found = re.fullmatch(f"{re.escape(before)}([^/]+){re.escape(after)}(?:/json)?", topic) if has_key else None
            if found is not None:
                self._see(name, [None if found[1] == "-" else found[1]])

    # --- published ----------------------------------------------------------------------------------------------------

    def _look_in(self, seconds: float, *, birth: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, lambda: self._look(birth=birth))

    def _look(self, *, birth: bool) -> None:
        if self._broker is None:
            return
        if not self._is_current or self._has_new_keys():
            self._publish_changes(is_time=True)
        if birth:
            self._on_birth()
        self._look_in(LOOK_S)

    def _has_new_keys(self) -> bool:
        """Whether a new key has no entities yet."""
        return any(
            model in self._models
            and len(self._seen[model]) < MOST_KEYS
            and any(key not in self._seen[model] for key in keys)
            for model, keys in self._keys().items()
        )

    def _forget_published(self) -> None:
        """Publish every document again, since the broker or Home Assistant may have none of them."""
        self._is_current = False
        for document in self._documents.values():
            document.payload = b""

    def _publish_changes(self, *, is_time: bool = False) -> None:
        """Publish each document that differs from the last; the first of a connection waits for its time."""
        if self._config is None or self._broker is None or not (is_time or self._main.payload):
            return
        status = self._config.upstream.status_topic.replace("{device}", self._config.device.id)
        wanted: dict[str, tuple[str | None, dict[str, Component]]] = {self._main.topic: (None, {})}
        for key, name, component in self._components():
            wanted.setdefault(self._topic_of_key(key), (key, {}))[1][name] = component
        self._is_current = True
        for topic, (key, components) in wanted.items():
            document = self._documents.setdefault(topic, _Document(topic))
            whole = whole_document(self._config, status, document.entities(components), key)
            self._is_current &= self._publish(document, msgspec.json.encode(whole))
        for topic in [topic for topic in self._documents if topic not in wanted]:
            if self._publish(self._documents[topic], b"", is_new=True):  # no entity is left: remove the device
                del self._documents[topic]
            else:
                self._is_current = False

    def _publish(self, document: _Document, payload: bytes, *, is_new: bool = False) -> bool:
        if payload == document.payload and not is_new:
            return True
        answered = partial(self._answered, document)
        if not self._connection.publish(document.topic, payload, qos=1, retain=True, outcome=answered):
            return False
        document.payload = payload
        return True

    def _answered(self, document: _Document, accepted: bool) -> None:
        if accepted:
            self._is_refused = False
            return
        document.payload = b""
        self._is_current = False
        if not self._is_refused:
            self._is_refused = True
            _log.warning("the broker refused the document for Home Assistant", extra=fields(topic=document.topic))

    def _topic_of_key(self, key: str | None) -> str:
        """The topic of the document with the entities of a key."""
        if key is None:
            return self._main.topic
        return f"{self._main.topic.removesuffix('/config')}__{_word(key)}/config"

    def _components(self) -> Iterator[tuple[str | None, str, Component]]:
        """Every entity, with the key whose device it belongs to; None for the device itself."""
        assert self._config is not None
        assert self._config.home_assistant is not None
        name = f"edge_{_word(self._config.device.id)}"
        are_devices = self._config.home_assistant.keys == "devices"
        for model, keys in self._keys().items():
            if model in self._models:
                self._see(model, keys)
        for model, (table, manifest) in self._models.items():
            topic = self._topic_of(model)
            keys = self._seen[model] if "{key}" in topic else {None: None}
            if not keys and not self._has_keys(table.source):
                keys = {None: None}
            for key in keys:
                if are_devices and key is not None:
                    of_key = components_of(
                        table, manifest, topic.replace("{key}", key), key_device(name, key), key=None
                    )
                    yield from ((key, *each) for each in of_key.items())
                else:
                    yield from ((None, *each) for each in components_of(table, manifest, topic, name, key=key).items())
        health = self._config.upstream.health_topic.replace("{device}", self._config.device.id)
        yield from ((None, *each) for each in health_components(health, name).items())

    def _topic_of(self, model: str) -> str:
        assert self._config is not None
        template = self._config.upstream.topic.replace("{device}", self._config.device.id)
        return template.replace("{model}", model)

    def _has_keys(self, source: str) -> bool:
        """Whether readings may have keys, which are unknown until a reading has one."""
        assert self._config is not None
        table = next(each for each in self._config.source if each.name == source)
        topics = getattr(table, "topics", ())
        return table.key is not None or any("{" in topic for topic in topics) or bool(getattr(table, "of", ()))

    def _see(self, model: str, keys: Iterable[str | None]) -> None:
        seen = self._seen[model]
        for key in keys:
            if key in seen:
                continue
            if len(seen) >= MOST_KEYS:
                break
            seen[key] = None
            if len(seen) == MOST_KEYS:
                _log.warning(
                    "Home Assistant is given no entities for further keys", extra=fields(model=model, keys=MOST_KEYS)
                )


def _sensor(name: str, template: str, **more: object) -> Component:
    return {"platform": "sensor", "name": name, "value_template": template, **more}


def _binary(name: str, template: str) -> Component:
    return {"platform": "binary_sensor", "name": name, "value_template": template, "device_class": "problem"}


def _unit(unit: str) -> Component:
    shown = _SPELLINGS.get(unit, unit)
    if not shown:
        return {}
    return {"unit_of_measurement": shown, **({"device_class": _CLASSES[shown]} if shown in _CLASSES else {})}


def _word(text: str) -> str:
    """A part of an id: letters, digits, `_` and `-`; any other text, or an ambiguous one, gets a hash."""
    if re.fullmatch(r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*", text):
        return text
    return f"{re.sub(r'[^A-Za-z0-9-]+', '_', text).strip('_')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
