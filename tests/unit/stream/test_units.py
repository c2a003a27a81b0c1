"""Units against their definitions: the SI brochure for prefixes, ISO 80000-3 for the fall, 1 °F = 5/9 K."""

import itertools
from fractions import Fraction

import pytest

from edge_runtime.stream.codecs.units import SAME, conversion, convertible_to, is_known, plain_unit

# Of each quantity: unit -> how many of the first one it is, exactly, and what it adds.
DEFINITIONS: list[dict[str, tuple[str, str]]] = [
    {"K": ("1", "0"), "°C": ("1", "273.15"), "°F": ("5/9", "2298.35/9")},
    {"g": ("1", "0"), "mg": ("1e-3", "0"), "kg": ("1e3", "0"), "µg": ("1e-6", "0")},
    {"m/s2": ("1", "0"), "g0": ("9.80665", "0"), "mg0": ("9.80665e-3", "0")},
    {"Pa": ("1", "0"), "hPa": ("1e2", "0"), "kPa": ("1e3", "0"), "MPa": ("1e6", "0"), "mbar": ("1e2", "0"),
     "bar": ("1e5", "0")},
    {"V": ("1", "0"), "mV": ("1e-3", "0"), "µV": ("1e-6", "0"), "kV": ("1e3", "0")},
    {"A": ("1", "0"), "mA": ("1e-3", "0"), "µA": ("1e-6", "0")},
    {"W": ("1", "0"), "mW": ("1e-3", "0"), "kW": ("1e3", "0"), "MW": ("1e6", "0")},
    {"Wh": ("1", "0"), "kWh": ("1e3", "0"), "MWh": ("1e6", "0")},
    {"m": ("1", "0"), "mm": ("1e-3", "0"), "cm": ("1e-2", "0"), "km": ("1e3", "0"), "µm": ("1e-6", "0")},
    {"m/s": ("1", "0"), "km/h": ("1000/3600", "0")},
    {"Hz": ("1", "0"), "kHz": ("1e3", "0"), "MHz": ("1e6", "0")},
]  # fmt: skip
ALL = [unit for family in DEFINITIONS for unit in family]


def _exact(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(above) / Fraction(below or "1")


def _converted(value: Fraction, found: str, wanted: str) -> Fraction | None:
    """The same quantity in the other unit, in exact numbers; None for another quantity."""
    for family in DEFINITIONS:
        if found in family and wanted in family:
            factor, offset = map(_exact, family[found])
            wanted_factor, wanted_offset = map(_exact, family[wanted])
            return (value * factor + offset - wanted_offset) / wanted_factor
    return None


@pytest.mark.parametrize("found", ALL)
def test_a_unit_becomes_every_other_of_its_quantity_and_no_other(found: str) -> None:
    """For numbers below and above zero."""
    for wanted in ALL:
        made = conversion(found, wanted)
        for value in (Fraction(-40), Fraction(0), Fraction("36.6"), Fraction(10**6)):
            expected = _converted(value, found, wanted)
            if expected is None:
                assert made is None
                continue
            assert made is not None
            assert float(value) * made.factor + made.offset == pytest.approx(float(expected), rel=1e-12, abs=1e-9)


def test_a_unit_is_the_same_as_itself() -> None:
    """Exactly, so that no number is changed; also one that is not known."""
    for unit in [*ALL, "furlong", ""]:
        assert conversion(unit, unit) is SAME
    assert (SAME.factor, SAME.offset) == (1.0, 0.0)
    assert conversion("furlong", "m") is None
    assert conversion("m", "furlong") is None


@pytest.mark.parametrize(
    ("text", "unit"),
    [("C", "°C"), ("degC", "°C"), ("℃", "°C"), ("Celsius", "°C"), ("cel", "°C"), (" °c ", "°C"), ("F", "°F"),
     ("DEGF", "°F"), ("℉", "°F"), ("fahrenheit", "°F"), ("°f", "°F"), ("kelvin", "K"), ("m/s^2", "m/s2"),
     ("m/s²", "m/s2"), ("m/s**2", "m/s2"), ("gn", "g0"), ("g_0", "g0"), ("ug", "µg"), ("μg", "µg"), ("uV", "µV"),
     ("uA", "µA"), ("um", "µm"), ("us", "us"), ("u", "u"), ("kg", "kg"), ("KG", "KG"), ("per  hour", "per hour"),
     ("", "")],
)  # fmt: skip
def test_a_unit_has_one_spelling(text: str, unit: str) -> None:
    """Of those that are written in several ways; large and small letters are different prefixes elsewhere."""
    assert plain_unit(text) == unit
    assert is_known(text) is (unit in ALL)


def test_a_unit_names_the_others_of_its_quantity() -> None:
    """For a message that says what could be written."""
    for family in DEFINITIONS:
        for unit in family:
            assert sorted(convertible_to(unit)) == sorted(other for other in family if other != unit)
    assert convertible_to("furlong") == []


def test_a_gram_is_no_acceleration_and_a_mega_no_milli() -> None:
    """What looks alike is never taken for the other."""
    for one, other in itertools.permutations(("g", "g0", "mg", "mg0"), 2):
        assert (conversion(one, other) is None) is (one.endswith("0") is not other.endswith("0"))
    mega = conversion("MW", "mW")
    assert mega is not None
    assert mega.factor == pytest.approx(1e9)
    assert mega.offset == 0.0
