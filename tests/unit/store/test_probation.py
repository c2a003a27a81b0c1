"""When a new bundle has failed, and when it is proven: each limit of `[store]` at its edge."""

from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.model import Scores
from edge_runtime.config.tables import StoreTable
from edge_runtime.store.probation import Probation, Verdict
from edge_runtime.stream.score_drift import ENOUGH, ScoreSample, shift
from edge_runtime.stream.worker import LoadedBundle
from edge_runtime.system.memory import Growth

MIB = 1024 * 1024
NEITHER, PROVEN = Verdict(), Verdict(is_proven=True)
LIMITS = StoreTable(probation=600.0, probation_predictions=1000, probation_errors=3, max_memory_growth=64 * MIB)


class _Grown(Growth):
    """Memory that has grown by so much."""

    def __init__(self, grown: int = 0) -> None:
        self.grown = grown

    def bytes(self) -> int:
        """As `Growth.bytes`."""
        return self.grown


def _did(answered: int = 0, failed: int = 0, latencies_ms: tuple[float, ...] = (), **more: Any) -> LoadedBundle:
    """A bundle that has done this."""
    did = LoadedBundle(cast("Any", None), cast("Any", None), None, answered=answered, failed=failed, **more)
    for each in latencies_ms:
        did.latencies.add(each / 1000)
    return did


def _judge(did: LoadedBundle, after: float = 1.0, grown: int = 0, **limits: Any) -> Verdict:
    config = StoreTable(**({name: getattr(LIMITS, name) for name in LIMITS.__struct_fields__} | limits))
    return Probation(config, 5000.0, _Grown(grown)).judge(did, 5000.0 + after)


@pytest.mark.parametrize(
    ("answered", "after", "expected"),
    [
        (999, 599.9, NEITHER),
        (1000, 0.0, PROVEN),  # many predictions are enough at any time
        (1, 600.0, PROVEN),  # the time is enough with one prediction
        (0, 600.0, NEITHER),  # a model that has answered nothing has proven nothing
        (0, 1e6, NEITHER),
    ],
)
def test_a_bundle_is_proven_by_predictions_or_by_time(answered: int, after: float, expected: Verdict) -> None:
    """`probation_predictions` answers, or `probation` seconds and at least one answer."""
    assert _judge(_did(answered), after) == expected


@pytest.mark.parametrize(("answered", "after"), [(0, 0.0), (1000, 600.0)])
def test_so_many_failed_windows_are_a_fault_at_any_time(answered: int, after: float) -> None:
    """`probation_errors` windows: the message has how many of how many. One fewer is none."""
    assert _judge(_did(answered, 2), after).fault is None
    verdict = _judge(_did(answered, 3), after)
    assert verdict == Verdict(f"failed on 3 of {answered + 3} windows in service")


def test_memory_that_grows_over_its_limit_is_a_fault() -> None:
    """At the limit the bundle stays; above it goes, before it has answered anything."""
    assert _judge(_did(1000), grown=64 * MIB) == PROVEN
    verdict = _judge(_did(), grown=65 * MIB)
    assert verdict == Verdict("took 65 MiB of memory, expected at most 64 MiB")
    assert _judge(_did(), grown=129 * MIB, max_memory_growth=128 * MIB).fault == (
        "took 129 MiB of memory, expected at most 128 MiB"
    )


@pytest.mark.parametrize(
    ("answered", "after", "is_judged"),
    [(19, 1.0, False), (20, 1.0, True), (1, 600.0, True), (0, 600.0, False)],
)
def test_latency_is_judged_from_twenty_windows_or_at_the_end(answered: int, after: float, *, is_judged: bool) -> None:
    """The 99th percentile of few windows is its slowest one, so few are judged only where no more may come."""
    verdict = _judge(_did(answered, latencies_ms=(51.0,) * answered), after, max_latency=0.05)
    assert verdict.fault == ("took 51.0 ms, expected at most 50.0 ms" if is_judged else None)
    assert not verdict.is_proven


def test_latency_at_the_limit_is_allowed_and_without_a_limit_is_not_judged() -> None:
    """`max_latency` is the highest value that is allowed; left out, any latency is."""
    did = _did(1000, latencies_ms=(50.0,) * 100)
    assert _judge(did, max_latency=0.05) == PROVEN
    assert _judge(did, max_latency=0.049).fault == "took 50.0 ms, expected at most 49.0 ms"
    assert _judge(did) == PROVEN


def test_answers_without_a_latency_are_no_fault() -> None:
    """Windows that were answered before the first payload was written have no latency yet."""
    assert _judge(_did(1000), max_latency=0.0005) == PROVEN


def _sample(numbers: np.ndarray[Any, Any]) -> ScoreSample:
    sample = ScoreSample()
    sample.add(Scores(score=numbers.astype(np.float32)))
    return sample


def test_answers_unlike_those_of_the_bundle_before_are_a_fault() -> None:
    """The index is that of `shift`; at the limit the bundle stays, and without a limit nothing is compared."""
    rng = np.random.default_rng(7)
    before, after = _sample(rng.normal(size=ENOUGH)), _sample(rng.normal(3.0, size=ENOUGH))
    found = shift(before, after)
    assert found is not None
    assert found > 1.0  # a move by three deviations
    did = _did(10, sample=after)

    def judge(allowed: float | None, old: ScoreSample | None = before) -> str | None:
        config = StoreTable(probation_predictions=1000, max_drift=allowed)
        return Probation(config, 0.0, _Grown(), old).judge(did, 1.0).fault

    assert judge(None) is None
    assert judge(found) is None
    assert judge(0.25, None) is None
    assert judge(0.25) == (
        f"answers unlike the bundle before it: expected a stability index of at most 0.25, found {found:.2f}"
    )


def test_the_first_broken_limit_is_the_one_that_is_named() -> None:
    """Failed windows come before memory, and memory before latency."""
    slow = (80.0,) * 50
    assert "failed on 3" in str(_judge(_did(50, 3, slow), grown=65 * MIB, max_latency=0.05).fault)
    assert "MiB" in str(_judge(_did(50, 2, slow), grown=65 * MIB, max_latency=0.05).fault)
    assert "80.0 ms" in str(_judge(_did(50, 2, slow), grown=64 * MIB, max_latency=0.05).fault)


def test_a_bundle_without_a_predecessor_is_not_judged_again() -> None:
    """It has failed, and stays because there is no other one: neither failed again, nor proven."""
    probation = Probation(LIMITS, 0.0, _Grown(65 * MIB))
    assert not probation.is_last_resort
    assert probation.judge(_did(1000, 3), 600.0).fault is not None
    probation.is_last_resort = True
    assert probation.judge(_did(1000, 3), 600.0) == NEITHER
    assert probation.judge(_did(1000), 600.0) == NEITHER
