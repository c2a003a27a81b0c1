"""Drift documents -> `edge/{device}/drift/{model}`: retained JSON, and a line in the log for each change of state.

A document is published soon after a change of state, and at the interval of health if blocks were judged since. None is
queued while the link is down: the newest is sent when it is up again.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from edge_runtime.delivery.device_topics import OwnTopics
from edge_runtime.drift.column import State
from edge_runtime.drift.monitor import Monitor, SavedWatch
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.clock import Clock
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

SOON_S = 1.0  # after a change of state; also the least interval
_FILE = "drift"
_FORMAT = 1  # of the file; another format is ignored

_log = get_logger("drift")


class SmallFiles(Protocol):
    """The needed part of `StateFolder`."""

    def read(self, what: str) -> bytes | None:
        """The contents of a small file; None if it does not exist."""

    def write(self, what: str, data: bytes) -> None:
        """Replace it."""


class SavedDrift(msgspec.Struct):
    """The state that a clean stop saves: for each model the digest of its bundle, and each key."""

    format: int
    models: dict[str, tuple[str, list[SavedWatch]]]


class _Watched:
    """One model, and its last published and logged state."""

    def __init__(self, digest: str, monitor: Monitor) -> None:
        self.digest = digest
        self.monitor = monitor
        self.published = -1  # number of judged blocks in the last published document
        self.logged: State = "ok"


class DriftReports:
    """The drift documents of every watched model.

    Args:
        loop: the event loop.
        clock: shows whether the wall clock is set.
        files: hold the state over a clean stop.

    Attributes:
        listeners: called with model, key and state when the state of a stream changes.
    """

    def __init__(self, loop: Loop, clock: Clock, files: SmallFiles) -> None:
        self._loop = loop
        self._clock = clock
        self._files = files
        self._saved = self._take_saved()
        self._watched: dict[str, _Watched] = {}
        self._connection: AnyConnection | None = None
        self._topics: OwnTopics | None = None
        self._interval = 60.0
        self._timer: Timer | None = None
        self._greeted = False
        self._refused: set[str] = set()
        self.listeners: list[Callable[[str, str | None, State], object]] = []

    def attach(self, connection: AnyConnection, topics: OwnTopics, interval: float) -> None:
        """Publish over this connection from now on."""
        if (connection, topics) != (self._connection, self._topics):
            self._greeted = False
        self._connection, self._topics, self._interval = connection, topics, interval

    def follow(self, pipeline: Pipeline, *, is_recorded: bool) -> None:
        """Watch the bundle of a pipeline; the state is kept if the bundle is the same as before."""
        name, digest = pipeline.config.name, pipeline.model.bundle.digest
        known = self._watched.get(name)
        if known is None or known.digest != digest:
            monitor = Monitor(pipeline.model.manifest, is_recorded=is_recorded, wall=self._wall)
            monitor.on_change.append(lambda key, state: self._changed(name, key, state))
            known = self._watched[name] = _Watched(digest, monitor)
            saved_digest, saved = self._saved.pop(name, ("", []))
            if saved_digest == digest:
                monitor.restore(saved)
            if not monitor.is_calibrated:
                _log.info(
                    "the bundle has no limits for drift: what is stuck, missing, out of range or swapped is reported, "
                    "shape and offset are only shown: convert it again with longer recordings as --data",
                    extra=fields(model=name),
                )
            self._publish(name, known)
        pipeline.drift = known.monitor

    def keep(self, names: set[str]) -> None:
        """Stop watching all models except these, and clear their retained documents."""
        for name in set(self._watched) - names:
            del self._watched[name]
            self._send(name, b"")

    def state_of(self, model: str, key: str | None) -> State:
        """The state of one stream; `ok` if it is not watched."""
        known = self._watched.get(model)
        return "ok" if known is None else known.monitor.state_of(key)

    def documents(self) -> dict[str, dict[str, Any]]:
        """The document of every model, by its name."""
        return {name: {"model": name, **each.monitor.document()} for name, each in self._watched.items()}

    def link_changed(self) -> None:
        """The link upstream came up or went down."""
        if self._connection is None or not self._connection.connected:
            self._greeted = False
        elif not self._greeted:
            self._greeted = True
            for name, each in self._watched.items():
                self._publish(name, each)
            self._wait(self._interval)

    def end(self) -> None:
        """A clean stop: publish nothing more, and save the state for the next start."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        saved = {name: (each.digest, each.monitor.save()) for name, each in self._watched.items()}
        try:
            self._files.write(_FILE, msgspec.msgpack.encode(SavedDrift(_FORMAT, saved)))
        except OSError as error:
            _log.warning("what is known of drift is not kept", extra=fields(why=error.strerror))

    def _take_saved(self) -> dict[str, tuple[str, list[SavedWatch]]]:
        """Read the state of the last clean stop and empty the file: after a later crash it would be outdated."""
        data = self._files.read(_FILE)
        if not data:
            return {}
        try:
            self._files.write(_FILE, b"")
            found = msgspec.msgpack.decode(data, type=SavedDrift)
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning(
                "what was known of drift is not taken up: the states begin at ok", extra=fields(why=str(error))
            )
            return {}
        return found.models if found.format == _FORMAT else {}

    def _wall(self) -> float | None:
        return time.time() if self._clock.is_synchronised else None

    def _changed(self, name: str, key: str | None, state: State) -> None:
        for listener in self.listeners:
            listener(name, key, state)
        self._watched[name].published = -1  # a restored state changes without a new block
        self._wait(SOON_S)

    def _wait(self, seconds: float) -> None:
        when = self._loop.time() + seconds
        if self._timer is None or self._timer.when > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(when, self._tell)

    def _tell(self) -> None:
        """Publish the documents that changed."""
        self._timer = None
        for name, each in self._watched.items():
            if each.published != each.monitor.blocks:
                self._publish(name, each)
        self._wait(self._interval)

    def _publish(self, name: str, each: _Watched) -> None:
        document = {"model": name, **each.monitor.document()}
        if each.logged != document["state"]:
            level = _log.warning if document["state"] == "alarm" else _log.info
            level(
                f"drift: {document['why'] or 'as in training again'}", extra=fields(model=name, state=document["state"])
            )
            each.logged = document["state"]
        if self._send(name, msgspec.json.encode(document)):
            each.published = each.monitor.blocks

    def _send(self, name: str, payload: bytes) -> bool:
        connection, topics = self._connection, self._topics
        if connection is None or topics is None or not connection.connected:
            return False
        if not topics.drift:
            return True
        topic = f"{topics.drift}/{name}"
        return connection.publish(
            topic,
            payload,
            qos=1,
            retain=topics.retain,
            outcome=lambda accepted: self._answered(topic, accepted=accepted),
        )

    def _answered(self, topic: str, *, accepted: bool) -> None:
        """A refusal is logged once for each topic until it is accepted again."""
        if accepted:
            self._refused.discard(topic)
        elif topic not in self._refused:
            _log.warning("the broker refused a message of the device", extra=fields(topic=topic))
            self._refused.add(topic)
