"""`docs/formats.md` tells the truth: its examples are read, and it names every reason that is counted."""

import re
import struct
import tomllib
from pathlib import Path

from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.framing import crc16
from edge_runtime.system.counters import Counters

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
CHANNELS = ("temperature", "humidity")


def examples(section: str) -> list[str]:
    """The indented lines of a section."""
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_the_csv_example_is_read() -> None:
    """The row below `fields` is a reading."""
    fields, row = examples("CSV")
    decoder = make_decoder("csv", CHANNELS, fields=tomllib.loads(fields)["fields"])
    decoded = decoder.decode([row.encode()], Counters())
    assert decoded.times == [1795432744.5]
    assert [round(value, 3) for value in decoded.values[0].tolist()] == [21.4, 48.2]


def test_the_json_examples_are_read() -> None:
    """Both objects and arrays of the page are readings."""
    counters = Counters()
    decoded = make_decoder("json", CHANNELS).decode([line.encode() for line in examples("JSON")], counters)
    assert decoded.rows == [0, 1, 1]
    assert decoded.identities == ["17", None, None]
    assert not counters.rejected


def test_the_raw_example_is_read() -> None:
    """The table of the page reads the structure that it describes."""
    text = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    (source,) = tomllib.loads(text)["source"]
    channels = ("accel_x", "accel_y", "accel_z")
    options = {key: source[key] for key in ("fields", "layout", "scale")}
    decoded = make_decoder("raw", channels, **options).decode([struct.pack("<Ihhh", 7, 1000, -1000, 0)], Counters())
    assert [round(value, 3) for value in decoded.values[0].tolist()] == [4.79, -4.79, 0]
    assert decoded.identities == ["7"]


def test_the_check_value_of_the_sum_is_right() -> None:
    """The sum that the page gives for a check is the one that frames must have."""
    assert f"0x{crc16(b'123456789').hex().upper()}" in PAGE


def test_every_reason_is_explained() -> None:
    """Each reason under which a reading can be rejected has a row that says what to look at."""
    counted = re.compile(r'(?:RejectedError\(|rejected\[|reject\(\s*|return None, )"(\w+)"')
    runtime = ROOT / "edge_runtime"
    parts = sorted((runtime / "stream").rglob("*.py"))
    sources = (path.read_text(encoding="utf-8") for path in parts)
    reasons = {reason for source in sources for reason in counted.findall(source)}
    assert {"malformed", "noise", "bad_checksum", "too_long", "bad_key"} <= reasons
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE.split("## Why a reading is rejected")[1], re.MULTILINE))
    assert reasons <= explained, reasons - explained
