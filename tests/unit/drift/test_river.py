"""The figures of a stream of real readings against river's, which takes one reading at a time as a device does.

River is not installed for the tests: what it found is in a file, made by `benchmarks/peers/river_figures.py`.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from converter.reference import reference_of
from edge_runtime.bundle.manifest import Channel, DriftReference, Input, Manifest, Output
from edge_runtime.drift.columns import Figures
from edge_runtime.drift.monitor import Monitor

FOLDER = Path(__file__).parents[2] / "golden" / "river-figures"


@pytest.mark.parametrize("at_once", [1, 7, 500])
def test_offset_spread_and_missing_are_those_of_river(at_once: int) -> None:
    """Its mean, variance and share, with the weights of late, after twelve hours of a room with lost readings."""
    theirs = json.loads((FOLDER / "figures.json").read_text())
    with (FOLDER / "room.csv").open(newline="") as file:
        names, *rows = list(csv.reader(file))
    values = np.array([[float(cell or "nan") for cell in row] for row in rows], np.float32)
    training, later = values[: theirs["training"]], values[theirs["training"] :]
    monitor = Monitor(
        Manifest(
            name="room", version="1.0.0", task="anomaly", output=Output(threshold=1.0),
            input=Input(channels=tuple(Channel(name=name) for name in names)),
            reference=reference_of(training, names), drift=DriftReference(theirs["block"], theirs["block"]),
        ),
        is_recorded=True,
    )  # fmt: skip
    for start in range(0, len(later), at_once):
        part = later[start : start + at_once]
        monitor.take(part, [None] * len(part), None, 0.0)
    watched = monitor.streams[None].input
    assert watched is not None
    assert watched.blocks == len(later) // theirs["block"] == 12
    assert list(theirs["columns"]) == names
    for column, river in enumerate(theirs["columns"].values()):
        found, base = Figures(watched, column), watched.baseline
        std = float(base.std[column])
        assert found.offset_sd == pytest.approx((river["mean"] - float(base.mean[column])) / std, rel=1e-6, abs=1e-6)
        assert found.spread == pytest.approx(river["std"] / std, rel=1e-6)
        assert found.missing == pytest.approx(river["missing"])
        assert 0.0 < found.missing < 0.2
