"""Models exchanged under load, and bad models of every kind: what is counted here is readings, answers and seconds.

`EDGE_TORTURE=long` exchanges a hundred times at a thousand readings a second. Figures are reported as properties of
the tests (`--junit-xml`, or `-rP`) and never judged: they belong to the machine.
"""

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime import selftest
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import BundleError
from edge_runtime.measured import Measured
from edge_runtime.selftest import Budget
from edge_runtime.slots import Policy, Store
from tests import builders
from tests.broker import Mosquitto
from tests.conftest import MakeDaemon
from tests.daemon import Daemon
from tests.devices import stored_device
from tests.subscriber import Subscriber

pytestmark = [pytest.mark.system, pytest.mark.slow]

LONG = os.environ.get("EDGE_TORTURE") == "long"
SWAPS, RATE_HZ = (100, 1000) if LONG else (10, 300)
PAUSE_S = 0.05  # between two handfuls of readings; the load is what is tested here
BAD = 0.1  # the temperature at which a poisoned model fails
GOOD = 0.2
UNSIGNED = Policy(unsigned="allow")

Report = Callable[[str, object], None]


def _believed(bundle: Bundle, _budget: Budget, _place: str) -> Measured:
    """Stands in for the self-test where the daemon is what is tested."""
    manifest = bundle.manifest
    return Measured(manifest.name, manifest.version, bundle.digest, 4, 1.0, 1.0, 1.0, 1, 1, "", "")


@dataclass
class Rig:
    """A device at work, its store, and somebody who sends it readings."""

    folder: Path
    daemon: Daemon
    client: Subscriber
    store: Store
    sent: int = 0

    def install(self, draft: builders.Draft) -> None:
        """Make a bundle active."""
        self.store.install(draft.save(self.folder / f"{draft.manifest['version']}.onnx"), UNSIGNED)

    def send(self, count: int, temperature: float = GOOD) -> None:
        """Readings of three keys, numbered on."""
        for number in range(self.sent, self.sent + count):
            reading = {"temperature": temperature, "humidity": 0.2, "id": number}
            self.client.publish(f"sensors/k{number % 3}/climate", reading)
        self.sent += count

    def state(self) -> tuple[str, str, str]:
        """Version, state and reason, as the device last said them."""
        found = self.client.on("edge/room/models")
        newest: Any = found[-1].document[0] if found else {"version": "", "state": "", "why": None}
        return newest["version"], newest["state"], newest["why"] or ""

    def send_until(
        self, done: Callable[[], bool], what: str, temperature: float = GOOD, deadline: float = 60.0
    ) -> None:
        """Keep the load up until something has happened.

        Raises:
            AssertionError: it did not happen in time.
        """
        started = time.monotonic()
        for handful in itertools.count(1):
            self.send(int(RATE_HZ * PAUSE_S), temperature)
            if done():
                return
            assert time.monotonic() - started < deadline, f"waited in vain for {what}; {self.daemon.log[-2000:]}"
            time.sleep(max(0.0, started + handful * PAUSE_S - time.monotonic()))

    def answers(self) -> list[Any]:
        """The predictions so far, in order of arrival."""
        return self.client.on("edge/room/comfort/")


@pytest.fixture
def make_rig(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> Callable[[str], Rig]:
    """A device with version 1.0.0, proven; the text is more of its `[store]`."""

    def make(more: str) -> Rig:
        store = Store(tmp_path / "store", _believed)
        first = builders.classification(name="comfort", version="1.0.0")
        slot = store.install(first.save(tmp_path / "first.onnx"), UNSIGNED).slot
        store.confirm("comfort", slot.digest)
        daemon = make_daemon(stored_device(mosquitto, tmp_path, more)).start()
        subscriber.wait_for_text("edge/room/status", "online")
        return Rig(tmp_path, daemon, subscriber, store)

    return make


@pytest.mark.timeout(900 if LONG else 200)
def test_models_change_under_load(make_rig: Callable[[str], Rig], record_property: Report) -> None:
    """However often the model changes at full load, each reading is answered exactly once, by one named version."""
    rig = make_rig("probation_predictions = 50")
    versions = [f"1.{number}.0" for number in range(1, SWAPS + 1)]
    for version in versions:
        rig.install(builders.classification(name="comfort", version=version))
        rig.send_until(lambda version=version: rig.state()[0] == version, f"version {version}")  # type: ignore[misc]
    rig.send_until(lambda: rig.state()[:2] == (versions[-1], "active"), "the proof of the last one")
    rig.client.wait_for(rig.sent, "edge/room/comfort/", 60.0)
    rig.client.flush()
    answers = rig.answers()
    documents = [each.document for each in answers]
    assert len(documents) == rig.sent
    assert {each["id"] for each in documents} == {f"room/comfort/k{n % 3}/{n}" for n in range(rig.sent)}
    assert {each["version"] for each in documents} == {"1.0.0", *versions}
    gaps = _gaps_at_exchanges(answers, [each["version"] for each in documents])
    assert len(gaps) == SWAPS
    record_property("gap_p99_ms", round(1000 * float(np.quantile(gaps, 0.99)), 1))
    print(f"{SWAPS} exchanges, {rig.sent} readings: gap p50 {_ms(gaps, 0.5)} ms, p99 {_ms(gaps, 0.99)} ms")  # noqa: T201 - a figure to read
    assert rig.daemon.stop() == 0


def _gaps_at_exchanges(answers: list[Any], versions: list[str]) -> list[float]:
    """The longest silence in the second around the first answer of each version but the first."""
    arrived = np.array([each.arrived for each in answers])
    firsts = [versions.index(version) for version in dict.fromkeys(versions)][1:]
    silences = np.diff(arrived)
    return [float(silences[np.abs(arrived[1:] - arrived[first]) < 0.5].max()) for first in firsts]


def _ms(gaps: list[float], quantile: float) -> float:
    return round(1000 * float(np.quantile(gaps, quantile)), 1)


@pytest.mark.parametrize("good_before", [0, 1100])
def test_a_model_that_begins_to_answer_nan_is_taken_back(
    make_rig: Callable[[str], Rig], record_property: Report, good_before: int
) -> None:
    """A bundle on probation that fails, at once or after a thousand good answers, goes back by itself and says why."""
    rig = make_rig("")
    rig.install(_poisoned("1.1.0"))
    rig.send_until(lambda: rig.state()[:2] == ("1.1.0", "probation"), "the exchange")
    good = rig.sent + good_before
    rig.send_until(lambda: rig.sent >= good, "good readings")
    began = time.monotonic()
    rig.send_until(lambda: rig.state()[0] == "1.0.0", "the way back", BAD)
    _report_recovery(record_property, "NaN", began)
    _assert_serves_the_old_one(rig, "failed on")


def test_a_model_that_is_slow_in_service_is_taken_back(make_rig: Callable[[str], Rig], record_property: Report) -> None:
    """With `max_latency`, a bundle whose 99th percentile is above it goes back by itself."""
    rig = make_rig("max_latency = 0.02")
    began = time.monotonic()
    rig.install(_slow("1.1.0"))
    rig.send(1)
    _send_slowly(rig, lambda: rig.state()[2] != "" and rig.state()[0] == "1.0.0")
    _report_recovery(record_property, "slow", began)
    _assert_serves_the_old_one(rig, "expected at most 20.0 ms")


def _send_slowly(rig: Rig, done: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < 90.0, f"never went back: {rig.daemon.log[-2000:]}"
        rig.send(1)
        time.sleep(0.2)  # a sensor that speaks five times a second


@pytest.mark.parametrize("kind", ["crash", "hang", "memory", "golden"])
def test_a_model_that_is_bad_at_once_never_takes_a_reading(
    make_rig: Callable[[str], Rig], monkeypatch: pytest.MonkeyPatch, record_property: Report, kind: str
) -> None:
    """What crashes, hangs, eats memory or gives wrong golden answers is refused, and the old model never stops."""
    rig = make_rig("")
    draft, words = _bad_at_once(kind)
    if kind == "crash":
        monkeypatch.setattr(selftest, "_command", lambda *_: ["sh", "-c", "kill -SEGV $$"])
    path = draft.save(rig.folder / "bad.onnx")
    rig.send(50)
    began = time.monotonic()
    with pytest.raises(BundleError, match=words):
        Store(rig.folder / "store").install(path, Policy(unsigned="allow", budget=Budget(wall_s=3.0)))
    _report_recovery(record_property, kind, began)
    _assert_serves_the_old_one(rig, "")


def _bad_at_once(kind: str) -> tuple[builders.Draft, str]:
    draft = builders.classification(name="comfort", version="1.1.0")
    if kind == "hang":
        _count_to(draft, 2**62)
        return draft, "hangs"
    if kind == "memory":
        _fill(draft, 10_000_000_000)
        return draft, "MiB of memory, found more"
    if kind == "golden":
        scores = np.full((builders.GOLDEN_ROWS, 2), 0.5, np.float32)
        draft.manifest["selftest"]["outputs"]["scores"] = builders.tensor_document(scores)
        return draft, "found it off by"
    return draft, "crashed onnxruntime"


def _report_recovery(record_property: Report, kind: str, began: float) -> None:
    took = round(time.monotonic() - began, 2)
    record_property("recovery_s", took)
    print(f"{kind}: on the old model after {took} s")  # noqa: T201 - a figure to read


def _assert_serves_the_old_one(rig: Rig, words: str) -> None:
    assert words in rig.state()[2]
    rig.client.flush()
    first = rig.sent
    rig.send(30)
    wanted = {f"room/comfort/k{n % 3}/{n}" for n in range(first, rig.sent)}

    def come() -> dict[str, str]:
        found = (each.document for each in rig.answers()[-200:])
        return {each["id"]: each["version"] for each in found if each["id"] in wanted}

    rig.client.wait_until(lambda _: come().keys() == wanted, "answers of the old model", 60.0)
    assert set(come().values()) == {"1.0.0"}
    assert open_bundle(rig.store.active("comfort")).manifest.version == "1.0.0"
    assert rig.daemon.stop() == 0


# --- what is wrong with the models ---


def _rename_scores(draft: builders.Draft) -> None:
    """The scores become `sound_scores`, so that something can stand between them and the output."""
    for node in draft.model.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == "scores":
                    names[position] = "sound_scores"


def _constant(draft: builders.Draft, name: str, values: Any) -> None:
    draft.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def _poisoned(version: str) -> builders.Draft:
    """Right on its golden vectors, but its scores are NaN wherever the temperature is exactly `BAD`."""
    draft = builders.classification(name="comfort", version=version)
    _rename_scores(draft)
    _constant(draft, "bad_value", np.float32(BAD))
    _constant(draft, "nan_value", np.float32(np.nan))
    _constant(draft, "first_channel", np.array([0], np.int64))
    draft.model.graph.node.extend(
        [
            helper.make_node("Gather", ["window", "first_channel"], ["temperature"], axis=2),
            helper.make_node("Equal", ["temperature", "bad_value"], ["is_bad"]),
            helper.make_node("Cast", ["is_bad"], ["bad_number"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["bad_number"], ["row_number"], axes=[1], keepdims=0),
            helper.make_node("Cast", ["row_number"], ["row_is_bad"], to=TensorProto.BOOL),
            helper.make_node("Where", ["row_is_bad", "nan_value", "sound_scores"], ["scores"]),
        ]
    )
    return draft


def _count_to(draft: builders.Draft, times: int) -> None:
    _rename_scores(draft)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Abs", ["held_in"], ["held_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_in", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_out", TensorProto.FLOAT, ["N", 2]),
        ],
    )
    _constant(draft, "times", np.int64(times))
    _constant(draft, "yes", np.bool_(True))
    loop = helper.make_node("Loop", ["times", "yes", "sound_scores"], ["scores"], body=body)
    draft.model.graph.node.append(loop)


def _slow(version: str) -> builders.Draft:
    """Right answers, each after a long walk."""
    draft = builders.classification(name="comfort", version=version)
    golden = draft.manifest["selftest"]
    _count_to(draft, 50_000)
    draft.manifest["selftest"] = golden
    return draft


def _fill(draft: builders.Draft, elements: int) -> None:
    _rename_scores(draft)
    _constant(draft, "many", np.array([elements], np.int64))
    seed = numpy_helper.from_array(np.array([1], np.float32), "seed")
    draft.model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["many"], ["block"], value=seed),
            helper.make_node("Cos", ["block"], ["cosines"]),
            helper.make_node("ReduceMax", ["cosines"], ["most"], keepdims=0),
            helper.make_node("Add", ["sound_scores", "most"], ["scores"]),
        ]
    )
