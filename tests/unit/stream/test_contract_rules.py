"""What is judged out of the contract, and what may be mended."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.manifest import Channel
from edge_runtime.config.tables import RepairTable
from edge_runtime.readings import Floats
from edge_runtime.stream.contract import Contract

LIMITED = (Channel("t", "C", (-10.0, 0.1)), Channel("h", "%", (0.0, 100.0)))
OPEN = (Channel("t"), Channel("h"))
LARGEST = float(np.finfo(np.float32).max)


def _table(*rows: tuple[float, float]) -> Floats:
    return np.array(rows, np.float32)


def test_good_readings_cost_no_mask() -> None:
    """When every reading is good, there is nothing to pick."""
    assert Contract(LIMITED).check(_table((0.0, 1.0), (-10.0, 100.0)), [None, None]) is None


def test_the_limit_itself_is_inside() -> None:
    """A range is compared as float32, as the model sees the value: 0.1 is not above 0.1."""
    assert Contract(LIMITED).check(_table((0.1, 0.0)), [None]) is None
    above = np.nextafter(np.float32(0.1), np.float32(1))
    contract = Contract(LIMITED)
    good = contract.check(_table((float(above), 0.0)), [None])
    assert good is not None
    assert not good.any()
    assert contract.rejected == {"out_of_range": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((float("nan"), 1.0), "missing_channel"),
        ((float("inf"), 1.0), "not_finite"),
        ((0.0, float("-inf")), "not_finite"),
        ((-10.1, 1.0), "out_of_range"),
        ((float("nan"), 1000.0), "missing_channel"),
    ],
)
def test_a_reading_is_refused_for_a_reason_that_is_counted(row: tuple[float, float], reason: str) -> None:
    """One reason a reading; its neighbours are kept."""
    contract = Contract(LIMITED)
    good = contract.check(_table((0.0, 1.0), row, (0.0, 2.0)), [None] * 3)
    assert good is not None
    assert good.tolist() == [True, False, True]
    assert contract.rejected == {reason: 1}


def test_a_channel_without_range_takes_every_finite_value() -> None:
    """An open range ends where float32 ends."""
    assert Contract(OPEN).check(_table((LARGEST, -LARGEST)), [None]) is None
    contract = Contract(OPEN)
    assert contract.check(_table((float("inf"), 0.0)), [None]) is not None
    assert contract.rejected == {"not_finite": 1}


def test_a_range_beyond_float32_is_an_open_one() -> None:
    """A limit that float32 cannot hold refuses no finite value, and lets no infinite one in."""
    contract = Contract((Channel("t", "", (-1e300, 1e300)),))
    assert contract.check(np.array([[LARGEST]], np.float32), [None]) is None
    assert contract.check(np.array([[np.inf]], np.float32), [None]) is not None


def test_a_missing_value_can_be_the_last_one_of_its_key() -> None:
    """`missing = "last"` takes the value of the same channel and key, and counts it; another key's is no help."""
    contract = Contract(LIMITED, RepairTable(missing="last"))
    contract.check(_table((-1.0, 5.0)), ["a"])
    table = _table((float("nan"), 7.0), (float("nan"), 7.0))
    good = contract.check(table, ["a", "b"])
    assert good is not None
    assert good.tolist() == [True, False]
    assert table[0].tolist() == [-1.0, 7.0]
    assert contract.repaired == {"repaired_missing": 1}
    assert contract.rejected == {"missing_channel": 1}


def test_the_last_value_is_that_of_the_reading_before_also_within_a_batch() -> None:
    """Readings that arrive together are mended as if they had come one by one."""
    contract = Contract(LIMITED, RepairTable(missing="last"))
    table = _table((-1.0, 5.0), (float("nan"), 6.0), (-3.0, float("nan")), (float("nan"), float("nan")))
    assert contract.check(table, ["a"] * 4) is None
    assert table.tolist() == [[-1.0, 5.0], [-1.0, 6.0], [-3.0, 6.0], [-3.0, 6.0]]


def test_a_refused_reading_is_no_last_value() -> None:
    """What was out of the contract never mends another reading."""
    contract = Contract(LIMITED, RepairTable(missing="last"))
    contract.check(_table((-1.0, 5.0), (-1.0, 5000.0)), ["a", "a"])
    table = _table((-2.0, float("nan")))
    assert contract.check(table, ["a"]) is None
    assert table.tolist() == [[-2.0, 5.0]]


def test_a_key_that_is_gone_mends_nothing() -> None:
    """After `forget` a missing value of the key is missing."""
    contract = Contract(LIMITED, RepairTable(missing="last"))
    contract.check(_table((-1.0, 5.0)), ["a"])
    contract.forget(["a", "never seen"])
    assert contract.check(_table((float("nan"), 5.0)), ["a"]) is not None


def test_a_value_out_of_range_can_be_moved_to_the_limit() -> None:
    """`out_of_range = "clip"` mends finite values only, and counts the readings it touched."""
    contract = Contract(LIMITED, RepairTable(out_of_range="clip"))
    table = _table((5.0, -3.0), (0.0, 1.0), (float("inf"), 1.0))
    good = contract.check(table, [None] * 3)
    assert good is not None
    assert good.tolist() == [True, True, False]
    assert table[0].tolist() == [np.float32(0.1), 0.0]
    assert contract.repaired == {"repaired_out_of_range": 1}
    assert contract.rejected == {"not_finite": 1}


@settings(max_examples=200)
@given(
    rows=st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=20),
    missing=st.sampled_from(["reject", "last"]),
    beyond=st.sampled_from(["reject", "clip"]),
)
def test_nothing_out_of_the_contract_passes(rows: list[tuple[float, float]], missing: str, beyond: str) -> None:
    """Whatever comes and whatever may be mended: what passes is finite and in range, and every reading is counted."""
    contract = Contract(LIMITED, RepairTable(missing=missing, out_of_range=beyond))  # type: ignore[arg-type]
    table = _table(*rows)
    good = contract.check(table, ["k"] * len(rows))
    kept = table if good is None else table[good]
    assert np.isfinite(kept).all()
    assert (kept >= np.array([-10.0, 0.0], np.float32)).all()
    assert (kept <= np.array([0.1, 100.0], np.float32)).all()
    assert contract.rejected.total() + len(kept) == len(rows)
