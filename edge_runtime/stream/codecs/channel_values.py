"""Received value of one channel -> a number: types, decimal signs, words, scale and unit.

Guarantee: a value in another form than `[source.channels]` states is refused with its place, and never guessed.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from edge_runtime.config.convert import nearest, quote
from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.channel_table import ChannelTable
from edge_runtime.stream.codecs.columns import CategoryIndex
from edge_runtime.stream.codecs.paths import kind_of
from edge_runtime.stream.codecs.rows_of_text import number as plain_number
from edge_runtime.stream.codecs.units import SAME, UnitConversion, conversion, convertible_to, is_known
from edge_runtime.stream.origin import RejectedError

Reader = Callable[[Any], float | None]

_MOST_SHOWN = 60
_MOST_WORDS = 8
_MOST_SUFFIXES = 64  # whose conversions are cached
# A letter or a sign, then also the digits of m3/h, m/s2 and g0; one further word is allowed, as in "% RH".
_UNIT = r"(?P<unit>(?![eE][0-9])(?:[^\W\d_]|[°%‰*'\"])(?:[^\W\d_]|[°%/·*^²³0234-]){0,15}(?: [^\W\d_]{1,10})?)?"
_SPACES = " \u00a0\u202f'"  # thousands separators of some senders


def _number_in_text(decimal: str) -> re.Pattern[str]:
    other = "." if decimal == "," else ","
    point, group = re.escape(decimal), f"[{re.escape(other + _SPACES)}]"
    # Digits are grouped only if that is certain: a decimal sign follows, or there are at least two groups.
    grouped = rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+{point}[0-9]+|[0-9]{{1,3}}(?:{group}[0-9]{{3}}){{2,}}"
    bare = rf"(?:[0-9]+(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"
    return re.compile(rf"(?P<number>[+-]?(?:{grouped}|{bare}))\s*{_UNIT}")


_PATTERNS = {decimal: _number_in_text(decimal) for decimal in (".", ",")}


class NumberInText:
    """Text such as `21,5 °C` -> number and unit."""

    def __init__(self, decimal: str) -> None:
        self._pattern = _PATTERNS[decimal]
        self._decimal = decimal
        self._drop = str.maketrans("", "", ("." if decimal == "," else ",") + _SPACES)

    def read(self, text: str) -> tuple[float, str] | None:
        """Number and unit; None if the text is not a number.

        Raises:
            RejectedError: `not_finite`, if the text is NaN or infinity.
        """
        bare = text.strip().replace("\u2212", "-")  # the typographic minus sign
        found = self._pattern.fullmatch(bare)
        if found is None:
            if bare.lower().lstrip("+-") in {"nan", "inf", "infinity"}:
                raise RejectedError("not_finite", f"expected a finite number, found {quote(bare[:_MOST_SHOWN])}")
            return None
        value = float(found["number"].translate(self._drop).replace(self._decimal, "."))
        if not math.isfinite(value):
            raise RejectedError("not_finite", f"expected a finite number, found {quote(bare[:_MOST_SHOWN])}")
        return value, found["unit"] or ""


def make_reader(
    name: str,
    table: ChannelTable,
    *,
    place: str,
    wanted: str = "",
    categories: tuple[str, ...] | None = None,
    is_text: bool = False,
) -> Reader:
    """Make the reader of one channel's values.

    Args:
        name: of the channel.
        table: of the channel in the device file.
        place: its key in the configuration, for messages.
        wanted: the unit of the bundle; empty if it names none.
        categories: the texts of a channel that holds text.
        is_text: every value comes as text, as in pairs.

    Raises:
        ConfigError: its values cannot be converted to those of the bundle.
    """
    shown = f"`{name}`" if table.path is None else f"`{name}` ({table.path})"
    if categories is not None:
        return _category_reader(shown, table, place, categories)
    if table.values is not None:
        return _word_reader(shown, table.values)
    to_bundle = SAME
    if table.unit is not None and wanted:
        found = conversion(table.unit, wanted)
        if found is None:
            others = convertible_to(wanted)
            known = f", or {', '.join(others)}, which are converted" if others else ""
            raise ConfigError(
                f"{place}.unit: expected {quote(wanted)}, the unit of the bundle{known}, found {quote(table.unit)}: "
                "use `scale` and `offset` and name the unit of the result"
            )
        to_bundle = found
    factor = table.scale * to_bundle.factor
    offset = table.offset * to_bundle.factor + to_bundle.offset
    if table.type == "text":
        is_scaled = table.scale != 1.0 or table.offset != 0.0
        units = _UnitsInText(shown, table.unit, wanted, to_bundle, is_scaled=is_scaled)
        return _TextReader(shown, table, factor, offset, units=units)
    read = _boolean_reader(shown) if table.type == "boolean" else _number_reader(shown, is_text=is_text)
    if factor == 1.0 and offset == 0.0:
        return read

    def scaled(value: Any) -> float | None:
        number = read(value)
        return None if number is None else number * factor + offset

    return scaled


def _number_reader(shown: str, *, is_text: bool) -> Reader:
    def read(value: Any) -> float | None:
        if type(value) is float or value is None:
            return value
        if type(value) is int:
            return _as_float(value, shown)
        if is_text and type(value) is str:
            try:
                return plain_number(value)
            except RejectedError as error:
                hint = ': set type = "text"' if error.reason == "wrong_type" else ""
                raise RejectedError(error.reason, f"{shown}: {error.why}{hint}") from None
        remedies = {str: 'type = "text", or `values`', bool: 'type = "boolean"'}
        if type(value) in remedies:
            hint = f": set {remedies[type(value)]}"
        else:
            hint = ": name a place inside it" if type(value) in {list, dict} else ""
        raise RejectedError("wrong_type", f"{shown}: expected a number, found {kind_of(value)}{hint}")

    return read


def _boolean_reader(shown: str) -> Reader:
    words = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}

    def read(value: Any) -> float | None:
        if type(value) is bool or value is None:
            return None if value is None else float(value)
        if type(value) in {int, float} and value in {0, 1}:
            return float(value)
        if type(value) is str:
            bare = value.strip().lower()
            if not bare:
                return None
            if bare in words:
                return words[bare]
        found = quote(value[:_MOST_SHOWN]) if type(value) is str else kind_of(value)
        hint = ": name its words in `values`" if type(value) is str else ""
        raise RejectedError("wrong_type", f"{shown}: expected true or false, found {found}{hint}")

    return read


def _word_reader(shown: str, values: Mapping[str, float]) -> Reader:
    known = dict(values)

    def read(value: Any) -> float | None:
        if value is None or value == "":
            return None
        word = _as_word(value)
        if word is not None:
            number = known.get(word)
            if number is None:
                number = known.get(word.strip())
            if number is not None:
                return number
        listed = ", ".join(quote(each) for each in list(known)[:_MOST_WORDS])
        near = nearest(word or "", list(known))
        found = quote(word[:_MOST_SHOWN]) if word is not None else kind_of(value)
        hint = f": did the sender change it from {quote(near)}?" if near else ": add it to `values`"
        raise RejectedError("wrong_type", f"{shown}: expected one of {listed}, found {found}{hint}")

    return read


def _as_word(value: Any) -> str | None:
    """A value as JSON text; None if it is an object, an array or null."""
    if type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int and value.bit_length() <= 64:
        return str(value)
    if type(value) is float:
        return str(int(value)) if value.is_integer() else repr(value)
    return None


def _category_reader(shown: str, table: ChannelTable, place: str, categories: tuple[str, ...]) -> Reader:
    given = [
        key for key in ("scale", "offset", "unit", "values") if getattr(table, key) != getattr(ChannelTable(), key)
    ]
    if given or table.type == "boolean":
        key = given[0] if given else "type"
        raise ConfigError(f"{place}.{key}: expected none, because the channel holds categories: take it out")
    index = CategoryIndex(categories)

    def read(value: Any) -> float | None:
        if value is None or type(value) in {str, bool, int}:
            return index(value)
        raise RejectedError("wrong_type", f"{shown}: expected a text, found {kind_of(value)}")

    return read


class _UnitsInText:
    """Finds the conversion for the unit after a number."""

    def __init__(
        self, shown: str, named: str | None, wanted: str, to_bundle: UnitConversion, *, is_scaled: bool
    ) -> None:
        self._shown = shown
        self._named = named
        self._wanted = wanted
        self._to_bundle = to_bundle
        self._is_scaled = is_scaled  # then `unit` is the unit of the result, which no text contains
        self._known: dict[str, UnitConversion | None] = {"": None}

    def before(self, unit: str) -> UnitConversion | None:
        """The conversion of a number in this unit, before scale and offset; None if there is none.

        Raises:
            RejectedError: `wrong_unit`.
        """
        if unit not in self._known:
            if len(self._known) >= _MOST_SUFFIXES:
                return self._find(unit)
            self._known[unit] = self._find(unit)
        return self._known[unit]

    def _find(self, unit: str) -> UnitConversion | None:
        # Without a unit in the table, the bundle's unit is compared, if it is a known one.
        expected = self._named or (self._wanted if is_known(self._wanted) else "")
        if not expected or self._is_scaled:
            return None
        found = conversion(unit, expected)
        if found is not None:
            return None if found == SAME else found
        if self._named is None and not is_known(unit):
            return None  # a word after the number, and no unit is configured
        raise RejectedError(
            "wrong_unit", f"{self._shown}: expected a number in {expected}, found one in {unit}: look at the sender"
        )


class _TextReader:
    def __init__(self, shown: str, table: ChannelTable, factor: float, offset: float, *, units: _UnitsInText) -> None:
        self._shown = shown
        self._text = NumberInText(table.decimal)
        self._decimal = table.decimal
        self._factor = factor
        self._offset = offset
        self._units = units

    def __call__(self, value: Any) -> float | None:
        if value is None:
            return None
        if type(value) is float or type(value) is int:
            number = _as_float(value, self._shown)
        elif type(value) is str:
            if not value.strip():
                return None
            found = self._text.read(value[:1000])
            if found is None:
                hint = f"with a decimal {'comma' if self._decimal == ',' else 'point'}"
                raise RejectedError(
                    "wrong_type", f"{self._shown}: expected a number {hint}, found {quote(value[:_MOST_SHOWN])}"
                )
            number, unit = found
            first = self._units.before(unit)
            if first is not None:
                number = number * first.factor + first.offset
        else:
            raise RejectedError("wrong_type", f"{self._shown}: expected a text, found {kind_of(value)}")
        return number * self._factor + self._offset


def _as_float(value: float, shown: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise RejectedError(
            "not_finite", f"{shown}: expected a number that float64 can hold, found a larger one"
        ) from None
