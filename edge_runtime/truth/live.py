"""Truth in a running daemon: received over MQTT and HTTP, joined to predictions, and published as accuracy.

`edge/{device}/truth/{model}` takes a truth (`messages.py`). `edge/{device}/accuracy/{model}` is a retained JSON
document of the joined truth. It is published within `SOON_S` of a change, after every connection, and together with
health if the estimate without truth has changed.

Guarantee: every truth is counted, as joined or by the reason why not, and the first of each reason is logged in one
sentence. A clean stop keeps the counts and, for models that have received truth, the predictions without truth. A kill
loses the counts since the last save, at most half a minute ago, and the predictions without truth. Another bundle
starts with empty figures. Weak point: truth from any client that may publish to the topic is accepted.
"""

import math
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.model import Model
from edge_runtime.config.tables import ModelTable, TruthTable
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer
from edge_runtime.truth.memory import Memory, word_of
from edge_runtime.truth.model_truth import ModelTruth, SavedFigures, Taken, TruthOutcome

if TYPE_CHECKING:
    from edge_runtime.truth.joiner import Remembered

SOON_S = 0.5
LOOK_S = 0.5  # between two tries to join truth that arrived before its prediction
TASKS = ("classification", "regression", "anomaly", "multilabel")
FORMAT = 1

_log = get_logger("truth")


class Joined(msgspec.Struct, frozen=True):
    """A truth with its prediction, for listeners that need labelled windows.

    Attributes:
        model: its name.
        id: of the prediction.
        label: the right label; None for a regression and for several labels.
        values: the right numbers, in the order of the targets; for several labels 1 if present, else 0.
    """

    model: str
    id: str
    label: str | None
    values: tuple[float, ...]


OnJoined = Callable[[Joined], None]


class SavedTruth(msgspec.Struct):
    """The file `{device}.truth`."""

    format: int
    models: dict[str, SavedFigures]


class LiveTruth:
    """The truth of every model of a daemon. `take` may be called in any thread, all else in the loop's.

    Args:
        table: `[truth]`.
        device: the device's id.
        start: the number of this start.
        connection: the link upstream.
        loop: the event loop.
        counters: counts `joined`, and the other truths by reason.
        retain: whether the broker retains the documents.
        listens: whether to subscribe to truth.
        below: the prefix of the documents' topics; empty if none are published.
        read: returns the saved state, or None.
        write: saves the state.

    Attributes:
        on_joined: called with each joined truth, in the loop's thread.
    """

    def __init__(
        self,
        table: TruthTable,
        *,
        device: str,
        start: int,
        connection: AnyConnection,
        loop: Loop,
        counters: Counters,
        retain: bool,
        listens: bool,
        below: str,
        read: Callable[[], bytes | None],
        write: Callable[[bytes], None],
    ) -> None:
        self._table = table
        self._device = device
        self._start = start
        self._connection = connection
        self._loop = loop
        self._counters = counters
        self._retain = retain
        self._accuracy = below and f"{below}/accuracy"
        self._write = write
        self._models: dict[str, ModelTruth] = {}
        self._saved = _decoded(read())
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._is_unsaved = False
        self._timer: Timer | None = None
        self._look: Timer | None = None
        self._was_up = False
        self._repeated: set[str] = set()  # models that received a truth twice
        self._prefix = f"edge/{device}/truth/".encode()
        self.on_joined: list[OnJoined] = []
        if listens:
            connection.subscribe([f"edge/{device}/truth/+"], 1, self._hear, optional=True)

    # --- life -------------------------------------------------------------------------------------------------------

    def begin(self, models: Iterable[tuple[ModelTable, Model]]) -> None:
        """From now on accept truth for exactly these models; truth of an unchanged one goes on waiting."""
        wanted = {table.name: model for table, model in models if model.manifest.task in TASKS}
        for name, found in self._models.items():
            if name not in wanted or found.digest != wanted[name].bundle.digest:
                self._take_early(name, math.inf)
        with self._lock:  # a request never sees a part of them
            before = self._models
            self._models = {name: before.get(name) or self._new(name, model) for name, model in wanted.items()}
            for name, model in wanted.items():
                self._models[name].exchange(model)
        self._publish_all()

    def memory(self, name: str) -> Memory | None:
        """The memory of a model's predictions; None if its task has no truth."""
        found = self._models.get(name)
        return None if found is None else found.memory

    def exchange(self, config: ModelTable, model: Model) -> None:
        """Use another bundle from now on."""
        found = self._models.get(config.name)
        if found is None:
            return
        if found.digest != model.bundle.digest:
            self._take_early(config.name, math.inf)
        with self._lock:
            was_silent = found.is_silent
            found.exchange(model)
            self._is_unsaved = True
        if not was_silent:
            self._note_change(config.name)

    def link_changed(self) -> None:
        """The link came up or went down: documents may be lost, or missing on another broker."""
        was_up, self._was_up = self._was_up, self._connection.connected
        if self._was_up and not was_up:
            self._publish_all()

    def housekeeping(self) -> None:
        """Save the figures if they changed."""
        if self._is_unsaved:
            self._save(whole=False)

    def leave(self) -> None:
        """End for good: unsubscribe, so that the broker queues no truth for this device."""
        self._connection.unsubscribe(self._hear)
        self.end()

    def end(self) -> None:
        """A clean stop: save everything."""
        if self._look is not None:
            self._look.cancel()
        for name in self._models:
            self._take_early(name, math.inf)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._publish_changes()
        self._save(whole=True)

    # --- received truth ---------------------------------------------------------------------------------------------

    def take(self, model: str, body: bytes) -> TruthOutcome:
        """Join one truth, in any thread."""
        with self._lock:
            known = self._models.get(model)
            if known is None:
                listed = ", ".join(self._models) or "none"
                taken = Taken(
                    TruthOutcome("unknown_model", f"expected one of the models {listed}, found {model[:64]!r}")
                )
            else:
                taken = known.take(body, self._loop.time())
                self._is_unsaved = True
            self._count(model, taken.outcome)
        if known is not None:
            self._loop.call_soon_threadsafe(lambda: self._note_taken(model, taken))
        return taken.outcome

    def _take_early(self, model: str, now: float) -> None:
        """Try again to join truth of this model that arrived before its prediction."""
        known = self._models[model]
        if not known.is_waited_for:
            return
        with self._lock:
            done = known.take_early(now)
            for each in done:
                self._count(model, each.outcome)
            self._is_unsaved = True
        for each in done:
            self._note_taken(model, each)

    def _look_again(self) -> None:
        self._look = None
        for model in self._models:
            self._take_early(model, self._loop.time())
        if any(known.is_waited_for for known in self._models.values()):
            self._look = self._loop.call_later(LOOK_S, self._look_again)

    def _note_taken(self, model: str, taken: Taken) -> None:
        if taken.outcome.result == "waiting":
            if self._look is None:
                self._look = self._loop.call_later(LOOK_S, self._look_again)
            return
        self._note_change(model)
        if taken.found is not None and taken.outcome.id is not None:
            joined = _joined(model, taken.outcome.id, taken.found)
            for listener in self.on_joined:
                listener(joined)

    def _hear(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic.startswith(self._prefix):
                message.claimed = True
                if not message.payload:
                    self._counters.skipped["truth_empty"] += 1  # clears a retained truth
                    continue
                self.take(message.topic[len(self._prefix) :].decode("utf-8", "replace"), message.payload)

    def _count(self, model: str, outcome: TruthOutcome) -> None:
        if outcome.result in ("joined", "waiting"):
            self._counters.counts[outcome.result] += 1
            return
        kind = self._counters.skipped if outcome.result == "twice" else self._counters.errors
        kind[f"truth_{outcome.result}"] += 1
        about = fields(model=model[:64], why=outcome.why)
        if outcome.result != "twice":
            _log.warning(f"a truth was not joined ({outcome.result})", extra=about)
        elif model not in self._repeated:
            self._repeated.add(model)
            _log.info("a truth came again; others that do are counted", extra=about)

    # --- published documents ----------------------------------------------------------------------------------------

    def documents(self) -> dict[str, dict[str, Any]]:
        """The document of each model with any counts or an estimate."""
        with self._lock:
            return {name: found.document() for name, found in self._models.items() if not found.is_silent}

    def report(self) -> dict[str, dict[str, Any]]:
        """The documents, for health; a model whose estimate has changed also publishes its own document."""
        for name, found in self._models.items():
            if found.estimate() != found.published_estimate:
                self._note_change(name)
        return self.documents()

    def _note_change(self, model: str) -> None:
        self._changed.add(model)
        if self._timer is None:
            self._timer = self._loop.call_later(SOON_S, self._publish_changes)

    def _publish_changes(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, set()
        for name in changed:
            found = self._models.get(name)
            if found is None or not self._accuracy or not self._connection.connected:
                continue
            with self._lock:
                document = {"device": self._device, "model": name, **found.document()}
            found.published_estimate = document["estimated"]
            self._connection.publish(
                f"{self._accuracy}/{name}",
                msgspec.json.encode(document),
                qos=1,
                retain=self._retain,
                outcome=None,
            )

    def _publish_all(self) -> None:
        for name in self.documents():
            self._note_change(name)

    # --- saved state ------------------------------------------------------------------------------------------------

    def _new(self, name: str, model: Model) -> ModelTruth:
        made = ModelTruth(self._table, self._start, model, f"{self._device}/{name}/")
        saved = self._saved.pop(name, None)
        if saved is not None:
            try:
                made.restore(saved)
            except msgspec.MsgspecError as error:
                _log.warning("kept truth could not be read", extra=fields(model=name, why=error))
        return made

    def _save(self, *, whole: bool) -> None:
        with self._lock:
            saved = {name: found.save(whole=whole) for name, found in self._models.items()}
            self._is_unsaved = False
        kept = {name: each for name, each in saved.items() if each is not None}
        if not kept:
            return
        try:
            self._write(msgspec.msgpack.encode(SavedTruth(FORMAT, kept)))
        except OSError as error:
            _log.warning("what is known of truth is not kept", extra=fields(why=error.strerror))


def _joined(model: str, identity: str, found: "Remembered") -> Joined:
    assert found.truth is not None
    if isinstance(found.truth, list):
        return Joined(model, identity, None, tuple(map(float, found.truth)))
    return Joined(model, identity, word_of(found.truth), ())


def _decoded(data: bytes | None) -> dict[str, SavedFigures]:
    if data is None:
        return {}
    try:
        found = msgspec.msgpack.decode(data, type=SavedTruth)
    except msgspec.MsgspecError as error:
        _log.warning("kept truth could not be read, and begins anew", extra=fields(why=error))
        return {}
    return found.models if found.format == FORMAT else {}
