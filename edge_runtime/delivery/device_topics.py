"""The device's own topics: `status`, `models`, `health`, and those of reports on single models.

Predictions go through the outbox.

`edge/{device}/status` is retained plain text: `online` once everything is open, `offline` after a clean stop and, by
the last will, after any other end. `edge/{device}/models` is retained JSON; `edge/{device}/health` is JSON at every
interval and whenever something went wrong, and `edge/{device}/shadow/{model}` follows it if a candidate runs beside a
model. None of these is queued while the link is down: the newest is sent when it is up again. `[upstream]` can rename
each of the three topics, switch it off, and turn retaining off.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from edge_runtime.config.tables import UpstreamTable
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Will
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

ONLINE = b"online"
OFFLINE = b"offline"
SOON_S = 1.0  # after a fault, health is published within this time, and not more often

_log = get_logger("upstream")


class OwnTopics(msgspec.Struct, frozen=True):
    """The topics of a device's own messages; an empty topic is switched off.

    Attributes:
        status: of `online` and `offline`.
        models: of the list of models.
        health: of the health document.
        below: the prefix of the topics of reports on single models, such as `edge/DEVICE`.
        retain: whether the broker retains status and models.
    """

    status: str
    models: str
    health: str
    below: str
    retain: bool

    @property
    def shadow(self) -> str:
        """The prefix of the topics of shadow reports."""
        return self.below and f"{self.below}/shadow"

    @property
    def drift(self) -> str:
        """The prefix of the topics of drift reports."""
        return self.below and f"{self.below}/drift"

    @property
    def will(self) -> Will | None:
        """The last will, which the broker publishes when the connection is lost."""
        return Will(self.status, OFFLINE, self.retain) if self.status else None


def own_topics(device: str, upstream: UpstreamTable) -> OwnTopics:
    """The topics of one device."""
    status, models, health = (
        each.replace("{device}", device)
        for each in (upstream.status_topic, upstream.models_topic, upstream.health_topic)
    )
    own = f"edge/{device}"
    below = own if health == f"{own}/health" else health
    return OwnTopics(status, models, health, below, upstream.retain)


class Upstream:
    """The device's own messages.

    Args:
        topics: its topics.
        connection: the link upstream.
        loop: the event loop.
        interval: seconds between two health messages.
        is_ready: whether every port is open, every subscription is granted and HTTP listens.
        health: makes the health document.
        models: makes the document of the models.
        shadows: makes the document of each shadow, by the name of the model that it runs beside.
    """

    def __init__(
        self,
        topics: OwnTopics,
        connection: AnyConnection,
        loop: Loop,
        *,
        interval: float,
        is_ready: Callable[[], bool],
        health: Callable[[], dict[str, Any]],
        models: Callable[[], list[dict[str, Any]]],
        shadows: Callable[[], dict[str, dict[str, Any]]] = dict,
    ) -> None:
        self._topics = topics
        self._connection = connection
        self._loop = loop
        self._interval = interval
        self._is_ready = is_ready
        self._health = health
        self._models = models
        self._shadows = shadows
        self._last_status: bytes | None = None
        self._greeted = False
        self._refused: set[str] = set()
        self._timer: Timer | None = None

    def link_changed(self) -> None:
        """The link came up or went down, or a source opened or closed."""
        if not self._connection.connected:
            self._last_status, self._greeted = None, False
            return
        if not self._greeted:
            self._greeted = True
            self.publish_models()
            self.publish_health()
        if self._last_status != ONLINE and self._is_ready():
            self._say(ONLINE)

    def publish_every(self, interval: float) -> None:
        """Change the interval of health, and publish `online` again once everything is open."""
        if self._interval != interval:
            self._interval = interval
            if self._timer is not None:
                self.publish_health_soon()

    def announce_again(self) -> None:
        """Publish `online` again when everything is open, since a part was reopened."""
        self._last_status = None

    def publish_models(self) -> None:
        """Publish the list of running models."""
        self._publish(self._topics.models, msgspec.json.encode(self._models()), retain=self._topics.retain)

    def publish_health(self) -> None:
        """Publish health now, and again after the interval."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._interval, self.publish_health)
        self._publish(self._topics.health, msgspec.json.encode(self._health()))
        if self._connection.connected and self._last_status != ONLINE and self._is_ready():
            self._say(ONLINE)  # again, if it was refused
        for model, document in self._shadows().items():
            topic = self._topics.shadow and f"{self._topics.shadow}/{model}"
            self._publish(topic, msgspec.json.encode({"model": model, **document}))

    def publish_health_soon(self) -> None:
        """Publish health soon after a fault, without waiting for the interval."""
        soon = self._loop.time() + SOON_S
        if self._timer is None or self._timer.when > soon:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(soon, self.publish_health)

    def say_goodbye(self) -> None:
        """Publish the last messages of a clean stop."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connection.connected:
            self._publish(self._topics.health, msgspec.json.encode(self._health()))
            self._say(OFFLINE)

    def _say(self, status: bytes) -> None:
        if self._publish(self._topics.status, status, retain=self._topics.retain):
            self._last_status = status

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if not topic:
            return True
        return self._connection.publish(
            topic, payload, qos=1, retain=retain, outcome=lambda accepted: self._answered(topic, accepted=accepted)
        )

    def _answered(self, topic: str, *, accepted: bool) -> None:
        """A refusal is logged once for each topic until it is accepted again; a refused status is published again."""
        if accepted:
            self._refused.discard(topic)
            return
        if topic not in self._refused:
            _log.warning("the broker refused a message of the device", extra=fields(topic=topic))
            self._refused.add(topic)
        if topic == self._topics.status:
            self._last_status = None
