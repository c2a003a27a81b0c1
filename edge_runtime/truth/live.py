"""Truth in a running daemon: it comes from the broker and over HTTP, is joined, and says how right each model is.

`edge/{device}/truth/{model}` takes a truth (`messages.py`); `edge/{device}/accuracy/{model}` is a retained JSON
document of what was joined. It is published within `SOON_S` of a change, after every connection, and with health where
an estimate without truth has moved.

Guarantee: every truth is counted, as joined or by the reason why not, and the first of each reason is logged with one
sentence. What was counted, and from the first truth of a model on the predictions that wait, outlive a clean stop. A
kill loses what was counted since the last save, which is at most half a minute ago, and the predictions that wait.
Another bundle begins with figures of its own. Weak point: whoever may publish to the topic is believed.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.uncertainty import chance_right
from edge_runtime.config.tables import ModelTable, TruthTable
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer
from edge_runtime.truth.memory import Answer, LastScores, Memory, word_of

if TYPE_CHECKING:
    from edge_runtime.truth.figures import TruthFigures
    from edge_runtime.truth.joiner import Remembered, TruthJoiner

SOON_S = 0.5
LEAST_ESTIMATED = 30  # windows: fewer would make an estimate that jumps
FORMAT = 1

_log = get_logger("truth")


class TruthOutcome(msgspec.Struct, frozen=True):
    """What became of a truth.

    Attributes:
        result: `joined`, a reason of `joiner.py` or `messages.py`, or `unknown_model`.
        why: one sentence where it was not joined.
        id: of the prediction that it belongs to.
        right: whether that was right; None for values, and where it was not joined.
    """

    result: str
    why: str = ""
    id: str | None = None
    right: bool | None = None


class Joined(msgspec.Struct, frozen=True):
    """A truth with its prediction, for whoever wants labelled windows."""

    model: str
    id: str
    key: str | None
    time: float
    answer: Answer
    truth: Answer

    @property
    def label(self) -> str | None:
        """The truth as a label; None for values."""
        return None if isinstance(self.truth, list) else word_of(self.truth)


OnJoined = Callable[[Joined], None]


class SavedFigures(msgspec.Struct):
    """What is kept of a model: the figures of its bundle, and the predictions that wait for their truth."""

    digest: str
    figures: dict[str, Any]
    remembered: list[Any] = []


class SavedTruth(msgspec.Struct):
    """The file `{device}.truth`."""

    format: int
    models: dict[str, SavedFigures]


class ModelTruth:
    """The truth of one model. Its joiner is made with the first truth.

    Args:
        table: `[truth]`.
        start: the number of this start.
        model: the bundle that answers.
    """

    def __init__(self, table: TruthTable, start: int, model: Model) -> None:
        self.memory = Memory(table.remember)
        self._table = table
        self._start = start
        self._joiner: TruthJoiner | None = None
        self._figures: TruthFigures | None = None
        self._use(model)

    def _use(self, model: Model) -> None:
        self.manifest: Manifest = model.manifest
        self.digest = model.bundle.digest
        sure = model.manifest.uncertainty
        self._confidence = None if sure is None else sure.confidence
        self.memory.scores = None if self._confidence is None else LastScores(self._table.remember)
        self.said: float | None = None  # the estimate that was published last
        self._targets = tuple(target.name for target in model.manifest.output.targets)

    @property
    def figures(self) -> "TruthFigures":
        """What was counted."""
        if self._figures is None:
            from edge_runtime.truth.figures import TruthFigures  # noqa: PLC0415 - with the first truth

            self._figures = TruthFigures()
        return self._figures

    @property
    def is_silent(self) -> bool:
        """There is nothing to say."""
        return (self._figures is None or self._figures.is_empty) and self.estimate() is None

    def estimate(self) -> float | None:
        """The accuracy over the last windows as their scores promise it; None where there is too little to say."""
        scores = self.memory.scores
        if scores is None or self._confidence is None or len(scores) < LEAST_ESTIMATED:
            return None
        mean = float(chance_right(self._confidence, np.array(scores.values)).mean())
        return float(f"{mean:.4g}")

    @property
    def joiner(self) -> "TruthJoiner":
        """The predictions that wait, as of now."""
        if self._joiner is None:
            from edge_runtime.truth.joiner import TruthJoiner  # noqa: PLC0415 - with the first truth

            self._joiner = TruthJoiner(self._table.remember, self._table.tolerance, self._start, self.memory.forgotten)
        self._joiner.add(self.memory.drain())
        return self._joiner

    def exchange(self, model: Model) -> None:
        """Another bundle answers: the figures begin anew, and truth for what the last one said is late."""
        if model.bundle.digest == self.digest:
            return
        if self._joiner is not None or self.memory.noted:
            self.joiner.forget_all()
        self._use(model)
        self._figures = None

    def take(self, body: bytes, prefix: str) -> tuple[TruthOutcome, "Remembered | None"]:
        """Join one truth."""
        from edge_runtime.truth.joiner import Remembered  # noqa: PLC0415 - with the first truth
        from edge_runtime.truth.messages import TruthError, read_truth  # noqa: PLC0415

        try:
            truth = read_truth(body, self.manifest)
        except TruthError as error:
            self.figures.note_refused(error.reason)
            return TruthOutcome(error.reason, str(error)), None
        joiner = self.joiner
        if truth.id is None:
            meant = f"key {truth.key!r} at {truth.time:.6f}"
            found = joiner.by_time(truth.key, truth.time)
        else:
            meant = repr(truth.id)
            found = joiner.by_id(truth.id.removeprefix(prefix)) if truth.id.startswith(prefix) else "unknown"
        if not isinstance(found, Remembered):
            self.figures.note_unmatched(found)
            return TruthOutcome(found, _WHY[found].format(meant=meant, most=self._table.remember)), None
        first = found.truth
        again = joiner.settle(found, truth.answer)
        if again is not None:
            self.figures.note_unmatched(again)
            return TruthOutcome(again, _WHY[again].format(meant=meant, first=first, second=truth.answer)), None
        right = self.figures.judge(found.answer, truth.answer, self._targets)
        return TruthOutcome("joined", id=prefix + found.tail, right=right), found

    def document(self) -> dict[str, Any]:
        """The document, but for the names of device and model."""
        from edge_runtime.truth.joiner import UNMATCHED  # noqa: PLC0415

        figures = self.figures
        unmatched = {reason: figures.unmatched.get(reason, 0) for reason in UNMATCHED}
        return {
            "version": self.manifest.version,
            **figures.document(),
            "estimated": self.estimate(),
            "estimated_over": 0 if self.memory.scores is None else len(self.memory.scores),
            "unmatched": unmatched,
            "refused": figures.refused,
        }

    def save(self, *, whole: bool) -> SavedFigures | None:
        """What is to be kept; with `whole` the predictions that wait, too."""
        if self._joiner is None and self._figures is None:
            return None
        remembered = [msgspec.to_builtins(each) for each in self.joiner.remembered] if whole else []
        return SavedFigures(self.digest, msgspec.to_builtins(self.figures), remembered)

    def restore(self, saved: SavedFigures) -> None:
        """Go on with what was kept, where the same bundle answers."""
        from edge_runtime.truth.figures import TruthFigures  # noqa: PLC0415
        from edge_runtime.truth.joiner import Remembered  # noqa: PLC0415

        if saved.digest != self.digest:
            return
        self._figures = msgspec.convert(saved.figures, TruthFigures)
        for each in saved.remembered:
            self.joiner.restore(msgspec.convert(each, Remembered))


class LiveTruth:
    """The truth of every model of a daemon. `take` belongs to any thread, everything else to the loop's.

    Args:
        table: `[truth]`.
        device: the device's id.
        start: the number of this start.
        connection: the link upstream.
        loop: the event loop.
        counters: `joined`, and what was not, by reason.
        retain: the broker is to retain the documents.
        listens: whether truth is asked for at the broker.
        below: what the topics of the documents begin with; empty where none are published.
        read: gives what was kept, or None.
        write: keeps it.

    Attributes:
        on_joined: called with each truth that was joined, in the loop's thread.
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
        self._was_up = False
        self._repeated: set[str] = set()  # models of which a truth came twice
        self._prefix = f"edge/{device}/truth/".encode()
        self.on_joined: list[OnJoined] = []
        if listens:
            connection.subscribe([f"edge/{device}/truth/+"], 1, self._hear, optional=True)

    # --- life -------------------------------------------------------------------------------------------------------

    def begin(self, models: Iterable[tuple[ModelTable, Model]]) -> None:
        """These models, and no others, have truth from now on."""
        before, self._models = self._models, {}
        for table, model in models:
            if model.manifest.task not in TASKS:
                continue
            self._models[table.name] = found = before.get(table.name) or self._new(table.name, model)
            found.exchange(model)
        self._publish_all()

    def memory(self, name: str) -> Memory | None:
        """What remembers the predictions of a model; None where its task has no truth."""
        found = self._models.get(name)
        return None if found is None else found.memory

    def exchange(self, config: ModelTable, model: Model) -> None:
        """Another bundle answers from now on."""
        found = self._models.get(config.name)
        if found is None:
            return
        with self._lock:
            was_silent = found.is_silent
            found.exchange(model)
            self._is_unsaved = True
        if not was_silent:
            self._note_change(config.name)

    def link_changed(self) -> None:
        """The link came up or went down: what was said may be lost, or be unknown to another broker."""
        was_up, self._was_up = self._was_up, self._connection.connected
        if self._was_up and not was_up:
            self._publish_all()

    def housekeeping(self) -> None:
        """Keep the figures where they changed."""
        if self._is_unsaved:
            self._save(whole=False)

    def leave(self) -> None:
        """End for good: the broker keeps no truth for us."""
        self._connection.unsubscribe(self._hear)
        self.end()

    def end(self) -> None:
        """A clean stop: keep everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._publish_changes()
        self._save(whole=True)

    # --- what comes -------------------------------------------------------------------------------------------------

    def take(self, model: str, body: bytes) -> TruthOutcome:
        """Join one truth, in any thread."""
        with self._lock:
            known = self._models.get(model)
            if known is None:
                listed = ", ".join(self._models) or "none"
                outcome, found = (
                    TruthOutcome("unknown_model", f"expected one of the models {listed}, found {model[:64]!r}"),
                    None,
                )
            else:
                outcome, found = known.take(body, f"{self._device}/{model}/")
                self._is_unsaved = True
            self._count(model, outcome)
        if known is not None:
            self._loop.call_soon_threadsafe(lambda: self._note_change(model))
        if found is not None and outcome.id is not None and found.truth is not None:
            joined = Joined(model, outcome.id, found.key, found.time, found.answer, found.truth)
            self._loop.call_soon_threadsafe(lambda: self._tell(joined))
        return outcome

    def _tell(self, joined: Joined) -> None:
        for listener in self.on_joined:
            listener(joined)

    def _hear(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic.startswith(self._prefix):
                message.claimed = True
                self.take(message.topic[len(self._prefix) :].decode("utf-8", "replace"), message.payload)

    def _count(self, model: str, outcome: TruthOutcome) -> None:
        if outcome.result == "joined":
            self._counters.counts["joined"] += 1
            return
        kind = self._counters.skipped if outcome.result == "twice" else self._counters.errors
        kind[f"truth_{outcome.result}"] += 1
        about = fields(model=model[:64], why=outcome.why)
        if outcome.result != "twice":
            _log.warning(f"a truth was not joined ({outcome.result})", extra=about)
        elif model not in self._repeated:
            self._repeated.add(model)
            _log.info("a truth came again; others that do are counted", extra=about)

    # --- what is said -----------------------------------------------------------------------------------------------

    def documents(self) -> dict[str, dict[str, Any]]:
        """The document of each model that has something to say."""
        with self._lock:
            return {name: found.document() for name, found in self._models.items() if not found.is_silent}

    def report(self) -> dict[str, dict[str, Any]]:
        """The documents, for health; a model whose estimate has moved publishes its own one as well."""
        for name, found in self._models.items():
            if found.estimate() != found.said:
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
            found.said = document["estimated"]
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

    # --- what is kept -----------------------------------------------------------------------------------------------

    def _new(self, name: str, model: Model) -> ModelTruth:
        made = ModelTruth(self._table, self._start, model)
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


TASKS = ("classification", "regression", "anomaly")
_WHY: Mapping[str, str] = {
    "unknown": "no prediction is remembered for {meant}: send the id of a prediction, or the key and time of one",
    "late": "the prediction for {meant} is forgotten: send truth sooner, or raise [truth] remember, now {most}",
    "twice": "the truth for {meant} is known already: {first!r}",
    "conflict": "the truth for {meant} is known already as {first!r}, and now {second!r}: the first one stands",
}


def _decoded(data: bytes | None) -> dict[str, SavedFigures]:
    if data is None:
        return {}
    try:
        found = msgspec.msgpack.decode(data, type=SavedTruth)
    except msgspec.MsgspecError as error:
        _log.warning("kept truth could not be read, and begins anew", extra=fields(why=error))
        return {}
    return found.models if found.format == FORMAT else {}
