"""ADWIN and Page-Hinkley of river over each array of a .npz file: where they report a change, as JSON.

Run by `benchmarks.drift` in an environment of its own. Both have river's default settings; what is missing is skipped.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from river import drift


def changes(make: Callable[[], Any], values: Any) -> list[int]:
    """The places of a stream at which a detector reports a change."""
    detector, found = make(), []
    for place, value in enumerate(values.tolist()):
        if value == value:  # noqa: PLR0124 - NaN
            detector.update(value)
            if detector.drift_detected:
                found.append(place)
    return found


def main() -> None:
    """Both detectors over every array."""
    with np.load(sys.argv[1]) as archive:
        streams = [archive[name] for name in archive.files]
    made = {"ADWIN": drift.ADWIN, "Page-Hinkley": drift.PageHinkley}
    print(json.dumps({name: [changes(make, each) for each in streams] for name, make in made.items()}))


if __name__ == "__main__":
    main()
