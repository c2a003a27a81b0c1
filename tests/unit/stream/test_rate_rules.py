"""The rules by which a rate is judged, each by itself: when there is a verdict, what counts for it, what goes on."""

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output, Window
from edge_runtime.config.tables import ModelTable
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.rate import KeyRate, OnRate, Pace, Paced, is_off, make_pace


def _verdicts(rate: KeyRate, groups: list[tuple[int, float]]) -> list[int]:
    """After which of these arrivals there was a verdict, counted from 1."""
    return [number for number, (count, moment) in enumerate(groups, 1) if rate.arrived(count, moment)]


def _steady(count: int, *, start: float = 0.0, step: float = 1.0, size: int = 1) -> list[tuple[int, float]]:
    return [(size, start + step * number) for number in range(count)]


# --- when there is a verdict --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "first"), [(1, 8), (8, 8), (20, 20), (32, 32), (50, 32), (1000, 32)])
def test_a_verdict_takes_as_many_readings_as_a_window_between_8_and_32(length: int, first: int) -> None:
    """And the next one half as many more."""
    notices: list[float] = []
    pace = Pace(1.0, length, "warn", restart=lambda _: None, notice=lambda _: notices.append(0.0))
    known: list[int] = []
    for number in range(1, 100):
        before = len(pace._streams[None].rate._spans) if pace._streams else 0
        pace.measure([None], [float(number)], 0.0)
        if len(pace._streams[None].rate._spans) < before:
            known.append(number)
    assert known[:2] == [first, first + (first - 1) // 2]
    assert len(notices) == 1


@pytest.mark.parametrize(("size", "bursts"), [(1, 32), (4, 9), (10, 8), (31, 4), (32, 4), (47, 3), (93, 2), (92, 3)])
def test_a_verdict_on_bursts_takes_eight_of_them_or_three_times_the_readings(size: int, bursts: int) -> None:
    """The first burst begins the time; 31 intervals are enough, and 93 in few bursts."""
    assert _verdicts(KeyRate(1.0, 31), _steady(40, step=float(size), size=size))[0] == bursts


def test_readings_within_a_fifth_of_the_period_are_one_burst() -> None:
    """Exactly a fifth apart; a little more, and each is a reading by itself."""
    for apart, arrivals in ((0.125, 15), (0.126, 8)):
        pairs = [(1, 1.25 * number + shift) for number in range(20) for shift in (0.0, apart)]
        assert _verdicts(KeyRate(0.625, 7), pairs)[0] == arrivals


@pytest.mark.parametrize("size", [2, 3])
def test_equal_times_are_one_moment(size: int) -> None:
    """Times in whole seconds, several readings in each: each of them counts."""
    rate = KeyRate(1.0 / size, 7)
    for second in range(12):
        for _ in range(size):
            rate.measured(float(second))
    assert rate.state == "ok"
    assert rate.interval == pytest.approx(1.0 / size)


def test_a_time_that_goes_back_is_no_measurement() -> None:
    """What came in the moment before it does not count behind it."""
    rate = KeyRate(1.0, 10)
    for moment in (100.0, 100.0, 100.0, 50.0):
        assert not rate.measured(moment)
    found = [number for number in range(1, 30) if rate.measured(50.0 + number)]
    assert found[0] == 10
    assert rate.state == "ok"
    assert rate.interval == pytest.approx(1.0)


# --- a backlog ----------------------------------------------------------------------------------------------------


def test_what_a_pause_explains_is_not_measured_and_what_is_more_is() -> None:
    """After 6 s at 1 Hz six readings may come at once; the seventh and later ones come too fast."""
    rate = KeyRate(1.0, 7)
    flood = [(1, 6.0 + 0.24 * number) for number in range(1, 40)]
    assert _verdicts(rate, [(1, 0.0), (1, 6.0), *flood])[0] == 2 + 6 + 6  # the pause is the first of seven spans
    assert rate.state == "off"


def test_a_pause_is_longer_than_four_periods() -> None:
    """Exactly four are none, and explain nothing."""
    for pause, first in ((4.0, 2 + 6), (4.5, 2 + 5 + 6)):
        flood = [(1, pause + 0.24 * number) for number in range(1, 40)]
        assert _verdicts(KeyRate(1.0, 7), [(1, 0.0), (1, pause), *flood])[0] == first


def test_a_backlog_comes_at_four_times_the_rate_or_faster() -> None:
    """At exactly that it is a stream that is too fast, whatever the pause was; in bursts as well."""
    for size in (1, 10):
        for share, is_backlog in ((0.25, False), (0.24, True)):
            rate = KeyRate(1.0, 7)
            flood = [(size, 1024.0 + share * size * number) for number in range(1, 40)]
            found = _verdicts(rate, [(1, 0.0), (1, 1024.0), *flood])
            assert (found == []) == is_backlog, (size, share)
            assert (rate.state == "unknown") == is_backlog


def test_a_backlog_ends_with_the_first_reading_in_its_time() -> None:
    """A flood behind it has no pause that explains it."""
    flood = [(1, 1001.0 + 0.24 * number) for number in range(1, 40)]
    assert _verdicts(KeyRate(1.0, 7), [(1, 0.0), (1, 1000.0), (1, 1001.0), *flood])[0] == 3 + 5


def test_a_pause_explains_ten_thousand_readings_at_most() -> None:
    """A clock may have been set; and two pauses explain what both of them do."""
    rate = KeyRate(1.0, 7)
    start = [(1, 0.0), (1, 1e6), (9999, 1e6 + 0.24), (1, 1e6 + 0.48)]
    flood = [(1, 1e6 + 0.48 + 0.24 * number) for number in range(1, 40)]
    assert _verdicts(rate, [*start, *flood])[0] == len(start) + 6
    rate = KeyRate(1.0, 7)
    pauses = [(1, 0.0), (1, 5.0), (1, 10.0)]
    flood = [(1, 10.0 + 0.24 * number) for number in range(1, 40)]
    assert _verdicts(rate, [*pauses, *flood])[0] == len(pauses) + 10 + 5


# --- the estimates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "state", "interval"),
    [
        # only the median is within a tenth
        ([0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0], "ok", 1.0),
        ([1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0], "ok", 1.0),
        # only the mean: the median is 0.2
        ([0.2, 1.9, 0.2, 1.9, 0.2, 1.9, 0.2], "ok", 6.5 / 7),
        # only the mean without the pause: the median is 1.5, or 0.5 and the longest span within it exactly 2
        ([0.5, 1.5, 0.5, 1.5, 0.5, 1.5, 100.0], "ok", 1.0),
        ([0.5, 0.5, 0.5, 0.5, 2.0, 2.0, 50.0], "ok", 1.0),
        ([0.5, 0.5, 0.5, 0.5, 2.1, 2.1, 50.0], "off", 0.5),
        # only the mean over the readings without loss: twelve in 12.7 periods, of which ten came
        ([1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 0.55, 0.55, 2.2, 2.2], "ok", 12.7 / 12),
        # three of ten are too many to be sure; the last measurement is the median
        ([1.2, 1.2, 1.2, 1.2, 1.2, 0.55, 0.55, 2.2, 2.2, 2.2], "off", 1.2),
        ([1.0909] * 7, "ok", 1.0909),
        ([1.11] * 7, "off", 1.11),
        ([1 / 1.11] * 7, "off", 1 / 1.11),
    ],
)
@pytest.mark.parametrize("nominal", [1.0, 0.125])
def test_a_stream_is_off_only_where_every_estimate_says_so(
    spans: list[float], state: str, interval: float, nominal: float
) -> None:
    """Each of the four is right where the others are led astray; worked out on paper for a period of one."""
    rate = KeyRate(nominal, len(spans))
    moments = nominal * np.concatenate([[0.0], np.cumsum(spans)])
    found = [rate.measured(float(moment)) for moment in moments]
    assert found == [False] * len(spans) + [True]
    assert rate.state == state
    assert rate.interval == pytest.approx(nominal * interval)


def test_a_stream_that_was_off_is_right_within_a_twentieth() -> None:
    """Else a rate at the limit would change the state again and again."""
    for rate_hz, before, after in ((20.0, "off", "off"), (10.0, "ok", "ok")):
        rate = KeyRate(0.1, 31)
        moments = np.cumsum([1.0 / rate_hz] * 40 + [1.0 / 10.7] * 60 + [1.0 / 10.4] * 60)
        states = []
        for moment in moments:
            rate.measured(float(moment))
            states.append(rate.state)
        assert (states[39], states[99], states[-1]) == (before, after, "ok")


def test_exactly_a_tenth_is_no_other_rate() -> None:
    """For a key, and for two rates."""
    rate = KeyRate(1.0, 1)
    assert [rate.measured(moment) for moment in (-1.1, 0.0, 1.1, 2.2)] == [False, False, False, True]
    assert (rate.state, rate.interval) == ("ok", 1.1)
    assert [is_off(found, 10.0) for found in (11.0, 11.001, 9.1, 9.09)] == [False, True, False, True]


# --- many keys ----------------------------------------------------------------------------------------------------


def _pace(on_rate: OnRate = "warn", **given: Any) -> tuple[Pace, list[str], list[str | None]]:
    """The watch of windows of 8 at 10 Hz, its notices, and the keys whose window began anew."""
    notices: list[str] = []
    restarted: list[str | None] = []
    pace = Pace(10.0, 8, on_rate, restart=restarted.append, notice=lambda each: notices.append(each.state), **given)
    return pace, notices, restarted


def _feed(pace: Pace, key: str | None, rate_hz: float, count: int = 8, start: float = 0.0) -> None:
    for number in range(count):
        pace.measure([key], [start + number / rate_hz], 0.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_verdict_on_many_keys_is_that_of_their_median(seed: int) -> None:
    """It is counted and not computed; where exactly half are off, the verdict stays. Keys may be forgotten."""
    rng = np.random.default_rng(seed)
    pace, _, _ = _pace()
    rates: dict[str | None, float] = {}
    seconds = itertools.count(0.0, 1000.0)
    for number in range(80):
        key = f"k{rng.integers(40)}" if number > 20 else f"k{number}"
        if number > 30 and rng.random() < 0.2 and key in rates:
            pace.forget([key, "never seen"])
            del rates[key]
            continue
        rates[key] = float(rng.choice([5.0, 10.0, 10.5, 20.0], p=[0.25, 0.3, 0.1, 0.35]))
        pace.forget([key])
        before = pace.state
        _feed(pace, key, rates[key], start=next(seconds))
        found = list(rates.values())
        fast, slow = (sum(rate > 11.0 for rate in found), sum(rate < 9.0 for rate in found))
        if len(found) > 16 and 2 * max(fast, slow) == len(found):
            assert pace.state == before
            continue
        median = 1.0 / float(np.median([1.0 / rate for rate in found]))
        assert pace.rate_hz == pytest.approx(median, rel=1e-6)
        assert pace.state == ("off" if abs(np.log(median / 10.0)) > np.log(1.1) else "ok")


def test_up_to_sixteen_keys_the_median_is_computed() -> None:
    """Eight at 10 Hz and eight at 20 Hz: their median is off; with nine of each the verdict stays."""
    for each, states in ((8, ["ok", "off"]), (9, ["ok"])):
        pace, notices, _ = _pace()
        for number in range(each):
            _feed(pace, f"right {number}", 10.0)
        for number in range(each):
            _feed(pace, f"fast {number}", 20.0)
        assert notices == states


def test_a_model_without_a_verdict_takes_the_median_where_half_of_its_keys_are_off() -> None:
    """All of many keys are measured in one wake-up: there is no verdict that could stay."""
    pace, notices, _ = _pace()
    for number in range(8):
        keys: list[str | None] = [f"k{each}" for each in range(18)]
        pace.measure(keys, [number / (10.0 if each < 9 else 20.0) for each in range(18)], 0.0)
    assert notices == ["off"]
    assert pace.rate_hz == pytest.approx(1.0 / 0.075)


def test_a_model_that_is_off_stays_so_while_half_of_its_keys_are() -> None:
    """One key more at the right rate, and it is right."""
    pace, notices, _ = _pace()
    for number in range(20):
        _feed(pace, f"fast {number}", 20.0)
    for number in range(20):
        _feed(pace, f"right {number}", 10.0)
    assert notices == ["off"]
    _feed(pace, "one more", 10.0)
    assert notices == ["off", "ok"]


def test_arrivals_are_counted_as_times_are() -> None:
    """Nine keys at 10 Hz and nine at 20 Hz, two of them in each wake-up: the verdict stays."""
    pace, notices, _ = _pace()
    for rate_hz in (10.0, 20.0):
        for number in range(0, 10, 2):
            keys: list[str | None] = [f"{rate_hz} {number}", f"{rate_hz} {number + 1}"]
            for reading in range(12):
                pace.measure(keys, None, 1000.0 * number + reading / rate_hz)
    assert notices == ["ok"]
    assert pace._sides == [0, 10, 10, 0]


def test_a_key_that_changes_counts_once() -> None:
    """On its new side, and not on the old one any more."""
    pace, notices, _ = _pace()
    for number in range(20):
        _feed(pace, f"k{number}", 10.0)
    for number in range(11):
        _feed(pace, f"k{number}", 20.0, count=20, start=100.0)
    for number in range(11):
        _feed(pace, f"k{number}", 10.0, count=20, start=200.0)
    assert notices == ["ok", "off", "ok"]


def test_twice_as_many_keys_as_windows_are_kept() -> None:
    """The oldest go first; every key of a wake-up is there after it."""
    pace, _, _ = _pace(max_keys=3)
    for number in range(6):
        pace.measure([f"k{number}"], [0.0], 0.0)
    pace.measure(["k0", "k6"], [1.0, 0.0], 0.0)
    assert len(pace._streams) == 7
    pace.measure(["k7"], [0.0], 0.0)
    assert list(pace._streams) == ["k1", "k2", "k3", "k4", "k5", "k6", "k7"]


def test_readings_of_a_wake_up_without_times_are_counted_by_key() -> None:
    """One burst for each of them."""
    pace, notices, _ = _pace()
    for number in range(12):
        pace.measure(["a", "b", "a"], None, float(number) / 10.0)
    assert pace._streams["a"].rate.interval == pytest.approx(0.05)
    assert pace._streams["b"].rate.interval == pytest.approx(0.1)
    single, notices, _ = _pace()
    for number in range(12):
        single.measure(["a"], None, float(number) / 10.0)
    assert notices == ["ok"]


# --- what goes on -------------------------------------------------------------------------------------------------


def _take(
    pace: Pace, keys: list[str | None], times: list[float] | None, *, arrived: float = 0.0, first: float = 0.0
) -> Paced | None:
    values = np.arange(first, first + len(keys), dtype=np.float32)[:, None]
    return pace.take(values, keys, times, arrived)


@pytest.mark.parametrize("timed", [True, False])
def test_readings_of_the_right_rate_go_on_beside_those_that_are_refused(*, timed: bool) -> None:
    """In the order of their arrival, each with its key, its time and itself."""
    pace, _, restarted = _pace("reject")
    for number in range(20):
        _take(pace, ["fast"], [number / 20.0] if timed else None, arrived=number / 20.0)
        if number % 2 == 0:
            for key in ("a", "b"):
                _take(pace, [key], [number / 20.0] if timed else None, arrived=number / 20.0)
    assert set(restarted) == {"fast"}
    refused = pace.rejected
    times = [1.0, 1.01, 1.02, 1.03, 1.04]
    paced = _take(pace, ["b", "fast", "a", "b", "a"], times if timed else None, arrived=1.0)
    assert paced is not None
    assert pace.rejected == refused + 1
    assert paced.keys == ["b", "a", "b", "a"]
    assert paced.rows == paced.values[:, 0].tolist() == [0, 2, 3, 4]
    assert paced.times == ([1.0, 1.02, 1.03, 1.04] if timed else [1.0] * 4)
    assert paced.is_own == [True] * 4


def test_a_resampled_stream_stays_in_its_place_beside_another() -> None:
    """An output is where the reading came that triggered it."""
    pace, _, _ = _pace("resample")
    for number in range(40):
        _take(pace, ["fast"], [number / 20.0])
        if number % 2 == 0:
            assert _take(pace, ["right"], [number / 20.0]) is None or number < 16
    paced = _take(pace, ["right", "fast", "right", "fast"], [2.0, 2.0, 2.1, 2.05], first=50.0)
    assert paced is not None
    assert paced.keys == ["right", "fast", "right"]
    assert (paced.rows, paced.is_own) == ([0, 1, 2], [True, False, True])
    assert (paced.times[0], paced.times[2]) == (2.0, 2.1)
    assert paced.times[1] == pytest.approx(2.0)
    assert paced.values[[0, 2], 0].tolist() == [50.0, 52.0]


def test_a_stream_of_the_right_rate_costs_nothing_where_others_are_refused() -> None:
    """Its readings are not touched."""
    pace, _, _ = _pace("reject")
    _take(pace, ["a"], [0.0])
    assert [_take(pace, ["a"], [number / 10.0]) for number in range(1, 20)] == [None] * 19


def test_a_stream_whose_rate_cannot_be_measured_is_held_for_so_long_only() -> None:
    """Four times the readings of a verdict; then all of them go on, the last one as itself."""
    pace, _, restarted = _pace("resample")
    passed = []
    for number in range(40):
        paced = _take(pace, ["a"], [5.0], first=float(number))
        if paced is None or len(paced.values):
            passed.append((number, paced))
    number, paced = passed[0]
    assert number == 4 * 7  # it was the 29th
    assert paced is not None
    assert paced.values[:, 0].tolist() == list(range(29))
    assert paced.is_own == [False] * 28 + [True]
    assert (paced.rows, paced.times, paced.keys) == ([0] * 29, [5.0] * 29, ["a"] * 29)
    assert [paced for _, paced in passed[1:]] == [None] * 11
    assert restarted == []


def test_what_was_held_goes_on_with_the_reading_that_shows_the_rate() -> None:
    """At the right rate unchanged; those of its own wake-up are themselves, at their places."""
    pace, _, _ = _pace("resample")
    for number in range(5):
        paced = _take(pace, ["a"], [number / 10.0], first=float(number))
        assert paced is not None
        assert len(paced.values) == 0
    paced = _take(pace, ["b", "a", "a", "a", "a"], [0.0, 0.5, 0.6, 0.7, 0.8], first=4.0)
    assert paced is not None
    assert paced.values[:, 0].tolist() == [float(number) for number in range(9)]
    assert paced.rows == [1] * 5 + [1, 2, 3, 4]
    assert paced.is_own == [False] * 5 + [True] * 4
    assert _take(pace, ["a"], [0.9]) is None


def test_a_model_that_holds_nothing_lets_the_first_readings_pass() -> None:
    """As they come, until the rate is known."""
    pace, _, restarted = _pace("resample", holds=False)
    found = [_take(pace, ["a"], [number / 20.0]) for number in range(30)]
    assert found[:7] == [None] * 7
    assert all(paced is not None for paced in found[7:])
    assert restarted == ["a"]


def test_a_stream_begins_anew_whenever_its_rate_becomes_wrong_or_right() -> None:
    """A window holds readings of one rate; what is resampled is no reading of its own."""
    pace, _, restarted = _pace("resample")
    start, times = 0.0, []
    for rate_hz in (20.0, 10.0, 20.0):
        times += [start + number / rate_hz for number in range(40)]
        start = times[-1] + 1.0 / rate_hz
    own = []
    for number, moment in enumerate(times):
        paced = _take(pace, ["a"], [moment], first=float(number))
        own.append(None if paced is None else paced.is_own)
        assert paced is None or not any(paced.is_own) or paced.values[0, 0] == number
    assert restarted == ["a", "a", "a"]
    assert own[39] is not None
    assert not any(own[39])
    assert own[79] is None


def test_readings_without_times_are_resampled_by_an_even_clock() -> None:
    """At 20 Hz a ramp of one a reading becomes a ramp of two an output, a tenth of a second apart."""
    pace, _, _ = _pace("resample")
    times: list[float] = []
    values: list[float] = []
    number = 0
    for burst in itertools.cycle((3, 1, 2)):
        if number > 240:
            break
        paced = _take(pace, ["a"] * burst, None, arrived=(number + burst) / 20.0, first=float(number))
        number += burst
        assert paced is not None
        times += paced.times
        values += paced.values[:, 0].tolist()
    assert len(times) == pytest.approx(120, abs=4)
    assert np.diff(times) == pytest.approx(np.full(len(times) - 1, 0.1), abs=1e-9)
    assert np.diff(values[3:]) == pytest.approx(np.full(len(values) - 4, 2.0), abs=0.35)
    assert values[-1] == pytest.approx(number - 2, abs=2.1)


@pytest.mark.parametrize(("rate_hz", "outputs"), [(10.0, 8), (9.8, 8), (20.0, 4), (5.0, 15)])
def test_held_readings_without_times_have_the_rate_that_was_found(rate_hz: float, outputs: int) -> None:
    """Eight readings at 20 Hz are 0.35 s, and not 0.7 s: four outputs of the model's rate."""
    pace, _, _ = _pace("resample")
    for number in range(7):
        _take(pace, ["a"], None, arrived=number / rate_hz, first=float(number))
    paced = _take(pace, ["a"], None, arrived=7 / rate_hz, first=7.0)
    assert paced is not None
    assert len(paced.values) == outputs
    assert np.diff(paced.times) == pytest.approx(np.full(outputs - 1, 0.1 if rate_hz != 9.8 else 1 / 9.8))


def test_held_readings_whose_rate_cannot_be_found_have_the_rate_of_the_model() -> None:
    """All of them came at one moment; and one without a time among others makes an even clock for all."""
    for when in (None, [5.0]):
        pace, _, _ = _pace("resample")
        for number in range(28):
            _take(pace, ["a"], when if number else None, arrived=0.0, first=float(number))
        paced = _take(pace, ["a"], when, arrived=0.0, first=28.0)
        assert paced is not None
        assert np.diff(paced.times) == pytest.approx(np.full(28, 0.1))


# --- what others are given ----------------------------------------------------------------------------------------


def test_windows_have_the_origin_of_the_reading_that_completed_them() -> None:
    """Its receipt always; its identity only if it is in the window as it came."""
    receipts = [Receipt(lambda: None) for _ in range(4)]
    batch = Batch(
        "s", np.zeros((4, 1), np.float32), [None] * 4, [0.0, 1.0, 2.0, 3.0], ["w", "x", "y", "z"], [*receipts]
    )
    paced = Paced(np.zeros((3, 1), np.float32), ["a", "b", "c"], [0.5, 1.5, 2.5], [0, 1, 2], [True, False, True])
    assert paced.origins(batch, None, [0, 1]) == (["a", "b"], [0.0, 1.0], ["w", None], receipts[:2])
    batch.own_times = True
    assert paced.origins(batch, [0, 2, 3], [1, 2]) == (["b", "c"], [1.5, 2.5], [None, "z"], receipts[2:])


def test_refused_readings_are_reported_once() -> None:
    """To the source, with its own index of one of them; nothing is reported where none was refused."""
    pace, _, _ = _pace("reject")
    heard: list[tuple[Any, ...]] = []
    batch = cast("Batch", SimpleNamespace(refuse=lambda *what: heard.append(what)))
    assert pace.rejected == 0
    assert (pace.report(batch, None), heard) == (0, [])
    pace.rejected = 3
    assert pace.report(batch, None) == 3
    assert pace.report(batch, [5, 6]) == 0
    pace.rejected = 2
    assert pace.report(batch, [5, 6]) == 2
    why = "expected readings at 10 Hz (rate_hz of the bundle), found 10 Hz: "
    why += "a window of 8 readings is 0.8 s instead of 0.8 s"
    assert heard == [(0, "wrong_rate", why, 3), (5, "wrong_rate", why, 2)]
    pace.rejected = 2
    assert pace.report(cast("Batch", SimpleNamespace(refuse=None)), None) == 2


@pytest.mark.parametrize(("before", "goes_on"), [("reject", True), ("warn", False)])
def test_a_successor_goes_on_with_the_streams_if_it_treats_them_alike(before: OnRate, *, goes_on: bool) -> None:
    """Else what was held or refused has another meaning; the verdict on the model stays, and is not logged again."""
    old, _, _ = _pace(before)
    _feed(old, "a", 20.0)
    new, notices, _ = _pace("reject")
    new.take_over(old)
    assert new.state == "off"
    assert (new.rate_hz == pytest.approx(20.0)) == goes_on
    assert notices == []


def _manifest(**given: Any) -> Manifest:
    window = Window(length=given.pop("length", 2), stride=1, rate_hz=given.pop("rate_hz", 10.0))
    return Manifest(
        name="m",
        version="1.0.0",
        task="anomaly",
        input=Input(channels=(Channel(name="v"),), window=window, shape=given.pop("shape", None)),
        output=Output(threshold=1.0),
        state=given.pop("state", ()),
    )


@pytest.mark.parametrize(
    ("given", "is_watched"),
    [
        ({}, True),
        ({"rate_hz": None}, False),
        ({"shape": (4,)}, False),
        ({"length": 1}, False),
        ({"length": 1, "state": (cast("Any", object()),)}, True),
    ],
)
def test_the_rate_is_watched_where_a_window_or_a_state_spans_time(given: dict[str, Any], *, is_watched: bool) -> None:
    """A single reading is the same at every rate."""
    config = ModelTable(name="m", bundle="m.onnx", source="s")
    assert (make_pace(_manifest(**given), config, restart=lambda _: None) is not None) == is_watched


@pytest.mark.parametrize(
    ("on_rate", "remedy"),
    [
        ("warn", 'set the rate of the sensor, or on_rate = "resample"'),
        ("resample", "they are resampled"),
        ("reject", "they are refused: set the rate of the sensor"),
    ],
)
def test_a_change_of_the_rate_is_logged_with_its_remedy(
    on_rate: OnRate, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning, and a line when it is right again."""
    caplog.set_level("INFO")
    config = ModelTable(name="press", bundle="m.onnx", source="s", on_rate=on_rate)
    pace = make_pace(_manifest(length=8), config, restart=lambda _: None)
    assert pace is not None
    _feed(pace, None, 20.0, count=20)
    _feed(pace, None, 10.0, count=20, start=50.0)
    found = [(record.levelname, record.message, record.__dict__["fields"]) for record in caplog.records]
    window = "a window of 8 readings is 0.4 s instead of 0.8 s"
    assert found == [
        (
            "WARNING",
            f"expected readings at 10 Hz (rate_hz of the bundle), found 20 Hz: {window}: {remedy}",
            {"model": "press"},
        ),
        ("INFO", "readings come at the rate of the bundle", {"model": "press"}),
    ]
