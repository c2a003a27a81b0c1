"""The tables of a device's TOML file, as frozen typed values: names, types, units, defaults and plain ranges.

This is the one definition. `config/load.py` reads a file into it, the JSON Schema for editors and the key reference in
`docs/configuration.md` are generated from it: each attribute below is one key, with its unit in brackets.
A range stands here when it concerns one key; what concerns several keys stands in `config/rules.py`.

Longer than 500 lines on purpose: a person who looks for a key finds it here, and most lines are its description.
"""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from edge_runtime.registered import SINKS, SOURCES, Registry

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
OwnTopic = Annotated[
    str,
    Meta(max_length=MAX_UINT16, pattern=r"^[^\x00]*$", extra={"expected": 'a topic, or "" for none'}),
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
# RFC 7301 section 3.1: 1 to 255 bytes.
Alpn = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$", extra={"expected": "the name of a protocol"}),
]
Seconds = Annotated[float, Meta(ge=0)]
SomeSeconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
Port16 = Annotated[int, Meta(ge=1, le=MAX_UINT16)]

Protocol = Literal["3.1.1", "5"]
Latency = Literal["prompt", "economical"]
KeepOptimised = Literal["auto", "always", "never"]

# What `upstream.topic` may contain in braces.
TOPIC_PLACEHOLDERS = ("device", "model", "key")
# Its topics for messages of the device itself, as keys.
OWN_TOPICS = ("status_topic", "models_topic", "health_topic")


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: every key is known, and a default here is the default that the samples show."""


def tag_of(table: Table) -> str:
    """The word of a device file that selects this kind of table."""
    return str(table.__struct_config__.tag)


class DeviceTable(Table, frozen=True, kw_only=True):
    """`[device]`: the name of the device, and settings of the whole daemon.

    Attributes:
        id: The name of this device. It is part of every topic and every prediction; two devices of one broker must not
            share it.
        class_: What kind of device this is, such as `pi4`. A bundle made for another kind is refused.
        health_interval (s): How often the counters are published to `edge/{device}/health`.
        stop_timeout (s): How long a stop may take to deliver pending predictions; the rest stays in the outbox.
        log_level: The lowest level that is logged.
        log_format: `auto` is readable text on a terminal, the journal's format under systemd, and text elsewhere.
            `json` writes one object a line.
    """

    id: Name
    class_: Name | None = msgspec.field(default=None, name="class")
    health_interval: Annotated[float, Meta(gt=0, le=60)] = 30.0
    stop_timeout: Annotated[float, Meta(ge=0, le=60)] = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "journal", "json"] = "auto"


class BrokerTable(Table, frozen=True, kw_only=True):
    """How to reach one MQTT broker, or the first of several that answers. Equal ones share one connection.

    Attributes:
        url: The broker, as `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS. Without a port, 1883 or 8883. Over
            WebSockets `ws://HOST:PORT/PATH` or `wss://`; without a port 80 or 443, without a path `/mqtt`.
        urls: Brokers in order of preference: the later ones are used while the first cannot be reached. With `url`,
            that one is the first. Login, certificates and client id are the same for all.
        return_after (s): How long a preferred broker must be reachable without a break before it is used again.
        client_id: The MQTT client id; `edge-{device}` when left out. A broker ends the older of two connections with
            one id.
        protocol: The MQTT version.
        username: The user name at the broker.
        password_file: A file whose first line is the password, readable by the daemon.
        password_credential: The name of a systemd credential (`LoadCredential=`) that holds the password, instead of
            a file.
        password_command: A program and its arguments, each an item, that writes the password to its standard output,
            such as a token that expires. There is no shell.
        password_lifetime (s): How long such a password is valid. Before that is over another one is asked for, and the
            link is made anew with it. Left out, the program is asked at each connection.
        ca_file: The certificates that are trusted (PEM), instead of those of the operating system. For `mqtts` and
            `wss` only.
        cert_file: The certificate that the device shows to the broker (PEM). Goes with `key_file`.
        key_file: The private key of `cert_file` (PEM, without a passphrase).
        alpn: The protocol that TLS asks for (ALPN), where a broker shares a port by it, such as `x-amzn-mqtt-ca` on
            port 443.
        keepalive (s): The MQTT keep-alive. A link that is silent for one and a half times this long is closed.
        session_expiry (s): How long the broker keeps the session while the device is disconnected. MQTT 5 only; a 3.1.1
            session has no end.
        receive_maximum: How many readings the broker may send without an acknowledgement. MQTT 5 only.
        max_inflight: How many predictions may be sent without an acknowledgement.
        latency: `prompt` has TCP confirm the broker's packets at once, where a broker delays readings until then
            (mosquitto without `set_tcp_nodelay true`); `economical` does not, and a reading can be 40 ms late there.
        reconnect_min (s): The first back-off; it doubles, with jitter, up to `reconnect_max`.
        reconnect_max (s): The longest back-off.
    """

    url: Text
    urls: tuple[Text, ...] = ()
    return_after: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    client_id: Text | None = None
    protocol: Protocol = "3.1.1"
    username: Text | None = None
    password_file: FilePath | None = None
    password_credential: Name | None = None
    password_command: tuple[Text, ...] = ()
    password_lifetime: SomeSeconds | None = None
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    alpn: Alpn | None = None
    keepalive: Port16 = 30
    session_expiry: Annotated[float, Meta(ge=0, le=MAX_UINT32)] = 604800.0
    receive_maximum: Port16 = 100
    max_inflight: Port16 = 20
    latency: Latency = "prompt"
    reconnect_min: SomeSeconds = 1.0
    reconnect_max: SomeSeconds = 120.0


class RepairTable(Table, frozen=True, kw_only=True):
    """`repair`: what may be done with a reading that is out of the contract, instead of rejecting it.

    Attributes:
        missing: `last` replaces a missing value by the last good one of the same channel and key, from any earlier
            reading.
        max_age (s): Older values are not used. Left out, a value is used until its key is forgotten.
        out_of_range: `clip` moves a value to the nearer end of the channel's range.
    """

    missing: Literal["reject", "last"] = "reject"
    max_age: SomeSeconds | None = None
    out_of_range: Literal["reject", "clip"] = "reject"


class SmoothingTable(Table, frozen=True, kw_only=True):
    """`smoothing = {n = 3, m = 5}`: the verdict is that of at least `n` of the last `m` windows.

    Attributes:
        n: How many windows must agree.
        m: How many windows count.
    """

    n: Count
    m: Annotated[int, Meta(ge=1, le=10_000)]


class ModelTable(Table, frozen=True, kw_only=True):
    """`[[model]]`: which bundle runs on which source, and which predictions are published.

    Attributes:
        name: The name of the model in topics and predictions.
        bundle: A bundle file (a path with a `/` or ending in `.onnx`), or the name of a model in the model store.
        source: The name of the source whose readings it takes.
        payload: How a prediction is written: `json`; `msgpack`, the same members as a MessagePack map; `values`, a
            topic below that of the prediction for each value. Several as an array: the first of `json` and `msgpack`
            has the topic of the prediction, the other one the level of its name below it.
        publish: `always` publishes every prediction, `change` those whose verdict differs from the last one, `alarm`
            those that are an alarm.
        alarm_labels: The labels of a classification that are an alarm.
        abstain: The label of a window whose set (`[uncertainty]` of the bundle) does not hold exactly one label. Left
            out, each window has the label of the model.
        threshold: The score above which a window is an anomaly, instead of the bundle's own.
        hysteresis: How far the score must fall below the threshold before an anomaly is over.
        smoothing: The verdict is that of at least `n` of the last `m` windows.
        min_interval (s): The least time between two published predictions of one key, unless the verdict is new.
        stride: A new window every so many readings, instead of the bundle's own stride.
        max_gap (s): A longer pause between two readings of a key is a gap, and so is a reading whose own time lies
            further back. Judged by the readings' own times, or by their arrival where they have none. Left out, there
            are no gaps.
        on_gap: `reset` empties the window at a gap, `keep` goes on as if there were none.
        on_rate: What becomes of readings that come faster or slower than the bundle's `rate_hz` by more than a tenth:
            `warn` uses them and logs it, `resample` resamples them to that rate, `reject` rejects them as `wrong_rate`.
        key_expiry (s): The window of a key without readings for so long is dropped.
        max_keys: How many keys have windows at once; the one without readings for longest is dropped.
        max_batch: The most windows in one call of the model.
        threads: Threads of onnxruntime for one call.
        acknowledge: When a reading (QoS 1) is acknowledged to its broker: `entry` when it has entered its window,
            `window` when no open window needs it any more and its predictions are safe, so that a crash loses no
            window. Then the broker must allow as many unacknowledged readings as the open windows of all keys hold.
        run: `loop` runs the model in the event loop, `worker` in a thread of its own, `auto` measures and decides.
        keep_optimised: As in `[store]`, for this model alone; the value of `[store]` when left out.
        drift: Whether readings and answers are compared with the training data, on `edge/{device}/drift/MODEL`: `auto`
            does so where the bundle has a reference; `watch` does so for a bundle without one too, which shows what is
            stuck, missing or out of range; `off` does not.
    """

    name: Name
    bundle: BundleName
    source: Name
    payload: str | tuple[str, ...] = "json"  # not `Text`: in a union with an array it ends msgspec 0.22 with a crash
    publish: Literal["always", "change", "alarm"] = "always"
    alarm_labels: tuple[Text, ...] = ()
    abstain: Text | None = None
    threshold: float | None = None
    hysteresis: Annotated[float, Meta(ge=0)] = 0.0
    smoothing: SmoothingTable | None = None
    min_interval: Seconds = 0.0
    stride: Count | None = None
    max_gap: SomeSeconds | None = None
    on_gap: Literal["reset", "keep"] = "reset"
    on_rate: Literal["warn", "resample", "reject"] = "warn"
    key_expiry: SomeSeconds = 3600.0
    max_keys: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    max_batch: Annotated[int, Meta(ge=1, le=65_536)] = 256
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    acknowledge: Literal["entry", "window"] = "entry"
    run: Literal["auto", "loop", "worker"] = "auto"
    keep_optimised: KeepOptimised | None = None
    drift: Literal["auto", "watch", "off"] = "auto"

    @property
    def payloads(self) -> tuple[str, ...]:
        """The payload conventions, in the order of the file."""
        return (self.payload,) if isinstance(self.payload, str) else self.payload


class UpstreamTable(BrokerTable, frozen=True, kw_only=True):
    """`[upstream]`: the broker that predictions go to.

    Attributes:
        url: The broker, as `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS. Without a port, 1883 or 8883. Over
            WebSockets `ws://HOST:PORT/PATH` or `wss://`; without a port 80 or 443, without a path `/mqtt`. Required
            where there is no `urls`.
        topic: Where a prediction is published. `{device}`, `{model}` and `{key}` are filled in; a stream without key
            is `-`.
        qos: 1: a prediction is kept until the broker has acknowledged it. 0: it may be lost on the way.
        requests: `answer` predicts on demand for readings on `edge/DEVICE/predict/MODEL` that name a response topic,
            which only MQTT 5 has.
        status_topic: Where `online` and `offline` are published, the latter by the last will as well. `{device}` is
            filled in. `""` publishes neither, and then there is no last will.
        models_topic: Where the list of models is published; `""` switches it off.
        health_topic: Where the health document is published; `""` switches it off. Reports of shadows and
            of drift are on `edge/{device}/shadow/MODEL` and `edge/{device}/drift/MODEL`, or below another topic that is
            given here, and off with `""`.
        retain: Whether the broker is to retain status and models. `false` is for brokers that retain nothing or refuse
            such messages.
    """

    url: Text = ""
    topic: Topic = "edge/{device}/{model}/{key}"
    qos: Literal[0, 1] = 1
    requests: Literal["off", "answer"] = "off"
    status_topic: OwnTopic = "edge/{device}/status"
    models_topic: OwnTopic = "edge/{device}/models"
    health_topic: OwnTopic = "edge/{device}/health"
    retain: bool = True

    @property
    def brokers(self) -> tuple[str, ...]:
        """Every broker once, the preferred one first."""
        return tuple(dict.fromkeys(url for url in (self.url, *self.urls) if url))


class SourceTable(Table, frozen=True, kw_only=True, tag_field="type", tag="source"):
    """`[[source]]`: where readings come from. Each kind of source has a table of its own, named in `registered.py`.

    Attributes:
        name: The name that models refer to.
        key: The field that separates the streams; every value has a window of its own. Of an MQTT source also several
            levels of its topics: `{site}-{machine}`.
        time: The field that holds the time of measurement (ISO 8601 or a Unix time), where a reading has one.
        repair: What may be done with a reading that is out of the contract.
        identity: The member that identifies a reading; `id`, else `seq`, else the time when left out; `"none"` where no
            member identifies it.
        time_unit: The unit of times that are numbers.
        time_zone: The zone of times that are text without an offset, by its IANA name such as `Europe/Berlin`; UTC
            when left out.
        max_ahead (s): A reading whose own time is further ahead of the device's clock is rejected as `bad_time`. Left
            out, it is a day, and ten years while the clock of the device is not set. Recordings are not judged by it.
        late: A reading whose own time lies before that of an earlier one of its key: `take` puts it into the window in
            order of arrival, `drop` skips it. Both are counted as `late`.
        late_tolerance (s): How far back such a time may lie without counting as late.
        silent_after (s): A source without a good reading for so long is reported as silent, in health and log; 0
            disables the report.
    """

    variants: ClassVar[Registry] = SOURCES
    own_keys: ClassVar[tuple[str, ...]] = ()  # keys whose values no two sources of this kind may share

    name: Name
    key: Text | None = None
    time: Text = "time"
    repair: RepairTable = RepairTable()
    identity: Text | None = None
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    time_zone: Text | None = None
    max_ahead: SomeSeconds | None = None
    late: Literal["take", "drop"] = "take"
    late_tolerance: Seconds = 0.0
    silent_after: Seconds = 60.0

    def read_topics(self, upstream: UpstreamTable) -> dict[str, str]:
        """Its topics at the broker that predictions go to, and which topics each catches."""
        del upstream
        return {}

    @property
    def key_member(self) -> str | None:
        """The field that names the stream; None where none does."""
        return self.key

    def subscriptions(self, config: "Config") -> tuple[object, dict[str, str]]:
        """The broker that it subscribes at, and its topics with the filter that each subscribes to."""
        del config
        return None, {}


class SinkTable(Table, frozen=True, kw_only=True, tag_field="type", tag="sink"):
    """`[[sink]]`: where predictions go beside the upstream. Each kind of sink has a table of its own (`registered.py`).

    Attributes:
        name: What health and log call the sink.
        models: The names of the models whose predictions it takes; all when left out.
        when: `always` takes every prediction, `change` those whose verdict differs from the last one that the sink
            took, `alarm` those that are an alarm. Independent of the model's `publish`.
    """

    variants: ClassVar[Registry] = SINKS

    name: Name
    models: tuple[Text, ...] = ()
    when: Literal["always", "change", "alarm"] = "always"


class OutboxTable(Table, frozen=True, kw_only=True):
    """`[outbox]`: where predictions wait while they cannot be delivered.

    Attributes:
        path: The database file. Left out, it is `outbox.db` in the state folder that systemd gives the service; without
            one, predictions wait in memory alone, and a power cut during an outage loses them.
        max_bytes (B): How large the file may grow; then the oldest prediction of the lowest priority is dropped and
            counted.
        max_age (s): Older predictions are dropped, and counted.
        commit_interval (s): How long a prediction may go unacknowledged before it is written to disk. A power cut
            loses at most this much of a serial source; 0 writes each one before it is sent, which wears out flash.
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
            Left out, no signature is required. A key's `valid-before` applies at admission; removing or revoking a key
            applies at every start.
        signatures: How many different keys must have signed a bundle: `BUNDLE.sig`, and `BUNDLE.sig2`.
        release: `require` admits a bundle only with its signed release document, `BUNDLE.release`, which names its
            version, its number and its day of expiry. A document that exists is always checked.
        probation (s): How long a new bundle is watched before it counts as proven.
        probation_predictions: After so many predictions it counts as proven before that.
        probation_errors: After so many windows on which it fails or answers NaN, the bundle before it is restored.
        max_latency (s): The same where the 99th percentile from bytes to payload is above this. Left out, latency is
            not checked.
        max_memory_growth (B): The same where the daemon's memory has grown by more than this.
        max_drift: The same where the scores differ from those of the bundle before it by a population stability index
            above this; 0.25 is a usual bound. Needs 500 windows of both. Left out, drift is not checked.
        over_mqtt: `signed` takes new bundles over the upstream's broker, on `edge/{device}/ota/...`, if their
            signature is good. Needs `allowed_signers`.
        desired: `follow` has the device follow the signed document that is retained on `edge/{device}/desired`: it
            fetches the bundle that is named there and installs it. Needs `allowed_signers`, in which a key has the
            namespace `edge-desired`.
        over_mqtt_rate (B/s): The highest rate of such a transfer, so that readings have priority.
        keep_optimised: Whether the graph as onnxruntime optimised it is kept beside the bundle, as `BUNDLE.optimised`,
            so that the next start is faster. `auto` keeps it for models that gain by it, and for none where
            `allowed_signers` is set, since a copy has no signature; `always` for all, there too; `never` for none.
    """

    path: NewPath = "/var/lib/edge-runtime/models"
    allowed_signers: FilePath | None = None
    signatures: Annotated[int, Meta(ge=1, le=2)] = 1
    release: Literal["accept", "require"] = "accept"
    probation: Seconds = 600.0
    probation_predictions: Count = 10_000
    probation_errors: Count = 3
    max_latency: SomeSeconds | None = None
    max_memory_growth: Annotated[int, Meta(ge=1_048_576)] = 268_435_456
    max_drift: Annotated[float, Meta(gt=0)] | None = None
    over_mqtt: Literal["off", "signed"] = "off"
    desired: Literal["off", "follow"] = "off"
    over_mqtt_rate: Annotated[int, Meta(ge=1024)] = 262_144
    keep_optimised: KeepOptimised = "auto"


class TruthTable(Table, frozen=True, kw_only=True):
    """`[truth]`: what was right, where that is known later. It is joined to predictions, and gives live accuracy.

    Attributes:
        listen: `on` takes truth on `edge/{device}/truth/MODEL`, at the upstream's broker. A broker that refuses the
            topic costs nothing else. `off` leaves HTTP, where there is `[http]`. `auto` is `off` where `health_topic`
            of `[upstream]` is moved or switched off: such brokers end a connection that asks for a topic of ours.
        remember: How many predictions of each model wait for their truth, and as many again of those that `publish` or
            `min_interval` withheld; 0 takes no truth at all.
        tolerance (s): How far the time of a truth that names key and time may be from that of its prediction.
        time_unit: The unit of its times that are numbers.
        time_zone: The zone of its times that are text without an offset, by its IANA name such as `Europe/Berlin`; UTC
            if left out.
    """

    listen: Literal["auto", "on", "off"] = "auto"
    remember: Annotated[int, Meta(ge=0, le=100_000)] = 1_000
    tolerance: Seconds = 1.0
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    time_zone: Text | None = None


class HttpTable(Table, frozen=True, kw_only=True):
    """`[http]`: predictions on demand, a status page and metrics. Left out, nothing listens.

    Attributes:
        listen: HOST:PORT, or unix:PATH. Other machines reach it only where HOST is not the loopback, which requires
            `token_file`.
        token_file: A file whose first line is the token that every request must carry.
        health: Who may read liveness and readiness: `open` to all, or only with the `token`.
        metrics: The same for `/metrics`.
        hosts: Further host names that a request without a token may use, such as the public name of a proxy.
        origins: Sites whose pages may send requests, such as `https://dash.example.org`.
        prefix: A path that a proxy leaves in front of the route, such as `/edge`.
        access_log: `json` writes a line for each response to stdout.
    """

    listen: Text = "127.0.0.1:8080"
    token_file: FilePath | None = None
    health: Literal["open", "token"] = "open"
    metrics: Literal["open", "token"] = "token"
    hosts: tuple[Text, ...] = ()
    origins: tuple[Text, ...] = ()
    prefix: str = ""
    access_log: Literal["off", "json"] = "off"


class HomeAssistantTable(Table, frozen=True, kw_only=True):
    """`[home_assistant]`: entities in Home Assistant, by MQTT discovery. Left out, nothing is published for it.

    Attributes:
        prefix: The discovery prefix that is set in Home Assistant. The document is on
            `PREFIX/device/edge_{device}/config`, and `PREFIX/status` is listened to.
        keys: `entities`: the entities of every key belong to the device. `devices`: each key is a device of its own,
            connected by this one, with a document on `PREFIX/device/edge_{device}__{key}/config`.
    """

    prefix: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            pattern=r"^[^+#{}\x00-\x1f\x7f]+$",
            extra={"expected": "the beginning of a topic, without + # { }"},
        ),
    ] = "homeassistant"
    keys: Literal["entities", "devices"] = "entities"


class CaptureTable(Table, frozen=True, kw_only=True):
    """`[capture]`: windows that are kept on the device to be labelled. Left out, none is kept.

    Attributes:
        path: The folder of the captures, which holds nothing else. Left out, it is `captures` in the state folder.
        max_bytes (B): How large all files of that folder together may be; then the oldest captures make room.
        uncertain: Windows of which the model is no surer than this are kept: a classification by the distance between
            its two largest scores, an anomaly or a regression with a threshold by the distance from the threshold.
        labels: Windows with one of these labels are kept; of an anomaly the labels are `anomaly` and `normal`.
        random: The share of all windows that is kept by chance, from 0 to 1.
        exclude: Channels that are left out of what is kept.
    """

    path: NewPath | None = None
    max_bytes: Annotated[int, Meta(ge=4096)] = 67_108_864
    uncertain: Annotated[float, Meta(ge=0)] | None = None
    labels: tuple[Text, ...] = ()
    random: Annotated[float, Meta(ge=0, le=1)] = 0.0
    exclude: tuple[Text, ...] = ()


class SparkplugTable(Table, frozen=True, kw_only=True):
    """`[sparkplug]`: the device as an edge node of Sparkplug B, beside its other topics. Left out, it is none.

    Attributes:
        group: The group id. The node is the device's id; each model, or each key of it, is a device of the node.
    """

    group: Name


class Config(Table, frozen=True, kw_only=True):
    """A whole device file. Paths in it are absolute: relative ones start from the file's own folder.

    Attributes:
        device: The name of the device, and settings of the whole daemon.
        upstream: The broker that predictions go to.
        source: Where readings come from.
        model: What is run on them.
        outbox: Where predictions wait.
        store: The model store.
        truth: What was right.
        http: Predictions on demand.
        home_assistant: Entities in Home Assistant.
        capture: Windows that are kept to be labelled.
        sink: Where predictions go beside the upstream.
        sparkplug: The device as an edge node of Sparkplug B.
        path: The file itself. No key of it.
    """

    device: DeviceTable
    upstream: UpstreamTable
    source: tuple[SourceTable, ...]
    model: tuple[ModelTable, ...]
    outbox: OutboxTable = OutboxTable()
    store: StoreTable = StoreTable()
    truth: TruthTable = TruthTable()
    http: HttpTable | None = None
    home_assistant: HomeAssistantTable | None = None
    capture: CaptureTable | None = None
    sink: tuple[SinkTable, ...] = ()
    sparkplug: SparkplugTable | None = None
    path: str = ""
