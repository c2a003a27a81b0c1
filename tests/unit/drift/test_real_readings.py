"""The figures of a stream of real readings against scipy's on the whole arrays: five channels of a room for a week."""

import csv
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from converter.reference import reference_of
from edge_runtime.bundle.manifest import Channel, DriftReference, Input, Manifest, Output
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats

pytestmark = pytest.mark.shared_data

CHANNELS = ("Temperature", "Humidity", "Light", "CO2", "HumidityRatio")
BLOCK = 60


def room(path: Path) -> Floats:
    """A reading a minute; R has written row names without a heading."""
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file))
    places = [head.index(name) + 1 for name in CHANNELS]
    return np.array([[float(row[place]) for place in places] for row in rows], np.float32)


def made_of(training: Floats) -> Manifest:
    """A bundle's that was trained on these."""
    return Manifest(
        name="room", version="1.0.0", task="anomaly", output=Output(threshold=1.0),
        reference=reference_of(training, CHANNELS),
        input=Input(channels=tuple(Channel(name=name) for name in CHANNELS)),
        drift=DriftReference(block=BLOCK, score_block=BLOCK),
    )  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 13, 5000])
def test_psi_and_offset_are_those_of_scipy(at_once: int, shared_data: Path) -> None:
    """After every whole day, however the readings arrived."""
    folder = shared_data / "uci-occupancy"
    training, later = room(folder / "datatraining.txt"), room(folder / "datatest2.txt")
    manifest = made_of(training)
    references = manifest.reference
    monitor = Monitor(manifest, is_recorded=True)
    for day in range(1, 1 + len(later) // 1440):
        part = later[1440 * (day - 1) : 1440 * day]
        for start in range(0, len(part), at_once):
            piece = part[start : start + at_once]
            monitor.take(piece, [None] * len(piece), None, 0.0)
        seen = later[: 1440 * day]
        weights = np.repeat((7 / 8) ** np.arange(len(seen) // BLOCK - 1, -1, -1), BLOCK)
        found = monitor.document()["channels"]
        for column, reference in enumerate(references):
            edges = np.array(reference.edges, np.float32)
            edges[0], edges[-1] = -np.inf, np.inf
            expected = np.array(reference.counts) + 0.5
            before = 8 * BLOCK * (7 / 8) ** (len(seen) // BLOCK)  # the weight of blocks as in training
            late = np.histogram(seen[:, column], edges, weights=weights)[0] + 0.5 + before * expected / expected.sum()
            index = scipy.stats.entropy(late, expected) + scipy.stats.entropy(expected, late)
            assert found[reference.name]["psi"] == pytest.approx(index, rel=2e-3, abs=1e-4)
            z = scipy.stats.zmap(seen[:, column].astype(np.float64), training[:, column].astype(np.float64))
            assert found[reference.name]["offset_sd"] == pytest.approx(
                np.average(z, weights=weights), rel=2e-3, abs=1e-3
            )
