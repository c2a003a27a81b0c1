"""What homes and factories send, and what becomes of it: a folder a shape, and the table of `docs/formats.md`."""

import json
import re
import tomllib
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs import Members, make_decoder
from edge_runtime.stream.codecs.channel_table import ChannelTable
from edge_runtime.stream.codecs.channel_values import NumberInText
from edge_runtime.stream.codecs.json_codec import JsonTable
from edge_runtime.stream.codecs.mapped_codec import MappedDecoder
from edge_runtime.stream.codecs.object_codec import ObjectDecoder
from edge_runtime.stream.codecs.units import conversion
from edge_runtime.system.counters import Counters
from tests.support.payload_cases import FOLDER, load_source, parts_of, take

CASES = sorted(path.parent for path in FOLDER.glob("*/source.toml"))
PAGE = (Path(__file__).resolve().parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_a_payload_becomes_its_readings_or_is_refused_with_the_reason(case: Path, tmp_path: Path) -> None:
    """Each shape gives exactly the readings of its folder, and what is none is counted with its sentence."""
    source, messages, expected = parts_of(case)
    channels = tuple(expected.get("channels") or expected["readings"][0])
    if "refused" in expected:
        with pytest.raises(ConfigError) as caught:
            take(load_source(source, tmp_path), messages, channels, expected.get("units"))
        lines = [line.removeprefix(f"{tmp_path / 'device.toml'}: ") for line in caught.value.mistakes]
        assert lines == expected["refused"].strip().splitlines()
        return
    found = take(load_source(source, tmp_path), messages, channels, expected.get("units"))
    assert found.readings == [pytest.approx(each, rel=1e-6) for each in expected["readings"]]
    assert found.rejected == expected.get("rejected", {})
    if found.rejected:
        assert expected["why"] in found.why.values()
    if "keys" in expected:
        assert found.keys == expected["keys"]
    if "identities" in expected:
        assert found.identities == expected["identities"]
    if "times" in expected:
        times = [datetime.fromisoformat(each).timestamp() if each else None for each in expected["times"]]
        assert found.times == [pytest.approx(each, abs=2e-6) for each in times]


def test_the_page_names_every_shape_and_how_it_is_read() -> None:
    """The table of `docs/formats.md` has a row for each folder with a way: as it is, by mapping, or not."""
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| (as it is|by mapping|by joining|not) \|", PAGE, re.MULTILINE))
    ways = {case.name: tomllib.loads((case / "expected.toml").read_text(encoding="utf-8")).get("way") for case in CASES}
    assert rows == {name: way for name, way in ways.items() if way is not None}
    assert len(rows) >= 25


def test_flat_json_keeps_its_quick_decoder() -> None:
    """A source without paths is decoded straight into a structure, as it was before there were paths."""
    members = Members(("t", "h"))
    assert type(JsonTable().decoder(members, None)) is ObjectDecoder
    assert type(JsonTable(rows=".").decoder(members, None)) is MappedDecoder


def test_a_dot_in_a_name_without_a_table_is_first_the_name_itself() -> None:
    """Device files from before there were paths go on: a member `a.b` goes before the member `b` of `a`."""
    decoder = make_decoder("json", ("x",), time_field="a.b", identity="none")
    decoded = decoder.decode([b'{"x":1,"a.b":1795432744,"a":{"b":5}}', b'{"x":1,"a":{"b":1795432745}}'], Counters())
    assert decoded.times == [1795432744.0, 1795432745.0]


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("21.5", ".", 21.5),
        (" +1e3 ", ".", 1000.0),
        ("21,5 °C", ",", 21.5),
        ("1.013,25", ",", 1013.25),
        ("1 234 567", ".", 1234567.0),
        (".5V", ".", 0.5),
        ("1.013", ",", None),
        ("1,013", ".", None),
        ("12.5.1", ".", None),
        ("12 of 20", ".", None),
        ("5 e3", ".", None),
        ("1_000", ".", None),
        ("٣", ".", None),
        ("--1", ".", None),
        ("2x1", ".", None),
        ("on", ".", None),
    ],
)
def test_a_number_in_a_text_is_read_only_where_it_is_certain(text: str, decimal: str, value: float | None) -> None:
    """What could be two numbers, or none, is refused."""
    found = NumberInText(decimal).read(text)
    assert (None if found is None else found[0]) == value


@pytest.mark.parametrize(
    ("found", "wanted", "value"),
    [
        ("°C", "K", 294.65),
        ("degF", "°C", -5.833333),
        ("mg", "g", 0.0215),
        ("g0", "m/s2", 210.842975),
        ("mbar", "hPa", 21.5),
    ],
)
def test_units_of_one_quantity_are_converted(found: str, wanted: str, value: float) -> None:
    """21.5 of one unit in another, by the definitions of the SI."""
    made = conversion(found, wanted)
    assert made is not None
    assert 21.5 * made.factor + made.offset == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("found", "wanted"), [("g", "m/s2"), ("°C", "hPa"), ("W", "Wh"), ("counts", "V"), ("m", "m/s")]
)
def test_other_units_are_not(found: str, wanted: str) -> None:
    """A gram is no acceleration, and an unknown unit is nothing else."""
    assert conversion(found, wanted) is None


def test_no_document_makes_a_path_raise() -> None:
    """Whatever stands at a path, the frame is a reading or is counted."""
    channels = {"x": ChannelTable(path='a[1]."b c".d'), "y": ChannelTable(path="e", type="text")}
    decoder = JsonTable(channels=channels, rows="r").decoder(Members(("x", "y"), identity="e"), None)
    random = Random(16)
    parts: list[Any] = [
        None,
        True,
        5,
        1e300,
        "x",
        "1,5",
        [],
        {},
        [1],
        {"a": [0, {"b c": {"d": 1}}]},
        {"e": "2"},
        10**400,
    ]
    frames = []
    for _ in range(500):
        inner = {"a": random.choice(parts), "e": random.choice(parts), "r": random.choice(parts)}
        rows = [random.choice([*parts, inner]) for _ in range(random.randrange(4))]
        frames.append(json.dumps({"r": random.choice([rows, *parts])}).encode())
    counters = Counters()
    decoded = decoder.decode(frames, counters)
    assert len(set(decoded.rows)) + sum(counters.rejected.values()) >= len(frames)
    assert np.isfinite(decoded.values[~np.isnan(decoded.values)]).all()


def test_a_unit_in_a_text_is_compared_with_a_unit_that_is_known_only() -> None:
    """A bundle that calls its unit `counts` says nothing of degrees; one of °C has them converted, and no pascals."""
    table = {"x": ChannelTable(type="text")}
    frames = [b'{"x":"50 F"}', b'{"x":"7 hPa"}']
    found = {}
    for unit in ("counts", "°C"):
        counters = Counters()
        decoder = JsonTable(channels=table).decoder(Members(("x",), units={"x": unit}), None)
        values = decoder.decode(frames, counters).values.ravel().round(3).tolist()
        found[unit] = (values, dict(counters.rejected))
    assert found["counts"] == ([50, 7], {})
    assert found["°C"] == ([10], {"wrong_unit": 1})
