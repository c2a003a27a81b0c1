"""Units that can be converted without doubt: the same quantity, a fixed factor and offset. Pure.

Guarantee: two units are converted into each other only if both are known and of one family. `g` is the gram and `g0`
standard gravity; the two are never confused.
"""

import re

import msgspec

# Of each family: unit -> factor and offset to its first unit.
_FAMILIES: tuple[dict[str, tuple[float, float]], ...] = (
    {"K": (1.0, 0.0), "°C": (1.0, 273.15), "°F": (5 / 9, 459.67 * 5 / 9)},
    {"g": (1.0, 0.0), "mg": (1e-3, 0.0), "kg": (1e3, 0.0), "µg": (1e-6, 0.0)},
    {"m/s2": (1.0, 0.0), "g0": (9.80665, 0.0), "mg0": (9.80665e-3, 0.0)},  # ISO 80000-3, standard acceleration
    {"Pa": (1.0, 0.0), "hPa": (1e2, 0.0), "kPa": (1e3, 0.0), "MPa": (1e6, 0.0), "mbar": (1e2, 0.0), "bar": (1e5, 0.0)},
    {"V": (1.0, 0.0), "mV": (1e-3, 0.0), "µV": (1e-6, 0.0), "kV": (1e3, 0.0)},
    {"A": (1.0, 0.0), "mA": (1e-3, 0.0), "µA": (1e-6, 0.0)},
    {"W": (1.0, 0.0), "mW": (1e-3, 0.0), "kW": (1e3, 0.0), "MW": (1e6, 0.0)},
    {"Wh": (1.0, 0.0), "kWh": (1e3, 0.0), "MWh": (1e6, 0.0)},
    {"m": (1.0, 0.0), "mm": (1e-3, 0.0), "cm": (1e-2, 0.0), "km": (1e3, 0.0), "µm": (1e-6, 0.0)},
    {"m/s": (1.0, 0.0), "km/h": (1 / 3.6, 0.0)},
    {"Hz": (1.0, 0.0), "kHz": (1e3, 0.0), "MHz": (1e6, 0.0)},
)
_SPELLINGS = {
    "c": "°C", "degc": "°C", "℃": "°C", "celsius": "°C", "°c": "°C", "cel": "°C",
    "f": "°F", "degf": "°F", "℉": "°F", "fahrenheit": "°F", "°f": "°F",
    "kelvin": "K",
    "m/s^2": "m/s2", "m/s²": "m/s2", "m/s**2": "m/s2", "gn": "g0", "g_0": "g0",
}  # fmt: skip
_FAMILY_OF = {unit: family for family in _FAMILIES for unit in family}


class UnitConversion(msgspec.Struct, frozen=True):
    """Number in one unit -> number in another: `value * factor + offset`."""

    factor: float = 1.0
    offset: float = 0.0


SAME = UnitConversion()


def plain_unit(text: str) -> str:
    """The normalised spelling of a unit, for comparison: `degC` becomes `°C`, and both signs for micro become one."""
    bare = re.sub(r"\s+", " ", text.strip()).replace("μ", "µ")
    if bare.lower() in _SPELLINGS:
        return _SPELLINGS[bare.lower()]
    if bare[:1] == "u" and f"µ{bare[1:]}" in _FAMILY_OF:
        return f"µ{bare[1:]}"
    return bare


def is_known(text: str) -> bool:
    """Whether a text is a unit of a family."""
    return plain_unit(text) in _FAMILY_OF


def convertible_to(text: str) -> list[str]:
    """The other units of the same family."""
    return [unit for unit in _FAMILY_OF.get(plain_unit(text), {}) if unit != plain_unit(text)]


def conversion(found: str, wanted: str) -> UnitConversion | None:
    """The conversion from one unit to another; None if there is no certain one."""
    have, want = plain_unit(found), plain_unit(wanted)
    if have == want:
        return SAME
    family = _FAMILY_OF.get(have)
    if family is None or want not in family:
        return None
    factor, offset = family[have]
    want_factor, want_offset = family[want]
    return UnitConversion(factor / want_factor, (offset - want_offset) / want_factor)
