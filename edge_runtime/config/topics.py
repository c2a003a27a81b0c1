"""Placeholders in topic templates, and which topics a filter catches (MQTT 3.1.1 section 4.7). Pure."""


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
