"""What a device refuses of whole frames: values out of range, and numbers that are no tokens."""

import numpy as np
import pytest

from edge_runtime.bundle.manifest import Input
from edge_runtime.stream.frame_contract import LARGEST_WHOLE, FrameContract, frame_contract


def rows(*frames: list[float]) -> np.ndarray:
    """Frames of a few numbers."""
    return np.array(frames, np.float32)


def test_only_wide_integers_and_ranges_have_rules() -> None:
    """Frames of floats and of bytes without a range are left to their graph, as before."""
    assert frame_contract(Input(shape=(3,))) is None
    assert frame_contract(Input(shape=(3,), dtype="uint8")) is None
    assert frame_contract(Input(shape=(3,), dtype="int64")) is not None
    assert frame_contract(Input(shape=(3,), range=(0.0, 1.0))) is not None


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_number_that_float32_cannot_hold_is_refused(dtype: str) -> None:
    """2^24 + 1 would be 2^24 in float32: neither reaches the model, and 2^24 - 1 does."""
    contract = FrameContract(Input(shape=(2,), dtype=dtype))
    assert contract.check(rows([0, LARGEST_WHOLE], [-LARGEST_WHOLE, 5]), []) is None
    good = contract.check(rows([0, 2**24 + 1], [1, 2]), [])
    assert good is not None
    assert good.tolist() == [False, True]
    assert contract.rejected == {"out_of_range": 1}
    assert contract.explain("out_of_range", rows([0, 2**24 + 1])[0]) == (
        "expected -16777215 to 16777215, found 16777216 at number 1 of the frame"
    )


def test_each_reason_is_counted_and_explained() -> None:
    """Half a token, a token beyond the vocabulary, and no number at all."""
    contract = FrameContract(Input(shape=(2,), dtype="int32", range=(0.0, 99.0)))
    frames = rows([1, 2], [1.5, 2], [1, 100], [-1, 0], [np.nan, 1], [0, 99])
    good = contract.check(frames, [])
    assert good is not None
    assert good.tolist() == [True, False, False, False, False, True]
    assert contract.rejected == {"wrong_type": 1, "out_of_range": 2, "not_finite": 1}
    assert {reason: tuple(each) for reason, each in contract.refusals.items()} == {
        "wrong_type": (1, 1), "out_of_range": (3, 2), "not_finite": (4, 1),
    }  # fmt: skip
    assert contract.explain("wrong_type", frames[1]) == "expected whole numbers, found 1.5 at number 0 of the frame"
    assert contract.explain("not_finite", frames[4]) == "expected finite numbers, found nan in the frame"
