"""The device's TOML file -> frozen, typed values. No other code reads the file.

`load_config` reports every mistake of a file at once, each with its place, what was expected, what was found and, for
an unknown key, the nearest known one. A `Config` never holds secrets: it has the names of their files, and
`read_password` reads them when they are needed, so a changed password needs no restart. The tables are in
`config/tables.py`.
"""

import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import edge_runtime.config.broker_rules  # noqa: F401 - its rules are judged as well
from edge_runtime.config.addresses import Endpoint, parse_endpoint
from edge_runtime.config.convert import ConfigConversion, Mistake, describe, is_spread
from edge_runtime.config.rules import broken_rules
from edge_runtime.config.tables import (
    BrokerTable,
    Config,
    DeviceTable,
    HttpTable,
    ModelTable,
    OutboxTable,
    RepairTable,
    SmoothingTable,
    SourceTable,
    StoreTable,
    UpstreamTable,
)
from edge_runtime.errors import ConfigError, TransientError

__all__ = [
    "BrokerTable",
    "Config",
    "DeviceTable",
    "Endpoint",
    "HttpTable",
    "ModelTable",
    "OutboxTable",
    "RepairTable",
    "SmoothingTable",
    "SourceTable",
    "StoreTable",
    "UpstreamTable",
    "differences",
    "load_config",
    "parse_endpoint",
    "parse_toml",
    "read_password",
    "upstream_broker",
]

# A device file is a page or two; a larger one is another kind of file, or endless.
_MAX_FILE_BYTES = 1_048_576
_MAX_PASSWORD_BYTES = 65_535  # MQTT 3.1.1 section 3.1.3.5
_WHERE = re.compile(r"^(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$", re.DOTALL)
_TABLE = re.compile(r"^(?P<table>[A-Za-z0-9_-]+)(?:\[(?P<index>\d+)\])?")


def load_config(
    path: Path,
    *,
    absent: dict[str, str] | None = None,
    further: Callable[[Config], Iterator[str]] | None = None,
    needs_models: bool = True,
) -> Config:
    """Reads and checks one device file.

    Paths in the result are absolute; relative ones start from the file's folder. Missing serial ports, unreachable
    brokers and damaged bundles are not detected here.

    Args:
        path: the file.
        absent: takes named files that are not on this machine, with their keys; without it they are mistakes.
        further: returns mistakes that a later stage would find, for a complete report. It gets the converted file, in
            which a wrong key has its default or None. Not called for a good file.
        needs_models: False ignores the models of the file; there may be none.

    Raises:
        ConfigError: with every mistake of the file, and of the files that it names, a line each.
    """
    raw = parse_toml(path)
    if not needs_models:
        raw = {**raw, "model": []}
    conversion = ConfigConversion(str(Path(path).absolute().parent))
    whole = conversion.table(Config, raw, "", omit=frozenset({"path"}))
    mistakes = sorted(
        [*conversion.mistakes, *broken_rules(conversion.tables, absent, needs_models=needs_models)],
        key=_reading_order(raw),
    )
    if mistakes:
        more = () if further is None or whole.value is None else further(whole.value)
        raise ConfigError([f"{path}: {mistake}" for mistake in (*mistakes, *more)])
    config: Config = msgspec.structs.replace(whole.value, path=str(Path(path).absolute()))
    return config


def _reading_order(raw: dict[str, Any]) -> Callable[[Mistake], tuple[int, int]]:
    """Sorts mistakes by the table that they stand in, in the order of the file."""
    tables = list(raw)

    def position(mistake: Mistake) -> tuple[int, int]:
        found = _TABLE.match(mistake.place)
        table, index = (found["table"], int(found["index"] or 0)) if found else ("", 0)
        return (tables.index(table) if table in tables else len(tables)), index

    return position


def parse_toml(path: Path, what: str = "a device file (TOML)") -> dict[str, Any]:
    """Read a TOML file; `what` names the expected kind of file in the message.

    Raises:
        ConfigError: in one line.
    """
    return _parse(path, _read(path, what))


def _read(path: Path, what: str) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a device or pipe"
            raise ConfigError(f"{path}: expected {what}, found {kind}")
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: expected {what}, found none: mend the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: expected {what} that can be read, found: {reason}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: expected {what} of at most {_MAX_FILE_BYTES} bytes, found a larger one")
    try:
        return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: line {line}: expected text in UTF-8, found byte 0x{content[error.start]:02x}: "
            "save the file in UTF-8"
        ) from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: arrays or tables are nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        found = _WHERE.match(str(error))
        what = _one_line(found["what"] if found else str(error))
        if "immutable namespace ('model',)" in what:
            what = "found `model = []` beside a [[model]]: take `model = []` out"
        where = (
            "at its end" if found is None or not found["line"] else f"line {found['line']}, column {found['column']}"
        )
        raise ConfigError(f"{path}: {where}: not valid TOML: {what[:1].lower()}{what[1:]}") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: a number is too long to be read") from error


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)[:200]


def upstream_broker(config: Config) -> BrokerTable:
    """The broker of predictions, and its fallbacks (`urls` without the first).

    With the client id that is used when none is set.
    """
    values = {key: getattr(config.upstream, key) for key in BrokerTable.__struct_fields__}
    values["url"], *values["urls"] = config.upstream.brokers
    values["urls"] = tuple(values["urls"])
    if values["client_id"] is None:
        values["client_id"] = f"edge-{config.device.id}"
    return BrokerTable(**values)


def read_password(broker: BrokerTable) -> str | None:
    """The password of a broker, read now, or None when none is set. Never put it into a message.

    Raises:
        ConfigError: it is a systemd credential, and systemd did not start this process.
        TransientError: its file cannot be read at this moment.
    """
    if broker.password_credential is not None:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise ConfigError(
                f"password_credential: expected a credential {broker.password_credential} from systemd, found no "
                "$CREDENTIALS_DIRECTORY: start the service, or use password_file"
            )
        return _first_line(Path(folder, broker.password_credential))
    return None if broker.password_file is None else _first_line(Path(broker.password_file))


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PASSWORD_BYTES).split(b"\n", 1)[0].rstrip(b"\r").decode()
    except UnicodeDecodeError:
        # Neither the text nor the cause may show the content of the file.
        raise TransientError(f"{path}: expected a password in UTF-8, found other bytes") from None
    except OSError as error:
        raise TransientError(f"{path}: the password cannot be read: {error.strerror}") from error


def differences(old: Config, new: Config) -> list[str]:
    """The changes from one configuration to another, a sentence each."""
    sentences: list[str] = []
    for table in ("device", "upstream", "outbox", "store", "http", "home_assistant", "capture", "sparkplug"):
        sentences.extend(_changed(table, getattr(old, table), getattr(new, table)))
    for table in ("source", "model", "sink"):
        before = {each.name: each for each in getattr(old, table)}
        after = {each.name: each for each in getattr(new, table)}
        for name in before.keys() | after.keys():
            place = f"{table} {describe(name)}"
            if name not in after:
                sentences.append(f"{place} was removed")
            elif name not in before:
                sentences.append(f"{place} was added")
            else:
                sentences.extend(_changed(place, before[name], after[name]))
        if list(before) != list(after) and before.keys() == after.keys():
            sentences.append(f"the order of the {table}s changed")
    return sentences


def _changed(place: str, old: msgspec.Struct | None, new: msgspec.Struct | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield f"{place} was {'added' if old is None else 'removed'}"
        return
    if type(old) is not type(new):
        yield f"{place} changed its type from {old.__struct_config__.tag} to {new.__struct_config__.tag}"
        return
    for key in old.__struct_fields__:
        before, after = getattr(old, key), getattr(new, key)
        if is_spread(old, key):  # its keys stand among those of this table
            yield from _changed_choice(place, before, after)
            continue
        if isinstance(before, msgspec.Struct) or isinstance(after, msgspec.Struct):
            yield from _changed(f"{place}.{key}", before, after)
        elif before != after:
            yield f"{place}.{key} changed from {_shown(before)} to {_shown(after)}"


def _changed_choice(place: str, old: msgspec.Struct, new: msgspec.Struct) -> Iterator[str]:
    if type(old) is type(new):
        yield from _changed(place, old, new)
        return
    field, before, after = (
        old.__struct_config__.tag_field,
        old.__struct_config__.tag,
        new.__struct_config__.tag,
    )
    yield f"{place}.{field} changed from {describe(before)} to {describe(after)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) <= 5:
        return f"[{', '.join(map(_shown, value))}]"
    return describe(value)
