"""Mean, spread and share of missing readings by river, one reading at a time: the file that a test compares with.

Run by hand in an environment of its own, with river 0.26.1 for the file in the tree:

    python benchmarks/peers/river_figures.py tests/golden/river-figures
"""

import csv
import json
import sys
from pathlib import Path

import river
from river import stats

TRAINING = 480  # rows; the later ones are the stream
BLOCK = 60  # readings
KEPT = 7 / 8  # of the weight of a block, with each further one


def main() -> None:
    """Write `figures.json` beside `room.csv`."""
    folder = Path(sys.argv[1])
    with (folder / "room.csv").open(newline="") as file:
        names, *rows = list(csv.reader(file))
    stream = rows[TRAINING:]
    blocks = len(stream) // BLOCK
    columns = {}
    for column, name in enumerate(names):
        mean, spread, missing = stats.Mean(), stats.Var(ddof=0), stats.Mean()
        for row, cells in enumerate(stream):
            if cells[column]:
                weight = KEPT ** (blocks - 1 - row // BLOCK)
                mean.update(float(cells[column]), weight)
                spread.update(float(cells[column]), weight)
            if row >= len(stream) - BLOCK:
                missing.update(not cells[column])
        columns[name] = {"mean": mean.get(), "std": spread.get() ** 0.5, "missing": missing.get()}
    found = {"river": river.__version__, "training": TRAINING, "block": BLOCK, "columns": columns}
    (folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
