"""Placeholders in topic templates, and matching by filters (MQTT 3.1.1 section 4.7, MQTT 5 4.8.2). Pure."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Generic, TypeVar

from edge_runtime.config.convert import quote

Item = TypeVar("Item")

SHARE = "$share/"

# What a broker refuses in a topic that is published to, beside wildcards (MQTT 5 section 1.5.4): mosquitto closes the
# connection on control characters, surrogates and non-characters. A class of a regular expression, without brackets.
UNFIT_CHARACTERS = "\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef" + "".join(
    chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)


def placeholders(template: str) -> list[str]:
    """The names in braces, in order: `sensors/{key}/climate` holds `key`.

    Raises:
        ValueError: a brace has no partner.
    """
    names = []
    rest = template
    while "{" in rest or "}" in rest:
        before, opening, rest = rest.partition("{")
        name, closing, rest = rest.partition("}")
        if "}" in before or not opening or not closing or "{" in name:
            raise ValueError(template)
        names.append(name)
    return names


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription to `topic_filter` receives what is published to `topic`."""
    wanted, found = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(found) or level not in {"+", found[index]}:
            return False
    return len(wanted) == len(found)


def split_share(topic_filter: str) -> tuple[str, str]:
    """The part `$share/GROUP/` of a shared subscription, empty for a plain one, and the filter itself."""
    if not topic_filter.startswith(SHARE):
        return "", topic_filter
    group, _, rest = topic_filter[len(SHARE) :].partition("/")
    return f"{SHARE}{group}/", rest


def covers(wide: str, narrow: str) -> bool:
    """Whether a plain filter matches every topic that another one matches."""
    wides, narrows = wide.split("/"), narrow.split("/")
    if narrow.startswith("$") and wides[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wides):
        if level == "#":
            return True
        if index >= len(narrows) or narrows[index] == "#" or level not in {"+", narrows[index]}:
            return False
    return len(wides) == len(narrows)


def overlap(first: str, second: str) -> bool:
    """Whether there is a topic that both plain filters match."""
    ones, others = first.split("/"), second.split("/")
    if any(each.startswith("$") and levels[0] in {"+", "#"} for each, levels in ((first, others), (second, ones))):
        return False
    for one, other in zip(ones, others, strict=False):
        if "#" in {one, other}:
            return True
        if "+" not in {one, other} and one != other:
            return False
    longer, common_levels = max(ones, others, key=len), min(len(ones), len(others))
    return longer[common_levels:] in ([], ["#"])  # a closing # catches the level above it too


def common(first: str, second: str) -> str:
    """A plain filter that covers both."""
    levels: list[str] = []
    for one, other in zip_longest(first.split("/"), second.split("/"), fillvalue="#"):
        if "#" in {one, other}:
            return "/".join([*levels, "#"])
        levels.append(one if one == other else "+")
    return "/".join(levels)


class FilterIndex(Generic[Item]):
    """Many plain filters with items; finds the relevant ones without visiting all."""

    def __init__(self) -> None:
        self._root: _Level[Item] = _Level()

    def add(self, topic_filter: str, item: Item) -> None:
        """Add a filter; it may be added several times."""
        at = self._root
        for level in topic_filter.split("/"):
            at = at.below.setdefault(level, _Level())
            if level == "#":
                break  # nothing below it can catch more
        at.items.append(item)

    def catching(self, topic: str) -> list[Item]:
        """The items of the filters that receive what is published to `topic`, as `matches` says, in no order."""
        return self._found(topic, is_filter=False)

    def covering(self, topic_filter: str) -> list[Item]:
        """The items of the filters that catch every topic that this one catches, as `covers` says, in no order."""
        return self._found(topic_filter, is_filter=True)

    def overlapping(self, topic_filter: str) -> list[Item]:
        """The items of the filters that may overlap with this one, in no order; `overlap` tells which do."""
        found: list[Item] = []
        present = [self._root]
        for level in topic_filter.split("/"):
            if level == "#":
                break
            for each in present:
                found += each.items_of("#")
            present = [
                each.below[name]
                for each in present
                for name in (each.below.keys() - {"#"} if level == "+" else {"+", level}.intersection(each.below))
            ]
        else:
            for each in present:
                found += each.items + each.items_of("#")
            return found
        while present:  # a closing # overlaps with everything below, and with the level above
            for each in present:
                found += each.items
            present = [below for each in present for below in each.below.values()]
        return found

    def _found(self, wanted: str, *, is_filter: bool) -> list[Item]:
        found: list[Item] = []
        present, wildcards = [self._root], not wanted.startswith("$")
        for level in wanted.split("/"):
            following = []
            for each in present:
                below = each.below
                if wildcards:
                    found += each.items_of("#")
                    if "+" in below and not (is_filter and level == "#"):
                        following.append(below["+"])
                if level in below and level not in {"+", "#"}:
                    following.append(below[level])
            present, wildcards = following, True
            if not present:
                return found
        for each in present:
            found += each.items + each.items_of("#")  # a closing # catches the level above it too
        return found


class _Level(Generic[Item]):
    """One level of the filters of an index."""

    __slots__ = ("below", "items")

    def __init__(self) -> None:
        self.below: dict[str, _Level[Item]] = {}
        self.items: list[Item] = []

    def items_of(self, name: str) -> list[Item]:
        """The nodes of a lower level; none where there is no such level."""
        return self.below[name].items if name in self.below else []


def fewest(subscriptions: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The filters of which none covers another, each with the highest QoS of those that it stands for.

    A broker may send a message once for each filter that catches it (MQTT 3.1.1 section 3.3.5), so none may stand for
    what another one brings.
    """
    wanted: dict[str, int] = {}
    for topic_filter, qos in subscriptions:
        wanted[topic_filter] = max(qos, wanted.get(topic_filter, 0))
    index = FilterIndex[str]()
    for each in wanted:
        if not each.startswith(SHARE):
            index.add(each, each)
    wider = {each: [each] if each.startswith(SHARE) else index.covering(each) for each in wanted}
    kept = {each: qos for each, qos in wanted.items() if wider[each] == [each]}
    for topic_filter, qos in wanted.items():
        for each in wider[topic_filter]:
            if each in kept:
                kept[each] = max(qos, kept[each])
    return kept


def stands_for(wide: str, narrow: str) -> bool:
    """Whether a subscription to `wide` brings everything that one to `narrow` would bring; a share is always apart."""
    return not wide.startswith(SHARE) and not narrow.startswith(SHARE) and covers(wide, narrow)


def bad_topic(topic: str, known: tuple[str, ...], *, filters: bool) -> Iterator[str]:
    """The fault of a topic, or None; with `filters` it is a filter to subscribe to."""
    shown = quote(topic[:100])
    share, plain = split_share(topic) if filters else ("", topic)
    levels = plain.split("/")
    if share and (not plain or share == f"{SHARE}/" or any(sign in share for sign in "+#{}")):
        yield f"expected a shared topic as $share/GROUP/TOPIC, found {shown}"
        return
    try:
        names = placeholders(topic)
    except ValueError:
        yield f"expected each {{ with its }}, found {shown}"
        return
    for name in names:
        if name not in known:
            listed = " ".join(f"{{{each}}}" for each in known)
            yield f"expected no other placeholder than {listed}, found {quote('{' + name + '}')} in {shown}"
    for name in (each for each in known if each in names and (filters or each == "key")):
        if names.count(name) > 1:
            yield f"expected {{{name}}} at most once, found {shown}"
        if filters and f"{{{name}}}" not in levels:
            yield f"expected {{{name}}} as a whole level, such as sensors/{{{name}}}/climate, found {shown}"
    if not filters and ("+" in topic or "#" in topic):
        yield f"expected a topic without + and #, because one publishes to one topic, found {shown}"
    if filters and any("+" in level and level != "+" for level in levels):
        yield f"expected + as a whole level, found {shown}"
    if filters and any("#" in level and (level != "#" or i + 1 < len(levels)) for i, level in enumerate(levels)):
        yield f"expected # as the whole last level, found {shown}"
