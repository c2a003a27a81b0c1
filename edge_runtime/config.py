"""The device's TOML file -> frozen, typed values. The one way in: nothing else reads the file.

`load_config` reports every mistake of a file at once, each with its place, what was expected, what was found
and, for an unknown key, the nearest known one.
"""

from typing import Literal

import msgspec


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: every key is known, and a default here is the default that the samples show."""


class Device(_Table, frozen=True, kw_only=True):
    """`[device]`: who we are, and how the daemon as a whole behaves."""

    id: str
    health_interval: float = 30.0
    stop_timeout: float = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Broker(_Table, frozen=True, kw_only=True):
    """How to reach one MQTT broker. Equal brokers share one connection."""

    url: str
    client_id: str | None = None
    protocol: Literal["3.1.1", "5"] = "3.1.1"
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    keepalive: int = 30
    session_expiry: float = 604800.0
    receive_maximum: int = 100
    max_inflight: int = 20
    reconnect_min: float = 1.0
    reconnect_max: float = 120.0


class Repair(_Table, frozen=True, kw_only=True):
    """`repair`: what may be done with a reading that is out of the contract, instead of rejecting it."""

    missing: Literal["reject", "last"] = "reject"
    out_of_range: Literal["reject", "clip"] = "reject"


class SerialSource(_Table, frozen=True, kw_only=True, tag_field="type", tag="serial"):
    """`type = "serial"`: a port that streams frames."""

    name: str
    port: str
    baudrate: int = 115200
    bytesize: Literal[5, 6, 7, 8] = 8
    parity: Literal["none", "even", "odd", "mark", "space"] = "none"
    stopbits: Literal[1, 2] = 1
    flow_control: Literal["none", "rtscts", "xonxoff"] = "none"
    format: Literal["csv", "json"] = "csv"
    fields: tuple[str, ...] = ()
    delimiter: str = ","
    key: str | None = None
    time: str = "time"
    max_frame_bytes: int = 4096
    repair: Repair = Repair()
    reopen_max: float = 5.0


class MqttSource(_Table, frozen=True, kw_only=True, tag_field="type", tag="mqtt"):
    """`type = "mqtt"`: topics of a broker; every message is one reading, or a JSON array of them."""

    name: str
    topics: tuple[str, ...]
    url: str | None = None
    client_id: str | None = None
    protocol: Literal["3.1.1", "5"] | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    qos: Literal[0, 1] = 1
    format: Literal["json", "csv"] = "json"
    fields: tuple[str, ...] = ()
    delimiter: str = ","
    key: str | None = None
    time: str = "time"
    max_frame_bytes: int = 65536
    repair: Repair = Repair()


class ReplaySource(_Table, frozen=True, kw_only=True, tag_field="type", tag="replay"):
    """`type = "replay"`: recorded files, as if they were measured now."""

    name: str
    files: tuple[str, ...]
    speed: Literal["recorded", "full"] | float = "recorded"
    rate_hz: float | None = None
    loop: bool = False
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    delimiter: str = ","
    key: str | None = None
    time: str = "time"
    times: Literal["recorded", "now"] = "recorded"
    max_frame_bytes: int = 65536
    repair: Repair = Repair()


Source = SerialSource | MqttSource | ReplaySource


class Smoothing(_Table, frozen=True, kw_only=True):
    """`smoothing = {n = 3, m = 5}`: the verdict is what at least `n` of the last `m` windows said."""

    n: int
    m: int


class Model(_Table, frozen=True, kw_only=True):
    """`[[model]]`: which bundle runs on which source, and what of it is published."""

    name: str
    bundle: str
    source: str
    publish: Literal["always", "change", "alarm"] = "always"
    alarm_labels: tuple[str, ...] = ()
    threshold: float | None = None
    hysteresis: float = 0.0
    smoothing: Smoothing | None = None
    min_interval: float = 0.0
    stride: int | None = None
    max_gap: float | None = None
    on_gap: Literal["reset", "keep"] = "reset"
    key_expiry: float = 3600.0
    max_keys: int = 10_000
    max_batch: int = 256
    threads: int = 1
    run: Literal["auto", "loop", "worker"] = "auto"


class Upstream(Broker, frozen=True, kw_only=True):
    """`[upstream]`: the broker that predictions go to."""

    topic: str = "edge/{device}/{model}/{key}"
    qos: Literal[0, 1] = 1


class Outbox(_Table, frozen=True, kw_only=True):
    """`[outbox]`: where predictions wait while they cannot be delivered."""

    path: str | None = None
    max_bytes: int = 67_108_864
    max_age: float = 604_800.0
    commit_interval: float = 1.0
    max_memory_bytes: int = 8_388_608


class Config(_Table, frozen=True, kw_only=True):
    """A whole device file. `path` is where it was read, and relative paths in it start from its folder."""

    device: Device
    upstream: Upstream
    source: tuple[Source, ...]
    model: tuple[Model, ...]
    outbox: Outbox = Outbox()
    path: str = ""
