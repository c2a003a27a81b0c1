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


def test_each_channel_is_remembered_by_itself() -> None:
    """A sensor that sends temperature and humidity in turn gives a whole reading with every message after the first."""
    contract = Contract((Channel(name="temperature"), Channel(name="humidity")), RepairTable(missing="last"))
    messages = [[20.0 + i // 2, np.nan] if i % 2 == 0 else [np.nan, 50.0 + i // 2] for i in range(10)]
    good = 0
    for number, message in enumerate(messages):
        values = np.array([message], np.float32)
        if contract.check(values, ["a"], [float(number)]) is None:
            good += 1
            assert values.tolist() == [[20.0 + number // 2, 50.0 + (number - 1) // 2]]
    assert good == 9
    assert contract.rejected == {"missing_channel": 1}
    assert contract.repaired == {"repaired_missing": 9}


def test_messages_that_come_together_are_repaired_as_if_one_by_one() -> None:
    """Ten in one wake-up: the same nine."""
    contract = Contract((Channel(name="t"), Channel(name="h")), RepairTable(missing="last"))
    values = np.array([[20, np.nan], [np.nan, 50]] * 5, np.float32)
    good = contract.check(values, ["a"] * 10, list(map(float, range(10))))
    assert good is not None
    assert good.tolist() == [False] + [True] * 9


def test_a_value_that_is_too_old_is_put_nowhere() -> None:
    """`max_age` is judged for each channel, from the moment at which its own value came."""
    contract = Contract((Channel(name="t"), Channel(name="h")), RepairTable(missing="last", max_age=5.0))
    assert contract.check(np.array([[20, 50]], np.float32), ["a"], [0.0]) is None
    assert contract.check(np.array([[21, np.nan]], np.float32), ["a"], [5.0]) is None
    assert contract.check(np.array([[22, np.nan]], np.float32), ["a"], [5.1]) is not None
    assert contract.check(np.array([[np.nan, 51]], np.float32), ["a"], [9.0]) is None
    assert contract.check(np.array([[np.nan, 52]], np.float32), ["b"], [9.0]) is not None


def test_a_value_out_of_range_is_not_remembered() -> None:
    """The good channel of a reading that is refused is; the bad one is not."""
    channels = (Channel(name="t", range=(-40.0, 85.0)), Channel(name="h"))
    contract = Contract(channels, RepairTable(missing="last"))
    assert contract.check(np.array([[850, 50]], np.float32), ["a"], [0.0]) is not None
    assert contract.check(np.array([[np.nan, 51]], np.float32), ["a"], [1.0]) is not None
    assert contract.check(np.array([[21, np.nan]], np.float32), ["a"], [2.0]) is None


@pytest.mark.parametrize("bad", [float("nan"), 0.2, -11.0, float("inf")])
@pytest.mark.parametrize("row", [0, 63, 64, 127, 128, 199])
def test_many_readings_are_judged_as_each_by_itself(bad: float, row: int) -> None:
    """Whichever of two hundred readings is out of the contract, it alone is refused."""
    values = np.random.default_rng(1).uniform((-10.0, 0.0), (0.1, 100.0), (200, 2)).astype(np.float32)
    np.minimum(values, np.array([0.1, 100.0], np.float32), out=values)
    assert Contract(LIMITED).check(values.copy(), [None] * 200) is None
    values[row, 0] = bad
    good = Contract(LIMITED).check(values, [None] * 200)
    assert good is not None
    assert np.flatnonzero(~good).tolist() == [row]
