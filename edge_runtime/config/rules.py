"""Rules of a device file beyond types and ranges: related keys, names, topics and files.

A rule names the keys that it reads. It is checked only where these are valid, so one mistake gives one message, and a
mistake in one key does not hide another.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_runtime.config.addresses import (
    host_fault,
    is_local_listen,
    listening_fault,
    origin_fault,
    prefix_fault,
)
from edge_runtime.config.convert import Converted, Mistake, names_a_file, nearest, path_role, quote
from edge_runtime.config.tables import (
    OWN_TOPICS,
    TOPIC_PLACEHOLDERS,
    Config,
    HttpTable,
    ModelTable,
    SmoothingTable,
    SourceTable,
    StoreTable,
    TruthTable,
    UpstreamTable,
)
from edge_runtime.config.topics import SHARE, FilterIndex, bad_topic, common, matches, overlap, split_share, stands_for

# (key, what is wrong with it)
Finding = tuple[str, str]
Rule = Callable[[Any], Iterable[Finding]]
_Word = TypeVar("_Word", str, int)


_RULES: list[tuple[tuple[type, ...], tuple[str, ...], Rule]] = []

# Topics of the device itself, below edge/{device}/. A model of such a name would publish among them.
RESERVED = ("status", "models", "health", "desired", "rollout")
RESERVED_BELOW = ("ota", "shadow", "predict", "answers", "capture", "drift", "truth", "accuracy")  # and all below these


def rule(*tables: type, keys: tuple[str, ...]) -> Callable[[Rule], Rule]:
    """Register a function that checks every table of these kinds, and of kinds derived from them.

    Args:
        tables: the kinds.
        keys: read by the rule; it is not called where one of them is wrong.
    """

    def register(rule: Rule) -> Rule:
        _RULES.append((tables, keys, rule))
        return rule

    return register


def broken_rules(
    tables: list[Converted], absent: dict[str, str] | None = None, *, needs_models: bool = True
) -> Iterator[Mistake]:
    """The mistakes that the rules find in the tables of one file, in the order of the tables.

    `absent` takes the files that cannot be read, with their places, where that is no mistake.
    """
    for table in tables:
        for place, path, trouble in _unreadable_files(table):
            if absent is None:
                yield Mistake(place, f"expected a file that can be read, found {trouble}")
            else:
                absent[path] = place
        for kinds, keys, rule in _RULES:
            if isinstance(table.value, kinds) and not table.wrong.intersection(keys):
                for key, text in rule(table.value):
                    yield Mistake(table.key(key) if key else table.place, text)
    yield from (each for each in _across(tables) if needs_models or each.place != "model")


def _unreadable_files(table: Converted) -> Iterator[tuple[str, str, str]]:
    """Place, path, and fault."""
    for field in msgspec.structs.fields(table.value):
        role = path_role(field.type)
        value = getattr(table.value, field.name)
        if role not in {"readable", "bundle"} or field.name in table.wrong or value is None:
            continue
        paths = value if isinstance(value, tuple) else (value,)
        for path in paths:
            if role == "bundle" and not names_a_file(path):
                continue
            trouble = unreadable(path)
            if trouble:
                yield table.key(field.name), path, trouble


def unreadable(path: str) -> str | None:
    """Why a file cannot be read, with a remedy; None where it can."""
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


def first_line_fault(key: str, path: str, what: str) -> Iterator[Finding]:
    """Find secrets that are not the first line of their file."""
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


@rule(SourceTable, keys=("key", "time"))
def _key_is_not_time(source: SourceTable) -> Iterator[Finding]:
    if source.key is not None and source.key == source.time:
        yield "key", f"expected another field than time, found {quote(source.key)} in both"


@rule(SourceTable, TruthTable, keys=("time_zone",))
def _time_zone(table: SourceTable | TruthTable) -> Iterator[Finding]:
    if table.time_zone is None:
        return
    from zoneinfo import available_timezones  # noqa: PLC0415 - reads a folder: only where a zone is named

    known = available_timezones()
    if table.time_zone in known:
        return
    near = nearest(table.time_zone, sorted(known))
    remedy = f"did you mean {near}?" if near else "write it as Region/City"
    if not known:
        remedy = "this machine has no time zones at all: install the package tzdata"
    yield (
        "time_zone",
        f'expected the IANA name of a zone, such as "Europe/Berlin", found {quote(table.time_zone)}: {remedy}',
    )


@rule(UpstreamTable, keys=("topic",))
def _upstream_topic(upstream: UpstreamTable) -> Iterator[Finding]:
    for trouble in bad_topic(upstream.topic, TOPIC_PLACEHOLDERS, filters=False):
        yield "topic", trouble


@rule(UpstreamTable, keys=(*OWN_TOPICS, "retain"))
def _own_topics(upstream: UpstreamTable) -> Iterator[Finding]:
    for key in OWN_TOPICS:
        yield from ((key, trouble) for trouble in bad_topic(getattr(upstream, key), ("device",), filters=False))
    if upstream.retain and upstream.status_topic and upstream.status_topic == upstream.models_topic:
        yield (
            "models_topic",
            (
                f"expected another topic than status_topic, found {quote(upstream.models_topic)} in both: the broker "
                "retains one message of a topic: choose another, or set retain = false"
            ),
        )


@rule(UpstreamTable, keys=("requests", "protocol"))
def _requests(upstream: UpstreamTable) -> Iterator[Finding]:
    if upstream.requests == "answer" and upstream.protocol != "5":
        yield "requests", f'expected "off" with protocol {quote(upstream.protocol)}, found "answer": set protocol = "5"'


@rule(SmoothingTable, keys=("n", "m"))
def _majority(smoothing: SmoothingTable) -> Iterator[Finding]:
    if smoothing.n > smoothing.m:
        yield "n", f"expected at most m ({smoothing.m}), found {smoothing.n}: n of the last m windows must agree"


@rule(ModelTable, keys=("publish", "alarm_labels"))
def _alarm_labels(model: ModelTable) -> Iterator[Finding]:
    twice = first_repeated(model.alarm_labels)
    if twice is not None:
        yield "alarm_labels", f"expected every label once, found {quote(twice)} twice"


@rule(StoreTable, keys=("over_mqtt", "desired", "allowed_signers"))
def _who_may_send(store: StoreTable) -> Iterator[Finding]:
    if store.over_mqtt == "signed" and store.allowed_signers is None:
        yield "allowed_signers", 'expected the keys that over_mqtt = "signed" trusts, found none: name their file'
    elif store.desired == "follow" and store.allowed_signers is None:
        yield "allowed_signers", 'expected the keys that desired = "follow" trusts, found none: name their file'


@rule(HttpTable, keys=("listen", "token_file"))
def _listening(http: HttpTable) -> Iterator[Finding]:
    fault = listening_fault(http.listen)
    if fault is not None:
        yield "listen", fault
        return
    if not is_local_listen(http.listen) and http.token_file is None:
        yield (
            "token_file",
            (
                f"expected a file with a token, because {quote(http.listen)} is open to other machines: "
                "name one, or listen on 127.0.0.1"
            ),
        )
    if http.token_file is not None and unreadable(http.token_file) is None:
        yield from first_line_fault("token_file", http.token_file, "token")


@rule(HttpTable, keys=("hosts", "origins", "prefix"))
def _in_front(http: HttpTable) -> Iterator[Finding]:
    for key, words, judge in (("hosts", http.hosts, host_fault), ("origins", http.origins, origin_fault)):
        yield from ((key, fault) for fault in map(judge, words) if fault is not None)
    fault = prefix_fault(http.prefix)
    if fault is not None:
        yield "prefix", fault


def _across(tables: list[Converted]) -> Iterator[Mistake]:
    sources = [table for table in tables if isinstance(table.value, SourceTable)]
    models = [table for table in tables if isinstance(table.value, ModelTable)]
    for group, what in ((sources, "source"), (models, "model")):
        yield from _unique(group, "name", f"expected a name of its own, found that of another {what}")
    for key in dict.fromkeys(key for table in sources for key in table.value.own_keys):
        having = [table for table in sources if key in table.value.own_keys]
        yield from _unique(having, key, f"expected a {key} of its own, found that of another source")
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
    if config.home_assistant is not None and isinstance(config.upstream, UpstreamTable):
        yield from _seen_by_home_assistant(config.upstream, many=len(config.model or ()) > 1)
    if isinstance(config.device, msgspec.Struct) and isinstance(config.upstream, UpstreamTable):
        yield from _published_topics(config, sources, models)
        yield from _overlapping_topics(config, sources)


def _seen_by_home_assistant(upstream: UpstreamTable, *, many: bool) -> Iterator[Mistake]:
    """Settings that would make entities permanently unavailable, or show the values of another one."""
    if upstream.status_topic == "":
        yield Mistake("upstream.status_topic", 'expected a topic beside [home_assistant], found "": leave the key out')
    if upstream.retain is False:
        yield Mistake("upstream.retain", "expected true beside [home_assistant], found false: leave the key out")
    if many and upstream.topic and "{model}" not in upstream.topic:
        wanted = "expected {model} in it, so that Home Assistant can tell the models apart"
        yield Mistake("upstream.topic", f"{wanted}, found {quote(upstream.topic)}")


def _overlapping_topics(config: Config, sources: list[Converted]) -> Iterator[Mistake]:
    """Overlapping filters of one connection of which none covers the other.

    A broker may then send a message of both once or twice, without a mark (MQTT 3.1.1, 3.3.5).
    """
    known: list[tuple[object, str, str, str]] = []
    index = FilterIndex[int]()  # places in `known`
    for source in sources:
        if source.wrong:
            continue
        broker, filters = source.value.subscriptions(config)
        for topic, topic_filter in filters.items():
            plain = split_share(topic_filter)[1]
            for place in sorted(index.overlapping(plain)):
                other_broker, name, other, other_filter = known[place]
                if broker != other_broker or stands_for(topic_filter, other_filter):
                    continue
                if stands_for(other_filter, topic_filter) or topic_filter == other_filter:
                    continue
                if not overlap(plain, split_share(other_filter)[1]):
                    continue
                whose = "" if name == source.value.name else f" of source {quote(name)}"
                yield Mistake(
                    source.key("topics"),
                    f"expected topics that do not overlap, found {quote(topic)} and {quote(other)}{whose}, "
                    "of which a broker may send a reading twice: "
                    f"{_remedy_of_overlap(topic_filter, other_filter, is_one_source=not whose)}",
                )
            index.add(plain, len(known))
            known.append((broker, source.value.name, topic, topic_filter))


def _remedy_of_overlap(one: str, other: str, *, is_one_source: bool) -> str:
    """What to do about two filters of one connection that overlap."""
    if not is_one_source:
        return "give this source a connection of its own with `client_id`, or topics that are apart"
    if one.startswith(SHARE) or other.startswith(SHARE):
        return "take one of them out"
    return f"name one topic that covers both, such as {quote(common(split_share(one)[1], split_share(other)[1]))}"


def _published_topics(config: Config, sources: list[Converted], models: list[Converted]) -> Iterator[Mistake]:
    if not config.device.id or not config.upstream.topic:
        return
    reserved = {f"edge/{config.device.id}/{each}" for each in RESERVED}
    moved = (getattr(config.upstream, key) for key in OWN_TOPICS)
    reserved.update(each.replace("{device}", config.device.id) for each in moved if each)
    for model in models:
        if model.wrong.intersection({"name", "source"}):
            continue
        filled = config.upstream.topic.replace("{device}", config.device.id).replace("{model}", model.value.name)
        any_key = filled.replace("{key}", "+")
        own = tuple(f"edge/{config.device.id}/{each}" for each in RESERVED_BELOW)
        if any(matches(any_key, each) for each in reserved) or any(_may_lie_below(any_key, each) for each in own):
            by_key = filled.replace("{key}", "-") not in reserved and any_key != filled
            hint = ", where a key may be the name of such a topic" if by_key and not filled.startswith(own) else ""
            yield Mistake(
                "upstream.topic",
                f"expected a topic that the device does not use itself, found {quote(filled)} "
                f"for model {quote(model.value.name)}{hint}: choose another topic or name",
            )
        for source in sources:
            if source.value.name != model.value.source or "topics" in source.wrong:
                continue
            for topic, topic_filter in source.value.read_topics(config.upstream).items():
                if matches(topic_filter, filled.replace("{key}", "-")):
                    yield Mistake(
                        source.key("topics"),
                        f"expected topics that model {quote(model.value.name)} does not publish to, "
                        f"found {quote(topic)}: it would read its own predictions",
                    )


def _may_lie_below(topic: str, above: str) -> bool:
    """Whether `topic`, with any key for `+`, can be below `above`."""
    levels, wanted = topic.split("/"), above.split("/")
    return len(levels) > len(wanted) and all(level in {"+", want} for level, want in zip(levels, wanted, strict=False))


def _unique(tables: list[Converted], key: str, text: str) -> Iterator[Mistake]:
    seen: dict[str, str] = {}
    for table in tables:
        value = getattr(table.value, key)
        if value is None or key in table.wrong:
            continue
        if value in seen:
            yield Mistake(table.key(key), f"{text}, {seen[value]}: {quote(value)}")
        seen.setdefault(value, table.place)


def first_repeated(words: Sequence[_Word]) -> _Word | None:
    """The first word that occurs twice."""
    return next((word for index, word in enumerate(words) if word in words[:index]), None)
