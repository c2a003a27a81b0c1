"""What a change of a running model keeps: an exchange of its bundle, a reload, a stop and a start."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.model import Model, Scores
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import RepairTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.payloads import Encoders, FurtherPayloads, PredictionTaker
from edge_runtime.readings import Prediction, Receipt
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.pipeline import DriftListener
from edge_runtime.stream.worker import TriedModel
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.model_bench import POISON, ModelBench, NumberedReceipts, batch_of
from tests.support.waiting import wait_until


def _windows(bench: ModelBench) -> list[list[float]]:
    """The readings of each window that was answered, by their numbers."""
    return [list(document["values"].values()) for document in bench.taken.documents]


def _numbers(*numbers: float) -> list[list[float]]:
    return [[number, 0.0] for number in numbers]


def _payload(model: Model, device: str = "d") -> JsonPayload:
    return JsonPayload(device=device, model="m", source="s", start=1, manifest=model.manifest, threshold=None)


def _other(draft: builders.Draft, folder: Path, *, slow: bool = False) -> TriedModel:
    """A second bundle of the same kind."""
    return TriedModel(Model(open_bundle(draft.save(folder / "other.onnx"))), slow)


def _swap(bench: ModelBench, candidate: TriedModel) -> None:
    bench.pipeline.swap(candidate, _payload(candidate.model))


# --- an exchange of the bundle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("acknowledge", ["entry", "window"])
def test_an_exchange_keeps_the_open_windows_of_a_bundle_with_the_same_window(acknowledge: str, tmp_path: Path) -> None:
    """The next prediction is that of the new bundle, made from readings of before and after."""
    bench = ModelBench(builders.echo(), tmp_path, acknowledge=acknowledge)
    receipts = NumberedReceipts(2)
    bench.pipeline.accept(batch_of(_numbers(1, 2), receipts))
    receipts.hand_over()
    draft = builders.echo()
    draft.manifest["version"] = "2.0.0"
    _swap(bench, _other(draft, tmp_path))
    assert receipts.acknowledged == ([0, 1] if acknowledge == "entry" else [])
    bench.pipeline.accept(batch_of(_numbers(3)))
    assert _windows(bench) == [[1.0, 2.0, 3.0]]
    assert bench.taken.documents[0]["version"] == "2.0.0"
    assert bench.pipeline.loaded.answered == 1


def test_an_exchange_for_another_window_begins_anew_and_acknowledges_the_readings(tmp_path: Path) -> None:
    """They are in no window any more, once the predictions before are safe; the sequence numbers go on."""
    bench = ModelBench(builders.echo(length=2), tmp_path, acknowledge="window")
    receipts = NumberedReceipts(4)
    batch = batch_of(_numbers(1, 2, 3), receipts)
    batch.receipts, batch.identities = batch.receipts[:3], [None] * 3
    bench.pipeline.accept(batch)
    receipts.hand_over()
    assert receipts.acknowledged == [3]
    assert bench.taken.receipts[0] is not None
    bench.taken.receipts[0].release()
    assert receipts.acknowledged == [3, 0, 1]
    _swap(bench, _other(builders.echo(length=3), tmp_path))
    assert receipts.acknowledged == [3, 0, 1, 2]
    batch = batch_of(_numbers(4, 5, 6))
    batch.identities = [None] * 3
    bench.pipeline.accept(batch)
    assert _windows(bench) == [[1.0, 2.0], [4.0, 5.0, 6.0]]
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/1/1", "d/m/-/1/2"]


def test_an_exchange_stops_the_comparison_with_the_reference_of_the_old_bundle(tmp_path: Path) -> None:
    """Its answers would be compared with answers of another model."""
    bench = ModelBench(builders.echo(), tmp_path)
    bench.pipeline.drift = cast("DriftListener", object())
    _swap(bench, _other(builders.echo(), tmp_path))
    assert bench.pipeline.drift is None


def test_the_last_answers_are_kept_where_drift_is_watched_and_not_elsewhere(tmp_path: Path) -> None:
    """Of each bundle for itself, since they are compared after an exchange."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    assert bench.pipeline.loaded.sample is None
    _swap(bench, _other(builders.echo(length=1), tmp_path))
    assert bench.pipeline.loaded.sample is None
    bench.pipeline.watch_drift()
    bench.pipeline.accept(batch_of(_numbers(1, 2)))
    first = bench.pipeline.loaded.sample
    assert first is not None
    assert sorted(first.rows[:, 0].tolist()) == [1.0, 2.0]
    _swap(bench, _other(builders.echo(length=1), tmp_path))
    bench.pipeline.accept(batch_of(_numbers(3)))
    second = bench.pipeline.loaded.sample
    assert second is not None
    assert second.rows[:, 0].tolist() == [3.0]


@pytest.mark.parametrize("slow", [False, True])
def test_a_slow_bundle_gets_a_thread_at_the_exchange(tmp_path: Path, *, slow: bool) -> None:
    """The loop does not wait for it; it may be full, which one on the loop never is."""
    loop = Loop()
    bench = ModelBench(builders.echo(length=1), tmp_path, loop=loop)
    assert bench.pipeline.has_room
    _swap(bench, _other(builders.echo(length=1), tmp_path, slow=slow))
    bench.pipeline.accept(batch_of(_numbers(1)))
    assert bench.pipeline.is_idle != slow
    assert _windows(bench) == ([] if slow else [[1.0]])
    assert bench.pipeline.has_room
    for first in range(2, 702, 100):
        bench.pipeline.accept(batch_of(_numbers(*range(first, first + 100)), NumberedReceipts(100)))
    assert bench.pipeline.has_room != slow
    bench.pipeline.retire()

    def done() -> bool:
        loop.run_once(0.05)
        return bench.pipeline.is_idle

    wait_until(done, "every window to be answered")
    assert _windows(bench) == [[float(number)] for number in range(1, 702)]
    worker = bench.pipeline._worker
    assert (worker is not None) == slow
    if worker is not None:
        thread = worker._thread._thread
        assert thread is not None
        thread.join(20.0)
        assert not thread.is_alive()
    loop.close()


def test_the_first_windows_of_a_new_bundle_are_not_judged_by_the_answers_of_the_old_one(tmp_path: Path) -> None:
    """A window that was in the model at the exchange is answered by the old bundle, and shown to no listener."""
    loop = Loop()
    bench = ModelBench(builders.echo(length=1), tmp_path, loop=loop, run="worker")
    heard: list[str] = []

    class _Listener:
        def take_scores(self, scores: Scores, keys: list[str | None]) -> None:
            heard.append(f"drift {len(keys)}")

        def offer(self, windows: Any, keys: list[str | None], scores: Scores, took: float) -> None:
            assert took > 0.0
            heard.append(f"shadow {len(keys)}")

    bench.pipeline.watch_drift()
    old = bench.pipeline.loaded
    bench.pipeline.accept(batch_of(_numbers(1)))
    _swap(bench, _other(builders.echo(length=1), tmp_path))
    bench.pipeline.drift, bench.pipeline.listener = cast("Any", _Listener()), cast("Any", _Listener())

    def idle() -> bool:
        loop.run_once(0.05)
        return bench.pipeline.is_idle

    wait_until(idle, "the old bundle to answer")
    assert (heard, old.answered) == ([], 1)
    assert old.sample is not None
    assert len(old.sample.rows) == 1
    bench.pipeline.accept(batch_of(_numbers(2)))
    wait_until(idle, "the new bundle to answer")
    assert heard == ["drift 1", "shadow 1"]
    bench.pipeline.stop()
    loop.close()


def test_a_shadow_is_shown_every_window_with_the_seconds_it_took(tmp_path: Path) -> None:
    """On the loop too; a failing drift watch is counted and keeps nothing from it."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    shown: list[tuple[list[float], list[str | None]]] = []

    class _Listener:
        def offer(self, windows: Any, keys: list[str | None], scores: Scores, took: float) -> None:
            assert took > 0.0
            assert scores.value is not None
            shown.append((windows[:, 0, 0].tolist(), keys))

        def take(self, *_: Any) -> None:
            raise ValueError("a fault")

        take_scores = take

    bench.pipeline.listener = cast("Any", _Listener())
    bench.pipeline.drift = cast("Any", _Listener())
    bench.pipeline.accept(batch_of(_numbers(1, 2), keys=["a", "b"]))
    assert shown == [([1.0, 2.0], ["a", "b"])]
    assert bench.counters.errors == {"drift_failed": 2}
    assert len(bench.taken.documents) == 2


def test_windows_that_were_tried_one_by_one_are_shown_to_no_shadow(tmp_path: Path) -> None:
    """Their time is not that of the model at work."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    bench.poison()
    shown: list[Any] = []
    bench.pipeline.listener = cast("Any", SimpleNamespace(offer=lambda *given: shown.append(given)))
    bench.pipeline.accept(batch_of(_numbers(1, POISON, 2)))
    assert _windows(bench) == [[1.0], [2.0]]
    assert shown == []


# --- a reload -----------------------------------------------------------------------------------------------------


def _successor(bench: ModelBench, folder: Path, **table: Any) -> ModelBench:
    after = ModelBench(builders.echo(), folder, **table)
    after.pipeline.take_over(bench.pipeline)
    return after


@pytest.mark.parametrize("before", ["entry", "window"])
@pytest.mark.parametrize("after", ["entry", "window"])
def test_a_model_with_a_changed_table_goes_on_with_its_windows(before: str, after: str, tmp_path: Path) -> None:
    """Their readings are owed as they were; those that were acknowledged on arrival are not owed any more."""
    old = ModelBench(builders.echo(), tmp_path, acknowledge=before)
    receipts = NumberedReceipts(3)
    batch = batch_of(_numbers(1, 2), NumberedReceipts(2))
    batch.receipts = list(receipts.all[:2])
    old.pipeline.accept(batch)
    new = _successor(old, tmp_path, acknowledge=after)
    old.pipeline.retire()
    receipts.hand_over()
    held_on = before == after == "window"
    assert receipts.acknowledged == ([2] if held_on else [0, 1, 2])
    last = batch_of(_numbers(3), NumberedReceipts(1))
    new.pipeline.accept(last)
    assert _windows(new) == [[1.0, 2.0, 3.0]]
    (owed,) = new.taken.receipts
    assert owed is not None
    owed.release()
    assert sorted(receipts.acknowledged) == [0, 1, 2]
    assert last.receipts[0] is not None
    assert last.receipts[0].holds == 1  # the source's own
    further = batch_of(_numbers(4), NumberedReceipts(1))
    new.pipeline.accept(further)
    assert further.receipts[0] is not None
    assert further.receipts[0].holds == (2 if after == "window" else 1)


def test_readings_between_two_windows_are_not_held_by_a_successor_either(tmp_path: Path) -> None:
    """Their predecessor acknowledged on arrival; the next window begins three readings later."""
    old = ModelBench(builders.echo(length=2), tmp_path, stride=5)
    old.pipeline.accept(batch_of(_numbers(1, 2)))
    new = ModelBench(builders.echo(length=2), tmp_path, stride=5, acknowledge="window")
    new.pipeline.take_over(old.pipeline)
    receipts = NumberedReceipts(5)
    new.pipeline.accept(batch_of(_numbers(3, 4, 5, 6, 7), receipts))
    receipts.hand_over()
    assert receipts.acknowledged == [0, 1, 2]
    assert _windows(new) == [[6.0, 7.0]]


def test_a_model_with_another_window_begins_anew(tmp_path: Path) -> None:
    """What the predecessor holds is given up when it retires."""
    old = ModelBench(builders.echo(), tmp_path, acknowledge="window")
    receipts = NumberedReceipts(2)
    old.pipeline.accept(batch_of(_numbers(1, 2), receipts))
    receipts.hand_over()
    new = _successor(old, tmp_path, acknowledge="window", stride=1)
    assert receipts.acknowledged == []
    old.pipeline.retire()
    assert receipts.acknowledged == [0, 1]
    new.pipeline.accept(batch_of(_numbers(3, 4, 5, 6)))
    assert _windows(new) == [[3.0, 4.0, 5.0], [4.0, 5.0, 6.0]]


def test_a_successor_knows_when_the_last_prediction_was(tmp_path: Path) -> None:
    """By the wall clock; nought before the first."""
    old = ModelBench(builders.echo(length=1), tmp_path)
    assert old.pipeline.last_prediction == 0.0
    began = time.time()
    old.pipeline.accept(batch_of(_numbers(1)))
    assert began <= old.pipeline.last_prediction <= time.time()
    assert _successor(old, tmp_path).pipeline.last_prediction == old.pipeline.last_prediction


def test_a_successor_goes_on_with_the_sequence_numbers(tmp_path: Path) -> None:
    """No `id` comes twice after a reload."""
    sequences = Sequences()
    for expected in (1, 2):
        bench = ModelBench(builders.echo(length=1), tmp_path, sequences=sequences)
        batch = batch_of(_numbers(1))
        batch.identities = [None]
        bench.pipeline.accept(batch)
        assert bench.taken.documents[0]["id"] == f"d/m/-/1/{expected}"


def test_a_successor_goes_on_with_the_verdict_on_the_rate(tmp_path: Path) -> None:
    """It is not measured anew; a successor that does not watch the rate takes nothing."""
    draft = builders.echo()
    draft.manifest["input"]["window"]["rate_hz"] = 10.0
    old = ModelBench(draft, tmp_path)
    batch = batch_of(_numbers(*range(20)))
    batch.own_times = True
    old.pipeline.accept(batch)
    assert old.pipeline.pace is not None
    assert old.pipeline.pace.state == "off"
    new = ModelBench(draft, tmp_path)
    new.pipeline.take_over(old.pipeline)
    assert new.pipeline.pace is not None
    assert new.pipeline.pace.state == "off"
    assert new.pipeline.pace.rate_hz == pytest.approx(1.0)
    plain = ModelBench(builders.echo(), tmp_path)
    plain.pipeline.take_over(old.pipeline)
    assert plain.pipeline.pace is None


def test_a_reload_changes_columns_topic_and_payload_of_a_running_model(tmp_path: Path) -> None:
    """Its source has one channel more, and its predictions another topic."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    bench.pipeline.accept(batch_of(_numbers(1)))
    bench.pipeline.rewire(("new", "other", "number"), "plant/m/{key}", _payload(bench.pipeline.model, "e"))
    bench.pipeline.accept(batch_of([[9.0, 8.0, 2.0]]))
    bench.pipeline.rewire(("number", "other"), "plant/m/{key}", _payload(bench.pipeline.model, "e"))
    bench.pipeline.accept(batch_of(_numbers(3)))
    assert _windows(bench) == [[1.0], [2.0], [3.0]]
    assert bench.taken.topics == ["edge/d/m/-", "plant/m/-", "plant/m/-"]
    assert bench.taken.streams == ["m/-"] * 3
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/0", "e/m/-/0", "e/m/-/0"]
    draft = builders.echo(length=1)
    draft.manifest["input"]["channels"].reverse()
    _swap(bench, _other(draft, tmp_path))  # the bundle wants its channels the other way round
    bench.pipeline.accept(batch_of([[4.0, 5.0]]))
    assert _windows(bench)[-1] == [5.0]


class _Further:
    """Notes the predictions that it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[tuple[str, str], Receipt | None]] = []

    def offer(
        self,
        outbox: PredictionTaker,
        prediction: Prediction,
        address: tuple[str, str],
        *,
        priority: int,
        receipt: Receipt | None,
        synchronised: bool,
    ) -> None:
        """As `FurtherPayloads.offer`."""
        assert (priority, synchronised) == (1, True)
        self.given.append((address, receipt))


def test_a_model_may_have_further_conventions_or_only_those(tmp_path: Path) -> None:
    """Each is given the prediction and its receipt; without a first one nothing else holds the receipt."""
    bench = ModelBench(builders.echo(length=1), tmp_path)
    further, topic = _Further(), "edge/d/m/{key}"
    payload = _payload(bench.pipeline.model)
    receipts = NumberedReceipts(2)
    for number, first in enumerate((payload, None)):
        bench.pipeline.rewire(("number", "other"), topic, Encoders(first, cast("FurtherPayloads", further)))
        batch = batch_of(_numbers(number), NumberedReceipts(1))
        batch.receipts = [receipts.all[number]]
        bench.pipeline.accept(batch)
    receipts.hand_over()
    assert further.given == [(("m/-", "edge/d/m/-"), receipt) for receipt in receipts.all]
    assert _windows(bench) == [[0.0]]
    assert receipts.acknowledged == [1]
    candidate = _other(builders.echo(length=1), tmp_path)
    bench.pipeline.swap(candidate, Encoders(None, cast("FurtherPayloads", further)))
    bench.pipeline.accept(batch_of(_numbers(5)))
    assert (len(further.given), len(bench.taken.documents)) == (3, 1)


def test_a_reload_of_its_source_is_a_gap(tmp_path: Path) -> None:
    """Readings may be missing."""
    bench = ModelBench(builders.echo(), tmp_path)
    bench.pipeline.accept(batch_of(_numbers(1, 2)))
    bench.pipeline.interrupt()
    bench.pipeline.accept(batch_of(_numbers(3, 4, 5)))
    assert _windows(bench) == [[3.0, 4.0, 5.0]]


# --- a stop and a start -------------------------------------------------------------------------------------------


def test_a_stop_keeps_the_open_windows_with_what_is_owed_for_them(tmp_path: Path) -> None:
    """After the start the window goes on, and a message of it that comes again is acknowledged with it."""
    before = ModelBench(builders.echo(), tmp_path, acknowledge="window")
    receipts = NumberedReceipts(2)
    before.pipeline.accept(batch_of(_numbers(1, 2), receipts, keys=["a", "a"]))
    owed, back = OwedReceipts(), OwedReceipts()
    saved = before.pipeline.save_windows(owed)
    assert [each.held for each in saved] == [[0, 1]]
    after = ModelBench(builders.echo(), tmp_path, acknowledge="window")
    assert after.pipeline.restore_windows(saved, back, 0.0) == 1
    held = [back.held(number) for number in (0, 1)]
    assert all(receipt is not None for receipt in held)
    after.pipeline.accept(batch_of(_numbers(3), keys=["a"]))
    assert _windows(after) == [[1.0, 2.0, 3.0]]
    (receipt,) = after.taken.receipts
    assert receipt is not None
    receipt.release()
    assert [each.is_released for each in held if each is not None] == [True, True]


def test_a_window_whose_prediction_is_not_safe_is_not_kept(tmp_path: Path) -> None:
    """Its readings come again; another key is kept."""
    bench = ModelBench(builders.echo(length=2, stride=1), tmp_path, acknowledge="window")
    bench.pipeline.accept(batch_of(_numbers(1, 2, 3), NumberedReceipts(3), keys=["a", "a", "b"]))
    assert [saved.key for saved in bench.pipeline.save_windows(OwedReceipts())] == ["b"]


def test_a_window_that_does_not_fit_owes_nothing(tmp_path: Path) -> None:
    """The bundle has another window now: nothing holds the messages that come again."""
    before = ModelBench(builders.echo(), tmp_path, acknowledge="window")
    before.pipeline.accept(batch_of(_numbers(1, 2), NumberedReceipts(2)))
    saved = before.pipeline.save_windows(OwedReceipts())
    after, back = ModelBench(builders.echo(length=4), tmp_path, acknowledge="window"), OwedReceipts()
    assert after.pipeline.restore_windows(saved, back, 0.0) == 0
    assert back.held(0) is None


def test_windows_of_acknowledged_readings_are_kept_without_receipts(tmp_path: Path) -> None:
    """With `acknowledge = "entry"` nothing is owed for them."""
    before = ModelBench(builders.echo(), tmp_path)
    before.pipeline.accept(batch_of(_numbers(1, 2), NumberedReceipts(2)))
    assert before.pipeline.last_prediction == 0.0  # the model was not called
    saved = before.pipeline.save_windows(OwedReceipts())
    assert [each.held for each in saved] == [[]]
    after = ModelBench(builders.echo(), tmp_path)
    assert after.pipeline.restore_windows(saved, OwedReceipts(), 0.0) == 1
    after.pipeline.accept(batch_of(_numbers(3)))
    assert _windows(after) == [[1.0, 2.0, 3.0]]


def test_the_state_of_a_recurrent_model_is_kept_over_a_stop(tmp_path: Path) -> None:
    """The answer after the start is the one that would have come without it."""
    rows = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    whole = ModelBench(builders.stateful(length=1), tmp_path)
    whole.pipeline.accept(batch_of(rows))
    before = ModelBench(builders.stateful(length=1), tmp_path)
    before.pipeline.accept(batch_of(rows[:2]))
    saved = before.pipeline.save_windows(OwedReceipts())
    after = ModelBench(builders.stateful(length=1), tmp_path)
    assert after.pipeline.restore_windows(saved, OwedReceipts(), 0.0) == 1
    after.pipeline.accept(batch_of(rows[2:]))
    assert after.taken.documents[0]["scores"] == whole.taken.documents[2]["scores"]


def test_a_state_that_is_not_finite_begins_anew(tmp_path: Path) -> None:
    """Else every later answer of the stream would be lost too."""
    bench = ModelBench(builders.stateful(length=1), tmp_path)
    call = bench.pipeline.model._call
    is_bad = True

    def spoil(windows: Any, states: Any) -> Any:
        found = call(windows, states)
        return [np.full_like(each, np.nan) if is_bad and each.dtype.kind == "f" else each for each in found]

    bench.pipeline.model._call = spoil  # type: ignore[method-assign]
    keys: list[str | None] = ["a", "b"]
    bench.pipeline.accept(batch_of([[0.1, 0.2]] * 2, keys=keys))
    is_bad = False
    bench.pipeline.accept(batch_of([[0.3, 0.4]] * 2, keys=keys))
    clean = ModelBench(builders.stateful(length=1), tmp_path)
    clean.pipeline.accept(batch_of([[0.3, 0.4]] * 2, keys=keys))
    assert [each["scores"] for each in bench.taken.documents] == [each["scores"] for each in clean.taken.documents]
    assert (bench.pipeline.loaded.failed, bench.pipeline.loaded.answered) == (2, 2)
    assert bench.counters.errors == {"model_not_finite": 2}


def test_repairs_change_the_model_of_the_table_only(tmp_path: Path) -> None:
    """A model that picks some columns repairs a copy as well: the next model of the source sees what came."""
    draft = builders.echo(length=1)
    draft.manifest["input"]["channels"][0]["range"] = [0.0, 1.0]
    for channels, row in ((None, [5.0, 2.0]), (("other", "number"), [2.0, 5.0])):
        bench = ModelBench(draft, tmp_path, repair=RepairTable(out_of_range="clip"), channels=channels)
        batch = batch_of([row])
        bench.pipeline.accept(batch)
        assert batch.values.tolist() == [row]
        assert _windows(bench) == [[1.0]]


def test_a_table_may_be_changed_for_the_next_bundle(tmp_path: Path) -> None:
    """A stride of the table comes before that of the bundle."""
    for stride, expected in ((None, [[1.0, 2.0]]), (1, [[1.0, 2.0], [2.0, 3.0]])):
        bench = ModelBench(builders.echo(length=2), tmp_path, stride=stride)
        assert bench.pipeline.config == msgspec.structs.replace(bench.pipeline.config, stride=stride)
        bench.pipeline.accept(batch_of(_numbers(1, 2, 3)))
        assert _windows(bench) == expected
