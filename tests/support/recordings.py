"""The shared recordings as arrays, and the models that the system tests train on them."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.readings import Floats

OCCUPANCY_CHANNELS = ("Temperature", "Humidity", "Light", "CO2", "HumidityRatio")
OCCUPANCY_SPEC = """
name = "occupancy"
version = "1.0.0"
task = "classification"
labels = ["empty", "occupied"]

[[channel]]
name = "Temperature"
unit = "degC"
range = [0.0, 50.0]

[[channel]]
name = "Humidity"
unit = "%"
range = [0.0, 100.0]

[[channel]]
name = "Light"
unit = "lx"
range = [0.0, 10000.0]

[[channel]]
name = "CO2"
unit = "ppm"
range = [0.0, 10000.0]

[[channel]]
name = "HumidityRatio"
range = [0.0, 1.0]
"""


@dataclass(frozen=True)
class Table:
    """Readings `[n, channels]` and the truth of each."""

    x: Floats
    y: NDArray[np.int64]


def read_occupancy(path: Path) -> Table:
    """One file of the room occupancy data: a header of seven names above rows of eight fields."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    x = np.asarray([[float(value) for value in row[2:7]] for row in rows], dtype=np.float32)
    return Table(x, np.asarray([int(row[7]) for row in rows], dtype=np.int64))


def train_occupancy(table: Table) -> Any:
    """A small network behind a scaler. Seeded."""
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415 - most system tests need no scikit-learn
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    network = MLPClassifier(hidden_layer_sizes=(32, 16), max_iter=60, random_state=7, early_stopping=True)
    return make_pipeline(StandardScaler(), network).fit(table.x, table.y)
