"""The figures of a stream of real readings against river's, which takes one reading at a time as a device does."""

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.drift.columns import Figures
from edge_runtime.drift.monitor import Monitor
from tests.unit.drift.test_real_readings import BLOCK, CHANNELS, made_of, room

pytestmark = pytest.mark.shared_data


@pytest.mark.parametrize("at_once", [1, 500])
def test_offset_spread_and_missing_are_those_of_river(at_once: int, shared_data: Path) -> None:
    """Its mean, variance and share, with the weights of late, after a week of a room in which readings are lost."""
    stats = pytest.importorskip("river.stats")
    folder = shared_data / "uci-occupancy"
    training, later = room(folder / "datatraining.txt"), room(folder / "datatest2.txt")
    later = later[: len(later) // BLOCK * BLOCK]
    later[np.random.default_rng(1).random(later.shape) < 0.05] = np.nan
    monitor = Monitor(made_of(training), is_recorded=True)
    for start in range(0, len(later), at_once):
        part = later[start : start + at_once]
        monitor.take(part, [None] * len(part), None, 0.0)
    watched = monitor.streams[None].input
    assert watched is not None
    blocks = len(later) // BLOCK
    for column in range(len(CHANNELS)):
        mean, spread, lost = stats.Mean(), stats.Var(ddof=0), stats.Mean()
        for row, value in enumerate(later[:, column].tolist()):
            if value == value:  # noqa: PLR0124 - NaN
                weight = (7 / 8) ** (blocks - 1 - row // BLOCK)
                mean.update(value, weight)
                spread.update(value, weight)
            if row >= len(later) - BLOCK:
                lost.update(value != value)  # noqa: PLR0124
        found, base = Figures(watched, column), watched.baseline
        std = float(base.std[column])
        assert found.offset_sd == pytest.approx((mean.get() - float(base.mean[column])) / std, rel=1e-6, abs=1e-6)
        assert found.spread == pytest.approx(spread.get() ** 0.5 / std, rel=1e-6)
        assert found.missing == pytest.approx(lost.get())
