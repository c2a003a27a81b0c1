"""Compare a recurrent model with its source over a stream: consecutive windows, with states handed on.

Answers and states are compared after every window: a wrong state may affect answers only later, and never those to a
single window. Weak point: where the data was split at random, the evaluation rows are no real stream; the states are
compared nevertheless.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.evaluate import Truth, judge
from converter.fidelity import tolerances
from converter.load.source import Answer
from converter.named_answers import compare_named
from converter.plan import BundlePlan
from converter.rounding import steps_between
from converter.session import run_stream, session_of
from edge_runtime.bundle.manifest import State
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

STREAM_ROWS = 256
_STATE_GAP, _STATE_STEP = 1e-3, 0.02  # of a state's largest value: rounding, and two steps of int8
_ADDED_UP = 4  # tolerances of a single window: states accumulate the rounding of kernels


def compare_stream(
    graph: bytes,
    rows: Floats,
    states: Sequence[State],
    expected: tuple[Answer, dict[str, NDArray[Any]]],
    *,
    plan: BundlePlan,
    place: str,
) -> str:
    """Compare a graph with the source over a stream.

    Args:
        graph: in normal form.
        rows: the windows, in order.
        states: of the graph.
        expected: the source's answers, and the states after each window.
        plan: the bundle's facts.
        place: the model's file, for messages.

    Returns:
        the agreement of the two, in a sentence.

    Raises:
        CommandError: they differ.
    """
    answers, passed = expected
    found, held = run_stream(session_of(graph), rows, states)
    seen = judge(found, answers, Truth(), plan.task, threshold=plan.threshold)
    gap = max(_relative_gap(held[name], part) for name, part in passed.items())
    steps = steps_between(onnx.load_model_from_string(graph), found, answers)
    if steps is not None:
        wrong = not steps.is_rounding or gap > _STATE_STEP
    elif answers.named is not None:
        wrong = not compare_named(found, answers, plan.task, plan.labels).is_faithful or gap > _STATE_GAP
    else:
        one, other = _columns(found), _columns(answers)
        wrong = bool((np.abs(one - other) > _ADDED_UP * tolerances(answers)).any()) or gap > _STATE_GAP
    if wrong:
        raise CommandError(
            f"{place}: the ONNX form does not answer a stream as the source does: over {len(rows)} windows with the "
            f"states handed on {seen.differing:,} labels differ, scores by up to {seen.difference:.3g}, states by up "
            f"to {gap:.3g} of their largest value: no file was written"
        )
    exact = "to the last bit" if seen.difference == gap == 0.0 else f"scores within {seen.difference:.2g}"
    return f"a stream of {len(rows)} windows, states handed on, is answered as by the source: {exact}"


def _columns(answer: Answer) -> NDArray[np.float64]:
    part = next(part for name, part in answer.tensors().items() if name != "label")
    return np.asarray(part, dtype=np.float64).reshape(len(part), -1)


def _relative_gap(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference of a state, as a share of its largest value."""
    gap = np.abs(found.reshape(expected.shape).astype(np.float64) - expected)
    largest = float(np.abs(expected).max(initial=0.0))
    return float(gap.max(initial=0.0)) / max(largest, 1e-6)
