"""What a device file must keep beyond types and plain ranges: related keys, names, topics and files.

A rule names the keys that it reads. It is judged only where these are right in themselves, so one slip in a file
gives one message, and a slip in one key never hides what is wrong with another.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.config.addresses import parse_endpoint, without_password
from edge_runtime.config.convert import Converted, Mistake, describe, names_a_file, nearest, path_role, quote
from edge_runtime.config.tables import (
    SOURCE_PLACEHOLDERS,
    TOPIC_PLACEHOLDERS,
    BrokerTable,
    Config,
    HttpTable,
    ModelTable,
    MqttSourceTable,
    ReplaySourceTable,
    SerialSourceTable,
    SmoothingTable,
    StoreTable,
    UpstreamTable,
)
from edge_runtime.config.topics import matches, placeholders

# (key, what is wrong with it)
Finding = tuple[str, str]
Rule = Callable[[Any], Iterable[Finding]]

_RULES: list[tuple[tuple[type, ...], tuple[str, ...], Rule]] = []

# Topics of the device itself, below edge/{device}/.
RESERVED = ("status", "models", "health")
RESERVED_BELOW = ("ota", "shadow")  # and everything below these


def _rule(*tables: type, keys: tuple[str, ...]) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.append((tables, keys, rule))
        return rule

    return register


def broken_rules(tables: list[Converted]) -> Iterator[Mistake]:
    """Every rule that the tables of one file break, in the order of the tables."""
    for table in tables:
        yield from _unreadable_files(table)
        for kinds, keys, rule in _RULES:
            if isinstance(table.value, kinds) and not table.wrong.intersection(keys):
                for key, text in rule(table.value):
                    yield Mistake(table.key(key) if key else table.place, text)
    yield from _across(tables)


def _unreadable_files(table: Converted) -> Iterator[Mistake]:
    for field in msgspec.structs.fields(table.value):
        role = path_role(field.type)
        value = getattr(table.value, field.name)
        if role not in {"readable", "bundle"} or field.name in table.wrong or value is None:
            continue
        paths = value if isinstance(value, tuple) else (value,)
        for path in paths:
            if role == "bundle" and not names_a_file(path):
                continue
            trouble = _unreadable(path)
            if trouble:
                yield Mistake(table.key(field.name), f"expected a file that can be read, found {trouble}")


def _unreadable(path: str) -> str | None:
    shown = quote(path)
    try:
        if Path(path).is_dir():
            return f"the folder {shown}: name a file"
        with Path(path).open("rb"):
            return None
    except FileNotFoundError:
        parent = Path(path).parent
        try:
            near = nearest(Path(path).name, sorted(each.name for each in parent.iterdir())[:1000])
        except OSError:
            near = None
        hint = f"did you mean {quote(near)}?" if near else "create it or mend the path"
        return f"none at {shown}: {hint}"
    except PermissionError:
        return f"{shown}, which user {os.geteuid()} may not read: change its owner or mode"
    except (OSError, ValueError) as error:
        return f"{shown} ({getattr(error, 'strerror', None) or error}): mend the path"


@_rule(MqttSourceTable, keys=("url",))
def _broker_address(source: MqttSourceTable) -> Iterator[Finding]:
    if source.url is not None:
        yield from _bad_address("url", source.url)


@_rule(UpstreamTable, keys=("url", "urls"))
def _broker_addresses(upstream: UpstreamTable) -> Iterator[Finding]:
    if not upstream.url and not upstream.urls:
        yield "url", "expected mqtt://HOST:PORT or mqtts://HOST:PORT, but the key is missing (and so is urls)"
    if upstream.url:
        yield from _bad_address("url", upstream.url)
    for url in upstream.urls:
        yield from _bad_address("urls", url)
    twice = _first_repeated(upstream.urls)
    if twice is not None:
        yield "urls", f"expected every broker once, found {quote(without_password(twice))} twice"
    elif upstream.url in upstream.urls[1:]:
        yield (
            "urls",
            (
                f"expected {quote(without_password(upstream.url))}, which is url, in the first place or not at all: "
                "url is the broker that is preferred"
            ),
        )


def _bad_address(key: str, url: str) -> Iterator[Finding]:
    try:
        parse_endpoint(url)
    except ValueError as error:
        yield key, str(error)


@_rule(UpstreamTable, MqttSourceTable, keys=("url", "urls", "ca_file", "cert_file", "key_file"))
def _tls_files(table: UpstreamTable | MqttSourceTable) -> Iterator[Finding]:
    if (table.cert_file is None) != (table.key_file is None):
        missing, present = ("key_file", "cert_file") if table.key_file is None else ("cert_file", "key_file")
        yield (
            missing,
            f"expected a file beside {present}, but the key is missing: a certificate and its key go together",
        )
    try:
        secured = {url: parse_endpoint(url).tls for url in _addresses(table)}
    except ValueError:
        return
    clear = [url for url, tls in secured.items() if not tls]
    if any(secured.values()) and clear:
        yield (
            "urls",
            (
                f"expected mqtts:// for every broker or for none, found {quote(clear[0])} among them: what is "
                "encrypted on one link must not go in clear text over another"
            ),
        )
        return
    for key in ("ca_file", "cert_file", "key_file"):
        if clear and getattr(table, key) is not None:
            yield key, f"expected a url with mqtts:// beside it, found {quote(clear[0])}: nothing is encrypted there"
    if any(secured.values()):
        yield from _certificates(table)


def _addresses(table: UpstreamTable | MqttSourceTable) -> tuple[str, ...]:
    return table.brokers if isinstance(table, UpstreamTable) else (table.url,) if table.url is not None else ()


def _certificates(broker: UpstreamTable | MqttSourceTable) -> Iterator[Finding]:
    import ssl  # noqa: PLC0415 - a megabyte that a device without TLS need not hold

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if broker.ca_file is not None and _unreadable(broker.ca_file) is None:
        try:
            context.load_verify_locations(broker.ca_file)
        except (ssl.SSLError, OSError):
            yield "ca_file", f"expected certificates in PEM form, found none in {quote(broker.ca_file)}"
    if broker.cert_file is None or broker.key_file is None:
        return
    if _unreadable(broker.cert_file) is None and _unreadable(broker.key_file) is None:
        try:
            # Without an answer to the question for a passphrase, OpenSSL would ask on the terminal.
            context.load_cert_chain(broker.cert_file, broker.key_file, password=lambda: b"")
        except (ssl.SSLError, OSError):
            yield (
                "cert_file",
                "expected a certificate and its key, in PEM form and without a passphrase, found no such pair: "
                + " and ".join(map(quote, (broker.cert_file, broker.key_file))),
            )


@_rule(UpstreamTable, MqttSourceTable, keys=("url", "username", "password_file", "password_credential"))
def _login(broker: UpstreamTable | MqttSourceTable) -> Iterator[Finding]:
    given = [key for key in ("password_file", "password_credential") if getattr(broker, key) is not None]
    if len(given) > 1:
        yield given[1], "expected one of password_file and password_credential, found both: take one out"
    if given and broker.username is None and broker.url is not None:
        yield "username", f"expected a user beside {given[0]}, but the key is missing"
    if broker.password_file is not None and _unreadable(broker.password_file) is None:
        yield from _first_line("password_file", broker.password_file, "password")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if broker.password_credential is not None and folder is not None:
        path = Path(folder, broker.password_credential)
        if _unreadable(str(path)) is not None:
            yield (
                "password_credential",
                (
                    f"expected a credential from systemd, found none named {quote(broker.password_credential)}: add "
                    f"LoadCredential={broker.password_credential}:/path to the unit"
                ),
            )


def _first_line(key: str, path: str, what: str) -> Iterator[Finding]:
    try:
        with Path(path).open("rb") as file:
            line = file.read(65_536).split(b"\n", 1)[0].rstrip(b"\r")
        line.decode()
    except UnicodeDecodeError:
        yield key, f"expected a {what} in UTF-8 as the first line of {quote(path)}, found other bytes"
        return
    except OSError:
        return
    if not line:
        yield key, f"expected a {what} as the first line of {quote(path)}, found an empty line"


@_rule(BrokerTable, keys=("reconnect_min", "reconnect_max"))
def _pauses(broker: BrokerTable) -> Iterator[Finding]:
    if broker.reconnect_max < broker.reconnect_min:
        yield (
            "reconnect_max",
            f"expected at least reconnect_min ({broker.reconnect_min}), found {broker.reconnect_max}",
        )


@_rule(SerialSourceTable, MqttSourceTable, keys=("format", "fields"))
def _columns(source: SerialSourceTable | MqttSourceTable) -> Iterator[Finding]:
    if source.format == "csv" and not source.fields:
        yield (
            "fields",
            'expected the columns of a line in order, such as ["time", "temperature"], because format = "csv"',
        )
    if source.format in {"json", "msgpack"} and source.fields:
        yield (
            "fields",
            f'expected no columns with format = "{source.format}", found {describe(source.fields)}: take it out',
        )
    twice = _first_repeated(tuple(name for name in source.fields if name != "_"))
    if twice is not None:
        yield "fields", f"expected every column once, found {quote(twice)} twice"


@_rule(SerialSourceTable, MqttSourceTable, keys=("format", "fields", "layout", "scale"))
def _structure(source: SerialSourceTable | MqttSourceTable) -> Iterator[Finding]:
    if source.format != "raw":
        for key in ("layout", "scale"):
            if getattr(source, key):
                yield key, f'expected it only with format = "raw", found it with "{source.format}": take it out'
        return
    wanted = len(source.fields) or 1  # without fields the model takes whole frames, whose numbers are of one type
    if len(source.layout) != wanted:
        yield "layout", f"expected a type such as int16 for each of the fields ({wanted}), found {len(source.layout)}"
    if len(source.scale) not in {0, 1, wanted}:
        yield "scale", f"expected one factor, or one for each of the fields ({wanted}), found {len(source.scale)}"


@_rule(SerialSourceTable, keys=("format", "framing"))
def _frame_ends(source: SerialSourceTable) -> Iterator[Finding]:
    if source.framing == "lines" and source.format in {"msgpack", "raw"}:
        yield (
            "framing",
            f'expected "cobs", found "lines": format = "{source.format}" has line ends among its bytes',
        )


@_rule(SerialSourceTable, MqttSourceTable, keys=("format", "fields", "key"))
def _key_column(source: SerialSourceTable | MqttSourceTable) -> Iterator[Finding]:
    if source.fields and source.key is not None and source.key not in source.fields:
        near = nearest(source.key, list(source.fields))
        yield (
            "key",
            f"expected one of the fields, found {quote(source.key)}" + (f": did you mean {near}?" if near else ""),
        )


@_rule(SerialSourceTable, MqttSourceTable, ReplaySourceTable, keys=("key", "time"))
def _key_is_not_time(source: SerialSourceTable | MqttSourceTable | ReplaySourceTable) -> Iterator[Finding]:
    if source.key is not None and source.key == source.time:
        yield "key", f"expected another field than time, found {quote(source.key)} in both"


@_rule(ReplaySourceTable, keys=("files",))
def _recordings(source: ReplaySourceTable) -> Iterator[Finding]:
    if not source.files:
        yield "files", "expected at least one recording, found an array of 0"


@_rule(MqttSourceTable, keys=("topics",))
def _topics(source: MqttSourceTable) -> Iterator[Finding]:
    if not source.topics:
        yield "topics", "expected at least one topic, found an array of 0"
    for topic in source.topics:
        for trouble in _bad_topic(topic, SOURCE_PLACEHOLDERS, filters=True):
            yield "topics", trouble
    twice = _first_repeated(source.topics)
    if twice is not None:
        yield "topics", f"expected every topic once, found {quote(twice)} twice"
    keyed = [topic for topic in source.topics if "{key}" in topic]
    if keyed and source.key is not None:
        yield (
            "key",
            f"expected the key in the topic or in a field, found {quote(keyed[0])} and key = {quote(source.key)}",
        )


@_rule(UpstreamTable, keys=("topic",))
def _upstream_topic(upstream: UpstreamTable) -> Iterator[Finding]:
    for trouble in _bad_topic(upstream.topic, TOPIC_PLACEHOLDERS, filters=False):
        yield "topic", trouble


@_rule(UpstreamTable, keys=("requests", "protocol"))
def _requests(upstream: UpstreamTable) -> Iterator[Finding]:
    if upstream.requests == "answer" and upstream.protocol != "5":
        yield "requests", f'expected "off" with protocol {quote(upstream.protocol)}, found "answer": set protocol = "5"'


def _bad_topic(topic: str, known: tuple[str, ...], *, filters: bool) -> Iterator[str]:
    shown = quote(topic[:100])
    levels = topic.split("/")
    try:
        names = placeholders(topic)
    except ValueError:
        yield f"expected each {{ with its }}, found {shown}"
        return
    for name in names:
        if name not in known:
            listed = " ".join(f"{{{each}}}" for each in known)
            yield f"expected no other placeholder than {listed}, found {quote('{' + name + '}')} in {shown}"
    if names.count("key") > 1:
        yield f"expected {{key}} at most once, found {shown}"
    if filters and "key" in names and "{key}" not in levels:
        yield f"expected {{key}} as a whole level, such as sensors/{{key}}/climate, found {shown}"
    if not filters and ("+" in topic or "#" in topic):
        yield f"expected a topic without + and #, because one publishes to one topic, found {shown}"
    if filters and any("+" in level and level != "+" for level in levels):
        yield f"expected + as a whole level, found {shown}"
    if filters and any("#" in level and (level != "#" or i + 1 < len(levels)) for i, level in enumerate(levels)):
        yield f"expected # as the whole last level, found {shown}"


@_rule(SmoothingTable, keys=("n", "m"))
def _majority(smoothing: SmoothingTable) -> Iterator[Finding]:
    if smoothing.n > smoothing.m:
        yield "n", f"expected at most m ({smoothing.m}), found {smoothing.n}: n of the last m windows must agree"


@_rule(ModelTable, keys=("publish", "alarm_labels"))
def _alarm_labels(model: ModelTable) -> Iterator[Finding]:
    twice = _first_repeated(model.alarm_labels)
    if twice is not None:
        yield "alarm_labels", f"expected every label once, found {quote(twice)} twice"


@_rule(StoreTable, keys=("over_mqtt", "allowed_signers"))
def _who_may_send(store: StoreTable) -> Iterator[Finding]:
    if store.over_mqtt == "signed" and store.allowed_signers is None:
        yield "allowed_signers", 'expected the keys that over_mqtt = "signed" trusts, found none: name their file'


@_rule(HttpTable, keys=("listen", "token_file"))
def _listening(http: HttpTable) -> Iterator[Finding]:
    host, colon, port = http.listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port[:6]) <= 65_535:
        yield "listen", f'expected HOST:PORT, such as "127.0.0.1:8080", found {quote(http.listen)}'
        return
    if host not in {"127.0.0.1", "localhost", "[::1]"} and http.token_file is None:
        yield (
            "token_file",
            (
                f"expected a file with a token, because {quote(http.listen)} is open to other machines: "
                "name one, or listen on 127.0.0.1"
            ),
        )
    if http.token_file is not None and _unreadable(http.token_file) is None:
        yield from _first_line("token_file", http.token_file, "token")


def _across(tables: list[Converted]) -> Iterator[Mistake]:
    sources = [
        table for table in tables if isinstance(table.value, SerialSourceTable | MqttSourceTable | ReplaySourceTable)
    ]
    models = [table for table in tables if isinstance(table.value, ModelTable)]
    for group, what in ((sources, "source"), (models, "model")):
        yield from _unique(group, "name", f"expected a name of its own, found that of another {what}")
    serial = [table for table in sources if isinstance(table.value, SerialSourceTable)]
    yield from _unique(serial, "port", "expected a port of its own, found that of another source")
    for table in tables:
        if isinstance(table.value, Config):
            yield from _whole_file(table, sources, models)


def _whole_file(table: Converted, sources: list[Converted], models: list[Converted]) -> Iterator[Mistake]:
    config = table.value
    for key in ("source", "model"):
        if key not in table.wrong and not getattr(config, key):
            yield Mistake(key, f"expected at least one [[{key}]], found an array of 0")
    if "source" not in table.wrong or sources:
        names = [each.value.name for each in sources if each.value.name is not None]
        complete = len(names) == len(sources) and len(sources) == len(config.source or ())
        for model in models:
            wanted = model.value.source
            if wanted is not None and "source" not in model.wrong and wanted not in names and complete:
                near = nearest(wanted, names)
                remedy = f"did you mean {quote(near)}?" if near else f"the sources are {', '.join(map(quote, names))}"
                yield Mistake(model.key("source"), f"expected the name of a source, found {quote(wanted)}: {remedy}")
    if isinstance(config.device, msgspec.Struct) and isinstance(config.upstream, UpstreamTable):
        yield from _published_topics(config, sources, models)


def _published_topics(config: Config, sources: list[Converted], models: list[Converted]) -> Iterator[Mistake]:
    if not config.device.id or not config.upstream.topic:
        return
    reserved = {f"edge/{config.device.id}/{each}" for each in RESERVED}
    for model in models:
        if model.wrong.intersection({"name", "source"}):
            continue
        filled = config.upstream.topic.replace("{device}", config.device.id).replace("{model}", model.value.name)
        own = tuple(f"edge/{config.device.id}/{each}/" for each in RESERVED_BELOW)
        if filled.replace("{key}", "-") in reserved or filled in reserved or filled.startswith(own):
            yield Mistake(
                "upstream.topic",
                f"expected a topic that the device does not use itself, found {quote(filled)} "
                f"for model {quote(model.value.name)}: choose another topic or name",
            )
        for source in sources:
            mqtt = source.value
            if not isinstance(mqtt, MqttSourceTable) or mqtt.name != model.value.source or "topics" in source.wrong:
                continue
            if mqtt.url is not None and mqtt.url not in config.upstream.brokers:
                continue
            for topic in mqtt.topics:
                if matches(topic.replace("{key}", "+"), filled.replace("{key}", "-")):
                    yield Mistake(
                        source.key("topics"),
                        f"expected topics that model {quote(model.value.name)} does not publish to, "
                        f"found {quote(topic)}: it would read its own predictions",
                    )


def _unique(tables: list[Converted], key: str, text: str) -> Iterator[Mistake]:
    seen: dict[str, str] = {}
    for table in tables:
        value = getattr(table.value, key)
        if value is None or key in table.wrong:
            continue
        if value in seen:
            yield Mistake(table.key(key), f"{text}, {seen[value]}: {quote(value)}")
        seen.setdefault(value, table.place)


def _first_repeated(words: tuple[str, ...]) -> str | None:
    return next((word for index, word in enumerate(words) if word in words[:index]), None)
