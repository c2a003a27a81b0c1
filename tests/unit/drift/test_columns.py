"""The columns of one stream: which one looks like another, and from which block on each figure is known."""

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.drift.monitor import Monitor
from tests.support import drifting
from tests.support.drifting import BLOCK

NAMES = ("inlet", "outlet", "oil")
MEANS, SPREADS = np.array([20.0, 40.0, 43.0]), np.array([1.0, 3.0, 3.0])
ROUNDS = 40  # blocks: the recent figures are then those of the latest readings


def _even(rng: np.random.Generator, blocks: int, columns: int = 3) -> NDArray[np.float64]:
    """Noise of which each block has exactly the mean 0 and the standard deviation 1."""
    noise = rng.normal(size=(blocks, BLOCK, columns))
    noise -= noise.mean(axis=1, keepdims=True)
    noise /= noise.std(axis=1, keepdims=True)
    return np.asarray(noise.reshape(-1, columns))


@pytest.fixture
def rng() -> np.random.Generator:
    """Of this test."""
    return np.random.default_rng(5)


@pytest.fixture
def manifest(rng: np.random.Generator) -> Manifest:
    """Three temperatures."""
    return drifting.manifest((MEANS + SPREADS * _even(rng, 60)).astype(np.float32), NAMES)


def _whys(manifest: Manifest, values: NDArray[np.float64]) -> list[str | None]:
    monitor = Monitor(manifest)
    monitor.take(values.astype(np.float32), [None] * len(values), None, 0.0)
    return [each["why"] for each in monitor.document()["channels"].values()]


@pytest.mark.parametrize(
    ("mean", "spread", "other"),
    [
        (40.0, 3.0, "outlet"),
        (38.7, 3.0, "outlet"),  # within half of its standard deviation, to either side
        (38.3, 3.0, None),
        (41.3, 3.0, "outlet"),
        (41.7, 3.0, "oil"),  # half of the way to the next one
        (44.3, 3.0, "oil"),
        (44.7, 3.0, None),
        (40.0, 5.8, "outlet"),  # at most twice as wide, and half
        (40.0, 6.2, None),
        (40.0, 1.6, "outlet"),
        (40.0, 1.4, None),
        (20.0, 3.0, None),  # its own mean
    ],
)
def test_a_channel_that_carries_another_ones_quantity_looks_like_it(
    manifest: Manifest, rng: np.random.Generator, mean: float, spread: float, other: str | None
) -> None:
    """By mean and spread; the other two are as in training, and name none."""
    values = np.array([mean, *MEANS[1:]]) + np.array([spread, *SPREADS[1:]]) * _even(rng, ROUNDS)
    first, *others = _whys(manifest, values)
    if other is None:
        assert first is None or "looks like" not in first
    else:
        assert first == f"looks like the training of {other}: the two may be swapped"
    assert others == [None, None]


def test_two_channels_that_are_exchanged_need_one_block(manifest: Manifest, rng: np.random.Generator) -> None:
    """Their means alone show it, each within the other's range; a third one that is far off is not of them."""
    values = MEANS[[1, 0, 2]] + SPREADS[[1, 0, 2]] * _even(rng, 1)
    values[:, 2] += 500.0
    one, two, three = _whys(manifest, values)
    assert one == "looks like the training of outlet: the two may be swapped"
    assert two == "looks like the training of inlet: the two may be swapped"
    assert three is None or "looks like" not in three


def test_a_single_channel_looks_like_no_other(manifest: Manifest, rng: np.random.Generator) -> None:
    """However far it is."""
    made = drifting.first_channels(manifest, 1)
    (why,) = _whys(made, MEANS[:1] + 30.0 + _even(rng, 8, 1))
    assert why is not None
    assert "above its mean" in why


def test_the_shape_is_known_from_the_fourth_block_on(manifest: Manifest, rng: np.random.Generator) -> None:
    """The other figures from the first."""
    monitor, found = Monitor(manifest), []
    values = (MEANS + 2.0 * SPREADS * _even(rng, 4)).astype(np.float32)
    for block in range(4):
        monitor.take(values[block * BLOCK : (block + 1) * BLOCK], [None] * BLOCK, None, 0.0)
        found.append(monitor.document()["channels"]["inlet"])
    assert [each["psi"] is None for each in found] == [True, True, True, False]
    assert found[3]["psi"] > 0.05
    assert [each["offset_sd"] for each in found] == [pytest.approx(0.0, abs=0.02)] * 4


def test_the_recent_spread_is_the_weighted_one(manifest: Manifest, rng: np.random.Generator) -> None:
    """Twice as wide is named so; the width is that of the recent readings around their own mean."""
    made = drifting.with_reference(
        manifest,
        tuple(
            msgspec.structs.replace(each, limits=each.limits and msgspec.structs.replace(each.limits, step_limit=1e9))
            for each in manifest.reference
        ),
    )
    why, *others = _whys(made, MEANS + SPREADS * np.array([2.0, 1.0, 1.0]) * _even(rng, ROUNDS))
    assert why is not None
    assert "2 times as wide" in why
    assert others == [None, None]
