"""The tables of a device's TOML file, as frozen typed values: names, types, units, defaults and plain ranges.

This is the one definition. `config/load.py` reads a file into it, the JSON Schema for editors and the key reference in
`docs/configuration.md` are generated from it: each attribute below is one key, with its unit in brackets.
A range stands here when it concerns one key; what concerns several keys stands in `config/rules.py`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_PACKET_BYTES = 268_435_455  # the largest remaining length of an MQTT packet, MQTT 3.1.1 section 2.2.3
MAX_UINT16 = 65_535
MAX_UINT32 = 4_294_967_295

# `edge/{device}/status` and its like are made of these, so they must be whole topic levels (MQTT 3.1.1 section 4.7).
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[^/+#\x00-\x1f\x7f]+$",
        extra={"expected": "a name of 1 to 200 characters without / + # or control characters"},
    ),
]
Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]+$", extra={"expected": "text that is not empty"})]
Topic = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_UINT16,
        pattern=r"^[^\x00]+$",
        extra={"expected": "a topic of 1 to 65535 characters"},
    ),
]
Delimiter = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1,
        pattern=r"""^[^\r\n"0-9A-Za-z.+\-]$""",
        extra={"expected": 'one character that cannot be part of a number, such as "," or ";" or "\\t"'},
    ),
]
RawType = Literal[
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"
]
# Resolved against the folder of the file that names them; `config/rules.py` checks that they can be read.
FilePath = Annotated[
    str, Meta(min_length=1, pattern=r"^[^\x00]+$", extra={"expected": "the path of a file", "path": "readable"})
]
NewPath = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]+$", extra={"expected": "a path", "path": "new"})]
BundleName = Annotated[
    str,
    Meta(
        min_length=1,
        pattern=r"^[^\x00]+$",
        extra={"expected": "a bundle file or the name of a model in the model store", "path": "bundle"},
    ),
]
Seconds = Annotated[float, Meta(ge=0)]
SomeSeconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
Port16 = Annotated[int, Meta(ge=1, le=MAX_UINT16)]

Protocol = Literal["3.1.1", "5"]
KeepOptimised = Literal["auto", "always", "never"]

# What `upstream.topic` may contain in braces.
TOPIC_PLACEHOLDERS = ("device", "model", "key")
# What a topic of an MQTT source may contain in braces.
SOURCE_PLACEHOLDERS = ("key",)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: every key is known, and a default here is the default that the samples show."""


class DeviceTable(Table, frozen=True, kw_only=True):
    """`[device]`: who we are, and how the daemon as a whole behaves.

    Attributes:
        id: The name of this device. It stands in every topic and every prediction, so no two devices of one broker
            share it.
        health_interval (s): How often the counters are published to `edge/{device}/health`.
        stop_timeout (s): How long a stop may take to deliver what is held; what is left then stays in the outbox.
        log_level: The least serious message that is logged.
        log_format: `auto` writes for people on a terminal, for the journal under systemd, and as text elsewhere.
            `json` writes one object a line.
    """

    id: Name
    health_interval: Annotated[float, Meta(gt=0, le=60)] = 30.0
    stop_timeout: Annotated[float, Meta(ge=0, le=60)] = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "journal", "json"] = "auto"


class BrokerTable(Table, frozen=True, kw_only=True):
    """How to reach one MQTT broker, or the first of several that answers. Equal ones share one connection.

    Attributes:
        url: The broker, as `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS. Without a port, 1883 or 8883.
        urls: Brokers in order of preference: those behind the first serve while it cannot be reached. With `url`, that
            one is the first. Login, certificates and client id are the same for all.
        return_after (s): How long a better broker must have been back without a break before it serves again.
        client_id: The MQTT client id; `edge-{device}` when left out. Two connections with one id throw each other out.
        protocol: The MQTT version that is spoken.
        username: The user to log in as.
        password_file: A file whose first line is the password, readable by the daemon.
        password_credential: The name of a systemd credential (`LoadCredential=`) that holds the password, instead of
            a file.
        ca_file: The certificates that are trusted (PEM), instead of those of the operating system. For `mqtts` only.
        cert_file: The certificate that the device shows to the broker (PEM). Goes with `key_file`.
        key_file: The private key of `cert_file` (PEM, without a passphrase).
        keepalive (s): A link that says nothing for one and a half times this long is taken for dead.
        session_expiry (s): How long the broker keeps our session while we are away. MQTT 5 only; a 3.1.1 session has
            no end.
        receive_maximum: How many readings the broker may send before we acknowledge one. MQTT 5 only.
        max_inflight: How many predictions are on their way before one is acknowledged.
        reconnect_min (s): The first pause before trying again; it doubles, with jitter, up to `reconnect_max`.
        reconnect_max (s): The longest pause before trying again.
    """

    url: Text
    urls: tuple[Text, ...] = ()
    return_after: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    client_id: Text | None = None
    protocol: Protocol = "3.1.1"
    username: Text | None = None
    password_file: FilePath | None = None
    password_credential: Name | None = None
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    keepalive: Port16 = 30
    session_expiry: Annotated[float, Meta(ge=0, le=MAX_UINT32)] = 604800.0
    receive_maximum: Port16 = 100
    max_inflight: Port16 = 20
    reconnect_min: SomeSeconds = 1.0
    reconnect_max: SomeSeconds = 120.0


class RepairTable(Table, frozen=True, kw_only=True):
    """`repair`: what may be done with a reading that is out of the contract, instead of rejecting it.

    Attributes:
        missing: `last` puts the last value of the same channel and key in the place of a missing one.
        out_of_range: `clip` moves a value to the nearer end of the channel's range.
    """

    missing: Literal["reject", "last"] = "reject"
    out_of_range: Literal["reject", "clip"] = "reject"


class SerialSourceTable(Table, frozen=True, kw_only=True, tag_field="type", tag="serial"):
    """`[[source]]` with `type = "serial"`: a port that streams frames.

    Attributes:
        name: What models call this source.
        port: The device node. `/dev/serial/by-id/...` stays the same whichever socket the plug goes into. A port that
            is absent is waited for.
        baudrate (bit/s): The speed of the line.
        bytesize (bit): Data bits of a character.
        parity: The parity bit.
        stopbits: Stop bits after a character.
        flow_control: How the receiver holds the sender up.
        format: How a frame is written: a CSV line, a JSON or MessagePack object, or a packed structure of numbers
            (`raw`).
        framing: Where a frame ends: at a line end, or at the zero byte of COBS; `auto` is `lines` for text (`csv`,
            `json`) and `cobs` for bytes (`msgpack`, `raw`).
        checksum: What a COBS frame ends with: a CRC-16 (CCITT-FALSE, high byte first), or nothing.
        fields: The columns of a CSV line or of a raw structure, in order; `_` is one to skip. The other formats name
            their values themselves.
        delimiter: What separates the columns of a CSV line.
        layout: The type of each field of a raw structure, such as `int16` or `float32`; there is no padding.
        scale: What the numbers of a raw structure are multiplied by: one factor for all, or one for each field.
        byte_order: Which byte of a number of a raw structure comes first: the low one (`little`) or the high one.
        key: The field that tells one stream from another; every value has a window of its own.
        time: The field that holds the time of measurement (ISO 8601 or Unix seconds), where a reading has one.
        max_frame_bytes (B): A longer line is skipped and counted as `too_long`.
        repair: What may be done with a reading that is out of the contract.
        reopen_max (s): The longest pause before an absent port is tried again.
        silent_after (s): An open port that brings no good reading for so long is reported as silent, in health and log.
        max_rest (s): How long readings that cannot complete a window yet may wait to be read together, which saves most
            of the wake-ups of a fast sensor; the reading that completes a window is not among them. So much later than
            in truth such a reading may count as arrived. 0 reads each at once.
    """

    name: Name
    port: Text
    baudrate: Annotated[int, Meta(ge=50, le=12_000_000)] = 115200
    bytesize: Literal[5, 6, 7, 8] = 8
    parity: Literal["none", "even", "odd", "mark", "space"] = "none"
    stopbits: Literal[1, 2] = 1
    flow_control: Literal["none", "rtscts", "xonxoff"] = "none"
    format: Literal["csv", "json", "msgpack", "raw"] = "csv"
    framing: Literal["auto", "lines", "cobs"] = "auto"
    checksum: Literal["crc16", "none"] = "crc16"
    fields: tuple[Text, ...] = ()
    delimiter: Delimiter = ","
    layout: tuple[RawType, ...] = ()
    scale: tuple[float, ...] = ()
    byte_order: Literal["little", "big"] = "little"
    key: Text | None = None
    time: Text = "time"
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 4096
    repair: RepairTable = RepairTable()
    reopen_max: SomeSeconds = 5.0
    silent_after: SomeSeconds | None = None
    max_rest: Annotated[float, Meta(ge=0, le=1)] = 0.02


class MqttSourceTable(Table, frozen=True, kw_only=True, tag_field="type", tag="mqtt"):
    """`[[source]]` with `type = "mqtt"`: topics of a broker; every message is one reading, or a JSON array of them.

    Without `url` the source uses the connection of `[upstream]`, and a key of the connection that is given here
    differs from it.
    With `url` it is a connection of its own, and nothing is taken over: no password goes to another broker by accident.

    Attributes:
        name: What models call this source.
        topics: The topics to subscribe to. One level may be `{key}`: every value of it has a window of its own. `+`
            and `#` are allowed.
        url: The broker, as in `[upstream]`; the broker of `[upstream]` when left out.
        client_id: As in `[upstream]`. A broker of its own is met as `edge-{device}-{name of the source}` when left out.
        protocol: As in `[upstream]`; `3.1.1` when left out beside a `url`.
        username: As in `[upstream]`.
        password_file: As in `[upstream]`.
        password_credential: As in `[upstream]`.
        ca_file: As in `[upstream]`.
        cert_file: As in `[upstream]`.
        key_file: As in `[upstream]`.
        qos: 1: the broker keeps a reading until its prediction is safe. 0: a reading may be lost on the way.
        format: How a message is written.
        fields: The columns of a CSV message or of a raw structure, in order; `_` is one to skip. The other formats
            name their values themselves.
        delimiter: What separates the columns of a CSV message.
        layout: As in a serial source.
        scale: As in a serial source.
        byte_order: As in a serial source.
        key: The field that tells one stream from another, where the topic does not.
        time: The field that holds the time of measurement (ISO 8601 or Unix seconds), where a reading has one.
        max_frame_bytes (B): A longer message is skipped and counted as `too_long`.
        repair: What may be done with a reading that is out of the contract.
    """

    name: Name
    topics: tuple[Topic, ...]
    url: Text | None = None
    client_id: Text | None = None
    protocol: Protocol | None = None
    username: Text | None = None
    password_file: FilePath | None = None
    password_credential: Name | None = None
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    qos: Literal[0, 1] = 1
    format: Literal["json", "csv", "msgpack", "raw"] = "json"
    fields: tuple[Text, ...] = ()
    delimiter: Delimiter = ","
    layout: tuple[RawType, ...] = ()
    scale: tuple[float, ...] = ()
    byte_order: Literal["little", "big"] = "little"
    key: Text | None = None
    time: Text = "time"
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 65536
    repair: RepairTable = RepairTable()


class ReplaySourceTable(Table, frozen=True, kw_only=True, tag_field="type", tag="replay"):
    """`[[source]]` with `type = "replay"`: recorded files, as if they were measured now.

    Attributes:
        name: What models call this source.
        files: The recordings, played one after the other.
        speed: `recorded` keeps the pace of the recording, a number plays it so many times faster, `full` as fast as
            the device can.
        rate_hz (Hz): The pace of a recording that holds no times.
        loop: Whether to begin again after the last file.
        format: How the files are written; `auto` goes by their suffix.
        delimiter: What separates the columns of a CSV file.
        key: The column that tells one stream from another.
        time: The column that holds the time of measurement (ISO 8601 or Unix seconds).
        times: Whether predictions carry the time of the recording or the time of the replay.
        max_frame_bytes (B): A longer line is skipped and counted as `too_long`.
        repair: What may be done with a reading that is out of the contract.
    """

    name: Name
    files: tuple[FilePath, ...]
    speed: Literal["recorded", "full"] | Annotated[float, Meta(gt=0)] = "recorded"
    rate_hz: Annotated[float, Meta(gt=0)] | None = None
    loop: bool = False
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    delimiter: Delimiter = ","
    key: Text | None = None
    time: Text = "time"
    times: Literal["recorded", "now"] = "recorded"
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 65536
    repair: RepairTable = RepairTable()


SourceTable = SerialSourceTable | MqttSourceTable | ReplaySourceTable


class SmoothingTable(Table, frozen=True, kw_only=True):
    """`smoothing = {n = 3, m = 5}`: the verdict is what at least `n` of the last `m` windows said.

    Attributes:
        n: How many windows must agree.
        m: How many windows are looked at.
    """

    n: Count
    m: Annotated[int, Meta(ge=1, le=10_000)]


class ModelTable(Table, frozen=True, kw_only=True):
    """`[[model]]`: which bundle runs on which source, and what of it is published.

    Attributes:
        name: The name of the model in topics and predictions.
        bundle: A bundle file (a path with a `/` or ending in `.onnx`), or the name of a model in the model store.
        source: The name of the source whose readings it takes.
        publish: `always` publishes every prediction, `change` those whose verdict differs from the last one, `alarm`
            those that are an alarm.
        alarm_labels: The labels of a classification that are an alarm.
        threshold: The score from which on an anomaly is an anomaly, instead of the bundle's own.
        hysteresis: How far the score must fall below the threshold before an anomaly is over.
        smoothing: The verdict is what at least `n` of the last `m` windows said.
        min_interval (s): The least time between two published predictions of one key, unless the verdict is new.
        stride: A new window every so many readings, instead of the bundle's own stride.
        max_gap (s): A longer pause between two readings of a key is a gap. Left out, there are no gaps.
        on_gap: `reset` empties the window at a gap, `keep` goes on as if there were none.
        key_expiry (s): The window of a key that says nothing for so long is forgotten.
        max_keys: How many keys have windows at once; the one that was silent for longest makes room.
        max_batch: How many windows are handed to the model at once, at most.
        threads: Threads of the model's own arithmetic.
        run: `loop` runs the model between two reads, `worker` in a thread of its own, `auto` measures and decides.
        keep_optimised: As in `[store]`, for this model alone; what `[store]` says when left out.
    """

    name: Name
    bundle: BundleName
    source: Name
    publish: Literal["always", "change", "alarm"] = "always"
    alarm_labels: tuple[Text, ...] = ()
    threshold: float | None = None
    hysteresis: Annotated[float, Meta(ge=0)] = 0.0
    smoothing: SmoothingTable | None = None
    min_interval: Seconds = 0.0
    stride: Count | None = None
    max_gap: SomeSeconds | None = None
    on_gap: Literal["reset", "keep"] = "reset"
    key_expiry: SomeSeconds = 3600.0
    max_keys: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    max_batch: Annotated[int, Meta(ge=1, le=65_536)] = 256
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    run: Literal["auto", "loop", "worker"] = "auto"
    keep_optimised: KeepOptimised | None = None


class UpstreamTable(BrokerTable, frozen=True, kw_only=True):
    """`[upstream]`: the broker that predictions go to.

    Attributes:
        url: The broker, as `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS. Without a port, 1883 or 8883. Needed,
            where there is no `urls`.
        topic: Where a prediction is published. `{device}`, `{model}` and `{key}` are filled in; a stream without key
            is `-`.
        qos: 1: a prediction is kept until the broker has acknowledged it. 0: it may be lost on the way.
        requests: `answer` predicts on demand for readings on `edge/DEVICE/predict/MODEL` that name a response topic,
            which only MQTT 5 has.
    """

    url: Text = ""
    topic: Topic = "edge/{device}/{model}/{key}"
    qos: Literal[0, 1] = 1
    requests: Literal["off", "answer"] = "off"

    @property
    def brokers(self) -> tuple[str, ...]:
        """Every broker once, the preferred one first."""
        return tuple(dict.fromkeys(url for url in (self.url, *self.urls) if url))


class OutboxTable(Table, frozen=True, kw_only=True):
    """`[outbox]`: where predictions wait while they cannot be delivered.

    Attributes:
        path: The database file. Left out, it is `outbox.db` in the state folder that systemd gives the service; without
            one, predictions wait in memory alone, and a power cut during an outage loses them.
        max_bytes (B): How large the file may grow; then the oldest of the lowest priority goes, and is counted.
        max_age (s): Older predictions are dropped, and counted.
        commit_interval (s): How long a prediction may go unacknowledged before it is written to disk. A power cut
            loses at most this much of a serial source; 0 writes each before it is sent, and wears out flash.
        max_memory_bytes (B): How much may wait in memory while the link is up.
    """

    path: NewPath | None = None
    max_bytes: Annotated[int, Meta(ge=4096)] = 67_108_864
    max_age: SomeSeconds = 604_800.0
    commit_interval: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    max_memory_bytes: Annotated[int, Meta(ge=1024)] = 8_388_608


class StoreTable(Table, frozen=True, kw_only=True):
    """`[store]`: the model store, which `edge-runtime models install` fills.

    Attributes:
        path: The folder of the store.
        allowed_signers: The keys whose bundles are trusted (the format of OpenSSH's `allowed_signers`).
            Left out, signatures are not asked for.
        probation (s): How long a new bundle is watched before it counts as proven.
        probation_predictions: After so many predictions it counts as proven earlier.
        probation_errors: So many windows on which it fails, or answers NaN, send it back to the bundle before it.
        max_latency (s): A 99th percentile from bytes to payload above this sends it back too. Left out, latency is not
            judged.
        max_memory_growth (B): A bundle for which the daemon comes to hold so much more memory than before goes back.
        max_drift: A bundle whose scores differ from those of the bundle before it by a population stability index above
            this goes back; 0.25 is a usual bound. Needs 500 windows of both. Left out, drift is not judged.
        over_mqtt: `signed` takes new bundles over the upstream's broker, on `edge/{device}/ota/...`, where their
            signature is good. Needs `allowed_signers`.
        over_mqtt_rate (B/s): How fast such a bundle may come, at most, so that readings go first.
        keep_optimised: Whether what onnxruntime makes of a model is kept beside its bundle, as `BUNDLE.optimised`, so
            that the next start is quicker. `auto` keeps it for models that gain by it, and for none where
            `allowed_signers` is set, since a copy has no signature; `always` for all, there too; `never` for none.
    """

    path: NewPath = "/var/lib/edge-runtime/models"
    allowed_signers: FilePath | None = None
    probation: Seconds = 600.0
    probation_predictions: Count = 10_000
    probation_errors: Count = 3
    max_latency: SomeSeconds | None = None
    max_memory_growth: Annotated[int, Meta(ge=1_048_576)] = 268_435_456
    max_drift: Annotated[float, Meta(gt=0)] | None = None
    over_mqtt: Literal["off", "signed"] = "off"
    over_mqtt_rate: Annotated[int, Meta(ge=1024)] = 262_144
    keep_optimised: KeepOptimised = "auto"


class HttpTable(Table, frozen=True, kw_only=True):
    """`[http]`: predictions on demand, a status page and metrics. Left out, nothing listens. Needs the extra `http`.

    Attributes:
        listen: HOST:PORT. Other machines can ask only where HOST is not the loopback, and that needs `token_file`.
        token_file: A file whose first line is the token that every request must bring.
    """

    listen: Text = "127.0.0.1:8080"
    token_file: FilePath | None = None


class Config(Table, frozen=True, kw_only=True):
    """A whole device file. Paths in it are absolute: relative ones start from the file's own folder.

    Attributes:
        device: Who we are.
        upstream: The broker that predictions go to.
        source: Where readings come from.
        model: What is run on them.
        outbox: Where predictions wait.
        store: The model store.
        http: Predictions on demand.
        path: The file itself. No key of it.
    """

    device: DeviceTable
    upstream: UpstreamTable
    source: tuple[SourceTable, ...]
    model: tuple[ModelTable, ...]
    outbox: OutboxTable = OutboxTable()
    store: StoreTable = StoreTable()
    http: HttpTable | None = None
    path: str = ""
