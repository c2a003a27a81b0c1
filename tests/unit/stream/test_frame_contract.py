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


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 99.0), (-5.0, 5.0)])
def test_the_limits_of_a_frame_are_inside(dtype: str, low: float, high: float) -> None:
    """The next whole number beyond each is not, and is the one that is named; of all places, the first."""
    contract = FrameContract(Input(shape=(3,), dtype=dtype, range=(low, high)))
    assert contract.check(rows([low, high, 1]), []) is None
    assert contract.rejected == {}
    for value in (low - 1, high + 1):
        frames = rows([low, high, value], [1, 2, 3], [low, value, high], [value, low, high])
        good = contract.check(frames, [])
        assert good is not None
        assert good.tolist() == [False, True, False, False]
        assert {reason: tuple(each) for reason, each in contract.refusals.items()} == {"out_of_range": (3, 3)}
        assert contract.explain("out_of_range", frames[0]) == (
            f"expected {low:g} to {high:g}, found {value:g} at number 2 of the frame"
        )
    assert contract.rejected == {"out_of_range": 6}


def test_frames_of_several_axes_are_judged_as_a_whole() -> None:
    """A frame with one bad number anywhere is refused, and its neighbours are not."""
    contract = FrameContract(Input(shape=(2, 2), range=(0.0, 1.0)))
    frames = np.full((3, 2, 2), 0.5, np.float32)
    frames[1, 1, 0] = 1.5
    good = contract.check(frames, [None] * 3)
    assert good is not None
    assert good.tolist() == [True, False, True]
    assert contract.explain("out_of_range", frames[1]) == "expected 0 to 1, found 1.5 at number 2 of the frame"


def test_numbers_of_floats_need_not_be_whole() -> None:
    """Only where the model counts."""
    assert FrameContract(Input(shape=(2,), range=(0.0, 1.0))).check(rows([0.25, 0.75]), []) is None
    assert FrameContract(Input(shape=(2,), dtype="uint8", range=(0.0, 9.0))).check(rows([0.5, 9.0]), []) is None


def test_what_one_check_has_refused_is_not_told_by_the_next() -> None:
    """The reasons are those of the last frames that were refused."""
    contract = FrameContract(Input(shape=(2,), dtype="int64", range=(0.0, 9.0)))
    contract.check(rows([0.5, 1], [10, 1]), [])
    contract.check(rows([1, 1], [np.inf, 1]), [])
    assert {reason: tuple(each) for reason, each in contract.refusals.items()} == {"not_finite": (1, 1)}
    assert contract.explain("wrong_type", rows([0, 9.5])[0]) == (
        "expected whole numbers, found 9.5 at number 1 of the frame"
    )


def test_a_range_beyond_what_float32_or_whole_numbers_can_hold_is_narrowed() -> None:
    """To the largest that differs from its neighbours; a range of one side stays on the other."""
    wide = FrameContract(Input(shape=(1,), dtype="int64", range=(-1e12, 1e12)))
    assert (wide.low, wide.high) == (-16_777_215.0, 16_777_215.0)
    half = FrameContract(Input(shape=(1,), dtype="int64", range=(0.0, 1e12)))
    assert (half.low, half.high) == (0.0, 16_777_215.0)
    floats = FrameContract(Input(shape=(1,), range=(-1e300, 5.0)))
    assert (floats.low, floats.high) == (-float(np.finfo(np.float32).max), 5.0)
    assert floats.check(rows([-3e38]), []) is None
    assert floats.check(rows([-np.inf]), []) is not None


def test_a_bundle_of_channels_has_no_rules_for_frames() -> None:
    """Whatever its type."""
    assert frame_contract(Input(dtype="int64")) is None
    assert frame_contract(Input()) is None


@pytest.mark.parametrize("limit", [0.0, 9.0])
def test_a_frame_that_stands_at_a_limit_is_refused_for_what_is_wrong_with_it(limit: float) -> None:
    """The limit itself is not out of range."""
    contract = FrameContract(Input(shape=(2,), dtype="int64", range=(0.0, 9.0)))
    assert contract.check(rows([limit, 1.5]), []) is not None
    assert contract.rejected == {"wrong_type": 1}
