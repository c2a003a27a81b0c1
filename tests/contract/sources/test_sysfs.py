"""Files with a number as a source, on a folder made as the kernel makes it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.errors import ConfigError
from edge_runtime.stream.sources.sysfs import SysfsSource, SysfsSourceTable
from tests.support.payload_cases import DEVICE
from tests.support.source_bench import SourceBench


def load(folder: Path, channels: str) -> SysfsSourceTable:
    """The table of a source with these channels."""
    (folder / "m.onnx").write_bytes(b"")
    path = folder / "device.toml"
    path.write_text(f'{DEVICE}type = "sysfs"\ninterval = 0.02\n[source.channels]\n{channels}\n')
    table = load_config(path).source[0]
    assert isinstance(table, SysfsSourceTable)
    return table


Bench = SourceBench[SysfsSource]
Begin = Callable[..., Bench]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a source of these channels: `begin(channels, units)`."""
    begun: list[Bench] = []

    def start(channels: str, units: dict[str, str] | None = None) -> Bench:
        table = load(tmp_path, channels)
        table.check_channels_of(tuple(table.channels), None, units=units or {})
        begun.append(SourceBench(SysfsSource, table, tuple(table.channels), units))
        begun[-1].source.start()
        return begun[-1]

    yield start
    for bench in begun:
        bench.close()


def test_files_are_read_again_and_again(begin: Begin, tmp_path: Path) -> None:
    """Thousandths of a degree become what the bundle measures in, and a device is found whatever its number."""
    thermal = tmp_path / "thermal_zone0" / "temp"
    hwmon = tmp_path / "hwmon3" / "in1_input"
    for file, text in ((thermal, "47236\n"), (hwmon, "5012\n")):
        file.parent.mkdir()
        file.write_text(text)
    channels = f'cpu = {{ path = "{thermal}", scale = 0.001, unit = "°C" }}\n'
    channels += f'supply = {{ path = "{tmp_path}/hwmon*/in1_input", scale = 0.001 }}'
    bench = begin(channels, {"cpu": "K"})
    bench.until(lambda: bench.values)
    assert bench.values[0] == pytest.approx([47.236 + 273.15, 5.012], rel=1e-6)
    thermal.write_text("50000\n")
    bench.until(lambda: bench.values[-1] == pytest.approx([323.15, 5.012], rel=1e-6))
    assert bench.source.is_open


def test_a_file_that_is_missing_is_a_missing_channel(begin: Begin, tmp_path: Path) -> None:
    """The others are read all the same, and the state says which file cannot be."""
    (tmp_path / "a").write_text("1")
    bench = begin(f'a = "{tmp_path}/a"\nb = "{tmp_path}/b"')
    bench.until(lambda: bench.values)
    assert str(bench.values[0]) == "[1.0, nan]"
    assert bench.source.state.startswith(f"{tmp_path}/b: cannot be read (No such file or directory)")
    assert bench.counters.errors["absent"] >= 1
    (tmp_path / "b").write_text("2")
    bench.until(lambda: bench.values[-1] == [1, 2])
    bench.until(lambda: bench.source.state == "reading")


def test_what_is_no_number_is_counted(begin: Begin, tmp_path: Path) -> None:
    """With the file and what stands in it."""
    (tmp_path / "a").write_text("N/A\n")
    bench = begin(f'a = "{tmp_path}/a"')
    bench.until(lambda: bench.counters.rejected["wrong_type"])
    assert bench.values == []
    assert bench.counters.last_rejected["wrong_type"]["why"] == f"{tmp_path}/a: expected a number, found 'N/A'"


@pytest.mark.parametrize(
    ("channels", "mistake"),
    [
        ("", "channels: expected a file for at least one channel, found an empty table"),
        ('x = "temp"', 'channels.x.path: expected a path that begins with /, found "temp"'),
    ],
)
def test_mistakes_are_named(channels: str, mistake: str, tmp_path: Path) -> None:
    """`check` says what is wrong with the files."""
    with pytest.raises(ConfigError, match="source") as caught:
        load(tmp_path, channels)
    assert mistake in str(caught.value)


def test_a_channel_without_a_file_or_with_another_unit_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    table = load(tmp_path, 'cpu = { path = "/a", unit = "hPa" }')
    with pytest.raises(ConfigError) as caught:
        table.check_channels_of(("cpu", "board"), None, units={"cpu": "°C"})
    assert list(caught.value.mistakes) == [
        'source "s".channels.cpu.unit: expected "°C", the unit of the bundle, found "hPa"',
        'source "s".channels: expected every channel of the model, found no board: add board = "/sys/..."',
    ]
