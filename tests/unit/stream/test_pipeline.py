"""One model's path: what becomes of readings, windows and receipts on the way to the outbox."""

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.model import Model, Scores
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import RepairTable
from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE
from edge_runtime.delivery.payloads import prediction_id
from edge_runtime.readings import Prediction
from edge_runtime.stream.worker import ModelCall, rehearse
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.model_bench import POISON, ModelBench, NumberedReceipts, batch_of
from tests.support.waiting import wait_until


def test_a_receipt_is_held_until_the_outbox_lets_go(tmp_path: Path) -> None:
    """Handing a batch over acknowledges nothing; the outbox's release does."""
    bench, receipts = ModelBench(builders.classification(), tmp_path), NumberedReceipts(3)
    bench.pipeline.accept(batch_of([[1, 2], [3, 4], [5, 6]], receipts))
    receipts.hand_over()
    assert receipts.acknowledged == []
    for receipt in bench.taken.receipts:
        assert receipt is not None
        receipt.release()
    assert receipts.acknowledged == [0, 1, 2]


def test_a_reading_that_is_out_of_the_contract_is_acknowledged_at_once(tmp_path: Path) -> None:
    """Its neighbours keep theirs, and each prediction has the identity of its own reading."""
    bench, receipts = ModelBench(builders.classification(), tmp_path), NumberedReceipts(3)
    bench.pipeline.accept(batch_of([[1, 2], [float("nan"), 4], [5, 6]], receipts))
    receipts.hand_over()
    assert receipts.acknowledged == [1]
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/0", "d/m/-/2"]
    assert bench.counters.rejected == {"missing_channel": 1}


def test_a_withheld_prediction_acknowledges_its_reading(tmp_path: Path) -> None:
    """What `publish` keeps back was kept back on purpose."""
    bench, receipts = ModelBench(builders.anomaly(), tmp_path, publish="alarm"), NumberedReceipts(2)
    bench.pipeline.accept(batch_of([[0, 0, 0], [9, 9, 9]], receipts))
    receipts.hand_over()
    assert receipts.acknowledged == [0]
    assert bench.counters.counts["withheld"] == 1


def test_a_reading_of_a_longer_window_is_acknowledged_when_it_has_entered_it(tmp_path: Path) -> None:
    """Only the reading that completes the window waits for the prediction."""
    bench, receipts = ModelBench(builders.classification(length=3), tmp_path), NumberedReceipts(4)
    bench.pipeline.accept(batch_of([[1, 2]] * 4, receipts))
    receipts.hand_over()
    assert receipts.acknowledged == [0, 1, 3]
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/2"]


def test_a_prediction_that_cannot_be_made_is_counted_and_its_reading_is_acknowledged(tmp_path: Path) -> None:
    """A fault behind the model: the broker does not send the reading again for ever, and the others are published."""
    bench, receipts = ModelBench(builders.classification(), tmp_path), NumberedReceipts(3)
    offer = bench.taken.offer

    def fail(*args: Any, **given: Any) -> None:
        if b"/-/1" in args[2]:
            raise ValueError("a fault")
        offer(*args, **given)

    bench.taken.offer = fail  # type: ignore[method-assign]
    bench.pipeline.accept(batch_of([[1, 2]] * 3, receipts))
    receipts.hand_over()
    assert receipts.acknowledged == [1]
    assert bench.counters.errors == {"prediction_failed": 1}
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/0", "d/m/-/2"]


def test_a_poison_pill_is_set_aside_alone(tmp_path: Path) -> None:
    """A window on which the model fails is counted and acknowledged; its neighbours are published."""
    bench, receipts = ModelBench(builders.classification(), tmp_path), NumberedReceipts(5)
    bench.poison()
    bench.pipeline.accept(batch_of([[1, 2], [POISON, 2], [3, 4], [POISON, 1], [5, 6]], receipts))
    receipts.hand_over()
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/0", "d/m/-/2", "d/m/-/4"]
    assert receipts.acknowledged == [1, 3]
    assert bench.counters.errors["model_failed"] == 2


def test_a_recurrent_model_is_not_thrown_off_by_a_poison_pill(tmp_path: Path) -> None:
    """The windows around it get the scores that they would have had without it."""
    rows = [[0.1, 0.2], [0.3, 0.4], [POISON, 0.0], [0.5, 0.6], [0.7, 0.8]]
    bench = ModelBench(builders.stateful(length=1), tmp_path)
    bench.poison()
    bench.pipeline.accept(batch_of(rows))
    clean = ModelBench(builders.stateful(length=1), tmp_path)
    clean.pipeline.accept(batch_of([row for row in rows if row[0] != POISON]))
    found = [document["scores"] for document in bench.taken.documents]
    assert found == [document["scores"] for document in clean.taken.documents]


def test_an_answer_that_is_not_finite_is_never_published(tmp_path: Path) -> None:
    """It is counted, its reading is acknowledged, and the state of its stream begins anew."""
    bench, receipts = ModelBench(builders.regression(), tmp_path), NumberedReceipts(2)
    call = bench.pipeline.model._call

    def spoil(windows: Any, states: Any) -> Any:
        (values,) = call(windows, states)
        values[0] = np.nan
        return [values]

    bench.pipeline.model._call = spoil  # type: ignore[method-assign]
    bench.pipeline.accept(batch_of([[1, 2], [3, 4]], receipts))
    receipts.hand_over()
    assert [document["id"] for document in bench.taken.documents] == ["d/m/-/1"]
    assert receipts.acknowledged == [0]
    assert bench.counters.errors["model_not_finite"] == 1


def test_a_state_that_is_not_finite_begins_anew(tmp_path: Path) -> None:
    """Else every answer of this stream would be NaN from then on; the next is that of a stream that has just begun."""
    bench, fresh = (ModelBench(builders.stateful(length=1), tmp_path) for _ in range(2))
    bench.pipeline.accept(batch_of([[0.1, 0.9]]))
    parts = bench.pipeline.windows._streams[None].carry.parts
    assert parts is not None
    parts[0][:] = np.nan
    bench.pipeline.accept(batch_of([[0.4, 0.4]]))
    for each in (bench, fresh):
        each.pipeline.accept(batch_of([[0.8, 0.2]]))
    assert bench.counters.errors["model_not_finite"] == 1
    assert bench.taken.documents[-1]["scores"] == fresh.taken.documents[-1]["scores"]


def test_an_alarm_is_offered_with_the_priority_of_one(tmp_path: Path) -> None:
    """So that it is dropped last where room is short."""
    bench, seen = ModelBench(builders.anomaly(), tmp_path), list[tuple[bool, int]]()

    def offer(*given: Any, priority: int, receipt: object) -> None:
        assert receipt is None
        seen.append((json.loads(given[2])["alarm"], priority))

    bench.taken.offer = cast("Any", offer)  # type: ignore[method-assign]
    bench.pipeline.accept(batch_of([[0, 0, 0], [9, 9, 9]]))
    assert seen == [(False, PRIORITY_ROUTINE), (True, PRIORITY_ALARM)]


def test_two_models_of_one_source_each_hold_the_receipt(tmp_path: Path) -> None:
    """A reading is acknowledged when the last of its predictions is safe."""
    one, other = ModelBench(builders.classification(), tmp_path), ModelBench(builders.classification(seed=5), tmp_path)
    receipts = NumberedReceipts(1)
    batch = batch_of([[1, 2]], receipts)
    one.pipeline.accept(batch)
    other.pipeline.accept(batch)
    receipts.hand_over()
    first, second = one.taken.receipts[0], other.taken.receipts[0]
    assert first is not None
    assert second is not None
    first.release()
    assert receipts.acknowledged == []
    second.release()
    assert receipts.acknowledged == [0]


def test_what_is_mended_for_one_model_is_not_mended_for_another(tmp_path: Path) -> None:
    """A value moved to the limit of one model's range is what it was for its neighbours."""
    draft = builders.classification()
    draft.manifest["input"]["channels"][0]["range"] = [0.0, 1.0]
    bench = ModelBench(draft, tmp_path, repair=RepairTable(out_of_range="clip"))
    batch = batch_of([[5.0, 2.0]])
    bench.pipeline.accept(batch)
    assert batch.values.tolist() == [[5.0, 2.0]]
    assert len(bench.taken.documents) == 1
    assert bench.counters.counts["repaired_out_of_range"] == 1


def test_a_model_takes_its_channels_in_its_own_order(tmp_path: Path) -> None:
    """A source delivers the channels of all its models; each picks its own."""
    plain = ModelBench(builders.classification(), tmp_path)
    plain.pipeline.accept(batch_of([[1, 2]]))
    mixed = ModelBench(builders.classification(), tmp_path, channels=("other", "humidity", "temperature"))
    mixed.pipeline.accept(batch_of([[9, 2, 1]]))
    assert plain.taken.documents[0]["scores"] == mixed.taken.documents[0]["scores"]


def test_keys_have_topics_of_their_own(tmp_path: Path) -> None:
    """A stream without key is a dash."""
    bench = ModelBench(builders.classification(), tmp_path)
    bench.pipeline.accept(batch_of([[1, 2], [1, 2]], keys=["hall-3", None]))
    assert bench.taken.topics == ["edge/d/m/hall-3", "edge/d/m/-"]


def test_a_flood_of_keys_leaves_nothing_behind(tmp_path: Path) -> None:
    """Beyond `max_keys` the silent ones go everywhere at once, and are counted; no `id` comes twice."""
    bench = ModelBench(builders.classification(), tmp_path, max_keys=10)
    for number in range(500):
        batch = batch_of([[1, 2]], keys=[f"k{number % 50}"])
        batch.identities = [None]
        bench.pipeline.accept(batch)
    assert len(bench.pipeline._addresses) <= 10
    assert len(bench.pipeline.decider._streams) <= 10
    assert bench.counters.dropped["keys"] == 490
    identities = [document["id"] for document in bench.taken.documents]
    assert len(set(identities)) == len(identities) == 500


def test_as_many_keys_are_repaired_as_may_have_windows(tmp_path: Path) -> None:
    """`max_keys` beyond its default is a bound for the last values too."""
    bench = ModelBench(builders.classification(), tmp_path, max_keys=11_000, repair=RepairTable(missing="last"))
    bench.pipeline.accept(batch_of([[1, 2]] * 10_500, keys=[f"k{number}" for number in range(10_500)]))
    bench.pipeline.accept(batch_of([[np.nan, 3]], keys=["k0"]))
    assert (bench.counters.rejected, bench.counters.counts["repaired_missing"]) == ({}, 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_keeps_the_order_and_the_loop_free(fails: bool, tmp_path: Path) -> None:
    """Jobs come back in the order in which they went, poison pills among them."""
    loop = Loop()
    bench = ModelBench(builders.classification(), tmp_path, loop=loop, run="worker")
    if fails:
        bench.poison()
    receipts = NumberedReceipts(60)
    for number in range(60):
        batch = batch_of([[POISON if fails and number % 7 == 3 else number, 2]])
        batch.identities, batch.receipts = [str(number)], [receipts.all[number]]
        bench.pipeline.accept(batch)
    receipts.hand_over()

    def idle() -> bool:
        loop.run_once(0.05)
        return bench.pipeline.is_idle

    wait_until(idle, "the worker to be done")
    numbers = [int(document["id"].rpartition("/")[2]) for document in bench.taken.documents]
    assert numbers == [number for number in range(60) if not (fails and number % 7 == 3)]
    assert len(receipts.acknowledged) == 60 - len(numbers)
    worker = bench.pipeline._worker
    assert worker is not None
    thread = worker._thread._thread
    assert thread is not None
    assert thread.is_alive()
    bench.pipeline.stop()
    thread.join(20.0)
    assert not thread.is_alive()
    loop.close()


class _Tap:
    """Notes what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str | None, list[float], str | None]] = []

    def take(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
        """As `AnswerTap.take`."""
        del scores
        identity = None if prediction is None else prediction_id("d", "m", 1, prediction)
        self.shown.append((call.keys[row], call.windows[row].ravel().tolist(), identity))


def test_a_tap_sees_every_answer_published_or_withheld(tmp_path: Path) -> None:
    """With its window, and with the id that the published payload has."""
    bench = ModelBench(builders.classification(length=1), tmp_path, publish="change")
    tap = _Tap()
    bench.pipeline.taps = (tap,)
    bench.pipeline.accept(batch_of([[1.0, 2.0]] * 3, keys=["a", "a", "b"]))
    published = {document["id"] for document in bench.taken.documents}
    assert [(key, window) for key, window, _ in tap.shown] == [(key, [1.0, 2.0]) for key in ("a", "a", "b")]
    assert [identity for _, _, identity in tap.shown][1] is None
    assert {identity for _, _, identity in tap.shown if identity is not None} == published


def test_a_tap_that_fails_costs_no_prediction(tmp_path: Path) -> None:
    """It is counted, and every receipt is released as often as it was held."""

    class _Broken:
        def take(self, call: ModelCall, row: int, scores: Scores, prediction: Prediction | None) -> None:
            raise ValueError("a fault")

    bench = ModelBench(builders.classification(length=1), tmp_path)
    bench.pipeline.taps = (_Broken(), tap := _Tap())
    receipts = NumberedReceipts(2)
    bench.pipeline.accept(batch_of([[1.0, 2.0]] * 2, receipts))
    assert len(bench.taken.documents) == len(tap.shown) == 2
    assert bench.counters.errors == {"tap_failed": 2}
    assert [receipt.holds for receipt in receipts.all] == [2, 2]


class _Watch:
    """Notes what it is shown."""

    def __init__(self) -> None:
        self.values: list[list[float]] = []
        self.answers = 0
        self.forgotten: list[str | None] = []

    def take(self, values: Any, keys: list[str | None], times: list[float] | None, arrived: float) -> None:
        """As `DriftListener.take`."""
        del keys, times, arrived
        self.values += values.tolist()

    def take_scores(self, scores: Scores, keys: list[str | None]) -> None:
        """As `DriftListener.take_scores`."""
        assert scores.scores is not None
        self.answers += len(keys)

    def forget(self, keys: list[str | None]) -> None:
        """As `DriftListener.forget`."""
        self.forgotten += keys

    def summary(self) -> dict[str, Any]:
        """As `DriftListener.summary`."""
        return {}


def test_drift_sees_readings_before_any_is_refused_or_repaired(tmp_path: Path) -> None:
    """What is missing and out of range is what it is to count; and of the answers it sees every one."""
    bench = ModelBench(
        builders.classification(length=1),
        tmp_path,
        repair=RepairTable(missing="last"),
        channels=("humidity", "temperature"),
    )
    watch = _Watch()
    bench.pipeline.drift = watch
    rows = [[2.0, 1.0], [float("nan"), 1.0], [2.0, 9e9]]
    bench.pipeline.accept(batch_of(rows))
    np.testing.assert_array_equal(watch.values, np.array([row[::-1] for row in rows], np.float32))
    assert watch.answers == len(bench.taken.documents) == 2
    bench.pipeline.config = msgspec.structs.replace(bench.pipeline.config, key_expiry=0.001)
    bench.pipeline._loop.now += 10.0  # type: ignore[attr-defined]
    bench.pipeline.expire()
    assert watch.forgotten == [None]


def test_a_watch_that_fails_costs_no_prediction(tmp_path: Path) -> None:
    """It is counted by reason."""

    class _Broken(_Watch):
        def take(self, values: Any, keys: list[str | None], times: list[float] | None, arrived: float) -> None:
            raise ValueError("a fault")

    bench = ModelBench(builders.classification(length=1), tmp_path)
    bench.pipeline.drift = _Broken()
    bench.pipeline.accept(batch_of([[1.0, 2.0]] * 3))
    assert len(bench.taken.documents) == 3
    assert bench.counters.errors == {"drift_failed": 1}


def test_readings_of_another_bundle_are_not_held_against_the_reference_of_the_last(tmp_path: Path) -> None:
    """An exchange ends the watch; the daemon begins another one for the new bundle."""
    bench = ModelBench(builders.classification(), tmp_path)
    watch = bench.pipeline.drift = _Watch()
    bench.pipeline.accept(batch_of([[1, 2]]))
    draft = builders.classification(version="2.0.0")
    following = Model(open_bundle(draft.save(tmp_path / "next.onnx")))
    payload = bench.pipeline.loaded.payload
    assert payload is not None
    bench.pipeline.swap(rehearse(following, bench.pipeline.config), payload)
    bench.pipeline.accept(batch_of([[3, 4]] * 2))
    assert bench.pipeline.drift is None
    assert len(watch.values) == watch.answers == 1
    numbers = [document["seq"] for document in bench.taken.documents]
    assert numbers == list(range(numbers[0], numbers[0] + 3)), "no number comes twice"
