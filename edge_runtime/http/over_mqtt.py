"""Predictions on demand over MQTT 5: a reading or window to `edge/{device}/predict/{model}`, with a response topic.

The answer is that of `POST /predict/{model}`, with the request's correlation data: a prediction, or an `error`. One
thread answers, so that the loop is not blocked; `MOST_WAITING` requests may wait, and a further one is refused for the
moment. Weak point: an answer that a broken connection loses is not sent again; the client has to repeat its request.

A requester chooses the topic of the answer, so the device's own topics are refused: below `edge/{device}/` only topics
that begin with `edge/{device}/answers/` are allowed, and no topic that `[upstream]` has moved elsewhere.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.bundle.model import Model
from edge_runtime.config.tables import ModelTable
from edge_runtime.http import predict_api as named
from edge_runtime.http.responses import HttpError, busy
from edge_runtime.http.scorer import Scorer
from edge_runtime.http.served_model import Numbers, Served, find
from edge_runtime.http.yield_to_loop import install_gate
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

MOST_WAITING = 64
MAX_BYTES = 8 << 20
REQUEST_S = 1200.0  # twice what a hang of the model takes to be seen

_log = get_logger("requests")


@dataclass(slots=True)
class _Asked:
    """One request; `correlation` is returned unchanged."""

    model: str
    payload: bytes
    topic: str
    correlation: bytes | None


class Requests:
    """Answers requests on the upstream connection; every method must be called in the loop's thread.

    Args:
        device: the device's id.
        start: the number of this start.
        connection: of MQTT 5, and not yet started.
        loop: the event loop.
        counters: `requests`, and refusals by reason.

    Attributes:
        own: topics of the device itself that are not below `edge/{device}/`.
    """

    def __init__(self, device: str, start: int, connection: AnyConnection, loop: Loop, *, counters: Counters) -> None:
        self.own: frozenset[str] = frozenset()
        self._device = device
        self._start = start
        self._connection = connection
        self._gate = install_gate(loop)
        self._counters = counters
        self._prefix = f"edge/{device}/predict/".encode()
        self._models: dict[str, Served] = {}
        self._numbers: Numbers = {}
        self._scorer = Scorer()
        self._thread = BackgroundThread("requests", loop.call_soon_threadsafe)
        connection.subscribe([f"edge/{device}/predict/+"], 1, self._take)

    def begin(self, models: list[tuple[ModelTable, Model]]) -> None:
        """From now on answer for exactly these models."""
        self._models = {}
        for config, model in models:
            self.exchange(config, model)

    def exchange(self, config: ModelTable, model: Model) -> None:
        """Use another bundle from now on."""
        served = Served(
            config.name,
            model,
            device=self._device,
            start=self._start,
            config=config,
            source="mqtt",
            numbers=self._numbers,
        )
        self._models = {**self._models, served.name: served}

    def leave(self) -> None:
        """End for good: unsubscribe, so that the broker queues no requests."""
        self._connection.unsubscribe(self._take)
        self.end()

    def end(self) -> None:
        """Answer nothing more."""
        self._thread.stop()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if not message.topic.startswith(self._prefix):
                continue
            message.claimed = True
            self._counters.counts["requests"] += 1
            asked = self._asked(message)
            if asked is None:
                continue
            if self._thread.waiting >= MOST_WAITING:
                self._counters.rejected["busy"] += 1
                self._answer(asked, _body(busy("too many requests are waiting: try again in a second")))
                continue
            self._thread.submit(
                partial(self._predict, asked),
                partial(self._answer, asked),
                what="a request over MQTT",
                most_s=REQUEST_S,
            )

    def _asked(self, message: Message) -> _Asked | None:
        """The request, or None without a usable topic for the answer."""
        properties = message.properties
        topic = getattr(properties, "ResponseTopic", None)
        own = f"edge/{self._device}/"
        if not topic or "+" in topic or "#" in topic or "\0" in topic:
            self._counters.rejected["no_response_topic"] += 1
            return None
        if topic in self.own or (topic.startswith(own) and not topic.startswith(f"{own}answers/")):
            self._counters.rejected["forbidden_response_topic"] += 1
            _log.warning("a request wants its answer on a topic of the device", extra=fields(topic=topic))
            return None
        model = message.topic[len(self._prefix) :].decode("utf-8", "replace")
        return _Asked(model, message.payload, topic, getattr(properties, "CorrelationData", None))

    def _predict(self, asked: _Asked) -> bytes:
        """In the answering thread: run the model."""
        self._gate.wait_until_idle()
        try:
            if len(asked.payload) > MAX_BYTES:
                raise HttpError(413, f"expected at most {MAX_BYTES} bytes")  # noqa: TRY301
            work = named.predict(find(self._models, asked.model), asked.payload)
            self._gate.wait_until_idle()
            return self._scorer.score(work).body
        except HttpError as error:
            return _body(error)
        except Exception:  # noqa: BLE001 - the stage's edge: the thread goes on, the requester gets a 500
            _log.exception("a request failed", extra=fields(model=asked.model))
            return _body(HttpError(500, "internal error: see the log"))

    def _answer(self, asked: _Asked, body: bytes) -> None:
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if asked.correlation is not None:
            properties.CorrelationData = asked.correlation
        self._connection.publish(asked.topic, body, qos=1, outcome=None, properties=properties)


def _body(error: HttpError) -> bytes:
    return error.answer().body
