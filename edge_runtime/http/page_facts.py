"""The facts of the models that the status page needs for its charts: units, ranges, labels, thresholds."""

from collections.abc import Mapping
from typing import Any

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.http.history import MOST_NUMBERS
from edge_runtime.http.served_model import Served


def names_of(manifest: Manifest) -> tuple[str, ...]:
    """The names of the numbers in its predictions that the page draws, in order."""
    if manifest.task in ("classification", "multilabel"):
        return manifest.output.labels[:MOST_NUMBERS]
    if manifest.task == "regression":
        return tuple(target.name for target in manifest.output.targets[:MOST_NUMBERS])
    return ("score",) if manifest.task == "anomaly" else ()


def page_facts(models: Mapping[str, Served]) -> dict[str, Any]:
    """The facts by model, and the units of channels by source."""
    units: dict[str, dict[str, str]] = {}
    for served in models.values():
        of_source = units.setdefault(served.fed_by, {})
        of_source.update({channel.name: channel.unit for channel in served.manifest.input.channels})
    return {"models": {name: _facts(served) for name, served in models.items()}, "units": units}


def _facts(served: Served) -> dict[str, Any]:
    manifest = served.manifest
    return {
        "task": manifest.task,
        "version": manifest.version,
        "source": served.fed_by,
        "publish": served.publish,
        "numbers": len(names_of(manifest)),
        "all_numbers": len(manifest.output.labels or manifest.output.targets or ("score",)),
        "units": {target.name: target.unit for target in manifest.output.targets},
        "threshold": served.threshold,
    }
