"""The search in the manifest: the forms that were tried, their cost, the one that was kept, and the reason.

It holds no times, so equal inputs give equal bytes. Times are in the report, and in the sidecar of a device.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from converter.choice import Found
from converter.graph.shrink import Saving
from converter.layers import Layer
from converter.search import Bench


def record_of(
    found: Found,
    bench: Bench,
    metric: str,
    asked: tuple[str, float],
    *,
    savings: Sequence[Saving],
    layers: Sequence[Layer],
    drift: Sequence[str],
) -> dict[str, Any]:
    """The manifest's `quantization`.

    Args:
        found: the search, with a form that was kept.
        bench: the rows of the search.
        metric: its name.
        asked: the request, and the drop that was allowed.
        savings: the removed parts of the graph.
        layers: the least exact layers of the kept form.
        drift: the effect of float32 on trees behind a scaler.
    """
    base, kept = found.forms[0], found.kept
    assert kept is not None
    reference = bench.reference()
    record: dict[str, Any] = {
        "requested": asked[0],
        "method": kept.candidate.method,
        "name": kept.candidate.name,
        "reason": found.reason,
        "metric": metric,
        "rows": len(bench.evaluation),
        "max_drop": asked[1],
        "source_metric": reference.metric,
        "float_metric": base.judgement.metric,
        "final_metric": kept.judgement.metric,
        "drop": reference.metric - kept.judgement.metric,
        "differing_labels_float": base.judgement.differing,
        "differing_labels": kept.judgement.differing,
        "max_score_difference_float": base.judgement.difference,
        "max_score_difference": kept.judgement.difference,
        "score_difference_quantiles": list(kept.judgement.quantiles),
        "bytes_float": base.size,
        "bytes": kept.size,
        "left_out": [asdict(saving) for saving in savings],
        "least_exact_layers": [
            {"name": layer.name, "operator": layer.operator, "sqnr_db": round(layer.sqnr_db, 1)} for layer in layers
        ],
        "candidates": [
            {
                "name": form.candidate.name,
                "bytes": form.size,
                "metric": form.judgement.metric,
                "differing_labels": form.judgement.differing,
            }
            for form in found.forms
        ],
    }
    if drift:
        record["float32_drift"] = drift[0]
    return record
