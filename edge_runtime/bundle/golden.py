"""Compare a loaded model with its golden answers: in the self-test's child, and before a daemon starts.

The manifest holds inputs, the outputs of the converter's machine, and the tolerance for other processors. Inputs of
whole numbers (such as a frame of int8) are stored in their own type, in a quarter of the bytes.
"""

import base64
from functools import partial
from typing import Any

import numpy as np

from edge_runtime.bundle.manifest import SelfTest, Tensor
from edge_runtime.bundle.model import Model
from edge_runtime.errors import BundleError
from edge_runtime.readings import Floats

_MISSING_SHARE = 20  # on another processor, one of so many golden detections may be missing


def check_golden(model: Model) -> None:
    """Run the golden vectors; a bundle without any passes.

    Raises:
        BundleError: an answer differs.
        ModelError: the model cannot even run.
    """
    golden = model.manifest.selftest
    if golden is None:
        return
    scores = model.run(golden_windows(golden)).arrays()
    if model.manifest.task == "detection":
        _compare_detections({name: read_tensor(tensor) for name, tensor in golden.outputs.items()}, scores, golden)
        return
    for name, tensor in golden.outputs.items():
        found = scores.get(name)
        if found is not None:
            _compare(name, read_tensor(tensor), sampled(np.asarray(found), golden.every.get(name, 1)), golden)


def golden_windows(golden: SelfTest) -> Floats:
    """The golden inputs as a model takes them."""
    return np.ascontiguousarray(read_tensor(golden.input), dtype=np.float32)


def sampled(found: Any, every: int) -> Any:
    """The sample of each row: one number of so many; for 1 the whole row in its shape."""
    return found if every == 1 else found.reshape(len(found), -1)[:, ::every]


def read_tensor(tensor: Tensor) -> Any:
    """The values of a golden tensor, in its shape."""
    values = np.frombuffer(base64.b64decode(tensor.data, validate=True), np.dtype(tensor.dtype).newbyteorder("<"))
    return values.reshape(tensor.shape).astype(tensor.dtype)


def _compare_detections(expected: dict[str, Any], found: dict[str, Any], golden: SelfTest) -> None:
    """Every golden detection must be found, in any order; a few at a threshold may be missing."""
    close = partial(_is_close, golden=golden)
    missing = total = 0
    for row, labels in enumerate(expected["label"]):
        for place in np.flatnonzero(labels >= 0).tolist():
            same = found["label"][row] == labels[place]
            for name in ("scores", "boxes"):
                off = close(name, expected[name][row, place], found[name][row])
                same = same & (off if off.ndim == 1 else off.all(axis=1))
            missing += not same.any()
            total += 1
    if missing > max(golden.label_mismatches, total // _MISSING_SHARE):
        raise BundleError(
            f"expected the {total} golden detections, found {total - missing} of them: "
            "convert it again for this processor"
        )


def _is_close(name: str, expected: Any, found: Any, *, golden: SelfTest) -> Any:
    atol = golden.atols.get(name, golden.atol)
    return np.abs(found.astype(np.float64) - expected) <= atol + golden.rtol * np.abs(expected)


def _compare(name: str, expected: Any, found: Any, golden: SelfTest) -> None:
    if found.shape != expected.shape:
        raise BundleError(
            f"expected {name} of shape {list(expected.shape)}, found {list(found.shape)}: convert it again"
        )
    if name in ("label", "labels"):
        wrong = int(np.count_nonzero(found != expected))
        if wrong > golden.label_mismatches:
            raise BundleError(
                f"expected the golden labels with at most {golden.label_mismatches} differing, "
                f"found {wrong} of {expected.size}: convert it again for this processor"
            )
        return
    if not np.isfinite(found).all():
        raise BundleError(f"expected numbers in {name}, found NaN or infinity: convert it again")
    off = np.abs(found.astype(np.float64) - expected)
    atol = golden.atols.get(name, golden.atol)
    if not (off <= atol + golden.rtol * np.abs(expected)).all():
        raise BundleError(
            f"expected the golden {name} within {atol:g} + {golden.rtol:g} of the value, "
            f"found it off by {off.max():.3g}: convert it again for this processor"
        )
