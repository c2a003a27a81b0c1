"""The edge node: births before data, numbers without a gap, a death by the last will, and a rebirth on demand.

Topics are `spBv1.0/GROUP/TYPE/NODE` and `.../DEVICE`. The node is named by the device's id; each model and key is one
Sparkplug device. Guarantee: NBIRTH is the first message of a session, with `seq` 0 and the `bdSeq` of the session's
last will; each message after it has the next `seq`. A device's DBIRTH with all its metrics is sent before its first
DDATA, and again when its metrics change. Without a session, up to `MOST_WAITING` predictions wait in memory and follow
the births as historical; beyond that the oldest are dropped and counted. Weak points: Sparkplug sends data with QoS 0,
so messages in transit when a link breaks are lost; only `payload` guarantees the delivery of a prediction. The node
does not wait for the `STATE` of a host.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.config.tables import ModelTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message, Will
from edge_runtime.readings import Prediction
from edge_runtime.sparkplug.metrics import device_name, metrics_of
from edge_runtime.sparkplug.wire import REBIRTH, Metric, asks_for_rebirth, encode_payload
from edge_runtime.stream.worker import LoadedBundle, ModelCall
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

MOST_WAITING = 1000
MOST_DEVICES = 1000
REBIRTH_S = 1.0  # commands within this time are answered by one birth
RETRY_S = 0.2  # while the connection's queue is full

_log = get_logger("sparkplug")


class _Data(NamedTuple):
    """The metrics of one prediction, and whether it waited for a session."""

    device: str
    metrics: list[Metric]
    is_historical: bool


class EdgeNode:
    """One edge node; every method must be called in the loop's thread.

    Args:
        group: the group id.
        node: the id of the node.
        loop: the event loop.
        counters: `births`, `data`, and drops.
        wall: the wall clock.
    """

    def __init__(
        self, group: str, node: str, loop: Loop, counters: Counters, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._group, self._node = group, node
        self._loop = loop
        self._counters = counters
        self._wall = wall
        self._connection: AnyConnection | None = None
        self._bd_seq = -1
        self._seq = 0
        self._is_born = False
        self._devices: dict[str, list[Metric]] = {}  # the last values of each
        self._born: dict[str, list[tuple[str, int]]] = {}  # in this session: names and types
        self._waiting: deque[_Data] = deque()
        self._timer: Timer | None = None
        self._born_at = 0.0  # by the loop's clock
        self._rebirth_timer: Timer | None = None

    # --- the session ------------------------------------------------------------------------------------------------

    def will(self) -> Will:
        """The last will of the next session, with the next session number."""
        self._bd_seq = (self._bd_seq + 1) % 256
        return Will(self._topic("NDEATH"), self._death(), retain=False)

    def attach(self, connection: AnyConnection) -> None:
        """Use this connection."""
        self._connection = connection
        connection.on_change.append(self.link_changed)
        connection.subscribe([self._topic("NCMD")], 1, self._take_commands)

    def link_changed(self) -> None:
        """The link came up, with the subscription to commands granted, or went down."""
        assert self._connection is not None
        if not self._connection.ready:
            self._is_born = False
        elif not self._is_born:
            self._give_birth()

    def end(self) -> None:
        """A clean end: the node itself publishes its death."""
        self._cancel()
        if self._rebirth_timer is not None:
            self._rebirth_timer.cancel()
        if self._connection is not None and self._is_born:
            self._connection.publish(self._topic("NDEATH"), self._death(), qos=0, outcome=None)
        self._is_born = False

    @property
    def state(self) -> str:
        """The state as one line of text."""
        if self._is_born:
            return f"{self._group}/{self._node}: born, {len(self._born)} devices"
        link = "not started" if self._connection is None else self._connection.state
        return f"{self._group}/{self._node}: no session ({link})"

    # --- what is published ------------------------------------------------------------------------------------------

    def take(self, device: str, metrics: list[Metric]) -> None:
        """Take the metrics of a prediction."""
        if device not in self._devices and len(self._devices) >= MOST_DEVICES:
            if not self._counters.dropped["sparkplug_devices"]:
                _log.warning("further keys are no devices of Sparkplug", extra=fields(most=MOST_DEVICES))
            self._counters.dropped["sparkplug_devices"] += 1
            return
        self._waiting.append(_Data(device, metrics, is_historical=not self._is_born))
        if len(self._waiting) > MOST_WAITING:
            gone = self._waiting.popleft()
            self._devices.setdefault(gone.device, gone.metrics)
            if not self._counters.dropped["sparkplug_full"]:
                _log.warning("predictions are lost to Sparkplug: its session is away", extra=fields(node=self._node))
            self._counters.dropped["sparkplug_full"] += 1
        self._send_waiting()

    def forget_model(self, model: str) -> None:
        """A model was removed: publish the death of its devices."""
        name = device_name(model, None)
        for device in [each for each in self._devices if each == name or each.startswith(f"{name}:")]:
            del self._devices[device]
            if self._born.pop(device, None) is not None and self._is_born:
                self._publish("DDEATH", [], device)
        self._waiting = deque(each for each in self._waiting if each.device in self._devices)

    def _give_birth(self) -> None:
        """Publish NBIRTH, then a DBIRTH for each device, then the waiting predictions."""
        self._cancel()
        now = self._now()
        self._seq = 0
        self._born.clear()
        metrics = [Metric("bdSeq", self._bd_seq, now), Metric(REBIRTH, False, now)]
        self._is_born = self._publish("NBIRTH", metrics)
        if not self._is_born:
            self._retry(self.link_changed)
            return
        self._born_at = self._loop.time()
        self._counters.counts["births"] += 1
        for device in list(self._devices):
            self._give_birth_to(device)
        self._send_waiting()

    def _give_birth_to(self, device: str) -> bool:
        metrics = self._devices[device]
        if self._publish("DBIRTH", metrics, device):
            self._born[device] = _shape(metrics)
            return True
        return False

    def _send_waiting(self) -> None:
        while self._waiting and self._is_born:
            data = self._waiting[0]
            known = self._devices.get(data.device)
            if known is None or _shape(known) != _shape(data.metrics):
                self._devices[data.device] = data.metrics
            is_announced = self._born.get(data.device) == _shape(data.metrics)
            if not (is_announced or self._give_birth_to(data.device)) or not self._publish(
                "DDATA", data.metrics, data.device, is_historical=data.is_historical
            ):
                self._retry(self._send_waiting)
                return
            self._waiting.popleft()
            self._devices[data.device] = data.metrics
            self._counters.counts["data"] += 1

    def _publish(
        self, kind: str, metrics: list[Metric], device: str | None = None, *, is_historical: bool = False
    ) -> bool:
        """Send with the next number; a message that could not be sent takes none."""
        assert self._connection is not None
        payload = encode_payload(metrics, timestamp=self._now(), seq=self._seq, is_historical=is_historical)
        if not self._connection.publish(self._topic(kind, device), payload, qos=0, outcome=None):
            return False
        self._seq = (self._seq + 1) % 256
        return True

    def _retry(self, what: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._loop.call_later(RETRY_S, what)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _topic(self, kind: str, device: str | None = None) -> str:
        topic = f"spBv1.0/{self._group}/{kind}/{self._node}"
        return topic if device is None else f"{topic}/{device}"

    def _death(self) -> bytes:
        now = self._now()
        return encode_payload([Metric("bdSeq", self._bd_seq, now)], timestamp=now)

    def _now(self) -> int:
        return round(self._wall() * 1000)

    # --- received commands ------------------------------------------------------------------------------------------

    def _take_commands(self, messages: list[Message]) -> None:
        own = self._topic("NCMD").encode()
        for message in messages:
            if message.topic != own:
                continue
            message.claimed = True
            if not asks_for_rebirth(message.payload):
                self._counters.errors["unknown_command"] += 1
            elif self._rebirth_timer is None and self._is_born:
                self._rebirth_timer = self._loop.call_at(self._born_at + REBIRTH_S, self._rebirth)

    def _rebirth(self) -> None:
        self._rebirth_timer = None
        if self._is_born:
            self._counters.counts["rebirths"] += 1
            self._give_birth()


def _shape(metrics: list[Metric]) -> list[tuple[str, int]]:
    return [(metric.name, metric.datatype) for metric in metrics]


class NodeTap:
    """Passes the predictions of one model to the edge node, as an `AnswerTap` of its pipeline.

    Args:
        node: the edge node.
        table: of the model.
        facts: the arguments of the model's `JsonPayload` for a manifest.
    """

    def __init__(self, node: EdgeNode, table: ModelTable, facts: Callable[[Manifest], dict[str, Any]]) -> None:
        self._node = node
        self._name = table.name
        self._facts = facts
        self._loaded: LoadedBundle | None = None

    def take(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
        """Pass on a published prediction."""
        del row, scores
        if prediction is None:
            return
        if self._loaded is not call.loaded:
            self._loaded = call.loaded
            self._payload = JsonPayload(**self._facts(call.loaded.model.manifest))
        self._node.take(device_name(self._name, prediction.key), metrics_of(self._payload, prediction))
