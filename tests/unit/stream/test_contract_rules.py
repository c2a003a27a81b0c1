"""What is judged out of the contract, and what may be repaired."""

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
    """Readings that arrive together are repaired as if they had come one by one."""
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
    """Whatever comes and whatever may be repaired: what passes is finite and in range, and every reading is counted."""
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


# What a bundle may hold beside ranges: categories as their index, and channels that a model may do without.
ROOMS = Channel("room", categories=("hall", "lab", "roof"))
OTHERS = Channel("room", categories=("hall", "lab", "roof"), unknown="allowed")
RARE = Channel("co2", "ppm", (400.0, 5000.0), missing="allowed")
NAN = float("nan")


@pytest.mark.parametrize("together", [1, 4, 5, 64, 200])
@pytest.mark.parametrize(
    ("channel", "good", "bad"),
    [
        (ROOMS, [0.0, 1.0, 2.0], [-1.0, 0.5, 1.999, 3.0, 2.5]),
        (OTHERS, [-1.0, 0.0, 2.0], [-2.0, -0.5, 3.0]),
    ],
)
def test_a_category_is_one_of_its_whole_numbers(
    channel: Channel, good: list[float], bad: list[float], together: int
) -> None:
    """Alone and among many; an unknown text is a category where the bundle allows it."""
    channels = (channel, Channel("t", "C", (-10.0, 50.0)))
    whole = _table(*((good[number % len(good)], 50.0 if number % 2 else -10.0) for number in range(together)))
    assert Contract(channels).check(whole.copy(), [None] * together) is None
    for value in bad:
        for row in {0, together // 2, together - 1}:
            contract, table = Contract(channels), whole.copy()
            table[row, 0] = value
            found = contract.check(table, [None] * together)
            assert found is not None
            assert np.flatnonzero(~found).tolist() == [row]
            assert contract.rejected == {"unknown_category": 1}
            assert contract.explain("unknown_category", table[row]) == (
                "`room`: expected one of hall, lab, roof, found another"
            )


def test_no_category_is_moved_to_the_nearest_one() -> None:
    """`out_of_range = "clip"` is for quantities: the value beside it is moved, the room is refused."""
    contract = Contract((ROOMS, RARE), RepairTable(out_of_range="clip"))
    table = _table((7.0, 800.0), (1.0, 9000.0), (1.5, 100.0))
    found = contract.check(table, [None] * 3)
    assert found is not None
    assert found.tolist() == [False, True, False]
    assert table.tolist() == [[7.0, 800.0], [1.0, 5000.0], [1.5, 400.0]]
    assert contract.repaired == {"repaired_out_of_range": 2}
    assert contract.rejected == {"unknown_category": 2}


@pytest.mark.parametrize("together", [1, 5, 64, 130])
def test_a_channel_that_may_be_missing_may_be_missing_and_nothing_else(together: int) -> None:
    """Missing it is good; out of its range it is refused as any other."""
    channels = (RARE, Channel("t", "C", (-10.0, 50.0)))
    whole = _table(*((NAN if number % 2 else 400.0, 20.0) for number in range(together)))
    assert Contract(channels).check(whole.copy(), [None] * together) is None
    for value, other, reason in (
        (399.0, 20.0, "out_of_range"),
        (5001.0, 20.0, "out_of_range"),
        (float("inf"), 20.0, "not_finite"),
        (NAN, NAN, "missing_channel"),
        (NAN, 51.0, "out_of_range"),
        (800.0, NAN, "missing_channel"),
    ):
        contract, table = Contract(channels), whole.copy()
        table[-1] = value, other
        found = contract.check(table, [None] * together)
        assert found is not None
        assert np.flatnonzero(~found).tolist() == [together - 1]
        assert contract.rejected == {reason: 1}


@pytest.mark.parametrize("together", [1, 4, 5, 63, 64, 65, 128])
def test_the_limits_themselves_are_inside_however_many_come(together: int) -> None:
    """Both of them, in every way of looking; the next float32 beyond each is not."""
    low, high = np.array([-10.0, 0.0], np.float32), np.array([0.1, 100.0], np.float32)
    table = np.array([low if number % 2 else high for number in range(together)], np.float32)
    assert Contract(LIMITED).check(table.copy(), [None] * together) is None
    clipping = Contract(LIMITED, RepairTable(out_of_range="clip", missing="last"))
    assert clipping.check(table.copy(), [None] * together) is None
    assert not clipping.repaired.total()
    for column, beyond in ((0, np.nextafter(low[0], -np.inf)), (1, np.nextafter(high[1], np.inf))):
        outside = table.copy()
        outside[-1, column] = beyond
        found = Contract(LIMITED).check(outside, [None] * together)
        assert found is not None
        assert np.flatnonzero(~found).tolist() == [together - 1]


def test_one_side_of_a_range_may_be_open() -> None:
    """A limit of infinity is where float32 ends."""
    contract = Contract((Channel("t", "", (float("-inf"), 5.0)), Channel("h", "", (0.0, float("inf")))))
    assert contract.check(_table((-LARGEST, LARGEST), (5.0, 0.0)), [None] * 2) is None
    found = contract.check(_table((float("-inf"), 1.0), (1.0, float("inf")), (5.5, 1.0), (5.0, -0.5)), [None] * 4)
    assert found is not None
    assert not found.any()
    assert contract.rejected == {"not_finite": 2, "out_of_range": 2}


def test_the_last_check_says_what_it_has_refused_and_how_many() -> None:
    """By reason, with the last row of each; what an earlier check refused is not there any more."""
    contract = Contract(LIMITED)
    contract.check(_table((NAN, 1.0), (0.0, 101.0)), [None] * 2)
    assert contract.refusals == {"missing_channel": (0, 1), "out_of_range": (1, 1)}
    contract.check(_table((0.0, 101.0), (0.0, 5.0), (0.0, 102.0), (1.0, 103.0)), [None] * 4)
    assert contract.refusals == {"out_of_range": (3, 3)}
    assert contract.rejected == {"missing_channel": 1, "out_of_range": 4}


@pytest.mark.parametrize(
    ("row", "reason", "text"),
    [
        ((1.0, NAN, NAN), "missing_channel", "no `t`"),
        ((NAN, 500.0, NAN), "missing_channel", "no `room`, `t`"),
        ((0.0, NAN, 51.0), "out_of_range", "`t`: expected -10 to 50, found 51"),
        ((2.0, 5000.0, 51.0), "out_of_range", "`t`: expected -10 to 50, found 51"),
        ((2.0, 400.0, -10.5), "out_of_range", "`t`: expected -10 to 50, found -10.5"),
        ((1.0, 399.5, 20.0), "out_of_range", "`co2`: expected 400 to 5000, found 399.5"),
        ((1.0, 5000.25, 99.0), "out_of_range", "`co2`: expected 400 to 5000, found 5000.25"),
        ((1.0, 500.0, float("-inf")), "not_finite", "`t`: expected a finite number, found -inf"),
        ((0.5, NAN, 20.0), "unknown_category", "`room`: expected one of hall, lab, roof, found another"),
        ((3.0, NAN, 20.0), "unknown_category", "`room`: expected one of hall, lab, roof, found another"),
        ((1.0, float(np.nextafter(np.float32(5000), np.float32(9e9))), 20.0), "out_of_range",
         "`co2`: expected 400 to 5000, found 5000.0005"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_first_channel_that_is_at_fault(
    row: tuple[float, float, float], reason: str, text: str
) -> None:
    """A channel that may be missing, or stands at its limit, is not at fault; digits are shown where they matter."""
    contract = Contract((ROOMS, RARE, Channel("t", "C", (-10.0, 50.0))))
    values = np.array([row], np.float32)
    assert contract.check(values, [None]) is not None
    assert contract.rejected == {reason: 1}
    assert contract.explain(reason, values[0]) == text


def test_a_category_that_may_be_missing_is_not_at_fault_when_it_is() -> None:
    """Another channel is."""
    channels = (Channel("room", categories=("hall", "lab"), missing="allowed"), Channel("t", "C", (-10.0, 50.0)))
    contract = Contract(channels)
    row = np.array([[NAN, 51.0]], np.float32)
    assert contract.check(row, [None]) is not None
    assert contract.explain("out_of_range", row[0]) == "`t`: expected -10 to 50, found 51"
    assert contract.check(np.array([[NAN, 50.0]], np.float32), [None]) is None


def test_a_limit_is_shown_as_it_was_written() -> None:
    """And not as the float32 that it becomes."""
    contract = Contract((Channel("t", "", (0.1, 1234567.0)),))
    assert contract.explain("out_of_range", np.zeros(1, np.float32)) == "`t`: expected 0.1 to 1234567, found 0"


def test_of_many_categories_ten_are_shown() -> None:
    """A line of a log stays a line."""
    contract = Contract((Channel("c", categories=tuple("abcdefghijkl")),))
    text = contract.explain("unknown_category", np.array([99.0], np.float32))
    assert text == "`c`: expected one of a, b, c, d, e, f, g, h, i, j, found another"


def test_an_optional_channel_is_put_in_place_of_a_missing_one_as_any_other() -> None:
    """`missing = "last"` takes what was there before, also where the model could do without."""
    contract = Contract((RARE,), RepairTable(missing="last"))
    table = np.array([[NAN], [800.0], [NAN]], np.float32)
    assert contract.check(table, ["a"] * 3) is None
    assert np.array_equal(table, np.array([[NAN], [800.0], [800.0]], np.float32), equal_nan=True)


def test_only_what_is_missing_is_put_in_place() -> None:
    """A value that came is never replaced by the one before it; its age counts from its own moment, on either side."""
    contract = Contract(OPEN, RepairTable(missing="last", max_age=5.0))
    contract.check(_table((1.0, 2.0)), ["a"], [100.0])
    table = _table((3.0, NAN), (NAN, 5.0), (NAN, NAN))
    assert contract.check(table, ["a"] * 3, [104.0, 109.0, 100.0]) is not None
    assert table[:2].tolist() == [[3.0, 2.0], [3.0, 5.0]]
    assert np.isnan(table[2]).tolist() == [False, True], "one from the time before counts as far away as one behind"
    assert contract.repaired == {"repaired_missing": 3}


def test_the_last_values_of_as_many_keys_are_kept_as_have_windows() -> None:
    """By default of ten thousand; the key that was silent for longest makes room, not the one that came first."""
    contract = Contract(OPEN, RepairTable(missing="last"), max_keys=3)
    good, lacks = _table((1.0, 2.0)), _table((NAN, 3.0))
    for key in ("a", "b", "c", "a", "d"):
        assert contract.check(good.copy(), [key]) is None
    assert {key: contract.check(lacks.copy(), [key]) is None for key in ("a", "c", "d")} == dict.fromkeys("acd", True)
    assert contract.check(lacks.copy(), ["b"]) is not None
    many = Contract(OPEN, RepairTable(missing="last"))
    keys: list[str | None] = [str(number) for number in range(10_000)]
    assert many.check(np.ones((len(keys), 2), np.float32), keys) is None
    assert many.check(lacks.copy(), ["0"]) is None
    assert many.check(good.copy(), ["one more"]) is None
    assert many.check(lacks.copy(), ["1"]) is not None
    assert many.check(lacks.copy(), ["0"]) is None
