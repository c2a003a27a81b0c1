"""Decides whether a new bundle stays: applies the limits of `[store]` to its measurements in service. Pure.

Guarantee: the message names the first broken limit; nothing is judged on fewer than `ENOUGH_TO_JUDGE` windows, except
at the end of probation, which judges any number. Weak points: memory is that of the whole process, so a neighbour's
growth counts too; drift is not judged across a restart.
"""

from dataclasses import dataclass, field

from edge_runtime.bundle.measured import MIB
from edge_runtime.config.tables import StoreTable
from edge_runtime.stream.score_drift import ScoreSample, shift
from edge_runtime.stream.worker import LoadedBundle
from edge_runtime.system.memory import Growth

ENOUGH_TO_JUDGE = 20  # windows for a meaningful 99th percentile


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of probation: a fault, or that the bundle is proven, or neither yet."""

    fault: str | None = None
    is_proven: bool = False


@dataclass(slots=True, eq=False)
class Probation:
    """The watch over one bundle.

    Attributes:
        config: the limits.
        since: when the bundle took its first window, by the loop's clock.
        growth: of memory, since before the bundle was loaded.
        before: the last scores of its predecessor, where drift is watched.
        is_last_resort: it has failed, and there is no previous one: it is not judged again.
    """

    config: StoreTable
    since: float
    growth: Growth = field(default_factory=Growth)
    before: ScoreSample | None = None
    is_last_resort: bool = False

    def judge(self, did: LoadedBundle, now: float) -> Verdict:
        """Judge whether the bundle has failed or is proven."""
        if self.is_last_resort:
            return Verdict()
        is_enough = did.answered >= self.config.probation_predictions
        is_enough = is_enough or (now - self.since >= self.config.probation and did.answered > 0)
        fault = self._fault(did, is_enough=is_enough)
        return Verdict(fault, is_proven=is_enough and fault is None)

    def _fault(self, did: LoadedBundle, *, is_enough: bool) -> str | None:
        if did.failed >= self.config.probation_errors:
            return f"failed on {did.failed} of {did.answered + did.failed} windows in service"
        return (
            self._memory_fault()
            or (self._latency_fault(did) if is_enough or did.answered >= ENOUGH_TO_JUDGE else None)
            or self._drift_fault(did)
        )

    def _memory_fault(self) -> str | None:
        grown, allowed = self.growth.bytes(), self.config.max_memory_growth
        if grown <= allowed:
            return None
        return f"took {grown / MIB:.0f} MiB of memory, expected at most {allowed / MIB:.0f} MiB"

    def _latency_fault(self, did: LoadedBundle) -> str | None:
        if self.config.max_latency is None:
            return None
        slowest_ms, allowed_ms = did.latencies.quantiles_ms().get("p99", 0.0), 1000 * self.config.max_latency
        return None if slowest_ms <= allowed_ms else f"took {slowest_ms:.1f} ms, expected at most {allowed_ms:.1f} ms"

    def _drift_fault(self, did: LoadedBundle) -> str | None:
        allowed = self.config.max_drift
        if allowed is None:
            return None
        found = shift(self.before, did.sample)
        if found is None or found <= allowed:
            return None
        return (
            f"answers unlike the bundle before it: expected a stability index of at most {allowed:g}, found {found:.2f}"
        )
