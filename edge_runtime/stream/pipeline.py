"""One model's path from readings to predictions: contract -> windows -> model -> decide -> payload -> outbox.

Guarantee: the receipt of a reading that completes a window is held until the prediction is safe or withheld by
configuration; with `acknowledge = "window"` the receipt of every reading is held until no window needs it
(`holding.py`). A window on which the model fails is set aside, counted and not retried; its neighbours are not
affected. A model slower than a few milliseconds runs in one worker thread, in order, with a bounded queue. It is a
class of more than 400 lines, on purpose: the path of a batch is read from top to bottom.
"""

import time
from typing import Any, Protocol

import numpy as np

from edge_runtime.bundle.model import Model, ModelError, Scores
from edge_runtime.config.tables import ModelTable, RepairTable
from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE
from edge_runtime.delivery.payloads import Encoders, Payload, PredictionTaker
from edge_runtime.readings import Batch, Floats, Prediction, Receipt
from edge_runtime.stream.contract import Contract
from edge_runtime.stream.decide import Decider, Sequences
from edge_runtime.stream.frame_contract import frame_contract
from edge_runtime.stream.holding import Holding, OwedReceipts
from edge_runtime.stream.score_drift import ScoreSample
from edge_runtime.stream.windows import SavedStream, Windows
from edge_runtime.stream.worker import LoadedBundle, ModelCall, TriedModel, Worker, rehearse
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters, Latencies
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

_log = get_logger("model")


class ShadowListener(Protocol):
    """A listener that gets the windows and answers of a model. It never blocks and never raises."""

    def offer(self, windows: Floats, keys: list[str | None], scores: Scores, took: float) -> None:
        """Take windows that were just answered; they are valid during this call only."""


class AnswerTap(Protocol):
    """Gets every answer of a model with its window, in the loop's thread. It never blocks."""

    def take(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
        """Take window `row` of a call and its answer, which are valid only until this method returns.

        `prediction` is None where it was withheld; a published one has its `seq` and `identity` by now.
        """


class DriftListener(Protocol):
    """Gets every reading before the contract refuses any, and every answer. It never blocks."""

    def take(self, values: Floats, keys: list[str | None], times: list[float] | None, arrived: float) -> None:
        """Take the readings of one wake-up, with their own times if they have any."""

    def take_scores(self, scores: Scores, keys: list[str | None]) -> None:
        """Take the answers to some windows."""

    def forget(self, keys: list[str | None]) -> None:
        """Drop the state of forgotten keys."""

    def summary(self) -> dict[str, Any]:
        """The part of the health document."""


class Pipeline:
    """One running model.

    Args:
        config: its table.
        model: the loaded bundle.
        channels: the columns of the batches of its source.
        repair: of its source.
        payload: encodes its predictions.
        topic: the topic template, `{key}` still in it.
        outbox: takes the predictions.
        loop: the event loop.
        clock: reports whether the wall clock is set.
        counters: its own.
        sequences: the numbers of its predictions; those of the previous pipeline, if there was one.

    Attributes:
        taps: get every answer, after it was given to the outbox.
        drift: gets every reading and every answer of the present bundle; None if drift is not watched.
    """

    def __init__(
        self,
        config: ModelTable,
        model: Model,
        *,
        channels: tuple[str, ...],
        repair: RepairTable,
        payload: Payload | Encoders,
        topic: str,
        outbox: PredictionTaker,
        loop: Loop,
        clock: Clock,
        counters: Counters,
        sequences: Sequences | None = None,
    ) -> None:
        self.config = config
        self.counters = counters
        self.repair = repair
        self._channels = channels
        self._repairs = repair != RepairTable()
        self._topic = topic
        self._outbox = outbox
        self._loop = loop
        self._clock = clock
        self._sequences = sequences or Sequences()
        self._addresses: dict[str | None, tuple[str, str]] = {}
        self._worker: Worker | None = None
        self.last_prediction = 0.0  # by the wall clock; 0 before the first
        self.listener: ShadowListener | None = None
        self.taps: tuple[AnswerTap, ...] = ()
        self.drift: DriftListener | None = None
        self._watches_drift = False
        self.holding: Holding | None = None
        self._install(model, payload)

    @property
    def model(self) -> Model:
        """The bundle for the next window."""
        return self._loaded.model

    @property
    def decider(self) -> Decider:
        """The decider of the present bundle."""
        return self._loaded.decider

    @property
    def loaded(self) -> LoadedBundle:
        """The bundle for the next window, with its counts."""
        return self._loaded

    @property
    def latencies(self) -> Latencies:
        """Those of the present bundle."""
        return self._loaded.latencies

    def watch_drift(self) -> None:
        """Keep the last answers of each bundle, from now on."""
        self._watches_drift = True
        self._loaded.sample = ScoreSample()

    def swap(self, candidate: TriedModel, payload: Payload | Encoders) -> None:
        """Exchange the bundle: the next window runs on the new one, windows in progress finish on the old one.

        Readings, receipts and sequence numbers continue. Incomplete windows continue if both bundles have the same
        window, else they restart.
        """
        self.drift = None  # it compares with the reference of the previous bundle
        self._install(candidate.model, payload)
        if candidate.slow:
            self._need_worker()

    def _install(self, model: Model, payload: Payload | Encoders) -> None:
        manifest = model.manifest
        first, further = payload if isinstance(payload, Encoders) else (payload, None)
        self._loaded = LoadedBundle(model, Decider(manifest, self.config, self._sequences), first, further=further)
        self._loaded.sample = ScoreSample() if self._watches_drift else None
        own = manifest.channel_names
        self._columns = self._places(own)
        self._contract = (
            Contract(manifest.input.channels, self.repair, max_keys=self.config.max_keys)
            if own
            else frame_contract(manifest.input)
        )
        if self._contract is not None:
            self._contract.rejected, self._contract.repaired = self.counters.rejected, self.counters.counts
        window = manifest.input.window
        framed = manifest.input.shape is not None
        stride = 1 if framed else self.config.stride or window.stride
        wanted = (own, manifest.input.tensor_shape, stride, manifest.state, window.rate_hz)
        if getattr(self, "_wanted", None) == wanted:
            return
        self._wanted = wanted
        length = 1 if framed else window.length
        self.let_go()
        keeps = self.config.acknowledge == "window" and (length, stride) != (1, 1)
        self.holding = Holding(length, stride) if keeps else None
        self.windows = Windows(
            manifest.input.tensor_shape,
            length=length,
            stride=stride,
            max_gap=self.config.max_gap,
            max_back=self.config.max_gap or 0.0,
            keep=self.config.on_gap == "keep",
            max_keys=self.config.max_keys,
        )
        self.pace = None
        if manifest.input.window.rate_hz is not None:
            from edge_runtime.stream.rate import make_pace  # noqa: PLC0415 - only where a bundle has a rate

            self.pace = make_pace(manifest, self.config, restart=self._give_up)

    def _places(self, own: tuple[str, ...]) -> list[int] | None:
        """The columns of a batch that the model takes; None when it takes all of them in the same order."""
        return None if own == self._channels or not own else [self._channels.index(name) for name in own]

    def rewire(self, channels: tuple[str, ...], topic: str, payload: Payload | Encoders) -> None:
        """Continue with other columns of the source, another topic and another payload, after a reload."""
        self._channels = channels
        self._columns = self._places(self.model.manifest.channel_names)
        loaded = self._loaded
        loaded.payload, loaded.further = payload if isinstance(payload, Encoders) else (payload, None)
        if topic != self._topic:
            self._topic = topic
            self._addresses.clear()

    def take_over(self, other: "Pipeline") -> None:
        """Continue with the windows of a pipeline that is about to retire, if both have the same window."""
        if self._wanted == other._wanted:  # noqa: SLF001 - of our own kind
            self.windows.take_over(other.windows)
            if self.pace is not None and other.pace is not None:
                self.pace.take_over(other.pace)
            if self.holding is not None and other.holding is not None:
                self.holding, other.holding = other.holding, None
            elif self.holding is not None:  # the readings in the windows were acknowledged on arrival
                for key, until in self.windows.open():
                    self.holding.restore(key, [], until)
        self.last_prediction = other.last_prediction

    def retire(self) -> None:
        """Take no more readings; windows already in the model are still answered, then its thread ends."""
        self.let_go()
        if self._worker is not None:
            self._worker.retire()

    def interrupt(self) -> None:
        """Treat this moment as a gap in every stream, because readings may be missing."""
        self.windows.interrupt()

    @property
    def needed(self) -> int:
        """The least number of readings of its source until one may complete a window, that one included."""
        if self.pace is not None and self.config.on_rate == "resample":
            return 1  # one reading may trigger several
        return self.windows.needed

    @property
    def is_idle(self) -> bool:
        """No window is in the model."""
        return self._worker is None or self._worker.is_idle

    @property
    def has_room(self) -> bool:
        """More windows fit without dropping any."""
        return self._worker is None or self._worker.has_room

    def warm_up(self) -> None:
        """Run the model once or twice on zeros, and decide whether it may run on the loop.

        Raises:
            ModelError: it fails even on zeros.
        """
        if rehearse(self.model, self.config).slow:
            self._need_worker()

    def _need_worker(self) -> None:
        if self._worker is None:
            self._worker = Worker(self.config.name, self._loop, self._finish, self._failed, counters=self.counters)

    def accept(self, batch: Batch) -> None:
        """Take the readings of one wake-up."""
        values = batch.values if self._columns is None else batch.values[:, self._columns]
        if self._repairs and self._columns is None:
            values = values.copy()  # repairs for this model must not change the values of other models
        keys, times, rows = batch.keys, batch.times, None
        if self.drift is not None:
            try:
                self.drift.take(values, keys, times if batch.own_times else None, batch.arrived)
            except Exception:  # noqa: BLE001 - stage boundary: a bug in it costs no reading
                self._drift_failed()
        if self._contract is not None:
            moments = times if batch.own_times or not self._repairs else [self._loop.time()] * len(keys)
            good = self._contract.check(values, keys, moments)
            if good is not None and batch.refuse is not None:
                for reason, (row, count) in self._contract.refusals.items():
                    batch.refuse(row, reason, self._contract.explain(reason, values[row]), count)
            if good is not None:
                rows = np.flatnonzero(good).tolist()
                if not rows:
                    return
                values = values[rows]
                keys = [keys[row] for row in rows]
                times = [times[row] for row in rows]
        paced = None
        if self.pace is not None:
            paced = self.pace.take(values, keys, times if batch.own_times else None, batch.arrived)
            if self.pace.rejected:
                self.counters.rejected["wrong_rate"] += self.pace.report(batch, rows)
            if paced is not None:
                values, keys, times = paced.values, paced.keys, paced.times
        done = self.windows.push(values, keys, times if batch.own_times else None, self._loop.time())
        if self.windows.evicted:
            self._forget(self.windows.take_evicted())
            if len(self.decider.keys) > 2 * self.config.max_keys:
                self._forget_strays()
        owed = None
        if self.holding is not None:
            coming = batch.receipts if rows is None else [batch.receipts[row] for row in rows]
            if paced is not None:
                coming = [coming[row] for row in paced.rows]
            owed = self.holding.take(keys, coming, done)
        if not done.rows:
            return
        keys, times, identities, receipts = batch.keys, batch.times, batch.identities, batch.receipts
        if paced is not None:
            keys, times, identities, receipts = paced.origins(batch, rows, done.rows)
        elif len(done.rows) < len(batch.keys):
            index = done.rows if rows is None else [rows[row] for row in done.rows]
            keys, times = [keys[row] for row in index], [times[row] for row in index]
            identities, receipts = [identities[row] for row in index], [receipts[row] for row in index]
        if owed is not None:
            receipts = owed
        else:
            for receipt in receipts:
                if receipt is not None:
                    receipt.holds += 1  # `hold`, without the call
        call = ModelCall(self._loaded, done.windows, keys, times, identities, receipts, done.carries, batch.arrived)
        if self._worker is not None:
            self._worker.submit(call)
            return
        try:
            # Not copied, since they are read before the next window; timed only if a shadow is compared.
            model = call.loaded.model
            scores = model.run_borrowed(call.windows, call.carries) if self.listener is None else call.run()
        except ModelError as error:
            self._failed(call, error)
        else:
            self._finish(call, scores)

    def expire(self) -> None:
        """Forget the keys that were silent for longer than the configured time."""
        self._forget(self.windows.expire(self._loop.time() - self.config.key_expiry))
        self._forget_strays()

    def _forget_strays(self) -> None:
        """Forget keys that were evicted while their windows were in the model."""
        self._forget([key for key in self.decider.keys if not self.windows.holds(key)])

    def _forget(self, gone: list[str | None]) -> None:
        """Drop all state of keys that have no window any more."""
        if gone:
            self.decider.forget(gone)
            if self.drift is not None:
                self.drift.forget(gone)
            if self.holding is not None:
                self.holding.forget(gone)
            for key in gone:
                self._addresses.pop(key, None)
            if self._contract is not None:
                self._contract.forget(gone)
            if self.pace is not None:
                self.pace.forget(gone)
        if self.windows.evicted:
            self.counters.dropped["keys"] += self.windows.evicted
            self.windows.evicted = 0

    def let_go(self) -> None:
        """Give up the open windows and acknowledge their readings, while the connection that brought them is up."""
        if self.holding is not None:
            self.holding.release_all()

    def _give_up(self, key: str | None) -> None:
        """Restart the window of a key, and acknowledge the readings in it."""
        self.windows.restart(key)
        if self.holding is not None:
            self.holding.forget([key])

    def save_windows(self, owed: OwedReceipts) -> list[SavedStream]:
        """The incomplete windows that a clean stop saves, with their receipts.

        A key with a window that is not safe is not saved: its readings are sent again.
        """
        kept = []
        for saved in self.windows.save():
            receipts = [] if self.holding is None else self.holding.receipts(saved.key)
            if receipts is not None:
                saved.held = [owed.number(receipt) for receipt in receipts]
                kept.append(saved)
        return kept

    def restore_windows(self, saved: list[SavedStream], owed: OwedReceipts, now: float) -> int:
        """Restore saved windows; returns how many fitted. `now` is the loop's time, less their age."""
        restored = self.windows.restore(saved, [state.shape for state in self.model.manifest.state], now)
        if self.holding is not None:
            for each in saved:
                if self.windows.holds(each.key):
                    self.holding.restore(each.key, [owed.hold(number) for number in each.held], each.until)
        return restored

    def stop(self) -> None:
        """End the worker; the readings of its windows stay unacknowledged."""
        if self._worker is not None:
            self._worker.stop()

    def _finish(self, call: ModelCall, scores: Scores) -> None:
        finite = scores.finite_rows()
        for row in range(len(call.keys)):
            try:
                self._publish(call, row, scores, is_finite=finite is None or bool(finite[row]))
            except Exception:  # noqa: BLE001 - a bug must not stop the neighbours, nor be retried
                self.counters.errors["prediction_failed"] += 1
                _log.exception("a prediction could not be made", extra=fields(model=self.config.name))
                _release(call.receipts[row])
        self.counters.counts["predictions"] += len(call.keys)
        self.last_prediction = time.time()
        call.loaded.latencies.add(time.perf_counter() - call.arrived)
        if call.loaded.sample is not None:
            call.loaded.sample.add(scores)
        if self.drift is not None and call.loaded is self._loaded:
            try:
                self.drift.take_scores(scores, call.keys)
            except Exception:  # noqa: BLE001 - as for readings
                self._drift_failed()
        if self.listener is not None and call.took and call.loaded is self._loaded:
            self.listener.offer(call.windows, call.keys, scores, call.took)

    def _publish(self, call: ModelCall, row: int, scores: Scores, *, is_finite: bool) -> None:
        key, receipt = call.keys[row], call.receipts[row]
        if not is_finite:
            self.counters.errors["model_not_finite"] += 1
            call.loaded.failed += 1
            call.carries[row].parts = None  # a state that has become NaN would stay NaN
            _release(receipt)
            return
        call.loaded.answered += 1
        prediction = call.loaded.decider.decide(scores, row, key, call.times[row])
        if prediction is None:
            self.counters.counts["withheld"] += 1
            _release(receipt)
        else:
            prediction.identity = call.identities[row]
            address = self._addresses.get(key)
            if address is None:
                address = self._addresses[key] = self._address(key)
            priority = PRIORITY_ALARM if prediction.alarm else PRIORITY_ROUTINE
            synchronised = self._clock.is_synchronised
            if call.loaded.further is not None:
                call.loaded.further.offer(
                    self._outbox, prediction, address, priority=priority, receipt=receipt, synchronised=synchronised
                )
            if call.loaded.payload is None:
                _release(receipt)
            else:
                payload = call.loaded.payload.encode(prediction, synchronised=synchronised)
                self._outbox.offer(*address, payload, priority=priority, receipt=receipt)
        if self.taps:
            self._show(call, row, scores, prediction)

    def _show(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
        """Give an answer to the taps; a bug in one of them costs no prediction."""
        for tap in self.taps:
            try:
                tap.take(call, row, scores, prediction)
            except Exception:  # noqa: BLE001 - stage boundary: the prediction is already in the outbox
                self.counters.errors["tap_failed"] += 1
                if self.counters.errors["tap_failed"] == 1:
                    _log.exception("an answer could not be looked at", extra=fields(model=self.config.name))

    def _drift_failed(self) -> None:
        """Count a bug in the drift watch; the first one is logged."""
        self.counters.errors["drift_failed"] += 1
        if self.counters.errors["drift_failed"] == 1:
            _log.exception("drift could not be watched", extra=fields(model=self.config.name))

    def _failed(self, call: ModelCall, error: ModelError) -> None:
        """Find the window on which the model fails, set it aside, and continue with its neighbours."""
        if len(call.keys) > 1:
            for row in range(len(call.keys)):
                alone = call.alone(row)
                try:
                    scores = alone.loaded.model.run(alone.windows, alone.carries)
                except ModelError as again:
                    self._failed(alone, again)
                else:
                    self._finish(alone, scores)
            return
        self.counters.errors["model_failed"] += 1
        call.loaded.failed += 1
        _log.error("the model failed on a window, which is set aside", extra=fields(model=self.config.name, why=error))
        _release(call.receipts[0])

    def _address(self, key: str | None) -> tuple[str, str]:
        """The outbox's stream and the topic of a key."""
        name = "-" if key is None else key
        return f"{self.config.name}/{name}", self._topic.replace("{key}", name)


def _release(receipt: Receipt | None) -> None:
    if receipt is not None:
        receipt.release()
