"""The sample files are the reference: they load, and the defaults that they show are the real ones."""

import itertools
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from edge_runtime.cli import main
from edge_runtime.config.load import Config, load_config
from edge_runtime.registered import SINKS, SOURCES
from edge_runtime.stream.sources.kind import as_kind
from tests.support import builders

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = sorted(path for path in (ROOT / "device_configs").glob("*.toml") if path.name != "fleet.toml")
DEFAULT = re.compile(r"^# (?P<key>[a-z_]+) = (?P<value>.+)$")
HEADER = re.compile(r"^\[+(?P<table>[a-z_.]+)\]+$")
SINK = re.compile(r'^type = "(?P<kind>[a-z]+)"$')


def with_the_files_that_it_names(sample: Path, folder: Path) -> Path:
    """A copy of a sample, beside it the bundles and secrets that it names."""
    copy = folder / sample.name
    shutil.copy(sample, copy)
    text = sample.read_text()
    for name in re.findall(r'^(?:bundle|password_file|files) = \[?"([^"/]+)"\]?$', text, re.MULTILINE):
        (folder / name).write_text("s3cret\n")
    return copy


def tables_of(sample: Path) -> dict[str, type[msgspec.Struct]]:
    """The struct behind each table header of a sample; a `[[source]]` is the kind that its `type` says."""
    fields = {field.name: field.type for field in msgspec.structs.fields(Config)}
    found: dict[str, type[msgspec.Struct]] = {}
    keys = tomllib.loads(sample.read_text())["source"][0]
    source = SOURCES.load(keys["type"])
    for name, kind in fields.items():
        structs = [
            each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, msgspec.Struct)
        ]
        found[name] = source if name == "source" else (structs or [Config])[0]
    found |= {f"sink {word}": SINKS.load(word) for word in SINKS}
    found["source.repair"] = next(field.type for field in msgspec.structs.fields(source) if field.name == "repair")
    return found


def fields_of(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of a table by key; those of a source's format stand among them."""
    fields = {each.name: each for each in msgspec.structs.fields(struct)}
    if "codec" in fields:
        fields |= fields_of(type(fields["codec"].default))
    return fields


def commented(sample: Path) -> list[tuple[str, str, Any]]:
    """Every line that shows a default: table, key, value."""
    table = ""
    lines = []
    for line in sample.read_text().splitlines():
        if header := HEADER.match(line):
            table = header["table"]
        if table == "sink" and (kind := SINK.match(line)):
            table = f"sink {kind['kind']}"
        if default := DEFAULT.match(line):
            lines.append((table, default["key"], tomllib.loads(f"value = {default['value']}")["value"]))
    return lines


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_loads(sample: Path, tmp_path: Path) -> None:
    """Every sample is a good configuration once the files that it names are there."""
    config = load_config(with_the_files_that_it_names(sample, tmp_path))
    assert config.model
    assert config.path == str(tmp_path / sample.name)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_default_shown_commented_out_is_the_real_default(sample: Path) -> None:
    """Taking the `#` away from a line changes nothing; only keys without a default show an example."""
    tables = tables_of(sample)
    shown = commented(sample)
    assert shown
    for table, key, value in shown:
        fields = fields_of(tables[table])
        if key == "format" and "codec" in fields:
            assert value == fields["codec"].default.__struct_config__.tag
            continue
        field = fields[key]
        assert not field.required, f"{table}.{key} has no default: show it without #"
        if field.default not in (None, ()):
            assert msgspec.to_builtins(field.default) == value, f"{table}.{key}"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_loads_with_every_comment_taken_away(sample: Path, tmp_path: Path) -> None:
    """Every commented line may be switched on by itself: its key is known and its value is of the right type."""
    copy = with_the_files_that_it_names(sample, tmp_path)
    text = sample.read_text()
    for line in [line for line in text.splitlines() if DEFAULT.match(line)]:
        if any(word in line for word in ("_file", "allowed_signers", "username")):
            continue  # these name files of a real device, or need one
        copy.write_text(text.replace(f"\n{line}\n", f"\n{line[2:]}\n"))
        load_config(copy)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_key_of_a_sample_is_explained(sample: Path) -> None:
    """A comment, or a line that a comment explains, stands above every key."""
    lines = sample.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"^[a-z_]+ = ", line):
            assert above, f"{sample.name}: nothing stands about {line}"


def channels_of(config: Config, name: str) -> list[str]:
    """Channels that a source of a sample can bring: those that it names, without time, key and identity."""
    table = next(each for each in config.source if each.name == name)
    parts = getattr(table, "of", ())
    if parts:
        return [channel for part in parts for channel in channels_of(config, part)]
    taken = {table.time, table.key_member, table.identity, "_", "seq", "id"}
    return [each for each in as_kind(table).named_channels or ("temperature", "humidity") if each not in taken]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_check_accepts_every_sample(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a bundle of the channels that its source brings, `edge-runtime check` finds nothing wrong."""
    if 'type = "modbus"' in sample.read_text():
        pytest.importorskip("pymodbus")
    copy = with_the_files_that_it_names(sample, tmp_path)
    config = load_config(copy)
    for path in tmp_path.glob("*.csv"):
        path.write_text("time,temperature,humidity\n1795432744,20,40\n")
    for model in config.model:
        if "/" in model.bundle:
            channels = channels_of(config, model.source)
            bundle = builders.anomaly(name=model.name, channels=channels, length=4)
            if model.publish != "alarm" or model.alarm_labels:
                labels = ("low", "high", *model.alarm_labels)
                bundle = builders.classification(name=model.name, channels=channels, labels=labels, length=4)
            bundle.save(Path(model.bundle))
    assert main(["check", "--for-device", str(copy)]) == 0, capsys.readouterr().err
    assert f"{copy}: good" in capsys.readouterr().out


def test_there_is_a_sample_for_every_kind_of_source() -> None:
    """A kind that is added to the registry gets one."""
    shown = {each["type"] for sample in SAMPLES for each in tomllib.loads(sample.read_text())["source"]}
    assert shown == set(SOURCES)


def test_the_samples_cover_serial_mqtt_and_many_keys() -> None:
    """There is a sample for a serial sensor, for sensors behind a broker, and for a gateway."""
    assert {path.stem for path in SAMPLES} >= {"vibration-usb-serial", "climate-mqtt", "gateway-hundreds-of-keys"}
